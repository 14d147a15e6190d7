//! Paths that an image or a container may have prepared: resolved inside a root, never outside.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Opens a directory of a root as `O_PATH`, links followed inside the root.
pub(crate) fn open_directory(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    Ok(openat2(root, path, DIRECTORY, Mode::empty(), IN_ROOT)?)
}

/// Opens a path of which no component is a link (a mount point as the kernel prints it).
pub(crate) fn open_plain(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let plain = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
    Ok(openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        plain,
    )?)
}

/// Makes a directory and its parents (mode 0755) in a root and opens it.
pub(crate) fn make_directories(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    match open_directory(root, path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let mut at: Vec<u8> = b"/".to_vec();
    let mut here = open_directory(root, &at)?;
    for component in Path::new(OsStr::from_bytes(path)).components() {
        match component {
            Component::Normal(name) => {
                at.extend_from_slice(name.as_bytes());
                here = descend(root, here.as_fd(), &at, name)?;
                at.push(b'/');
            }
            Component::ParentDir => return Err(io::ErrorKind::InvalidInput.into()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Ok(here)
}

/// One level: an existing entry is resolved from the root again (it may be a link), a missing one made.
fn descend(
    root: BorrowedFd<'_>,
    parent: BorrowedFd<'_>,
    path: &[u8],
    name: &OsStr,
) -> io::Result<OwnedFd> {
    match open_directory(root, path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    // Without following: what was missing a moment ago and is a link now is somebody's trick.
    let plain = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(openat2(parent, name, DIRECTORY, Mode::empty(), plain)?)
}

/// Makes sure that an entry of a root's top directory is an ordinary directory; made if missing.
///
/// An image in which `/dev`, `/proc` or `/sys` is a link would have the engine work elsewhere.
pub(crate) fn ordinary_directory(root: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    match rustix::fs::statat(root, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir()),
        Err(Errno::NOENT) => {
            mkdirat(root, name, Mode::from_raw_mode(0o755))?;
            Ok(true)
        }
        Err(e) => Err(e.into()),
    }
}

/// Opens the root of the mount at a path below a directory, if a mount is there. No component is a link.
pub(crate) fn mount_root(dir: BorrowedFd<'_>, path: &[u8]) -> io::Result<Option<OwnedFd>> {
    use rustix::fs::{StatxAttributes, StatxFlags, statx};
    let opened = match open_plain(dir, path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let stat = statx(&opened, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    let is = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    Ok(is.then_some(opened))
}

/// The id of the mount that a descriptor is on (statx(2)).
pub(crate) fn mount_id(fd: impl AsFd) -> io::Result<u64> {
    use rustix::fs::{StatxFlags, statx};
    Ok(statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn root(dir: &Path) -> OwnedFd {
        rustix::fs::open(dir, DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn directories_are_made_in_the_root_whatever_links_say() {
        let outside = tempfile::tempdir().unwrap();
        let dir = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("out")).unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        symlink("/real", dir.path().join("in")).unwrap();
        let root = root(dir.path());
        make_directories(root.as_fd(), b"/in/a/b").unwrap();
        assert!(dir.path().join("real/a/b").is_dir());
        // A dangling link is nothing to follow.
        assert!(make_directories(root.as_fd(), b"/out/x").is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert!(make_directories(root.as_fd(), b"/a/../b").is_err());
    }

    #[test]
    fn a_link_is_no_ordinary_directory() {
        let dir = tempfile::tempdir().unwrap();
        symlink("/tmp", dir.path().join("dev")).unwrap();
        std::fs::write(dir.path().join("sys"), b"").unwrap();
        let root = root(dir.path());
        assert!(!ordinary_directory(root.as_fd(), "dev").unwrap());
        assert!(!ordinary_directory(root.as_fd(), "sys").unwrap());
        assert!(ordinary_directory(root.as_fd(), "proc").unwrap());
        assert!(dir.path().join("proc").is_dir());
    }
}
