//! Going through a tree that may be as deep, as wide and as restless as its owner likes.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::open_dir;

/// More open directories than this, and those nearest to the root are closed until they are needed again.
const OPEN: usize = 32;

/// Something in a tree.
#[derive(Debug)]
pub struct Visit<'a> {
    /// The directory that it is in.
    pub parent: BorrowedFd<'a>,
    /// Its name there.
    pub name: &'a CStr,
    /// Where it is, relative to the root.
    pub path: &'a Path,
    /// What the directory says it is; on some file systems `Unknown`.
    pub kind: FileType,
}

/// How to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// With what is in it, if it is a directory.
    Enter,
    /// With what comes after it.
    Skip,
    /// Not at all.
    Stop,
}

struct Level {
    dir: Option<Dir>,
    /// Device and inode.
    id: (u64, u64),
    /// Where to read on.
    at: i64,
}

/// Calls `visit` for everything below `dir`, directories before what they contain, on one file system and
/// never through a link. What comes or goes meanwhile is seen or not; when a directory is moved away while
/// something in it is visited, that is the end. Descriptors and memory do not grow with the tree.
///
/// # Errors
/// What the kernel says, besides of things that go away, and what `visit` says.
pub fn visit_tree(
    dir: BorrowedFd<'_>,
    visit: &mut dyn FnMut(&Visit<'_>) -> io::Result<Next>,
) -> io::Result<()> {
    let root = rustix::fs::fstat(dir)?;
    let top = Dir::new(open_dir(dir, OsStr::new("."))?)?;
    let mut levels = vec![Level::new(top, &root)];
    let mut path = PathBuf::new();
    while let Some(level) = levels.last_mut() {
        let Some(dir) = level.dir.as_mut() else {
            break;
        };
        let Some(entry) = dir.read() else {
            path.pop();
            if !leave(&mut levels)? {
                break;
            }
            continue;
        };
        let entry = entry?;
        level.at = entry.offset();
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        path.push(OsStr::from_bytes(name.to_bytes()));
        let next = visit(&Visit {
            parent: dir.fd()?,
            name,
            path: &path,
            kind: entry.file_type(),
        })?;
        if next == Next::Stop {
            break;
        }
        let may_enter = matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
        let entered = if next == Next::Enter && may_enter {
            enter(dir.fd()?, name, root.st_dev)?
        } else {
            None
        };
        match entered {
            Some(child) => push(&mut levels, child),
            None => {
                path.pop();
            }
        }
    }
    Ok(())
}

impl Level {
    fn new(dir: Dir, stat: &Stat) -> Self {
        Self {
            dir: Some(dir),
            id: id(stat),
            at: 0,
        }
    }
}

fn id(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn push(levels: &mut Vec<Level>, child: Level) {
    levels.push(child);
    if let Some(far) = levels.len().checked_sub(OPEN + 1)
        && let Some(level) = levels.get_mut(far)
    {
        level.dir = None;
    }
}

/// Opens what is a directory of the same file system.
fn enter(parent: BorrowedFd<'_>, name: &CStr, device: u64) -> io::Result<Option<Level>> {
    let dir = match open_dir(parent, OsStr::from_bytes(name.to_bytes())) {
        Ok(dir) => dir,
        Err(error) => {
            return match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
                _ => Err(error),
            };
        }
    };
    let stat = rustix::fs::fstat(&dir)?;
    if stat.st_dev != device {
        return Ok(None);
    }
    Ok(Some(Level::new(Dir::new(dir)?, &stat)))
}

/// Back to the directory above, which is opened again if it was closed. False: it is not there any more.
fn leave(levels: &mut Vec<Level>) -> io::Result<bool> {
    let left = levels.pop().and_then(|level| level.dir);
    let (Some(above), Some(left)) = (levels.last_mut(), left) else {
        return Ok(false);
    };
    if above.dir.is_some() {
        return Ok(true);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let again = match rustix::fs::openat(left.fd()?, "..", flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(false),
        result => result?,
    };
    // Somebody may have moved it: what is above it now is none of ours.
    if id(&rustix::fs::fstat(&again)?) != above.id {
        return Ok(false);
    }
    let mut dir = Dir::new(again)?;
    dir.seek(above.at)?;
    above.dir = Some(dir);
    Ok(true)
}

/// Blocks (in bytes) and inodes of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TreeUsage {
    /// Allocated bytes.
    pub bytes: u64,
    /// Inodes; a file with several names counts once per name.
    pub inodes: u64,
}

/// Adds up a tree, itself included, on one file system, never through a link. What vanishes
/// meanwhile is not counted; of a file with several names each name gets its part of the bytes.
///
/// # Errors
/// See [`visit_tree`].
pub fn tree_usage(dir: BorrowedFd<'_>) -> io::Result<TreeUsage> {
    let mut usage = TreeUsage::default();
    usage.add(&rustix::fs::fstat(dir)?);
    visit_tree(dir, &mut |visit| {
        match rustix::fs::statat(visit.parent, visit.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(Next::Skip),
            result => usage.add(&result?),
        }
        Ok(Next::Enter)
    })?;
    Ok(usage)
}

impl TreeUsage {
    fn add(&mut self, stat: &Stat) {
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        let is_dir = FileType::from_raw_mode(stat.st_mode).is_dir();
        // The kernel's type of it differs between architectures.
        #[allow(clippy::useless_conversion)]
        let names = u64::from(stat.st_nlink).max(1);
        let names = if is_dir { 1 } else { names };
        self.bytes += blocks / names;
        self.inodes += 1;
    }
}
