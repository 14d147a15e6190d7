//! Files below a directory that is not to be left: resolution in a root, removal, atomic writes.
//!
//! Everything here works on directory descriptors. Nothing follows the last component of a name, and
//! what lies below a root is either resolved by the kernel (`openat2` with `RESOLVE_IN_ROOT`) or one
//! component at a time with `O_NOFOLLOW`, so a symbolic link that is swapped in meanwhile leads nowhere.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

mod copy;
mod regular;
mod remove;
mod unlock;
mod visit;
mod walk;
mod writeback;

pub use copy::copy_tree;
pub use regular::{kind, read_open, read_regular, read_regular_text};
pub use remove::remove_tree;
pub use unlock::unlock_tree;
pub use visit::{Next, TreeUsage, Visit, tree_usage, visit_tree};
pub use walk::{Place, make_dirs, resolve_in_root};
pub use writeback::start_writeback;

/// `openat2` answers `EAGAIN` when a rename elsewhere made it unsure about `..`; this often is enough.
const RESOLVE_TRIES: u32 = 128;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A name that no other call in this process gets, and that another process hardly does.
pub fn unique_name(prefix: &str) -> String {
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    format!(
        "{prefix}{}-{:x}{:08x}-{count}",
        std::process::id(),
        now.tv_sec,
        now.tv_nsec
    )
}

/// Opens `path` as a process that has `root` as its root directory would, without magic links
/// (openat2(2), `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`). `O_CLOEXEC` is added.
///
/// Without `O_NOFOLLOW` a link in the last component is followed, inside the root.
///
/// # Errors
/// What openat2 says; `EAGAIN` only after many tries.
pub fn open_in_root(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    open_resolved(root, path, flags, mode, resolve)
}

/// Opens `path` below `root` when no component of it is a symbolic link and it does not leave `root`.
///
/// # Errors
/// `ELOOP` for a link, `EXDEV` for a way out, else what openat2 says.
pub fn open_beneath(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    open_resolved(root, path, flags, mode, resolve)
}

fn open_resolved(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) if tries < RESOLVE_TRIES => tries += 1,
            result => return Ok(result?),
        }
    }
}

/// Opens one directory below `dir`, never through a link.
///
/// # Errors
/// `ELOOP` or `ENOTDIR` when it is something else.
pub fn open_dir(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

/// Opens one directory below `dir`, never through a link; one that is missing is made, with mode 0755.
///
/// # Errors
/// `ELOOP` or `ENOTDIR` when it is something else.
pub fn make_dir(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    match open_dir(dir, name) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => open_dir(dir, name),
                Err(error) => Err(error.into()),
            }
        }
        opened => opened,
    }
}

/// Opens a directory by its path, and makes what is missing of it. Links on the way are followed, one in the place of
/// the directory itself is not.
///
/// # Errors
/// `ELOOP` or `ENOTDIR` when it is something else; what open and mkdir say.
pub fn make_own_dir(path: &Path) -> io::Result<OwnedFd> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return open_dir_path(path);
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    let above = match open_dir_path(parent) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let mut make = std::fs::DirBuilder::new();
            make.recursive(true).mode(0o755).create(parent)?;
            open_dir_path(parent)?
        }
        opened => opened?,
    };
    make_dir(above.as_fd(), name)
}

/// Opens a directory by its path.
///
/// # Errors
/// What open says.
pub fn open_dir_path(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Writes a whole file so that a reader sees the old or the new content, never a part: a file beside
/// it, then a rename. With `sync` it is on the disk, name included, when this returns.
///
/// `mode` is set exactly, whatever the umask is.
///
/// # Errors
/// What the kernel says; the file beside it is gone then.
pub fn write_atomic(
    dir: BorrowedFd<'_>,
    name: &str,
    bytes: &[u8],
    mode: Mode,
    sync: bool,
) -> io::Result<()> {
    let temporary = unique_name(".tmp-");
    let written = write_new(dir, &temporary, bytes, mode, sync).and_then(|()| {
        crash_point!("pull_image.file.after");
        Ok(rustix::fs::renameat(dir, &temporary, dir, name)?)
    });
    if let Err(error) = written {
        // The first failure is the one to report; a leftover is swept at the next start.
        let _ = rustix::fs::unlinkat(dir, &temporary, AtFlags::empty());
        return Err(error);
    }
    if sync {
        sync_dir(dir)?;
    }
    Ok(())
}

fn write_new(
    dir: BorrowedFd<'_>,
    name: &str,
    bytes: &[u8],
    mode: Mode,
    sync: bool,
) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
    write_all(file.as_fd(), bytes)?;
    rustix::fs::fchmod(&file, mode)?;
    if sync {
        rustix::fs::fsync(&file)?;
    }
    Ok(())
}

/// Writes all of `bytes`.
///
/// # Errors
/// What write says; no progress is `WriteZero`.
pub fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Makes renames and new names in a directory durable.
///
/// # Errors
/// What fsync says. A descriptor opened with `O_PATH` is `EBADF`.
pub fn sync_dir(dir: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fsync(dir)?)
}

/// Reads at most `limit` bytes of a regular file below `dir`, never through a link.
///
/// # Errors
/// `InvalidData` when it is longer or no regular file, else what the kernel says.
pub fn read_limited(dir: BorrowedFd<'_>, name: &OsStr, limit: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    limited(rustix::fs::openat(dir, name, flags, Mode::empty())?, limit)
}

fn limited(file: OwnedFd, limit: u64) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let file = std::fs::File::from(file);
    let size = file.metadata()?;
    if !size.is_file() || size.len() > limit {
        let message = format!("not a regular file of at most {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size.len()).unwrap_or(0));
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The names in a directory, without `.` and `..`, in the file system's order.
///
/// # Errors
/// What getdents says.
pub fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    Ok(names)
}

/// Opens a file for reading and writing, or makes one that is its owner's alone.
///
/// # Errors
/// What the kernel says.
pub fn open_private(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    options.mode(0o600).open(path)
}

#[cfg(test)]
mod tests;
