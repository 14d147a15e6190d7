//! Hard links.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::attributes::not_set;
use super::{Applier, Entry, Error, LINK, Made, name, whiteout};
use crate::sys::fs::open_in_root;

/// A target that leaves more directories than this again is nothing that anybody makes, and each one takes a look.
const MAX_UPS: usize = 64;

impl Applier<'_> {
    /// S5: the target is a name in this layer, looked up inside the root, its last component not followed.
    /// One that is not there may be in a lower layer: that is settled by [`crate::layer::finish()`].
    pub(super) fn hard_link(
        &mut self,
        dir: &[u8],
        base: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), Error> {
        let target = name::clean_target(&entry.link, self.limits.path)
            .ok()
            .filter(|target| !target.is_empty())
            .ok_or_else(|| Error::refused(name, "it is a hard link to no name inside the layer"))?;
        self.check_way(&entry.link, name)?;
        let (target_dir, target_base) = name::split(&target);
        let Some(from) = self.target_dir(target_dir, name)? else {
            return self.defer(dir, base, name, &target);
        };
        let stat = match rustix::fs::statat(&from, target_base, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return self.defer(dir, base, name, &target),
            Err(error) => return Err(Error::entry("find the target of", name, error)),
            Ok(stat) if whiteout::is_whiteout(&stat) => {
                return Err(Error::refused(
                    name,
                    "it is a hard link to what its layer removes",
                ));
            }
            Ok(stat) if FileType::from_raw_mode(stat.st_mode).is_dir() => {
                return Err(Error::refused(name, "it is a hard link to a directory"));
            }
            Ok(stat) => stat,
        };
        let dropped = self.make(dir, base, |this, parent| {
            let link = || rustix::fs::linkat(&from, target_base, parent, base, AtFlags::empty());
            match link() {
                Ok(()) => {}
                Err(Errno::EXIST) if is_same(&from, target_base, parent, base) => {}
                Err(Errno::EXIST) => return Ok(Made::Exists),
                Err(error) => return Err(Error::entry("link", name, error)),
            }
            this.attributes
                .linked(parent, base, entry, &stat)
                .map(Made::Yes)
                .map_err(|error| Error::entry("set the attributes of", name, error))
        })?;
        self.applied.dropped_xattrs += dropped;
        Ok(())
    }

    /// Programs that unpack layers take a target by its text, or follow it like the kernel. Where that makes a difference
    /// it is refused: a link of this layer that the target leads through and up from again.
    fn check_way(&self, target: &[u8], name: &[u8]) -> Result<(), Error> {
        for (ups, left) in crate::tarball::name::left(target).enumerate() {
            if ups == MAX_UPS {
                let why = "it is a hard link whose target goes up more often than paths are deep";
                return Err(Error::refused(name, why));
            }
            let (dir, base) = name::split(&left);
            let Some(dir) = self.target_dir(dir, name)? else {
                continue;
            };
            let stat = rustix::fs::statat(&dir, base, AtFlags::SYMLINK_NOFOLLOW);
            if stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_symlink()) {
                let why = "it is a hard link whose target goes up from a symbolic link, which is not the same place to everyone";
                return Err(Error::refused(name, why));
            }
        }
        Ok(())
    }

    /// The directory that a link's target is in; none if the layer does not have it.
    fn target_dir(&self, dir: &[u8], name: &[u8]) -> Result<Option<OwnedFd>, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match open_in_root(
            self.root,
            Path::new(OsStr::from_bytes(dir)),
            flags,
            Mode::empty(),
        ) {
            Ok(dir) => Ok(Some(dir)),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::NOENT) => Ok(None),
                _ => Err(Error::entry("find the target of", name, error)),
            },
        }
    }

    /// Puts an empty file with a mark in the link's place. Should a later entry replace it, the mark is gone, too;
    /// a link to it has the mark as well.
    fn defer(&mut self, dir: &[u8], base: &[u8], name: &[u8], target: &[u8]) -> Result<(), Error> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.make(dir, base, |_, parent| {
            match rustix::fs::openat(parent, base, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => Ok(Made::Yes(file)),
                Err(Errno::EXIST) => Ok(Made::Exists),
                Err(error) => Err(Error::entry("create", name, error)),
            }
        })?;
        self.applied.inodes += 1;
        self.applied.deferred += 1;
        rustix::fs::fsetxattr(&file, LINK, target, XattrFlags::empty()).map_err(|error| {
            let error = not_set(file.as_fd(), LINK.as_bytes(), target, error);
            Error::entry("mark", name, error)
        })
    }
}

fn is_same(from: &OwnedFd, target: &[u8], parent: BorrowedFd<'_>, base: &[u8]) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let inode = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let one = rustix::fs::statat(from, target, flags).map(inode);
    let other = rustix::fs::statat(parent, base, flags).map(inode);
    one.is_ok() && one == other
}
