//! Applying an archive to a directory.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

mod attributes;
mod direct;
mod dirs;
mod link;
mod name;
mod whiteout;
mod write;

use attributes::Attributes;
pub(super) use attributes::{is_kept, own_as_root};
use direct::Direct;
use dirs::Dirs;

use super::tar::{Archive, Entry, Type};
use super::{Applied, Error, IMPLIED, LINK, Limits};

/// Applies a plain tar archive to the empty directory `root`, and reads `reader` to its end.
///
/// Nothing outside of `root` is touched, whatever the archive says: names are taken apart, each directory
/// on the way is opened by a single component without following links, a link on the way is resolved
/// inside the root, and no last component is ever followed.
///
/// # Errors
/// See [`Error`]. What is in `root` then is incomplete and to be thrown away.
pub fn apply<R: Read>(reader: R, root: BorrowedFd<'_>, limits: &Limits) -> Result<Applied, Error> {
    let mut archive = Archive::new(reader, limits);
    let mut applier = Applier::new(root, limits)?;
    while let Some(entry) = archive.next()? {
        applier.entry(entry, &mut archive)?;
    }
    archive.drain()?;
    applier.finish()
}

/// Works on one layer.
struct Applier<'a> {
    root: BorrowedFd<'a>,
    limits: &'a Limits,
    dirs: Dirs<'a>,
    attributes: Attributes,
    direct: Direct,
    applied: Applied,
    /// Sizes have to be added up at the end: something was removed, or takes nobody knows how much; other file systems than
    /// ext4 keep small files, directories and links in places of their own.
    recount: bool,
    /// Size of a block of the file system.
    block: u64,
}

/// What statfs(2) calls ext4.
const EXT: u64 = 0xef53;

/// Extended attributes of up to this many bytes, names included, fit into an inode of ext4; a capability does.
const XATTRS_INSIDE: usize = 64;

/// What making a name came to.
enum Made<T> {
    Yes(T),
    /// There is something by that name.
    Exists,
}

impl<'a> Applier<'a> {
    fn new(root: BorrowedFd<'a>, limits: &'a Limits) -> Result<Self, Error> {
        let failed = |error: io::Error| Error::entry("prepare the root for", b"", error);
        attributes::own_as_root(root).map_err(failed)?;
        let stat = rustix::fs::fstat(root).map_err(|error| failed(error.into()))?;
        let kind = rustix::fs::fstatfs(root).map_err(|error| failed(error.into()))?;
        let kind = u64::try_from(kind.f_type).unwrap_or(0);
        let bytes = u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        let block = u64::try_from(stat.st_blksize).unwrap_or(4096).max(512);
        Ok(Self {
            root,
            limits,
            dirs: Dirs::new(root, limits)?,
            attributes: Attributes::new(),
            direct: Direct::new(kind),
            applied: Applied {
                bytes,
                inodes: 1,
                limits: limits.clone(),
                ..Applied::default()
            },
            recount: kind != EXT,
            block,
        })
    }

    fn entry<R: Read>(
        &mut self,
        mut entry: Entry,
        archive: &mut Archive<'_, R>,
    ) -> Result<(), Error> {
        self.applied.entries += 1;
        self.dirs.count_entry()?;
        // An inode has little room beside itself; nobody says how many blocks the rest takes.
        let xattrs = entry.xattrs.iter();
        let outside: usize = xattrs.map(|(name, value)| name.len() + value.len()).sum();
        self.recount |= outside > XATTRS_INSIDE;
        let raw = std::mem::take(&mut entry.name);
        let name = name::clean(&raw, self.limits.path).map_err(|why| Error::refused(&raw, why))?;
        if name.is_empty() {
            return self.root_entry(&raw, &entry);
        }
        match name::classify(&name).map_err(|why| Error::refused(&raw, why))? {
            name::Class::Metadata => Ok(()),
            name::Class::Opaque(dir) => self.opaque(dir),
            name::Class::Whiteout(dir, hidden) => self.whiteout(dir, hidden, &name),
            name::Class::Plain(dir, base) => self.plain(dir, base, &name, &entry, archive),
        }
    }

