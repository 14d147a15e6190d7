//! Files of the cgroup file systems, which are not like other files: one write is one command.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Magic numbers of the file systems (include/uapi/linux/magic.h).
const CGROUP: u64 = 0x0027_e0eb;
const CGROUP2: u64 = 0x6367_7270;

/// Gives a file one value by one write(2); never makes the file.
///
/// # Errors
/// What the kernel says: it checks values as they are written.
pub fn write_value(path: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let written = file.write(value.as_bytes())?;
    if written == value.len() {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::WriteZero,
            "the value was taken in part",
        ))
    }
}

/// Is this a cgroup below the root of its hierarchy?
///
/// # Errors
/// When it cannot be looked at; `ENOTDIR` for a file, which no cgroup is.
pub fn is_inner(path: &Path) -> io::Result<bool> {
    let kind = rustix::fs::statfs(path)?.f_type;
    if !std::fs::symlink_metadata(path)?.is_dir() {
        return Err(rustix::io::Errno::NOTDIR.into());
    }
    let known = u64::try_from(kind).is_ok_and(|kind| kind == CGROUP || kind == CGROUP2);
    let Some(parent) = path.parent().filter(|_| known) else {
        return Ok(false);
    };
    Ok(std::fs::symlink_metadata(parent)?.dev() == std::fs::symlink_metadata(path)?.dev())
}

/// Waits for a change of an event file (`cgroup.events`, `memory.events`) since it was last read, at most `timeout`.
///
/// # Errors
/// What poll(2) says.
pub fn wait_event(file: &File, timeout: Duration) -> io::Result<()> {
    let mut fds = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::PRI)];
    let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
