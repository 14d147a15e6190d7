//! The daemon's half of the monitors and workers: starting them, talking to them, hearing from them.
//!
//! [`Launcher`] starts processes; [`Monitor`] is the handle of one container's monitor, which one task
//! serves; what monitors say unasked arrives as [`MonitorEvent`]s in the channel given at open.

mod error;
mod hung;
mod launcher;
mod link;
mod monitor;
pub mod pause;
mod pod;
mod record;
mod scope;
mod spawner;

pub use error::{ConnectError, Error};
pub use launcher::{ContainerLaunch, Launcher, LauncherConfig, Shims};
pub use monitor::{ExecHandle, ExecStdio, Monitor, MonitorEvent, MonitorEventKind};
pub use pod::{PauseHandle, PodWorker};
pub use record::{ExitRecord, RecordError, read_exit};

#[cfg(test)]
mod tests;
