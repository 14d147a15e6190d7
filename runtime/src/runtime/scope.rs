//! The monitors' scope under systemd. It comes with its first monitor and goes with its last one.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::spawner::{self, Birth, Spawner};
use crate::systemd::{self, Systemd};

/// A scope that is just going keeps its name for a moment.
const TRIES: usize = 40;
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct Scope {
    systemd: Arc<Systemd>,
    unit: String,
    slice: String,
    dir: PathBuf,
    /// One at a time makes it.
    turn: Mutex<()>,
}

impl Scope {
    pub(super) fn new(systemd: Arc<Systemd>, unit: String, slice: String, dir: PathBuf) -> Self {
        Self {
            systemd,
            unit,
            slice,
            dir,
            turn: Mutex::new(()),
        }
    }

    /// Starts a program in the scope, which is made around it where it is missing.
    pub(super) async fn spawn(
        &self,
        spawner: &Spawner,
        exe: &Arc<OwnedFd>,
        name: &'static CStr,
        stdin: OwnedFd,
    ) -> io::Result<(i32, OwnedFd)> {
        let again = stdin.try_clone()?;
        match spawner.spawn(exe, name, stdin, Birth::Inside).await {
            Err(e) if is_gone(&e) => {}
            other => return other,
        }
        let _turn = self.turn.lock().await;
        let stdin = again.try_clone()?;
        match spawner.spawn(exe, name, again, Birth::Inside).await {
            Err(e) if is_gone(&e) => {}
            other => return other,
        }
        let (pid, pidfd) = spawner.spawn(exe, name, stdin, Birth::Outside).await?;
        match self.make(pid).await {
            Ok(()) => Ok((pid, pidfd)),
            Err(e) => {
                crate::blocking::run("end a monitor", move || spawner::kill(&pidfd)).await;
                Err(e)
            }
        }
    }

    async fn make(&self, pid: i32) -> io::Result<()> {
        let scope = systemd::Scope {
            unit: &self.unit,
            slice: &self.slice,
            description: "Berth's container monitors",
            pid,
        };
        let mut tries = 0;
        loop {
            let Err(error) = self.systemd.start_scope(&scope).await else {
                return Ok(());
            };
            // It is there all the same: another daemon has made it, or it has outlived its unit.
            let file = self.dir.join("cgroup.procs");
            let entered = crate::blocking::run("join the monitors' scope", move || {
                spawner::write(&file, &pid.to_string())
            });
            tries += 1;
            if entered.await.is_ok() {
                return Ok(());
            }
            if tries >= TRIES || !matches!(error, systemd::Error::Refused { .. }) {
                return Err(io::Error::other(error));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}
