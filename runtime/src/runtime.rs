//! What runs containers and the first processes of pods: the seam between the domain and everything that forks.
//!
//! `pod` and `container` know [`Runtime`], [`Monitor`] and [`PodWorker`], and nothing below them. Behind these is
//! [`Launcher`], which starts monitors and workers and talks to them; in unit tests it is `fake`, which starts nothing.
//! What monitors say unasked arrives as [`MonitorEvent`]s in the channel that the implementation was made with.
//!
//! A process is named by its pid and start time, never held: whoever comes after a restart knows no more than that.

mod error;
#[cfg(test)]
pub mod fake;
mod hung;
mod launcher;
mod link;
mod monitor;
pub mod pause;
mod pod;
mod record;
mod scope;
mod spawner;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use shim_protocol::monitor::{self as protocol, ExecExit, Exit, State};
use shim_protocol::worker;

use crate::id::ContainerId;
use crate::model::Process;
pub use error::{ConnectError, Error};
pub use launcher::{Launcher, LauncherConfig, Shims};
pub use record::{ExitRecord, RecordError, read_exit};

/// A new container: its monitor and its first process.
pub type Made = (Arc<dyn Monitor>, Process);

/// One that was there: its monitor, and how far it is.
pub type Found = (Arc<dyn Monitor>, State);

/// Makes containers and the namespaces of pods, finds what an earlier daemon made, and reaches their processes.
pub trait Runtime: fmt::Debug + Send + Sync {
    /// Makes a pod's namespaces and pins them.
    ///
    /// # Errors
    /// What the worker says; it has undone its part then.
    fn pod(&self, pod: worker::Pod) -> BoxFuture<'_, Result<Box<dyn PodWorker>, Error>>;

    /// Takes away the pin of a namespace of a pod; one that is not there is fine. The namespace ends with its last
    /// process. Blocks for a moment.
    ///
    /// # Errors
    /// What the kernel says.
    fn unpin(&self, path: &Path) -> io::Result<()>;

    /// Makes a container with a monitor of its own, and gives that and its first process, which waits for
    /// [`Monitor::start`]. When the future is dropped the monitor is killed.
    ///
    /// # Errors
    /// Everything that can be wrong with a container; its monitor is gone then.
    fn create(&self, launch: ContainerLaunch) -> BoxFuture<'_, Result<Made, Error>>;

    /// Finds the monitor of a container again, by the container's directory, and tells how far the container is.
    ///
    /// # Errors
    /// [`ConnectError::Gone`] when there is none, [`ConnectError::Hung`] when it does not answer in 2 s.
    fn connect<'a>(
        &'a self,
        id: &'a ContainerId,
        dir: &'a Path,
    ) -> BoxFuture<'a, Result<Found, ConnectError>>;

    /// Kills a monitor to which there is no connection. One that is gone is fine. False when it does not die: it is
    /// left behind, counted, and reaped once it does.
    ///
    /// # Errors
    /// When the kernel does not let it be found.
    fn kill_monitor<'a>(
        &'a self,
        id: &'a ContainerId,
        monitor: &'a Process,
    ) -> BoxFuture<'a, io::Result<bool>>;

    /// Sends a signal to the first process of a container or a pod. False when it has ended.
    ///
    /// # Errors
    /// What the kernel says.
    fn signal(&self, process: &Process, signal: i32) -> io::Result<bool>;

    /// Waits for the end of such a process; one that is gone has ended.
    ///
    /// # Errors
    /// When it cannot be watched.
    fn ended(&self, process: &Process) -> BoxFuture<'static, io::Result<()>>;

    /// Whether such a process runs.
    ///
    /// # Errors
    /// What the kernel says.
    fn is_alive(&self, process: &Process) -> io::Result<bool>;
}

/// One container's monitor, for as long as it lives.
pub trait Monitor: fmt::Debug + Send + Sync {
    /// Its process, by which a later daemon finds one that does not answer.
    fn process(&self) -> Option<Process>;

    /// Lets the container run. Gives the time at which its command was executed, in nanoseconds since the Unix epoch.
    /// A second call joins one that is under way.
    ///
    /// # Errors
    /// When the command cannot be executed; the container is over then, and its exit event has been sent.
    fn start(&self) -> BoxFuture<'_, Result<i64, Error>>;

