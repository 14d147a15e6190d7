//! What could not be done without the layers below.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::apply::{is_kept, own_as_root};
use super::{Applied, Error, IMPLIED, LINK};
use crate::sys::fs::{Next, Visit, open_beneath, open_in_root, visit_tree, write_all};

/// Extended attributes of one file are at most this long together (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR: usize = 64 * 1024;

/// Completes a layer in `root` now that the layers below can be seen.
///
/// `lower` is a view of them, all together, as `Storage::view` makes it; none for the lowest layer. The
/// counts in `applied` are brought up to date, and no mark is left.
///
/// # Errors
/// A hard link to something that no layer has, more copied for hard links than the limits allow that the layer was
/// applied with, or what the file system says.
pub fn finish(
    root: BorrowedFd<'_>,
    lower: Option<BorrowedFd<'_>>,
    applied: &mut Applied,
) -> Result<(), Error> {
    let mut finisher = Finisher {
        root,
        lower,
        hidden: Hidden::new(root),
        copies: HashMap::new(),
        copied: applied.bytes,
        applied,
    };
    if std::mem::take(&mut finisher.applied.deferred) > 0 {
        each(root, &mut |visit| finisher.file(visit))?;
    }
    if std::mem::take(&mut finisher.applied.implied) > 0 {
        each(root, &mut |visit| finisher.implied(visit))?;
    }
    Ok(())
}

/// Visits all of the layer until there is an error.
fn each(
    root: BorrowedFd<'_>,
    todo: &mut dyn FnMut(&Visit<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut result = Ok(());
    let visited = visit_tree(root, &mut |visit| {
        result = todo(visit);
        Ok(if result.is_ok() {
            Next::Enter
        } else {
            Next::Stop
        })
    });
    result.and(visited.map_err(|error| Error::entry("look through", b"", error)))
}

struct Finisher<'a> {
    root: BorrowedFd<'a>,
    lower: Option<BorrowedFd<'a>>,
    hidden: Hidden<'a>,
    applied: &'a mut Applied,
    /// Device and inode of a lower file, and a name of the copy that this layer has of it.
    copies: HashMap<(u64, u64), PathBuf>,
    /// Bytes of the layer, those that are still being copied included.
    copied: u64,
}

/// How many copies are remembered. Only what an attacker makes has more; beyond that a file is copied again, which the
/// limit of bytes ends.
const COPIES: usize = 16 << 10;

/// A file that stands for a hard link to a lower layer's.
struct Link {
    path: PathBuf,
    target: PathBuf,
}

/// Which directories show nothing of what is below, by themselves or by one above them. Neighbours share most of
/// their way, which is looked at once.
struct Hidden<'a> {
    root: BorrowedFd<'a>,
    root_hides: bool,
    dir: PathBuf,
    /// For each component of `dir`.
    hides: Vec<bool>,
}

impl<'a> Hidden<'a> {
    fn new(root: BorrowedFd<'a>) -> Self {
        Self {
            root,
            root_hides: is_opaque(root),
            dir: PathBuf::new(),
            hides: Vec::new(),
        }
    }

    /// Whether this layer hides what is below at `path`.
    fn is(&mut self, path: &Path) -> bool {
        let dir = path.parent().unwrap_or(Path::new(""));
        let pairs = dir.components().zip(self.dir.components());
        let common = pairs.take_while(|(new, old)| new == old).count();
        self.hides.truncate(common);
        let mut here: PathBuf = dir.components().take(common).collect();
        let mut hides = self.hides.last().copied().unwrap_or(self.root_hides);
        for part in dir.components().skip(common) {
            here.push(part);
            hides = hides
                || open_beneath(self.root, &here, DIR, Mode::empty())
                    .is_ok_and(|dir| is_opaque(dir.as_fd()));
            self.hides.push(hides);
        }
        self.dir = here;
        hides
    }
}

/// What a file that waits for a lower layer's content is a link to.
fn mark_of(file: BorrowedFd<'_>) -> io::Result<Option<PathBuf>> {
    let mut value = vec![0; XATTR];
    match rustix::fs::fgetxattr(file, LINK, &mut value[..]) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(PathBuf::from(OsString::from_vec(value))))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn failed<'p>(action: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> Error + 'p {
    move |error| Error::entry(action, path.as_os_str().as_bytes(), error)
}

fn is_absent(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}

const READ: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK);
const DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW);

