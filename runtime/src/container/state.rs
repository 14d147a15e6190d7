//! The state of a container: one value, which [`apply`] alone changes.
//!
//! ```text
//!            Made           StartSent          Started
//!   Making --------> Created --------> Starting --------> Running
//!     |                |  \               |                  |
//!     |                |   `------------- | -- Started ----->|
//!     | Removed        | Ended            | Ended            | Ended
//!     v                `----------------> Exited <-----------'
//!   Removed <-------------- Removed --------'
//! ```
//!
//! A stage is never entered twice. Beside it stands whether the monitor answers: while it does not, nobody can tell
//! how far the container is by now, and the CRI is told UNKNOWN.
//!
//! The CRI hears of a start as soon as it is known, and before the end: a container that has run and is over by the time
//! that the monitor says so leaves both events, in this order.

use tokio::sync::watch;

use super::Container;
use crate::events::{Event, Events};
use crate::model::{ContainerExit, ContainerState, Process};
use crate::shim::Monitor;

/// How far a container has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Its parts are being acquired: found at start, it is undone.
    Making,
    /// It waits for its start.
    Created,
    /// Its start was sent.
    Starting,
    /// Its command was executed.
    Running,
    /// It is over.
    Exited,
    /// It is forgotten.
    Removed,
}

/// A container's state; `M` is the handle of its monitor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status<M> {
    /// How far it has come, as far as is known.
    pub stage: Stage,
    /// Its monitor does not answer, or its record cannot be read: it may be further than that.
    pub silent: bool,
    /// Nanoseconds since the Unix epoch; 0: not started.
    pub started_at: i64,
    /// How it ended.
    pub exit: Option<ContainerExit>,
    /// Its first process.
    pub init: Option<Process>,
    /// Where its monitor is found when it does not answer.
    pub found: Option<Process>,
    /// Its monitor, while there is one that answers.
    pub monitor: Option<M>,
    /// Its stop signal was sent: it is sent once.
    pub stop_sent: bool,
}

impl<M> Status<M> {
    /// One of which nothing is made yet.
    pub fn new() -> Self {
        Self {
            stage: Stage::Making,
            silent: false,
            started_at: 0,
            exit: None,
            init: None,
            found: None,
            monitor: None,
            stop_sent: false,
        }
    }

    /// The same without a handle.
    pub fn without_monitor<N>(self) -> Status<N> {
        Status {
            stage: self.stage,
            silent: self.silent,
            started_at: self.started_at,
            exit: self.exit,
            init: self.init,
            found: self.found,
            monitor: None,
            stop_sent: self.stop_sent,
        }
    }

    /// What the CRI calls it.
    pub fn state(&self) -> ContainerState {
        match self.stage {
            Stage::Exited | Stage::Removed => ContainerState::Exited,
            _ if self.silent => ContainerState::Unknown,
            Stage::Making => ContainerState::Unknown,
            Stage::Created | Stage::Starting => ContainerState::Created,
            Stage::Running => ContainerState::Running,
        }
    }

    /// It is over, and how is known.
    pub fn is_over(&self) -> bool {
        self.stage >= Stage::Exited
    }

    /// It was made, and is not over.
    fn lives(&self) -> bool {
        (Stage::Created..Stage::Exited).contains(&self.stage)
    }
}

/// Something that has happened to a container.
#[derive(Clone, Debug)]
pub(super) enum Change<M> {
    /// It exists, and waits for its start.
    Made {
        /// Its first process.
        init: Process,
    },
    /// It has a monitor that answers.
    Attached {
        /// Its handle.
        monitor: M,
        /// Its process.
        found: Option<Process>,
    },
    /// Its monitor does not answer.
    Silent,
    /// Its monitor has told how far it is.
    Told {
        /// Nanoseconds since the Unix epoch; 0: not started.
        started_at: i64,
        /// Its start was sent.
        starting: bool,
    },
    /// Its start is being sent.
    StartSent,
    /// Its command was executed.
    Started {
        /// Nanoseconds since the Unix epoch.
        at: i64,
    },
    /// Its stop signal is being sent.
    StopSent,
    /// It is over.
    Ended {
        /// How it ended.
        exit: ContainerExit,
        /// Nanoseconds since the Unix epoch; 0: it was not started, or nobody knows.
        started_at: i64,
    },
    /// It is forgotten.
    Removed,
}