    /// S4: the root is a directory, and stays the one it is. It belongs to root and is open to all, whatever the
    /// archive says, as containerd has it: archives packed in a temporary directory say 0700.
    fn root_entry(&mut self, raw: &[u8], entry: &Entry) -> Result<(), Error> {
        if entry.kind != Type::Dir {
            return Err(Error::refused(raw, "the root of a layer is a directory"));
        }
        self.dirs.described_root(attributes::times(entry));
        self.applied.dropped_xattrs += entry.xattrs.len() as u64;
        Ok(())
    }

    fn plain<R: Read>(
        &mut self,
        dir: &[u8],
        base: &[u8],
        name: &[u8],
        entry: &Entry,
        archive: &mut Archive<'_, R>,
    ) -> Result<(), Error> {
        match entry.kind {
            Type::Dir => self.directory(dir, base, name, entry),
            Type::File => self.file(dir, base, name, entry, archive),
            Type::Symlink => self.symlink(dir, base, name, entry),
            Type::HardLink => self.hard_link(dir, base, name, entry),
            // S19: overlayfs takes such a device for a whiteout, so it is one.
            Type::Char if entry.device == (0, 0) => self.whiteout(dir, base, name),
            Type::Char | Type::Block | Type::Fifo => self.node(dir, base, name, entry),
        }
    }

