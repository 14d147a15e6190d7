//! One process that was started beside the container's own.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use shim_protocol::Fd;
use shim_protocol::frame::take_fd;
use shim_protocol::monitor::{self, Event, ExecExit, ExecStarted, Failure, FailureKind, Outcome};
use shim_protocol::worker;

use crate::cgroup;
use crate::oom::Oom;
use crate::pipes::{self, ErrorPipe, Verdict};
use crate::proc::has_executed;
use crate::server::{Caller, Letter, Outbox};
use crate::start;
use crate::worker::{Job, Made, failure, peek, reap};

/// How long a worker may take where the exec has no time limit of its own.
const WORKER_LIMIT: Duration = Duration::from_secs(60);

/// A command that may take longer than this holds its place as one does that has no limit.
pub(crate) const LONG: Duration = Duration::from_secs(600);

/// How often a tree that does not die at once is killed again, and for how long its end is awaited.
const KILL_AGAIN: Duration = Duration::from_millis(10);
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// How often a cgroup whose last tasks are on their way out is removed again, and for how long.
const REMOVE_AGAIN: Duration = Duration::from_millis(2);
const REMOVE_LIMIT: Duration = Duration::from_secs(1);

/// The exit status of a process that SIGKILL has ended.
const KILLED: i32 = 137;

/// Where it stands.
enum Step {
    /// A worker is making it.
    Making(Job),
    /// It exists; execve(2) has not been seen to succeed.
    Starting(Made),
    /// It ends without having executed or told why.
    Lost(Pid),
    /// It runs.
    Running(Pid),
    /// It has ended with this code.
    Ended(i32),
}

/// Whether a command may hold its place for long.
pub(crate) fn is_long(request: &monitor::Exec) -> bool {
    request.timeout_ms == 0 || Duration::from_millis(request.timeout_ms) > LONG
}

/// An exec'd process.
pub(crate) struct Exec {
    /// Distinguishes it while the monitor lives.
    pub(crate) key: u32,
    /// It may hold its place for long.
    pub(crate) is_long: bool,
    id: String,
    /// Who waits for it to start.
    caller: Option<Caller>,
    /// The connection with which it ends.
    attendant: Option<u32>,
    step: Step,
    /// The worker, from its answer until it is reaped.
    maker: Option<Pid>,
    errors: ErrorPipe,
    own_cgroup: Vec<String>,
    /// It has a seccomp filter.
    filtered: bool,
    /// The container's out-of-memory kills when it began.
    kills: u64,
    /// When it must have been executed.
    begin_by: Option<Instant>,
    /// It was not, and was killed for that.
    overdue: bool,
    /// When its time is up.
    time_up: Option<Instant>,
    timed_out: bool,
    /// Its start was refused: its end is nobody's business.
    silent: bool,
    /// It was killed: nothing of its tree may outlive it. When to look again, when to give up.
    killing: Option<(Instant, Instant)>,
    /// It is over, but for its cgroup. When to look again, when to give up.
    removing: Option<(Instant, Instant)>,
}

