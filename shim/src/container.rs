//! The container: made by a worker, started by one byte, watched until its end.

mod create;
mod end;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::process::{Pid, Signal, kill_process};
use shim_protocol::monitor::{
    Empty, Event, Exit, Failure, FailureKind, Oom as OomEvent, Outcome, Running, State,
};

use crate::exec::{self, Exec};
use crate::log::{Log, Progress, Stream};
use crate::oom::Oom;
use crate::pipes::{ErrorPipe, Verdict};
use crate::proc::has_executed;
use crate::server::{Caller, Letter, Outbox};
use crate::start;
use crate::worker::{Job, Made, failure, peek, reap};
pub(crate) use create::create;
use end::Ending;

/// A process that could not be executed has this long to end by itself.
const START_FAILURE_LIMIT: Duration = Duration::from_secs(1);

/// Most execs at once; a probe storm meets an error before the monitor meets its descriptor limit.
const MAX_EXECS: usize = 128;

/// Most of them that may stay for as long as they like: the other places are kept for those that are soon over, as
/// probes are.
const MAX_LONG_EXECS: usize = 96;

/// How far the container is.
enum Phase {
    /// A worker is making it.
    Creating(Job, Caller),
    /// Its init waits for the byte.
    Created,
    /// The byte is sent; execve(2) has not been seen to succeed. Who waits for that, and until when.
    Starting(Vec<Caller>, Option<Instant>),
    /// It runs.
    Running,
    /// Its init is dead; what is left of it is being cleared away.
    Ending(Ending),
    /// It is over.
    Over,
}

/// What became readable.
#[derive(Clone, Copy)]
pub(crate) enum Ready {
    /// The worker that makes the container has answered.
    Worker,
    /// The error pipe.
    Errors,
    /// Output.
    Output(usize),
    /// The kernel told of an OOM.
    Oom,
    /// An exec, by its key.
    Exec(u32),
}

/// One container and its log.
pub(crate) struct Container {
    phase: Phase,
    /// The worker that made the init, until it is reaped: it stands in the container's v1 cgroups.
    maker: Option<Pid>,
    init: Option<Made>,
    log: Log,
    streams: Vec<Stream>,
    /// Kept open, so that the container does not read end of file.
    stdin: Option<OwnedFd>,
    start_pipe: Option<OwnedFd>,
    errors: Option<ErrorPipe>,
    start_error: String,
    started_at: i64,
    kill_at: Option<Instant>,
    oom: Oom,
    execs: Vec<Exec>,
    next_exec: u32,
    destroyers: Vec<Caller>,
    /// What is kept of the request.
    plan: create::Plan,
    exit: Option<Exit>,
}

impl Container {
    /// What to poll.
    pub(crate) fn poll<'a>(&'a self, mut add: impl FnMut(Ready, BorrowedFd<'a>, PollFlags)) {
        match &self.phase {
            Phase::Creating(job, _) => {
                if let Some(fd) = job.fd() {
                    add(Ready::Worker, fd, PollFlags::IN);
                }
            }
            Phase::Starting(..) => {
                if let Some(errors) = &self.errors {
                    add(Ready::Errors, errors.fd(), PollFlags::IN);
                }
            }
            _ => {}
        }
        for exec in &self.execs {
            if let Some(fd) = exec.fd() {
                add(Ready::Exec(exec.key), fd, PollFlags::IN);
            }
        }
        for (index, stream) in self.streams.iter().enumerate() {
            if let Some(fd) = stream.fd() {
                add(Ready::Output(index), fd, PollFlags::IN);
            }
        }
        if let Some((fd, flags)) = self.oom.fd() {
            add(Ready::Oom, fd, flags);
        }
    }

