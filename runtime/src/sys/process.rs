//! Processes by pidfd, and by pid together with start time, which a recycled pid does not have.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, WaitId, WaitIdOptions, getrlimit, prlimit, setrlimit, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Flag of clone3(2) (`linux/sched.h`).
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// How long a process that could not become its program may take to end.
const DEATH: Duration = Duration::from_secs(10);

/// The limit of open files that this process was started with.
#[derive(Clone, Copy, Debug)]
pub struct OpenFiles(Rlimit);

impl OpenFiles {
    /// The limit in force.
    pub fn current() -> Self {
        Self(getrlimit(Resource::Nofile))
    }

    /// Raises the soft limit of this process to the hard one, and gives what it was: 1024, the usual soft limit, is for programs
    /// that use select(2), and an overlay of an image takes a descriptor for each layer.
    ///
    /// # Errors
    /// What prlimit(2) says.
    pub fn raise() -> io::Result<Self> {
        let given = Self::current();
        let raised = Rlimit {
            current: given.0.maximum,
            maximum: given.0.maximum,
        };
        setrlimit(Resource::Nofile, raised)?;
        Ok(given)
    }

    /// Gives a child the limit that this process was started with, so that no container inherits ours.
    ///
    /// # Errors
    /// What prlimit(2) says.
    pub fn give(self, child: i32) -> io::Result<()> {
        let child = Pid::from_raw(child).ok_or(Errno::INVAL)?;
        prlimit(Some(child), Resource::Nofile, self.0)?;
        Ok(())
    }
}

/// A pidfd of a process that has not been reaped.
///
/// # Errors
/// `ESRCH` when there is none with this pid, `EINVAL` for a pid that cannot be.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Some(pid)
        .filter(|pid| *pid > 0)
        .and_then(Pid::from_raw)
        .ok_or(Errno::INVAL)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// When a process was started, in clock ticks since boot (field 22 of `/proc/PID/stat`, proc(5)).
///
/// # Errors
/// `NotFound` when there is no such process.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("/proc/{pid}/stat has no start time"),
        )
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
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            info,
            0,
        )
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

/// Waits until the process has ended.
///
/// # Errors
/// When the descriptor cannot be watched.
pub async fn ended(pidfd: OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: an `OwnedFd` stands for one open descriptor until it is dropped, which the watch does last.
    let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    let watched = watched.map_err(io::Error::from)?;
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

/// What [`spawn_into`] starts.
#[derive(Clone, Copy, Debug)]
pub struct Program<'fd> {
    /// The file to execute.
    pub exe: BorrowedFd<'fd>,
    /// `argv[0]`; there are no other arguments, and no environment.
    pub name: &'fd CStr,
    /// Becomes descriptor 0.
    pub stdin: BorrowedFd<'fd>,
    /// Becomes descriptors 1 and 2.
    pub null: BorrowedFd<'fd>,
}

/// `struct clone_args` of clone3(2), as of Linux 5.7.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Starts a program that is born in a cgroup of v2; gives its pid and pidfd. Moving it there later would wait for
/// an RCU grace period, 7 ms on an idle node. Signals are as after boot in it.
///
/// # Errors
/// `ENODEV` or `ENOENT` when the cgroup has been removed, else what clone3(2) or execveat(2) say.
pub fn spawn_into(program: Program<'_>, cgroup: BorrowedFd<'_>) -> io::Result<(i32, OwnedFd)> {
    // Close-on-exec: end of file on it is a successful execve.
    let (told, tell) = pipe_with(PipeFlags::CLOEXEC)?;
    let mut pidfd: libc::c_int = -1;
    let number = |fd: i32| u64::try_from(fd).map_err(io::Error::other);
    let signal = number(libc::SIGCHLD)?;
    let flags = libc::CLONE_PIDFD | libc::CLONE_VFORK;
    let args = CloneArgs {
        flags: number(flags)? | CLONE_INTO_CGROUP,
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        exit_signal: signal,
        cgroup: number(cgroup.as_raw_fd())?,
        ..CloneArgs::default()
    };
    let size = size_of::<CloneArgs>();
    // SAFETY: without CLONE_VM the child has memory of its own, a copy in which other threads do not
    // run: until execve it only makes system calls, and takes no lock and no memory.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size) };
    if pid == 0 {
        let error = become_program(program);
        let _ = rustix::io::write(&tell, &error.to_ne_bytes());
        // SAFETY: ends the child without any of the daemon's exit handlers.
        unsafe { libc::_exit(127) };
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    drop(tell);
    let mut error = [0; size_of::<i32>()];
    if rustix::io::retry_on_intr(|| rustix::io::read(&told, &mut error))? < error.len() {
        return Ok((i32::try_from(pid).map_err(io::Error::other)?, pidfd));
    }
    has_ended(pidfd.as_fd(), DEATH)?;
    reap(pidfd.as_fd());
    Err(io::Error::from_raw_os_error(i32::from_ne_bytes(error)))
}

/// In the child of [`spawn_into`]: gives the error number when it comes back.
fn become_program(program: Program<'_>) -> i32 {
    let wiring = [(program.stdin, 0), (program.null, 1), (program.null, 2)];
    for (fd, number) in wiring {
        // SAFETY: takes numbers; the child's standard descriptors belong to nobody.
        if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
            return errno();
        }
    }
    let (size, default, none) = (size_of::<u64>(), [0_u64; 4], 0_u64);
    for signal in 1..=64 {
        let old = std::ptr::null_mut::<u64>();
        // SAFETY: a kernel `sigaction` of zeros means the default. SIGKILL and SIGSTOP are refused.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), old, size) };
    }
    let old = std::ptr::null_mut::<u64>();
    // SAFETY: the kernel reads `size` bytes of the mask.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            old,
            size,
        )
    };
    // Descriptors that the daemon itself was started with need not be close-on-exec.
    let (first, last, how) = (3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: takes numbers; the child's table of descriptors is its own.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, how) };
    let argv = [program.name.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null::<libc::c_char>()];
    let (exe, path, flags) = (program.exe.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH);
    // SAFETY: the strings end in NUL and the arrays in a null pointer.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            exe,
            path,
            argv.as_ptr(),
            envp.as_ptr(),
            flags,
        )
    };
    errno()
}

