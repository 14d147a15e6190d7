//! The kernel: what rustix lacks, behind safe functions. The only unsafe code of the monitor.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::process::Pid;

/// Anonymous memory that is given back to the kernel while it is not needed.
pub(crate) struct Buffer {
    at: ptr::NonNull<u8>,
    length: usize,
}

impl Buffer {
    /// Reserves `length` bytes; no page is used before it is written to.
    pub(crate) fn reserve(length: usize) -> io::Result<Self> {
        // SAFETY: a new private anonymous mapping touches no memory of ours.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = ptr::NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { at, length })
    }

    /// Gives all pages back; the content is zero afterwards.
    pub(crate) fn release(&mut self) {
        // SAFETY: the range is our own mapping, and `&mut` says that nobody looks at it.
        unsafe { libc::madvise(self.at.as_ptr().cast(), self.length, libc::MADV_DONTNEED) };
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `length` readable bytes are mapped at `at` for as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.length) }
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, writable, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.length) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: our own mapping, unmapped once.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.length) };
    }
}

/// Gives back the pages of the stack that deeper calls have used.
pub(crate) fn release_stack() {
    const PAGE: usize = 4096;
    /// No call goes deeper, and the kernel keeps a wider gap between the stack and anything else.
    const DEEPEST: usize = 128 << 10;
    let here = 0_u8;
    // What is left of this frame and of the call below is in the page of `here` or in the next.
    let top = (ptr::from_ref(&here).addr() & !(PAGE - 1)) - PAGE;
    let bottom = ptr::with_exposed_provenance_mut(top - DEEPEST);
    // SAFETY: memory below the stack pointer holds nothing that a later call reads before it writes.
    unsafe { libc::madvise(bottom, DEEPEST, libc::MADV_DONTNEED) };
}

/// A set of signals as the kernel has it: bit N - 1 is signal N.
type SignalSet = u64;

/// Blocks every signal (so that no SIGTERM leaves a container without its monitor) and gives a
/// descriptor that becomes readable when a child has ended.
pub(crate) fn block_signals() -> io::Result<OwnedFd> {
    set_signal_mask(SignalSet::MAX)?;
    let child: SignalSet = 1 << (libc::SIGCHLD - 1);
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    let size = size_of::<SignalSet>();
    // SAFETY: the kernel reads `size` bytes of the set.
    let fd = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const child, size, flags) };
    owned(i32::try_from(fd).unwrap_or(-1))
}

fn set_signal_mask(mask: SignalSet) -> io::Result<()> {
    let size = size_of::<SignalSet>();
    let old = ptr::null_mut::<SignalSet>();
    // SAFETY: the kernel reads `size` bytes of the mask; a null pointer says that the old one is not wanted.
    let done = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            old,
            size,
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Turns transparent huge pages on or off for this process and what it executes.
pub(crate) fn set_huge_pages(on: bool) {
    // SAFETY: takes numbers only. Absence of the feature is fine.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, libc::c_ulong::from(!on), 0, 0, 0) };
}

/// Closes every descriptor from `first` on.
pub(crate) fn close_from(first: libc::c_uint) -> io::Result<()> {
    // SAFETY: called before anything of ours was opened, so that no owner loses its descriptor.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Takes the descriptor that the parent left at a fixed number.
///
/// Must be called at most once for a number.
pub(crate) fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: fcntl takes numbers; the result is checked.
    owned(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) })
}

/// Forks a child with default signal handling that runs `exe` with `socket` as its descriptor 0 and
/// dies with this process. `failed` runs in the child when that did not work.
pub(crate) fn spawn(
    exe: BorrowedFd<'_>,
    name: &CStr,
    socket: BorrowedFd<'_>,
    failed: impl FnOnce(io::Error),
) -> io::Result<Pid> {
    // SAFETY: this process has one thread, so that the child may do whatever the parent may.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if let Some(pid) = Pid::from_raw(pid) {
        return Ok(pid);
    }
    failed(become_program(exe, name, socket));
    // SAFETY: ends the child without running the parent's exit handlers.
    unsafe { libc::_exit(127) }
}

/// In a forked child: everything that must not be inherited is put right, then execveat(2).
fn become_program(exe: BorrowedFd<'_>, name: &CStr, socket: BorrowedFd<'_>) -> io::Error {
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    set_huge_pages(true);
    // SAFETY: takes numbers only; descriptor 0 of the child is nobody's `OwnedFd`.
    if unsafe { libc::dup2(socket.as_raw_fd(), 0) } < 0 {
        return io::Error::last_os_error();
    }
    // Not through the C library, which keeps a few signals for itself and so would leave them ignored.
    let default = [0_u64; 4];
    for signal in 1..=64 {
        let (old, size) = (ptr::null_mut::<u64>(), size_of::<SignalSet>());
        // SAFETY: a kernel `sigaction` of zeros means the default. It fails for SIGKILL and SIGSTOP, as it should.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), old, size) };
    }
    if let Err(e) = set_signal_mask(0) {
        return e;
    }
    let (empty, flags) = (c"", libc::AT_EMPTY_PATH);
    let argv = [name.as_ptr(), ptr::null()];
    let envp: [*const libc::c_char; 1] = [ptr::null()];
    // SAFETY: the strings end in NUL and the arrays in a null pointer.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            exe.as_raw_fd(),
            empty.as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            flags,
        )
    };
    io::Error::last_os_error()
}

/// A child that has ended and is not reaped yet, whichever it is.
pub(crate) fn ended_child() -> Option<Pid> {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the kernel fills in `info`, or leaves it zero when there is nothing to tell.
    if unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), options) } < 0 {
        return None;
    }
    // SAFETY: zero is a valid value for every field.
    let info = unsafe { info.assume_init() };
    // SAFETY: waitid(2) always sets this member of the union.
    Pid::from_raw(unsafe { info.si_pid() })
}

/// There is a child, dead or alive.
pub(crate) fn has_children() -> bool {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: a null pointer says that no answer is wanted.
    let done = unsafe { libc::waitid(libc::P_ALL, 0, ptr::null_mut(), options) };
    done == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ECHILD)
}

/// Ends this process at once.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: nothing of this process needs an exit handler.
    unsafe { libc::_exit(code) }
}

fn owned(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
