//! Keeps the network configuration current, and knows whether its plugins are ready.
//!
//! inotify tells of changes at once; a look every few seconds finds what it does not see: a
//! directory that did not exist, was replaced, or lies where there are no events. Looking is done on a
//! thread of its own, one at a time: a directory on a disk that hangs costs that thread and nothing else.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{Mutex, Notify, oneshot};
use tokio::task::JoinHandle;

use super::conf::{self, Found};
use super::version::Version;
use super::{Error, NetworkStatus, Plugins, SharedNetwork};

/// How long changes are given to settle: an editor makes several.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// How often it is looked without being told.
const POLL: Duration = Duration::from_secs(5);
/// How old an answer to STATUS may be before it is asked for again.
const STATUS_AGE: Duration = Duration::from_secs(5);
/// How long a look is waited for. What comes later still counts.
const LOOK_LIMIT: Duration = Duration::from_secs(2);

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
    look: Mutex<Look>,
    /// Reads the directory.
    load: fn(&Path) -> Found,
}

/// Where the looking stands.
#[derive(Debug, Default)]
struct Look {
    /// `None` while a look has it.
    eye: Option<Eye>,
    under_way: Option<(Instant, oneshot::Receiver<(Eye, Found)>)>,
}

/// What is kept from look to look.
#[derive(Debug, Default)]
struct Eye {
    watched: Option<(u64, u64)>,
    watcher: Option<RecommendedWatcher>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Reads the configuration and starts the watching task.
    pub(super) fn start(dir: PathBuf, plugins: Plugins) -> Result<Self, Error> {
        Self::start_with(dir, plugins, conf::load)
    }

    fn start_with(dir: PathBuf, plugins: Plugins, load: fn(&Path) -> Found) -> Result<Self, Error> {
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| Error::NotReady(format!("no tokio runtime: {error}")))?;
        let shared = Arc::new(Shared {
            dir,
            plugins,
            view: RwLock::default(),
            changed: Notify::new(),
            moved: AtomicBool::new(false),
            stale: Notify::new(),
            look: Mutex::default(),
            load,
        });
        shared.first_look();
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
        self.shared.look().await;
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

    /// The look at start, which is waited for as any other.
    fn first_look(self: &Arc<Self>) {
        let Ok(mut look) = self.look.try_lock() else {
            return;
        };
        let begun = Instant::now();
        let mut answer = self.begin(Eye::default());
        while begun.elapsed() < LOOK_LIMIT {
            match answer.try_recv() {
                Ok((eye, found)) => {
                    look.eye = Some(eye);
                    self.publish(found);
                    return;
                }
                Err(oneshot::error::TryRecvError::Empty) => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(oneshot::error::TryRecvError::Closed) => break,
            }
        }
        look.under_way = Some((begun, answer));
        self.hangs();
    }

    /// Looks, or waits for the look that is under way; says whether the network is another one than before.
    async fn look(self: &Arc<Self>) -> bool {
        let mut look = self.look.lock().await;
        let (begun, mut answer) = match look.under_way.take() {
            Some(under_way) => under_way,
            None => {
                let eye = look.eye.take().unwrap_or_default();
                (Instant::now(), self.begin(eye))
            }
        };
        let left = LOOK_LIMIT.saturating_sub(begun.elapsed());
        match tokio::time::timeout(left, &mut answer).await {
            Ok(Ok((eye, found))) => {
                look.eye = Some(eye);
                self.publish(found)
            }
            Ok(Err(_)) => {
                let dir = self.dir.display();
                let why = format!("{dir} cannot be looked at: there is no thread for it");
                self.publish(Found::nothing(why))
            }
            Err(_) => {
                look.under_way = Some((begun, answer));
                // Told once for each look that hangs.
                if !left.is_zero() {
                    self.hangs();
                }
                false
            }
        }
    }

    /// Looks on a thread of its own, and not on one of tokio's: those are for work that ends.
    fn begin(self: &Arc<Self>, mut eye: Eye) -> oneshot::Receiver<(Eye, Found)> {
        let (answer, answered) = oneshot::channel();
        let shared = Arc::clone(self);
        let work = move || {
            let seen = identity(&shared.dir);
            let moved = shared.moved.swap(false, Ordering::AcqRel);
            if seen != eye.watched || eye.watcher.is_none() || moved {
                drop(eye.watcher.take());
                eye.watcher = seen.and_then(|_| observe(&shared));
                eye.watched = seen;
            }
            // After the watch is in place, so that nothing falls between.
            let found = (shared.load)(&shared.dir);
            // Whoever asked may be gone, at the daemon's end.
            let _ = answer.send((eye, found));
        };
        // Without a thread the sender is dropped, which tells.
        let _ = thread::Builder::new().name("cni-conf".into()).spawn(work);
        answered
    }

    /// A directory that does not answer: a network that is known stays in use, for its plugins may well work.
    fn hangs(&self) {
        if self.view().found.is_some() {
            tracing::warn!(dir = %self.dir.display(), "the cni configuration cannot be looked at: its disk does not answer; what was read before stays in force");
            return;
        }
        self.publish(Found::nothing(format!(
            "{} does not answer within {} s: see the kernel's log, and what it is mounted from",
            self.dir.display(),
            LOOK_LIMIT.as_secs()
        )));
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
    shared.ask().await;
    loop {
        if shared.look().await {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    static LOOKS: AtomicUsize = AtomicUsize::new(0);

    /// A directory whose disk answers after a while, and says something then.
    fn slow(dir: &Path) -> Found {
        LOOKS.fetch_add(1, Ordering::Relaxed);
        thread::sleep(LOOK_LIMIT + Duration::from_secs(2));
        conf::load(dir)
    }

    #[tokio::test]
    async fn a_directory_that_hangs_keeps_nobody_and_counts_when_it_answers() {
        let dir = tempfile::tempdir().unwrap();
        let conf = r#"{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"a"}]}"#;
        std::fs::write(dir.path().join("1.conflist"), conf).unwrap();
        let plugins = Plugins {
            dirs: Vec::new(),
            timeout: LOOK_LIMIT,
        };
        let begun = Instant::now();
        let watch = Watch::start_with(dir.path().into(), plugins, slow).unwrap();
        assert!(begun.elapsed() < LOOK_LIMIT + Duration::from_secs(1));
        let status = watch.status();
        assert!(!status.ready);
        assert!(
            status.message.contains("does not answer"),
            "{}",
            status.message
        );
        let asked = Instant::now();
        let error = watch.network().await.unwrap_err().to_string();
        assert!(error.contains("does not answer"), "{error}");
        assert!(asked.elapsed() < Duration::from_secs(1));
        assert_eq!(LOOKS.load(Ordering::Relaxed), 1, "one thread at a time");
        while !watch.status().ready {
            assert!(begun.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
