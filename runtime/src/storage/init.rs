//! The layer between image and writable layer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, XattrFlags};
use rustix::io::Errno;

use super::{Error, failed, make_dir, open};
use crate::sys::fs::{open_dir_path, tree_usage};

/// The init layer and an empty directory, which is the lowest layer of every overlay that could have too few. Its
/// directories are `opaque`, except for tests, which may not say so.
pub(super) fn make(path: &Path, opaque: bool) -> Result<(OwnedFd, OwnedFd), Error> {
    make_dir(path, 0o700)?;
    let empty = path.join("empty");
    make_dir(&empty, 0o755)?;
    let layer = path.join("fs");
    make_dir(&layer, 0o755)?;
    let dir = open_dir_path(&layer).map_err(failed("open", &layer))?;
    for (name, mode) in [("dev", 0o755), ("proc", 0o555), ("sys", 0o555)] {
        directory(&dir, name, mode, opaque).map_err(failed("create", layer.join(name)))?;
    }
    let usage = tree_usage(dir.as_fd()).map_err(failed("look at", &layer))?;
    if usage.inodes != 4 {
        let source = io::Error::other("it has to contain dev, proc and sys and nothing else");
        return Err(failed("use", &layer)(source));
    }
    let empty = open_dir_path(&empty).map_err(failed("open", &empty))?;
    Ok((dir, empty))
}

fn directory(parent: &OwnedFd, name: &str, mode: u32, opaque: bool) -> io::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    match rustix::fs::mkdirat(parent, name, mode) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let dir = open(parent, name)?;
    rustix::fs::fchmod(&dir, mode)?;
    if opaque {
        rustix::fs::fsetxattr(&dir, "trusted.overlay.opaque", b"y", XattrFlags::empty())?;
    }
    Ok(())
}
