//! Names of objects being made or existing: a create that is repeated joins the first instead of failing.
//!
//! The kubelet repeats a create whose RPC timed out. containerd then answers that the name is reserved,
//! for ever if the first died half-way; here the repeated request waits for the first one's result.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tracing::Instrument;

/// What a create's outcome is shared as.
type Outcome<I, E> = Option<Result<I, Arc<E>>>;

/// The names that are in use, shared with the reservations.
type Slots<K, I, R, E> = Arc<Mutex<HashMap<K, Slot<I, R, E>>>>;

#[derive(Debug)]
enum Slot<I, R, E> {
    /// Somebody is making it.
    Busy {
        request: Arc<R>,
        outcome: watch::Receiver<Outcome<I, E>>,
    },
    /// It exists. `claimed` once a caller has been told so.
    Exists {
        request: Arc<R>,
        id: I,
        claimed: bool,
    },
}

/// The names of one kind of object. `K` is the name, `I` the id, `R` the request, `E` the create's error.
#[derive(Debug)]
pub struct Names<K, I, R, E> {
    slots: Slots<K, I, R, E>,
}

/// Why there is no object of that name for this caller.
#[derive(Debug)]
pub enum Refused<I, E> {
    /// The making failed.
    Failed(Arc<E>),
    /// The name belongs to this object.
    Taken(I),
    /// The name is being made into something else.
    Busy,
    /// The making ended without a result: it panicked.
    Lost,
}

/// What became of a claim to a name.
#[derive(Debug)]
enum Claim<K: Eq + Hash, I, R, E> {
    /// The name was free: make the object, then call [`Reservation::finish`].
    Mine(Reservation<K, I, R, E>),
    /// An equal request is under way: wait for its outcome.
    Join(watch::Receiver<Outcome<I, E>>),
    /// An equal request has made the object and nobody was told.
    Made(I),
    /// The name belongs to this object.
    Taken(I),
    /// The name is being made into something else.
    Other,
}

/// A name that is being made into an object. Dropping it frees the name.
#[derive(Debug)]
pub struct Reservation<K: Eq + Hash, I, R, E> {
    slots: Slots<K, I, R, E>,
    name: Option<K>,
    request: Arc<R>,
    outcome: watch::Sender<Outcome<I, E>>,
}

impl<K, I, R, E> Default for Names<K, I, R, E> {
    fn default() -> Self {
        Self {
            slots: Arc::default(),
        }
    }
}

impl<K: Eq + Hash + Clone, I: Clone + PartialEq, R: PartialEq, E> Names<K, I, R, E> {
    /// Makes the object of this name, or joins whoever is making it. The making is a task of its own: a
    /// caller that goes away does not leave half an object behind, and its result is kept for the next one
    /// who asks for the same, as long as it is still `fresh`.
    ///
    /// # Errors
    /// See [`Refused`].
    pub async fn join_or_make<F>(
        &self,
        name: K,
        request: Arc<R>,
        fresh: impl FnOnce(&I) -> bool,
        make: impl FnOnce(Reservation<K, I, R, E>) -> F,
    ) -> Result<I, Refused<I, E>>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut outcome = match self.claim(name.clone(), request) {
            Claim::Mine(reservation) => {
                let outcome = reservation.outcome.subscribe();
                tokio::spawn(make(reservation).in_current_span());
                outcome
            }
            Claim::Join(outcome) => outcome,
            Claim::Made(id) => {
                self.told(&name);
                return match fresh(&id) {
                    true => Ok(id),
                    false => Err(Refused::Taken(id)),
                };
            }
            Claim::Taken(id) => return Err(Refused::Taken(id)),
            Claim::Other => return Err(Refused::Busy),
        };
        let made = match outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        };
        let id = made.ok_or(Refused::Lost)?.map_err(Refused::Failed)?;
        self.told(&name);
        Ok(id)
    }

    /// Asks for a name.
    fn claim(&self, name: K, request: Arc<R>) -> Claim<K, I, R, E> {
        let mut slots = lock(&self.slots);
        match slots.get_mut(&name) {
            None => {
                let (sender, receiver) = watch::channel(None);
                slots.insert(
                    name.clone(),
                    Slot::Busy {
                        request: request.clone(),
                        outcome: receiver,
                    },
                );
                Claim::Mine(Reservation {
                    slots: self.slots.clone(),
                    name: Some(name),
                    request,
                    outcome: sender,
                })
            }
            Some(Slot::Busy {
                request: first,
                outcome,
            }) if *first == request => Claim::Join(outcome.clone()),
            Some(Slot::Busy { .. }) => Claim::Other,
            Some(Slot::Exists {
                request: first,
                id,
                claimed,
            }) if !*claimed && *first == request => Claim::Made(id.clone()),
            Some(Slot::Exists { id, .. }) => Claim::Taken(id.clone()),
        }
    }

    /// A caller has been told that the object exists; from now on the name is taken.
    fn told(&self, name: &K) {
        if let Some(Slot::Exists { claimed, .. }) = lock(&self.slots).get_mut(name) {
            *claimed = true;
        }
    }

    /// An object found at start. Nobody knows whether a caller was told, so an equal request is given it.
    pub fn restore(&self, name: K, request: Arc<R>, id: I) {
        lock(&self.slots).insert(
            name,
            Slot::Exists {
                request,
                id,
                claimed: false,
            },
        );
    }

    /// The object is gone; its name is free.
    pub fn free(&self, name: &K, id: &I) {
        let mut slots = lock(&self.slots);
        if matches!(slots.get(name), Some(Slot::Exists { id: holder, .. }) if holder == id) {
            slots.remove(name);
        }
    }
}