    /// When [`Container::on_time`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let phase = match &self.phase {
            Phase::Creating(job, _) => Some(job.deadline),
            Phase::Starting(_, limit) => *limit,
            Phase::Ending(ending) => Some(ending.deadline()),
            _ => None,
        };
        let execs = self.execs.iter().filter_map(Exec::deadline).min();
        let streams = self.streams.iter().filter_map(Stream::deadline).min();
        [
            phase,
            execs,
            streams,
            self.kill_at,
            self.oom.deadline(),
            self.log.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// A polled descriptor is ready. Indices of output are those of the last [`Container::poll`],
    /// so ready outputs must be given from the last to the first.
    pub(crate) fn on_ready(&mut self, ready: Ready, out: &mut Outbox) {
        match ready {
            Ready::Worker => {
                if let Phase::Creating(job, _) = &mut self.phase
                    && let Some(answer) = job.on_readable()
                {
                    self.on_created(answer, out);
                }
            }
            Ready::Errors => {
                if let Some(verdict) = self.errors.as_mut().and_then(ErrorPipe::read) {
                    self.on_verdict(verdict, out);
                }
            }
            Ready::Output(index) => self.on_output(index),
            Ready::Oom => {
                if self.oom.on_event() {
                    self.tell_oom(out);
                }
            }
            Ready::Exec(key) => {
                if let Some(exec) = self.execs.iter_mut().find(|e| e.key == key) {
                    exec.on_readable(out);
                }
            }
        }
    }

    fn on_output(&mut self, index: usize) {
        let Some(stream) = self.streams.get_mut(index) else {
            return;
        };
        match self.log.pump(stream) {
            Progress::Some | Progress::Empty => {}
            Progress::Closed if !matches!(&self.phase, Phase::Ending(e) if e.is_draining()) => {
                stream.pause();
            }
            Progress::Closed => {
                self.log.end(stream);
                self.streams.swap_remove(index);
            }
            Progress::End => {
                self.streams.swap_remove(index);
            }
        }
    }

    fn tell_oom(&self, out: &mut Outbox) {
        if matches!(self.phase, Phase::Running) {
            let kills = self.oom.kills();
            out.push(Letter::Event(Event::Oom(OomEvent { kills })));
        }
    }

    /// Deadlines, and steps that wait for nothing but time.
    pub(crate) fn on_time(&mut self, out: &mut Outbox) {
        let now = Instant::now();
        if let Phase::Creating(job, _) = &mut self.phase
            && now >= job.deadline
        {
            job.kill();
            job.deadline = now + Duration::from_secs(1);
        }
        if matches!(&self.phase, Phase::Starting(_, Some(limit)) if now >= *limit) {
            self.on_start_limit(out);
        }
        if self.kill_at.is_some_and(|at| now >= at) {
            self.kill_at = None;
            self.kill_init();
        }
        if self.oom.deadline().is_some_and(|at| now >= at) && self.oom.refresh() {
            self.tell_oom(out);
        }
        if self.log.deadline().is_some_and(|at| now >= at) {
            self.log.tell();
        }
        let resumes = |stream: &&mut Stream| stream.deadline().is_some_and(|at| now >= at);
        self.streams
            .iter_mut()
            .filter(resumes)
            .for_each(Stream::resume);
        self.execs
            .iter_mut()
            .for_each(|exec| exec.on_time(now, out));
        self.execs.retain_mut(|exec| !exec.finish(out));
        self.end_step(now, out);
    }

    /// Gives back memory that only work needs.
    pub(crate) fn release(&mut self) {
        self.log.release(self.streams.iter_mut());
    }

    /// Some child has ended.
    pub(crate) fn on_child(&mut self, out: &mut Outbox) {
        loop {
            self.reap_known(out);
            // While a worker works, an unknown child may be one whose pid it is about to tell.
            if self.is_making() {
                return;
            }
            match crate::sys::ended_child() {
                None => return,
                Some(pid) if self.awaited().any(|known| known == pid) => {}
                Some(pid) => {
                    reap(pid);
                }
            }
        }
    }

    fn is_making(&self) -> bool {
        matches!(self.phase, Phase::Creating(..)) || self.execs.iter().any(Exec::is_making)
    }

    fn awaited(&self) -> impl Iterator<Item = Pid> {
        let worker = match &self.phase {
            Phase::Creating(job, _) => Some(job.pid()),
            _ => None,
        };
        let init = self.living_init().map(|init| init.pid);
        self.execs
            .iter()
            .flat_map(|exec| exec.awaits().into_iter().chain(exec.maker()))
            .chain(worker)
            .chain(self.maker)
            .chain(init)
    }

    fn reap_known(&mut self, out: &mut Outbox) {
        for exec in &mut self.execs {
            exec.reap_maker();
            if !exec.look() {
                continue;
            }
            if let Some(code) = exec.awaits().and_then(reap) {
                let starved = exec.is_starved(code, &self.oom);
                let starved = starved.then(|| self.plan.too_low("the command"));
                exec.on_end(code, starved, out);
            }
        }
        if let Phase::Creating(job, _) = &mut self.phase
            && let Some(code) = reap(job.pid())
        {
            let answer = job.on_end(code);
            self.on_created(answer, out);
            self.maker = None;
        }
        if self.maker.and_then(reap).is_some() {
            self.maker = None;
        }
        if let Some(pid) = self.living_init().map(|init| init.pid)
            && peek(pid) == Ok(true)
        {
            self.on_init_end(pid, out);
        }
    }

    /// The init, until its end has been seen.
    fn living_init(&self) -> Option<&Made> {
        let over = matches!(self.phase, Phase::Ending(_) | Phase::Over);
        self.init.as_ref().filter(|_| !over)
    }

    fn kill_init(&self) {
        if let Some(init) = self.living_init() {
            let _ = kill_process(init.pid, Signal::KILL);
        }
    }

    /// Lets the init go on to execve(2).
    pub(crate) fn start(&mut self, caller: Caller, out: &mut Outbox) {
        match &mut self.phase {
            Phase::Created if self.destroyers.is_empty() => {}
            // A daemon that has come back asks again.
            Phase::Starting(callers, _) if self.destroyers.is_empty() => {
                return callers.push(caller);
            }
            // Its end is not told yet, and with it goes why it cannot be started.
            Phase::Ending(ending) if self.started_at == 0 && !ending.is_told() => {
                return ending.join(caller);
            }
            _ => {
                let never_ran = self.exit.as_ref().filter(|exit| exit.started_at == 0);
                let why = never_ran.map_or_else(
                    || "the container is not waiting to be started".to_owned(),
                    end::not_started,
                );
                return out.push(refusal(caller, &why));
            }
        }
        if let Some(pipe) = &self.start_pipe {
            // A dead init does not take it; its end is told by its pidfd.
            let _ = rustix::io::write(pipe, b"s");
        }
        self.phase = Phase::Starting(vec![caller], Some(Instant::now() + start::LIMIT));
    }

    /// Nothing has come of the start.
    fn on_start_limit(&mut self, out: &mut Outbox) {
        if let Phase::Starting(_, limit) = &mut self.phase {
            *limit = None;
        }
        if self
            .init
            .as_ref()
            .is_some_and(|init| has_executed(init.pid))
        {
            // Somebody holds the error pipe who should not.
            return self.on_verdict(Verdict::Executed, out);
        }
        self.on_verdict(Verdict::Failed(start::overdue()), out);
        self.kill_at = Some(Instant::now());
    }

    /// execve(2) has succeeded or failed.
    fn on_verdict(&mut self, verdict: Verdict, out: &mut Outbox) {
        self.errors = None;
        self.start_pipe = None;
        let executed = |init: &Made| has_executed(init.pid);
        match verdict {
            // Silence may be a process that ends without having been able to tell why.
            Verdict::Executed if !self.init.as_ref().is_some_and(executed) => {
                self.kill_at = Some(Instant::now() + START_FAILURE_LIMIT);
            }
            Verdict::Executed => {
                self.started_at = crate::time::now();
                if let Phase::Starting(callers, _) = &mut self.phase {
                    let running = Running {
                        started_at: self.started_at,
                    };
                    let reply = |c| Letter::Reply(c, Outcome::Running(running), Vec::new());
                    out.extend(callers.drain(..).map(reply));
                    self.phase = Phase::Running;
                }
            }
            Verdict::Failed(text) => {
                // The caller is told after the exit is recorded.
                self.start_error = text;
                self.kill_at = Some(Instant::now() + START_FAILURE_LIMIT);
            }
        }
    }

    /// Starts a process beside the container's own.
    pub(crate) fn exec(
        &mut self,
        caller: Caller,
        request: shim_protocol::monitor::Exec,
        roles: Vec<i32>,
        fds: Vec<OwnedFd>,
        out: &mut Outbox,
    ) {
        let init = match (&self.phase, &self.init) {
            (Phase::Running, Some(init)) if self.destroyers.is_empty() => init,
            _ => return out.push(refusal(caller, "the container is not running")),
        };
        if let Some(full) = self.full(&request) {
            return out.push(fail(caller, full));
        }
        if self.execs.iter().any(|exec| exec.is(&request.exec_id)) {
            return out.push(refusal(caller, "the exec id is in use"));
        }
        self.next_exec += 1;
        let kills = self.oom.kills_now();
        match Exec::start(self.next_exec, caller, request, init, roles, fds) {
            Ok(exec) => self.execs.push(exec.after(kills)),
            Err(failure) => {
                out.push(Letter::Reply(caller, Outcome::Failure(failure), Vec::new()));
            }
        }
    }

    /// Why one more command cannot be taken; `None`: it can.
    fn full(&self, request: &shim_protocol::monitor::Exec) -> Option<Failure> {
        if self.execs.len() >= MAX_EXECS {
            let text = format!(
                "{MAX_EXECS} commands run in the container at once, which is the limit: wait until some are over"
            );
            return Some(failure(FailureKind::Busy, text));
        }
        let long = self.execs.iter().filter(|exec| exec.is_long).count();
        if exec::is_long(request) && long >= MAX_LONG_EXECS {
            let text = format!(
                "{MAX_LONG_EXECS} commands without a time limit of at most {} s run in the container at once, which is \
                 the limit: give this one such a limit, or wait until some are over",
                exec::LONG.as_secs()
            );
            return Some(failure(FailureKind::Busy, text));
        }
        None
    }

    /// Kills an exec'd process and its tree; one that is over already is fine.
    pub(crate) fn kill_exec(&mut self, caller: Caller, id: &str, out: &mut Outbox) {
        self.execs
            .iter_mut()
            .filter(|exec| exec.is(id))
            .for_each(Exec::kill);
        out.push(done(caller));
    }

    /// A daemon is gone, and with it all who waited for a command that it had asked for.
    pub(crate) fn hung_up(&mut self, conn: u32) {
        self.execs.iter_mut().for_each(|exec| exec.hung_up(conn));
    }

    /// Opens the log anew, in the directory that came along.
    pub(crate) fn reopen_log(&mut self, caller: Caller, dir: Option<OwnedFd>, out: &mut Outbox) {
        if self.exit.is_some() {
            return out.push(refusal(caller, "the container is over"));
        }
        let outcome = match self.log.reopen(dir) {
            Ok(()) => Outcome::Done(Empty {}),
            Err(e) => Outcome::Failure(failure(
                FailureKind::Internal,
                format!(
                    "the log {:?} cannot be opened anew: {e}",
                    self.plan.log_name
                ),
            )),
        };
        out.push(Letter::Reply(caller, outcome, Vec::new()));
    }

    /// The container as it is now.
    pub(crate) fn state(&self) -> State {
        State {
            init: self.init.as_ref().map(|init| init.started.clone()),
            started_at: self.started_at,
            exit: self.exit.clone(),
            oom_kills: self.oom.kills(),
            log_dropped: self.log.dropped(),
            starting: matches!(self.phase, Phase::Starting(..)),
            ..State::default()
        }
    }

    /// The init's pidfd while it lives.
    pub(crate) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.living_init().map(|init| init.pidfd.as_fd())
    }
}

/// Answers that there is nothing to say.
pub(crate) fn done(caller: Caller) -> Letter {
    Letter::Reply(caller, Outcome::Done(Empty {}), Vec::new())
}

/// Answers that the request does not fit.
pub(crate) fn refusal(caller: Caller, why: &str) -> Letter {
    fail(caller, failure(FailureKind::State, why))
}

/// Answers with a failure.
pub(crate) fn fail(caller: Caller, failure: Failure) -> Letter {
    Letter::Reply(caller, Outcome::Failure(failure), Vec::new())
}
