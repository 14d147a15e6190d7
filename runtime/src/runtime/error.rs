//! Failures of monitors and workers.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use shim_protocol::monitor::{Failure, FailureKind};

use crate::model::{Kind, Kinded};

/// Why a call to a monitor or a worker failed. `name` is `container <id>` or `pod <id>`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something of the machine's.
    #[error("{name}: cannot {what}")]
    Io {
        /// Whose.
        name: String,
        /// What was being done.
        what: &'static str,
        /// Why it could not.
        source: io::Error,
    },
    /// A program that Berth needs.
    #[error("cannot use {}: is it installed, and is the kernel 5.12 or newer?", path.display())]
    Program {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The monitors' control group.
    #[error("cannot put monitors into the control group {}", path.display())]
    Cgroup {
        /// Its directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The monitor or worker refused or failed.
    #[error("{name}: {message}")]
    Refused {
        /// Whose.
        name: String,
        /// How it is to be treated.
        kind: FailureKind,
        /// In the words of the monitor or worker.
        message: String,
    },
    /// It did not answer.
    #[error("{name}: no answer to {what:?} within {} s; is the disk of its log or image hanging?", limit.as_secs())]
    Silent {
        /// Whose.
        name: String,
        /// What was asked.
        what: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// It has not answered for a while, and nothing more is asked of it just now.
    #[error(
        "{name}: its monitor does not answer, {what:?} is not asked of it; is the disk of its log hanging?"
    )]
    Hung {
        /// Whose.
        name: String,
        /// What was to be asked.
        what: &'static str,
    },
    /// It is not there any more.
    #[error("{name}: its monitor or worker ended before it answered to {what:?}")]
    Gone {
        /// Whose.
        name: String,
        /// What was asked.
        what: &'static str,
    },
    /// It said something that does not fit.
    #[error("{name}: the answer to {what:?} makes no sense; do the versions of the programs fit?")]
    Nonsense {
        /// Whose.
        name: String,
        /// What was asked.
        what: &'static str,
    },
}

impl Error {
    /// The words of a monitor or worker.
    pub(super) fn refused(name: &str, failure: Failure) -> Self {
        Self::Refused {
            name: name.to_owned(),
            kind: failure.kind(),
            message: failure.message,
        }
    }
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Refused {
                kind: FailureKind::State | FailureKind::Version,
                ..
            } => Kind::FailedPrecondition,
            Self::Refused {
                kind: FailureKind::Invalid,
                ..
            } => Kind::InvalidArgument,
            Self::Refused {
                kind: FailureKind::Timeout,
                ..
            } => Kind::DeadlineExceeded,
            Self::Refused {
                kind: FailureKind::Memory | FailureKind::Busy,
                ..
            } => Kind::ResourceExhausted,
            // Not DeadlineExceeded: that would count as a failed probe.
            Self::Silent { .. } | Self::Hung { .. } => Kind::Unavailable,
            _ => Kind::Unknown,
        }
    }
}

/// Why there is no connection to a monitor.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// There is no monitor; if it ended by itself it has left an exit record.
    #[error("the container has no monitor")]
    Gone,
    /// It is there but does not answer.
    #[error("the monitor of container {0} does not answer; is the disk of its log hanging?")]
    Hung(String),
    /// Anything else.
    #[error(transparent)]
    Other(#[from] Error),
}

impl Kinded for ConnectError {
    fn kind(&self) -> Kind {
        match self {
            Self::Gone => Kind::FailedPrecondition,
            Self::Hung(_) => Kind::Unavailable,
            Self::Other(error) => error.kind(),
        }
    }
}
