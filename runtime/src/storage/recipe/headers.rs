//! Where in an archive files' content is, and what its entries say.
//!
//! This sees what the applier sees, at the same time; an archive that it refuses never becomes a layer, so here
//! what is odd only means that there will be no recipe.

use super::Entry;
use crate::tarball::header::{Block, number};
use crate::tarball::name;
use crate::tarball::pax::{Pax, SparseKind};
use crate::tarball::sparse::{self, MapReader};
use crate::tarball::{BLOCK, Type};

/// An extension header or map longer than this is nothing that the applier takes.
const MAX_EXTENSION: u64 = 1 << 20;

/// What the bytes that were taken are.
pub(super) enum Event {
    /// To be kept.
    Literal,
    /// In the unpacked file.
    Content,
    /// To be kept: content of a sparse file, from this offset in it on.
    Sparse(u64),
    /// To be kept; with them this entry begins.
    Entry(Entry),
    /// Nobody knows.
    Lost,
}

enum State {
    /// Within a header.
    Header,
    /// Within what a header says about the next one.
    Extension { kind: u8, left: u64 },
    /// Within the blocks that continue the map of an old sparse file.
    Map,
    /// Within the map at the start of a sparse file's content.
    MapText,
    /// Within a part of a sparse file that belongs at this offset.
    Part { offset: u64, left: u64 },
    /// Within content that is in the unpacked file.
    Content { left: u64, padding: u64 },
    /// Within bytes that are kept until the next header.
    Skip { left: u64 },
    /// Behind the end.
    Tail,
}

