//! The handle of one container's monitor.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use shim_protocol::Fd;
use shim_protocol::monitor::{self, Call, Empty, ExecExit, Exit, KillExec, Outcome};
use shim_protocol::worker::Started;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::Error;
use super::link::{Answer, Ask, Link};
use crate::id::ContainerId;
use crate::sys::process;

/// Limits on calls. The monitor has shorter ones of its own for everything but a hanging disk.
const CREATE: Duration = Duration::from_secs(100);
const START: Duration = Duration::from_secs(60);
const EXEC: Duration = Duration::from_secs(70);
const REOPEN: Duration = Duration::from_secs(10);
const DESTROY: Duration = Duration::from_secs(20);
const KILL: Duration = Duration::from_secs(10);

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

/// What all clones of a handle share with its task.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) id: ContainerId,
    /// The monitor's, where the kernel gave one.
    pub(super) pidfd: Option<OwnedFd>,
    /// The container's, once it exists.
    init: OnceLock<OwnedFd>,
    worker: Arc<OwnedFd>,
}

/// A container's monitor. Clones are cheap and mean the same one.
#[derive(Clone, Debug)]
pub struct Monitor {
    shared: Arc<Shared>,
    asks: mpsc::UnboundedSender<Box<Ask>>,
}

/// What a new handle needs.
pub(super) struct Opening {
    pub(super) id: ContainerId,
    pub(super) dir: PathBuf,
    pub(super) stream: UnixStream,
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) init: Option<OwnedFd>,
    pub(super) worker: Arc<OwnedFd>,
    pub(super) events: mpsc::UnboundedSender<MonitorEvent>,
    /// The container exists.
    pub(super) armed: bool,
}

impl Monitor {
    /// Starts the task that serves a connection on which hello has been said.
    pub(super) fn open(opening: Opening) -> Self {
        let (asks, queue) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            id: opening.id,
            pidfd: opening.pidfd,
            init: opening.init.map_or_else(OnceLock::new, OnceLock::from),
            worker: opening.worker,
        });
        let link = Link {
            shared: shared.clone(),
            asks: queue,
            events: opening.events,
            stream: opening.stream,
            dir: opening.dir,
            armed: opening.armed,
            pending: HashMap::new(),
            execs: HashMap::new(),
            next: 0,
            over: false,
        };
        tokio::spawn(link.run());
        Self { shared, asks }
    }

    /// Whose monitor it is.
    pub fn id(&self) -> &ContainerId {
        &self.shared.id
    }

    fn name(&self) -> String {
        format!("container {}", self.shared.id)
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
            Err(_) => Err(Error::Silent {
                name: self.name(),
                what,
                limit,
            }),
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
        let (Outcome::Created(started), fds) = answer else {
            return Err(Error::Nonsense {
                name: self.name(),
                what,
            });
        };
        if let Some((_, pidfd)) = fds.into_iter().find(|(role, _)| *role == Fd::Pidfd) {
            let _ = self.shared.init.set(pidfd);
        }
        Ok(started)
    }

    /// Lets the container run. Gives the time at which its command was executed, in nanoseconds since
    /// the Unix epoch.
    ///
    /// # Errors
    /// When the command cannot be executed; the container is over then, and its exit event has been sent.
    pub async fn start(&self) -> Result<i64, Error> {
        let what = "start";
        match self
            .ask(Call::Start(Empty {}), Vec::new(), None, (what, START))
            .await?
        {
            (Outcome::Running(running), _) => Ok(running.started_at),
            _ => Err(Error::Nonsense {
                name: self.name(),
                what,
            }),
        }
    }

    /// Runs a process in the container; returns when it has been executed. `exec.exec_id` must be unique
    /// for the monitor's life. `seccomp` is the filter that the container has.
    ///
    /// # Errors
    /// When it cannot be executed; `Kind::DeadlineExceeded` when its time limit was over before that.
    pub async fn exec(
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
        let worker = self.shared.worker.try_clone().map_err(io)?;
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
        let answer = self
            .ask(Call::Exec(exec), fds, Some(exit), (what, EXEC))
            .await;
        if let Err(Error::Silent { .. }) = &answer {
            // If it starts after all, nobody wants it any more.
            let call = Call::KillExec(KillExec {
                exec_id: exec_id.clone(),
            });
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
        let console = fds
            .into_iter()
            .find(|(role, _)| *role == Fd::Console)
            .map(|(_, fd)| fd);
        Ok(ExecHandle {
            pid: started.pid,
            console,
            exec_id,
            ended,
            monitor: self.clone(),
        })
    }

    /// Kills one exec'd process with everything that it started. One that is over is fine.
    ///
    /// # Errors
    /// When the monitor does not answer.
    pub async fn kill_exec(&self, exec_id: &str) -> Result<(), Error> {
        let call = Call::KillExec(KillExec {
            exec_id: exec_id.to_owned(),
        });
        self.ask_done(call, ("kill an exec", KILL)).await
    }

    /// Opens the log anew, in the directory that is given, else in the one that it was in; when this returns the new
    /// file exists and takes all further output.
    ///
    /// # Errors
    /// When the file cannot be opened; the old one stays in use.
    pub async fn reopen_log(&self, dir: Option<OwnedFd>) -> Result<(), Error> {
        let what = "reopen the log";
        let fds = dir.map(|dir| (Fd::LogDir, dir)).into_iter().collect();
        let asked = self.ask(Call::ReopenLog(Empty {}), fds, None, (what, REOPEN));
        self.done(asked.await?, what)
    }

    /// Ends the container, whatever it is doing, and then the monitor. One that has ended is fine.
    ///
    /// # Errors
    /// When the monitor does not answer.
    pub async fn destroy(&self) -> Result<(), Error> {
        match self
            .ask_done(Call::Destroy(Empty {}), ("destroy", DESTROY))
            .await
        {
            Err(Error::Gone { .. }) => Ok(()),
            other => other,
        }
    }

    /// Sends a signal to the container's first process, past the monitor. False when it has ended.
    ///
    /// # Errors
    /// When the kernel refuses the signal, or the container was not made.
    pub fn signal(&self, signal: i32) -> Result<bool, Error> {
        let what = "signal its first process";
        let Some(pidfd) = self.shared.init.get() else {
            return Err(Error::Gone {
                name: self.name(),
                what,
            });
        };
        process::send_signal(pidfd.as_fd(), signal).map_err(|source| Error::Io {
            name: self.name(),
            what,
            source,
        })
    }

    /// Kills the monitor, and with it the container, and waits until it is dead.
    pub(super) async fn kill(&self) {
        let Some(pidfd) = &self.shared.pidfd else {
            return;
        };
        let _ = process::send_signal(pidfd.as_fd(), libc::SIGKILL);
        if let Ok(pidfd) = pidfd.try_clone() {
            let _ = tokio::time::timeout(KILL, process::ended(pidfd)).await;
        }
    }
}

/// A process that runs in a container.
#[derive(Debug)]
pub struct ExecHandle {
    /// Its pid.
    pub pid: i32,
    /// The master of its terminal, if it has one.
    pub console: Option<OwnedFd>,
    exec_id: String,
    ended: oneshot::Receiver<ExecExit>,
    monitor: Monitor,
}

impl ExecHandle {
    /// Its id.
    pub fn exec_id(&self) -> &str {
        &self.exec_id
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the monitor dies, or hangs up for a moment, before it could tell.
    pub async fn wait(self) -> Result<ExecExit, Error> {
        self.ended.await.map_err(|_| Error::Gone {
            name: self.monitor.name(),
            what: "wait for a command",
        })
    }
}
