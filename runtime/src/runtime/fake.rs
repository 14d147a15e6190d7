//! A runtime that starts nothing: monitors, workers and processes are entries of a table, and tests say what befalls them.
//!
//! It keeps what the real one keeps: a container's exit record is written before its end is told, a monitor that dies takes its
//! container along, and what there is outlives the daemon. Namespaces are pinned as plain files.

mod monitor;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use shim_protocol::monitor::{ExecExit, Exit, Failure, FailureKind, State};
use shim_protocol::{EXIT_RECORD_NAME, record, worker};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    ConnectError, ContainerLaunch, Error, ExecStdio, Found, Made, Monitor, MonitorEvent,
    MonitorEventKind, PodWorker, Runtime,
};
use crate::id::ContainerId;
use crate::model::{Process, now_nanos};
use monitor::FakeMonitor;

/// No kernel has such pids: what got past the fake would find nothing.
const FIRST_PID: i32 = 1 << 30;

/// How long is waited for one that hangs, and until its silence is told.
const PATIENCE: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(30);

/// What can be asked of a runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`Runtime::pod`].
    Pod,
    /// [`PodWorker::pause`].
    Pause,
    /// [`Runtime::create`].
    Create,
    /// [`Runtime::connect`].
    Connect,
    /// [`Runtime::kill_monitor`].
    KillMonitor,
    /// [`Monitor::start`].
    Start,
    /// [`Monitor::exec`].
    Exec,
    /// [`Monitor::kill_exec`].
    KillExec,
    /// [`Monitor::reopen_log`].
    ReopenLog,
    /// [`Monitor::destroy`].
    Destroy,
    /// [`Monitor::kill`].
    Kill,
}

/// What becomes of the next call of a kind, where all does not go well.
#[derive(Debug)]
pub enum Mishap {
    /// It is answered with a failure.
    Refused(FailureKind),
    /// It is not answered, and neither is any later one.
    Hangs,
    /// Who was asked dies, and what it had made stays as it is.
    Dies,
    /// The process ends with this code, and only then comes the answer that all went well.
    EndsFirst(i32),
    /// It waits until the test has sent something, or has given up.
    Waits(oneshot::Receiver<()>),
    /// The command runs until somebody ends it.
    Runs,
}

/// What a process makes of signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// Any ends it.
    Mortal,
    /// Only SIGKILL ends it.
    Stubborn,
    /// None ends it: it waits in the kernel.
    Stuck,
}

/// Clones are the same runtime.
#[derive(Clone, Debug, Default)]
pub struct Fake(Arc<Mutex<World>>);

#[derive(Debug, Default)]
struct World {
    started: i32,
    processes: BTreeMap<i32, Life>,
    containers: BTreeMap<ContainerId, Container>,
    mishaps: Vec<(Call, Mishap)>,
    asked: Vec<Call>,
    signals: Vec<i32>,
    events: Option<mpsc::UnboundedSender<MonitorEvent>>,
}

#[derive(Debug)]
struct Life {
    nature: Nature,
    /// Dropped at its end.
    ended: watch::Sender<()>,
}

/// A container as its monitor has it; there is none once the monitor is gone.
#[derive(Debug)]
struct Container {
    dir: PathBuf,
    boot_id: String,
    init: Process,
    monitor: Process,
    starting: bool,
    started_at: i64,
    hangs: bool,
    execs: BTreeMap<String, (ExecStdio, oneshot::Sender<ExecExit>)>,
}

