//! Copying a tree with all that belongs to it: owners, modes, extended attributes, times, links, devices, holes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::visit::{Next, Visit, visit_tree};
use super::{open_dir, write_all};

/// Bytes that are copied at once.
const CHUNK: usize = 256 << 10;

/// Open directories of the copy; those nearest to its root are closed until they are needed again.
const OPEN: usize = 32;

/// Files with several names that are remembered at once; a further one becomes a file for each name.
const LINKED: usize = 1 << 17;

/// Copies what is in the directory `from` into the empty directory `to`, which becomes like `from` itself: on one file
/// system, never through a link, opening nothing but directories and regular files. `go_on` is asked again and again
/// whether to. Memory and descriptors do not grow with the tree, but for files with several names up to a bound.
///
/// Nobody else may change `to` meanwhile. The label of SELinux is not copied: it says what may use the original.
///
/// # Errors
/// What the kernel says, with the path below `from`, and what `go_on` says; `to` has a part of it then.
pub fn copy_tree(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    go_on: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<()> {
    let from = open_dir(from, OsStr::new("."))?;
    let stat = rustix::fs::fstat(&from)?;
    let top = Level {
        dir: Some(open_dir(to, OsStr::new("."))?),
        attributes: Attributes::read(from.as_fd(), c".", stat)?,
    };
    let mut copy = Copy {
        to,
        levels: vec![top],
        linked: HashMap::new(),
        buffer: Vec::new(),
        go_on,
    };
    visit_tree(from.as_fd(), &mut |visit| {
        copy.take(visit).map_err(|e| named(visit.path, &e))
    })?;
    while !copy.levels.is_empty() {
        copy.leave()?;
    }
    Ok(())
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{path:?}: {error}"))
}

/// A directory of the copy. What the original's attributes say comes last: they may forbid or change what is made in it.
struct Level {
    dir: Option<OwnedFd>,
    attributes: Attributes,
}

struct Copy<'a> {
    to: BorrowedFd<'a>,
    levels: Vec<Level>,
    /// By device and inode: the first name, and how many more there may be.
    linked: HashMap<(u64, u64), (PathBuf, u64)>,
    buffer: Vec<u8>,
    go_on: &'a mut dyn FnMut() -> io::Result<()>,
}

impl Copy<'_> {
    fn take(&mut self, visit: &Visit<'_>) -> io::Result<Next> {
        (self.go_on)()?;
        let depth = visit.path.components().count();
        while self.levels.len() > depth {
            self.leave()?;
        }
        let stat = rustix::fs::statat(visit.parent, visit.name, AtFlags::SYMLINK_NOFOLLOW)?;
        let here = self.levels.last().and_then(|level| level.dir.as_ref());
        let here = here.ok_or(Errno::NOENT)?.try_clone()?;
        let attributes = Attributes::read(visit.parent, visit.name, stat)?;
        if FileType::from_raw_mode(stat.st_mode).is_dir() {
            rustix::fs::mkdirat(&here, visit.name, Mode::RWXU)?;
            let dir = open_dir(here.as_fd(), OsStr::from_bytes(visit.name.to_bytes()))?;
            self.enter(Level {
                dir: Some(dir),
                attributes,
            });
            return Ok(Next::Enter);
        }
        if !self.link(visit, &stat, here.as_fd())? {
            self.make(visit, &stat, here.as_fd())?;
            attributes.write(here.as_fd(), visit.name)?;
        }
        Ok(Next::Skip)
    }

    fn enter(&mut self, level: Level) {
        self.levels.push(level);
        if let Some(far) = self.levels.len().checked_sub(OPEN + 1)
            && let Some(level) = self.levels.get_mut(far)
        {
            level.dir = None;
        }
    }

    fn leave(&mut self) -> io::Result<()> {
        let Some(left) = self.levels.pop() else {
            return Ok(());
        };
        let dir = left.dir.ok_or(Errno::NOENT)?;
        if let Some(above) = self.levels.last_mut()
            && above.dir.is_none()
        {
            above.dir = Some(open_dir(dir.as_fd(), OsStr::new(".."))?);
        }
        left.attributes.write(dir.as_fd(), c".")
    }

    /// Makes a further name of a file that is copied already. False: this is its first one.
    fn link(&mut self, visit: &Visit<'_>, stat: &Stat, here: BorrowedFd<'_>) -> io::Result<bool> {
        // The kernel's type of it differs between architectures.
        #[allow(clippy::useless_conversion)]
        let names = u64::from(stat.st_nlink);
        if names < 2 {
            return Ok(false);
        }
        let room = self.linked.len() < LINKED;
        match self.linked.entry((stat.st_dev, stat.st_ino)) {
            Entry::Occupied(mut known) => {
                let (first, left) = known.get_mut();
                match rustix::fs::linkat(self.to, &*first, here, visit.name, AtFlags::empty()) {
                    Ok(()) => {}
                    // Too deep, or more names than the file system gives one file.
                    Err(Errno::NAMETOOLONG | Errno::MLINK) => return Ok(false),
                    Err(error) => return Err(error.into()),
                }
                *left -= 1;
                if *left == 0 {
                    known.remove();
                }
                Ok(true)
            }
            Entry::Vacant(new) => {
                if room {
                    new.insert((visit.path.to_owned(), names - 1));
                }
                Ok(false)
            }
        }
    }

    fn make(&mut self, visit: &Visit<'_>, stat: &Stat, here: BorrowedFd<'_>) -> io::Result<()> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file(visit, stat, here),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(visit.parent, visit.name, Vec::new())?;
                Ok(rustix::fs::symlinkat(target.as_c_str(), here, visit.name)?)
            }
            kind => {
                let mode = Mode::RUSR | Mode::WUSR;
                Ok(rustix::fs::mknodat(
                    here,
                    visit.name,
                    kind,
                    mode,
                    stat.st_rdev,
                )?)
            }
        }
    }

    fn file(&mut self, visit: &Visit<'_>, stat: &Stat, here: BorrowedFd<'_>) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let from = rustix::fs::openat(visit.parent, visit.name, flags, Mode::empty())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let to = rustix::fs::openat(here, visit.name, flags, Mode::RUSR | Mode::WUSR)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.buffer.resize(CHUNK, 0);
        let mut at = 0;
        while let Some((start, end)) = data(&from, at, size)? {
            rustix::fs::seek(&from, SeekFrom::Start(start))?;
            rustix::fs::seek(&to, SeekFrom::Start(start))?;
            at = start;
            while at < end {
                (self.go_on)()?;
                let most = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
                let room = self.buffer.get_mut(..most).unwrap_or_default();
                let read = rustix::io::retry_on_intr(|| rustix::io::read(&from, &mut *room))?;
                if read == 0 {
                    break;
                }
                write_all(to.as_fd(), room.get(..read).unwrap_or_default())?;
                at += read as u64;
            }
            at = end;
        }
        Ok(rustix::fs::ftruncate(&to, size)?)
    }
}

