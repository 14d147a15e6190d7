//! The directories between the root and the entry at hand, kept open.
//!
//! Archives are mostly in order of depth, so most entries need no lookup at all. A directory's time is
//! put back when it is left, for what is made in it changes it; so nothing needs to be remembered for the end,
//! and which directories no entry has described is marked on the disk.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, Mode, OFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::{Error, IMPLIED, Limits, whiteout};
use crate::sys::fs::{make_dirs, open_beneath, open_dir};

/// More open directories than this, and those nearest to the root are closed.
const OPEN: usize = 64;

/// Names of this many bytes fit into a directory's first block on every file system that matters.
const FIRST_BLOCK: usize = 2048;

const MODE: u32 = 0o755;

struct Level {
    /// How much of the current path leads here.
    end: usize,
    dir: Rc<OwnedFd>,
    /// Where it really is, after links.
    real: PathBuf,
    /// To be put back.
    times: Timestamps,
    touched: bool,
    setgid: bool,
    bytes: u64,
    names: usize,
}

pub(super) struct Dirs<'a> {
    root: BorrowedFd<'a>,
    /// Directory of the entry at hand, as the archive calls it.
    path: Vec<u8>,
    /// Never empty, starts with the root.
    levels: Vec<Level>,
    implied: u64,
    /// Of the longest real path, and of entries and what they imply together.
    limits: &'a Limits,
    /// Entries so far, and directories that they imply: a name of four kilobytes makes two thousand of them.
    counted: u64,
    empty_dir_bytes: u64,
    grown: u64,
    made: u64,
}

fn allocated(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * 512
}

fn is_setgid(stat: &Stat) -> bool {
    stat.st_mode & Mode::SGID.as_raw_mode() != 0
}

