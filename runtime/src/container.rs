//! Containers: create, start, stop, remove, exec, update, status.
//!
//! A container is its record under `root/records/containers/<id>`, its bundle, socket and exit record under
//! `state/containers/<id>`, its writable layer, its cgroup and its monitor. What happens to it comes from
//! the monitor as messages (`exit`); the calls here only ask.

mod create;
mod devices;
mod exec;
mod exit;
#[cfg(test)]
pub(crate) mod fake;
mod log;
mod measure;
mod mounts;
mod output;
mod record;
mod remove;
mod restore;
mod start;
mod state;
mod stop;
#[cfg(test)]
mod tests;
mod update;
mod users;
mod volumes;

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::apparmor::AppArmor;
use crate::config::Config;
use crate::events::Events;
use crate::host::HostFacts;
use crate::id::{ContainerId, Lookup, PodId};
use crate::metrics::Metrics;
use crate::model::{
    ContainerFilter, ContainerMetadata, ContainerSpec, ContainerState, ContainerStatus,
    ExecRequest, Kind, Kinded, PodSpec, ReadyPod, ResolvedImage, Resources, has_labels,
};
use crate::runtime::{Monitor, MonitorEvent, Runtime};
use crate::spec::seccomp::Compiler;
use crate::storage::Storage;
use crate::store::{Names, Programs, Records, Table};
use crate::undo::Failures;
pub use output::{Captured, ExecOutput, Held};
pub use record::ContainerRecord;
use record::Parts;

/// Why a container operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such container.
    #[error("container {0:?} does not exist")]
    NotFound(String),
    /// More than one container has this prefix.
    #[error("container id {0:?} is ambiguous: give more digits")]
    Ambiguous(String),
    /// The name is taken.
    #[error(
        "a container named {name} exists already in the pod: {id}; remove it first or raise the attempt"
    )]
    Exists {
        /// The name.
        name: String,
        /// Who has it.
        id: ContainerId,
    },
    /// The same name is being made with other settings.
    #[error("a container named {0} is being made with other settings: try again")]
    Busy(String),
    /// The request cannot be meant.
    #[error("{0}")]
    Invalid(String),
    /// The container is in another state than the call needs.
    #[error("container {id} is {state}, not {wanted}{why}")]
    State {
        /// Which.
        id: ContainerId,
        /// What it is.
        state: &'static str,
        /// What it should be.
        wanted: &'static str,
        /// How it came to that, after a colon, where that explains the failure.
        why: String,
    },
    /// A step failed; creates are undone.
    #[error("cannot {step} of container {name}: {problem}")]
    Step {
        /// The container's name or id.
        name: String,
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        problem: String,
        /// How to treat it.
        kind: Kind,
    },
    /// A command was not done in time.
    #[error("command {command:?} in container {id} timed out after {seconds} s and was killed")]
    TimedOut {
        /// Which container.
        id: ContainerId,
        /// The command.
        command: Vec<String>,
        /// The limit.
        seconds: u64,
    },
    /// Something could not be given back.
    #[error("container {id} is not released yet ({failures}): repeat the call")]
    Release {
        /// Which.
        id: ContainerId,
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
            Self::Exists { .. } => Kind::AlreadyExists,
            Self::Busy(_) => Kind::Unavailable,
            Self::State { .. } => Kind::FailedPrecondition,
            Self::Step { kind, .. } => *kind,
            Self::TimedOut { .. } => Kind::DeadlineExceeded,
            Self::Release { .. } => Kind::Unknown,
            Self::Shared(error) => error.kind(),
        }
    }
}

/// What the containers stand on.
#[derive(Debug)]
pub struct Deps {
    /// The configuration.
    pub config: Arc<Config>,
    /// The machine.
    pub facts: Arc<HostFacts>,
    /// Makes containers.
    pub runtime: Arc<dyn Runtime>,
    /// Layers and writable layers.
    pub storage: Storage,
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
}

/// How long the directory of a log may take to be opened anew.
const LOG_DISK: Duration = Duration::from_secs(10);

/// Threads that may wait for the disks of logs at once: one that hangs must not take them all.
const LOG_THREADS: usize = 8;

/// All containers of this daemon.
#[derive(Debug, Clone)]
pub struct ContainerManager(Arc<Inner>);

type Name = (PodId, ContainerMetadata);

