//! Why a request cannot become a container.

use crate::model::{Kind, Kinded};

/// Why a request cannot become a container.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A capability that Berth itself does not have.
    #[error("capability {0} cannot be given: the runtime's own bounding set does not have it")]
    MissingCapability(String),
    /// An ambient capability outside the container's set.
    #[error("ambient capability {0} is not among the container's capabilities: add it to them too")]
    AmbientCapability(String),
    /// Nothing to execute.
    #[error("there is nothing to execute: neither the request nor the image has a command")]
    NoCommand,
    /// The first word is empty, or a word cannot be passed to execve.
    #[error("command word {index} is not usable: {why}")]
    Command {
        /// Which word.
        index: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// An environment variable that cannot be.
    #[error("environment variable {name:?} is not usable: {why}")]
    Environment {
        /// Its name.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A working directory that cannot be.
    #[error("working directory {path:?} is not usable: {why}")]
    WorkingDir {
        /// The directory.
        path: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A mount that cannot be.
    #[error("mount on {path:?} is not possible: {why}")]
    Mount {
        /// Path in the container.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A device that cannot be.
    #[error("device {path:?} is not possible: {why}")]
    Device {
        /// Path in the container.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// A resource value that cannot be.
    #[error("resource {name} = {value:?} is not possible: {why}")]
    Resource {
        /// Which.
        name: String,
        /// The value.
        value: String,
        /// What is wrong.
        why: String,
    },
    /// A new memory limit below what is in use.
    #[error(
        "memory limit {limit} is below the {usage} bytes in use: it would kill the container; free memory first"
    )]
    MemoryInUse {
        /// The limit asked for, bytes.
        limit: i64,
        /// Bytes in use.
        usage: u64,
    },
    /// A cgroup parent that does not fit the driver.
    #[error("cgroup parent {parent:?} does not fit the {driver} driver: {why}")]
    CgroupParent {
        /// As asked for.
        parent: String,
        /// Which driver.
        driver: &'static str,
        /// What is wrong.
        why: &'static str,
    },
    /// The namespaces contradict each other.
    #[error("{0}")]
    Namespace(&'static str),
    /// A user or group that cannot be resolved.
    #[error("{0}")]
    User(#[from] super::users::UserError),
    /// A signal that is none.
    #[error(
        "{0:?} is not a signal: a name such as SIGTERM or SIGRTMIN+3, or a number from 1 to 64, is wanted"
    )]
    Signal(String),
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::MemoryInUse { .. } | Self::MissingCapability(_) => Kind::FailedPrecondition,
            _ => Kind::InvalidArgument,
        }
    }
}
