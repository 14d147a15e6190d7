//! Where a mount or a device node of a container goes: found under its root, links followed inside it, and judged
//! by what it turned out to be. Images and volumes may have prepared every name on the way.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    FileType, Mode, OFlags, PROC_SUPER_MAGIC, fstat, fstatfs, mkdirat, openat, readlinkat,
};
use rustix::io::Errno;

use crate::error::{Context, Error, Result, reason};
use crate::path;

/// As many links as the kernel follows (`MAXSYMLINKS`).
const LINKS: usize = 40;

const PLAIN: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// `PROC_ROOT_INO` (include/linux/proc_fs.h): the links in procfs's root are ordinary ones (`self`, `mounts`).
const PROC_ROOT: u64 = 1;

/// Where the kernel keeps file systems of its own, in which no device nodes can be made.
const KERNELS: [&str; 4] = ["/proc", "/sys", "/dev/mqueue", "/dev/pts"];

/// What may lie over a file of procfs: the ones that lxcfs computes and two harmless switches, as in runc.
const PROC_FILES: [&str; 10] = [
    "cpuinfo",
    "diskstats",
    "meminfo",
    "stat",
    "swaps",
    "uptime",
    "loadavg",
    "slabinfo",
    "sys/kernel/ns_last_pid",
    "sys/crypto/fips_enabled",
];

/// A container's root, seen from inside it.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    /// Mounts in which Berth makes files for the container: those of its root, its `/dev` and its own volumes.
    own: Vec<u64>,
}

impl Root {
    /// The root directory of this process.
    pub(crate) fn current() -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/", flags, Mode::empty())
            .context(|| "open the container's root".to_owned())?;
        Self::new(fd)
    }

    fn new(fd: OwnedFd) -> Result<Self> {
        let id = path::mount_id(&fd).context(|| "stat the container's root".to_owned())?;
        Ok(Self { fd, own: vec![id] })
    }

    /// Counts the mount that a descriptor is on as the container's own.
    pub(crate) fn add(&mut self, fd: impl AsFd) -> io::Result<()> {
        self.own.push(path::mount_id(fd)?);
        Ok(())
    }

    fn owns(&self, fd: impl AsFd) -> io::Result<bool> {
        Ok(self.own.contains(&path::mount_id(fd)?))
    }

    /// Where a path leads. What does not exist is taken as it is written, behind a dangling link too.
    ///
    /// The way is gone one name at a time with a descriptor for each, and `..` is the descriptor before, so
    /// that nothing which is renamed meanwhile leads out of the root. A link of procfs into a process is refused: its
    /// text is none to follow, and what it leads to may be the host's.
    pub(crate) fn find(&self, path: &[u8]) -> Result<Place> {
        let mut todo: Vec<(Vec<u8>, bool)> = names(path, false);
        let mut way: Vec<(Vec<u8>, OwnedFd)> = Vec::new();
        let mut missing: Vec<Vec<u8>> = Vec::new();
        let (mut dangling, mut links) = (false, 0);
        while let Some((name, linked)) = todo.pop() {
            if name == b".." {
                if missing.pop().is_none() {
                    way.pop();
                }
                continue;
            }
            if !missing.is_empty() {
                missing.push(name);
                continue;
            }
            let here = way.last().map_or(self.fd.as_fd(), |(_, fd)| fd.as_fd());
            let next = match openat(here, name.as_slice(), PLAIN, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT) => {
                    dangling = linked;
                    missing.push(name);
                    continue;
                }
                Err(e) => return Err(told(&e.into())),
            };
            // Reads the link that is open; what is none says ENOENT.
            let Ok(target) = readlinkat(&next, "", Vec::new()) else {
                way.push((name, next));
                continue;
            };
            links += 1;
            if links > LINKS {
                return Err(told(&Errno::LOOP.into()));
            }
            require_path(here, || {
                joined(way.iter().map(|(name, _)| name).chain([&name]))
            })?;
            if target.as_bytes().starts_with(b"/") {
                way.clear();
            }
            todo.extend(names(target.as_bytes(), true));
        }
        let path = joined(way.iter().map(|(name, _)| name).chain(&missing));
        let here = match way.pop() {
            Some((_, fd)) => fd,
            None => self.fd.try_clone().map_err(|e| told(&e))?,
        };
        Ok(Place {
            path,
            here,
            dangling: dangling && !missing.is_empty(),
            missing,
        })
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The absolute path of these names.
fn joined<'n>(names: impl Iterator<Item = &'n Vec<u8>>) -> Vec<u8> {
    let mut path = Vec::new();
    for name in names {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    if path.is_empty() {
        path.push(b'/');
    }
    path
}

/// Refuses the links of a directory whose text the kernel does not follow: those of procfs into a process.
fn require_path(dir: BorrowedFd<'_>, link: impl FnOnce() -> Vec<u8>) -> Result<()> {
    let kernels = || -> rustix::io::Result<bool> {
        let procfs = fstatfs(dir)?.f_type == PROC_SUPER_MAGIC;
        Ok(procfs && fstat(dir)?.st_ino != PROC_ROOT)
    };
    if kernels().map_err(|e| told(&e.into()))? {
        return Err(Error::invalid(format!(
            "{} is a link into a process, which is not followed: choose another path",
            String::from_utf8_lossy(&link())
        )));
    }
    Ok(())
}

/// The names of a path in reverse, so that the next one is popped.
fn names(path: &[u8], linked: bool) -> Vec<(Vec<u8>, bool)> {
    path.split(|b| *b == b'/')
        .rev()
        .filter(|name| !name.is_empty() && *name != b".")
        .map(|name| (name.to_vec(), linked))
        .collect()
}

/// A path of a container, resolved.
#[derive(Debug)]
pub(crate) struct Place {
    /// Absolute, without links and dots.
    pub(crate) path: Vec<u8>,
    /// The last of it that exists.
    here: OwnedFd,
    /// What does not exist below that.
    missing: Vec<Vec<u8>>,
    /// What is missing is named by a link and not by whoever asked.
    dangling: bool,
}

/// What a mount point has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    Directory,
    File,
}