#[derive(Debug)]
struct Inner {
    deps: Deps,
    records: Records<ContainerRecord>,
    names: Names<Name, ContainerId, create::Request, Error>,
    containers: Table<ContainerId, Container>,
    exec_ids: AtomicU64,
    /// What the output of all commands may take together.
    output: Arc<output::Budget>,
    /// Turns of those who open logs anew.
    log_disk: Arc<tokio::sync::Semaphore>,
}

/// One container in memory.
#[derive(Debug)]
struct Container {
    id: ContainerId,
    pod: PodId,
    spec: Arc<ContainerSpec>,
    /// What it is made of.
    parts: Mutex<Parts>,
    /// How far it has come, for those who wait for a change too. Written by [`Container::change`] only.
    status: watch::Sender<Status>,
    /// Start, update and remove take turns; lists and statuses never wait for them.
    turn: tokio::sync::Mutex<()>,
    /// Writes of the record take turns, so that the last one written is the newest. True once the record is
    /// removed: then nothing is written any more.
    saving: Arc<tokio::sync::Mutex<bool>>,
    /// Those that end a container past a silent monitor take turns.
    silence: tokio::sync::Mutex<()>,
    /// Why its record could not be read: it is known by its identity only, and the record is left as it is.
    problem: Option<String>,
}

type Status = state::Status<Arc<dyn Monitor>>;
type Change = state::Change<Arc<dyn Monitor>>;

impl Container {
    fn new(id: ContainerId, record: ContainerRecord) -> Arc<Self> {
        Self::with(id, record, None)
    }

    /// One of which only the identity could be read.
    fn shown(id: ContainerId, record: ContainerRecord, problem: String) -> Arc<Self> {
        Self::with(id, record, Some(problem))
    }

    fn with(id: ContainerId, record: ContainerRecord, problem: Option<String>) -> Arc<Self> {
        let ContainerRecord { status, parts } = record;
        Arc::new(Self {
            id,
            pod: parts.pod.clone(),
            spec: parts.spec.clone(),
            parts: Mutex::new(parts),
            status: watch::Sender::new(status.without_monitor()),
            turn: tokio::sync::Mutex::default(),
            saving: Arc::default(),
            silence: tokio::sync::Mutex::default(),
            problem,
        })
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        // Every change is a plain assignment: a panic in between leaves them whole.
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The monitor of a container in the wanted state.
    fn live(&self, wanted: ContainerState) -> Result<Arc<dyn Monitor>, Error> {
        let status = self.status();
        let state = status.state();
        match &status.monitor {
            Some(monitor) if state == wanted => Ok(monitor.clone()),
            _ => {
                let never_ran = status.exit.as_ref().filter(|_| status.started_at == 0);
                Err(Error::State {
                    id: self.id.clone(),
                    state: state_name(state),
                    wanted: state_name(wanted),
                    why: never_ran.map_or_else(String::new, exit::before_start),
                })
            }
        }
    }

    fn name(&self) -> Name {
        (self.pod.clone(), self.spec.metadata.clone())
    }

    fn step(&self, step: &'static str, kind: Kind, problem: impl Into<String>) -> Error {
        Error::Step {
            name: self.id.to_string(),
            step,
            problem: problem.into(),
            kind,
        }
    }
}

fn state_name(state: ContainerState) -> &'static str {
    match state {
        ContainerState::Created => "created",
        ContainerState::Running => "running",
        ContainerState::Exited => "exited",
        ContainerState::Unknown => "in an unknown state",
    }
}

