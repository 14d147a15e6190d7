//! Messages and framing between the daemon, its monitors (`berth-shim`) and its workers (`berth-worker`).
//!
//! Three conversations share one framing ([`frame`]):
//!
//! * **daemon ⇄ monitor** ([`monitor`]): the monitor's fd 0 is the first connection, made at
//!   launch; later daemons connect to the listening socket that came with [`monitor::Create`].
//!   Requests carry an id and may overlap; replies come in any order; events come unasked.
//! * **monitor → worker** and **daemon → worker** ([`worker`]): the worker's fd 0 is a socket;
//!   one request, its replies, end of file.
//!
//! Every message is protobuf, so that a field can be added without breaking a peer that is one
//! version behind. Descriptors travel by `SCM_RIGHTS`, and each message says what they are in its
//! `fds` list, one [`Fd`] role for each descriptor, in order.

pub mod frame;
pub mod limits;
pub mod memory;
pub mod monitor;
pub mod record;
pub mod worker;

/// Encoding and decoding of every message.
pub use prost::Message;

/// The protocol version this build speaks.
pub const VERSION: u32 = 1;

/// The oldest version this build still understands (N-1 once there are two).
pub const OLDEST: u32 = 1;

/// File name of a monitor's listening socket in its state directory.
pub const SOCKET_NAME: &str = "shim.sock";

/// File name of the exit record that a monitor leaves in its state directory.
pub const EXIT_RECORD_NAME: &str = "exit.json";

/// What a descriptor that came with a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Fd {
    /// Never sent.
    Unspecified = 0,
    /// Detached read-only mount of the worker's executable (run with `execveat`).
    WorkerExe = 1,
    /// Listening unix socket on which a monitor accepts daemons.
    Listener = 2,
    /// The monitor's state directory (`O_PATH` or `O_RDONLY`): exit record, socket.
    StateDir = 3,
    /// Detached mount of the container's root file system.
    Rootfs = 4,
    /// Regular or memory file with the seccomp program (`struct sock_filter[]`, native endian).
    Seccomp = 5,
    /// Standard input.
    Stdin = 6,
    /// Standard output.
    Stdout = 7,
    /// Standard error.
    Stderr = 8,
    /// Read end of the pipe on which a created init waits: one byte is "go", end of file is "exit".
    StartPipe = 9,
    /// Write end of the close-on-exec pipe on which init or an exec'd process reports why `execve` failed.
    ErrorPipe = 10,
    /// A pidfd: of the init to enter (in), or of the process that was made (out).
    Pidfd = 11,
    /// Master side of the container's terminal (out).
    Console = 12,
    /// Detached read-only mount of the pause executable.
    PauseExe = 13,
    /// The directory that holds the container's log file; the log is opened relative to it.
    LogDir = 14,
    /// A pidfd of the monitor itself (out, with the answer to a hello).
    MonitorPidfd = 15,
}
