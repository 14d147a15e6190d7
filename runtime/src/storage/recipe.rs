//! How to make a layer's archive again from its unpacked files.
//!
//! The compressed layer is not kept. What is kept beside the unpacked one is everything of its archive but
//! the content of files, compressed: some forty bytes a file. With that the archive is made again, byte by byte. So an
//! image can be saved under the id that it was pulled with, and the files of a layer can be checked
//! against the digest that the image's configuration names.
//!
//! A recipe is a sequence of parts, each a tag and little-endian numbers:
//!
//! ```text
//! 0  length u32, bytes                                    bytes of the archive as they are
//! 1  kind u8, mode u32, uid u32, gid u32, size u64,       an entry; its content (`size` bytes of the file `name`)
//!    content u8, length u32, name                         comes here if `content` is 1
//! ```
//!
//! What an entry says besides is in its header, which is among the bytes of the archive.

mod compare;
mod headers;
mod read;

use std::fs::File;
use std::io::{self, Write};

use zstd::stream::write::Encoder;

use headers::{Event, Parser};
pub use read::Replay;
pub(super) use read::{Compare, is_fault};

use crate::tarball::Type;

/// Longest part of literal bytes.
const LITERAL: usize = 64 << 10;

/// A recipe longer than this is not kept: its archive is made to have one.
const MAX_STORED: u64 = 256 << 20;

const LITERAL_TAG: u8 = 0;
const ENTRY_TAG: u8 = 1;

/// An entry, as far as it shows in the unpacked layer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    kind: Type,
    mode: u32,
    uid: u32,
    gid: u32,
    /// Of the unpacked file.
    size: u64,
    /// Whether the content is in the unpacked file and not among the literal bytes.
    content: bool,
    sparse: bool,
    /// Target of a link.
    link: Vec<u8>,
    /// Major and minor.
    device: (u32, u32),
    /// Relative, without empty components, `.` and `..`.
    name: Vec<u8>,
}

/// The number of a type in a recipe.
fn number(kind: Type) -> u8 {
    match kind {
        Type::File => 0,
        Type::HardLink => 1,
        Type::Symlink => 2,
        Type::Char => 3,
        Type::Block => 4,
        Type::Dir => 5,
        Type::Fifo => 6,
    }
}

/// What came of writing a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Bytes of the archive.
    pub archive: u64,
    /// Bytes of the recipe; none if the archive cannot be made again from it.
    pub stored: Option<u64>,
}

/// Writes the recipe while the archive's bytes go by.
pub struct Recorder {
    out: Encoder<'static, Counted>,
    parser: Parser,
    literal: Vec<u8>,
    archive: u64,
    /// Why there will be no recipe.
    given_up: bool,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

/// A file, and how much went into it.
struct Counted {
    file: File,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.file.write(bytes)?;
        self.bytes += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Recorder {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let mut out = Encoder::new(Counted { file, bytes: 0 }, 1)?;
        out.include_checksum(true)?;
        Ok(Self {
            out,
            parser: Parser::default(),
            literal: Vec::with_capacity(LITERAL),
            archive: 0,
            given_up: false,
        })
    }

    /// Takes the next bytes of the archive.
    ///
    /// # Errors
    /// What writing to the recipe's file says: the disk is full or broken.
    pub fn feed(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.archive += bytes.len() as u64;
        while !bytes.is_empty() && !self.given_up {
            let (length, event) = self.parser.feed(bytes);
            let (now, rest) = bytes.split_at_checked(length).unwrap_or((bytes, &[]));
            bytes = rest;
            match event {
                Event::Literal | Event::Sparse(_) => self.keep(now)?,
                Event::Content => {}
                Event::Entry(entry) => {
                    self.keep(now)?;
                    self.flush()?;
                    self.entry(&entry)?;
                }
                Event::Lost => self.given_up = true,
            }
            self.given_up |= self.out.get_ref().bytes > MAX_STORED;
        }
        Ok(())
    }

    fn keep(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = LITERAL - self.literal.len();
            let (now, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            self.literal.extend_from_slice(now);
            bytes = rest;
            if self.literal.len() == LITERAL {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.literal.is_empty() {
            return Ok(());
        }
        self.out.write_all(&[LITERAL_TAG])?;
        self.out.write_all(&length(&self.literal))?;
        self.out.write_all(&self.literal)?;
        self.literal.clear();
        Ok(())
    }

    fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        self.out.write_all(&[ENTRY_TAG, number(entry.kind)])?;
        for number in [entry.mode, entry.uid, entry.gid] {
            self.out.write_all(&number.to_le_bytes())?;
        }
        self.out.write_all(&entry.size.to_le_bytes())?;
        self.out.write_all(&[u8::from(entry.content)])?;
        self.out.write_all(&length(&entry.name))?;
        self.out.write_all(&entry.name)
    }

    /// Completes the recipe. `exact` says that each name of the archive was written once: what was
    /// replaced by a later entry is gone, and the archive cannot be made again.
    ///
    /// # Errors
    /// What writing to the recipe's file says.
    pub fn finish(mut self, exact: bool) -> io::Result<Recorded> {
        self.flush()?;
        let whole = exact && !self.given_up && self.parser.is_between_entries();
        let mut out = self.out.finish()?;
        if !whole {
            out.file.set_len(0)?;
        }
        out.flush()?;
        Ok(Recorded {
            archive: self.archive,
            stored: whole.then_some(out.bytes),
        })
    }
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests;
