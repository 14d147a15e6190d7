//! One run of a piece of work, however many wait for it.
//!
//! A run is a task of its own: a waiter that goes away takes nothing from the others. Without any
//! waiter a run is cancelled, unless it was started to go on alone.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;
use tokio::task::AbortHandle;

/// Runs in progress, by what they do. `P` is what everybody who waits for a run can see of it.
#[derive(Debug)]
pub(crate) struct Flights<K, V, P = ()> {
    running: Mutex<HashMap<K, Running<V, P>>>,
}

#[derive(Debug)]
struct Running<V, P> {
    result: watch::Receiver<Option<V>>,
    progress: Arc<P>,
    guard: Weak<Guard>,
    /// Keeps a run going that nobody waits for.
    _keep: Option<Arc<Guard>>,
}

#[derive(Debug)]
struct Guard(Option<AbortHandle>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.abort();
        }
    }
}

/// What becomes of a run that nobody waits for any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alone {
    /// It goes on.
    Finish,
    /// It is cancelled.
    Cancel,
}

/// A right to a run's result.
#[derive(Debug)]
pub(crate) struct Ticket<V, P = ()> {
    result: watch::Receiver<Option<V>>,
    /// How far the run is.
    pub(crate) progress: Arc<P>,
    /// This ticket's caller started the run.
    pub(crate) owner: bool,
    _guard: Arc<Guard>,
}

impl<V, P> Clone for Ticket<V, P> {
    fn clone(&self) -> Self {
        Self {
            result: self.result.clone(),
            progress: Arc::clone(&self.progress),
            owner: false,
            _guard: Arc::clone(&self._guard),
        }
    }
}

impl<V: Clone, P> Ticket<V, P> {
    /// The result; `None` when the run panicked.
    pub(crate) async fn wait(&mut self) -> Option<V> {
        let result = self.result.wait_for(Option::is_some).await.ok()?;
        result.clone()
    }

    /// Whether there is a result, for which nobody has to wait any more.
    pub(crate) fn is_over(&self) -> bool {
        self.result.borrow().is_some()
    }
}

impl<K, V, P> Default for Flights<K, V, P> {
    fn default() -> Self {
        Self {
            running: Mutex::new(HashMap::new()),
        }
    }
}

impl<K, V, P> Flights<K, V, P>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
    P: Default + Send + Sync + 'static,
{
    /// Joins the run for a key, or starts one.
    pub(crate) fn join<F>(
        self: &Arc<Self>,
        key: K,
        alone: Alone,
        work: impl FnOnce(Arc<P>) -> F,
    ) -> Ticket<V, P>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = running.get(&key)
            && let Some(guard) = run.guard.upgrade()
        {
            return Ticket {
                result: run.result.clone(),
                progress: Arc::clone(&run.progress),
                owner: false,
                _guard: guard,
            };
        }
        let (sender, result) = watch::channel(None);
        let progress = Arc::new(P::default());
        let work = work(Arc::clone(&progress));
        // Taken back when the run ends in any way: done, cancelled or panicked.
        let entry = Entry {
            flights: Arc::clone(self),
            key: key.clone(),
            result: result.clone(),
        };
        let task = tokio::spawn(async move {
            let value = work.await;
            drop(entry);
            let _ = sender.send(Some(value));
        });
        let cancel = alone == Alone::Cancel;
        let guard = Arc::new(Guard(cancel.then(|| task.abort_handle())));
        let run = Running {
            result: result.clone(),
            progress: Arc::clone(&progress),
            guard: Arc::downgrade(&guard),
            _keep: (!cancel).then(|| Arc::clone(&guard)),
        };
        running.insert(key, run);
        Ticket {
            result,
            progress,
            owner: true,
            _guard: guard,
        }
    }
}

struct Entry<K: Eq + Hash, V, P> {
    flights: Arc<Flights<K, V, P>>,
    key: K,
    result: watch::Receiver<Option<V>>,
}

impl<K: Eq + Hash, V, P> Drop for Entry<K, V, P> {
    fn drop(&mut self) {
        let mut running = self
            .flights
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // A cancelled run may have a successor under its key already.
        let ours = running
            .get(&self.key)
            .is_some_and(|run| run.result.same_channel(&self.result));
        if ours {
            running.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn runs_are_shared_survive_a_waiter_and_are_cancelled_with_the_last() {
        let flights = Arc::new(Flights::<u8, usize>::default());
        let (started, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let work = |time: u64| {
            let (started, ended) = (Arc::clone(&started), Arc::clone(&ended));
            move |_| async move {
                started.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(time)).await;
                ended.fetch_add(1, Ordering::SeqCst) + 1
            }
        };
        let first = flights.join(1, Alone::Cancel, work(50));
        let mut second = flights.join(1, Alone::Cancel, work(50));
        assert!(first.owner && !second.owner);
        drop(first);
        assert_eq!(second.wait().await, Some(1));
        assert_eq!(started.load(Ordering::SeqCst), 1);
        let mut again = flights.join(1, Alone::Cancel, work(1));
        assert!(again.owner);
        assert_eq!(again.wait().await, Some(2));
        drop(flights.join(1, Alone::Cancel, work(20)));
        let mut after = flights.join(1, Alone::Cancel, work(1));
        assert!(after.owner);
        assert_eq!(after.wait().await, Some(3));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(ended.load(Ordering::SeqCst), 3);
        drop(flights.join(1, Alone::Finish, work(20)));
        let four = async {
            while ended.load(Ordering::SeqCst) < 4 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), four)
            .await
            .unwrap();
        assert!(flights.running.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_panic_is_told() {
        let flights = Arc::new(Flights::<u8, ()>::default());
        let mut ticket = flights.join(1, Alone::Cancel, |_| async { panic!("on purpose") });
        assert_eq!(ticket.wait().await, None);
        assert!(flights.running.lock().unwrap().is_empty());
    }
}
