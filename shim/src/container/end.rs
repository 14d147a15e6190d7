//! The end of a container: its exit, what is left of it, its record.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use shim_protocol::monitor::{Event, Exit, FailureKind};

use super::{Container, Phase, done, fail};
use crate::cgroup;
use crate::exec::Exec;
use crate::exit;
use crate::log::{Progress, Stream};
use crate::pipes::{ErrorPipe, Verdict};
use crate::server::{Caller, Letter, Outbox};
use crate::start;
use crate::worker::{failure, reap};

/// How long what is left in the cgroup may take to die. A process in an uninterruptible wait takes
/// longer, and must not keep the exit from being reported.
const KILL_LIMIT: Duration = Duration::from_secs(10);
const KILL_AGAIN: Duration = Duration::from_millis(5);

/// How long a foreign process may hold the output pipes after the last of ours is dead.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// How often a record that could not be written is tried again.
const RECORD_AGAIN: Duration = Duration::from_secs(1);

/// Reads of a stream that is given up: more than the largest pipe holds.
const LAST_READS: usize = 16;

/// The exit code of a container whose command could not be executed.
const START_ERROR: i32 = 128;

/// Exit status of a process that SIGKILL has ended.
const KILLED: i32 = 137;

/// A container whose init is dead.
pub(super) struct Ending {
    exit: Exit,
    /// Who waits for its start, and of which kind that failure is.
    callers: Vec<Caller>,
    kind: FailureKind,
    again: Instant,
    give_up: Instant,
    /// Everything is dead; only output is awaited.
    draining: bool,
    finished: bool,
}

impl Ending {
    /// When to look again.
    pub(super) fn deadline(&self) -> Instant {
        self.again
    }

    /// Nobody is left who could write.
    pub(super) fn is_draining(&self) -> bool {
        self.draining
    }

    /// Those who waited have been told.
    pub(super) fn is_told(&self) -> bool {
        self.finished
    }

    /// One more waits for a start that fails.
    pub(super) fn join(&mut self, caller: Caller) {
        self.callers.push(caller);
    }
}

/// Why a container could not be started that has ended so.
pub(super) fn not_started(exit: &Exit) -> String {
    match exit.start_error.is_empty() {
        true => format!(
            "the container ended before its command was executed (status {})",
            exit.code
        ),
        false => exit.start_error.clone(),
    }
}

impl Container {
    /// The init has ended but is not reaped yet.
    pub(super) fn on_init_end(&mut self, pid: Pid, out: &mut Outbox) {
        // A process that was executed and ended at once leaves both to be seen together.
        if let (Phase::Starting(..), Some(errors)) = (&self.phase, &mut self.errors) {
            let verdict = errors.read_last();
            self.on_verdict(verdict, out);
        } else if let Some(Verdict::Failed(text)) = self.errors.as_mut().map(ErrorPipe::read_last) {
            self.start_error = text;
        }
        self.oom.refresh();
        let code = reap(pid).unwrap_or(255);
        self.oom.latch(code == 137);
        let kind = self.judge_start(code);
        let exit = Exit {
            code: if self.start_error.is_empty() {
                code
            } else {
                START_ERROR
            },
            finished_at: crate::time::now(),
            oom: self.oom.kills() > 0,
            log_dropped: 0,
            start_error: std::mem::take(&mut self.start_error),
            started_at: self.started_at,
        };
        let callers = match &mut self.phase {
            Phase::Starting(callers, _) => std::mem::take(callers),
            _ => Vec::new(),
        };
        let now = Instant::now();
        self.kill_at = None;
        self.start_pipe = None;
        self.stdin = None;
        self.execs.iter_mut().for_each(Exec::kill);
        if !self.destroyers.is_empty() {
            self.plan.kill_cgroup.extend_from_slice(&self.plan.leaves);
        }
        self.phase = Phase::Ending(Ending {
            exit,
            callers,
            kind,
            again: now,
            give_up: now + KILL_LIMIT,
            draining: false,
            finished: false,
        });
        self.end_step(now, out);
    }

    /// Of which kind the failure of a start is, under way or to come, that ended with this code; says why, where that is
    /// known.
    fn judge_start(&mut self, code: i32) -> FailureKind {
        if !self.start_error.is_empty() {
            return FailureKind::Start;
        }
        let begins = matches!(self.phase, Phase::Created | Phase::Starting(..));
        if !begins || !self.destroyers.is_empty() {
            return FailureKind::State;
        }
        if let Some(text) = start::refused(code).filter(|_| self.plan.filtered) {
            self.start_error = text.to_owned();
            return FailureKind::Start;
        }
        let starting = matches!(self.phase, Phase::Starting(..));
        if starting && code == KILLED && self.oom.kills() > 0 {
            let failure = self.plan.too_low("the container");
            self.start_error = failure.message;
            return FailureKind::Memory;
        }
        // Somebody else has killed it, who need not say why.
        FailureKind::State
    }

