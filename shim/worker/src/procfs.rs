//! What the host's procfs tells of processes.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};

use crate::error::{Context, Error, Result};

/// `PF_FORKNOEXEC` (include/linux/sched.h): cloned, and nothing executed since.
const FORKED: u64 = 0x40;

/// The host's procfs, for what a process tells about itself after it has left the host's files.
pub(crate) fn open() -> Result<OwnedFd> {
    let proc = rustix::fs::open(
        "/proc",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(|| "open /proc".to_owned())?;
    let kind = rustix::fs::fstatfs(&proc).context(|| "stat /proc".to_owned())?;
    if kind.f_type == rustix::fs::PROC_SUPER_MAGIC {
        Ok(proc)
    } else {
        Err(Error::internal("/proc is not a proc file system"))
    }
}

/// A range of user ids: first in the container, first on the host, how many.
pub(crate) type Range = (u32, u32, u32);

/// The user ids of a process's user namespace.
pub(crate) fn user_map(proc: BorrowedFd<'_>, pid: i32) -> Result<Vec<Range>> {
    let text = read_of(proc, pid, "uid_map")?;
    let range = |line: &str| {
        let mut numbers = line.split_whitespace().map(|n| n.parse().ok());
        Some((numbers.next()??, numbers.next()??, numbers.next()??))
    };
    text.lines()
        .map(|l| {
            range(l).ok_or_else(|| Error::internal(format!("/proc/{pid}/uid_map has a line {l:?}")))
        })
        .collect()
}

/// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`, proc(5)).
pub(crate) fn start_time(proc: BorrowedFd<'_>, pid: i32) -> Result<u64> {
    stat_field(proc, pid, 22)
}

/// How a process has ended that is not reaped yet, as wait(2) has it (field 52 of `/proc/PID/stat`, proc(5)).
pub(crate) fn exit_status(proc: BorrowedFd<'_>, pid: i32) -> Option<i32> {
    let status = stat_field(proc, pid, 52).ok()?;
    i32::try_from(status).ok()
}

/// Whether a process that is not reaped yet has executed a program since it was cloned.
pub(crate) fn has_executed(proc: BorrowedFd<'_>, pid: i32) -> Result<bool> {
    Ok(stat_field(proc, pid, 9)? & FORKED == 0)
}

fn stat_field(proc: BorrowedFd<'_>, pid: i32, number: usize) -> Result<u64> {
    let text = read_of(proc, pid, "stat")?;
    // The name in parentheses, field 2, may hold anything; what follows it does not hold a parenthesis.
    text.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(number - 3))
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| Error::internal(format!("/proc/{pid}/stat has no field {number}")))
}

/// The permitted capabilities of a process.
pub(crate) fn permitted(proc: BorrowedFd<'_>, pid: i32) -> Result<u64> {
    let text = read_of(proc, pid, "status")?;
    text.lines()
        .find_map(|line| line.strip_prefix("CapPrm:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .ok_or_else(|| Error::internal(format!("/proc/{pid}/status has no CapPrm")))
}

fn read_of(proc: BorrowedFd<'_>, pid: i32, name: &str) -> Result<String> {
    let path = format!("{pid}/{name}");
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file =
        openat(proc, &path, flags, Mode::empty()).context(|| format!("open /proc/{path}"))?;
    io::read_to_string(File::from(file)).context(|| format!("read /proc/{path}"))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn fields_survive_odd_names() {
        let proc = open().unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(proc.as_fd(), pid).unwrap() > 0);
        assert!(has_executed(proc.as_fd(), pid).unwrap());
        assert!(permitted(proc.as_fd(), pid).unwrap() > 0);
    }

    #[test]
    fn how_a_child_ended_is_told_before_it_is_reaped() {
        use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
        let proc = open().unwrap();
        for (script, status) in [("exit 3", 3 << 8), ("kill -KILL $$", libc::SIGKILL)] {
            let mut child = std::process::Command::new("sh")
                .args(["-c", script])
                .spawn()
                .unwrap();
            let pid = i32::try_from(child.id()).unwrap();
            let id = WaitId::Pid(Pid::from_raw(pid).unwrap());
            waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
            assert_eq!(exit_status(proc.as_fd(), pid), Some(status));
            assert!(has_executed(proc.as_fd(), pid).unwrap());
            child.wait().unwrap();
        }
    }
}
