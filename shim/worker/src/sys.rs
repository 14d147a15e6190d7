//! System calls that rustix and nix lack. The only unsafe code of the worker.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

pub(crate) mod bpf;

/// `CLONE_INTO_CGROUP` (include/uapi/linux/sched.h); the constant of the libc crate is cut to 32 bits.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Empties the environment: libcontainer reads `LISTEN_FDS` and hands it to the container.
pub(crate) fn clear_environment() {
    // SAFETY: the worker is single-threaded, so nobody reads the environment meanwhile.
    unsafe { libc::clearenv() };
}

/// Ends the process without running any exit handler: a cloned child shares them with its parent.
///
/// Where a filter refuses exit_group(2) the process dies of an illegal instruction. The C library would
/// ask for ever instead; the kernel lets nobody block or ignore a signal of that kind.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: plain integers; it returns only when a filter refuses it.
    unsafe { libc::syscall(libc::SYS_exit_group, code) };
    trap()
}

#[cfg(target_arch = "x86_64")]
fn trap() -> ! {
    // SAFETY: the instruction raises SIGILL and nothing runs after it.
    unsafe { std::arch::asm!("ud2", options(noreturn, nomem, nostack)) }
}

#[cfg(target_arch = "aarch64")]
fn trap() -> ! {
    // SAFETY: as above.
    unsafe { std::arch::asm!("udf #0", options(noreturn, nomem, nostack)) }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn trap() -> ! {
    // SAFETY: no precondition.
    unsafe { libc::abort() }
}

/// Capability sets as masks (capabilities(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CapabilitySets {
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
}

/// `_LINUX_CAPABILITY_VERSION_3` (include/uapi/linux/capability.h), this thread.
const CAPABILITY_HEADER: [u32; 2] = [0x2008_0522, 0];

/// The sets of this process.
pub(crate) fn capabilities() -> io::Result<CapabilitySets> {
    let mut header = CAPABILITY_HEADER;
    let mut data = [0u32; 6];
    // SAFETY: a header and two triples of u32, as this version of the call has them.
    check(unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()) })?;
    let mask = |at: usize| u64::from(data[at]) | u64::from(data[at + 3]) << 32;
    Ok(CapabilitySets {
        effective: mask(0),
        permitted: mask(1),
        inheritable: mask(2),
    })
}

/// Sets all three sets at once.
pub(crate) fn set_capabilities(sets: CapabilitySets) -> io::Result<()> {
    let mut header = CAPABILITY_HEADER;
    let masks = [sets.effective, sets.permitted, sets.inheritable];
    let half = |shift: u32| masks.map(|m| u32::try_from(m >> shift & 0xffff_ffff).unwrap_or(0));
    let data = [half(0), half(32)];
    // SAFETY: a header and two triples of u32, as this version of the call has them.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), data.as_ptr()) }).map(drop)
}

/// Whose files this process's accesses are judged as (setfsuid(2), which cannot tell of a failure).
pub(crate) fn set_file_user(uid: u32) {
    // SAFETY: takes a number.
    unsafe { libc::syscall(libc::SYS_setfsuid, uid) };
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// What [`clone_process`] returns to whom.
#[derive(Debug)]
pub(crate) enum Cloned {
    /// The caller is the new process.
    Child,
    /// The caller is the old one; pid (in its own PID namespace) and pidfd of the new one.
    Parent(i32, OwnedFd),
}

/// clone3(2) like fork, with a pidfd, and optionally straight into a cgroup v2 directory.
///
/// `flags` are `CLONE_NEW*` and `CLONE_PARENT`.
pub(crate) fn clone_process(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    let parent = libc::CLONE_PARENT as u64;
    // SAFETY: clone_args is plain integers, for which zero is "not used" (clone(2)).
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = std::ptr::from_mut(&mut pidfd) as u64;
    // A sibling signals its parent in the way that the caller does; clone3 refuses another wish.
    args.exit_signal = if flags & parent == 0 {
        libc::SIGCHLD as u64
    } else {
        0
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: without CLONE_VM the child has a copy of this single-threaded process, stack
    // included, so that it may go on like after fork(2); args outlives the call.
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_mut(&mut args),
            size_of::<libc::clone_args>(),
        )
    })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel has just stored a descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    Ok(Cloned::Parent(pid, pidfd))
}