impl Finisher<'_> {
    /// Gives an implied directory the attributes that it has below; else it is root's, and everybody may read it.
    fn implied(&mut self, visit: &Visit<'_>) -> Result<(), Error> {
        if !matches!(visit.kind, FileType::Directory | FileType::Unknown) {
            return Ok(());
        }
        let name = OsStr::from_bytes(visit.name.to_bytes());
        let dir = match crate::sys::fs::open_dir(visit.parent, name) {
            Ok(dir) => dir,
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(failed("open", visit.path)(error)),
        };
        match rustix::fs::fremovexattr(&dir, IMPLIED) {
            Ok(()) => self.directory(&dir, visit.path),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(failed("unmark", visit.path)(error.into())),
        }
    }

    fn directory(&mut self, dir: &OwnedFd, path: &Path) -> Result<(), Error> {
        let below = match self.lower {
            Some(lower) if !self.hidden.is(path) => {
                match open_beneath(lower, path, DIR, Mode::empty()) {
                    Ok(below) => Some(below),
                    Err(error) if is_absent(&error) => None,
                    Err(error) => return Err(failed("look below", path)(error)),
                }
            }
            _ => None,
        };
        let set = match below {
            Some(below) => copy_attributes(below.as_fd(), dir.as_fd()),
            None => own_as_root(dir.as_fd()),
        };
        set.map_err(failed("set the attributes of", path))
    }

    /// Fills a file that stands for a hard link to a lower layer's file. All of its names are one file.
    fn file(&mut self, visit: &Visit<'_>) -> Result<(), Error> {
        if !matches!(visit.kind, FileType::RegularFile | FileType::Unknown) {
            return Ok(());
        }
        let here = failed("look at", visit.path);
        match rustix::fs::statat(visit.parent, visit.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if stat.st_size == 0 && FileType::from_raw_mode(stat.st_mode).is_file() => {}
            Ok(_) | Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(here(error.into())),
        }
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(visit.parent, visit.name, flags, Mode::empty());
        let file = file.map_err(|error| failed("open", visit.path)(error.into()))?;
        match mark_of(file.as_fd()).map_err(here)? {
            None => Ok(()),
            Some(target) => self.link(
                &file,
                &Link {
                    path: visit.path.to_owned(),
                    target,
                },
            ),
        }
    }

    fn link(&mut self, file: &OwnedFd, link: &Link) -> Result<(), Error> {
        let (target, stat) = self.target(link)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind.is_dir() {
            let name = link.path.as_os_str().as_bytes();
            return Err(Error::refused(
                name,
                "it is a hard link to a lower layer's directory",
            ));
        }
        if !kind.is_file() {
            return self.copy_node(link, &target, &stat);
        }
        let id = (stat.st_dev, stat.st_ino);
        match self.copies.get(&id).cloned() {
            Some(copy) => self.share(file, link, &copy)?,
            None => {
                self.fill(file, link, &target)?;
                if self.copies.len() < COPIES {
                    self.copies.insert(id, link.path.clone());
                }
            }
        }
        self.carry_target(link, &target)
    }

    /// Where the target really is below, and what it is.
    fn target(&self, link: &Link) -> Result<(PathBuf, Stat), Error> {
        let absent = || {
            let name = link.path.as_os_str().as_bytes();
            Error::refused(name, "it is a hard link to something that no layer has")
        };
        let lower = self.lower.ok_or_else(absent)?;
        let base = link.target.file_name().ok_or_else(absent)?;
        let above = link.target.parent().unwrap_or(Path::new(""));
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let dir = open_in_root(lower, above, flags, Mode::empty()).map_err(|_| absent())?;
        let stat =
            rustix::fs::statat(&dir, base, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| absent())?;
        if FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == 0 {
            return Err(absent());
        }
        let real = real_path(lower, &dir).ok_or_else(absent)?;
        Ok((real.join(base), stat))
    }

    fn fill(&mut self, file: &OwnedFd, link: &Link, target: &Path) -> Result<(), Error> {
        let lower = self.lower.unwrap_or(self.root);
        let source = open_beneath(lower, target, READ, Mode::empty())
            .map_err(failed("read the target of", &link.path))?;
        self.copy_content(&source, file, link)?;
        // Both marks and attributes may be more than the file system has room for.
        rustix::fs::fremovexattr(file, LINK)
            .map_err(|error| failed("unmark", &link.path)(error.into()))?;
        copy_attributes(source.as_fd(), file.as_fd())
            .map_err(failed("set the attributes of", &link.path))?;
        let stat =
            rustix::fs::fstat(file).map_err(|error| failed("look at", &link.path)(error.into()))?;
        self.applied.bytes += allocated(&stat);
        Ok(())
    }

    /// Holes stay holes: a sparse file of some kilobytes must not become one that fills the disk.
    fn copy_content(&mut self, source: &OwnedFd, file: &OwnedFd, link: &Link) -> Result<(), Error> {
        let read = |error: Errno| failed("read the target of", &link.path)(error.into());
        let write = |error: Errno| failed("write", &link.path)(error.into());
        let size = u64::try_from(rustix::fs::fstat(source).map_err(read)?.st_size).unwrap_or(0);
        rustix::fs::ftruncate(file, size).map_err(write)?;
        let mut buffer = vec![0; 256 * 1024];
        let mut end = 0;
        loop {
            let start = match rustix::fs::seek(source, SeekFrom::Data(end)) {
                // Nothing but a hole is left.
                Err(Errno::NXIO) => return Ok(()),
                start => start.map_err(read)?,
            };
            end = rustix::fs::seek(source, SeekFrom::Hole(start)).map_err(read)?;
            let mut left = end.saturating_sub(start);
            self.copied = self.copied.saturating_add(left);
            if self.copied > self.applied.limits.bytes {
                return Err(Error::Limit {
                    what: "bytes together with what its hard links copy from lower layers",
                    limit: self.applied.limits.bytes,
                });
            }
            rustix::fs::seek(source, SeekFrom::Start(start)).map_err(read)?;
            rustix::fs::seek(file, SeekFrom::Start(start)).map_err(write)?;
            while left > 0 {
                let wanted = usize::try_from(left)
                    .unwrap_or(usize::MAX)
                    .min(buffer.len());
                let piece = buffer.get_mut(..wanted).unwrap_or_default();
                let length = rustix::io::read(source, &mut *piece).map_err(read)?;
                if length == 0 {
                    return Err(read(Errno::IO));
                }
                write_all(file.as_fd(), piece.get(..length).unwrap_or_default())
                    .map_err(failed("write", &link.path))?;
                left -= length as u64;
            }
        }
    }

    /// Makes the link one to the copy that another link to the same file was filled with.
    fn share(&mut self, file: &OwnedFd, link: &Link, copy: &Path) -> Result<(), Error> {
        let (Some(old), Some(new)) = (copy.file_name(), link.path.file_name()) else {
            return Ok(());
        };
        let open = |path: &Path| {
            let above = path.parent().unwrap_or(Path::new(""));
            open_beneath(self.root, above, DIR, Mode::empty())
        };
        let replace = || -> io::Result<bool> {
            let (from, dir) = (open(copy)?, open(&link.path)?);
            let time = times_of(&rustix::fs::fstat(&dir)?);
            rustix::fs::unlinkat(&dir, new, AtFlags::empty())?;
            rustix::fs::linkat(&from, old, &dir, new, AtFlags::empty())?;
            rustix::fs::futimens(&dir, &time)?;
            Ok(rustix::fs::fstat(file)?.st_nlink == 0)
        };
        if replace().map_err(failed("link", &link.path))? {
            self.applied.inodes = self.applied.inodes.saturating_sub(1);
        }
        Ok(())
    }

    /// The target gets to be the same file as the link, as an overlay does when the link is made in it.
    /// Where this layer has something else by that name, or hides it, it is left alone.
    fn carry_target(&mut self, link: &Link, target: &Path) -> Result<(), Error> {
        let above = target.parent().unwrap_or(Path::new(""));
        if self.hidden.is(target) {
            return Ok(());
        }
        let Some((dir, time)) = self.way(above)? else {
            return Ok(());
        };
        let from_dir = link.path.parent().unwrap_or(Path::new(""));
        let from = open_beneath(self.root, from_dir, DIR, Mode::empty())
            .map_err(failed("open", from_dir))?;
        let (Some(old), Some(new)) = (link.path.file_name(), target.file_name()) else {
            return Ok(());
        };
        match rustix::fs::linkat(&from, old, &dir, new, AtFlags::empty()) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed("link", target)(error.into())),
        }
        rustix::fs::futimens(&dir, &time)
            .map_err(|error| failed("set the time of", target)(error.into()))
    }

    /// Opens a directory of this layer, making what is missing; none if something else is in the way.
    fn way(&mut self, path: &Path) -> Result<Option<(OwnedFd, Timestamps)>, Error> {
        let failed = |error: io::Error| Error::entry("create", path.as_os_str().as_bytes(), error);
        let mut dir = open_beneath(self.root, Path::new(""), DIR, Mode::empty()).map_err(failed)?;
        let mut here = PathBuf::new();
        for part in path.components() {
            let Component::Normal(name) = part else {
                continue;
            };
            here.push(name);
            let made = make_inside(&dir, name).map_err(failed)?;
            dir = match crate::sys::fs::open_dir(dir.as_fd(), name) {
                Ok(dir) => dir,
                Err(error) if is_absent(&error) => return Ok(None),
                Err(error) => return Err(failed(error)),
            };
            if made {
                self.count_made()?;
                let stat = rustix::fs::fstat(&dir).map_err(|error| failed(error.into()))?;
                self.applied.bytes += allocated(&stat);
                self.directory(&dir, &here)?;
            }
        }
        let stat = rustix::fs::fstat(&dir).map_err(|error| failed(error.into()))?;
        Ok(Some((dir, times_of(&stat))))
    }

    fn count_made(&mut self) -> Result<(), Error> {
        self.applied.inodes += 1;
        // The root is none of the entries.
        if self.applied.inodes > self.applied.limits.entries.saturating_add(1) {
            return Err(Error::Limit {
                what: "entries",
                limit: self.applied.limits.entries,
            });
        }
        Ok(())
    }

    /// A link to a symbolic link or a special file becomes a copy of it: those cannot be filled in place.
    fn copy_node(&self, link: &Link, target: &Path, stat: &Stat) -> Result<(), Error> {
        let lower = self.lower.unwrap_or(self.root);
        let copy = || -> io::Result<()> {
            let above = link.path.parent().unwrap_or(Path::new(""));
            let base = link.path.file_name().ok_or(Errno::INVAL)?;
            let dir = open_beneath(self.root, above, DIR, Mode::empty())?;
            let time = times_of(&rustix::fs::fstat(&dir)?);
            rustix::fs::unlinkat(&dir, base, AtFlags::empty())?;
            if FileType::from_raw_mode(stat.st_mode).is_symlink() {
                let flags = OFlags::PATH | OFlags::NOFOLLOW;
                let source = open_in_root(lower, target, flags, Mode::empty())?;
                let text = rustix::fs::readlinkat(&source, "", Vec::new())?;
                rustix::fs::symlinkat(text, &dir, base)?;
            } else {
                let kind = FileType::from_raw_mode(stat.st_mode);
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                rustix::fs::mknodat(&dir, base, kind, mode, stat.st_rdev)?;
            }
            let nofollow = AtFlags::SYMLINK_NOFOLLOW;
            let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
            rustix::fs::chownat(&dir, base, Some(uid), Some(gid), nofollow)?;
            if !FileType::from_raw_mode(stat.st_mode).is_symlink() {
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                rustix::fs::chmodat(&dir, base, mode, AtFlags::empty())?;
            }
            rustix::fs::utimensat(&dir, base, &times_of(stat), nofollow)?;
            Ok(rustix::fs::futimens(&dir, &time)?)
        };
        copy().map_err(failed("copy the target of", &link.path))
    }
}

