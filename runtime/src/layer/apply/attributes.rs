//! Owner, mode, extended attributes and times, with as few system calls as do it.
//!
//! Always in the order owner, extended attributes, mode, times: chown clears set-id bits and capabilities, and an
//! access control list changes the mode, which the entry's mode has the last word on.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::Entry;
use crate::layer::shown;
use crate::layer::tar::Time;

/// Sets what entries say.
pub(super) struct Attributes {
    /// Mode bits that a new file may lose; all when it is not known.
    umask: u32,
    /// Who owns what we create.
    owner: (u32, u32),
    /// A directory may have a default access control list by now, which changes the modes of what is made in it.
    lists: bool,
}

/// What a time becomes that cannot be counted in 64 bits of nanoseconds, or lies before 1970: the epoch, as in
/// containerd and Docker, so that a layer looks the same on every file system.
fn bounded(time: Time) -> Time {
    /// 2262-04-11.
    const LAST: i64 = i64::MAX / 1_000_000_000;
    if (0..LAST).contains(&time.sec) {
        time
    } else {
        Time::default()
    }
}

/// Both times of an entry. A file was not read before it was changed.
pub(super) fn times(entry: &Entry) -> Timestamps {
    let modified = bounded(entry.mtime);
    let accessed = entry.atime.map_or(modified, bounded).max(modified);
    Timestamps {
        last_access: timespec(accessed),
        last_modification: timespec(modified),
    }
}

fn timespec(time: Time) -> Timespec {
    Timespec {
        tv_sec: time.sec,
        tv_nsec: time.nsec.into(),
    }
}

/// S21: capabilities, access control lists and `user.*`, but nothing that overlayfs reads (also with `userxattr`).
pub(in crate::layer) fn is_kept(name: &[u8]) -> bool {
    matches!(
        name,
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default"
    ) || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

impl Attributes {
    pub(super) fn new() -> Self {
        let owner = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        Self {
            umask: umask().unwrap_or(0o777),
            owner,
            lists: false,
        }
    }

    /// The mode to create a file with, and whether it has to be set again.
    pub(super) fn file_mode(&self, entry: &Entry) -> (Mode, bool) {
        let again = entry.mode & (0o7000 | self.umask) != 0;
        (Mode::from_raw_mode(entry.mode & 0o777), again)
    }

    fn is_foreign(&self, entry: &Entry, setgid_parent: bool) -> bool {
        setgid_parent || (entry.uid, entry.gid) != self.owner
    }

    /// Everything about a new file but its content; returns how many extended attributes were dropped.
    pub(super) fn file(
        &mut self,
        file: BorrowedFd<'_>,
        entry: &Entry,
        setgid_parent: bool,
        mode_again: bool,
    ) -> io::Result<u64> {
        if self.is_foreign(entry, setgid_parent) {
            chown(file, entry)?;
        }
        let dropped = self.set_xattrs(file, entry)?;
        if mode_again || self.lists {
            rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode))?;
        }
        rustix::fs::futimens(file, &times(entry))?;
        Ok(dropped)
    }

    /// Everything about a new directory but its times, which are set when it is left.
    pub(super) fn directory(
        &mut self,
        dir: BorrowedFd<'_>,
        entry: &Entry,
        setgid_parent: bool,
    ) -> io::Result<u64> {
        if self.is_foreign(entry, setgid_parent) {
            chown(dir, entry)?;
        }
        let dropped = self.set_xattrs(dir, entry)?;
        if setgid_parent || self.lists || entry.mode & (0o6000 | self.umask) != 0 {
            rustix::fs::fchmod(dir, Mode::from_raw_mode(entry.mode))?;
        }
        Ok(dropped)
    }

    /// Everything about a directory that was there already.
    pub(super) fn existing(&mut self, dir: BorrowedFd<'_>, entry: &Entry) -> io::Result<u64> {
        chown(dir, entry)?;
        let dropped = self.set_xattrs(dir, entry)?;
        rustix::fs::fchmod(dir, Mode::from_raw_mode(entry.mode))?;
        rustix::fs::futimens(dir, &times(entry))?;
        Ok(dropped)
    }

    /// Everything about a new symbolic link, which has no mode.
    pub(super) fn link(
        &mut self,
        parent: BorrowedFd<'_>,
        base: &[u8],
        entry: &Entry,
        setgid_parent: bool,
    ) -> io::Result<u64> {
        if self.is_foreign(entry, setgid_parent) {
            chown_at(parent, base, entry)?;
        }
        let mut dropped = 0;
        if !entry.xattrs.is_empty() {
            dropped = self.set_xattrs_at(&handle(parent, base)?, entry)?;
        }
        set_times_at(parent, base, entry)?;
        Ok(dropped)
    }

    /// Everything about a new device or pipe, which is never opened.
    pub(super) fn node(
        &mut self,
        parent: BorrowedFd<'_>,
        base: &[u8],
        entry: &Entry,
    ) -> io::Result<u64> {
        chown_at(parent, base, entry)?;
        let node = handle(parent, base)?;
        let dropped = self.set_xattrs_at(&node, entry)?;
        chmod_at(&node, entry)?;
        set_times_at(parent, base, entry)?;
        Ok(dropped)
    }

    /// What the entry of a hard link says of the file that both names are of: the last entry counts, as in
    /// containerd. What is right already is left alone, for chown would clear set-id bits and capabilities.
    pub(super) fn linked(
        &mut self,
        parent: BorrowedFd<'_>,
        base: &[u8],
        entry: &Entry,
        stat: &Stat,
    ) -> io::Result<u64> {
        let is_symlink = FileType::from_raw_mode(stat.st_mode).is_symlink();
        let foreign = (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid);
        if foreign {
            chown_at(parent, base, entry)?;
        }
        let mut dropped = 0;
        let mode_again = !is_symlink && (foreign || stat.st_mode & 0o7777 != entry.mode);
        if mode_again || !entry.xattrs.is_empty() {
            let node = handle(parent, base)?;
            dropped = self.set_xattrs_at(&node, entry)?;
            if !is_symlink {
                chmod_at(&node, entry)?;
            }
        }
        set_times_at(parent, base, entry)?;
        Ok(dropped)
    }

    fn set_xattrs(&mut self, fd: BorrowedFd<'_>, entry: &Entry) -> io::Result<u64> {
        self.each_xattr(fd, entry, |name, value| {
            rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
        })
    }

    /// The same by a handle that cannot be written through.
    fn set_xattrs_at(&mut self, node: &OwnedFd, entry: &Entry) -> io::Result<u64> {
        let path = path_of(node);
        self.each_xattr(node.as_fd(), entry, |name, value| {
            rustix::fs::setxattr(&path, name, value, XattrFlags::empty())
        })
    }

    fn each_xattr(
        &mut self,
        file: BorrowedFd<'_>,
        entry: &Entry,
        set: impl Fn(&OsStr, &[u8]) -> Result<(), Errno>,
    ) -> io::Result<u64> {
        let mut dropped = 0;
        for (name, value) in &entry.xattrs {
            if !is_kept(name) {
                dropped += 1;
                continue;
            }
            match set(OsStr::from_bytes(name), value) {
                Ok(()) => self.lists |= name.starts_with(b"system."),
                // What the file system does not know, or (EPERM) not on links and devices, is no reason to refuse
                // an image.
                Err(Errno::OPNOTSUPP) => dropped += 1,
                Err(Errno::PERM) if name.starts_with(b"user.") && entry.kind.is_special() => {
                    dropped += 1;
                }
                Err(error) => return Err(not_set(file, name, value, error)),
            }
        }
        Ok(dropped)
    }
}

