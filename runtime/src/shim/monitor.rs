//! The handle of one container's monitor.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use shim_protocol::Fd;
use shim_protocol::monitor::{self, Call, Empty, ExecExit, Exit, KillExec, Outcome};
use shim_protocol::worker::Started;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::link::{Answer, Ask, Link};
use super::{Error, hung};
use crate::id::ContainerId;
use crate::metrics::Gauge;
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

/// What all clones of a handle share with its task.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) id: ContainerId,
    /// The monitor's, where the kernel gave one.
    pub(super) pidfd: Option<OwnedFd>,
    /// The monitor's pid and start time, by which a later daemon finds one that does not answer.
    process: Option<(i32, u64)>,
    /// The container's, once it exists.
    init: OnceLock<OwnedFd>,
    worker: Arc<OwnedFd>,
    voice: Mutex<Voice>,
    pub(super) left_behind: Gauge,
}

/// Whether a monitor speaks.
#[derive(Debug, Default)]
struct Voice {
    /// What has come from it so far.
    heard: u64,
    /// When a call was given up and nothing had come since it was made.
    silent: Option<Instant>,
}

impl Shared {
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
    pub(super) pid: i32,
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) init: Option<OwnedFd>,
    pub(super) worker: Arc<OwnedFd>,
    pub(super) events: mpsc::UnboundedSender<MonitorEvent>,
    pub(super) left_behind: Gauge,
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
            process: process::start_time(opening.pid)
                .ok()
                .map(|time| (opening.pid, time)),
            init: opening.init.map_or_else(OnceLock::new, OnceLock::from),
            worker: opening.worker,
            voice: Mutex::default(),
            left_behind: opening.left_behind,
        });
        let mut link = Link {
            shared: shared.clone(),
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
        if let Some(Ok(init)) = shared.init.get().map(OwnedFd::try_clone) {
            link.watch(init);
        }
        tokio::spawn(link.run());
        Self { shared, asks }
    }

    /// Whose monitor it is.
    pub fn id(&self) -> &ContainerId {
        &self.shared.id
    }

    /// The monitor's pid and start time.
    pub fn process(&self) -> Option<(i32, u64)> {
        self.shared.process
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
        let heard = {
            let voice = self.shared.voice();
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
                let mut voice = self.shared.voice();
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
        let limit = match exec.timeout_ms {
            0 => EXEC,
            limit => EXEC.min(Duration::from_millis(limit) + TELLING),
        };
        let answer = self
            .ask(Call::Exec(exec), fds, Some(exit), (what, limit))
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
        let (mut console, mut pidfd) = (None, None);
        for (role, fd) in fds {
            match role {
                Fd::Console => console = Some(fd),
                Fd::Pidfd => pidfd = Some(fd),
                _ => {}
            }
        }
        Ok(ExecHandle {
            pid: started.pid,
            console,
            pidfd,
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

    /// Ends the container, whatever it is doing, and then the monitor: one that does not answer is killed. One that
    /// has ended is fine.
    ///
    /// # Errors
    /// When not even that ends it: it is left behind, counted, and reaped later.
    pub async fn destroy(&self) -> Result<(), Error> {
        let about = ("destroy", DESTROY);
        match self.ask_done(Call::Destroy(Empty {}), about).await {
            Err(Error::Gone { .. }) => Ok(()),
            Err(Error::Silent { .. } | Error::Hung { .. }) if self.kill().await => Ok(()),
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

    /// Kills the monitor, and with it the container, and waits until it is dead. False when it does not die: it is
    /// left behind, counted, and reaped later.
    pub async fn kill(&self) -> bool {
        match self.shared.pidfd.as_ref().map(OwnedFd::try_clone) {
            Some(Ok(pidfd)) => hung::kill(pidfd, &self.shared.id, &self.shared.left_behind).await,
            // Then a closed connection is all that is known of its end, as everywhere.
            _ => true,
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
    /// Readable when it has ended.
    pidfd: Option<OwnedFd>,
    exec_id: String,
    ended: oneshot::Receiver<ExecExit>,
    monitor: Monitor,
}

impl ExecHandle {
    /// Its id.
    pub fn exec_id(&self) -> &str {
        &self.exec_id
    }

    /// Waits for its end: `limit` at most and a little more, where it has one.
    ///
    /// # Errors
    /// When the monitor dies, or hangs up for a moment, before it could tell; when it does not tell although the
    /// process has ended, or its time is up.
    pub async fn wait(mut self, limit: Option<Duration>) -> Result<ExecExit, Error> {
        let what = "wait for a command";
        let (name, began) = (self.monitor.name(), Instant::now());
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
