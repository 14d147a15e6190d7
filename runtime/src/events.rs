//! What happens to pods and containers, told to whoever listens; and the one thing that happens to the
//! daemon, [`Ready`].
//!
//! The channel is bounded: a listener that does not keep up loses the oldest events, which are counted,
//! and never slows those who send. An event says only what changed; the listener asks the managers how
//! things are, so it is sent after the change is visible there.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{broadcast, watch};

use crate::id::{ContainerId, PodId};
use crate::model::now_nanos;

/// How many events a listener may lag behind, unless told otherwise: ten changes of each of 400 containers.
pub const CAPACITY: usize = 4096;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A sandbox is ready.
    PodReady(PodId),
    /// A sandbox is no longer ready.
    PodNotReady(PodId),
    /// A sandbox was removed.
    PodRemoved(PodId),
    /// A container was made.
    ContainerCreated(PodId, ContainerId),
    /// A container was started.
    ContainerStarted(PodId, ContainerId),
    /// A container ended.
    ContainerStopped(PodId, ContainerId),
    /// A container was removed.
    ContainerRemoved(PodId, ContainerId),
}

impl Event {
    /// The pod that it happened to, or in.
    pub fn pod(&self) -> &PodId {
        match self {
            Self::PodReady(pod) | Self::PodNotReady(pod) | Self::PodRemoved(pod) => pod,
            Self::ContainerCreated(pod, _)
            | Self::ContainerStarted(pod, _)
            | Self::ContainerStopped(pod, _)
            | Self::ContainerRemoved(pod, _) => pod,
        }
    }
}

/// An event and when it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamped {
    /// Nanoseconds since the Unix epoch.
    pub at: i64,
    /// What happened.
    pub event: Event,
}

/// The sending side. Clones send to the same listeners.
#[derive(Clone)]
pub struct Events {
    sender: broadcast::Sender<Stamped>,
    dropped: Arc<AtomicU64>,
}

impl Default for Events {
    fn default() -> Self {
        Self::new(CAPACITY)
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events")
            .field("listeners", &self.sender.receiver_count())
            .field("dropped", &self.dropped())
            .finish()
    }
}

impl Events {
    /// A channel on which a listener may lag behind by `capacity` events.
    pub fn new(capacity: usize) -> Self {
        Self {
            sender: broadcast::Sender::new(capacity.max(1)),
            dropped: Arc::default(),
        }
    }

    /// Tells all listeners. Never waits; without a listener nothing happens.
    pub fn send(&self, event: Event) {
        let at = now_nanos();
        // The only error is that nobody listens.
        let _ = self.sender.send(Stamped { at, event });
    }

    /// Listens from now on.
    pub fn subscribe(&self) -> Listener {
        Listener {
            receiver: self.sender.subscribe(),
            dropped: self.dropped.clone(),
        }
    }

    /// How many events listeners have lost so far, each listener counted.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// The receiving side.
#[derive(Debug)]
pub struct Listener {
    receiver: broadcast::Receiver<Stamped>,
    dropped: Arc<AtomicU64>,
}

impl Listener {
    /// The next event; `None` once all senders are gone. Lost events are counted and passed over.
    pub async fn next(&mut self) -> Option<Stamped> {
        loop {
            match self.receiver.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(lost)) => {
                    self.dropped.fetch_add(lost, Ordering::Relaxed);
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

/// Whether recovery is over: a switch that goes on once. Until then every RPC is answered `Unavailable`,
/// which the kubelet tries again (row R064).
#[derive(Debug)]
pub struct Ready(watch::Sender<bool>);

impl Default for Ready {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Ready {
    /// Recovery is over: RPCs are served from now on.
    pub fn set(&self) {
        self.0.send_replace(true);
    }

    /// Whether RPCs are served.
    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until RPCs are served.
    pub async fn wait(&self) {
        // Fails only when the sender is gone, which is in `self`.
        let _ = self.0.subscribe().wait_for(|ready| *ready).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_listener_hears_what_comes_after_it() {
        let events = Events::default();
        let (pod, container) = (PodId::generate().unwrap(), ContainerId::generate().unwrap());
        events.send(Event::PodReady(pod.clone()));
        let (mut one, mut two) = (events.subscribe(), events.subscribe());
        let sent = Event::ContainerStarted(pod.clone(), container);
        events.clone().send(sent.clone());
        for listener in [&mut one, &mut two] {
            let heard = listener.next().await.unwrap();
            assert_eq!((&heard.event, heard.event.pod()), (&sent, &pod));
            assert!(heard.at > 0);
        }
        drop(events);
        assert_eq!(one.next().await, None);
    }

    #[tokio::test]
    async fn a_slow_listener_loses_the_oldest_and_they_are_counted() {
        let events = Events::new(2);
        let mut listener = events.subscribe();
        let pods: Vec<PodId> = (0..5).map(|_| PodId::generate().unwrap()).collect();
        for pod in &pods {
            events.send(Event::PodReady(pod.clone()));
        }
        assert_eq!(events.dropped(), 0, "nobody has looked yet");
        let heard = listener.next().await.unwrap();
        assert_eq!(heard.event, Event::PodReady(pods[3].clone()));
        assert_eq!(events.dropped(), 3);
    }
}
