//! Taking back the flags by which a file cannot be removed.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, IFlags, Mode, OFlags};

use super::open_dir;
use super::visit::{Next, visit_tree};

/// Clears the flags immutable and append-only (chattr(1)) of the directory `name` and of all that is below it, never
/// through a link: whoever may set them can keep a tree from being removed.
///
/// # Errors
/// What the kernel says of the way there; a flag that cannot be cleared is met by whoever removes.
pub fn unlock_tree(dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let top = open_dir(dir, OsStr::new(name))?;
    clear(top.as_fd());
    visit_tree(top.as_fd(), &mut |visit| {
        let name = OsStr::from_bytes(visit.name.to_bytes());
        let stat = rustix::fs::statat(visit.parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
        // A device is not opened: that may do something.
        if matches!(
            FileType::from_raw_mode(stat.st_mode),
            FileType::RegularFile | FileType::Directory
        ) {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let Ok(file) = rustix::fs::openat(visit.parent, name, flags, Mode::empty()) {
                clear(file.as_fd());
            }
        }
        Ok(Next::Enter)
    })
}

fn clear(file: BorrowedFd<'_>) {
    let locks = IFlags::IMMUTABLE | IFlags::APPEND;
    if let Ok(flags) = rustix::fs::ioctl_getflags(file)
        && flags.intersects(locks)
    {
        // One that stays is named by the removal that it hinders.
        let _ = rustix::fs::ioctl_setflags(file, flags.difference(locks));
    }
}
