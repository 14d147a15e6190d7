//! Why a network operation failed.

use std::io;
use std::path::PathBuf;

use super::exec::PluginError;
use super::netlink::NetlinkError;
use crate::model::{Kind, Kinded};

/// A failed network operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no network to put pods into (yet).
    #[error("{0}")]
    NotReady(String),
    /// The request cannot be met as it is.
    #[error("{0}")]
    Invalid(String),
    /// A host port belongs to another pod.
    #[error("host port {port} is in use by pod {owner}: free it, or choose another")]
    HostPortTaken {
        /// Address, port and protocol.
        port: String,
        /// Who has it.
        owner: String,
    },
    /// All addresses of the built-in network are in use.
    #[error("no free address in {0}: remove pods, or choose a larger subnet for [network] builtin")]
    Exhausted(String),
    /// A plugin failed.
    #[error(transparent)]
    Plugin(#[from] Box<PluginError>),
    /// A plugin's answer cannot be used.
    #[error("result of network {network:?} cannot be used: {why}")]
    Result {
        /// Name of the network.
        network: String,
        /// What is wrong with it.
        why: String,
    },
    /// The kernel refused.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
    /// Somebody took away what the built-in network stands on while it was being used.
    #[error(
        "the bridge or the rules of the built-in network were taken away meanwhile: find out by whom"
    )]
    TakenAway(#[source] Box<Error>),
    /// A file operation failed.
    #[error("cannot {what} {path:?}")]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A kernel parameter could not be set.
    #[error("cannot set sysctl {key:?} to {value:?}")]
    Sysctl {
        /// The key as it was given.
        key: String,
        /// The value as it was given.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A step of a teardown failed; the others were done.
    #[error("{}", list(.0))]
    Several(Vec<Error>),
}

fn list(errors: &[Error]) -> String {
    let all: Vec<_> = errors.iter().map(|error| chain(error)).collect();
    all.join("; ")
}

/// An error with its causes, for where several are put into one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl Error {
    /// A failed file operation.
    pub(super) fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    /// Whether somebody else changed rules or links at the same time, so that another attempt may succeed.
    pub(super) fn is_disturbance(&self) -> bool {
        match self {
            Self::TakenAway(_) => true,
            Self::Kernel(error) => matches!(
                error.errno(),
                Some(libc::ENOENT | libc::ENODEV | libc::EEXIST | libc::EBUSY | libc::EINTR)
            ),
            Self::Several(errors) => errors.iter().any(Self::is_disturbance),
            _ => false,
        }
    }

    /// One error for what a teardown collected.
    pub(super) fn collect(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NotReady(_) | Self::TakenAway(_) => Kind::Unavailable,
            Self::Invalid(_) => Kind::InvalidArgument,
            Self::HostPortTaken { .. } => Kind::FailedPrecondition,
            Self::Exhausted(_) => Kind::ResourceExhausted,
            Self::Plugin(error) => error.kind(),
            Self::Sysctl { source, .. } if source.kind() == io::ErrorKind::InvalidInput => {
                Kind::InvalidArgument
            }
            Self::Several(errors) => errors.first().map_or(Kind::Unknown, Self::kind),
            Self::Result { .. } | Self::Kernel(_) | Self::File { .. } | Self::Sysctl { .. } => {
                Kind::Unknown
            }
        }
    }
}
