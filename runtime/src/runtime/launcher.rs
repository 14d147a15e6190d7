//! Starting monitors and workers, and finding monitors again.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use rustix::fs::Mode;
use rustix::mount::MountAttrFlags;
use sha2::{Digest, Sha256};
use shim_protocol::Fd;
use shim_protocol::monitor::State;
use shim_protocol::worker::{self, Started};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::link::{dial, greet, pair, short_path};
use super::monitor::{Client, Opening};
use super::pause::PAUSE;
use super::pod::Worker;
use super::scope::Scope;
use super::spawner::{Birth, Groups, Spawner};
use super::{
    ConnectError, ContainerLaunch, Error, Found, Made, Monitor, MonitorEvent, PodWorker, Runtime,
    hung,
};
use crate::blocking;
use crate::id::ContainerId;
use crate::metrics::Gauge;
use crate::model::Process;
use crate::sys::process::{self, OpenFiles};
use crate::sys::{self, mount};
use crate::systemd::Systemd;

/// How long a new monitor may take to say hello, and one that should be there already.
const FIRST_HELLO: Duration = Duration::from_secs(20);
const HELLO: Duration = Duration::from_secs(2);

/// What a launcher needs.
#[derive(Debug)]
pub struct LauncherConfig {
    /// The monitor's program.
    pub shim: PathBuf,
    /// The worker's program.
    pub worker: PathBuf,
    /// Where volatile state is kept; the pause program is put into `bin` in it.
    pub state_dir: PathBuf,
    /// Where monitors and workers live.
    pub shims: Shims,
    /// How many files monitors and workers, and so containers, may open.
    pub open_files: OpenFiles,
    /// Gets what monitors say.
    pub events: mpsc::UnboundedSender<MonitorEvent>,
    /// This boot.
    pub boot_id: String,
    /// Counts monitors that do not end although they were killed.
    pub left_behind: Gauge,
}

/// Control groups of monitors and workers: never a pod's, and never the daemon's.
#[derive(Debug)]
pub enum Shims {
    /// Directories of ours: one for each v1 hierarchy, or one of v2.
    Directories(Vec<PathBuf>),
    /// A delegated scope of systemd, for the monitors. A worker that makes a pod moves into the pod's scope.
    Scope {
        /// Makes it.
        systemd: Arc<Systemd>,
        /// Its unit name.
        unit: String,
        /// Its slice.
        slice: String,
        /// Its directory.
        dir: PathBuf,
    },
}

/// Starts monitors and workers.
#[derive(Debug)]
pub struct Launcher {
    shim: Arc<OwnedFd>,
    worker: Arc<OwnedFd>,
    pause: Arc<OwnedFd>,
    spawner: Spawner,
    scope: Option<Scope>,
    events: mpsc::UnboundedSender<MonitorEvent>,
    boot_id: String,
    left_behind: Gauge,
}

impl Launcher {
    /// Seals the programs and starts the thread that runs them. Blocks for a moment.
    ///
    /// # Errors
    /// When a program is missing or the kernel too old, or the control groups cannot be entered.
    pub fn open(config: LauncherConfig) -> Result<Self, Error> {
        let (groups, scope) = match config.shims {
            Shims::Directories(dirs) => (Groups::Own(dirs), None),
            Shims::Scope {
                systemd,
                unit,
                slice,
                dir,
            } => {
                let scope = Scope::new(systemd, unit, slice, dir.clone());
                (Groups::Foreign(dir), Some(scope))
            }
        };
        Ok(Self {
            shim: seal(&config.shim)?,
            worker: seal(&config.worker)?,
            pause: seal(&write_pause(&config.state_dir)?)?,
            spawner: Spawner::start(groups, config.open_files)?,
            scope,
            events: config.events,
            boot_id: config.boot_id,
            left_behind: config.left_behind,
        })
    }

    /// Starts nothing any more. Blocks until the thread that stands in the monitors' cgroups is gone.
    pub fn close(&self) {
        self.spawner.close();
    }

    /// Starts a worker that makes a pod. Under systemd it will be moved into the pod's scope.
    pub(super) async fn spawn_worker(&self, stdin: OwnedFd) -> io::Result<(i32, OwnedFd)> {
        let birth = match self.scope {
            Some(_) => Birth::Outside,
            None => Birth::Inside,
        };
        let (exe, name) = (&self.worker, c"berth-worker");
        self.spawner.spawn(exe, name, stdin, birth).await
    }

    /// Whether systemd makes the cgroups.
    pub(super) fn has_scope(&self) -> bool {
        self.scope.is_some()
    }

