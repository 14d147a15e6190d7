//! Pod sandboxes: run, stop, remove, status.
//!
//! A pod is its record under `root/records/pods/<id>`, its files and pinned namespaces under `state/pods/<id>`,
//! its pause process, its cgroup and its network. `release` gives all of it back, step by step, and is
//! the same for a stop, for a run that failed and for what a dead daemon left half-made.

mod acquire;
mod cgroups;
#[cfg(test)]
pub(crate) mod fake;
mod files;
mod ground;
mod measure;
mod parents;
mod record;
mod release;
mod restore;
mod run;
mod state;
mod sysctl;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::apparmor::AppArmor;
use crate::config::Config;
use crate::events::Events;
use crate::host::HostFacts;
use crate::id::{Lookup, PodId};
use crate::metrics::Metrics;
use crate::model::{
    Kind, Kinded, NamespaceMode, PodFilter, PodMetadata, PodSpec, PodState, PodStatus, ReadyPod,
    has_labels,
};
use crate::runtime::Runtime;
use crate::spec::seccomp::Compiler;
use crate::store::{Names, Programs, Records, Table};
use crate::undo::Failures;
pub use cgroups::PodCgroups;
pub use ground::{Ground, Kernel};
use record::Parts;
pub use record::PodRecord;
use state::{Change, Stage};

/// Why a pod operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such pod.
    #[error("pod sandbox {0:?} does not exist")]
    NotFound(String),
    /// More than one pod has this prefix.
    #[error("pod sandbox id {0:?} is ambiguous: give more digits")]
    Ambiguous(String),
    /// The pod exists but its isolation is gone.
    #[error("pod sandbox {0} is not ready: stop and remove it, and run another")]
    NotReady(PodId),
    /// The name is taken.
    #[error(
        "a pod sandbox named {name} exists already: {id}; remove it first or raise the attempt"
    )]
    Exists {
        /// The name.
        name: String,
        /// Who has it.
        id: PodId,
    },
    /// The same name is being made with other settings.
    #[error("a pod sandbox named {0} is being made with other settings: try again")]
    Busy(String),
    /// The request cannot be meant.
    #[error("{0}")]
    Invalid(String),
    /// A step of making the pod failed; it was undone.
    #[error("cannot {step} of pod sandbox {name}: {problem}")]
    Step {
        /// The pod's name.
        name: String,
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        problem: String,
        /// How to treat it.
        kind: Kind,
    },
    /// Something could not be given back.
    #[error("pod sandbox {id} is not released yet ({failures}): repeat the call")]
    Release {
        /// The pod.
        id: PodId,
        /// What failed.
        failures: Failures,
    },
    /// A create that was joined failed.
    #[error(transparent)]
    Shared(Arc<Error>),
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NotFound(_) => Kind::NotFound,
            Self::Ambiguous(_) | Self::Invalid(_) => Kind::InvalidArgument,
            Self::NotReady(_) => Kind::FailedPrecondition,
            Self::Exists { .. } => Kind::AlreadyExists,
            Self::Busy(_) => Kind::Unavailable,
            Self::Step { kind, .. } => *kind,
            Self::Release { .. } => Kind::Unknown,
            Self::Shared(error) => error.kind(),
        }
    }
}

/// What the pods stand on.
#[derive(Debug)]
pub struct Deps {
    /// The configuration.
    pub config: Arc<Config>,
    /// The machine.
    pub facts: Arc<HostFacts>,
    /// What they stand on in the kernel beside their processes.
    pub ground: Arc<dyn Ground>,
    /// Makes namespaces and pause processes.
    pub runtime: Arc<dyn Runtime>,
    /// Compiles system call filters.
    pub seccomp: Arc<Compiler>,
    /// Keeps them.
    pub programs: Arc<Programs>,
    /// Tells which AppArmor profile is applied.
    pub apparmor: Arc<AppArmor>,
    /// Told of every change.
    pub events: Events,
    /// Told how long steps take.
    pub metrics: Arc<Metrics>,
    /// Where their cgroups stand.
    pub cgroups: PodCgroups,
}

