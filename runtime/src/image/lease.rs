//! Layers that must stay although no image in the index has them: those of pulls in progress.
//!
//! The collector looks at what is referenced, then deletes; a pull looks at what is there, then uses
//! it. Between the two looks of either the other may come. So a layer is *doomed* under the same
//! lock under which it is *held*, and who wants to hold a doomed one waits until it is gone.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::model::ChainId;

/// Holds and dooms.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    state: Mutex<State>,
    gone: Notify,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<ChainId, usize>,
    doomed: HashSet<ChainId>,
}

/// Layers that stay until it is dropped.
#[derive(Debug)]
pub struct Lease {
    leases: Arc<Leases>,
    chain: Vec<ChainId>,
}

impl Leases {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds layers, whether or not they are there yet.
    pub(crate) async fn hold(self: &Arc<Self>, chain: &[ChainId]) -> Lease {
        let lease = self.hold_now(chain);
        loop {
            let gone = self.gone.notified();
            tokio::pin!(gone);
            // Before the look, so that no end of a deletion is missed.
            gone.as_mut().enable();
            if !chain.iter().any(|id| self.state().doomed.contains(id)) {
                return lease;
            }
            gone.await;
        }
    }

    fn hold_now(self: &Arc<Self>, chain: &[ChainId]) -> Lease {
        let mut state = self.state();
        for id in chain {
            *state.held.entry(*id).or_default() += 1;
        }
        drop(state);
        Lease {
            leases: Arc::clone(self),
            chain: chain.to_vec(),
        }
    }

    /// Takes a layer for deletion, unless somebody holds it.
    pub(crate) fn doom(self: &Arc<Self>, id: ChainId) -> Option<Doom> {
        let mut state = self.state();
        if state.held.contains_key(&id) || !state.doomed.insert(id) {
            return None;
        }
        Some(Doom {
            leases: Arc::clone(self),
            id,
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.leases.state();
        for id in &self.chain {
            if let Some(count) = state.held.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    state.held.remove(id);
                }
            }
        }
    }
}

/// A layer that is being deleted.
#[derive(Debug)]
pub(crate) struct Doom {
    leases: Arc<Leases>,
    id: ChainId,
}

impl Drop for Doom {
    fn drop(&mut self) {
        self.leases.state().doomed.remove(&self.id);
        self.leases.gone.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_is_held_is_not_deleted_and_what_is_deleted_is_waited_for() {
        let leases = Arc::new(Leases::default());
        let id = ChainId::from_bytes([1; 32]);
        let (one, two) = (leases.hold(&[id]).await, leases.hold(&[id]).await);
        drop(one);
        assert!(leases.doom(id).is_none());
        drop(two);
        let doom = leases.doom(id).unwrap();
        assert!(leases.doom(id).is_none());
        let chain = [id];
        let wait = leases.hold(&chain);
        tokio::pin!(wait);
        let early = tokio::time::timeout(Duration::from_millis(20), &mut wait).await;
        assert!(early.is_err());
        drop(doom);
        tokio::time::timeout(Duration::from_secs(5), wait).await.unwrap();
    }
}