/// What the CRI hears of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It was made.
    Created,
    /// It was started.
    Started,
    /// It is over.
    Stopped,
    /// It was removed.
    Removed,
}

/// The state after a change, and what is heard of it, in this order. What cannot happen in a state, or comes too late,
/// changes nothing.
pub(super) fn apply<M>(status: Status<M>, change: Change<M>) -> (Status<M>, Vec<Heard>) {
    let (mut next, mut heard) = (status, Vec::new());
    match change {
        Change::Made { init } if next.stage == Stage::Making => {
            next.stage = Stage::Created;
            next.init = Some(init);
            heard.push(Heard::Created);
        }
        Change::Attached { monitor, found } if !next.is_over() => {
            next.monitor = Some(monitor);
            next.found = found.or(next.found);
        }
        Change::Silent if next.lives() => next.silent = true,
        Change::Told {
            started_at,
            starting,
        } if next.lives() => {
            next.silent = false;
            if starting {
                next.stage = next.stage.max(Stage::Starting);
            }
            started(&mut next, started_at, &mut heard);
        }
        Change::StartSent if next.stage == Stage::Created => next.stage = Stage::Starting,
        Change::Started { at } if next.lives() => started(&mut next, at, &mut heard),
        Change::StopSent if next.lives() => next.stop_sent = true,
        Change::Ended { exit, started_at } if next.lives() => {
            started(&mut next, started_at, &mut heard);
            next.stage = Stage::Exited;
            next.silent = false;
            next.exit = Some(exit);
            next.monitor = None;
            heard.push(Heard::Stopped);
        }
        Change::Removed => {
            if next.stage == Stage::Exited {
                heard.push(Heard::Removed);
            }
            if matches!(next.stage, Stage::Making | Stage::Exited) {
                next.stage = Stage::Removed;
                next.monitor = None;
            }
        }
        _ => {}
    }
    (next, heard)
}

/// It has run from this time on; 0: it has not.
fn started<M>(next: &mut Status<M>, at: i64, heard: &mut Vec<Heard>) {
    if at == 0 {
        return;
    }
    if next.started_at == 0 {
        heard.push(Heard::Started);
    }
    next.started_at = at;
    next.stage = next.stage.max(Stage::Running);
}

impl Container {
    /// Not to be kept: nothing changes while it is looked at.
    pub(super) fn status(&self) -> watch::Ref<'_, Status<Monitor>> {
        self.status.borrow()
    }

    pub(super) fn state(&self) -> ContainerState {
        self.status().state()
    }

    pub(super) fn monitor(&self) -> Option<Monitor> {
        self.status().monitor.clone()
    }

    /// Notes what has happened, and gives the status before it.
    pub(super) fn change(&self, events: &Events, change: Change<Monitor>) -> Status<Monitor> {
        self.change_and(events, change, || {})
    }

    /// The same, with a step between the change and its events.
    pub(super) fn change_and(
        &self,
        events: &Events,
        change: Change<Monitor>,
        step: impl FnOnce(),
    ) -> Status<Monitor> {
        let mut before = None;
        // Whoever changes it next waits: events leave in the order of the changes.
        self.status.send_modify(|status| {
            let (next, heard) = apply(status.clone(), change);
            before = Some(std::mem::replace(status, next));
            step();
            for what in heard {
                events.send(self.event(what));
            }
        });
        before.unwrap_or_else(|| self.status().clone())
    }

    fn event(&self, what: Heard) -> Event {
        let (pod, id) = (self.pod.clone(), self.id.clone());
        match what {
            Heard::Created => Event::ContainerCreated(pod, id),
            Heard::Started => Event::ContainerStarted(pod, id),
            Heard::Stopped => Event::ContainerStopped(pod, id),
            Heard::Removed => Event::ContainerRemoved(pod, id),
        }
    }

    /// Takes a monitor up, and notes where it is found if it ever does not answer.
    pub(super) fn attach(&self, events: &Events, monitor: Monitor) {
        let found = monitor.process();
        let found = found.map(|(pid, start_time)| Process { pid, start_time });
        self.change(events, Change::Attached { monitor, found });
    }
}

#[cfg(test)]
mod tests;
