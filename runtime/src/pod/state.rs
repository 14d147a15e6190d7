//! The state of a pod: one value, which [`apply`] alone changes.
//!
//! ```text
//!            Made            Lost               Released
//!   Making --------> Ready --------> NotReady ----------> Released
//!     |    \                         ^   |                   |
//!     |     `--------- Kept ---------'   | Removed           | Removed
//!     | Removed                          v                   |
//!     `------------------------------> Removed <-------------'
//! ```
//!
//! A stage is never entered twice.

use std::sync::atomic::Ordering;

use super::Pod;
use crate::events::{Event, Events};
use crate::model::PodState;

/// How far a pod has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Its parts are being acquired: found at start, it is undone.
    Making,
    /// Its isolation is intact.
    Ready,
    /// It is not, and not all of its parts are given back.
    NotReady,
    /// Nothing is left of it but its files and its record.
    Released,
    /// It is forgotten.
    Removed,
}

impl Stage {
    /// What the CRI calls it.
    pub fn state(self) -> PodState {
        match self {
            Self::Ready => PodState::Ready,
            Self::Making | Self::NotReady | Self::Released | Self::Removed => PodState::NotReady,
        }
    }
}

/// Something that has happened to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// All that it needs is there.
    Made,
    /// Not all of it could be made, and not all of that could be undone.
    Kept,
    /// Its pause process is gone, or is about to be.
    Lost,
    /// All that it held is given back.
    Released,
    /// It is forgotten.
    Removed,
}

/// What the CRI hears of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It can be used.
    Ready,
    /// It cannot be used any more.
    NotReady,
    /// It was removed.
    Removed,
}

/// The stage after a change, and what is heard of it. What cannot happen at a stage, or comes too late, changes nothing.
pub(super) fn apply(stage: Stage, change: Change) -> (Stage, Option<Heard>) {
    match (stage, change) {
        (Stage::Making, Change::Made) => (Stage::Ready, Some(Heard::Ready)),
        (Stage::Making, Change::Kept) => (Stage::NotReady, None),
        (Stage::Ready, Change::Lost) => (Stage::NotReady, Some(Heard::NotReady)),
        (Stage::NotReady, Change::Released) => (Stage::Released, None),
        (Stage::Making, Change::Removed) => (Stage::Removed, None),
        (Stage::NotReady | Stage::Released, Change::Removed) => {
            (Stage::Removed, Some(Heard::Removed))
        }
        (stage, _) => (stage, None),
    }
}

impl Pod {
    pub(super) fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    pub(super) fn is_ready(&self) -> bool {
        self.stage() == Stage::Ready
    }

    /// Notes what has happened, and gives the stage before it.
    pub(super) fn change(&self, events: &Events, change: Change) -> Stage {
        self.change_and(events, change, || {})
    }

    /// The same, with a step between the change and its event.
    pub(super) fn change_and(&self, events: &Events, change: Change, step: impl FnOnce()) -> Stage {
        let mut before = Stage::Making;
        // Whoever changes it next waits: events leave in the order of the changes.
        self.stage.send_modify(|stage| {
            let (next, heard) = apply(*stage, change);
            before = std::mem::replace(stage, next);
            if next > Stage::Ready {
                self.closing.store(true, Ordering::Relaxed);
            }
            step();
            if let Some(what) = heard {
                events.send(self.event(what));
            }
        });
        before
    }

    fn event(&self, what: Heard) -> Event {
        let id = self.id.clone();
        match what {
            Heard::Ready => Event::PodReady(id),
            Heard::NotReady => Event::PodNotReady(id),
            Heard::Removed => Event::PodRemoved(id),
        }
    }
}

#[cfg(test)]
mod tests;