fn times_of(stat: &Stat) -> Timestamps {
    let time = |tv_sec, nsec| Timespec {
        tv_sec,
        tv_nsec: i64::try_from(nsec).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

impl<'a> Dirs<'a> {
    pub(super) fn new(root: BorrowedFd<'a>, limits: &'a Limits) -> Result<Self, Error> {
        let dir = open_dir(root, OsStr::new(".")).map_err(|e| Error::entry("open", b"", e))?;
        let level = Level::open(dir, PathBuf::new(), 0)?;
        Ok(Self {
            root,
            path: Vec::new(),
            empty_dir_bytes: level.bytes,
            levels: vec![level],
            implied: 0,
            limits,
            counted: 0,
            grown: 0,
            made: 0,
        })
    }

    fn top(&mut self) -> &mut Level {
        let last = self.levels.len() - 1;
        &mut self.levels[last]
    }

    /// Opens the directory with this clean name, making what is missing on the way.
    pub(super) fn enter(&mut self, dir: &[u8]) -> Result<Rc<OwnedFd>, Error> {
        if dir != self.path {
            self.go(dir)?;
        }
        Ok(Rc::clone(&self.top().dir))
    }

    fn go(&mut self, dir: &[u8]) -> Result<(), Error> {
        while self.levels.len() > 1 && !leads_to(&self.path, dir) {
            self.leave()?;
        }
        let end = self.top().end;
        let mut rest = dir.get(end..).unwrap_or_default();
        while !rest.is_empty() {
            rest = rest.strip_prefix(b"/").unwrap_or(rest);
            if self.jump(rest)? {
                break;
            }
            let first = rest.split(|byte| *byte == b'/').next().unwrap_or(rest);
            self.push(first)?;
            rest = rest.get(first.len()..).unwrap_or_default();
        }
        Ok(())
    }

    /// Enters a directory several names away at once, if it is there and no link is on the way.
    fn jump(&mut self, rest: &[u8]) -> Result<bool, Error> {
        if !rest.contains(&b'/') {
            return Ok(false);
        }
        let top = self.top();
        let path = Path::new(OsStr::from_bytes(rest));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        match open_beneath(top.dir.as_fd(), path, flags, Mode::empty()) {
            Ok(dir) => {
                let level = Level::open(dir, top.real.join(path), 0)?;
                self.add(rest, level)?;
                Ok(true)
            }
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
                _ => Err(Error::entry("open", rest, error)),
            },
        }
    }

    /// Enters the directory that was just made at the place at hand.
    ///
    /// `setgid` is what it is going to be, for it is not yet.
    pub(super) fn enter_made(
        &mut self,
        name: &[u8],
        times: Timestamps,
        setgid: bool,
    ) -> Result<Rc<OwnedFd>, Error> {
        let top = self.top();
        let dir = open_dir(top.dir.as_fd(), OsStr::from_bytes(name))
            .map_err(|error| Error::entry("open", name, error))?;
        let real = top.real.join(OsStr::from_bytes(name));
        self.check_depth(&real)?;
        let mut level = Level::open(dir, real, 0)?;
        level.times = times;
        level.setgid = setgid;
        level.touched = true;
        self.add(name, level)?;
        Ok(Rc::clone(&self.top().dir))
    }

    fn push(&mut self, name: &[u8]) -> Result<(), Error> {
        let failed = |error| Error::entry("open", name, error);
        let top = self.top();
        let here = Rc::clone(&top.dir);
        let real = top.real.join(OsStr::from_bytes(name));
        let level = match open_dir(here.as_fd(), OsStr::from_bytes(name)) {
            Ok(dir) => Level::open(dir, real, 0)?,
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOENT) => {
                    let level = self.make(&here, name, real)?;
                    self.mark(level.dir.as_fd(), name)?;
                    level
                }
                Some(Errno::NOTDIR | Errno::LOOP) => self.through(&here, name, &real)?,
                _ => return Err(failed(error)),
            },
        };
        self.add(name, level)
    }

    /// Something is in the way: a link, which leads to a place inside the root, or a whiteout of this layer.
    fn through(&mut self, here: &OwnedFd, name: &[u8], real: &Path) -> Result<Level, Error> {
        let failed = |error: std::io::Error| Error::entry("enter", name, error);
        let stat = rustix::fs::statat(here, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed(error.into()))?;
        if whiteout::is_whiteout(&stat) {
            return self.make_anew(here, name, real);
        }
        let mut made = Vec::new();
        let mode = Mode::from_raw_mode(MODE);
        let place = make_dirs(self.root, real, mode, &mut |path| {
            made.push(path.to_owned())
        })
        .map_err(failed)?;
        for path in made {
            self.count_made()?;
            let dir = open_beneath(self.root, &path, OFlags::RDONLY, Mode::empty());
            self.mark(dir.map_err(failed)?.as_fd(), name)?;
        }
        self.check_depth(&place.path)?;
        Level::open(place.dir, place.path, 0)
    }

    /// Makes a directory that the archive implies.
    fn make(&mut self, here: &OwnedFd, name: &[u8], real: PathBuf) -> Result<Level, Error> {
        let failed = |error: std::io::Error| Error::entry("create", name, error);
        self.count_made()?;
        rustix::fs::mkdirat(here, name, Mode::from_raw_mode(MODE))
            .map_err(|error| failed(error.into()))?;
        self.added(name);
        self.check_depth(&real)?;
        let dir = open_dir(here.as_fd(), OsStr::from_bytes(name)).map_err(failed)?;
        Level::open(dir, real, 0)
    }

    /// The layer removes the lower directory and fills a new one, which shows nothing of the old.
    fn make_anew(&mut self, here: &OwnedFd, name: &[u8], real: &Path) -> Result<Level, Error> {
        let failed = |error: std::io::Error| Error::entry("create", name, error);
        rustix::fs::unlinkat(here, name, AtFlags::empty()).map_err(|error| failed(error.into()))?;
        let level = self.make(here, name, real.to_owned())?;
        // The whiteout was an inode as well.
        self.made -= 1;
        whiteout::set_opaque(level.dir.as_fd()).map_err(failed)?;
        rustix::fs::fchmod(&*level.dir, Mode::from_raw_mode(MODE))
            .map_err(|error| failed(error.into()))?;
        Ok(level)
    }

    /// An entry is at hand.
    pub(super) fn count_entry(&mut self) -> Result<(), Error> {
        self.counted += 1;
        if self.counted > self.limits.entries {
            return Err(Error::Limit {
                what: "entries",
                limit: self.limits.entries,
            });
        }
        Ok(())
    }

    fn count_made(&mut self) -> Result<(), Error> {
        self.made += 1;
        self.grown += self.empty_dir_bytes;
        self.count_entry()
    }

    /// Through links, a path can get longer than any name; nobody could open what is there by its path.
    fn check_depth(&self, real: &Path) -> Result<(), Error> {
        let real = real.as_os_str().as_bytes();
        if real.len() > self.limits.path {
            return Err(Error::refused(real, "it is too deep"));
        }
        Ok(())
    }

    fn mark(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Error> {
        rustix::fs::fsetxattr(dir, IMPLIED, b"", XattrFlags::empty())
            .map_err(|error| Error::entry("mark", name, error))?;
        self.implied += 1;
        Ok(())
    }

    fn add(&mut self, name: &[u8], mut level: Level) -> Result<(), Error> {
        let end = self.top().end;
        self.path.truncate(end);
        if end > 0 {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        level.end = self.path.len();
        self.levels.push(level);
        if self.levels.len() > OPEN {
            for level in self.levels.drain(1..=OPEN / 2) {
                self.grown += level.leave()?;
            }
        }
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Error> {
        if let Some(level) = self.levels.pop() {
            self.grown += level.leave()?;
        }
        let end = self.top().end;
        self.path.truncate(end);
        Ok(())
    }

    /// Closes all but the root, so that what was entered is looked up again.
    pub(super) fn leave_all(&mut self) -> Result<(), Error> {
        while self.levels.len() > 1 {
            self.leave()?;
        }
        self.path.clear();
        Ok(())
    }

    /// Puts the root's time back, too.
    pub(super) fn close(&mut self) -> Result<(), Error> {
        self.leave_all()?;
        let root = &self.levels[0];
        self.grown += root.leave()?;
        Ok(())
    }

    /// Something was made or removed at the place at hand.
    pub(super) fn added(&mut self, name: &[u8]) {
        let top = self.top();
        top.touched = true;
        top.names += name.len() + 16;
    }

    /// Whether what is made here gets the directory's group.
    pub(super) fn setgid(&mut self) -> bool {
        self.top().setgid
    }

    /// An entry describes a directory that was there already.
    pub(super) fn described(&mut self, dir: BorrowedFd<'_>) -> Result<(), Error> {
        if self.implied == 0 {
            return Ok(());
        }
        match rustix::fs::fremovexattr(dir, IMPLIED) {
            Ok(()) => self.implied -= 1,
            Err(Errno::NODATA) => {}
            Err(error) => return Err(Error::entry("unmark", b"", error)),
        }
        Ok(())
    }

    /// An entry describes the root.
    pub(super) fn described_root(&mut self, times: Timestamps) {
        let root = &mut self.levels[0];
        root.times = times;
        root.touched = true;
    }

    /// What an empty directory takes on this file system.
    pub(super) fn empty_dir_bytes(&self) -> u64 {
        self.empty_dir_bytes
    }

    /// Bytes of directories that grew or were implied.
    pub(super) fn grown_bytes(&self) -> u64 {
        self.grown
    }

    /// How many directories were implied.
    pub(super) fn made_inodes(&self) -> u64 {
        self.made
    }

    /// How many directories no entry has described.
    pub(super) fn implied(&self) -> u64 {
        self.implied
    }
}

/// Whether the directory `from` is `to` or above it.
fn leads_to(from: &[u8], to: &[u8]) -> bool {
    let Some(rest) = to.strip_prefix(from) else {
        return false;
    };
    rest.is_empty() || rest.starts_with(b"/")
}

impl Level {
    fn open(dir: OwnedFd, real: PathBuf, end: usize) -> Result<Self, Error> {
        let stat = rustix::fs::fstat(&dir)
            .map_err(|error| Error::entry("look at", real.as_os_str().as_bytes(), error))?;
        Ok(Self {
            end,
            dir: Rc::new(dir),
            real,
            times: times_of(&stat),
            touched: false,
            setgid: is_setgid(&stat),
            bytes: allocated(&stat),
            names: 0,
        })
    }

    /// Puts the time back; returns how much it has grown.
    fn leave(&self) -> Result<u64, Error> {
        let name = self.real.as_os_str().as_bytes();
        let mut grown = 0;
        if self.names > FIRST_BLOCK {
            let stat = rustix::fs::fstat(&*self.dir)
                .map_err(|error| Error::entry("look at", name, error))?;
            grown = allocated(&stat).saturating_sub(self.bytes);
        }
        if self.touched {
            rustix::fs::futimens(&*self.dir, &self.times)
                .map_err(|error| Error::entry("set the time of", name, error))?;
        }
        Ok(grown)
    }
}
