//! Network namespaces: entering one on a thread of its own, and pinning one to a path.
//!
//! A thread that has entered another namespace is never given back to a pool: it ends, so that no
//! later work runs in the wrong namespace.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sched::{CloneFlags, setns, unshare};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

/// `NSFS_MAGIC` of `linux/magic.h`: the file system that namespaces live in.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// `LOOPBACK_IFINDEX` of the kernel: the loopback device is the first of every namespace.
const LOOPBACK_INDEX: u32 = 1;

/// Runs `work` in the network namespace that `netns` names, on a thread that ends afterwards.
///
/// # Errors
/// When the path cannot be opened, is not a network namespace, or no thread can be started.
pub fn run_in<T, F>(netns: &Path, work: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> T + Send,
{
    run_in_fd(File::open(netns)?, work)
}

/// As [`run_in`], for a namespace that is open already.
///
/// # Errors
/// When the descriptor is not a network namespace, or no thread can be started.
pub fn run_in_fd<T, F>(netns: impl AsFd + Send, work: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> T + Send,
{
    on_thread(move || {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        Ok(work())
    })
}

/// Whether `path` is a namespace that still exists: after a reboot, or once it was unpinned by
/// somebody else, what is left is an ordinary file.
pub fn is_pinned(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| u64::try_from(found.f_type) == Ok(NSFS_MAGIC))
}

/// Pins the namespace `source` (`/proc/<pid>/ns/net`, say) to `target`, which must not exist.
///
/// # Errors
/// When the file cannot be made or the namespace cannot be bound to it; no file is left then.
pub fn pin(source: &Path, target: &Path) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o444)
        .open(target)?;
    rustix::mount::mount_bind(source, target).map_err(|error| {
        // The file was ours a moment ago; the error that matters is the first one.
        let _ = std::fs::remove_file(target);
        error.into()
    })
}

/// Takes away a pin, however often it was mounted; one that does not exist is fine. The namespace
/// ends with its last process.
///
/// # Errors
/// When the mount or the file cannot be removed.
pub fn unpin(path: &Path) -> io::Result<()> {
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    loop {
        match rustix::mount::unmount(path, flags) {
            Ok(()) => {}
            Err(Errno::INVAL) => break,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes a network namespace with its loopback up, pinned to `path`, which must not exist.
///
/// # Errors
/// When it cannot be made or pinned.
pub fn new_pinned(path: &Path) -> io::Result<()> {
    on_thread(move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        loopback_up()?;
        pin(Path::new("/proc/thread-self/ns/net"), path)
    })
}

/// Brings the loopback device of the calling thread's namespace up.
///
/// # Errors
/// When the kernel refuses.
pub fn loopback_up() -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.send_to(&link_up_message(LOOPBACK_INDEX), &SocketAddr::new(0, 0), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    // An nlmsghdr is 16 bytes; nlmsgerr begins with the negated error number.
    let code = answer
        .get(16..20)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes)
        .ok_or_else(|| io::Error::other("netlink answer is too short"))?;
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(-code))
    }
}

/// `RTM_NEWLINK` that sets `IFF_UP` on an existing device and nothing else: an nlmsghdr and an
/// ifinfomsg of 16 bytes each (rtnetlink(7)).
fn link_up_message(index: u32) -> [u8; 32] {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 0x1 | 0x4;
    const IFF_UP: u32 = 1;
    let mut message = [0; 32];
    message[0..4].copy_from_slice(&32_u32.to_ne_bytes());
    message[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&NLM_F_REQUEST_ACK.to_ne_bytes());
    message[20..24].copy_from_slice(&index.to_ne_bytes());
    message[24..28].copy_from_slice(&IFF_UP.to_ne_bytes());
    message[28..32].copy_from_slice(&IFF_UP.to_ne_bytes());
    message
}

/// Runs `work` on a new thread and waits for it.
fn on_thread<T, F>(work: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> io::Result<T> + Send,
{
    thread::scope(|scope| {
        thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)?
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(path: &str) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn a_pinned_namespace_is_entered_and_left_and_unpinned_twice() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ns");
        new_pinned(&path).unwrap();
        assert!(is_pinned(&path));
        let home = inode("/proc/thread-self/ns/net");
        let (inside, state) = run_in(&path, || {
            (
                inode("/proc/thread-self/ns/net"),
                std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default(),
            )
        })
        .unwrap();
        assert_ne!(inside, home);
        assert_eq!(inode("/proc/thread-self/ns/net"), home);
        assert!(state.contains("lo"), "loopback is not up: {state:?}");
        // Pinned once more on top: both go.
        rustix::mount::mount_bind(&path, &path).unwrap();
        unpin(&path).unwrap();
        assert!(!path.exists());
        unpin(&path).unwrap();
    }

    #[test]
    fn an_ordinary_file_is_no_namespace() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(!is_pinned(file.path()));
        assert!(run_in(file.path(), || ()).is_err());
        unpin(file.path()).unwrap();
        assert!(!file.path().exists());
    }

    #[test]
    fn a_pin_never_replaces_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = pin(Path::new("/proc/self/ns/net"), file.path()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert!(file.path().exists());
    }
}