/// The next part of a file, from `at` on, that is no hole.
fn data(file: &OwnedFd, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // A file system that does not know where holes are.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some((at, size))),
        Err(error) => return Err(error.into()),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size);
    Ok((start < end).then_some((start, end)))
}

/// What belongs to a file besides its content.
struct Attributes {
    stat: Stat,
    extended: Vec<(OsString, Vec<u8>)>,
}

impl Attributes {
    fn read(parent: BorrowedFd<'_>, name: &CStr, stat: Stat) -> io::Result<Self> {
        let path = through_proc(parent, name);
        let mut extended = Vec::new();
        let length = match rustix::fs::llistxattr_query(&path) {
            Err(Errno::OPNOTSUPP) => 0,
            length => length?,
        };
        let mut list = vec![0; length];
        if length > 0 {
            let length = rustix::fs::llistxattr(&path, &mut list[..])?;
            list.truncate(length);
        }
        for name in list
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
        {
            if name == b"security.selinux" {
                continue;
            }
            let name = OsStr::from_bytes(name);
            let mut value = vec![0; rustix::fs::lgetxattr_query(&path, name)?];
            let length = rustix::fs::lgetxattr(&path, name, &mut value[..])?;
            value.truncate(length);
            extended.push((name.to_owned(), value));
        }
        Ok(Self { stat, extended })
    }

    /// In the order owner, extended attributes, mode, times: chown clears set-id bits and capabilities, and an access
    /// control list changes the mode.
    fn write(&self, parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
        let stat = &self.stat;
        let itself = AtFlags::SYMLINK_NOFOLLOW;
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), itself)?;
        if !self.extended.is_empty() {
            let path = through_proc(parent, name);
            for (name, value) in &self.extended {
                rustix::fs::lsetxattr(&path, name, value, XattrFlags::empty())?;
            }
        }
        if !FileType::from_raw_mode(stat.st_mode).is_symlink() {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            rustix::fs::chmodat(parent, name, mode, AtFlags::empty())?;
        }
        Ok(rustix::fs::utimensat(parent, name, &times(stat), itself)?)
    }
}

/// Extended attributes of what must not be opened are reached by a path only.
fn through_proc(parent: BorrowedFd<'_>, name: &CStr) -> PathBuf {
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    PathBuf::from(OsString::from_vec(path))
}

// The kernel's types differ between architectures.
#[allow(clippy::useless_conversion, clippy::unnecessary_fallible_conversions)]
fn times(stat: &Stat) -> Timestamps {
    let time = |tv_sec, nsec: u64| Timespec {
        tv_sec,
        tv_nsec: nsec.try_into().unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec.try_into().unwrap_or(0)),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec.try_into().unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests;