impl Place {
    /// The mount point, made if it is missing.
    pub(crate) fn mount_point(mut self, root: &Root, shape: Shape) -> Result<OwnedFd> {
        let say = |e: io::Error| told(&e);
        if self.dangling && !root.owns(&self.here).map_err(say)? {
            return Err(Error::invalid(format!(
                "a link in it leads to {}, which does not exist and would have to be made in a volume: \
                 make it there first",
                self.shown()
            )));
        }
        if let Some(last) = self.make_parents().map_err(say)? {
            self.here = match shape {
                Shape::Directory => directory(self.here.as_fd(), &last),
                Shape::File => file(self.here.as_fd(), &last),
            }
            .map_err(say)?;
        }
        let kind = file_type(self.here.as_fd()).map_err(say)?;
        match (shape, kind == FileType::Directory) {
            (Shape::Directory, false) => Err(Error::invalid(format!(
                "{} is no directory in the container, and the source is one: mount a file there, or choose another path",
                self.shown()
            ))),
            (Shape::File, true) => Err(Error::invalid(format!(
                "{} is a directory in the container, and the source is none: mount a directory there, or choose another path",
                self.shown()
            ))),
            _ => Ok(self.here),
        }
    }

    /// Makes a device node. What is there already stays, be it that node or something else of whoever prepared the
    /// place, as on other runtimes: an image or a volume, but not Berth or the kernel.
    pub(crate) fn node(
        mut self,
        root: &Root,
        kind: FileType,
        device: u64,
        mode: Mode,
    ) -> Result<Option<(OwnedFd, Vec<u8>)>> {
        let say = |e: io::Error| told(&e);
        let kernels = KERNELS.iter().any(|top| below(&self.path, top.as_bytes()));
        if self.missing.is_empty() {
            let there = fstat(&self.here).map_err(|e| say(e.into()))?;
            let same = there.st_rdev == device && FileType::from_raw_mode(there.st_mode) == kind;
            let ours = below(&self.path, b"/dev") && root.owns(&self.here).map_err(say)?;
            if same || !kernels && !ours {
                return Ok(None);
            }
            return Err(Error::invalid(format!(
                "{} is something else, which the container has of its own or a mount or another device needs: ask \
                 for another path",
                self.shown()
            )));
        }
        if kernels {
            return Err(Error::invalid(format!(
                "{} does not exist, and no device nodes can be made there: ask for another path",
                self.shown()
            )));
        }
        if !root.owns(&self.here).map_err(say)? {
            return Err(Error::invalid(format!(
                "{} does not exist, and it lies in a volume, where no device nodes are made: ask for a path outside it",
                self.shown()
            )));
        }
        let last = self.make_parents().map_err(say)?.unwrap_or_default();
        rustix::fs::mknodat(&self.here, last.as_slice(), kind, mode, device)
            .map_err(|e| say(e.into()))?;
        Ok(Some((self.here, last)))
    }

