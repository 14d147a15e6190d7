//! What a layer hides of those below it.
//!
//! A whiteout concerns lower layers only, so it never removes anything of its own layer: a file of that
//! name hides the lower one anyway, and a directory of that name becomes opaque, in whatever order the two come.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Mode, XattrFlags};
use rustix::io::Errno;

use super::{Applier, Error, Existing};

const OPAQUE: &str = "trusted.overlay.opaque";

/// A character device 0/0, overlayfs's whiteout.
pub(super) fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == 0
}

/// Hides what lower layers have in this directory.
pub(super) fn set_opaque(dir: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(
        dir,
        OPAQUE,
        b"y",
        XattrFlags::empty(),
    )?)
}

/// Makes the node that hides a name.
pub(super) fn make_whiteout(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
}

impl Applier<'_> {
    pub(super) fn opaque(&mut self, dir: &[u8]) -> Result<(), Error> {
        let opened = self.dirs.enter(dir)?;
        set_opaque(opened.as_fd()).map_err(|error| Error::entry("make opaque", dir, error))
    }

    pub(super) fn whiteout(&mut self, dir: &[u8], hidden: &[u8], name: &[u8]) -> Result<(), Error> {
        let parent = self.dirs.enter(dir)?;
        match make_whiteout(parent.as_fd(), hidden) {
            Ok(()) => {
                self.dirs.added(hidden);
                self.applied.inodes += 1;
                Ok(())
            }
            Err(Errno::EXIST) => match self.existing(parent.as_fd(), hidden)? {
                Existing::Dir(found) => set_opaque(found.as_fd())
                    .map_err(|error| Error::entry("make opaque", name, error)),
                Existing::Whiteout | Existing::Other => Ok(()),
            },
            Err(error) => Err(Error::entry("create", name, error)),
        }
    }
}