/// What [`set_mount`] changes; zeros are "leave it".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountChange {
    /// `MOUNT_ATTR_*` to set.
    pub(crate) set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub(crate) clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE` or `MS_SHARED`.
    pub(crate) propagation: u64,
}

/// Changes the mount that `mount` is on, and those below it when `recursive` (mount_setattr(2)).
pub(crate) fn set_mount(
    mount: BorrowedFd<'_>,
    change: &MountChange,
    recursive: bool,
) -> io::Result<()> {
    if *change == MountChange::default() {
        return Ok(());
    }
    let attributes = libc::mount_attr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: 0,
    };
    let below = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a constant, the structure lives through the call and its size is given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | below,
            std::ptr::from_ref(&attributes),
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Loads a seccomp program (`struct sock_filter[]`) for this process and its descendants.
pub(crate) fn load_seccomp(program: &[u8]) -> io::Result<()> {
    let count = program.len() / size_of::<libc::sock_filter>();
    let filters: Vec<libc::sock_filter> = program
        .chunks_exact(size_of::<libc::sock_filter>())
        .map(|b| libc::sock_filter {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        })
        .collect();
    let program = libc::sock_fprog {
        len: u16::try_from(count).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: filters.as_ptr().cast_mut(),
    };
    // SAFETY: the program points at `filters`, which lives through the call; the kernel copies it.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            std::ptr::from_ref(&program),
        )
    })
    .map(drop)
}

/// Closes all descriptors from `first` up.
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    close_range(first, 0)
}

/// Marks all descriptors from `first` up close-on-exec.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    close_range(first, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes all descriptors but the standard ones and `kept`, which is marked close-on-exec. Whatever owned the
/// others must never be dropped afterwards: the caller goes on to execve or to [`exit_now`].
pub(crate) fn close_others(kept: BorrowedFd<'_>) -> io::Result<()> {
    let kept = kept.as_raw_fd().unsigned_abs();
    if kept > 3 {
        close_between(3, kept - 1, 0)?;
    }
    close_from((kept + 1).max(3))?;
    close_on_exec_from(3)
}

fn close_range(first: u32, flags: libc::c_uint) -> io::Result<()> {
    close_between(first, u32::MAX, flags)
}

fn close_between(first: u32, last: u32, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: callers go on to execve or hold no descriptor in the range.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

/// A copy of `fd` at exactly the number `at`, close-on-exec.
pub(crate) fn duplicate_at(fd: BorrowedFd<'_>, at: i32) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() == at {
        return fd.try_clone_to_owned();
    }
    // SAFETY: whatever was open at `at` is not owned by anything in the calling process (see callers).
    check(unsafe { libc::syscall(libc::SYS_dup3, fd.as_raw_fd(), at, libc::O_CLOEXEC) })?;
    // SAFETY: dup3 has just made it.
    Ok(unsafe { OwnedFd::from_raw_fd(at) })
}

/// Puts a copy of `fd` in place of standard descriptor `at` (0, 1 or 2), kept across execve.
pub(crate) fn replace_standard(fd: BorrowedFd<'_>, at: i32) -> io::Result<()> {
    // SAFETY: nothing owns the numbers 0 to 2.
    check(libc::c_long::from(unsafe {
        libc::dup2(fd.as_raw_fd(), at)
    }))
    .map(drop)
}

/// Borrows a standard descriptor (0, 1 or 2).
pub(crate) fn standard(at: i32) -> BorrowedFd<'static> {
    debug_assert!((0..3).contains(&at));
    // SAFETY: Rust's start-up code makes sure that 0 to 2 are open, and nothing here closes them.
    unsafe { BorrowedFd::borrow_raw(at) }
}

/// All signals at their default action, and only those of the mask blocked (bit N-1 is signal N).
pub(crate) fn reset_signals(blocked: u64) -> io::Result<()> {
    // The kernel's own structure, of all zeros: SIG_DFL. The C library refuses its private signals.
    let default = [0u64; 4];
    let set = size_of::<u64>();
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: the structure is as large as the kernel's sigaction on 64-bit machines.
        check(unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0, set) })?;
    }
    // SAFETY: the mask is a u64, as the size says.
    check(unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            std::ptr::from_ref(&blocked),
            0,
            set,
        )
    })
    .map(drop)
}

/// Process attributes that survive execve and that a daemon's service file may have changed.
pub(crate) fn reset_attributes() {
    // SAFETY: plain prctl without pointers; absent in old kernels, which then have nothing to reset.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 0, 0, 0, 0) };
    // SAFETY: as above; the default slack is 50 us (timer_slack in the parent is not ours to keep).
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 50_000, 0, 0, 0) };
    // SAFETY: no pointers. Without CAP_SYS_NICE a lowered priority stays, which weakens nothing.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 0) };
}

/// Leaves the inherited session keyring for a new one without a name (keyctl(2)).
pub(crate) fn new_session_keyring() -> io::Result<()> {
    let nameless = std::ptr::null::<libc::c_char>();
    // SAFETY: a null name asks for a new anonymous keyring.
    let result = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            nameless,
        )
    };
    match check(result) {
        // A kernel without keys has none to hide.
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        other => other.map(drop),
    }
}

/// The soft and hard value of a resource limit (kernel number) of this process.
pub(crate) fn resource_limit(resource: u32) -> io::Result<(u64, u64)> {
    let mut now = [0u64; 2];
    // SAFETY: struct rlimit64 is two u64.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, 0, now.as_mut_ptr()) })?;
    Ok((now[0], now[1]))
}

/// Sets a resource limit (kernel number) of this process.
pub(crate) fn set_resource_limit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let new = [soft, hard];
    // SAFETY: struct rlimit64 is two u64.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, new.as_ptr(), 0) }).map(drop)
}

/// Brings the interface `lo` of the current network namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is plain data; all zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    let up = libc::IFF_UP | libc::IFF_RUNNING;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(up).map_err(io::Error::other)?;
    #[cfg_attr(
        target_env = "musl",
        expect(
            clippy::cast_possible_truncation,
            reason = "0x8914; musl's ioctl takes the number as an int"
        )
    )]
    let operation = libc::SIOCSIFFLAGS as libc::Ioctl;
    // SAFETY: SIOCSIFFLAGS reads an ifreq (netdevice(7)).
    let result =
        unsafe { libc::ioctl(socket.as_raw_fd(), operation, std::ptr::from_ref(&request)) };
    check(libc::c_long::from(result)).map(drop)
}

/// Moves this process into namespaces: those of the process that a pidfd names, or one file's.
pub(crate) fn enter_namespaces(fd: impl AsFd, flags: u64) -> io::Result<()> {
    // SAFETY: setns takes two integers; the worker is single-threaded.
    check(unsafe { libc::syscall(libc::SYS_setns, fd.as_fd().as_raw_fd(), flags) }).map(drop)
}

/// Leaves the namespaces named by `CLONE_NEW*` flags for new ones.
pub(crate) fn unshare(flags: libc::c_int) -> io::Result<()> {
    // SAFETY: no file-table or memory flags are given, and the worker is single-threaded.
    check(libc::c_long::from(unsafe { libc::unshare(flags) })).map(drop)
}

/// Runs the program in `file` (execveat(2)); returns only the error.
pub(crate) fn execute_file(file: BorrowedFd<'_>, name: &CStr) -> io::Error {
    let argv = [name.as_ptr(), std::ptr::null()];
    let envp = [std::ptr::null::<libc::c_char>()];
    // SAFETY: both vectors end in null and live through the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clone_gives_pid_and_pidfd() {
        match clone_process(0, None).unwrap() {
            Cloned::Child => exit_now(7),
            Cloned::Parent(pid, pidfd) => {
                assert!(pid > 0);
                let status = rustix::process::waitid(
                    rustix::process::WaitId::PidFd(pidfd.as_fd()),
                    rustix::process::WaitIdOptions::EXITED,
                )
                .unwrap()
                .unwrap();
                assert_eq!(status.exit_status(), Some(7));
            }
        }
    }

    /// libcontainer leaves the session keyring of whoever started it in the container's possession.
    #[test]
    fn a_session_keyring_is_new_each_time() {
        // SAFETY: plain integers; -3 is the session keyring, 0 makes none.
        let own = || unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_GET_KEYRING_ID, -3, 0) };
        let seen = std::thread::spawn(move || {
            let inherited = own();
            new_session_keyring().unwrap();
            let first = own();
            new_session_keyring().unwrap();
            [inherited, first, own()]
        });
        let [inherited, first, second] = seen.join().unwrap();
        assert!(first > 0 && second > 0, "this kernel has no keyrings");
        assert!(inherited != first && first != second);
    }

    /// With a filter that refuses to let it go, and SIGILL blocked and ignored.
    #[test]
    fn a_process_that_may_not_exit_dies_of_an_illegal_instruction() {
        use rustix::process::{WaitId, WaitIdOptions, waitid};
        let filter = |code: u32, jt, jf, k: u32| {
            let mut bytes = u16::try_from(code).unwrap().to_ne_bytes().to_vec();
            bytes.extend([jt, jf]);
            bytes.extend(k.to_ne_bytes());
            bytes
        };
        let number = |call: libc::c_long| u32::try_from(call).unwrap();
        let jump = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        let answer = libc::BPF_RET | libc::BPF_K;
        let program = [
            filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            filter(jump, 1, 0, number(libc::SYS_exit_group)),
            filter(jump, 0, 1, number(libc::SYS_exit)),
            filter(answer, 0, 0, libc::SECCOMP_RET_ERRNO | 1),
            filter(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
        ]
        .concat();
        match clone_process(0, None).unwrap() {
            Cloned::Child => {
                // SAFETY: a disposition of the child's own.
                unsafe { libc::signal(libc::SIGILL, libc::SIG_IGN) };
                let every = u64::MAX;
                // SAFETY: the mask is a u64, as the size says.
                unsafe {
                    libc::syscall(
                        libc::SYS_rt_sigprocmask,
                        libc::SIG_SETMASK,
                        &raw const every,
                        0,
                        8,
                    )
                };
                rustix::thread::set_no_new_privs(true).unwrap();
                load_seccomp(&program).unwrap();
                exit_now(7)
            }
            Cloned::Parent(_, pidfd) => {
                let end = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
                let end = end.unwrap().unwrap();
                assert_eq!(end.terminating_signal(), Some(libc::SIGILL));
            }
        }
    }

    #[test]
    fn capability_sets_read_back() {
        let before = capabilities().unwrap();
        set_capabilities(before).unwrap();
        assert_eq!(capabilities().unwrap(), before);
        assert_eq!(before.effective & !before.permitted, 0);
    }

    #[test]
    fn resource_limits_read_back() {
        const NOFILE: u32 = 7;
        let (soft, hard) = resource_limit(NOFILE).unwrap();
        set_resource_limit(NOFILE, soft, hard).unwrap();
        assert!(soft <= hard);
    }
}