    async fn spawn_monitor(&self, stdin: OwnedFd) -> io::Result<(i32, OwnedFd)> {
        let (exe, name) = (&self.shim, c"berth-shim");
        match &self.scope {
            Some(scope) => scope.spawn(&self.spawner, exe, name, stdin).await,
            None => self.spawner.spawn(exe, name, stdin, Birth::Inside).await,
        }
    }

    pub(super) fn pause_exe(&self) -> Arc<OwnedFd> {
        self.pause.clone()
    }

    async fn create(&self, launch: ContainerLaunch) -> Result<(Arc<Client>, Process), Error> {
        let name = format!("container {}", launch.id);
        let io = |what| {
            let name = name.clone();
            move |source| Error::Io { name, what, source }
        };
        let dir = launch.dir.clone();
        let prepared = blocking::run("make a monitor's socket", move || prepare(&dir)).await;
        let (dir_fd, listener) = prepared.map_err(io("make the monitor's socket"))?;
        crash_point!("create_container.socket.after");
        let (stream, theirs) = pair().map_err(io("make a socket"))?;
        let (pid, pidfd) = self
            .spawn_monitor(theirs)
            .await
            .map_err(io("start a monitor"))?;
        crash_point!("create_container.monitor.after");
        let mut guard = Guard {
            pidfd: pidfd.try_clone().ok(),
            reap: true,
        };
        first_hello(&stream, &name).await?;
        crash_point!("create_container.hello.after");
        let worker = self.worker.try_clone().map_err(io("share the worker"))?;
        let given = [
            (Fd::WorkerExe, Some(worker)),
            (Fd::Listener, Some(listener)),
            (Fd::StateDir, Some(dir_fd)),
            (Fd::Rootfs, Some(launch.rootfs)),
            (Fd::Seccomp, launch.seccomp),
            (Fd::LogDir, launch.log_dir),
        ];
        let fds = given
            .into_iter()
            .filter_map(|(role, fd)| Some((role, fd?)))
            .collect();
        let monitor = Client::open(Opening {
            id: launch.id,
            dir: launch.dir.clone(),
            stream,
            pid,
            pidfd: Some(pidfd),
            init: None,
            worker: self.worker.clone(),
            events: self.events.clone(),
            left_behind: self.left_behind.clone(),
            armed: false,
        });
        // The task reaps it from here on.
        guard.reap = false;
        let mut create = launch.create;
        if create.boot_id.is_empty() {
            create.boot_id.clone_from(&self.boot_id);
        }
        match monitor.create(create, fds).await {
            Ok(Started { pid, start_time }) => {
                guard.pidfd = None;
                Ok((monitor, Process { pid, start_time }))
            }
            Err(error) => {
                // It ends by itself after a failure; this is for one that hangs.
                monitor.kill().await;
                let _ = tokio::fs::remove_file(launch.dir.join(shim_protocol::SOCKET_NAME)).await;
                Err(error)
            }
        }
    }

    async fn connect(
        &self,
        id: &ContainerId,
        dir: &Path,
    ) -> Result<(Arc<Client>, State), ConnectError> {
        let reach = async {
            let stream = match dial(dir).await {
                Ok(stream) => stream,
                Err(e) => return Err(unreachable(id, e)),
            };
            match greet(&stream).await {
                Some((state, fds)) => Ok((stream, state, fds)),
                // It refuses us, or has died meanwhile: the next attempt tells.
                None => Err(ConnectError::Hung(id.to_string())),
            }
        };
        let reached = tokio::time::timeout(HELLO, reach).await;
        let (stream, state, fds) = reached.map_err(|_| ConnectError::Hung(id.to_string()))??;
        let (mut pidfd, mut init) = (None, None);
        for (role, fd) in fds {
            match role {
                Fd::MonitorPidfd => pidfd = Some(fd),
                Fd::Pidfd => init = Some(fd),
                _ => {}
            }
        }
        let monitor = Client::open(Opening {
            id: id.clone(),
            dir: dir.to_owned(),
            stream,
            pid: state.monitor_pid,
            pidfd: pidfd.or_else(|| process::pidfd_open(state.monitor_pid).ok()),
            init,
            worker: self.worker.clone(),
            events: self.events.clone(),
            left_behind: self.left_behind.clone(),
            armed: true,
        });
        Ok((monitor, state))
    }
}

