//! A container's init between the engine's work and `execve`.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use shim_protocol::frame;

use crate::error::{Context, Result};
use crate::process::Plan;
use crate::terminal::Terminal;
use crate::tree::Tree;
use crate::{report, sys};

/// Exit status of a process that never got to be what was asked for.
pub(crate) const NOT_EXECUTED: i32 = 128;

/// What init needs; made in the worker, used in the process that the engine has made.
#[derive(Debug)]
pub(crate) struct Init {
    pub(crate) plan: Plan,
    pub(crate) start: OwnedFd,
    pub(crate) error: OwnedFd,
    pub(crate) proc: OwnedFd,
    pub(crate) console: Option<Console>,
    /// What it makes in its root; gone once it is made.
    pub(crate) tree: RefCell<Option<Tree>>,
    report: Option<OwnedFd>,
    chdir_again: Cell<bool>,
}

/// A wanted terminal, and the socket on which its master side goes to the worker.
#[derive(Debug)]
pub(crate) struct Console {
    pub(crate) socket: OwnedFd,
    pub(crate) rows: u32,
    pub(crate) columns: u32,
}

impl Init {
    /// The descriptors are close-on-exec and stay open until [`Init::run`].
    pub(crate) fn new(plan: Plan, start: OwnedFd, error: OwnedFd, proc: OwnedFd) -> Self {
        Self {
            plan,
            start,
            error,
            proc,
            console: None,
            tree: RefCell::new(None),
            report: None,
            chdir_again: Cell::new(false),
        }
    }

    /// Says failures of [`Init::prepare`] there.
    pub(crate) fn with_report(mut self, report: OwnedFd) -> Self {
        self.report = Some(report);
        self
    }

    /// Inside the container, as root with all capabilities, before "created": what can fail here fails
    /// the create.
    pub(crate) fn prepare(&self) -> Result<()> {
        let result = self.prepared();
        if let (Err(e), Some(report)) = (&result, &self.report) {
            report::say(report, e);
        }
        result
    }

    fn prepared(&self) -> Result<()> {
        // Until execute() sets it for good: a monitor that dies in between takes this process along.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .context(|| "set the parent death signal".to_owned())?;
        let shares = self.tree.take().map(Tree::build).transpose()?;
        match &self.console {
            Some(console) => self.terminal(console)?,
            None => self.plan.own_standard()?,
        }
        self.chdir_again.set(self.plan.enter_cwd(true)?);
        if let Some(shares) = shares {
            shares.share(self.proc.as_fd())?;
        }
        self.plan.label(self.proc.as_fd())
    }

    fn terminal(&self, console: &Console) -> Result<()> {
        let terminal = Terminal::open(self.plan.uid, console.rows, console.columns)?;
        terminal.console()?;
        frame::send(&console.socket, b"", &[terminal.master.as_fd()])
            .context(|| "send the terminal's master side".to_owned())?;
        terminal.take()
    }

    /// Waits for the start byte and becomes the container's process.
    pub(crate) fn run(&self) -> ! {
        let (start, error) = match self.close_others() {
            Ok(kept) => kept,
            Err(e) => fail(self.error.as_fd(), &e.to_string()),
        };
        let mut byte = [0];
        loop {
            match rustix::io::read(&start, &mut byte) {
                Ok(1) => break,
                Err(rustix::io::Errno::INTR) => {}
                // The monitor is gone or has changed its mind: nobody is there to be told.
                _ => sys::exit_now(NOT_EXECUTED),
            }
        }
        let failure = self.plan.execute(self.chdir_again.get(), error.as_fd());
        fail(error.as_fd(), &failure.to_string())
    }

    /// Keeps only the standard streams, the start pipe and the error pipe: a created container may wait
    /// for a long time, and what it has open is the host's.
    fn close_others(&self) -> Result<(OwnedFd, OwnedFd)> {
        let away = |fd: &OwnedFd| {
            rustix::io::fcntl_dupfd_cloexec(fd, 16).context(|| "duplicate a descriptor".to_owned())
        };
        let (start, error) = (away(&self.start)?, away(&self.error)?);
        let place = |fd: &OwnedFd, at| {
            sys::duplicate_at(fd.as_fd(), at).context(|| "duplicate a descriptor".to_owned())
        };
        let kept = (place(&start, 3)?, place(&error, 4)?);
        sys::close_from(5).context(|| "close descriptors".to_owned())?;
        // They are closed; closing their numbers again would be an error.
        std::mem::forget((start, error));
        Ok(kept)
    }
}

/// Tells the monitor why, and ends.
pub(crate) fn fail(error: BorrowedFd<'_>, message: &str) -> ! {
    let _nobody = rustix::io::write(error, message.as_bytes());
    sys::exit_now(NOT_EXECUTED)
}