impl Fake {
    /// What monitors say from now on: a daemon is there.
    pub fn listen(&self) -> mpsc::UnboundedReceiver<MonitorEvent> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.world().events = Some(sender);
        receiver
    }

    /// Says what becomes of the next call of this kind of which nothing is said yet.
    pub fn next(&self, call: Call, mishap: Mishap) {
        self.world().mishaps.push((call, mishap));
    }

    /// Holds the next call of this kind until something is sent.
    pub fn hold(&self, call: Call) -> oneshot::Sender<()> {
        let (go, wait) = oneshot::channel();
        self.next(call, Mishap::Waits(wait));
        go
    }

    /// Waits until it has been asked this so often.
    pub async fn is_asked(&self, call: Call, times: usize) {
        let asked = async {
            while self.asked(call) < times {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let asked = tokio::time::timeout(6 * PATIENCE, asked).await;
        asked.unwrap_or_else(|_| panic!("nobody asks it {call:?}"));
    }

    /// How often it has been asked this.
    pub fn asked(&self, call: Call) -> usize {
        self.world().asked.iter().filter(|c| **c == call).count()
    }

    /// The signals that were sent to any process, in their order.
    pub fn signals(&self) -> Vec<i32> {
        self.world().signals.clone()
    }

    /// Pids of all processes that live: pause processes, monitors, first processes of containers.
    pub fn living(&self) -> Vec<i32> {
        self.world().processes.keys().copied().collect()
    }

    /// Makes a process what it is to be.
    pub fn make(&self, process: &Process, nature: Nature) {
        if let Some(life) = self.world().processes.get_mut(&process.pid) {
            life.nature = nature;
        }
    }

    /// A container's first process ends by itself.
    pub fn exit(&self, id: &ContainerId, code: i32) {
        self.end(id, code, "");
    }

    /// A process that is no container's ends by itself.
    pub fn kill(&self, process: &Process) {
        self.world().processes.remove(&process.pid);
    }

    /// A monitor dies, and its container with it.
    pub fn lose(&self, id: &ContainerId) {
        let mut world = self.world();
        if world.drop_monitor(id).is_some() {
            world.tell(id, MonitorEventKind::Lost);
        }
    }

    /// A monitor answers no more, and does not tell of its container's end.
    pub fn hang(&self, id: &ContainerId) {
        if let Some(container) = self.world().containers.get_mut(id) {
            container.hangs = true;
        }
    }

    /// A monitor that did not answer answers again.
    pub fn wake(&self, id: &ContainerId) {
        if let Some(container) = self.world().containers.get_mut(id) {
            container.hangs = false;
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first process ends, and the monitor tells, if it can.
    fn end(&self, id: &ContainerId, code: i32, start_error: &str) {
        let mut world = self.world();
        let Some(container) = world.containers.get(id) else {
            return;
        };
        let (init, dir) = (container.init.clone(), container.dir.clone());
        if container.hangs {
            world.processes.remove(&init.pid);
            let (fake, id) = (self.clone(), id.clone());
            tokio::spawn(async move {
                tokio::time::sleep(SILENCE).await;
                let mut world = fake.world();
                if world.containers.contains_key(&id) {
                    world.tell(&id, MonitorEventKind::Silent);
                }
            });
            return;
        }
        let exit = Exit {
            code,
            finished_at: now_nanos(),
            started_at: container.started_at,
            start_error: start_error.to_owned(),
            ..Exit::default()
        };
        let text = record::encode(&container.boot_id, &exit);
        std::fs::write(dir.join(EXIT_RECORD_NAME), text).unwrap();
        world.drop_monitor(id);
        world.tell(id, MonitorEventKind::Exited(exit));
    }

    /// Notes a call and what befalls it. `id` is the container whose monitor is asked.
    async fn meet(&self, call: Call, id: Option<&ContainerId>) -> Result<Option<Mishap>, Error> {
        let (name, what) = (format!("{call:?}"), "a test");
        let gone = || Error::Gone {
            name: name.clone(),
            what,
        };
        let silent = || Error::Silent {
            name: name.clone(),
            what,
            limit: PATIENCE,
        };
        let mishap = self.world().note(call);
        if let (Some(Mishap::Hangs), Some(id)) = (&mishap, id) {
            self.hang(id);
        }
        let (dead, hangs) = self.watch(id).ok_or_else(gone)?;
        if hangs || matches!(mishap, Some(Mishap::Hangs)) {
            return Err(Self::silence(dead, gone(), silent()).await);
        }
        match mishap {
            Some(Mishap::Refused(kind)) => {
                let message = "refused by the test".to_owned();
                let kind = kind.into();
                Err(Error::refused(&name, Failure { kind, message }))
            }
            Some(Mishap::Dies) => {
                id.inspect(|id| self.lose(id));
                Err(gone())
            }
            Some(Mishap::Waits(go)) => tokio::select! {
                // Given up is as good as sent.
                _ = go => Ok(None),
                () = dead => Err(gone()),
            },
            other => Ok(other),
        }
    }

    /// The end of a container's monitor, for whoever waits for an answer of it, and whether it hangs. Of what is no
    /// monitor no end is known. `None`: there is none any more.
    fn watch(&self, id: Option<&ContainerId>) -> Option<(BoxFuture<'static, ()>, bool)> {
        let Some(id) = id else {
            return Some((Box::pin(std::future::pending()), false));
        };
        let (monitor, hangs) = {
            let world = self.world();
            let container = world.containers.get(id)?;
            (container.monitor.clone(), container.hangs)
        };
        let ended = self.ended(&monitor);
        Some((Box::pin(async move { drop(ended.await) }), hangs))
    }

    /// What comes of waiting for an answer that will not be.
    async fn silence(dead: BoxFuture<'static, ()>, gone: Error, silent: Error) -> Error {
        match tokio::time::timeout(PATIENCE, dead).await {
            Ok(()) => gone,
            Err(_) => silent,
        }
    }
}

impl World {
    fn start_process(&mut self) -> Process {
        self.started += 1;
        let (pid, start_time) = (FIRST_PID + self.started, 7);
        let life = Life {
            nature: Nature::Mortal,
            ended: watch::Sender::new(()),
        };
        self.processes.insert(pid, life);
        Process { pid, start_time }
    }

    /// Notes a call, and gives what is to befall it.
    fn note(&mut self, call: Call) -> Option<Mishap> {
        self.asked.push(call);
        let at = self.mishaps.iter().position(|(c, _)| *c == call)?;
        Some(self.mishaps.remove(at).1)
    }

    /// The monitor is gone, and nothing of its container lives.
    fn drop_monitor(&mut self, id: &ContainerId) -> Option<Container> {
        let container = self.containers.remove(id)?;
        for process in [&container.init, &container.monitor] {
            self.processes.remove(&process.pid);
        }
        Some(container)
    }

    fn tell(&mut self, id: &ContainerId, kind: MonitorEventKind) {
        if let Some(events) = &self.events {
            // Without a receiver the daemon is away.
            let _ = events.send(MonitorEvent {
                id: id.clone(),
                kind,
            });
        }
    }
}

impl Runtime for Fake {
    fn pod(&self, pod: worker::Pod) -> BoxFuture<'_, Result<Box<dyn PodWorker>, Error>> {
        Box::pin(async move {
            let dies = {
                let world = self.world();
                let next = world.mishaps.iter().find(|(c, _)| *c == Call::Pod);
                matches!(next, Some((_, Mishap::Dies)))
            };
            let pins = [pod.net, pod.ipc, pod.uts];
            if dies {
                pins.iter().for_each(|path| pin(path));
            }
            self.meet(Call::Pod, None).await?;
            pins.iter().for_each(|path| pin(path));
            let pid = self.world().start_process();
            Ok(Box::new(FakeWorker(self.clone(), pid)) as Box<dyn PodWorker>)
        })
    }

    fn unpin(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    fn create(&self, launch: ContainerLaunch) -> BoxFuture<'_, Result<Made, Error>> {
        Box::pin(async move {
            let mishap = self.meet(Call::Create, None).await?;
            let id = launch.id;
            let (init, monitor) = {
                let mut world = self.world();
                let (monitor, init) = (world.start_process(), world.start_process());
                let container = Container {
                    dir: launch.dir,
                    boot_id: launch.create.boot_id,
                    init: init.clone(),
                    monitor: monitor.clone(),
                    starting: false,
                    started_at: 0,
                    hangs: false,
                    execs: BTreeMap::new(),
                };
                world.containers.insert(id.clone(), container);
                (init, monitor)
            };
            if let Some(Mishap::EndsFirst(code)) = mishap {
                self.exit(&id, code);
            }
            let monitor = FakeMonitor {
                fake: self.clone(),
                id,
                process: monitor,
            };
            Ok((Arc::new(monitor) as Arc<dyn Monitor>, init))
        })
    }

    fn connect<'a>(
        &'a self,
        id: &'a ContainerId,
        _dir: &'a Path,
    ) -> BoxFuture<'a, Result<Found, ConnectError>> {
        Box::pin(async move {
            match self.meet(Call::Connect, Some(id)).await {
                Ok(_) => {}
                Err(Error::Gone { .. }) => return Err(ConnectError::Gone),
                Err(Error::Silent { .. }) => return Err(ConnectError::Hung(id.to_string())),
                Err(error) => return Err(error.into()),
            }
            let world = self.world();
            let container = world.containers.get(id).ok_or(ConnectError::Gone)?;
            let state = State {
                monitor_pid: container.monitor.pid,
                started_at: container.started_at,
                starting: container.starting,
                ..State::default()
            };
            let monitor = FakeMonitor {
                fake: self.clone(),
                id: id.clone(),
                process: container.monitor.clone(),
            };
            Ok((Arc::new(monitor) as Arc<dyn Monitor>, state))
        })
    }

    fn kill_monitor<'a>(
        &'a self,
        id: &'a ContainerId,
        monitor: &'a Process,
    ) -> BoxFuture<'a, io::Result<bool>> {
        Box::pin(async move {
            let mut world = self.world();
            world.asked.push(Call::KillMonitor);
            if world
                .containers
                .get(id)
                .is_some_and(|c| c.monitor == *monitor)
            {
                world.drop_monitor(id);
            }
            Ok(true)
        })
    }

    fn signal(&self, process: &Process, signal: i32) -> io::Result<bool> {
        let container = {
            let mut world = self.world();
            world.signals.push(signal);
            let Some(life) = world.processes.get(&process.pid) else {
                return Ok(false);
            };
            match life.nature {
                Nature::Mortal => {}
                Nature::Stubborn if signal == libc::SIGKILL => {}
                Nature::Stubborn | Nature::Stuck => return Ok(true),
            }
            let mut all = world.containers.iter();
            let container = all.find(|(_, c)| c.init == *process);
            let container = container.map(|(id, _)| id.clone());
            if container.is_none() {
                world.processes.remove(&process.pid);
            }
            container
        };
        if let Some(id) = container {
            self.exit(&id, 128 + signal);
        }
        Ok(true)
    }

    fn ended(&self, process: &Process) -> BoxFuture<'static, io::Result<()>> {
        let world = self.world();
        let life = world.processes.get(&process.pid);
        let ended = life.map(|life| life.ended.subscribe());
        Box::pin(async move {
            if let Some(mut ended) = ended {
                while ended.changed().await.is_ok() {}
            }
            Ok(())
        })
    }

    fn is_alive(&self, process: &Process) -> io::Result<bool> {
        Ok(self.world().processes.contains_key(&process.pid))
    }
}

fn pin(path: &str) {
    if !path.is_empty() {
        std::fs::write(path, "a namespace").unwrap();
    }
}

/// It ends when it is dropped.
#[derive(Debug)]
struct FakeWorker(Fake, Process);

impl Drop for FakeWorker {
    fn drop(&mut self) {
        self.0.kill(&self.1);
    }
}

impl PodWorker for FakeWorker {
    fn pid(&self) -> i32 {
        self.1.pid
    }

    fn pause(
        self: Box<Self>,
        pause: worker::Pause,
        _seccomp: Option<OwnedFd>,
    ) -> BoxFuture<'static, Result<Process, Error>> {
        Box::pin(async move {
            let fake = &self.0;
            let mishap = fake.meet(Call::Pause, None).await?;
            pin(&pause.pid);
            let process = fake.world().start_process();
            if let Some(Mishap::EndsFirst(_)) = mishap {
                fake.kill(&process);
            }
            Ok(process)
        })
    }
}