impl Runtime for Launcher {
    fn pod(&self, pod: worker::Pod) -> BoxFuture<'_, Result<Box<dyn PodWorker>, Error>> {
        Box::pin(async move {
            let worker = Worker::start(self, pod).await?;
            Ok(Box::new(worker) as Box<dyn PodWorker>)
        })
    }

    fn unpin(&self, path: &Path) -> io::Result<()> {
        sys::netns::unpin(path)
    }

    fn create(&self, launch: ContainerLaunch) -> BoxFuture<'_, Result<Made, Error>> {
        Box::pin(async move {
            let (monitor, init) = self.create(launch).await?;
            Ok((monitor as Arc<dyn Monitor>, init))
        })
    }

    fn connect<'a>(
        &'a self,
        id: &'a ContainerId,
        dir: &'a Path,
    ) -> BoxFuture<'a, Result<Found, ConnectError>> {
        Box::pin(async move {
            let (monitor, state) = self.connect(id, dir).await?;
            Ok((monitor as Arc<dyn Monitor>, state))
        })
    }

    fn kill_monitor<'a>(
        &'a self,
        id: &'a ContainerId,
        monitor: &'a Process,
    ) -> BoxFuture<'a, io::Result<bool>> {
        Box::pin(async move {
            match process::open_same(monitor.pid, monitor.start_time)? {
                Some(pidfd) => Ok(hung::kill(pidfd, id, &self.left_behind).await),
                None => Ok(true),
            }
        })
    }

    fn signal(&self, process: &Process, signal: i32) -> io::Result<bool> {
        process::signal_same(process.pid, process.start_time, signal)
    }

    fn ended(&self, process: &Process) -> BoxFuture<'static, io::Result<()>> {
        let opened = process::open_same(process.pid, process.start_time);
        Box::pin(async move {
            match opened? {
                Some(pidfd) => process::ended(pidfd).await.map(drop),
                None => Ok(()),
            }
        })
    }

    fn is_alive(&self, process: &Process) -> io::Result<bool> {
        process::is_alive(process.pid, process.start_time)
    }
}

/// A new monitor's handshake.
async fn first_hello(stream: &UnixStream, name: &str) -> Result<(), Error> {
    let (name, what, limit) = (name.to_owned(), "hello", FIRST_HELLO);
    match tokio::time::timeout(limit, greet(stream)).await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(Error::Gone { name, what }),
        Err(_) => Err(Error::Silent { name, what, limit }),
    }
}

fn unreachable(id: &ContainerId, source: io::Error) -> ConnectError {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ConnectError::Gone,
        // The queue of connections that it has not accepted is full.
        io::ErrorKind::WouldBlock => ConnectError::Hung(id.to_string()),
        _ => {
            let name = format!("container {id}");
            ConnectError::Other(Error::Io {
                name,
                what: "connect to its monitor",
                source,
            })
        }
    }
}

/// Kills a monitor that was not handed out, and reaps it if no task does.
struct Guard {
    pidfd: Option<OwnedFd>,
    reap: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(pidfd) = self.pidfd.take() {
            let _ = process::send_signal(pidfd.as_fd(), libc::SIGKILL);
            if self.reap
                && let Ok(runtime) = tokio::runtime::Handle::try_current()
            {
                runtime.spawn(async move {
                    if let Ok(pidfd) = process::ended(pidfd).await {
                        process::reap(pidfd.as_fd());
                    }
                });
            }
        }
    }
}

/// The container's directory and a new listening socket in it.
fn prepare(dir: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let dir = fs::File::open(dir)?;
    let path = short_path(&dir);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    Ok((dir.into(), listener.into()))
}

/// A program that nothing which it starts can overwrite.
fn seal(path: &Path) -> Result<Arc<OwnedFd>, Error> {
    let failed = |source| Error::Program {
        path: path.to_owned(),
        source,
    };
    let mount = mount::sealed_exe(path).map_err(failed)?;
    // The state directory may be on a file system from which nothing may be executed.
    let change = mount::MountChange {
        clear: Some(MountAttrFlags::MOUNT_ATTR_NOEXEC),
        ..mount::MountChange::default()
    };
    mount::set_attr(mount.as_fd(), change, false).map_err(failed)?;
    Ok(Arc::new(mount))
}

/// Puts the built-in pause program into a file of its own. Its directory is named by its content; it
/// is called `pause` because the kernel names the process after it (since Linux 6.14).
fn write_pause(state: &Path) -> Result<PathBuf, Error> {
    let hash = Sha256::digest(PAUSE);
    let hash: String = hash.iter().take(8).map(|b| format!("{b:02x}")).collect();
    let dir = state.join("bin").join(format!("pause-{hash}"));
    let path = dir.join("pause");
    let failed = |source| Error::Program {
        path: path.clone(),
        source,
    };
    if fs::read(&path).is_ok_and(|there| there == PAUSE) {
        return Ok(path);
    }
    fs::create_dir_all(&dir).map_err(failed)?;
    let dir = fs::File::open(&dir).map_err(failed)?;
    let mode = Mode::from_raw_mode(0o755);
    sys::fs::write_atomic(dir.as_fd(), "pause", PAUSE, mode, false).map_err(failed)?;
    Ok(path)
}