impl ContainerManager {
    /// Opens the records and takes the monitors' events. [`ContainerManager::restore`] must come before the
    /// first call.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(
        deps: Deps,
        events: mpsc::UnboundedReceiver<MonitorEvent>,
    ) -> Result<Self, crate::store::Error> {
        let records = Records::open(&deps.config.root, "containers")?;
        let inner = Arc::new(Inner {
            deps,
            records,
            names: Names::default(),
            containers: Table::default(),
            exec_ids: AtomicU64::new(0),
            output: Arc::default(),
            log_disk: Arc::new(tokio::sync::Semaphore::new(LOG_THREADS)),
        });
        tokio::spawn(exit::follow(Arc::downgrade(&inner), events));
        Ok(Self(inner))
    }

    /// Makes a container in a ready pod; a repeated request is given the result of the first. Dropping the
    /// future does not stop the work. `request_pod` is the sandbox configuration that came with the request;
    /// `held` is dropped once the container is made or the making has failed: it keeps the image's layers until
    /// the container's writable layer does, and the pod from being stopped.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create(
        &self,
        pod: ReadyPod,
        request_pod: Option<PodSpec>,
        image: ResolvedImage,
        held: impl Send + 'static,
        spec: ContainerSpec,
    ) -> Result<ContainerId, Error> {
        create::join_or_create(self, pod, request_pod, image, held, spec).await
    }

    /// Starts a created container.
    ///
    /// # Errors
    /// Not found, not created, or what `execve` said.
    pub async fn start(&self, id: &str) -> Result<(), Error> {
        start::start(&self.0, &self.0.find(id)?).await
    }

    /// Stops a container: its stop signal, the grace time, SIGKILL. Unknown and dead ones are fine.
    /// Dropping the future leaves the container alone; a later call may be shorter.
    ///
    /// # Errors
    /// When it will not die.
    pub async fn stop(&self, id: &str, grace: Duration) -> Result<(), Error> {
        match self.0.find(id) {
            Ok(container) => stop::stop(&self.0, &container, grace).await,
            Err(Error::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes a container, killing it first if it runs. Unknown ones are fine.
    ///
    /// # Errors
    /// When something could not be released; a repeated call goes on.
    pub async fn remove(&self, id: &str) -> Result<(), Error> {
        match self.0.find(id) {
            Ok(container) => remove::remove(&self.0, &container).await,
            Err(Error::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Kills all containers of a pod without grace and waits until they are dead.
    ///
    /// # Errors
    /// When one will not die.
    pub async fn kill_pod(&self, pod: &PodId) -> Result<(), Error> {
        let kills = self.0.of_pod(pod).into_iter().map(|c| {
            let inner = self.0.clone();
            async move { stop::kill(&inner, &c).await }
        });
        all(kills.collect()).await
    }

    /// Removes all containers of a pod.
    ///
    /// # Errors
    /// When something could not be released; a repeated call goes on.
    pub async fn remove_pod(&self, pod: &PodId) -> Result<(), Error> {
        let removals = self.0.of_pod(pod).into_iter().map(|c| {
            let inner = self.0.clone();
            async move { remove::remove(&inner, &c).await }
        });
        all(removals.collect()).await
    }

    /// A container as it is now, by id or unique prefix.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`].
    pub fn status(&self, id: &str) -> Result<ContainerStatus, Error> {
        self.0.find(id).map(|c| status_of(&c))
    }

    /// The OCI configuration that a container was made from, for verbose status.
    pub async fn oci_spec(&self, id: &ContainerId) -> Option<serde_json::Value> {
        let path = self.0.state_dir(id).join("config.json");
        let bytes = tokio::fs::read(path).await.ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// All containers that the filter lets through, from memory.
    pub fn list(&self, filter: &ContainerFilter) -> Vec<ContainerStatus> {
        let containers = self.selected(filter);
        let all = containers.iter().map(|c| status_of(c));
        all.filter(|c| filter.state.is_none_or(|s| s == c.state))
            .collect()
    }

    /// Those that the filter lets through, whatever their state: that changes.
    fn selected(&self, filter: &ContainerFilter) -> Vec<Arc<Container>> {
        let mut containers = self.0.containers.named(&filter.id);
        containers.retain(|c| {
            (filter.pod.is_empty() || c.pod.as_str().starts_with(&filter.pod))
                && has_labels(&c.spec.labels, &filter.labels)
        });
        containers
    }

    /// Applies new limits; fields that are not given stay.
    ///
    /// # Errors
    /// Not found, over, or what the kernel said; the old limits are then in force again.
    pub async fn update(&self, id: &str, resources: Resources) -> Result<(), Error> {
        update::update(&self.0, &self.0.find(id)?, resources).await
    }

    /// Opens the log anew after its file was renamed, or its directory made again.
    ///
    /// # Errors
    /// Not found, not running, or what the file system said; the old file stays in use then.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        const STEP: &str = "reopen the log";
        let container = self.0.find(id)?;
        let monitor = container.live(ContainerState::Running)?;
        let (path, below) = (
            container.parts().log_path.clone(),
            container.spec.log_path.clone(),
        );
        let late = || {
            let problem = "its directory is not opened in time: is the disk of its log hanging?";
            container.step(STEP, Kind::Unavailable, problem)
        };
        let limit = tokio::time::Instant::now() + LOG_DISK;
        let turn = self.0.log_disk.clone().acquire_owned();
        let turn = match tokio::time::timeout_at(limit, turn).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) | Err(_) => return Err(late()),
        };
        let opened = crate::blocking::run("open the directory of a log", move || {
            // Kept until the disk has answered, however long nobody waits for it any more.
            let _turn = turn;
            log::open(log::directory_of(&path, &below), &below)
        });
        let log = tokio::time::timeout_at(limit, opened)
            .await
            .map_err(|_| late())?
            .map_err(|e| container.step(STEP, Kind::Unknown, e))?;
        crash_point!("reopen_log.directory.after");
        let reopened = monitor.reopen_log(log.map(|log| log.dir)).await;
        crash_point!("reopen_log.file.after");
        match reopened {
            Ok(()) => Ok(()),
            Err(e) => Err(exit::refused(&self.0, &container, STEP, e).await),
        }
    }

    /// Runs a command and collects its output. Dropping the future kills the command with all that it started.
    ///
    /// # Errors
    /// Not found, not running, could not be executed, or [`Kind::DeadlineExceeded`].
    pub async fn exec_sync(&self, id: &str, request: ExecRequest) -> Result<ExecOutput, Error> {
        exec::exec_sync(&self.0, &self.0.find(id)?, request).await
    }
}

impl Inner {
    fn find(&self, text: &str) -> Result<Arc<Container>, Error> {
        match self.containers.find(text) {
            Lookup::One(container) => Ok(container),
            Lookup::None => Err(Error::NotFound(text.to_owned())),
            Lookup::Many => Err(Error::Ambiguous(text.to_owned())),
        }
    }

    fn of_pod(&self, pod: &PodId) -> Vec<Arc<Container>> {
        let mut containers = self.containers.all();
        containers.retain(|c| c.pod == *pod);
        containers
    }

    fn state_dir(&self, id: &ContainerId) -> PathBuf {
        self.deps.config.state.join("containers").join(id.as_str())
    }

    /// Writes a container's record as it is in memory.
    async fn save(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), crate::store::Error> {
        self.save_after(container, None).await
    }

    /// The same, as it will be after a change.
    async fn save_after(
        self: &Arc<Self>,
        container: &Arc<Container>,
        change: Option<Change>,
    ) -> Result<(), crate::store::Error> {
        // The write goes on when this future is dropped, and so does its turn.
        let gone = container.saving.clone().lock_owned().await;
        // A Berth that can read what is there shall find it.
        if *gone || container.problem.is_some() {
            return Ok(());
        }
        let (inner, container) = (self.clone(), container.clone());
        crate::blocking::run("write the record of a container", move || {
            let status = container.status().clone();
            let status = match change {
                Some(change) => state::apply(status, change).0,
                None => status,
            };
            let record = ContainerRecord {
                status: status.without_monitor(),
                parts: container.parts().clone(),
            };
            let written = inner.records.write(container.id.as_str(), &record);
            drop(gone);
            written
        })
        .await
    }
}

/// Runs the calls beside each other and returns the first error after all have ended.
async fn all<F: Future<Output = Result<(), Error>> + Send + 'static>(
    calls: Vec<F>,
) -> Result<(), Error> {
    let tasks: Vec<_> = calls.into_iter().map(tokio::spawn).collect();
    let mut outcome = Ok(());
    for task in tasks {
        let result = task
            .await
            .unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()));
        outcome = outcome.and(result);
    }
    outcome
}

/// The configured limits of a container's processes, for the worker.
fn limits(config: &Config) -> Vec<shim_protocol::worker::Rlimit> {
    let limit = |limit: &crate::config::ResourceLimit| shim_protocol::worker::Rlimit {
        resource: limit.resource,
        soft: limit.soft,
        hard: limit.hard,
    };
    config.default_ulimits.iter().map(limit).collect()
}

fn status_of(container: &Container) -> ContainerStatus {
    let status = container.status().clone();
    let parts = container.parts();
    ContainerStatus {
        id: container.id.clone(),
        pod: container.pod.clone(),
        spec: container.spec.clone(),
        state: status.state(),
        created_at: parts.created_at,
        started_at: status.started_at,
        problem: container.problem.clone(),
        image_id: parts.image_id,
        image_name: parts.image_name.clone(),
        image_ref: parts.image_ref.clone(),
        log_path: parts.log_path.clone(),
        user: parts.user.clone(),
        resources: parts.resources.clone(),
        stop_signal: parts.stop_signal.clone(),
        pid: status.init.filter(|_| status.exit.is_none()).map(|p| p.pid),
        exit: status.exit,
    }
}