    /// Goes on with the end as far as it can be done now.
    pub(super) fn end_step(&mut self, now: Instant, out: &mut Outbox) {
        let Phase::Ending(ending) = &mut self.phase else {
            return;
        };
        if ending.finished {
            if now >= ending.again {
                self.record(now);
            }
            return;
        }
        if !ending.draining {
            if now < ending.again {
                return;
            }
            let dead = cgroup::kill(&self.plan.kill_cgroup)
                && self.execs.is_empty()
                && self.maker.is_none();
            let left = dead && self.plan.remove_leaves();
            if !left && now < ending.give_up {
                ending.again = now + KILL_AGAIN;
                return;
            }
            ending.draining = true;
            ending.give_up = now + DRAIN_LIMIT;
            ending.again = ending.give_up;
            // A terminal that was closed says so again at once, and that is its end now.
            self.streams.iter_mut().for_each(Stream::resume);
        }
        if !self.streams.is_empty() && now < ending.give_up {
            return;
        }
        for mut stream in std::mem::take(&mut self.streams) {
            self.read_out(&mut stream);
        }
        self.finish(now, out);
    }

    /// Reads what a pipe holds, whoever may still write to it.
    fn read_out(&mut self, stream: &mut Stream) {
        for _ in 0..LAST_READS {
            match self.log.pump(stream) {
                Progress::Some => {}
                Progress::Empty | Progress::Closed => break,
                Progress::End => return,
            }
        }
        self.log.end(stream);
    }

    /// Everything is dead and all output is in the log: the exit becomes visible.
    fn finish(&mut self, now: Instant, out: &mut Outbox) {
        let Phase::Ending(ending) = &mut self.phase else {
            return;
        };
        self.log.tell();
        ending.finished = true;
        ending.exit.log_dropped = self.log.dropped();
        let exit = ending.exit.clone();
        let (callers, kind) = (std::mem::take(&mut ending.callers), ending.kind);
        self.plan.remove_leaves();
        let destroyed = !self.destroyers.is_empty();
        if destroyed && exit.started_at == 0 && exit.start_error.is_empty() {
            // Never started and not wanted any more: there is nothing to tell.
            self.phase = Phase::Over;
        } else {
            self.exit = Some(exit.clone());
            self.record(now);
            out.push(Letter::Event(Event::Exited(exit.clone())));
        }
        let text = not_started(&exit);
        out.extend(
            callers
                .into_iter()
                .map(|c| fail(c, failure(kind, text.as_str()))),
        );
        out.extend(self.destroyers.drain(..).map(done));
    }

    /// Writes the exit record. While that fails the monitor stays, so that the exit is not lost; but not once its
    /// directory is gone: the container was removed then, and nobody looks for its record.
    fn record(&mut self, now: Instant) {
        let Some(exit) = &self.exit else { return };
        let written = exit::write(self.plan.state_dir.as_fd(), &self.plan.boot_id, exit);
        let again = written.is_err_and(|e| e.kind() != io::ErrorKind::NotFound);
        match &mut self.phase {
            Phase::Ending(ending) if again => ending.again = now + RECORD_AGAIN,
            _ => self.phase = Phase::Over,
        }
    }

    /// Kills the container, whatever it is doing; the answer comes when nothing is left of it.
    pub(crate) fn destroy(&mut self, caller: Caller, out: &mut Outbox) {
        match &self.phase {
            Phase::Over => return out.push(done(caller)),
            Phase::Ending(ending) if ending.finished => return out.push(done(caller)),
            Phase::Creating(job, _) => job.kill(),
            _ => self.kill_init(),
        }
        self.destroyers.push(caller);
    }

    /// The exit has been told, and what can be done has been done.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// A daemon has been sent the exit, so that a record which cannot be written is not missed.
    pub(crate) fn told(&mut self) {
        if matches!(&self.phase, Phase::Ending(ending) if ending.finished) {
            self.phase = Phase::Over;
        }
    }

    /// Removes what marks a living monitor.
    pub(crate) fn remove_socket(&self) {
        exit::remove_socket(self.plan.state_dir.as_fd());
    }
}