/// All pods of this daemon.
#[derive(Debug, Clone)]
pub struct PodManager(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    deps: Deps,
    records: Records<PodRecord>,
    names: Names<PodMetadata, PodId, PodSpec, Error>,
    pods: Table<PodId, Pod>,
    parents: Arc<parents::Parents>,
}

/// One pod in memory.
#[derive(Debug)]
struct Pod {
    id: PodId,
    spec: Arc<PodSpec>,
    /// What it is made of.
    parts: Mutex<Parts>,
    /// How far it has come, for those who wait for a change too. Written by [`Pod::change`] only.
    stage: watch::Sender<Stage>,
    /// Stop and remove take turns; lists and statuses never wait for them.
    turn: tokio::sync::Mutex<()>,
    /// Writes of the record take turns, so that the last one written is the newest. True once the record is
    /// removed: then nothing is written any more.
    saving: Arc<tokio::sync::Mutex<bool>>,
    /// Held for reading while a container is put into the pod.
    entrance: Arc<tokio::sync::RwLock<()>>,
    /// Tells those who are being put into it that it is not ready any more.
    closing: Arc<AtomicBool>,
    /// Why its record could not be read: it is known by its identity only, and the record is left as it is.
    problem: Option<String>,
}

/// Keeps a pod from being stopped while a container is put into it.
#[derive(Debug)]
pub struct Entry(
    #[expect(dead_code, reason = "held, not read")] tokio::sync::OwnedRwLockReadGuard<()>,
);

impl Pod {
    fn new(id: PodId, record: PodRecord) -> Arc<Self> {
        Self::with(id, record, None)
    }

    /// One of which only the identity could be read.
    fn shown(id: PodId, record: PodRecord, problem: String) -> Arc<Self> {
        Self::with(id, record, Some(problem))
    }

    fn with(id: PodId, record: PodRecord, problem: Option<String>) -> Arc<Self> {
        let PodRecord { stage, parts } = record;
        Arc::new(Self {
            id,
            spec: parts.spec.clone(),
            parts: Mutex::new(parts),
            stage: watch::Sender::new(stage),
            turn: tokio::sync::Mutex::default(),
            saving: Arc::default(),
            entrance: Arc::default(),
            closing: Arc::default(),
            problem,
        })
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        // Every change is a plain assignment: a panic in between leaves them whole.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PodManager {
    /// Opens the records. [`PodManager::restore`] must come before the first call.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(deps: Deps) -> Result<Self, crate::store::Error> {
        let records = Records::open(&deps.config.root, "pods")?;
        Ok(Self(Arc::new(Inner {
            deps,
            records,
            names: Names::default(),
            pods: Table::default(),
            parents: Arc::default(),
        })))
    }

