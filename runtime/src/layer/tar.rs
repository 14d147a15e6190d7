//! A strict reader of tar archives (POSIX ustar and pax, GNU).
//!
//! Where readers in the field disagree about what an archive contains, layers get smuggled past scanners
//! (CVE-2025-62518 and its kin), so this one refuses what is ambiguous, and else does as Go's
//! `archive/tar` does, which containerd and Docker unpack with: a pax size overrides the header's, entries
//! that are no files have no content, whatever size they claim. Nothing is allocated by a number from
//! the archive beyond [`Limits::header`].

use std::io::{ErrorKind, Read};

use super::{Error, Limits};
use crate::tarball::header::{self, Block, Format};
use crate::tarball::pax::{self, Pax};
use crate::tarball::{BLOCK, sparse};
pub(super) use crate::tarball::{Time, Type};

/// The archive is read, and large files are written, in pieces of this size.
const PIECE: usize = 256 * 1024;
const BUFFER: usize = 2 * PIECE;

/// One entry, nothing about it interpreted yet.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Type,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) atime: Option<Time>,
    /// Major and minor.
    pub(super) device: (u32, u32),
    /// Size of the file.
    pub(super) size: u64,
    /// Where the content goes (offset, length), when not all of the file is in the archive.
    pub(crate) sparse: Option<Vec<(u64, u64)>>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads entries one after the other.
pub(crate) struct Archive<'l, R> {
    reader: R,
    limits: &'l Limits,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes taken from the reader.
    total: u64,
    at_eof: bool,
    /// What is left of the current entry's content, and of the padding after it.
    content: u64,
    padding: u64,
    /// Where the current header starts.
    offset: u64,
}

/// What the extension headers before an entry say.
#[derive(Default)]
struct Extensions {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<'l, R: Read> Archive<'l, R> {
    pub(crate) fn new(reader: R, limits: &'l Limits) -> Self {
        Self {
            reader,
            limits,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            total: 0,
            at_eof: false,
            content: 0,
            padding: 0,
            offset: 0,
        }
    }

    /// The next entry; none at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, Error> {
        self.skip_content()?;
        let mut extensions = Extensions::default();
        loop {
            self.offset = self.position();
            let Some(block) = self.header()? else {
                return if extensions.any() {
                    Err(self.malformed("it ends after an extended header"))
                } else {
                    Ok(None)
                };
            };
            match block.typeflag() {
                b'x' => {
                    let text = self.extension(&block)?;
                    let pax = Pax::parse(&text).map_err(|what| self.malformed(what))?;
                    if extensions.pax.replace(pax).is_some() {
                        return Err(self.malformed("two pax headers for one entry"));
                    }
                }
                // Like containerd, defaults for what follows are not heeded; that is safe to do only
                // when they do not concern what the entries are.
                b'g' => {
                    // Some readers forget what was said about the next entry, and some do not.
                    if extensions.any() {
                        return Err(
                            self.malformed("a global pax header between a header and its entry")
                        );
                    }
                    let text = self.extension(&block)?;
                    let pax = Pax::parse(&text).map_err(|what| self.malformed(what))?;
                    if pax.changes_entries() {
                        return Err(self.malformed("a global pax header renames or resizes"));
                    }
                }
                b'L' => {
                    let name = self.long_name(&block)?;
                    if extensions.long_name.replace(name).is_some() {
                        return Err(self.malformed("two long names for one entry"));
                    }
                }
                b'K' => {
                    let link = self.long_name(&block)?;
                    if extensions.long_link.replace(link).is_some() {
                        return Err(self.malformed("two long links for one entry"));
                    }
                }
                _ => return self.entry(&block, extensions).map(Some),
            }
        }
    }

    /// Some of what is left of the current entry's content; empty at its end.
    pub(crate) fn content(&mut self) -> Result<&[u8], Error> {
        let piece = PIECE as u64;
        let wanted = usize::try_from(self.content.min(piece)).unwrap_or(PIECE);
        self.ensure(wanted)?;
        if self.end - self.start < wanted {
            return Err(self.truncated());
        }
        let from = self.start;
        self.start += wanted;
        self.content -= wanted as u64;
        Ok(self.buffer.get(from..from + wanted).unwrap_or_default())
    }

    /// How much of the current entry's content has not been asked for yet.
    pub(crate) fn content_left(&self) -> u64 {
        self.content
    }

    /// Reads what follows the end of the archive, so that the whole stream has gone through the hash.
    pub(super) fn drain(&mut self) -> Result<(), Error> {
        self.start = 0;
        self.end = 0;
        while !self.at_eof {
            self.fill()?;
            self.end = 0;
        }
        Ok(())
    }

    fn position(&self) -> u64 {
        self.total - (self.end - self.start) as u64
    }

    fn malformed(&self, what: &'static str) -> Error {
        Error::Malformed {
            offset: self.offset,
            what,
        }
    }

