//! A container's init between the engine's work and `execve`.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags, openat};
use rustix::pipe::fcntl_setpipe_size;
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

/// How long init may take to give up what the container does not have: milliseconds, or the seconds of a cgroup
/// without CPU time.
const CONFINED_WITHIN: i64 = 30;

/// What a profile has to leave to a container that waits for its start under it.
const NEEDS: &str = "without no_new_privs a container waits for its start under its profile, which has to allow read, \
                     capset and execve: allow them, or set no_new_privs (allowPrivilegeEscalation: false)";

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

/// What stays open while init waits; the last one only until it is confined.
struct Kept {
    start: OwnedFd,
    error: OwnedFd,
    report: OwnedFd,
}

/// The worker's end of the start pipe, with a byte in it that init takes out once it is confined. It does so by the call
/// by which it waits for its start: a filter that refuses one of them refuses both, whatever arguments it looks at.
#[derive(Debug)]
pub(crate) struct Ready(OwnedFd);

impl Ready {
    /// Fills the pipe of which `start` is init's end. `proc` is the host's procfs.
    pub(crate) fn new(proc: BorrowedFd<'_>, start: BorrowedFd<'_>) -> Result<Self> {
        let fill = || -> rustix::io::Result<_> {
            let end = format!("self/fd/{}", start.as_raw_fd());
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let write = openat(proc, end, flags, Mode::empty())?;
            // One page is the least, and one byte takes it.
            fcntl_setpipe_size(&write, 1)?;
            rustix::io::write(&write, b"r")?;
            Ok(Self(write))
        };
        fill().context(|| "fill the start pipe".to_owned())
    }

    /// Waits until init is confined. False when it has ended before.
    pub(crate) fn wait(&self, init: i32) -> Result<bool> {
        let what = || "wait for the container's init".to_owned();
        let init = Pid::from_raw(init).ok_or_else(|| Error::internal("init has no pid"))?;
        let init = pidfd_open(init, PidfdFlags::empty()).context(what)?;
        let mut fds = [
            PollFd::new(&self.0, PollFlags::OUT),
            PollFd::new(&init, PollFlags::IN),
        ];
        let limit = Timespec {
            tv_sec: CONFINED_WITHIN,
            tv_nsec: 0,
        };
        if rustix::event::poll(&mut fds, Some(&limit)).context(what)? == 0 {
            return Err(Error::state(format!(
                "init has not given up its privileges within {CONFINED_WITHIN} s: was it stopped by another process \
                 (SIGSTOP), or is there no CPU time for its cgroup?"
            )));
        }
        Ok(fds[0].revents().contains(PollFlags::OUT))
    }
}

/// Why an init has ended before it was confined, where it has not said so itself. `status` is that of wait(2);
/// `filtered`: under its seccomp profile it might not have been able to.
pub(crate) fn ended(status: Option<i32>, filtered: bool) -> Error {
    let (how, killed) = match status.map(|s| (s & 0x7f, s >> 8 & 0xff)) {
        None => ("for an unknown reason".to_owned(), false),
        Some((0, code)) => (format!("with status {code}"), false),
        Some((libc::SIGSYS, _)) => ("by SIGSYS".to_owned(), false),
        Some((signal, _)) => (format!("by signal {signal}"), signal == libc::SIGKILL),
    };
    if filtered && !killed {
        return Error::invalid(format!(
            "the seccomp profile ended the container's init ({how}): {NEEDS}"
        ));
    }
    Error::internal(format!(
        "init has ended while it gave up its privileges ({how})"
    ))
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

    /// Says failures before "created" in `report`.
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
        if self.plan.filter_first() {
            // A filter may kill for close(2), and execve closes it.
            std::mem::forget(kept.report);
        } else {
            drop(kept.report);
        }
        let error = kept.error.as_fd();
        match take(&kept.start) {
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
        let refused = match take(&kept.start) {
            Ok(1) => return Ok(()),
            // There is a byte, and nothing else can make a read of this pipe fail.
            Ok(_) => "answers it without reading".to_owned(),
            Err(e) => format!("answers {:?}", reason(&e.into())),
        };
        Err(Error::invalid(format!(
            "the seccomp profile refuses read(2) ({refused}): {NEEDS}"
        )))
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
        let Some(report) = &self.report else {
            return Err(Error::internal("init has nowhere to report to"));
        };
        let what = || "duplicate a descriptor".to_owned();
        let away = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, 16).context(what);
        let copies = [away(&self.start)?, away(&self.error)?, away(report)?];
        let place = |fd: &OwnedFd, at| sys::duplicate_at(fd.as_fd(), at).context(what);
        let kept = Kept {
            start: place(&copies[0], 3)?,
            error: place(&copies[1], 4)?,
            report: place(&copies[2], 5)?,
        };
        sys::close_from(6).context(|| "close descriptors".to_owned())?;
        // They are closed; closing their numbers again would be an error.
        std::mem::forget(copies);
        Ok(kept)
    }
}

/// Takes a byte out of the start pipe. Never tried again: without handlers no signal interrupts it, and a filter may
/// answer EINTR for ever.
fn take(start: &OwnedFd) -> rustix::io::Result<usize> {
    rustix::io::read(start, &mut [0])
}

/// Tells the monitor why, and ends.
pub(crate) fn fail(error: BorrowedFd<'_>, message: &str) -> ! {
    let _nobody = rustix::io::write(error, message.as_bytes());
    sys::exit_now(NOT_EXECUTED)
}