/// More room than an extended attribute can ever need (`XATTR_SIZE_MAX`, and what it takes to find it).
const ROOM: u64 = 1 << 20;

/// Why an extended attribute was not set. ext4 has a block for all attributes of a file, and says `ENOSPC` when they
/// are more, too: that must not be taken for a full disk, which is the node's trouble and not the image's.
pub(super) fn not_set(file: BorrowedFd<'_>, name: &[u8], value: &[u8], error: Errno) -> io::Error {
    let is_full = || {
        let free = rustix::fs::fstatvfs(file).map(|vfs| vfs.f_bfree.saturating_mul(vfs.f_frsize));
        free.is_ok_and(|free| free < ROOM)
    };
    match error {
        Errno::TOOBIG | Errno::RANGE => {}
        Errno::NOSPC if !is_full() => {}
        error => return error.into(),
    }
    let text = format!(
        "the file system does not hold its extended attribute {:?} of {} bytes",
        shown(name),
        value.len()
    );
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

/// A descriptor of something that is neither opened nor followed.
fn handle(parent: BorrowedFd<'_>, base: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, base, flags, Mode::empty())?)
}

/// System calls on descriptors do not take a handle (chmod: before Linux 6.6's fchmodat2), its name in /proc they do.
fn path_of(handle: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", handle.as_raw_fd())
}

fn chmod_at(node: &OwnedFd, entry: &Entry) -> io::Result<()> {
    let mode = Mode::from_raw_mode(entry.mode);
    Ok(rustix::fs::chmod(path_of(node), mode)?)
}

fn set_times_at(parent: BorrowedFd<'_>, base: &[u8], entry: &Entry) -> io::Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::utimensat(parent, base, &times(entry), flags)?)
}

/// What a directory is that nothing is known about.
pub(in crate::layer) fn own_as_root(dir: BorrowedFd<'_>) -> io::Result<()> {
    rustix::fs::fchown(dir, Some(Uid::ROOT), Some(Gid::ROOT))?;
    Ok(rustix::fs::fchmod(dir, Mode::from_raw_mode(0o755))?)
}

fn chown(fd: BorrowedFd<'_>, entry: &Entry) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    Ok(rustix::fs::fchown(fd, Some(uid), Some(gid))?)
}

fn chown_at(parent: BorrowedFd<'_>, base: &[u8], entry: &Entry) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    Ok(rustix::fs::chownat(
        parent,
        base,
        Some(uid),
        Some(gid),
        flags,
    )?)
}

/// The umask cannot be asked for without setting it, which all threads would see; the kernel tells it here.
fn umask() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(line.trim(), 8).ok()
}
