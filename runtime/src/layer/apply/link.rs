//! Hard links.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::{Applier, DeferredLink, Entry, Error, Made, name, whiteout};
use crate::sys::fs::open_in_root;

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
        let target = name::clean(&entry.link, self.limits.path)
            .ok()
            .filter(|target| !target.is_empty())
            .ok_or_else(|| Error::refused(name, "it is a hard link to no name inside the layer"))?;
        if target == name {
            return Ok(());
        }
        self.applied.dropped_xattrs += entry.xattrs.len() as u64;
        let (target_dir, target_base) = name::split(&target);
        let Some(from) = self.target_dir(target_dir, name)? else {
            return self.defer(dir, base, name, &target);
        };
        match rustix::fs::statat(&from, target_base, AtFlags::SYMLINK_NOFOLLOW) {
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
            Ok(_) => {}
        }
        self.make(dir, base, |_, parent| {
            let link = || rustix::fs::linkat(&from, target_base, parent, base, AtFlags::empty());
            match link() {
                Ok(()) => Ok(Made::Yes(())),
                Err(Errno::EXIST) if is_same(&from, target_base, parent, base) => Ok(Made::Yes(())),
                Err(Errno::EXIST) => Ok(Made::Exists),
                Err(error) => Err(Error::entry("link", name, error)),
            }
        })?;
        self.inherit_mark(dir, base, name)
    }

    /// The directory that a link's target is in; none if the layer does not have it.
    fn target_dir(&mut self, dir: &[u8], name: &[u8]) -> Result<Option<OwnedFd>, Error> {
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

    /// Puts an empty file with a mark in the link's place. Should a later entry replace it, the mark is gone, too.
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
        let mark = self.applied.deferred.len() as u64;
        let value = mark.to_string();
        rustix::fs::fsetxattr(
            &file,
            DeferredLink::MARK,
            value.as_bytes(),
            XattrFlags::empty(),
        )
        .map_err(|error| Error::entry("mark", name, error))?;
        self.push_deferred(base, target.to_vec(), mark)
    }

    fn push_deferred(&mut self, base: &[u8], target: Vec<u8>, mark: u64) -> Result<(), Error> {
        let path = self.dirs.here().join(OsStr::from_bytes(base));
        self.remember(path.as_os_str().len() + target.len() + size_of::<DeferredLink>())?;
        self.applied.deferred.push(DeferredLink {
            path,
            target: PathBuf::from(std::ffi::OsString::from_vec(target)),
            mark,
        });
        Ok(())
    }

    /// A link to a file that waits for its content waits as well.
    fn inherit_mark(&mut self, dir: &[u8], base: &[u8], name: &[u8]) -> Result<(), Error> {
        if self.applied.deferred.is_empty() {
            return Ok(());
        }
        let parent = self.dirs.enter(dir)?;
        let Some(mark) = read_mark(parent.as_fd(), base) else {
            return Ok(());
        };
        let number = usize::try_from(mark).ok();
        let first = number.and_then(|number| self.applied.deferred.get(number));
        let target = first.map(|first| first.target.clone().into_os_string().into_vec());
        let target = target.ok_or_else(|| Error::refused(name, "its mark is not ours"))?;
        self.push_deferred(base, target, mark)
    }
}

/// The mark of a file that waits for a lower layer's content.
pub(super) fn read_mark(dir: BorrowedFd<'_>, base: &[u8]) -> Option<u64> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let stat = rustix::fs::statat(dir, base, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return None;
    }
    let file = rustix::fs::openat(dir, base, flags, Mode::empty()).ok()?;
    crate::layer::finish::mark_of(file.as_fd())
}

fn is_same(from: &OwnedFd, target: &[u8], parent: BorrowedFd<'_>, base: &[u8]) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let inode = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let one = rustix::fs::statat(from, target, flags).map(inode);
    let other = rustix::fs::statat(parent, base, flags).map(inode);
    one.is_ok() && one == other
}
