//! Users and groups from the container's own files, which are hostile bytes.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat};

use crate::id::ContainerId;
use crate::model::{ContainerUser, UserRequest};
use crate::spec::users;
use crate::sys;

/// Resolves who a container runs as.
pub(super) fn resolve(
    id: &ContainerId,
    rootfs: BorrowedFd<'_>,
    request: &UserRequest,
    image_user: &str,
) -> Result<ContainerUser, String> {
    let passwd = read(rootfs, "etc/passwd")?;
    let group = read(rootfs, "etc/group")?;
    let resolved = users::resolve(passwd.as_deref(), group.as_deref(), request, image_user)
        .map_err(|e| crate::model::chain(&e))?;
    for warning in resolved.warnings {
        tracing::warn!(container.id = %id, "{warning}");
    }
    Ok(resolved.user)
}

/// A regular file of bounded size, resolved under the root; a fifo or a device of that name is refused
/// without being waited for (CVE-2026-47262).
fn read(rootfs: BorrowedFd<'_>, name: &str) -> Result<Option<Vec<u8>>, String> {
    let told = |e: io::Error| format!("cannot read /{name} of the image: {e}");
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd = match sys::fs::open_in_root(rootfs, Path::new(name), flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(told(e)),
    };
    let stat = fstat(fd.as_fd()).map_err(|e| told(e.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(format!("/{name} of the image is not a regular file"));
    }
    let limit = users::MAX_FILE;
    let mut bytes = Vec::new();
    std::fs::File::from(fd)
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(told)?;
    if bytes.len() as u64 > limit {
        return Err(format!("/{name} of the image is larger than {limit} bytes"));
    }
    Ok(Some(bytes))
}