impl<K: Eq + Hash, I: Clone, R, E> Reservation<K, I, R, E> {
    /// Publishes the outcome to everybody who joined. After a failure the name is free; one that nobody waits
    /// for any more is logged here, for nobody else will.
    pub fn finish(mut self, outcome: Result<I, Arc<E>>)
    where
        E: std::error::Error + 'static,
    {
        if let Some(name) = self.name.take() {
            let mut slots = lock(&self.slots);
            match &outcome {
                Ok(id) => {
                    let slot = Slot::Exists {
                        request: self.request.clone(),
                        id: id.clone(),
                        claimed: false,
                    };
                    slots.insert(name, slot);
                }
                Err(_) => {
                    slots.remove(&name);
                }
            }
        }
        if let Err(error) = &outcome
            && self.outcome.receiver_count() == 0
        {
            tracing::warn!(error = %crate::model::chain(error.as_ref()), "a create failed after its caller had left");
        }
        self.outcome.send_replace(Some(outcome));
    }

    /// The create failed and could not be undone: the name stays with the object until that is removed.
    pub fn finish_failed_but_kept(mut self, id: I, error: Arc<E>) {
        if let Some(name) = self.name.take() {
            let slot = Slot::Exists {
                request: self.request.clone(),
                id,
                claimed: true,
            };
            lock(&self.slots).insert(name, slot);
        }
        self.outcome.send_replace(Some(Err(error)));
    }
}

impl<K: Eq + Hash, I, R, E> Drop for Reservation<K, I, R, E> {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            lock(&self.slots).remove(&name);
        }
    }
}

// A panic while the map is held leaves it whole: every change is one insert or remove.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Fixture = Names<&'static str, u32, &'static str, std::io::Error>;

    #[tokio::test]
    async fn a_repeated_create_is_given_the_first_ones_result() {
        let names = Fixture::default();
        let Claim::Mine(reservation) = names.claim("n", Arc::new("r")) else {
            panic!("free")
        };
        let Claim::Join(mut waiter) = names.claim("n", Arc::new("r")) else {
            panic!("busy")
        };
        assert!(matches!(names.claim("n", Arc::new("other")), Claim::Other));
        reservation.finish(Ok(7));
        let outcome = waiter.wait_for(Option::is_some).await.unwrap().clone();
        assert_eq!(outcome.unwrap().unwrap(), 7);
        assert!(matches!(names.claim("n", Arc::new("r")), Claim::Made(7)));
        names.told(&"n");
        assert!(matches!(names.claim("n", Arc::new("r")), Claim::Taken(7)));
        names.free(&"n", &7);
        assert!(matches!(names.claim("n", Arc::new("r")), Claim::Mine(_)));
    }

    #[tokio::test]
    async fn a_caller_that_leaves_leaves_the_result_to_the_next() {
        let names = Fixture::default();
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let make = |reservation: Reservation<_, _, _, _>| async move {
            let _ = wait.await;
            reservation.finish(Ok(7));
        };
        let call = names.join_or_make("n", Arc::new("r"), |_| true, make);
        let limit = std::time::Duration::from_millis(10);
        assert!(tokio::time::timeout(limit, call).await.is_err());
        go.send(()).unwrap();
        let never = |_| async { panic!("it is being made") };
        assert_eq!(
            names
                .join_or_make("n", Arc::new("r"), |_| true, never)
                .await
                .unwrap(),
            7
        );
        let never = |_| async { panic!("it exists") };
        let again = names
            .join_or_make("n", Arc::new("r"), |_| true, never)
            .await;
        assert!(matches!(again, Err(Refused::Taken(7))));
    }

    #[tokio::test]
    async fn a_failed_or_dropped_create_frees_the_name() {
        let names = Fixture::default();
        let Claim::Mine(reservation) = names.claim("n", Arc::new("r")) else {
            panic!("free")
        };
        reservation.finish(Err(Arc::new(std::io::Error::other("no"))));
        let Claim::Mine(reservation) = names.claim("n", Arc::new("r")) else {
            panic!("free")
        };
        drop(reservation);
        assert!(matches!(names.claim("n", Arc::new("r")), Claim::Mine(_)));
    }
}
