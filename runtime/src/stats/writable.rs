//! Sizes of writable layers. They have to be walked, so they are remembered.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::id::ContainerId;
use crate::model::{FsUsage, chain, now_nanos};
use crate::storage::{self, Storage, Usage};

/// How old a size may be before it is added up again, as old as those of the other runtimes.
pub(super) const AGE: Duration = Duration::from_secs(10);

/// A walk may take this part of the time at most: a layer with a million files is looked at less often.
const SHARE: u32 = 50;

/// The sizes that are known.
#[derive(Debug)]
pub(super) struct Writable {
    storage: Storage,
    known: Arc<Mutex<HashMap<ContainerId, Size>>>,
    /// One walk at a time: on a disk that hangs there is one stuck thread, not one for each call.
    walk: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone, Copy, Debug)]
struct Size {
    usage: Usage,
    /// When it was added up, nanoseconds since the Unix epoch.
    at: i64,
    again: Instant,
    /// The container was over by then, and nothing will change any more.
    last: bool,
}

/// What is to be walked.
#[derive(Debug, Default)]
struct Due {
    ids: Vec<(ContainerId, bool)>,
    /// Of at least one nothing is known.
    first: bool,
}

impl Writable {
    pub(super) fn new(storage: Storage) -> Self {
        Self {
            storage,
            known: Arc::default(),
            walk: Arc::default(),
        }
    }

    /// The size of a container's writable layer, if it is known.
    pub(super) fn of(&self, id: &ContainerId) -> Option<FsUsage> {
        let size = *lock(&self.known).get(id)?;
        Some(FsUsage {
            timestamp: size.at,
            mountpoint: self.storage.root().to_owned(),
            used_bytes: size.usage.bytes,
            inodes_used: size.usage.inodes,
        })
    }

    /// Adds up what is not known or too old, for containers that live or do not. Waits for it, but not long; the
    /// walk goes on.
    pub(super) async fn refresh(
        &self,
        wanted: Vec<(ContainerId, bool)>,
        first: Duration,
        newer: Duration,
    ) {
        let due = due(&lock(&self.known), &wanted, Instant::now());
        if due.ids.is_empty() {
            return;
        }
        let patience = if due.first { first } else { newer };
        let work = async {
            let turn = self.walk.clone().lock_owned().await;
            // Somebody else may have done it while this waited.
            let due = due_now(&self.known, &wanted);
            if due.ids.is_empty() {
                return;
            }
            let (storage, known) = (self.storage.clone(), self.known.clone());
            let walk = crate::blocking::run("add up writable layers", move || {
                walk(&storage, &known, due.ids);
                drop(turn);
            });
            // Fails only if the walk panicked, which the panic hook has told already.
            let _ = tokio::spawn(walk).await;
        };
        // Either way there is nothing to do: the caller takes what is known then.
        let _ = tokio::time::timeout(patience, work).await;
    }
}

fn lock(known: &Mutex<HashMap<ContainerId, Size>>) -> MutexGuard<'_, HashMap<ContainerId, Size>> {
    // Every change is one insertion or removal.
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

fn due_now(known: &Mutex<HashMap<ContainerId, Size>>, wanted: &[(ContainerId, bool)]) -> Due {
    due(&lock(known), wanted, Instant::now())
}

/// Those of which nothing is known come first.
fn due(known: &HashMap<ContainerId, Size>, wanted: &[(ContainerId, bool)], now: Instant) -> Due {
    let mut due = Due::default();
    let mut old = Vec::new();
    for one in wanted {
        match known.get(&one.0) {
            None => due.ids.push(one.clone()),
            Some(size) if size.last || size.again > now => {}
            Some(_) => old.push(one.clone()),
        }
    }
    due.first = !due.ids.is_empty();
    due.ids.append(&mut old);
    due
}

fn walk(
    storage: &Storage,
    known: &Mutex<HashMap<ContainerId, Size>>,
    ids: Vec<(ContainerId, bool)>,
) {
    for (id, lives) in ids {
        let start = Instant::now();
        match storage.snapshot_usage(&id) {
            Ok(usage) => {
                let end = Instant::now();
                let pause = AGE.max(end.saturating_duration_since(start) * SHARE);
                let size = Size {
                    usage,
                    at: now_nanos(),
                    again: end + pause,
                    last: !lives,
                };
                lock(known).insert(id, size);
            }
            Err(storage::Error::NoSnapshot(_)) => {
                lock(known).remove(&id);
            }
            Err(error) => tracing::warn!(
                container.id = id.as_str(),
                error = %chain(&error),
                "the size of a writable layer is not known"
            ),
        }
    }
    let there: HashSet<ContainerId> = storage.snapshots().into_iter().collect();
    lock(known).retain(|id, _| there.contains(id));
}

#[cfg(test)]
mod tests;