/// What extension headers say about the next entry.
#[derive(Default)]
struct Extensions {
    pax: Pax,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

/// Where the map of a file is that is sparse.
enum Map {
    None,
    Old,
    InHeader(Vec<(u64, u64)>),
    InContent,
}

/// The sparse file at hand.
struct Sparse {
    size: u64,
    /// Bytes in the archive, without the map.
    content: u64,
    map: Vec<(u64, u64)>,
    text: MapReader,
    /// Which part comes next.
    next: usize,
}

pub(super) struct Parser {
    state: State,
    /// Of the header or extension so far.
    bytes: Vec<u8>,
    extensions: Extensions,
    sparse: Sparse,
    /// The header before was one of zeros.
    zero: bool,
}

impl Default for Parser {
    fn default() -> Self {
        Self {
            state: State::Header,
            bytes: Vec::with_capacity(BLOCK),
            extensions: Extensions::default(),
            sparse: Sparse::new(0, 0),
            zero: false,
        }
    }
}

impl Sparse {
    fn new(size: u64, content: u64) -> Self {
        Self {
            size,
            content,
            map: Vec::new(),
            text: MapReader::new(MAX_EXTENSION),
            next: 0,
        }
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn least(left: u64, available: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(available)
}

impl Parser {
    /// Whether nothing is missing of the entry before.
    pub(super) fn is_between_entries(&self) -> bool {
        match self.state {
            State::Header => self.bytes.is_empty(),
            State::Skip { left } => left == 0,
            State::Tail => true,
            _ => false,
        }
    }

    /// Takes some of the bytes, at least one, and tells how many and what they are.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> (usize, Event) {
        match self.state {
            State::Tail => (bytes.len(), Event::Literal),
            State::Skip { left } => {
                let now = least(left, bytes.len());
                self.skip(left - now as u64);
                if now == 0 {
                    return self.feed(bytes);
                }
                (now, Event::Literal)
            }
            State::Content { left, padding } => {
                let now = least(left, bytes.len());
                let left = left - now as u64;
                if left == 0 {
                    self.skip(padding);
                } else {
                    self.state = State::Content { left, padding };
                }
                (now, Event::Content)
            }
            State::Part { offset, left } => {
                let now = least(left, bytes.len());
                self.part(offset + now as u64, left - now as u64);
                (now, Event::Sparse(offset))
            }
            State::Header => self.block(bytes, Self::header),
            State::Map => self.block(bytes, |this, block| {
                this.more_map(block).unwrap_or(Event::Lost)
            }),
            State::MapText => self.block(bytes, |this, block| {
                this.map_text(block).unwrap_or(Event::Lost)
            }),
            State::Extension { kind, left } => {
                let now = least(left, bytes.len());
                self.bytes
                    .extend_from_slice(bytes.get(..now).unwrap_or_default());
                let left = left - now as u64;
                self.state = State::Extension { kind, left };
                if left > 0 {
                    return (now, Event::Literal);
                }
                let text = std::mem::take(&mut self.bytes);
                self.skip(padding(text.len() as u64));
                match self.extend(kind, &text) {
                    Some(()) => (now, Event::Literal),
                    None => (now, Event::Lost),
                }
            }
        }
    }

    fn skip(&mut self, left: u64) {
        self.state = match left {
            0 => State::Header,
            left => State::Skip { left },
        };
    }

    /// Goes on in a sparse file, with the next part when nothing is left of this one.
    fn part(&mut self, mut offset: u64, mut left: u64) {
        while left == 0 {
            let Some(next) = self.sparse.map.get(self.sparse.next) else {
                return self.skip(padding(self.sparse.content));
            };
            (offset, left) = *next;
            self.sparse.next += 1;
        }
        self.state = State::Part { offset, left };
    }

    /// Collects a block, then does something with it.
    fn block(
        &mut self,
        bytes: &[u8],
        done: impl FnOnce(&mut Self, &[u8]) -> Event,
    ) -> (usize, Event) {
        let now = bytes.len().min(BLOCK - self.bytes.len());
        self.bytes
            .extend_from_slice(bytes.get(..now).unwrap_or_default());
        if self.bytes.len() < BLOCK {
            return (now, Event::Literal);
        }
        let block = std::mem::take(&mut self.bytes);
        let event = done(self, &block);
        // The room is used again.
        if self.bytes.capacity() == 0 {
            self.bytes = block;
            self.bytes.clear();
        }
        (now, event)
    }

    fn header(&mut self, bytes: &[u8]) -> Event {
        let Some(bytes) = bytes.first_chunk() else {
            return Event::Lost;
        };
        let block = Block::new(*bytes);
        if block.is_zero() {
            if self.zero {
                self.state = State::Tail;
            }
            self.zero = true;
            return Event::Literal;
        }
        self.zero = false;
        self.describe(&block).unwrap_or(Event::Lost)
    }

    fn describe(&mut self, block: &Block) -> Option<Event> {
        if !block.checksum_matches() {
            return None;
        }
        let flag = block.typeflag();
        if matches!(flag, b'x' | b'g' | b'L' | b'K') {
            let size = u64::try_from(number(block.size())?).ok();
            let size = size.filter(|size| *size <= MAX_EXTENSION)?;
            self.state = match size {
                0 => State::Header,
                left => State::Extension { kind: flag, left },
            };
            return Some(Event::Literal);
        }
        let extensions = std::mem::take(&mut self.extensions);
        self.entry(block, extensions)
    }

    fn entry(&mut self, block: &Block, extensions: Extensions) -> Option<Event> {
        let Extensions { pax, name, link } = extensions;
        let format = block.format().ok()?;
        let raw = pax.path.or(name).unwrap_or_else(|| block.name(format));
        let kind = Type::of(block.typeflag(), &raw)?;
        let content = match (kind, pax.size) {
            (Type::File, Some(size)) => size,
            (Type::File, None) => u64::try_from(number(block.size())?).ok()?,
            _ => 0,
        };
        let small = |field: &[u8]| number(field).and_then(|n| u32::try_from(n).ok());
        let device = match kind {
            Type::Char | Type::Block => (small(block.major())?, small(block.minor())?),
            _ => (0, 0),
        };
        let map = match (block.typeflag(), pax.sparse.kind().ok()?) {
            (b'S', None) => Map::Old,
            (b'S', Some(_)) => return None,
            (_, None) => Map::None,
            (_, Some(SparseKind::InHeader(map))) => Map::InHeader(map),
            (_, Some(SparseKind::InContent)) => Map::InContent,
        };
        let real = match map {
            Map::Old => Some(u64::try_from(number(block.real_size())?).ok()?),
            _ => pax.sparse.size,
        };
        let name = name::beneath(&pax.sparse.name.unwrap_or(raw))?;
        // Whiteouts: by name, some of which aufs wrote for itself, and by device.
        let mut parts = name.split(|byte| *byte == b'/');
        let hides =
            parts.any(|part| part.starts_with(b".wh.")) || (kind == Type::Char && device == (0, 0));
        let entry = Entry {
            kind,
            mode: u32::try_from(number(block.mode())? & 0o7777).ok()?,
            uid: pax.uid.or_else(|| small(block.uid()))?,
            gid: pax.gid.or_else(|| small(block.gid()))?,
            size: real.unwrap_or(content),
            content: matches!(map, Map::None) && !hides && content > 0,
            sparse: !matches!(map, Map::None),
            link: pax.linkpath.or(link).unwrap_or_else(|| block.link()),
            device,
            name,
        };
        self.begin_content(block, &entry, map, content)?;
        Some(match hides || entry.name.is_empty() {
            true => Event::Literal,
            false => Event::Entry(entry),
        })
    }

    fn begin_content(
        &mut self,
        block: &Block,
        entry: &Entry,
        map: Map,
        content: u64,
    ) -> Option<()> {
        self.sparse = Sparse::new(entry.size, content);
        match map {
            Map::Old => return self.old_map(block.sparse()),
            Map::InHeader(map) => return self.begin_parts(map),
            Map::InContent => self.state = State::MapText,
            Map::None if entry.content => {
                self.state = State::Content {
                    left: content,
                    padding: padding(content),
                };
            }
            Map::None => self.skip(content.checked_add(padding(content))?),
        }
        Some(())
    }

    /// Takes parts of an old sparse file's map.
    fn old_map(&mut self, (parts, more): (&[u8], bool)) -> Option<()> {
        sparse::read_parts(parts, &mut self.sparse.map)?;
        self.state = State::Map;
        if more {
            let bytes = self.sparse.map.len() as u64 * 24;
            return (bytes <= MAX_EXTENSION).then_some(());
        }
        let map = std::mem::take(&mut self.sparse.map);
        self.begin_parts(map)
    }

    fn more_map(&mut self, bytes: &[u8]) -> Option<Event> {
        let block = Block::new(*bytes.first_chunk()?);
        self.old_map(block.more_sparse())?;
        Some(Event::Literal)
    }

    fn map_text(&mut self, block: &[u8]) -> Option<Event> {
        self.sparse.content = self.sparse.content.checked_sub(BLOCK as u64)?;
        if let Some(map) = self.sparse.text.feed(block)? {
            self.begin_parts(map)?;
        }
        Some(Event::Literal)
    }

    fn begin_parts(&mut self, map: Vec<(u64, u64)>) -> Option<()> {
        if !sparse::is_valid(&map, self.sparse.size, self.sparse.content) {
            return None;
        }
        self.sparse.map = map;
        self.part(0, 0);
        Some(())
    }

    fn extend(&mut self, kind: u8, text: &[u8]) -> Option<()> {
        let string = || text.split(|byte| *byte == 0).next().map(<[u8]>::to_vec);
        match kind {
            b'L' => self.extensions.name = string(),
            b'K' => self.extensions.link = string(),
            b'x' => self.extensions.pax = Pax::parse(text).ok()?,
            _ => {}
        }
        Some(())
    }
}
