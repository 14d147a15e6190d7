//! System call filters: profiles in the OCI form, and Berth's own, as programs for the kernel
//! (docs/adr/0003-seccomp-emitter.md).
//!
//! A profile is read ([`profile`](self)), its conditional parts are decided for one container, and the rest is
//! emitted as classic BPF (seccomp(2)). Compiling takes well under a millisecond and its result depends on
//! the profile, the capabilities and the kernel alone, so [`Compiler`] keeps it.

mod arch;
mod builtin;
mod emit;
mod profile;
mod rules;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use crate::model::{Kind, Kinded, SeccompProfile};
use crate::sys::fs::read_file_limited;

pub use arch::Arch;
pub use profile::Profile;

/// Bytes of a profile file that are worth reading. Real ones have some 15 KiB.
const MAX_PROFILE: u64 = 1 << 20;

/// How many programs are kept; a node has a handful of profiles.
const KEPT: usize = 256;

/// Why a profile cannot become a filter.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not JSON, or not of the form.
    #[error("the seccomp profile is not valid: {0}")]
    Syntax(#[source] crate::json::Error),
    /// An action that is not known.
    #[error("seccomp action {0:?} is not known")]
    Action(String),
    /// An action that needs somebody who listens.
    #[error(
        "seccomp action SCMP_ACT_NOTIFY and listenerPath are not supported: Berth has no agent to answer; remove them from the profile"
    )]
    Notify,
    /// A comparison that is not known.
    #[error("seccomp comparison {0:?} is not known")]
    Operator(String),
    /// An architecture that is not known.
    #[error("seccomp architecture {0:?} is not known")]
    Architecture(String),
    /// A flag that is not known.
    #[error("seccomp flag {0:?} is not supported")]
    Flag(String),
    /// A capability that is not known.
    #[error("the seccomp profile names {0:?}, which is not a capability")]
    Capability(String),
    /// A kernel version that is none.
    #[error("the seccomp profile names minKernel {0:?}, which is not a version such as 4.8")]
    MinKernel(String),
    /// A system call has six arguments.
    #[error(
        "the seccomp profile compares argument {0} of {1:?}, but system calls have arguments 0 to 5"
    )]
    Argument(u32, String),
    /// The file of a profile cannot be read.
    #[error("the seccomp profile {file:?} cannot be read")]
    File {
        /// Which.
        file: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The kernel has room for 12 bits.
    #[error("errno {0} in the seccomp profile is above 4095")]
    Errno(u32),
    /// More than the kernel takes.
    #[error(
        "the seccomp profile needs {0} instructions, and the kernel takes 4096: use fewer argument comparisons"
    )]
    TooLong(usize),
    /// The machine is of a kind that nobody wrote the table for.
    #[error("seccomp filters are not supported on this processor architecture")]
    Machine,
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Notify | Self::Flag(_) | Self::Machine => Kind::Unimplemented,
            _ => Kind::InvalidArgument,
        }
    }
}

/// Where the profile comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Berth's own table.
    RuntimeDefault,
    /// A profile in the OCI or Docker form.
    Json(&'a [u8]),
}

/// A program: `struct sock_filter[]` in native byte order.
pub type Program = Arc<[u8]>;

/// Compiles profiles for this machine and keeps the programs.
#[derive(Debug)]
pub struct Compiler {
    kernel: (u32, u32),
    arch: Arch,
    kept: Mutex<HashMap<[u8; 32], Program>>,
}

impl Compiler {
    /// For a kernel release and the architecture that we run on.
    ///
    /// # Errors
    /// [`Error::Machine`].
    pub fn new(kernel: (u32, u32)) -> Result<Self, Error> {
        let arch = Arch::native().ok_or(Error::Machine)?;
        Ok(Self {
            kernel,
            arch,
            kept: Mutex::default(),
        })
    }

    /// The filter that a request asks for; `read` fetches a profile by its absolute file name.
    ///
    /// # Errors
    /// A profile that cannot be read or is not valid.
    pub fn program(
        &self,
        profile: &SeccompProfile,
        capabilities: u64,
    ) -> Result<Option<Program>, Error> {
        match profile {
            SeccompProfile::Unconfined => Ok(None),
            SeccompProfile::RuntimeDefault => {
                self.compile(Source::RuntimeDefault, capabilities).map(Some)
            }
            SeccompProfile::Localhost(file) => {
                let bytes = read_file_limited(Path::new(file), MAX_PROFILE);
                let bytes = bytes.map_err(|source| Error::File {
                    file: file.clone(),
                    source,
                })?;
                self.compile(Source::Json(&bytes), capabilities).map(Some)
            }
        }
    }

    /// The filter for a container whose bounding set is `capabilities` (bit N is capability N).
    ///
    /// # Errors
    /// A profile that is not valid.
    pub fn compile(&self, source: Source<'_>, capabilities: u64) -> Result<Program, Error> {
        let key = key(source, capabilities);
        // Held for the look-up only; two of the same kind at once compile twice and agree.
        let known = self
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .cloned();
        if let Some(program) = known {
            return Ok(program);
        }
        let profile = match source {
            Source::RuntimeDefault => builtin::profile(),
            Source::Json(bytes) => Profile::parse(bytes)?,
        };
        let program = compile(&profile, capabilities, self.arch, self.kernel)?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(key, program.clone());
        Ok(program)
    }
}

fn key(source: Source<'_>, capabilities: u64) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(capabilities.to_le_bytes());
    match source {
        Source::RuntimeDefault => hash.update([0]),
        Source::Json(bytes) => {
            hash.update([1]);
            hash.update(bytes);
        }
    }
    hash.finalize().into()
}

/// Compiles without keeping.
///
/// # Errors
/// A profile that is not valid.
pub fn compile(
    profile: &Profile,
    capabilities: u64,
    arch: Arch,
    kernel: (u32, u32),
) -> Result<Program, Error> {
    let filter = rules::decide(profile, capabilities, arch, kernel)?;
    let instructions = emit::emit(&filter)?;
    Ok(instructions
        .iter()
        .flat_map(emit::Instruction::bytes)
        .collect::<Vec<u8>>()
        .into())
}

#[cfg(test)]
mod tests;