    /// Runs a process in the container; returns when it has been executed. `exec.exec_id` must be unique for the
    /// monitor's life. `seccomp` is the filter that the container has.
    ///
    /// # Errors
    /// When it cannot be executed; `Kind::DeadlineExceeded` when its time limit was over before that.
    fn exec(
        &self,
        exec: protocol::Exec,
        stdio: ExecStdio,
        seccomp: Option<OwnedFd>,
    ) -> BoxFuture<'_, Result<ExecHandle, Error>>;

    /// Kills one exec'd process with everything that it started. One that is over is fine.
    ///
    /// # Errors
    /// When the monitor does not answer.
    fn kill_exec<'a>(&'a self, exec_id: &'a str) -> BoxFuture<'a, Result<(), Error>>;

    /// Opens the log anew, in the directory that is given, else in the one that it was in; when this returns the new
    /// file exists and takes all further output.
    ///
    /// # Errors
    /// When the file cannot be opened; the old one stays in use.
    fn reopen_log(&self, dir: Option<OwnedFd>) -> BoxFuture<'_, Result<(), Error>>;

    /// Ends the container, whatever it is doing, and then the monitor: one that does not answer is killed. One that
    /// has ended is fine.
    ///
    /// # Errors
    /// When not even that ends it: it is left behind, counted, and reaped later.
    fn destroy(&self) -> BoxFuture<'_, Result<(), Error>>;

    /// Kills the monitor, and with it the container, and waits until it is dead. False when it does not die: it is
    /// left behind, counted, and reaped later.
    fn kill(&self) -> BoxFuture<'_, bool>;
}

/// A worker that has made a pod's namespaces. Dropping it ends it and leaves what it has pinned.
pub trait PodWorker: fmt::Debug + Send + Sync {
    /// Its pid.
    fn pid(&self) -> i32;

    /// Has it start the pod's pause process. `seccomp` is the system call filter of that. Under systemd the worker is gone
    /// when this returns: nothing but the pod's own cgroups is left in its scope.
    ///
    /// # Errors
    /// What the worker says; it has undone its part then.
    fn pause(
        self: Box<Self>,
        pause: worker::Pause,
        seccomp: Option<OwnedFd>,
    ) -> BoxFuture<'static, Result<Process, Error>>;
}

/// A container to be made.
#[derive(Debug)]
pub struct ContainerLaunch {
    /// Its id.
    pub id: ContainerId,
    /// Its directory below the state directory: the monitor's socket and exit record, the bundle.
    pub dir: PathBuf,
    /// What to make.
    pub create: protocol::Create,
    /// Detached mount of its root file system.
    pub rootfs: OwnedFd,
    /// Its system call filter.
    pub seccomp: Option<OwnedFd>,
    /// Directory of its log.
    pub log_dir: Option<OwnedFd>,
}

/// Something that a monitor says unasked.
#[derive(Clone, Debug)]
pub struct MonitorEvent {
    /// Its container.
    pub id: ContainerId,
    /// What.
    pub kind: MonitorEventKind,
}

/// What a monitor says unasked.
#[derive(Clone, Debug)]
pub enum MonitorEventKind {
    /// The container is over, its log complete, its exit record written.
    Exited(Exit),
    /// The kernel killed a process of the container, which goes on: kills so far.
    Oom(u64),
    /// The monitor died without a word, and the container with it; its control group may need a kill.
    Lost,
    /// The container's first process has been dead for a while, and its monitor does not say so: it hangs.
    Silent,
}

/// Descriptors for an exec'd process; an absent one is `/dev/null`.
#[derive(Debug, Default)]
pub struct ExecStdio {
    /// Standard input.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
}

/// A process that runs in a container beside its own.
pub struct ExecHandle {
    /// Its pid.
    pub pid: i32,
    /// The master of its terminal, if it has one.
    pub console: Option<OwnedFd>,
    ended: BoxFuture<'static, Result<ExecExit, Error>>,
}

impl ExecHandle {
    /// Waits for its end, which is `exec.timeout_ms` away at most and a little more, where that was given.
    ///
    /// # Errors
    /// When the monitor dies, or hangs up for a moment, before it could tell; when it does not tell although the
    /// process has ended, or its time is up.
    pub async fn wait(self) -> Result<ExecExit, Error> {
        self.ended.await
    }
}

impl fmt::Debug for ExecHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecHandle")
            .field("pid", &self.pid)
            .field("console", &self.console)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
