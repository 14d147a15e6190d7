//! A container's init between the engine's work and `execve`.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use shim_protocol::frame;

use crate::credentials::Keep;
use crate::error::{Context, Error, Result, reason};
use crate::process::{self, Plan};
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
    ready: Option<OwnedFd>,
    chdir_again: Cell<bool>,
}

/// What stays open while init waits; the last two only until it is confined.
struct Kept {
    start: OwnedFd,
    error: OwnedFd,
    ready: OwnedFd,
    report: OwnedFd,
}

/// The worker's end of a pipe by which init says that it is confined: it takes a byte out of it. Reading is
/// what it has to be able to do anyway, where writing or closing may be refused by the filter in force.
#[derive(Debug)]
pub(crate) struct Ready(OwnedFd);

impl Ready {
    /// A full pipe: ours, and init's end.
    pub(crate) fn new() -> Result<(Self, OwnedFd)> {
        let full = || -> rustix::io::Result<_> {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            // One page is the least, and one byte takes it.
            fcntl_setpipe_size(&write, 1)?;
            rustix::io::write(&write, b"r")?;
            Ok((Self(write), read))
        };
        full().context(|| "make a pipe".to_owned())
    }

    /// Waits for init. False when it has ended before.
    pub(crate) fn wait(&self, init: i32) -> Result<bool> {
        let what = || "wait for the container's init".to_owned();
        let init = Pid::from_raw(init).ok_or_else(|| Error::internal("init has no pid"))?;
        let init = pidfd_open(init, PidfdFlags::empty()).context(what)?;
        let mut fds = [
            PollFd::new(&self.0, PollFlags::OUT),
            PollFd::new(&init, PollFlags::IN),
        ];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None)).context(what)?;
        Ok(fds[0].revents().contains(PollFlags::OUT))
    }
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
            ready: None,
            chdir_again: Cell::new(false),
        }
    }

    /// Says failures before "created" in `report`, and by `ready` that there were none.
    pub(crate) fn with_report(mut self, report: OwnedFd, ready: OwnedFd) -> Self {
        self.report = Some(report);
        self.ready = Some(ready);
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
        // Until it is set for good: a monitor that dies in between takes this process along.
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

    /// Gives up what the container does not have, waits for the start byte and becomes the container's process.
    pub(crate) fn run(&self) -> ! {
        let kept = match self.close_others() {
            Ok(kept) => kept,
            Err(e) => self.fail_create(self.report.as_ref(), &e),
        };
        if let Err(e) = self.confine(&kept) {
            self.fail_create(Some(&kept.report), &e);
        }
        // A filter may refuse it: they are closed by execve then.
        drop((kept.ready, kept.report));
        let error = kept.error.as_fd();
        let mut byte = [0];
        match rustix::io::retry_on_intr(|| rustix::io::read(&kept.start, &mut byte)) {
            Ok(1) => {}
            // The monitor is gone or has changed its mind: nobody is there to be told.
            Ok(_) => sys::exit_now(NOT_EXECUTED),
            Err(e) => fail(error, &format!("wait for the start: {}", reason(&e.into()))),
        }
        if !self.plan.filter_first() && process::hung_up(error) {
            sys::exit_now(255);
        }
        fail(error, &self.plan.execute().to_string())
    }

    /// Whoever waits in the container's namespaces, which others of the pod may share, is no more than its
    /// program will be.
    fn confine(&self, kept: &Kept) -> Result<()> {
        self.plan.reset()?;
        self.plan.confine(Keep::default())?;
        if self.chdir_again.get() {
            self.plan.enter_cwd_again()?;
        }
        process::die_with_monitor(kept.error.as_fd())?;
        self.plan.seal()?;
        match rustix::io::retry_on_intr(|| rustix::io::read(&kept.ready, &mut [0])) {
            Ok(_) => Ok(()),
            // Nothing else can make a read of this pipe fail, and reading is how the start is waited for.
            Err(e) => Err(Error::invalid(format!(
                "the seccomp profile refuses read(2) ({}), by which a container waits for its start unless it has \
                 no_new_privs: allow read, or set no_new_privs (allowPrivilegeEscalation: false)",
                reason(&e.into())
            ))),
        }
    }

    fn fail_create(&self, report: Option<&OwnedFd>, error: &Error) -> ! {
        if let Some(report) = report {
            report::say(report, error);
        }
        sys::exit_now(NOT_EXECUTED)
    }

    /// Keeps only the standard streams, the start pipe and the error pipe, and until it is confined what says so:
    /// a created container may wait for a long time, and what it has open is the host's.
    fn close_others(&self) -> Result<Kept> {
        let (Some(ready), Some(report)) = (&self.ready, &self.report) else {
            return Err(Error::internal("init has nowhere to report to"));
        };
        let what = || "duplicate a descriptor".to_owned();
        let away = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 16).context(what);
        let copies = [
            away(&self.start)?,
            away(&self.error)?,
            away(ready)?,
            away(report)?,
        ];
        let place = |fd: &OwnedFd, at| sys::duplicate_at(fd.as_fd(), at).context(what);
        let kept = Kept {
            start: place(&copies[0], 3)?,
            error: place(&copies[1], 4)?,
            ready: place(&copies[2], 5)?,
            report: place(&copies[3], 6)?,
        };
        sys::close_from(7).context(|| "close descriptors".to_owned())?;
        // They are closed; closing their numbers again would be an error.
        std::mem::forget(copies);
        Ok(kept)
    }
}

/// Tells the monitor why, and ends.
pub(crate) fn fail(error: BorrowedFd<'_>, message: &str) -> ! {
    let _nobody = rustix::io::write(error, message.as_bytes());
    sys::exit_now(NOT_EXECUTED)
}
