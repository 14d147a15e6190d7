//! The files of an archive, on disk: every file under a number and known by its digest, so that no name of the archive
//! ever is a path.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use sha2::{Digest as _, Sha256};

use super::super::Error;
use super::super::shelf::{Scratch, Shelf};
use super::bad;
use crate::layer::{self, Archive, Decoder, Limits, MAX_WINDOW_LOG, Type};
use crate::model::Digest;

/// Entries in an archive; thousands of layers of hundreds of images.
const MAX_ENTRIES: u64 = 100_000;
/// Bytes of an archive, uncompressed. What is kept of it ends sooner, with the room on the disk.
const MAX_BYTES: u64 = 1 << 40;
/// Bytes of a name or link target, and of all of them: they are in memory.
const MAX_NAME: usize = 4096;
const MAX_NAMES: usize = 16 << 20;

/// The files of an archive, on disk until this is dropped.
#[derive(Debug)]
pub(crate) struct Spool {
    scratch: Scratch,
    files: Vec<Spooled>,
    by_digest: HashMap<Digest, usize>,
    by_name: HashMap<String, usize>,
    /// Bytes of all names.
    names: usize,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Spooled {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// A link of an archive. Old archives share equal layers by links.
struct Link {
    name: String,
    target: String,
    /// To the directory that it is in.
    relative: bool,
}

fn unreadable(error: io::Error) -> Error {
    bad(format!("cannot be read: {error}"))
}

/// The parser speaks of layers.
fn malformed(error: layer::Error) -> Error {
    match error {
        layer::Error::Read(source) => unreadable(source),
        layer::Error::Malformed { offset, what } => {
            bad(format!("malformed at byte {offset}: {what}"))
        }
        layer::Error::Limit { what, limit } => bad(format!("more than {limit} {what}")),
        other => bad(other.to_string()),
    }
}

impl Spool {
    pub(super) fn read(shelf: &Shelf, archive: impl Read) -> Result<Self, Error> {
        let mut spool = Self {
            scratch: shelf.scratch()?,
            files: Vec::new(),
            by_digest: HashMap::new(),
            by_name: HashMap::new(),
            names: 0,
        };
        let plain = Decoder::detect("", archive, MAX_WINDOW_LOG).map_err(unreadable)?;
        let limits = Limits {
            entries: MAX_ENTRIES,
            bytes: MAX_BYTES,
            path: MAX_NAME,
            ..Limits::default()
        };
        let mut archive = Archive::new(plain, &limits);
        let mut links = Vec::new();
        let mut entries = 0;
        while let Some(entry) = archive.next().map_err(malformed)? {
            entries += 1;
            if entries > limits.entries {
                return Err(bad(format!("more than {} entries", limits.entries)));
            }
            let name = spool.text(&entry.name)?;
            match entry.kind {
                Type::File if entry.sparse.is_some() => {
                    return Err(bad(format!(
                        "{name:?} is a sparse file: pack the archive without such"
                    )));
                }
                Type::File => spool.add(normal(&name), &mut archive)?,
                Type::Symlink | Type::HardLink => links.push(Link {
                    name: normal(&name),
                    target: spool.text(&entry.link)?,
                    relative: entry.kind == Type::Symlink,
                }),
                _ => {}
            }
        }
        spool.follow(links);
        Ok(spool)
    }

    fn text(&mut self, name: &[u8]) -> Result<String, Error> {
        if name.len() > MAX_NAME {
            return Err(bad(format!("a name of more than {MAX_NAME} bytes")));
        }
        let text = String::from_utf8_lossy(name).into_owned();
        self.names += text.len();
        match self.names > MAX_NAMES {
            true => Err(bad(format!("more than {MAX_NAMES} bytes of names"))),
            false => Ok(text),
        }
    }

    fn follow(&mut self, links: Vec<Link>) {
        for link in links {
            let target = match (link.relative, link.name.rsplit_once('/')) {
                (true, Some((dir, _))) => normal(&format!("{dir}/{}", link.target)),
                _ => normal(&link.target),
            };
            if let Some(file) = self.by_name.get(&target) {
                self.by_name.insert(link.name, *file);
            }
        }
    }

    fn add(&mut self, name: String, archive: &mut Archive<'_, impl Read>) -> Result<(), Error> {
        let number = self.files.len();
        let mut file = File::from(self.scratch.create(&number.to_string())?);
        let mut hash = Sha256::new();
        let mut size = 0;
        while archive.content_left() > 0 {
            self.scratch.leave_room(archive.content_left())?;
            let piece = archive.content().map_err(malformed)?;
            hash.update(piece);
            file.write_all(piece)
                .map_err(|error| self.scratch.failed("write", error))?;
            size += piece.len() as u64;
        }
        let digest = Digest::from_bytes(hash.finalize().into());
        self.files.push(Spooled { digest, size });
        self.by_digest.insert(digest, number);
        self.by_name.insert(name, number);
        Ok(())
    }

    /// A blob.
    pub(crate) fn open(&self, digest: &Digest) -> Result<File, Error> {
        self.file(self.number(digest)?)
    }

    fn file(&self, number: usize) -> Result<File, Error> {
        let file: OwnedFd = self.scratch.open(&number.to_string())?;
        Ok(File::from(file))
    }

    /// The file with a content.
    pub(super) fn number(&self, digest: &Digest) -> Result<usize, Error> {
        self.by_digest.get(digest).copied().ok_or_else(|| {
            bad(format!(
                "blob {digest} is not in it, or its content is another"
            ))
        })
    }

    /// The file under a name.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(&normal(name)).copied()
    }

    pub(super) fn about(&self, number: usize) -> Option<Spooled> {
        self.files.get(number).copied()
    }

    /// All of a file, which is called so in an error.
    pub(super) fn bytes(
        &self,
        number: usize,
        limit: usize,
        what: impl Display,
    ) -> Result<Vec<u8>, Error> {
        let size = self.about(number).map_or(0, |file| file.size);
        if size > limit as u64 {
            return Err(bad(format!("{what} is longer than {limit} bytes")));
        }
        let mut bytes = Vec::new();
        self.file(number)?
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        Ok(bytes)
    }
}

/// A name without `.`, `..` and empty parts, for comparison.
fn normal(name: &str) -> String {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}