impl Exec {
    /// Starts a worker that makes the process, which enters the namespaces of `init`.
    pub(crate) fn start(
        key: u32,
        caller: Caller,
        request: monitor::Exec,
        init: &Made,
        mut roles: Vec<i32>,
        mut fds: Vec<OwnedFd>,
    ) -> Result<Self, Failure> {
        let invalid = |what: &str| failure(FailureKind::Invalid, what);
        let is_long = is_long(&request);
        let mut call = request
            .exec
            .ok_or_else(|| invalid("the exec request has no process"))?;
        let exe = take_fd(&mut roles, &mut fds, Fd::WorkerExe)
            .ok_or_else(|| invalid("the exec request has no worker executable"))?;
        let terminal = call.process.as_ref().is_some_and(|p| p.terminal);
        call.init = init.started.pid;
        let own_cgroup = call.own_cgroup.clone();
        let seccomp = take_fd(&mut roles, &mut fds, Fd::Seccomp);
        let made = || -> std::io::Result<(Job, ErrorPipe)> {
            let (errors, error_write) = ErrorPipe::new()?;
            let mut send = vec![
                (Fd::Pidfd, init.pidfd.as_fd()),
                (Fd::ErrorPipe, error_write.as_fd()),
            ];
            send.extend(seccomp.as_ref().map(|fd| (Fd::Seccomp, fd.as_fd())));
            let null = pipes::null()?;
            let stdio = [Fd::Stdin, Fd::Stdout, Fd::Stderr]
                .map(|role| (role, take_fd(&mut roles, &mut fds, role)));
            if !terminal {
                for (role, fd) in &stdio {
                    send.push((*role, fd.as_ref().unwrap_or(&null).as_fd()));
                }
            }
            let job = Job::start(exe.as_fd(), worker::Call::Exec(call), &send, WORKER_LIMIT)?;
            Ok((job, errors))
        }();
        let (job, errors) =
            made.map_err(|e| failure(FailureKind::Internal, format!("exec failed: {e}")))?;
        let limit = (request.timeout_ms > 0).then(|| Duration::from_millis(request.timeout_ms));
        Ok(Self {
            key,
            is_long,
            id: request.exec_id,
            caller: Some(caller),
            attendant: request.attended.then_some(caller.conn()),
            step: Step::Making(job),
            maker: None,
            errors,
            own_cgroup,
            filtered: seccomp.is_some(),
            kills: 0,
            begin_by: None,
            overdue: false,
            // A limit beyond the clock's range is none.
            time_up: limit.and_then(|l| Instant::now().checked_add(l)),
            timed_out: false,
            silent: false,
            killing: None,
            removing: None,
        })
    }

    /// The daemon calls it so.
    pub(crate) fn is(&self, id: &str) -> bool {
        !self.silent && self.id == id
    }

    /// A connection has ended: what was to end with it is killed, however far it is.
    pub(crate) fn hung_up(&mut self, conn: u32) {
        if self.attendant == Some(conn) {
            self.attendant = None;
            self.kill();
        }
    }

