//! What an archive's entries say, compared with what is in the unpacked layer.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{FileType, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use super::headers::{Event, Parser};
use super::read::{fault, open, shown, unreadable, wrong_size};
use super::{Entry, Type};
use crate::tarball::name;

/// Read at a time where a sparse file should have a hole, bytes.
const PIECE: usize = 64 << 10;

/// Device and inode.
type Id = (u64, u64);

/// Reads along while an archive is made again.
pub(super) struct Comparison {
    root: OwnedFd,
    parser: Parser,
    /// Files with several names that an entry of the archive made, and not a hard link to a lower layer's file.
    linked: HashSet<Id>,
    /// What has another owner or mode than its last entry so far says: directories may be there twice, and the entry
    /// of a hard link changes the file.
    differing: BTreeMap<Id, String>,
    sparse: Option<SparseFile>,
    /// The archive is no longer understood. Its digest tells.
    lost: bool,
}

struct SparseFile {
    file: File,
    name: Vec<u8>,
    size: u64,
    /// How far it was compared.
    end: u64,
}

fn id(stat: &Stat) -> Id {
    (stat.st_dev, stat.st_ino)
}

impl Comparison {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self {
            root,
            parser: Parser::default(),
            linked: HashSet::new(),
            differing: BTreeMap::new(),
            sparse: None,
            lost: false,
        }
    }

    /// Takes the next bytes of the archive; a fault is what is wrong with the layer.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() && !self.lost {
            let (length, event) = self.parser.feed(bytes);
            let (now, rest) = bytes.split_at_checked(length).unwrap_or((bytes, &[]));
            bytes = rest;
            match event {
                Event::Literal | Event::Content => {}
                Event::Sparse(offset) => {
                    if let Some(sparse) = &mut self.sparse {
                        sparse.part(offset, now)?;
                    }
                }
                Event::Entry(entry) => {
                    self.end_sparse()?;
                    self.entry(&entry)?;
                }
                Event::Lost => self.lost = true,
            }
        }
        Ok(())
    }

    /// At the end of the archive.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.end_sparse()?;
        match self.differing.pop_first() {
            Some((_, text)) => Err(fault(text)),
            None => Ok(()),
        }
    }

    fn end_sparse(&mut self) -> io::Result<()> {
        match self.sparse.take() {
            Some(mut sparse) => sparse.hole(sparse.size),
            None => Ok(()),
        }
    }

    fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        let found = open(&self.root, &entry.name, OFlags::PATH)?;
        let stat = rustix::fs::fstat(&found)?;
        let differs = |what: &str| Err(fault(format!("{} has another {what}", shown(&entry.name))));
        let wanted = match entry.kind {
            Type::HardLink => return self.hard_link(entry, &stat),
            Type::File => FileType::RegularFile,
            Type::Symlink => FileType::Symlink,
            Type::Char => FileType::CharacterDevice,
            Type::Block => FileType::BlockDevice,
            Type::Dir => FileType::Directory,
            Type::Fifo => FileType::Fifo,
        };
        if FileType::from_raw_mode(stat.st_mode) != wanted {
            return differs("type");
        }
        match entry.kind {
            Type::File if u64::try_from(stat.st_size) != Ok(entry.size) => {
                return Err(wrong_size(&entry.name, entry.size));
            }
            Type::Symlink => {
                let target = rustix::fs::readlinkat(&found, "", Vec::new())
                    .map_err(|error| unreadable(&entry.name, error.into()))?;
                if target.as_bytes() != entry.link {
                    return differs("target");
                }
            }
            Type::Char | Type::Block => {
                let (major, minor) = entry.device;
                if stat.st_rdev != rustix::fs::makedev(major, minor) {
                    return differs("device number");
                }
            }
            _ => {}
        }
        if entry.kind != Type::Dir && stat.st_nlink > 1 {
            self.linked.insert(id(&stat));
        }
        self.attributes(entry, &stat)?;
        if entry.sparse {
            let flags = OFlags::RDONLY | OFlags::NONBLOCK;
            self.sparse = Some(SparseFile {
                file: File::from(open(&self.root, &entry.name, flags)?),
                name: entry.name.clone(),
                size: entry.size,
                end: 0,
            });
        }
        Ok(())
    }

    /// A link to a file of this layer is that file, and one to a lower layer's has that one's attributes, which nobody
    /// knows here.
    fn hard_link(&mut self, entry: &Entry, stat: &Stat) -> io::Result<()> {
        if let Ok(target) = open(&self.root, &name::target(&entry.link), OFlags::PATH) {
            let target = id(&rustix::fs::fstat(&target)?);
            if target != id(stat) && self.linked.contains(&target) {
                let (name, target) = (shown(&entry.name), shown(&entry.link));
                return Err(fault(format!("{name} is no link to {target}")));
            }
        }
        if self.linked.contains(&id(stat)) {
            self.attributes(entry, stat)?;
        }
        Ok(())
    }

    fn attributes(&mut self, entry: &Entry, stat: &Stat) -> io::Result<()> {
        let is_symlink = FileType::from_raw_mode(stat.st_mode).is_symlink();
        let what = if (stat.st_uid, stat.st_gid) != (entry.uid, entry.gid) {
            "owner"
        } else if !is_symlink && stat.st_mode & 0o7777 != entry.mode {
            "mode"
        } else {
            self.differing.remove(&id(stat));
            return Ok(());
        };
        let text = format!("{} has another {what}", shown(&entry.name));
        if entry.kind != Type::Dir && stat.st_nlink == 1 {
            return Err(fault(text));
        }
        self.differing.insert(id(stat), text);
        Ok(())
    }
}

impl SparseFile {
    /// Some of the content, which belongs at this offset.
    fn part(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.hole(offset)?;
        let mut found = vec![0; bytes.len()];
        self.read(offset, &mut found)?;
        if found != bytes {
            return Err(self.changed());
        }
        self.end = offset + bytes.len() as u64;
        Ok(())
    }

    /// There is nothing but zeros up to this offset.
    fn hole(&mut self, to: u64) -> io::Result<()> {
        while self.end < to {
            let failed = |error: Errno| unreadable(&self.name, error.into());
            let start = match rustix::fs::seek(&self.file, SeekFrom::Data(self.end)) {
                Err(Errno::NXIO) => break,
                start => start.map_err(failed)?,
            };
            if start >= to {
                break;
            }
            let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start)).map_err(failed)?;
            let length = end.min(to).saturating_sub(start).min(PIECE as u64);
            let mut found = vec![0; usize::try_from(length).unwrap_or(PIECE)];
            self.read(start, &mut found)?;
            if found.iter().any(|byte| *byte != 0) {
                return Err(self.changed());
            }
            self.end = start + length;
        }
        self.end = self.end.max(to);
        Ok(())
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let read = self.file.read_exact_at(buffer, offset);
        read.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => fault(format!("{} became shorter", shown(&self.name))),
            _ => unreadable(&self.name, error),
        })
    }

    fn changed(&self) -> io::Error {
        fault(format!("the content of {} changed", shown(&self.name)))
    }
}