    /// Makes `base` in `dir`, removing what has the name already.
    fn make<T>(
        &mut self,
        dir: &[u8],
        base: &[u8],
        mut make: impl FnMut(&mut Self, BorrowedFd<'_>) -> Result<Made<T>, Error>,
    ) -> Result<T, Error> {
        let parent = self.dirs.enter(dir)?;
        let made = make(self, parent.as_fd())?;
        if let Made::Yes(value) = made {
            self.dirs.added(base);
            return Ok(value);
        }
        self.replace(dir, base)?;
        let parent = self.dirs.enter(dir)?;
        match make(self, parent.as_fd())? {
            Made::Yes(value) => {
                self.dirs.added(base);
                Ok(value)
            }
            Made::Exists => Err(Error::entry("replace", base, Errno::EXIST)),
        }
    }

    /// Removes `base` in `dir`, whatever it is, without following it.
    fn replace(&mut self, dir: &[u8], base: &[u8]) -> Result<(), Error> {
        // What is removed may be on the way to the directories that are open.
        self.dirs.leave_all()?;
        let parent = self.dirs.enter(dir)?;
        self.recount = true;
        self.applied.replaced = true;
        self.dirs.added(b"");
        crate::sys::fs::remove_tree(parent.as_fd(), OsStr::from_bytes(base))
            .map_err(|error| Error::entry("replace", base, error))
    }

    fn directory(
        &mut self,
        dir: &[u8],
        base: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), Error> {
        let parent = self.dirs.enter(dir)?;
        let mode = Mode::from_raw_mode(entry.mode & 0o1777);
        let mut opaque = false;
        match rustix::fs::mkdirat(parent.as_fd(), base, mode) {
            Ok(()) => {}
            Err(Errno::EXIST) => match self.existing(parent.as_fd(), base)? {
                Existing::Dir(found) => {
                    // Open directories remember a time to restore, perhaps that of this one by another name.
                    self.dirs.leave_all()?;
                    self.update_dir(name, found.as_fd(), entry)?;
                    return self.dirs.described(found.as_fd());
                }
                other => {
                    opaque = matches!(other, Existing::Whiteout);
                    self.replace(dir, base)?;
                    let parent = self.dirs.enter(dir)?;
                    rustix::fs::mkdirat(parent.as_fd(), base, mode)
                        .map_err(|error| Error::entry("create", name, error))?;
                }
            },
            Err(error) => return Err(Error::entry("create", name, error)),
        }
        self.applied.inodes += 1;
        self.applied.bytes += self.dirs.empty_dir_bytes();
        let setgid = self.dirs.setgid();
        self.dirs.added(base);
        let made =
            self.dirs
                .enter_made(base, attributes::times(entry), entry.mode & 0o2000 != 0)?;
        let attributes = &mut self.attributes;
        attributes
            .directory(made.as_fd(), entry, setgid)
            .and_then(|dropped| {
                self.applied.dropped_xattrs += dropped;
                if opaque {
                    whiteout::set_opaque(made.as_fd())?;
                }
                Ok(())
            })
            .map_err(|error| Error::entry("set the attributes of", name, error))
    }

    /// A directory that is there gets an entry's attributes (S7: only ever a directory).
    fn update_dir(&mut self, name: &[u8], dir: BorrowedFd<'_>, entry: &Entry) -> Result<(), Error> {
        let failed = |error: io::Error| Error::entry("set the attributes of", name, error);
        self.applied.dropped_xattrs += self.attributes.existing(dir, entry).map_err(failed)?;
        Ok(())
    }

    fn symlink(
        &mut self,
        dir: &[u8],
        base: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), Error> {
        if entry.link.is_empty() || entry.link.len() > self.limits.path {
            return Err(Error::refused(name, "its target is empty or too long"));
        }
        let dropped = self.make(dir, base, |this, parent| {
            match rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), parent, base) {
                Ok(()) => {}
                Err(Errno::EXIST) => return Ok(Made::Exists),
                Err(error) => return Err(Error::entry("create", name, error)),
            }
            let setgid = this.dirs.setgid();
            this.attributes
                .link(parent, base, entry, setgid)
                .map(Made::Yes)
                .map_err(|error| Error::entry("set the attributes of", name, error))
        })?;
        self.applied.inodes += 1;
        self.applied.dropped_xattrs += dropped;
        // ext4 keeps a target shorter than this in the inode.
        if entry.link.len() >= 60 {
            self.applied.bytes += self.block;
        }
        Ok(())
    }

    fn node(&mut self, dir: &[u8], base: &[u8], name: &[u8], entry: &Entry) -> Result<(), Error> {
        use rustix::fs::FileType;
        let (kind, device) = match entry.kind {
            Type::Char => (FileType::CharacterDevice, entry.device),
            Type::Block => (FileType::BlockDevice, entry.device),
            _ => (FileType::Fifo, (0, 0)),
        };
        let device = rustix::fs::makedev(device.0, device.1);
        let dropped = self.make(dir, base, |this, parent| {
            let mode = Mode::RUSR | Mode::WUSR;
            match rustix::fs::mknodat(parent, base, kind, mode, device) {
                Ok(()) => {}
                Err(Errno::EXIST) => return Ok(Made::Exists),
                Err(error) => return Err(Error::entry("create", name, error)),
            }
            this.attributes
                .node(parent, base, entry)
                .map(Made::Yes)
                .map_err(|error| Error::entry("set the attributes of", name, error))
        })?;
        self.applied.inodes += 1;
        self.applied.dropped_xattrs += dropped;
        Ok(())
    }

    fn existing(&self, parent: BorrowedFd<'_>, base: &[u8]) -> Result<Existing, Error> {
        let failed = |error| Error::entry("look at", base, error);
        let stat = rustix::fs::statat(parent, base, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        if whiteout::is_whiteout(&stat) {
            return Ok(Existing::Whiteout);
        }
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
            return Ok(Existing::Other);
        }
        crate::sys::fs::open_dir(parent, OsStr::from_bytes(base))
            .map(Existing::Dir)
            .map_err(|error| Error::entry("open", base, error))
    }

    fn finish(mut self) -> Result<Applied, Error> {
        self.dirs.close()?;
        self.applied.bytes = self.applied.bytes.saturating_add(self.dirs.grown_bytes());
        self.applied.inodes += self.dirs.made_inodes();
        self.applied.implied = self.dirs.implied();
        if self.recount {
            let usage = crate::sys::fs::tree_usage(self.root)
                .map_err(|error| Error::entry("add up", b"", error))?;
            self.applied.bytes = usage.bytes;
            // It counts names; of what was made and stays, the inodes are known.
            if self.applied.replaced {
                self.applied.inodes = usage.inodes;
            }
        }
        Ok(self.applied)
    }
}

/// What has a name already.
enum Existing {
    Dir(OwnedFd),
    Whiteout,
    Other,
}
