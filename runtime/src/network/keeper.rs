//! Keeps what the pods of the built-in network stand on, and knows when that does not succeed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::Error;
use super::builtin::Builtin;
use super::error::chain;
use crate::blocking;

/// From one look to the next: how long pods may be without what somebody took away.
const EVERY: Duration = Duration::from_secs(2);

/// The task, and what it found last.
#[derive(Debug)]
pub(super) struct Keeper {
    builtin: Arc<Builtin>,
    /// Why pods do not have all they need; `None`: they have.
    broken: Arc<Mutex<Option<String>>>,
    task: Option<JoinHandle<()>>,
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Keeper {
    /// Begins to look, if the network is on.
    pub(super) fn start(builtin: &Arc<Builtin>) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| Error::NotReady(format!("no tokio runtime: {error}")))?;
        let broken = Arc::default();
        let (kept, told) = (Arc::clone(builtin), Arc::clone(&broken));
        let task = builtin.is_on().then(|| {
            runtime.spawn(async move {
                loop {
                    tokio::time::sleep(EVERY).await;
                    look(&kept, &told).await;
                }
            })
        });
        Ok(Self {
            builtin: Arc::clone(builtin),
            broken,
            task,
        })
    }

    /// Looks now.
    pub(super) async fn look(&self) {
        if self.builtin.is_on() {
            look(&self.builtin, &self.broken).await;
        }
    }

    /// Looks no more.
    pub(super) fn stop(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }

    /// Why pods do not have all they need, from memory.
    pub(super) fn broken(&self) -> Option<String> {
        locked(&self.broken).clone()
    }
}

fn locked(broken: &Mutex<Option<String>>) -> std::sync::MutexGuard<'_, Option<String>> {
    broken.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn look(builtin: &Arc<Builtin>, broken: &Mutex<Option<String>>) {
    let work = Arc::clone(builtin);
    let problem = match blocking::run("look at the built-in network", move || work.mend()).await {
        Ok(_) => None,
        Err(error) => Some(chain(&error)),
    };
    let mut known = locked(broken);
    if *known != problem {
        match &problem {
            Some(why) => tracing::error!("the built-in network is broken: {why}"),
            None => tracing::info!("the built-in network works again"),
        }
        *known = problem;
    }
}
