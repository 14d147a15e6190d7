//! The volumes that an image declares: directories of one container's own, beside its writable layer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::io::Errno;

use super::{Error, Storage, failed, open};
use crate::id::ContainerId;
use crate::sys::fs::copy_tree;

/// Their directory in that of the writable layer: they are found, counted and removed with it.
pub(super) const VOLUMES: &str = "volumes";

impl Storage {
    /// Makes a volume of a container that was prepared, and tells where it is. It is a copy of the directory `content`
    /// with all that belongs to it, or empty, root's, with mode 0755. `number` is new for each volume of a container;
    /// `go_on` is asked again and again whether to. What a failure leaves goes with [`Storage::remove_snapshot`].
    ///
    /// # Errors
    /// What the file system or `go_on` says.
    pub fn make_volume(
        &self,
        id: &ContainerId,
        number: usize,
        content: Option<BorrowedFd<'_>>,
        go_on: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<PathBuf, Error> {
        let name = number.to_string();
        let path = self.path("snapshots").join(id.as_str());
        let path = path.join(VOLUMES).join(&name);
        let mut make = || -> io::Result<()> {
            let outer = open(&self.shared.dirs.snapshots, id.as_str())?;
            match rustix::fs::mkdirat(&outer, VOLUMES, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let volumes = open(&outer, VOLUMES)?;
            rustix::fs::mkdirat(&volumes, &name, Mode::RWXU)?;
            let volume = open(&volumes, &name)?;
            match content {
                Some(content) => copy_tree(content, volume.as_fd(), go_on),
                None => Ok(rustix::fs::fchmod(&volume, Mode::from_raw_mode(0o755))?),
            }
        };
        make().map_err(failed("fill", &path))?;
        Ok(path)
    }
}