    /// Makes what is missing but the last name, which is returned.
    fn make_parents(&mut self) -> io::Result<Option<Vec<u8>>> {
        let last = self.missing.pop();
        for name in std::mem::take(&mut self.missing) {
            self.here = directory(self.here.as_fd(), &name)?;
        }
        Ok(last)
    }

    fn shown(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.path)
    }
}

/// How deep a path lies below the root.
pub(crate) fn depth(path: &[u8]) -> usize {
    path.split(|b| *b == b'/').filter(|n| !n.is_empty()).count()
}

/// Opens a directory, made if it is missing, and never a link that somebody puts in its place.
fn directory(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    match mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    Ok(openat(dir, name, PLAIN | OFlags::DIRECTORY, Mode::empty())?)
}

fn file(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
    match openat(dir, name, flags, Mode::from_raw_mode(0o644)) {
        Ok(_) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let opened = openat(dir, name, PLAIN, Mode::empty())?;
    if file_type(opened.as_fd())? == FileType::Symlink {
        return Err(Errno::LOOP.into());
    }
    Ok(opened)
}

fn file_type(fd: BorrowedFd<'_>) -> io::Result<FileType> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode))
}

/// An error of the way, with what it means for whoever chose the path.
pub(crate) fn told(error: &io::Error) -> Error {
    let means = match Errno::from_io_error(error) {
        Some(Errno::LOOP) => "its links lead in a circle: mend the image or the volume",
        Some(Errno::NOTDIR) => "something on its way is no directory: choose another path",
        Some(Errno::NAMETOOLONG) => "a name in it is longer than the file system takes",
        Some(Errno::ROFS) => {
            "it does not exist, and what it lies on is read-only: make it there first, or choose another path"
        }
        Some(Errno::PERM | Errno::ACCESS) => {
            "it does not exist, and nobody may make anything there: make it there first, or choose another path"
        }
        _ => return Error::internal(reason(error)),
    };
    Error::invalid(format!("{} ({means})", reason(error)))
}

/// Refuses what only a link turns into the root itself or into a part of `/dev`, `/proc` or `/sys`: whoever
/// asked did not mean that, and the nodes there may be the host's.
pub(crate) fn judge(wanted: &str, place: &[u8]) -> Result<()> {
    if place == b"/" {
        return Err(Error::invalid(
            "it leads to the container's root itself: choose another path",
        ));
    }
    for top in ["/dev", "/proc", "/sys"] {
        if below(place, top.as_bytes()) && !below(wanted.as_bytes(), top.as_bytes()) {
            return Err(Error::invalid(format!(
                "a link leads to {}, and nothing is put into {top} by way of a link: \
                 mend the image, or name that path if it is meant",
                String::from_utf8_lossy(place)
            )));
        }
    }
    Ok(())
}

/// Refuses to cover procfs, but for the files that may be (as runc does). `procfs`: what is mounted is one.
pub(crate) fn judge_proc(place: &[u8], procfs: bool) -> Result<()> {
    let Some(rest) = place.strip_prefix(b"/proc") else {
        return Ok(());
    };
    let fits = match rest {
        b"" => procfs,
        [b'/', file @ ..] => PROC_FILES.iter().any(|f| f.as_bytes() == file),
        _ => true,
    };
    if fits {
        Ok(())
    } else {
        Err(Error::invalid(format!(
            "{} is a part of procfs, which must not be hidden: choose another path",
            String::from_utf8_lossy(place)
        )))
    }
}

/// Whether a path is `top` or below it.
pub(crate) fn below(path: &[u8], top: &[u8]) -> bool {
    path.strip_prefix(top)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

#[cfg(test)]
mod tests;