/// The calling thread's last error; an `io::Error` of the kernel's takes no memory.
fn errno() -> i32 {
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
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
        assert!(signal_same(pid, start, libc::SIGKILL).unwrap());
        let pidfd = open_same(pid, start).unwrap().unwrap();
        assert!(has_ended(pidfd.as_fd(), DEATH).unwrap());
        // A zombie has ended; one that is reaped too.
        assert!(!is_alive(pid, start).unwrap());
        child.wait().unwrap();
        assert!(open_same(pid, start).unwrap().is_none());
        assert!(!signal_same(pid, start, libc::SIGKILL).unwrap());
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

    #[test]
    fn a_program_is_born_in_its_cgroup() {
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].into_iter();
        let root = root
            .map(std::path::Path::new)
            .find(|p| p.join("cgroup.controllers").exists());
        let Some(root) = root else {
            berth_skip::skip!("cgroup-v2", "no hierarchy of it is mounted");
        };
        let name = format!("berth-born-{}", std::process::id());
        let dir = root.join(&name);
        std::fs::create_dir(&dir).unwrap();
        let cgroup = std::fs::File::open(&dir).unwrap();
        let null = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap();
        let (stdin, ours) = std::os::unix::net::UnixStream::pair().unwrap();
        let cat = std::fs::File::open("/bin/cat").unwrap();
        let program = |exe| Program {
            exe,
            name: c"cat",
            stdin: stdin.as_fd(),
            null: null.as_fd(),
        };
        let (pid, pidfd) = spawn_into(program(cat.as_fd()), cgroup.as_fd()).unwrap();
        let procs = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap();
        assert_eq!(procs.trim(), pid.to_string());
        let status = std::fs::read_to_string(format!("/proc/{}/status", procs.trim())).unwrap();
        assert!(status.contains("SigBlk:\t0000000000000000"), "{status}");
        assert!(status.contains("SigIgn:\t0000000000000000"), "{status}");
        // The parent goes on a moment before execve closes what is not to be inherited.
        let open = || {
            let fds = std::fs::read_dir(format!("/proc/{}/fd", procs.trim())).unwrap();
            let fds = fds.filter_map(|e| std::fs::read_link(e.unwrap().path()).ok());
            fds.filter(|to| !to.starts_with("/bin") && !to.starts_with("/usr"))
                .count()
        };
        let until = Instant::now() + DEATH;
        while open() != 3 {
            assert!(Instant::now() < until, "{} descriptors", open());
        }
        ours.shutdown(std::net::Shutdown::Both).unwrap();
        assert!(has_ended(pidfd.as_fd(), DEATH).unwrap());
        assert_eq!(reap(pidfd.as_fd()), Some(0));
        // A directory cannot be executed; nobody is left behind.
        let error = spawn_into(program(cgroup.as_fd()), cgroup.as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
        std::fs::remove_dir(&dir).unwrap();
        let error = spawn_into(program(cat.as_fd()), cgroup.as_fd()).unwrap_err();
        assert!(
            matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)),
            "{error}"
        );
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