    fn truncated(&self) -> Error {
        self.malformed("it ends within an entry")
    }

    /// Reads once more, behind what is there.
    fn fill(&mut self) -> Result<(), Error> {
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        let length = loop {
            match self.reader.read(room) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => break result.map_err(Error::Read)?,
            }
        };
        self.at_eof = length == 0;
        self.end += length;
        self.total += length as u64;
        if self.total > self.limits.bytes {
            return Err(Error::Limit {
                what: "uncompressed bytes",
                limit: self.limits.bytes,
            });
        }
        Ok(())
    }

    /// Makes at least `wanted` bytes available, fewer at the end of the stream.
    fn ensure(&mut self, wanted: usize) -> Result<(), Error> {
        if self.end - self.start >= wanted {
            return Ok(());
        }
        if self.start + wanted > self.buffer.len() || self.start == self.end {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < wanted && !self.at_eof {
            self.fill()?;
        }
        Ok(())
    }

    fn skip_content(&mut self) -> Result<(), Error> {
        while self.content > 0 {
            self.content()?;
        }
        let padding = usize::try_from(self.padding).unwrap_or(0);
        self.ensure(padding)?;
        if self.end - self.start < padding {
            return Err(self.truncated());
        }
        self.start += padding;
        self.padding = 0;
        Ok(())
    }

    fn block(&mut self) -> Result<Option<Block>, Error> {
        self.ensure(BLOCK)?;
        let available = self.buffer.get(self.start..self.end).unwrap_or_default();
        match available.first_chunk::<BLOCK>() {
            Some(bytes) => {
                let block = Block::new(*bytes);
                self.start += BLOCK;
                Ok(Some(block))
            }
            None if available.is_empty() => Ok(None),
            None => Err(self.truncated()),
        }
    }

    /// The next header; none at the end: two blocks of zeros, or the end of the stream.
    fn header(&mut self) -> Result<Option<Block>, Error> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block.is_zero() {
            return match self.block()? {
                Some(second) if !second.is_zero() => {
                    Err(self.malformed("a lone block of zeros between entries"))
                }
                _ => Ok(None),
            };
        }
        if !block.checksum_matches() {
            return Err(self.malformed("the checksum of a header does not match"));
        }
        Ok(Some(block))
    }

    fn number(&self, field: &[u8]) -> Result<i64, Error> {
        header::number(field).ok_or_else(|| self.malformed("a header has a number that is none"))
    }

    fn begin_content(&mut self, size: u64) {
        self.content = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// The content of an extension header, whole.
    fn extension(&mut self, block: &Block) -> Result<Vec<u8>, Error> {
        let size = u64::try_from(self.number(block.size())?)
            .map_err(|_| self.malformed("a header has a negative size"))?;
        if size > self.limits.header {
            return Err(Error::Limit {
                what: "bytes in an extended header",
                limit: self.limits.header,
            });
        }
        self.begin_content(size);
        let mut bytes = Vec::new();
        while self.content > 0 {
            bytes.extend_from_slice(self.content()?);
        }
        self.skip_content()?;
        Ok(bytes)
    }

    fn long_name(&mut self, block: &Block) -> Result<Vec<u8>, Error> {
        let mut name = self.extension(block)?;
        let end = name.iter().position(|byte| *byte == 0);
        name.truncate(end.unwrap_or(name.len()));
        if name.is_empty() {
            return Err(self.malformed("an empty long name"));
        }
        Ok(name)
    }

    fn entry(&mut self, block: &Block, extensions: Extensions) -> Result<Entry, Error> {
        let format = block.format().map_err(|what| self.malformed(what))?;
        let mut pax = extensions.pax.unwrap_or_default();
        let (mut name, mut link) = (block.name(format), block.link());
        override_text(&mut name, pax.path.take(), extensions.long_name)
            .and_then(|()| override_text(&mut link, pax.linkpath.take(), extensions.long_link))
            .map_err(|what| self.malformed(what))?;
        let kind = Type::of(block.typeflag(), &name)
            .ok_or_else(|| self.malformed("an entry has an unknown type"))?;

        let id = |from_pax: Option<u32>, field: &[u8]| match from_pax {
            Some(id) => Ok(id),
            None => u32::try_from(self.number(field)?)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| self.malformed("a user or group id is out of range")),
        };
        let (uid, gid) = (id(pax.uid, block.uid())?, id(pax.gid, block.gid())?);
        let size = match pax.size {
            Some(size) => size,
            None => u64::try_from(self.number(block.size())?)
                .map_err(|_| self.malformed("a header has a negative size"))?,
        };
        let mtime = match pax.mtime {
            Some(time) => time,
            None => Time {
                sec: self.number(block.mtime())?,
                nsec: 0,
            },
        };
        let atime = pax.atime.or_else(|| block.atime(format));
        let device = match kind {
            Type::Char | Type::Block => self.device(block)?,
            _ => (0, 0),
        };
        let mode = self.number(block.mode())? & 0o7777;
        let mut entry = Entry {
            name,
            link,
            kind,
            mode: u32::try_from(mode).unwrap_or(0),
            uid,
            gid,
            mtime,
            atime,
            device,
            size,
            sparse: None,
            xattrs: std::mem::take(&mut pax.xattrs),
        };
        self.begin_content(if kind == Type::File { size } else { 0 });
        self.sparse_map(block, format, pax, &mut entry)?;
        Ok(entry)
    }

    /// S18: Linux has 12 bits of major and 20 of minor; a wider number would become another device.
    fn device(&self, block: &Block) -> Result<(u32, u32), Error> {
        let part = |field: &[u8], bits: u32| {
            u32::try_from(self.number(field)?)
                .ok()
                .filter(|number| number >> bits == 0)
                .ok_or_else(|| self.malformed("a device number is out of range"))
        };
        Ok((part(block.major(), 12)?, part(block.minor(), 20)?))
    }

    fn sparse_map(
        &mut self,
        block: &Block,
        format: Format,
        pax: Pax,
        entry: &mut Entry,
    ) -> Result<(), Error> {
        if block.typeflag() == b'S' {
            if format != Format::Gnu {
                return Err(self.malformed("a sparse file in another format than GNU's"));
            }
            return self.old_sparse_map(block, entry);
        }
        let Some(kind) = pax.sparse.kind().map_err(|what| self.malformed(what))? else {
            return Ok(());
        };
        if entry.kind != Type::File {
            return Err(self.malformed("something sparse that is no file"));
        }
        let map = match kind {
            pax::SparseKind::InHeader(map) => map,
            pax::SparseKind::InContent => self.sparse_map_in_content()?,
        };
        if let Some(name) = pax.sparse.name {
            entry.name = name;
        }
        let size = pax.sparse.size.unwrap_or(entry.size);
        self.set_sparse(entry, map, size)
    }

    fn set_sparse(&self, entry: &mut Entry, map: Vec<(u64, u64)>, size: u64) -> Result<(), Error> {
        if !sparse::is_valid(&map, size, self.content) {
            return Err(self.malformed("the map of a sparse file makes no sense"));
        }
        // The holes of a file count, too: what reads it later reads them.
        if size > self.limits.bytes {
            return Err(Error::Limit {
                what: "bytes in a sparse file",
                limit: self.limits.bytes,
            });
        }
        entry.size = size;
        entry.sparse = Some(map);
        Ok(())
    }

    /// GNU's first format: four parts in the header, the others in blocks before the content.
    fn old_sparse_map(&mut self, block: &Block, entry: &mut Entry) -> Result<(), Error> {
        let mut map = Vec::new();
        let bad = |what| move |archive: &Self| archive.malformed(what);
        let no_map = bad("the map of a sparse file makes no sense");
        let (parts, mut more) = block.sparse();
        sparse::read_parts(parts, &mut map).ok_or_else(|| no_map(self))?;
        while more {
            let next = self.block()?.ok_or_else(|| self.truncated())?;
            let (parts, again) = next.more_sparse();
            sparse::read_parts(parts, &mut map).ok_or_else(|| no_map(self))?;
            more = again;
            if map.len() as u64 * 24 > self.limits.header {
                return Err(Error::Limit {
                    what: "bytes in the map of a sparse file",
                    limit: self.limits.header,
                });
            }
        }
        let size = header::number(block.real_size()).and_then(|size| u64::try_from(size).ok());
        let size = size.ok_or_else(|| no_map(self))?;
        self.set_sparse(entry, map, size)
    }

    /// Version 1.0: decimal numbers on lines, padded to a block, at the start of the content.
    fn sparse_map_in_content(&mut self) -> Result<Vec<(u64, u64)>, Error> {
        let mut reader = sparse::MapReader::new(self.limits.header);
        loop {
            if self.content < BLOCK as u64 {
                return Err(self.truncated());
            }
            let block = self.block()?.ok_or_else(|| self.truncated())?;
            self.content -= BLOCK as u64;
            let done = reader.feed(block.bytes());
            match done.ok_or_else(|| self.malformed("the map of a sparse file makes no sense"))? {
                None => {}
                Some(map) => return Ok(map),
            }
        }
    }
}

impl Extensions {
    fn any(&self) -> bool {
        self.pax.is_some() || self.long_name.is_some() || self.long_link.is_some()
    }
}

/// A text may be given by pax or by GNU's long entry; by both is what parsers disagree about (S10).
fn override_text(
    text: &mut Vec<u8>,
    pax: Option<Vec<u8>>,
    gnu: Option<Vec<u8>>,
) -> Result<(), &'static str> {
    match (pax, gnu) {
        (Some(_), Some(_)) => return Err("a name both by pax and by GNU header"),
        (Some(long), None) | (None, Some(long)) => *text = long,
        (None, None) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests;
