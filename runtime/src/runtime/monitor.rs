//! The client of one container's monitor.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use shim_protocol::Fd;
use shim_protocol::monitor::{self, Call, Empty, ExecExit, KillExec, Outcome};
use shim_protocol::worker::Started;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::link::{Answer, Ask, Link};
use super::{Error, ExecHandle, ExecStdio, Monitor, MonitorEvent, hung};
use crate::id::ContainerId;
use crate::metrics::Gauge;
use crate::model::Process;
use crate::sys::process;

/// Limits on calls. The monitor has shorter ones of its own for everything but a hanging disk.
const CREATE: Duration = Duration::from_secs(100);
const START: Duration = Duration::from_secs(60);
const EXEC: Duration = Duration::from_secs(70);
const REOPEN: Duration = Duration::from_secs(10);
const DESTROY: Duration = Duration::from_secs(10);
const KILL: Duration = Duration::from_secs(5);

/// How much longer than the command's own time the monitor may take to tell of its end.
const TELLING: Duration = Duration::from_secs(10);

/// How often a command that nothing is heard of is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// How long a monitor that was silent is not asked again: each request that it does not read costs descriptors.
const SHUNNED: Duration = Duration::from_secs(30);

/// The handle of a monitor, shared with the task that serves it.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: ContainerId,
    /// The monitor's, where the kernel gave one.
    pub(super) pidfd: Option<OwnedFd>,
    process: Option<Process>,
    worker: Arc<OwnedFd>,
    voice: Mutex<Voice>,
    pub(super) left_behind: Gauge,
    asks: mpsc::UnboundedSender<Box<Ask>>,
}

/// Whether a monitor speaks.
#[derive(Debug, Default)]
struct Voice {
    /// What has come from it so far.
    heard: u64,
    /// When a call was given up and nothing had come since it was made.
    silent: Option<Instant>,
}

impl Client {
    fn voice(&self) -> MutexGuard<'_, Voice> {
        // Every change is a plain assignment.
        self.voice.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has come from the monitor.
    pub(super) fn heard(&self) {
        let mut voice = self.voice();
        voice.heard += 1;
        voice.silent = None;
    }
}

/// What a new handle needs.
pub(super) struct Opening {
    pub(super) id: ContainerId,
    pub(super) dir: PathBuf,
    pub(super) stream: UnixStream,
    pub(super) pid: i32,
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) init: Option<OwnedFd>,
    pub(super) worker: Arc<OwnedFd>,
    pub(super) events: mpsc::UnboundedSender<MonitorEvent>,
    pub(super) left_behind: Gauge,
    /// The container exists.
    pub(super) armed: bool,
}

impl Client {
    /// Starts the task that serves a connection on which hello has been said.
    pub(super) fn open(opening: Opening) -> Arc<Self> {
        let (asks, queue) = mpsc::unbounded_channel();
        let pid = opening.pid;
        let start_time = process::start_time(pid).ok();
        let client = Arc::new(Self {
            id: opening.id,
            pidfd: opening.pidfd,
            process: start_time.map(|start_time| Process { pid, start_time }),
            worker: opening.worker,
            voice: Mutex::default(),
            left_behind: opening.left_behind,
            asks,
        });
        let mut link = Link {
            client: client.clone(),
            asks: queue,
            events: opening.events,
            stream: opening.stream,
            dir: opening.dir,
            armed: opening.armed,
            silence: None,
            pending: HashMap::new(),
            execs: HashMap::new(),
            next: 0,
            over: false,
        };
        if let Some(init) = opening.init {
            link.watch(init);
        }
        tokio::spawn(link.run());
        client
    }

    fn name(&self) -> String {
        format!("container {}", self.id)
    }

