//! A terminal in which a program runs, and all that it wrote there.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::process::{Child, Command};

/// Wide enough for what is looked for.
const SIZE: Winsize = Winsize {
    ws_row: 40,
    ws_col: 200,
    ws_xpixel: 0,
    ws_ypixel: 0,
};

/// A program in a terminal. It is killed when this is dropped.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    text: Arc<Mutex<String>>,
}

impl Terminal {
    /// Starts a program with a new terminal as its standard input, output and error.
    ///
    /// # Errors
    /// When there is no terminal left, or the program does not start.
    pub fn run(mut command: Command) -> Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).context("opening a terminal")?;
        grantpt(&master)?;
        unlockpt(&master)?;
        tcsetwinsize(&master, SIZE)?;
        let name = ptsname(&master, Vec::new())?;
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave: OwnedFd = rustix::fs::open(&name, flags, Mode::empty())?;
        let child = command
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave)
            .kill_on_drop(true)
            .spawn()?;
        // It keeps its ends of the terminal, whose end nobody would see.
        drop(command);
        let text = Arc::new(Mutex::new(String::new()));
        let shared = text.clone();
        std::thread::spawn(move || read_all(master.into(), &shared));
        Ok(Self { child, text })
    }

    /// All that was written until now.
    #[must_use]
    pub fn text(&self) -> String {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        text.clone()
    }

    /// Waits until what was written fits, and gives it.
    ///
    /// # Errors
    /// When it does not in so much time, with what was written.
    pub async fn until(&self, patience: Duration, fits: impl Fn(&str) -> bool) -> Result<String> {
        let begun = Instant::now();
        loop {
            let text = self.text();
            if fits(&text) {
                return Ok(text);
            }
            if begun.elapsed() > patience {
                bail!("the terminal only shows {text:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits for the program's end.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        Ok(self.child.wait().await?)
    }
}

/// Until the program and all that it started are gone, which the kernel tells by an error.
fn read_all(mut master: File, text: &Mutex<String>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = master.read(&mut buffer) {
        let piece = String::from_utf8_lossy(&buffer[..length]);
        let mut text = text.lock().unwrap_or_else(PoisonError::into_inner);
        text.push_str(&piece);
    }
}
