//! Going a way inside a root when links lead to places that do not exist yet: to make them, or only to know them.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::open_dir;

/// As many links as the kernel follows (`MAXSYMLINKS`).
const LINKS: usize = 40;

/// A directory inside a root.
#[derive(Debug)]
pub struct Place {
    /// Opened for reading.
    pub dir: OwnedFd,
    /// Where it really is, relative to the root, free of links and dots.
    pub path: PathBuf,
}

/// Opens the directory `path` inside `root`, making what is missing, and tells `made` the real path of
/// each directory that was made. As a process with that root would see it: links, dangling ones too, lead to a
/// place inside. New directories get `mode` less the umask.
///
/// The way is gone one component at a time with a descriptor for each, and `..` is the descriptor before:
/// the kernel is never asked for `..`, so no rename elsewhere can lead out of the root.
///
/// # Errors
/// `ENOTDIR` when something on the way is no directory, `ELOOP` after 40 links, else what the kernel says.
pub fn make_dirs(
    root: BorrowedFd<'_>,
    path: &Path,
    mode: Mode,
    made: &mut dyn FnMut(&Path),
) -> io::Result<Place> {
    let mut todo: Vec<OsString> = components(path.as_os_str());
    let mut way: Vec<OwnedFd> = vec![open_dir(root, OsStr::new("."))?];
    let mut real = PathBuf::new();
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == ".." {
            if way.len() > 1 {
                way.pop();
                real.pop();
            }
            continue;
        }
        let here = way.last().map_or(root, AsFd::as_fd);
        match step(here, &name, mode)? {
            Step::Dir { dir, new } => {
                real.push(&name);
                if new {
                    made(&real);
                }
                way.push(dir);
            }
            Step::Link(target) => {
                links += 1;
                if links > LINKS {
                    return Err(Errno::LOOP.into());
                }
                if target.as_bytes().starts_with(b"/") {
                    way.truncate(1);
                    real = PathBuf::new();
                }
                todo.extend(components(&target));
            }
        }
    }
    let dir = way.pop().ok_or(Errno::NOENT)?;
    Ok(Place { dir, path: real })
}

/// Where `path` leads inside `root`: an absolute path free of links and dots. What does not exist is taken as it
/// is written, also behind a link that dangles. Nothing is made, no magic link is followed, and the answer is
/// only as lasting as the tree: what is acted on must be opened without links once more.
///
/// # Errors
/// `ENOTDIR` when something on the way is no directory, `ELOOP` after 40 links, else what the kernel says.
pub fn resolve_in_root(root: BorrowedFd<'_>, path: &Path) -> io::Result<PathBuf> {
    let mut todo: Vec<OsString> = components(path.as_os_str());
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut way: Vec<OwnedFd> = vec![open_dir(root, OsStr::new("."))?];
    let mut real = PathBuf::from("/");
    // Names below the end of `way` that do not exist.
    let mut missing = 0_usize;
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == ".." {
            if missing > 0 {
                missing -= 1;
            } else if way.len() > 1 {
                way.pop();
            }
            real.pop();
            continue;
        }
        let here = way.last().map_or(root, AsFd::as_fd);
        let next = if missing > 0 {
            Err(Errno::NOENT)
        } else {
            rustix::fs::openat(here, &name, flags, Mode::empty())
        };
        let next = match next {
            Ok(next) => next,
            Err(Errno::NOENT) => {
                missing += 1;
                real.push(&name);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        // An empty name reads the link that is open; what is none answers ENOENT.
        match rustix::fs::readlinkat(&next, "", Vec::new()) {
            Ok(target) => {
                links += 1;
                if links > LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = OsStr::from_bytes(target.as_bytes());
                if target.as_bytes().starts_with(b"/") {
                    way.truncate(1);
                    real = PathBuf::from("/");
                }
                todo.extend(components(target));
            }
            Err(_) => {
                way.push(next);
                real.push(&name);
            }
        }
    }
    Ok(real)
}

enum Step {
    Dir { dir: OwnedFd, new: bool },
    Link(OsString),
}

fn step(here: BorrowedFd<'_>, name: &OsStr, mode: Mode) -> io::Result<Step> {
    let error = match open_dir(here, name) {
        Ok(dir) => return Ok(Step::Dir { dir, new: false }),
        Err(error) => error,
    };
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT) => {
            let new = match rustix::fs::mkdirat(here, name, mode) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(error) => return Err(error.into()),
            };
            let dir = open_dir(here, name)?;
            Ok(Step::Dir { dir, new })
        }
        // ENOTDIR is what Linux says to O_DIRECTORY | O_NOFOLLOW on a link.
        Some(Errno::NOTDIR | Errno::LOOP) => match rustix::fs::readlinkat(here, name, Vec::new()) {
            Ok(target) => Ok(Step::Link(OsStr::from_bytes(target.as_bytes()).to_owned())),
            Err(_) => Err(error),
        },
        _ => Err(error),
    }
}

/// Components in reverse, so that the next one is popped; empty ones and `.` are nothing.
fn components(path: &OsStr) -> Vec<OsString> {
    let parts = path.as_bytes().split(|b| *b == b'/').rev();
    let parts = parts.filter(|part| !part.is_empty() && *part != b".");
    parts
        .map(|part| OsStr::from_bytes(part).to_owned())
        .collect()
}