    async fn ask(
        &self,
        call: Call,
        fds: Vec<(Fd, OwnedFd)>,
        exit: Option<oneshot::Sender<ExecExit>>,
        (what, limit): (&'static str, Duration),
    ) -> Result<Answer, Error> {
        let (answer, answered) = oneshot::channel();
        let gone = || Error::Gone {
            name: self.name(),
            what,
        };
        let heard = {
            let voice = self.voice();
            if voice.silent.is_some_and(|at| at.elapsed() < SHUNNED) {
                let name = self.name();
                return Err(Error::Hung { name, what });
            }
            voice.heard
        };
        self.asks
            .send(Box::new(Ask {
                call,
                fds,
                answer: Some(answer),
                exit,
            }))
            .map_err(|_| gone())?;
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok((Outcome::Failure(failure), _))) => Err(Error::refused(&self.name(), failure)),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(gone()),
            Err(_) => {
                let mut voice = self.voice();
                if voice.heard == heard {
                    voice.silent = Some(Instant::now());
                }
                drop(voice);
                let name = self.name();
                Err(Error::Silent { name, what, limit })
            }
        }
    }

    async fn ask_done(&self, call: Call, about: (&'static str, Duration)) -> Result<(), Error> {
        let answer = self.ask(call, Vec::new(), None, about).await?;
        self.done(answer, about.0)
    }

    fn done(&self, answer: Answer, what: &'static str) -> Result<(), Error> {
        match answer {
            (Outcome::Done(_), _) => Ok(()),
            _ => Err(Error::Nonsense {
                name: self.name(),
                what,
            }),
        }
    }

    /// Makes the container.
    pub(super) async fn create(
        &self,
        create: monitor::Create,
        fds: Vec<(Fd, OwnedFd)>,
    ) -> Result<Started, Error> {
        let what = "create";
        let answer = self
            .ask(Call::Create(create), fds, None, (what, CREATE))
            .await?;
        match answer {
            (Outcome::Created(started), _) => Ok(started),
            _ => Err(Error::Nonsense {
                name: self.name(),
                what,
            }),
        }
    }

    async fn start(&self) -> Result<i64, Error> {
        let what = "start";
        let answered = self.ask(Call::Start(Empty {}), Vec::new(), None, (what, START));
        let hung = self.hung_after(TELLING);
        let answer = tokio::select! {
            answer = answered => answer?,
            () = hung => {
                let (name, limit) = (self.name(), TELLING + KILL);
                return Err(Error::Silent { name, what, limit });
            }
        };
        match answer {
            (Outcome::Running(running), _) => Ok(running.started_at),
            _ => Err(Error::Nonsense {
                name: self.name(),
                what,
            }),
        }
    }

    /// Ends after a while, if the monitor answers nothing then. One that is slow for its container's sake answers what
    /// costs it nothing: to end a command that there is not.
    async fn hung_after(&self, patience: Duration) {
        tokio::time::sleep(patience).await;
        if let Err(Error::Silent { .. }) = self.kill_exec("").await {
            return;
        }
        std::future::pending().await
    }

    async fn exec(
        &self,
        exec: monitor::Exec,
        stdio: ExecStdio,
        seccomp: Option<OwnedFd>,
    ) -> Result<ExecHandle, Error> {
        let what = "exec";
        let io = |source| Error::Io {
            name: self.name(),
            what: "share the worker",
            source,
        };
        let worker = self.worker.try_clone().map_err(io)?;
        let given = [
            (Fd::WorkerExe, Some(worker)),
            (Fd::Seccomp, seccomp),
            (Fd::Stdin, stdio.stdin),
            (Fd::Stdout, stdio.stdout),
            (Fd::Stderr, stdio.stderr),
        ];
        let fds = given
            .into_iter()
            .filter_map(|(role, fd)| Some((role, fd?)))
            .collect();
        let (exit, ended) = oneshot::channel();
        let exec_id = exec.exec_id.clone();
        let time = (exec.timeout_ms > 0).then(|| Duration::from_millis(exec.timeout_ms));
        let limit = time.map_or(EXEC, |time| EXEC.min(time + TELLING));
        let answer = self
            .ask(Call::Exec(exec), fds, Some(exit), (what, limit))
            .await;
        if let Err(Error::Silent { .. }) = &answer {
            // If it starts after all, nobody wants it any more.
            let call = Call::KillExec(KillExec { exec_id });
            let kill = Ask {
                call,
                fds: Vec::new(),
                answer: None,
                exit: None,
            };
            let _ = self.asks.send(Box::new(kill));
        }
        let (Outcome::ExecStarted(started), fds) = answer? else {
            return Err(Error::Nonsense {
                name: self.name(),
                what,
            });
        };
        let (mut console, mut pidfd) = (None, None);
        for (role, fd) in fds {
            match role {
                Fd::Console => console = Some(fd),
                Fd::Pidfd => pidfd = Some(fd),
                _ => {}
            }
        }
        let running = Running {
            monitor: self.name(),
            pidfd,
            ended,
        };
        Ok(ExecHandle {
            pid: started.pid,
            console,
            ended: Box::pin(running.end(time)),
        })
    }

    async fn kill_exec(&self, exec_id: &str) -> Result<(), Error> {
        let call = Call::KillExec(KillExec {
            exec_id: exec_id.to_owned(),
        });
        self.ask_done(call, ("kill an exec", KILL)).await
    }

    async fn reopen_log(&self, dir: Option<OwnedFd>) -> Result<(), Error> {
        let what = "reopen the log";
        let fds = dir.map(|dir| (Fd::LogDir, dir)).into_iter().collect();
        let asked = self.ask(Call::ReopenLog(Empty {}), fds, None, (what, REOPEN));
        self.done(asked.await?, what)
    }

    async fn destroy(&self) -> Result<(), Error> {
        let about = ("destroy", DESTROY);
        match self.ask_done(Call::Destroy(Empty {}), about).await {
            Err(Error::Gone { .. }) => Ok(()),
            Err(Error::Silent { .. } | Error::Hung { .. }) if self.kill().await => Ok(()),
            other => other,
        }
    }

    async fn kill(&self) -> bool {
        match self.pidfd.as_ref().map(OwnedFd::try_clone) {
            Some(Ok(pidfd)) => hung::kill(pidfd, &self.id, &self.left_behind).await,
            // Then a closed connection is all that is known of its end, as everywhere.
            _ => true,
        }
    }
}

