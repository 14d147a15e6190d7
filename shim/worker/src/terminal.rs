//! Terminals from the container's own devpts.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::error::{Context, Error, Result, reason};
use crate::place::{self, Root, Shape};
use crate::{sys, tree};

/// `DEVPTS_SUPER_MAGIC` (include/uapi/linux/magic.h).
const DEVPTS: u64 = 0x1cd1;

/// Both sides of a terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    pub(crate) master: OwnedFd,
    slave: OwnedFd,
}

impl Terminal {
    /// Opens a terminal in the devpts of the current root and gives it to a user.
    ///
    /// Everything is checked by descriptor: an image may have put something else at `/dev/pts`.
    pub(crate) fn open(uid: u32, rows: u32, columns: u32) -> Result<Self> {
        let root = rustix::fs::open(
            "/",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .context(|| "open the container's root".to_owned())?;
        let master = rustix::fs::openat2(
            &root,
            "dev/pts/ptmx",
            OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS,
        )
        .map_err(no_ptmx)?;
        check(master.as_fd(), |major, minor| major == 5 && minor == 2)?;
        rustix::pty::unlockpt(&master).context(|| "unlock the terminal".to_owned())?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)
            .context(|| "open the terminal's other side".to_owned())?;
        check(slave.as_fd(), |major, _| (136..=143).contains(&major))?;
        rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(uid)), None)
            .context(|| format!("give the terminal to uid {uid}"))?;
        if rows != 0 || columns != 0 {
            let cells = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
            let size = Winsize {
                ws_row: cells(rows),
                ws_col: cells(columns),
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            rustix::termios::tcsetwinsize(&slave, size)
                .context(|| "set the terminal's size".to_owned())?;
        }
        Ok(Self { master, slave })
    }

    /// Makes it the controlling terminal of this process, a session leader, and its standard streams.
    pub(crate) fn take(&self) -> Result<()> {
        rustix::process::ioctl_tiocsctty(&self.slave)
            .context(|| "take the controlling terminal".to_owned())?;
        for at in 0..3 {
            sys::replace_standard(self.slave.as_fd(), at)
                .context(|| format!("put the terminal on descriptor {at}"))?;
        }
        Ok(())
    }

    /// Binds it at the container's `/dev/console`, or where a link there leads.
    pub(crate) fn console(&self) -> Result<()> {
        const CONSOLE: &str = "/dev/console";
        let root = Root::current()?;
        let point = || {
            let place = root.find(CONSOLE.as_bytes())?;
            place::judge(CONSOLE, &place.path)?;
            place.mount_point(&root, Shape::File)
        };
        let point =
            point().map_err(|e| e.map(|m| format!("mount the terminal on {CONSOLE}: {m}")))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = rustix::mount::open_tree(&self.slave, "", flags)
            .context(|| "clone the terminal's mount".to_owned())?;
        tree::put(tree.as_fd(), point.as_fd())
            .context(|| format!("mount the terminal on {CONSOLE}"))
    }
}

/// Why no terminal can be opened.
fn no_ptmx(error: Errno) -> Error {
    let why = reason(&error.into());
    match error {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => Error::invalid(format!(
            "a terminal needs a devpts file system at /dev/pts, and /dev/pts/ptmx cannot be opened ({why}): is it \
             masked, or missing in the /dev that the pod mounts?"
        )),
        _ => Error::internal(format!("open the container's /dev/pts/ptmx: {why}")),
    }
}

fn check(fd: BorrowedFd<'_>, right: impl Fn(u32, u32) -> bool) -> Result<()> {
    let file_system = rustix::fs::fstatfs(fd).context(|| "stat the terminal".to_owned())?;
    let stat = rustix::fs::fstat(fd).context(|| "stat the terminal".to_owned())?;
    let device = (
        rustix::fs::major(stat.st_rdev),
        rustix::fs::minor(stat.st_rdev),
    );
    let character =
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice;
    if u64::try_from(file_system.f_type) == Ok(DEVPTS) && character && right(device.0, device.1) {
        Ok(())
    } else {
        Err(Error::invalid(
            "the container's /dev/pts is not a devpts file system of its own",
        ))
    }
}
