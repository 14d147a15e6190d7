//! Cgroups on the machine: parents, limits of a living container, the end of one, counters.
//!
//! What is to be written where is decided in `spec`; here it is done, or undone. All of it blocks: call it on
//! a blocking thread. Why not the cgroups-rs crate: docs/adr/0004-own-cgroup-files.md.

mod count;
mod end;
mod make;
mod named;
mod update;
mod usage;

use std::io;
use std::path::PathBuf;

pub use count::memory_in_use;
pub use end::{kill, processes, remove, remove_parents, remove_shims};
pub use make::{cpuset, ensure_shims, join, make_parents};
pub use named::end_named;
pub use update::apply_writes;
pub use usage::UsageReader;

use crate::model::{Kind, Kinded};

/// Why a cgroup could not be handled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory could not be made.
    #[error("cgroup {path} could not be made: is the hierarchy mounted read-only?")]
    Make {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its name is taken by one of the kernel's files.
    #[error("{0} is a file of the kernel and cannot be a cgroup: choose another cgroup parent")]
    NotACgroup(PathBuf),
    /// A file could not be read.
    #[error("{path} could not be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file says something else than it should.
    #[error("{path} could not be understood: it says {text:?}")]
    Nonsense {
        /// The file.
        path: PathBuf,
        /// The beginning of what it says.
        text: String,
    },
    /// A value was refused.
    #[error("{value:?} could not be written to {path}: the kernel refused it{}{}", refused(path, source), if *restored { "; the old limits are in force again" } else { "" })]
    Write {
        /// The file.
        path: PathBuf,
        /// The value.
        value: String,
        /// The values written before are back.
        restored: bool,
        /// What the kernel said.
        source: io::Error,
    },
    /// Not what it should be.
    #[error("{0} is not a cgroup below a root: it is left alone")]
    NotInner(PathBuf),
    /// Processes that do not die.
    #[error(
        "processes {pids:?} in cgroup {path} do not die: they are probably blocked in the kernel, see their stack in /proc"
    )]
    Survivors {
        /// The directory.
        path: PathBuf,
        /// Some of them.
        pids: Vec<i32>,
    },
    /// A directory could not be removed.
    #[error("cgroup {path} could not be removed")]
    Remove {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Why a value is none for its file, where that is the request's fault; empty where it is not.
fn refused(path: &std::path::Path, source: &io::Error) -> String {
    let why = shim_protocol::limits::refused(&path.to_string_lossy(), source);
    why.map_or_else(String::new, |why| format!(" ({why})"))
}

/// Whether an error says that a cgroup is not there. It may never have been: a parent whose name is that of
/// one of the kernel's files (`/cgroup.procs`, `/tasks/pod1`), or longer than a path can be.
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || matches!(
            error.raw_os_error(),
            Some(libc::ENODEV | libc::ENOTDIR | libc::ENAMETOOLONG)
        )
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Write { path, source, .. } if !refused(path, source).is_empty() => {
                Kind::InvalidArgument
            }
            Self::NotACgroup(_) => Kind::InvalidArgument,
            // v1: more is in use than a memory limit allows, and nothing of it can be reclaimed.
            Self::Write { source, .. } if source.raw_os_error() == Some(libc::EBUSY) => {
                Kind::FailedPrecondition
            }
            _ => Kind::Unknown,
        }
    }
}

#[cfg(test)]
mod tests;
