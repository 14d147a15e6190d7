//! Recursive removal by descriptors.

use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, RawDir};
use rustix::io::Errno;

use super::{open_dir, unique_name};

/// Deeper directories are first moved up, so that neither the stack nor the descriptors run out.
const DEPTH: usize = 48;

/// How often an entry may change between directory and file under our hands.
const SWAPS: u32 = 64;

/// Removes a file, link or directory tree. An absent one is fine.
///
/// Only `unlinkat` and `openat(O_NOFOLLOW)` relative to descriptors are used: somebody who swaps a
/// directory for a link meanwhile (CVE-2022-21658) loses the link, not what it points at.
///
/// # Errors
/// What the kernel says; what was not reached stays.
pub fn remove_tree(dir: BorrowedFd<'_>, name: impl AsRef<OsStr>) -> io::Result<()> {
    let name = name.as_ref();
    for _ in 0..SWAPS {
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error.into()),
        }
        match open_dir(dir, name) {
            Ok(top) => {
                if remove_dir(dir, name, &top)? {
                    return Ok(());
                }
            }
            Err(error) if is_swapped(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other(
        "it is being changed by somebody else all the time",
    ))
}

/// Empties and removes `top`, called `name` in `dir`. False: it is something else by now.
fn remove_dir(dir: BorrowedFd<'_>, name: &OsStr, top: &OwnedFd) -> io::Result<bool> {
    loop {
        let removed = empty(top, top.as_fd(), 0)?;
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            Err(Errno::NOTDIR) => return Ok(false),
            // Deep parts were moved up, or somebody adds: go on as long as it gets less.
            Err(Errno::NOTEMPTY | Errno::EXIST) if removed > 0 => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Removes what is in `dir`; directories too deep below `top` are moved into it. Returns how much was done.
fn empty(dir: &OwnedFd, top: BorrowedFd<'_>, depth: usize) -> io::Result<u64> {
    let mut done = 0;
    loop {
        let (removed, directories) = unlink_files(dir)?;
        done += removed;
        if directories.is_empty() {
            return Ok(done);
        }
        let mut progress = 0;
        for name in directories {
            progress += remove_child(dir, top, &name, depth)?;
        }
        done += progress;
        if progress == 0 || depth == 0 {
            return Ok(done);
        }
    }
}

fn remove_child(dir: &OwnedFd, top: BorrowedFd<'_>, name: &OsStr, depth: usize) -> io::Result<u64> {
    if depth + 1 >= DEPTH {
        return match rustix::fs::renameat(dir, name, top, unique_name(".deep-")) {
            Ok(()) => Ok(1),
            Err(Errno::NOENT) => Ok(0),
            Err(error) => Err(error.into()),
        };
    }
    let child = match open_dir(dir.as_fd(), name) {
        Ok(child) => child,
        // Removed or swapped meanwhile: the next round sees what it is now.
        Err(error) if is_swapped(&error) => return Ok(0),
        Err(error) => return Err(error),
    };
    let done = empty(&child, top, depth + 1)?;
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) => Ok(done + 1),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::NOTEMPTY | Errno::EXIST) => Ok(done),
        Err(error) => Err(error.into()),
    }
}

/// One pass over a directory: unlinks everything that can be unlinked, returns the directories.
fn unlink_files(dir: &OwnedFd) -> io::Result<(u64, Vec<OsString>)> {
    let mut removed = 0;
    let mut directories = Vec::new();
    rustix::fs::seek(dir, rustix::fs::SeekFrom::Start(0))?;
    let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if entry.file_type().is_dir() {
            directories.push(OsStr::from_bytes(name.to_bytes()).to_owned());
            continue;
        }
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) => removed += 1,
            Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => directories.push(OsStr::from_bytes(name.to_bytes()).to_owned()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok((removed, directories))
}

fn is_swapped(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
    )
}
