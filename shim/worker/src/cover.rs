//! Paths that a container must not see or not write.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use crate::error::{Context, Error, Result, reason};
use crate::options::Options;
use crate::place::{self, Root};
use crate::sys::MountChange;
use crate::{path, sys, tree};

/// So often a way is tried again of which the kernel became unsure.
const TRIES: u32 = 128;

/// What is laid over paths. One file and one directory do for all of them: the first use attaches it, later ones
/// attach clones.
#[derive(Debug)]
pub(crate) struct Covers {
    file: Option<Cover>,
    directory: Option<Cover>,
    /// The mounts that were made.
    pub(crate) mounts: Vec<u64>,
}

#[derive(Debug)]
struct Cover {
    tree: OwnedFd,
    attached: bool,
}

impl Covers {
    /// Must come before any mount of a pod: the null device is taken from the `/dev` that the engine made.
    pub(crate) fn new(root: BorrowedFd<'_>, needed: bool) -> Result<Self> {
        let mut covers = Self {
            file: None,
            directory: None,
            mounts: Vec::new(),
        };
        if needed {
            let null = path::open_plain(root, b"dev/null")
                .context(|| "open the container's /dev/null".to_owned())?;
            let stat = fstat(&null).context(|| "stat the container's /dev/null".to_owned())?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice
                || stat.st_rdev != rustix::fs::makedev(1, 3)
            {
                return Err(Error::internal(
                    "the container's own /dev/null is another device",
                ));
            }
            let tree = clone(null.as_fd(), OpenTreeFlags::empty())
                .context(|| "clone the container's /dev/null".to_owned())?;
            covers.file = Some(Cover {
                tree,
                attached: false,
            });
        }
        Ok(covers)
    }

    /// Hides what a path leads to, links followed under the root. What does not exist is nothing to hide.
    pub(crate) fn mask(&mut self, root: &Root, path: &str) -> Result<()> {
        let told = || format!("mask {}", path.escape_debug());
        let tell = |e: Error| e.map(|m| format!("{}: {m}", told()));
        let Some(found) = find(root, path).map_err(tell)? else {
            return Ok(());
        };
        if is_root(root, found.as_fd()).context(told)? {
            return Err(tell(Error::invalid(
                "it leads to the container's root itself",
            )));
        }
        let stat = fstat(&found).context(told)?;
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let cover = match (directory, &mut self.directory, &mut self.file) {
            (true, Some(cover), _) | (false, _, Some(cover)) => cover,
            (true, empty, _) => {
                let mut options = Options::parse(["ro"].into_iter());
                options.data.push("ro".to_owned());
                let tree = tree::file_system("tmpfs", "tmpfs", &options)
                    .map_err(|e| tell(e.map(|m| format!("a tmpfs: {m}"))))?;
                empty.insert(Cover {
                    tree,
                    attached: false,
                })
            }
            (false, _, None) => return Err(tell(Error::internal("no /dev/null"))),
        };
        let id = cover
            .lay(found.as_fd())
            .map_err(|e| not_laid(&e))
            .map_err(tell)?;
        self.mounts.push(id);
        Ok(())
    }

    /// Makes what a path leads to read-only. What does not exist is nothing to protect.
    pub(crate) fn read_only(&mut self, root: &Root, path: &str) -> Result<()> {
        let told = || format!("make {} read-only", path.escape_debug());
        let tell = |e: Error| e.map(|m| format!("{}: {m}", told()));
        let change = MountChange {
            set: u64::from(rustix::mount::MountAttrFlags::MOUNT_ATTR_RDONLY.bits()),
            ..MountChange::default()
        };
        let Some(found) = find(root, path).map_err(tell)? else {
            return Ok(());
        };
        if is_root(root, found.as_fd()).context(told)? {
            return sys::set_mount(root.as_fd(), &change, false).context(told);
        }
        let laid = || -> std::io::Result<OwnedFd> {
            let tree = clone(found.as_fd(), OpenTreeFlags::AT_RECURSIVE)?;
            sys::set_mount(tree.as_fd(), &change, false)?;
            tree::put(tree.as_fd(), found.as_fd())?;
            Ok(tree)
        };
        let tree = laid().map_err(|e| not_laid(&e)).map_err(tell)?;
        self.mounts.push(path::mount_id(&tree).context(told)?);
        Ok(())
    }
}

impl Cover {
    fn lay(&mut self, over: BorrowedFd<'_>) -> std::io::Result<u64> {
        if self.attached {
            let tree = clone(self.tree.as_fd(), OpenTreeFlags::empty())?;
            tree::put(tree.as_fd(), over)?;
            return path::mount_id(tree);
        }
        tree::put(self.tree.as_fd(), over)?;
        self.attached = true;
        path::mount_id(&self.tree)
    }
}

fn clone(fd: BorrowedFd<'_>, more: OpenTreeFlags) -> std::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(fd, "", flags | more)?)
}

fn is_root(root: &Root, found: BorrowedFd<'_>) -> std::io::Result<bool> {
    let (a, b) = (fstat(root)?, fstat(found)?);
    let same = (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
    Ok(same && path::mount_id(root)? == path::mount_id(found)?)
}

/// What a path leads to; nothing when it, or what a link names, does not exist.
fn find(root: &Root, path: &str) -> Result<Option<OwnedFd>> {
    if path.contains('\0') {
        return Err(Error::invalid("the path contains a NUL byte"));
    }
    // A slash or a dot at the end would ask for a directory, and what is there is meant.
    let names = || path.split('/').filter(|name| !matches!(*name, "" | "."));
    let found = match path {
        "" => return Ok(None),
        _ => open(root, &names().collect::<Vec<_>>())?,
    };
    if found.is_some() || names().all(|name| name != "..") {
        return Ok(found);
    }
    // To the kernel there is no way back out of what does not exist. Whoever wrote it meant what it says, but for the
    // root, of which nobody can have meant to hide all.
    let mut plain = Vec::new();
    for name in names() {
        match name {
            ".." => drop(plain.pop()),
            name => plain.push(name),
        }
    }
    match plain.is_empty() {
        true => Ok(None),
        false => open(root, &plain),
    }
}

fn open(root: &Root, names: &[&str]) -> Result<Option<OwnedFd>> {
    let path = format!("/{}", names.join("/"));
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    // Not NO_MAGICLINKS, whose error would be that of links which lead in a circle, to nothing.
    let resolve = rustix::fs::ResolveFlags::IN_ROOT;
    let mut tries = 0;
    loop {
        return match rustix::fs::openat2(root, path.as_str(), flags, Mode::empty(), resolve) {
            Ok(fd) => Ok(Some(fd)),
            // A rename elsewhere while a ".." was resolved.
            Err(Errno::AGAIN) if tries < TRIES => {
                tries += 1;
                continue;
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(None),
            Err(Errno::LOOP) => Err(place::told(&Errno::LOOP.into())),
            // A link of procfs into a process. The walk that mounts take knows which.
            Err(Errno::XDEV) => Err(root.find(path.as_bytes()).err().unwrap_or_else(|| {
                Error::invalid("a link into a process is not followed: choose another path")
            })),
            Err(e) => Err(e).context(|| "find it".to_owned()),
        };
    }
}

/// Why something cannot be laid over what was found. `INVAL` is a mount that is not among the container's.
fn not_laid(error: &std::io::Error) -> Error {
    match Errno::from_io_error(error) {
        Some(Errno::INVAL) => Error::invalid(
            "it leads out of the container's own mounts, by a link into a process: choose another path",
        ),
        _ => Error::internal(reason(error)),
    }
}