fn allocated(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * 512
}

/// Makes a directory unless there is something by that name; the time of the one that it is in stays.
fn make_inside(dir: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    let time = times_of(&rustix::fs::fstat(dir)?);
    match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    rustix::fs::futimens(dir, &time)?;
    Ok(true)
}

fn is_opaque(dir: BorrowedFd<'_>) -> bool {
    let mut value = [0; 1];
    let read = rustix::fs::fgetxattr(dir, "trusted.overlay.opaque", &mut value[..]);
    read.is_ok() && value == *b"y"
}

/// The path of `dir` inside `root`, both as this process sees them.
fn real_path(root: BorrowedFd<'_>, dir: &OwnedFd) -> Option<PathBuf> {
    use std::os::fd::AsRawFd;
    let of = |fd: i32| std::fs::read_link(format!("/proc/self/fd/{fd}")).ok();
    let (root, dir) = (of(root.as_raw_fd())?, of(dir.as_raw_fd())?);
    Some(dir.strip_prefix(root).ok()?.to_owned())
}

fn times_of(stat: &Stat) -> Timestamps {
    let nsec = |nsec| i64::try_from(nsec).unwrap_or(0);
    let time = Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: nsec(stat.st_mtime_nsec),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Owner, mode, extended attributes and times.
fn copy_attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let stat = rustix::fs::fstat(from)?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(to, Some(uid), Some(gid))?;
    copy_xattrs(from, to)?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    rustix::fs::futimens(to, &times_of(&stat))?;
    Ok(())
}

fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut list = vec![0; XATTR];
    let length = match rustix::fs::flistxattr(from, &mut list[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let names = list.get(..length).unwrap_or_default();
    let mut value = Vec::new();
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        // The kernel's own and overlayfs's are not for copying.
        if !is_kept(name) {
            continue;
        }
        value.resize(XATTR, 0);
        let name = OsStr::from_bytes(name);
        let length = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        let value = value.get(..length).unwrap_or_default();
        rustix::fs::fsetxattr(to, name, value, XattrFlags::empty())?;
    }
    Ok(())
}