    /// Makes and starts a sandbox; a repeated request is given the result of the first. Dropping the
    /// future does not stop the work.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn run(&self, spec: PodSpec) -> Result<PodId, Error> {
        run::join_or_run(self, Arc::new(spec)).await
    }

    /// Lets no more containers in: the pod is not ready any more. Returns when those that were on their way in
    /// are made, or have failed. An unknown pod is fine.
    pub async fn close(&self, id: &PodId) {
        let Some(pod) = self.0.pods.get(id) else {
            return;
        };
        pod.change(&self.0.deps.events, Change::Lost);
        drop(pod.entrance.write().await);
    }

    /// Stops a sandbox whose containers are already dead. Unknown and stopped ones are fine.
    ///
    /// # Errors
    /// When something could not be released; a repeated call goes on.
    pub async fn stop(&self, id: &PodId) -> Result<(), Error> {
        let Some(pod) = self.0.pods.get(id) else {
            return Ok(());
        };
        let _turn = pod.turn.lock().await;
        release::stop(&self.0, &pod).await
    }

    /// Removes a sandbox; the caller has removed its containers.
    ///
    /// # Errors
    /// When something could not be released; a repeated call goes on.
    pub async fn remove(&self, id: &PodId) -> Result<(), Error> {
        let Some(pod) = self.0.pods.get(id) else {
            return Ok(());
        };
        let _turn = pod.turn.lock().await;
        release::remove(&self.0, &pod).await
    }

    /// Finds a pod by id or unique prefix.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`].
    pub fn find(&self, id: &str) -> Result<PodId, Error> {
        self.0.find(id).map(|p| p.id.clone())
    }

    /// A pod as it is now.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`].
    pub fn status(&self, id: &str) -> Result<PodStatus, Error> {
        self.0.find(id).map(|p| status_of(&p))
    }

    /// All pods that the filter lets through, from memory.
    pub fn list(&self, filter: &PodFilter) -> Vec<PodStatus> {
        let pods = self.0.pods.named(&filter.id);
        pods.iter()
            .filter(|p| has_labels(&p.spec.labels, &filter.labels))
            .map(|p| status_of(p))
            .filter(|p| filter.state.is_none_or(|s| s == p.state))
            .collect()
    }

    /// A pod that containers can be put into, and what keeps it so until the container is made.
    ///
    /// # Errors
    /// Not found, or not ready.
    pub fn enter(&self, id: &str) -> Result<(ReadyPod, Entry), Error> {
        let pod = self.0.find(id)?;
        // Before the stage is looked at: `close` sets that first and waits for this.
        let entry = pod.entrance.clone().try_read_owned();
        let entry = entry.map_err(|_| Error::NotReady(pod.id.clone()))?;
        if !pod.is_ready() {
            return Err(Error::NotReady(pod.id.clone()));
        }
        let (dir, parts) = (self.0.state_dir(&pod.id), pod.parts());
        let modes = &pod.spec.namespaces;
        let own = |mode| mode != NamespaceMode::Node;
        let pin = |name: &str| dir.join("ns").join(name);
        let ready = ReadyPod {
            id: pod.id.clone(),
            spec: pod.spec.clone(),
            netns: parts.netns.clone(),
            ipcns: own(modes.ipc).then(|| pin("ipc")),
            utsns: own(modes.network).then(|| pin("uts")),
            pidns: own(modes.pid).then(|| pin("pid")),
            hostname: parts.hostname.clone(),
            shm: if own(modes.ipc) {
                files::shm(&dir)
            } else {
                PathBuf::from("/dev/shm")
            },
            files: files::place(&dir),
            cgroup_parent: parts.cgroup_parent.clone(),
            closing: pod.closing.clone(),
        };
        Ok((ready, Entry(entry)))
    }
}

impl Inner {
    fn find(&self, text: &str) -> Result<Arc<Pod>, Error> {
        match self.pods.find(text) {
            Lookup::One(pod) => Ok(pod),
            Lookup::None => Err(Error::NotFound(text.to_owned())),
            Lookup::Many => Err(Error::Ambiguous(text.to_owned())),
        }
    }

    fn state_dir(&self, id: &PodId) -> PathBuf {
        self.deps.config.state.join("pods").join(id.as_str())
    }

    /// Writes a pod's record as it is in memory.
    async fn save(self: &Arc<Self>, pod: &Arc<Pod>) -> Result<(), crate::store::Error> {
        self.save_after(pod, None).await
    }

    /// The same, as it will be after a change.
    async fn save_after(
        self: &Arc<Self>,
        pod: &Arc<Pod>,
        change: Option<Change>,
    ) -> Result<(), crate::store::Error> {
        // The write goes on when this future is dropped, and so does its turn.
        let gone = pod.saving.clone().lock_owned().await;
        // A Berth that can read what is there shall find it.
        if *gone || pod.problem.is_some() {
            return Ok(());
        }
        let (inner, id) = (self.clone(), pod.id.clone());
        let stage = pod.stage();
        let record = PodRecord {
            stage: change.map_or(stage, |change| state::apply(stage, change).0),
            parts: pod.parts().clone(),
        };
        crate::blocking::run("write the record of a pod", move || {
            let written = inner.records.write(id.as_str(), &record);
            drop(gone);
            written
        })
        .await
    }
}

fn status_of(pod: &Pod) -> PodStatus {
    let state = pod.stage().state();
    let parts = pod.parts();
    PodStatus {
        id: pod.id.clone(),
        spec: pod.spec.clone(),
        state,
        created_at: parts.created_at,
        ips: parts.ips.clone(),
        netns: parts.netns.clone(),
        pause_pid: parts
            .pause
            .as_ref()
            .filter(|_| state == PodState::Ready)
            .map(|p| p.pid),
        cni_result: parts.cni_result.clone(),
        problem: pod.problem.clone(),
    }
}
