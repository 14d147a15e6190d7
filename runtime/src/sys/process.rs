//! Processes by pidfd, and by pid together with start time, which a recycled pid does not have.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long a killed process may take to die before [`kill_and_wait`] gives up.
const DEATH: Duration = Duration::from_secs(10);

/// A pidfd of a process that has not been reaped.
///
/// # Errors
/// `ESRCH` when there is none with this pid, `EINVAL` for a pid that cannot be.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).filter(|_| pid > 0).ok_or(Errno::INVAL)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// When a process was started, in clock ticks since boot (field 22 of `/proc/PID/stat`, proc(5)).
///
/// # Errors
/// `NotFound` when there is no such process.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time"))
    })
}

/// The command name, second, may hold anything, parentheses too.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.trim().parse().ok()
}

/// A pidfd of the process that has this pid and start time; `None` when it has ended and been reaped.
///
/// # Errors
/// What the kernel says otherwise.
pub fn open_same(pid: i32, start: u64) -> io::Result<Option<OwnedFd>> {
    // The descriptor first: if the time is right afterwards, it is that process's.
    let pidfd = match pidfd_open(pid) {
        Ok(pidfd) => pidfd,
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(e) => return Err(e),
    };
    match start_time(pid) {
        Ok(now) if now == start => Ok(Some(pidfd)),
        Ok(_) => Ok(None),
        // ESRCH: it was reaped between open and read.
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Sends a signal by its number (real-time ones too). False when the process has ended.
///
/// # Errors
/// `EINVAL` for a number that is none, else what the kernel says.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<bool> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: takes numbers; a null pointer means what kill(2) would say of the sender.
    let done = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, info, 0)
    };
    if done == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ESRCH) => Ok(false),
        e => Err(e),
    }
}

/// Sends a signal to the process that has this pid and start time. False when it is gone.
///
/// # Errors
/// What the kernel says.
pub fn signal_same(pid: i32, start: u64, signal: i32) -> io::Result<bool> {
    match open_same(pid, start)? {
        Some(pidfd) => send_signal(pidfd.as_fd(), signal),
        None => Ok(false),
    }
}

/// The process is running: not a zombie, not another with its pid.
///
/// # Errors
/// What the kernel says.
pub fn is_alive(pid: i32, start: u64) -> io::Result<bool> {
    match open_same(pid, start)? {
        Some(pidfd) => Ok(!has_ended(pidfd.as_fd(), Duration::ZERO)?),
        None => Ok(false),
    }
}

/// Waits until the process has ended, on this thread. False when the time is up.
///
/// # Errors
/// As poll(2).
pub fn has_ended(pidfd: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    let until = Instant::now() + limit;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Err(Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// Kills the process that has this pid and start time and waits, on this thread, until it is dead.
/// One that is gone already is fine.
///
/// # Errors
/// `TimedOut` when it does not die in time, else what the kernel says.
pub fn kill_and_wait(pid: i32, start: u64) -> io::Result<()> {
    let Some(pidfd) = open_same(pid, start)? else { return Ok(()) };
    send_signal(pidfd.as_fd(), libc::SIGKILL)?;
    if has_ended(pidfd.as_fd(), DEATH)? {
        return Ok(());
    }
    let text = format!("it is still there {} s after SIGKILL", DEATH.as_secs());
    Err(io::Error::new(io::ErrorKind::TimedOut, text))
}

/// Waits until the process has ended.
///
/// # Errors
/// When the descriptor cannot be watched.
pub async fn ended(pidfd: OwnedFd) -> io::Result<OwnedFd> {
    let watched = AsyncFd::with_interest(pidfd, Interest::READABLE)?;
    // Never cleared: a process ends once.
    watched.readable().await?.retain_ready();
    Ok(watched.into_inner())
}

/// Reaps a child that has ended: its exit status, or 128 + the signal. `None` for one that has not
/// ended or is another process's child.
pub fn reap(pidfd: BorrowedFd<'_>) -> Option<i32> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = waitid(WaitId::PidFd(pidfd), options).ok()??;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(code),
        (None, Some(signal)) => Some(128 + signal),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn sleeper() -> (std::process::Child, i32, u64) {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let start = start_time(pid).unwrap();
        (child, pid, start)
    }

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20\n";
        assert_eq!(parse_start_time(stat), Some(4242));
        assert_eq!(parse_start_time("7 (x"), None);
    }

    #[test]
    fn another_process_with_the_pid_is_not_the_same() {
        let (mut child, pid, start) = sleeper();
        assert!(is_alive(pid, start).unwrap());
        assert!(!is_alive(pid, start + 1).unwrap());
        assert!(!signal_same(pid, start + 1, libc::SIGKILL).unwrap());
        assert!(is_alive(pid, start).unwrap());
        kill_and_wait(pid, start).unwrap();
        // A zombie has ended; one that is reaped too.
        assert!(!is_alive(pid, start).unwrap());
        child.wait().unwrap();
        assert!(open_same(pid, start).unwrap().is_none());
        kill_and_wait(pid, start).unwrap();
    }

    #[test]
    fn a_pid_that_cannot_be_is_an_error() {
        for pid in [0, -1] {
            assert!(pidfd_open(pid).is_err());
        }
        let pidfd = pidfd_open(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(send_signal(pidfd.as_fd(), 1000).is_err());
        assert!(send_signal(pidfd.as_fd(), 0).unwrap());
    }

    #[tokio::test]
    async fn an_end_is_waited_for_and_reaped() {
        let (_child, pid, _) = sleeper();
        let pidfd = pidfd_open(pid).unwrap();
        assert_eq!(reap(pidfd.as_fd()), None);
        assert!(send_signal(pidfd.as_fd(), libc::SIGTERM).unwrap());
        let pidfd = ended(pidfd).await.unwrap();
        assert_eq!(reap(pidfd.as_fd()), Some(128 + libc::SIGTERM));
        assert_eq!(reap(pidfd.as_fd()), None);
    }
}