    /// What to poll: the worker's answer or the error pipe.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.step {
            Step::Making(job) => job.fd(),
            Step::Starting(_) => Some(self.errors.fd()),
            Step::Lost(_) | Step::Running(_) | Step::Ended(_) => None,
        }
    }

    /// The worker has not answered yet, so that a child may be this exec's without our knowing.
    pub(crate) fn is_making(&self) -> bool {
        matches!(self.step, Step::Making(_))
    }

    /// Reaps the worker once it has ended.
    pub(crate) fn reap_maker(&mut self) {
        if self.maker.and_then(reap).is_some() {
            self.maker = None;
        }
    }

    /// The worker, if it has answered and is not reaped.
    pub(crate) fn maker(&self) -> Option<Pid> {
        self.maker
    }

    /// The child to wait for.
    pub(crate) fn awaits(&self) -> Option<Pid> {
        match &self.step {
            Step::Making(job) => Some(job.pid()),
            Step::Starting(made) => Some(made.pid),
            Step::Lost(pid) | Step::Running(pid) => Some(*pid),
            Step::Ended(_) => None,
        }
    }

    /// When [`Exec::on_time`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        if let Some((again, _)) = self.removing.or(self.killing) {
            return Some(again);
        }
        let job = match &self.step {
            Step::Making(job) => Some(job.deadline),
            // It was in time, even if what is left of it takes longer.
            Step::Ended(_) => return None,
            Step::Starting(_) => self.begin_by,
            Step::Lost(_) | Step::Running(_) => None,
        };
        [job, self.time_up].into_iter().flatten().min()
    }

    /// The polled descriptor is readable.
    pub(crate) fn on_readable(&mut self, out: &mut Outbox) {
        match &mut self.step {
            Step::Making(job) => {
                if let Some(answer) = job.on_readable() {
                    self.made(answer, out);
                }
            }
            Step::Starting(_) => {
                if let Some(verdict) = self.errors.read() {
                    self.judge(verdict, out);
                }
            }
            Step::Lost(_) | Step::Running(_) | Step::Ended(_) => {}
        }
    }

    fn made(&mut self, answer: Result<Made, Failure>, out: &mut Outbox) {
        if let Step::Making(job) = &self.step {
            self.maker = Some(job.pid());
        }
        match answer {
            Ok(made) => {
                self.step = Step::Starting(made);
                self.begin_by = Some(Instant::now() + start::LIMIT);
            }
            Err(failure) => {
                self.refuse(failure, out);
                self.step = Step::Ended(128);
                // A worker that dies after it has cloned leaves a command that nobody knows of.
                self.kill();
            }
        }
    }

    /// The error pipe has spoken: the caller is told.
    fn judge(&mut self, verdict: Verdict, out: &mut Outbox) {
        let Step::Starting(made) = &self.step else {
            return;
        };
        let pid = made.pid;
        let Step::Starting(made) = std::mem::replace(&mut self.step, Step::Running(pid)) else {
            return;
        };
        match verdict {
            Verdict::Executed if !has_executed(pid) => {
                // Silence may be a process that ends without having been able to tell why.
                self.step = Step::Lost(pid);
                self.kill();
            }
            Verdict::Executed => {
                if let Some(caller) = self.caller.take() {
                    let started = ExecStarted {
                        pid: pid.as_raw_nonzero().get(),
                    };
                    let console = made.console.map(|fd| (Fd::Console, fd));
                    let fds = console.into_iter().chain([(Fd::Pidfd, made.pidfd)]);
                    let started = Outcome::ExecStarted(started);
                    out.push(Letter::Reply(caller, started, fds.collect()));
                }
            }
            Verdict::Failed(text) => self.refuse(failure(FailureKind::Start, text), out),
        }
    }

    /// Answers that it did not start. Nothing more is said of it afterwards.
    fn refuse(&mut self, mut failure: Failure, out: &mut Outbox) {
        if self.timed_out {
            failure.kind = FailureKind::Timeout as i32;
        }
        if let Some(caller) = self.caller.take() {
            out.push(Letter::Reply(caller, Outcome::Failure(failure), Vec::new()));
        }
        self.silent = true;
    }

    /// The container's out-of-memory kills before it began.
    pub(crate) fn after(mut self, kills: u64) -> Self {
        self.kills = kills;
        self
    }

    /// Whether the end with this code means that there was no memory for it to begin.
    pub(crate) fn is_starved(&self, code: i32, oom: &Oom) -> bool {
        let beginning = !matches!(self.step, Step::Running(_) | Step::Ended(_));
        beginning && code == KILLED && oom.kills_now() > self.kills
    }

    /// Looks whether a process that begins was executed, while it can still be looked at: before it is reaped.
    /// False when it has not ended.
    pub(crate) fn look(&mut self) -> bool {
        let Step::Starting(made) = &self.step else {
            return true;
        };
        let pid = made.pid;
        if peek(pid) != Ok(true) {
            return false;
        }
        if self.errors.read_last() == Verdict::Executed && !has_executed(pid) {
            self.step = Step::Lost(pid);
        }
        true
    }

    /// The awaited child has ended. `starved` says that there was no memory for it.
    pub(crate) fn on_end(&mut self, code: i32, starved: Option<Failure>, out: &mut Outbox) {
        match &mut self.step {
            Step::Making(job) => {
                let answer = job.on_end(code);
                self.made(answer.map_err(|told| starved.unwrap_or(told)), out);
                self.maker = None;
            }
            Step::Starting(_) => {
                let verdict = self.errors.read_last();
                self.judge(verdict, out);
                self.step = Step::Ended(code);
            }
            Step::Lost(_) => {
                let told = starved.unwrap_or_else(|| {
                    match (self.overdue, start::refused(code).filter(|_| self.filtered)) {
                        (true, _) => failure(FailureKind::Start, start::overdue()),
                        (false, Some(why)) => failure(FailureKind::Start, why),
                        (false, None) => {
                            let text = format!("it ended before it was executed (status {code})");
                            failure(FailureKind::State, text)
                        }
                    }
                });
                self.refuse(told, out);
                self.step = Step::Ended(code);
            }
            Step::Running(_) => self.step = Step::Ended(code),
            Step::Ended(_) => {}
        }
    }

    /// Kills the process and everything in its cgroup.
    pub(crate) fn kill(&mut self) {
        match &self.step {
            Step::Making(job) => job.kill(),
            Step::Starting(Made { pid, .. }) | Step::Lost(pid) | Step::Running(pid) => {
                let _ = kill_process(*pid, Signal::KILL);
            }
            Step::Ended(_) => {}
        }
        cgroup::kill(&self.own_cgroup);
        let now = Instant::now();
        let give_up = self.killing.map_or(now + KILL_LIMIT, |k| k.1);
        let pause = if now < give_up {
            KILL_AGAIN
        } else {
            KILL_LIMIT
        };
        self.killing = Some((now + pause, give_up));
    }

    /// A deadline has passed.
    pub(crate) fn on_time(&mut self, now: Instant, out: &mut Outbox) {
        if self.removing.is_some() || self.deadline().is_none_or(|at| now < at) {
            return;
        }
        let ended = matches!(self.step, Step::Ended(_));
        self.timed_out |= !ended && self.time_up.is_some_and(|at| now >= at);
        let begins = matches!(self.step, Step::Starting(_));
        self.overdue |= begins && self.begin_by.is_some_and(|at| now >= at);
        self.kill();
        if !ended && self.killing.is_some_and(|(_, give_up)| now >= give_up) {
            self.give_up(out);
        }
    }

    /// It does not die (an uninterruptible wait). Whoever waits for it is told as if it had; it stays known
    /// until it is reaped.
    fn give_up(&mut self, out: &mut Outbox) {
        if self.caller.is_some() {
            let text = "it was killed before it ran, and does not end";
            self.refuse(failure(FailureKind::Internal, text), out);
        }
        self.tell(KILLED, out);
    }

    /// Tells of its end, once.
    fn tell(&mut self, code: i32, out: &mut Outbox) {
        if !std::mem::replace(&mut self.silent, true) {
            let exec_id = std::mem::take(&mut self.id);
            let exit = ExecExit {
                exec_id,
                code,
                timed_out: self.timed_out,
            };
            out.push(Letter::Event(Event::ExecExited(exit)));
        }
    }

    /// Once it is over: cleans up, tells, and is true when nothing is left to do.
    pub(crate) fn finish(&mut self, out: &mut Outbox) -> bool {
        let Step::Ended(code) = self.step else {
            return false;
        };
        if self.maker.is_some() {
            return false;
        }
        let now = Instant::now();
        if let Some((_, give_up)) = self.killing
            && !cgroup::kill(&self.own_cgroup)
            && now < give_up
        {
            self.killing = Some((now + KILL_AGAIN, give_up));
            return false;
        }
        let give_up = self.removing.map_or(now + REMOVE_LIMIT, |r| r.1);
        if !self.remove_cgroup() && now < give_up {
            self.removing = Some((now + REMOVE_AGAIN, give_up));
            return false;
        }
        self.tell(code, out);
        true
    }

    /// False if a moment later it may work.
    fn remove_cgroup(&self) -> bool {
        let emptying = |dir: &&String| {
            if cgroup::remove(dir).is_ok() {
                return false;
            }
            // What the command left running goes on, as a part of the container.
            cgroup::empty_into_parent(dir);
            cgroup::remove(dir).is_err() && cgroup::is_emptying(dir)
        };
        self.own_cgroup.iter().filter(emptying).count() == 0
    }
}