impl Monitor for Client {
    fn process(&self) -> Option<Process> {
        self.process.clone()
    }

    fn start(&self) -> BoxFuture<'_, Result<i64, Error>> {
        Box::pin(self.start())
    }

    fn exec(
        &self,
        exec: monitor::Exec,
        stdio: ExecStdio,
        seccomp: Option<OwnedFd>,
    ) -> BoxFuture<'_, Result<ExecHandle, Error>> {
        Box::pin(self.exec(exec, stdio, seccomp))
    }

    fn kill_exec<'a>(&'a self, exec_id: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(self.kill_exec(exec_id))
    }

    fn reopen_log(&self, dir: Option<OwnedFd>) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.reopen_log(dir))
    }

    fn destroy(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.destroy())
    }

    fn kill(&self) -> BoxFuture<'_, bool> {
        Box::pin(self.kill())
    }
}

/// A command that runs.
struct Running {
    /// Whose container it is in.
    monitor: String,
    /// Readable when it has ended.
    pidfd: Option<OwnedFd>,
    ended: oneshot::Receiver<ExecExit>,
}

impl Running {
    async fn end(mut self, limit: Option<Duration>) -> Result<ExecExit, Error> {
        let what = "wait for a command";
        let (name, began) = (self.monitor.clone(), Instant::now());
        let mut dead = false;
        loop {
            if let Ok(told) = tokio::time::timeout(LOOK, &mut self.ended).await {
                return told.map_err(|_| Error::Gone { name, what });
            }
            let late = limit.is_some_and(|limit| began.elapsed() >= limit + TELLING);
            // Seen dead once, it may be about to be told.
            if late || (dead && self.is_dead()) {
                let limit = began.elapsed();
                return Err(Error::Silent { name, what, limit });
            }
            dead = self.is_dead();
        }
    }

    fn is_dead(&self) -> bool {
        let pidfd = self.pidfd.as_ref();
        pidfd.is_some_and(|fd| process::has_ended(fd.as_fd(), Duration::ZERO).unwrap_or(false))
    }
}
