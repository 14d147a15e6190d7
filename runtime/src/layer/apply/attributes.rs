//! Owner, mode, extended attributes and times, with as few system calls as do it.
//!
//! Always in this order, because chown clears set-id bits and capabilities.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::Entry;
use crate::layer::tar::Time;

/// Sets what entries say.
pub(super) struct Attributes {
    /// Mode bits that a new file may lose; all when it is not known.
    umask: u32,
    /// Who owns what we create.
    owner: (u32, u32),
}

/// Both times are the entry's: what access time an archive was made with is of no interest.
pub(super) fn times(time: Time) -> Timestamps {
    let time = Timespec {
        tv_sec: time.sec,
        tv_nsec: time.nsec.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// S21: `security.capability` and `user.*`, but nothing that overlayfs reads (also with `userxattr`).
fn is_kept(name: &[u8]) -> bool {
    name == b"security.capability"
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
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
        &self,
        file: BorrowedFd<'_>,
        entry: &Entry,
        setgid_parent: bool,
        mode_again: bool,
    ) -> io::Result<u64> {
        if self.is_foreign(entry, setgid_parent) {
            chown(file, entry)?;
        }
        if mode_again {
            rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode))?;
        }
        let dropped = set_xattrs(file, entry)?;
        rustix::fs::futimens(file, &times(entry.mtime))?;
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
        if setgid_parent || entry.mode & (0o6000 | self.umask) != 0 {
            rustix::fs::fchmod(dir, Mode::from_raw_mode(entry.mode))?;
        }
        set_xattrs(dir, entry)
    }

    /// Everything about a directory that was there already.
    pub(super) fn existing(&mut self, dir: BorrowedFd<'_>, entry: &Entry) -> io::Result<u64> {
        chown(dir, entry)?;
        rustix::fs::fchmod(dir, Mode::from_raw_mode(entry.mode))?;
        let dropped = set_xattrs(dir, entry)?;
        rustix::fs::futimens(dir, &times(entry.mtime))?;
        Ok(dropped)
    }

    /// Owner and times of a new symbolic link.
    pub(super) fn link(
        &self,
        parent: BorrowedFd<'_>,
        base: &[u8],
        entry: &Entry,
        setgid_parent: bool,
    ) -> io::Result<()> {
        if self.is_foreign(entry, setgid_parent) {
            chown_at(parent, base, entry)?;
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(parent, base, &times(entry.mtime), flags)?;
        Ok(())
    }

    /// Owner, mode and times of a new device or pipe, which is never opened.
    pub(super) fn node(
        &self,
        parent: BorrowedFd<'_>,
        base: &[u8],
        entry: &Entry,
    ) -> io::Result<()> {
        chown_at(parent, base, entry)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = rustix::fs::openat(parent, base, flags, Mode::empty())?;
        // fchmod does not take such a descriptor (before Linux 6.6's fchmodat2), its name in /proc does.
        let path = format!("/proc/self/fd/{}", node.as_fd().as_raw_fd());
        rustix::fs::chmod(path, Mode::from_raw_mode(entry.mode))?;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(parent, base, &times(entry.mtime), flags)?;
        Ok(())
    }
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

fn set_xattrs(fd: BorrowedFd<'_>, entry: &Entry) -> io::Result<u64> {
    let mut dropped = 0;
    for (name, value) in &entry.xattrs {
        if !is_kept(name) {
            dropped += 1;
            continue;
        }
        match rustix::fs::fsetxattr(fd, OsStr::from_bytes(name), value, XattrFlags::empty()) {
            Ok(()) => {}
            // A file system without user attributes is no reason to refuse an image; one that
            // loses capabilities is.
            Err(Errno::OPNOTSUPP) if name.starts_with(b"user.") => dropped += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(dropped)
}

/// The umask cannot be asked for without setting it, which all threads would see; the kernel tells it here.
fn umask() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(line.trim(), 8).ok()
}
