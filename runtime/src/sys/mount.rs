//! Mounts by descriptor: the kernel's new mount API (fsopen, open_tree, move_mount, mount_setattr).
//!
//! A detached mount is attached nowhere; it lives as long as its descriptor, and whoever is given the
//! descriptor may attach it in a mount namespace of its own.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

mod info;
mod overlay;

pub use info::{MountInfo, NotMountinfo, mounts, parse_mountinfo};
pub use overlay::{Method, OverlayLayers, detached_overlay, probe_overlay};

/// A change to a mount, for [`set_attr`].
#[derive(Clone, Copy, Debug, Default)]
pub struct MountChange<'fd> {
    /// Attributes to set.
    pub set: Option<MountAttrFlags>,
    /// Attributes to clear.
    pub clear: Option<MountAttrFlags>,
    /// One of `SHARED`, `PRIVATE`, `DOWNSTREAM` (slave), `UNBINDABLE`.
    pub propagation: Option<MountPropagationFlags>,
    /// Map ids as this user namespace does (`MOUNT_ATTR_IDMAP`); detached mounts only.
    pub userns: Option<BorrowedFd<'fd>>,
}

/// `struct mount_attr` of mount_setattr(2), version 0.
#[repr(C)]
struct RawAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Changes a mount (`recursive`: and those below it) through its descriptor: mount_setattr(2), since Linux 5.12.
///
/// # Errors
/// What the kernel says; `ENOSYS` before 5.12, `EINVAL` for a user namespace where the file system maps no ids.
pub fn set_attr(mount: BorrowedFd<'_>, change: MountChange<'_>, recursive: bool) -> io::Result<()> {
    let mut set = u64::from(change.set.map_or(0, |flags| flags.bits()));
    let mut userns_fd = 0;
    if let Some(userns) = change.userns {
        set |= u64::from(MountAttrFlags::MOUNT_ATTR_IDMAP.bits());
        userns_fd = u64::try_from(userns.as_raw_fd()).map_err(io::Error::other)?;
    }
    let attr = RawAttr {
        set,
        clear: u64::from(change.clear.map_or(0, |flags| flags.bits())),
        propagation: u64::from(change.propagation.map_or(0, |flags| flags.bits())),
        userns_fd,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a static string ending in NUL, `attr` outlives the call and its size is the one
    // given, the layout is that of the kernel's struct, and the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<RawAttr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A detached copy of the mount at `path` from there on (a bind mount that is attached nowhere); of a
/// file too. `recursive` takes what is mounted below along. A link as last component is followed.
///
/// # Errors
/// What open_tree says.
pub fn detached_bind(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    Ok(rustix::mount::open_tree(CWD, path, clone_flags(recursive))?)
}

fn clone_flags(recursive: bool) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags | OpenTreeFlags::AT_RECURSIVE
    } else {
        flags
    }
}

/// A program that what runs from it cannot overwrite (CVE-2019-5736): a detached read-only mount of
/// its file alone. Execute it with `execveat(fd, "", argv, envp, AT_EMPTY_PATH)`; in
/// `/proc/<pid>/exe` it is a file on a read-only mount that can be remounted by nobody.
///
/// # Errors
/// What open_tree and mount_setattr say.
pub fn sealed_exe(path: &Path) -> io::Result<OwnedFd> {
    let mount = detached_bind(path, false)?;
    let change = MountChange {
        set: Some(MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV),
        propagation: Some(MountPropagationFlags::PRIVATE),
        ..MountChange::default()
    };
    set_attr(mount.as_fd(), change, false)?;
    Ok(mount)
}

/// Attaches a detached mount at `target`, on top of what is there. A link as last component is not followed.
///
/// # Errors
/// What move_mount says.
pub fn attach(mount: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", CWD, target, flags)?)
}

/// The same at the place that a descriptor stands for.
///
/// # Errors
/// What move_mount says.
pub fn attach_at(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", target, "", flags)?)
}

/// What a tmpfs is to be like.
#[derive(Clone, Copy, Debug)]
pub struct TmpfsOptions {
    /// Most it may hold, bytes; none: the kernel's default, half of the memory.
    pub size: Option<u64>,
    /// Most inodes; none: the kernel's default, one for two pages of memory.
    pub inodes: Option<u64>,
    /// Mode of its root directory.
    pub mode: u32,
    /// Attributes of the mount.
    pub attributes: MountAttrFlags,
}

impl TmpfsOptions {
    /// For a pod's `/dev/shm`: 1777, nosuid, nodev, noexec.
    pub fn shm(size: u64) -> Self {
        Self {
            size: Some(size),
            inodes: None,
            mode: 0o1777,
            attributes: Self::inert(),
        }
    }

    /// For files that containers may write to: 0700, nosuid, nodev, noexec, bounded in bytes and inodes.
    pub fn files(size: u64, inodes: u64) -> Self {
        Self {
            size: Some(size),
            inodes: Some(inodes),
            mode: 0o700,
            attributes: Self::inert(),
        }
    }

    /// Nothing on it does anything: what a container leaves there can be reached from the host.
    fn inert() -> MountAttrFlags {
        MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC
    }
}

/// A new tmpfs, attached nowhere.
///
/// # Errors
/// What the kernel says.
pub fn detached_tmpfs(options: TmpfsOptions) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "source", "berth")?;
    let mode = format!("{:o}", options.mode);
    rustix::mount::fsconfig_set_string(&context, "mode", mode.as_str())?;
    if let Some(size) = options.size {
        rustix::mount::fsconfig_set_string(&context, "size", size.to_string().as_str())?;
    }
    if let Some(inodes) = options.inodes {
        rustix::mount::fsconfig_set_string(&context, "nr_inodes", inodes.to_string().as_str())?;
    }
    rustix::mount::fsconfig_create(&context)?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    Ok(rustix::mount::fsmount(&context, flags, options.attributes)?)
}

/// Mounts a new tmpfs at `target`.
///
/// # Errors
/// What the kernel says.
pub fn mount_tmpfs(target: &Path, options: TmpfsOptions) -> io::Result<()> {
    attach(detached_tmpfs(options)?.as_fd(), target)
}

/// Makes `dir` a mount of its own that neither receives nor passes on mounts: a bind of itself, private.
/// One that already is a mount point is only made private.
///
/// # Errors
/// What the kernel says.
pub fn make_private_mount(dir: &Path) -> io::Result<()> {
    if !is_mount_point(dir)? {
        let mount = detached_bind(dir, false)?;
        set_private(mount.as_fd())?;
        attach(mount.as_fd(), dir)?;
    }
    // Attaching below a shared mount makes it shared again, so it is done (again) in place.
    let mount = rustix::mount::open_tree(CWD, dir, OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    set_private(mount.as_fd())
}

fn set_private(mount: BorrowedFd<'_>) -> io::Result<()> {
    let change = MountChange {
        propagation: Some(MountPropagationFlags::PRIVATE),
        ..MountChange::default()
    };
    set_attr(mount, change, false)
}

/// Whether a mount is attached at `path` (a link as last component is not followed): statx(2), since Linux 5.8.
///
/// # Errors
/// What statx says.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let stat = rustix::fs::statx(CWD, path, flags, StatxFlags::empty())?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Takes the topmost mount at `path` away, at once also when it is in use. A path that is no mount point
/// or does not exist is fine.
///
/// # Errors
/// What umount2 says besides.
pub fn detach_unmount(path: &Path) -> io::Result<()> {
    use rustix::io::Errno;
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    match rustix::mount::unmount(path, flags) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
