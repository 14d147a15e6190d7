//! Keeps the network configuration current, and knows whether its plugins are ready.
//!
//! inotify tells of changes at once; a look every few seconds finds what it does not see: a
//! directory that did not exist, was replaced, or lies where there are no events.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::conf::{self, Found};
use super::version::Version;
use super::{Error, NetworkStatus, Plugins, SharedNetwork, blocking};

/// How long changes are given to settle: an editor makes several.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// How often it is looked without being told.
const POLL: Duration = Duration::from_secs(5);
/// How old an answer to STATUS may be before it is asked for again.
const STATUS_AGE: Duration = Duration::from_secs(5);

/// What is known at the moment.
#[derive(Clone, Debug, Default)]
struct View {
    found: Option<(PathBuf, SharedNetwork)>,
    problems: Vec<String>,
    /// The last answer to STATUS, and when it came. `None`: none yet, or none is needed.
    answer: Option<(Instant, Result<(), String>)>,
}

/// The watched configuration.
#[derive(Debug)]
pub(super) struct Watch {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    dir: PathBuf,
    plugins: Plugins,
    view: RwLock<Arc<View>>,
    /// The directory changed.
    changed: Notify,
    /// Something happened to the directory itself: a watch may have ended with it, even when one
    /// with the same inode is in its place.
    moved: AtomicBool,
    /// Somebody wants a fresh answer to STATUS.
    stale: Notify,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Reads the configuration and starts the watching task.
    pub(super) fn start(dir: PathBuf, plugins: Plugins) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| Error::NotReady(format!("no tokio runtime: {error}")))?;
        let shared = Arc::new(Shared {
            dir,
            plugins,
            view: RwLock::default(),
            changed: Notify::new(),
            moved: AtomicBool::new(false),
            stale: Notify::new(),
        });
        shared.publish(conf::load(&shared.dir));
        let task = runtime.spawn(watch(Arc::clone(&shared)));
        Ok(Self { shared, task })
    }

    /// The directory that is watched.
    pub(super) fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// The configured network, from memory.
    pub(super) fn current(&self) -> Option<SharedNetwork> {
        let view = self.shared.view();
        view.found.as_ref().map(|(_, network)| Arc::clone(network))
    }

    /// The configured network; looks again before it says that there is none.
    pub(super) async fn network(&self) -> Result<SharedNetwork, Error> {
        if let Some(network) = self.current() {
            return Ok(network);
        }
        self.shared.reload().await?;
        self.current()
            .ok_or_else(|| Error::NotReady(self.shared.view().missing(&self.shared.dir)))
    }

    /// Readiness, from memory; an old answer is renewed meanwhile.
    pub(super) fn status(&self) -> NetworkStatus {
        let view = self.shared.view();
        let not_ready = |message| NetworkStatus {
            ready: false,
            reason: "NetworkPluginNotReady".into(),
            message,
        };
        let Some((path, network)) = &view.found else {
            return not_ready(view.missing(&self.shared.dir));
        };
        if network.version >= Version::V1_1 {
            let fresh = |asked: &Instant| asked.elapsed() < STATUS_AGE;
            if !view.answer.as_ref().is_some_and(|(asked, _)| fresh(asked)) {
                self.shared.stale.notify_one();
            }
            match &view.answer {
                None => return not_ready(format!("waiting for the plugins of {path:?}")),
                Some((_, Err(why))) => return not_ready(why.clone()),
                Some((_, Ok(()))) => {}
            }
        }
        NetworkStatus {
            ready: true,
            reason: String::new(),
            message: String::new(),
        }
    }
}

impl View {
    fn missing(&self, dir: &Path) -> String {
        let dir = dir.display();
        let mut text = format!("cni plugin not initialized: no network config found in {dir}");
        for problem in &self.problems {
            text.push_str("; ");
            text.push_str(problem);
        }
        text
    }
}

impl Shared {
    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts what was found in place; says whether it is another network than before.
    fn publish(&self, found: Found) -> bool {
        let before = self.view();
        let unchanged = |network| before.found.as_ref().is_some_and(|(_, b)| **b == network);
        let same = match &found.network {
            None => before.found.is_none(),
            Some((_, network)) => unchanged(network.clone()),
        };
        if same && before.problems == found.problems {
            return false;
        }
        for problem in found
            .problems
            .iter()
            .filter(|p| !before.problems.contains(p))
        {
            tracing::warn!("cni configuration: {problem}");
        }
        if !same && let Some((path, network)) = &found.network {
            tracing::info!(
                ?path,
                network = network.name,
                "cni network configuration loaded"
            );
        }
        let view = View {
            found: found
                .network
                .map(|(path, network)| (path, Arc::new(network))),
            problems: found.problems,
            answer: before.answer.clone().filter(|_| same),
        };
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
        !same
    }

    async fn reload(&self) -> Result<bool, Error> {
        let dir = self.dir.clone();
        let found = blocking(move || Ok(conf::load(&dir))).await?;
        Ok(self.publish(found))
    }

    /// Asks the plugins for their STATUS, if they know that verb.
    async fn ask(&self) {
        let view = self.view();
        let Some((_, network)) = &view.found else {
            return;
        };
        if network.version < Version::V1_1 {
            return;
        }
        let answer = self.plugins.status(network).await;
        let mut place = self.view.write().unwrap_or_else(PoisonError::into_inner);
        let still = place
            .found
            .as_ref()
            .is_some_and(|(_, now)| Arc::ptr_eq(now, network));
        // The answer may be about a configuration that is no more.
        if still {
            *place = Arc::new(View {
                answer: Some((Instant::now(), answer)),
                ..View::clone(&place)
            });
        }
    }
}

/// What tells a directory from another of the same name: device and inode.
fn identity(dir: &Path) -> Option<(u64, u64)> {
    let found = std::fs::metadata(dir).ok()?;
    Some((found.dev(), found.ino()))
}

async fn watch(shared: Arc<Shared>) {
    let mut watched = None;
    let mut watcher: Option<RecommendedWatcher> = None;
    shared.ask().await;
    loop {
        let dir = shared.dir.clone();
        let seen = blocking(move || Ok(identity(&dir)))
            .await
            .unwrap_or_default();
        if seen != watched || watcher.is_none() || shared.moved.swap(false, Ordering::AcqRel) {
            drop(watcher.take());
            watcher = seen.and_then(|_| observe(&shared));
            watched = seen;
        }
        // After the watch is in place, so that nothing falls between.
        if shared.reload().await.unwrap_or(false) {
            shared.ask().await;
        }
        tokio::select! {
            () = shared.changed.notified() => tokio::time::sleep(DEBOUNCE).await,
            () = shared.stale.notified() => shared.ask().await,
            () = tokio::time::sleep(POLL) => {}
        }
    }
}

/// Watches the directory, if it is there and the kernel has a watch to spare.
fn observe(shared: &Arc<Shared>) -> Option<RecommendedWatcher> {
    let weak = Arc::downgrade(shared);
    let told = move |event: notify::Result<notify::Event>| {
        let Some(shared) = weak.upgrade() else {
            return;
        };
        if let Ok(event) = &event {
            // Our own reading of the files is no change.
            if event.kind.is_access() {
                return;
            }
            if event.paths.contains(&shared.dir) {
                shared.moved.store(true, Ordering::Release);
            }
        }
        shared.changed.notify_one();
    };
    let mut watcher = notify::recommended_watcher(told).ok()?;
    match watcher.watch(&shared.dir, RecursiveMode::NonRecursive) {
        Ok(()) => Some(watcher),
        // The look every few seconds goes on.
        Err(_) => None,
    }
}
