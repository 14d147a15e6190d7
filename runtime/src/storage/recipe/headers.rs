//! As much of the tar format as it takes to know where files' content is.
//!
//! This sees what the applier sees, at the same time; an archive that it refuses never becomes a layer, so here
//! what is odd only means that there will be no recipe.

use super::{Entry, Kind};

const BLOCK: usize = 512;

/// An extension header longer than this is nothing that the applier takes.
const MAX_EXTENSION: u64 = 1 << 20;

/// What the bytes that were taken are.
pub(super) enum Event {
    /// To be kept.
    Literal,
    /// In the unpacked file.
    Content,
    /// To be kept; with them this entry begins.
    Entry(Entry),
    /// Nobody knows.
    Lost,
}

#[derive(Debug)]
enum State {
    /// Within a header.
    Header,
    /// Within what a header says about the next one.
    Extension { kind: u8, left: u64 },
    /// Within the blocks that continue the map of an old sparse file, which has this much content.
    Map { size: u64 },
    /// Within content that is in the unpacked file.
    Content { left: u64, padding: u64 },
    /// Within bytes that are kept until the next header.
    Skip { left: u64 },
    /// Behind the end.
    Tail,
}

/// What extension headers say about the next entry.
#[derive(Debug, Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    sparse: bool,
}

#[derive(Debug)]
pub(super) struct Parser {
    state: State,
    /// Of the header or extension so far.
    bytes: Vec<u8>,
    extensions: Extensions,
    /// The header before was one of zeros.
    zero: bool,
}

impl Default for Parser {
    fn default() -> Self {
        Self {
            state: State::Header,
            bytes: Vec::with_capacity(BLOCK),
            extensions: Extensions::default(),
            zero: false,
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
            State::Header => self.block(bytes, Self::header),
            State::Map { size } => self.block(bytes, |this, block| {
                if block.get(504) == Some(&0) {
                    this.skip(size + padding(size));
                }
                Event::Literal
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

    fn header(&mut self, block: &[u8]) -> Event {
        if block.iter().all(|byte| *byte == 0) {
            if self.zero {
                self.state = State::Tail;
            }
            self.zero = true;
            return Event::Literal;
        }
        self.zero = false;
        self.describe(block).unwrap_or(Event::Lost)
    }

    fn describe(&mut self, block: &[u8]) -> Option<Event> {
        let flag = *block.get(156)?;
        let size = u64::try_from(number(block.get(124..136)?)?).ok()?;
        if matches!(flag, b'x' | b'g' | b'L' | b'K') {
            if size > MAX_EXTENSION {
                return None;
            }
            self.state = State::Extension {
                kind: flag,
                left: size,
            };
            if size == 0 {
                self.state = State::Header;
            }
            return Some(Event::Literal);
        }
        let extensions = std::mem::take(&mut self.extensions);
        let raw = extensions.name.unwrap_or_else(|| header_name(block));
        let kind = match flag {
            0 if raw.ends_with(b"/") => Kind::Dir,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            _ => return None,
        };
        let size = match kind {
            Kind::File => extensions.size.unwrap_or(size),
            _ => 0,
        };
        let name = clean(&raw);
        let hides = name
            .split(|byte| *byte == b'/')
            .any(|part| part.starts_with(b".wh."));
        let sparse = extensions.sparse || flag == b'S';
        let content = kind == Kind::File && !sparse && !hides && size > 0;
        self.state = match (content, flag == b'S' && block.get(482) != Some(&0)) {
            (true, _) => State::Content {
                left: size,
                padding: padding(size),
            },
            (false, true) => State::Map { size },
            (false, false) => State::Header,
        };
        if matches!(self.state, State::Header) {
            self.skip(size + padding(size));
        }
        if hides || name.is_empty() {
            return Some(Event::Literal);
        }
        let small = |range| number(block.get(range)?).and_then(|n| u32::try_from(n).ok());
        Some(Event::Entry(Entry {
            kind,
            mode: small(100..108)? & 0o7777,
            uid: extensions.uid.or_else(|| small(108..116))?,
            gid: extensions.gid.or_else(|| small(116..124))?,
            size: if sparse { 0 } else { size },
            content,
            name,
        }))
    }

    fn extend(&mut self, kind: u8, text: &[u8]) -> Option<()> {
        match kind {
            b'L' => {
                let end = text.iter().position(|byte| *byte == 0);
                self.extensions.name = Some(text.get(..end.unwrap_or(text.len()))?.to_vec());
            }
            b'x' => self.pax(text)?,
            _ => {}
        }
        Some(())
    }

    fn pax(&mut self, mut text: &[u8]) -> Option<()> {
        while !text.is_empty() {
            let space = text.iter().position(|byte| *byte == b' ')?;
            let length = usize::try_from(decimal(text.get(..space)?)?).ok()?;
            let (record, rest) = text.split_at_checked(length)?;
            text = rest;
            let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
            let equals = body.iter().position(|byte| *byte == b'=')?;
            let (key, value) = (body.get(..equals)?, body.get(equals + 1..)?);
            let narrow = |value| decimal(value).and_then(|n| u32::try_from(n).ok());
            match key {
                _ if value.is_empty() => {}
                b"path" | b"GNU.sparse.name" => self.extensions.name = Some(value.to_vec()),
                b"size" => self.extensions.size = Some(decimal(value)?),
                b"uid" => self.extensions.uid = Some(narrow(value)?),
                b"gid" => self.extensions.gid = Some(narrow(value)?),
                _ => {}
            }
            self.extensions.sparse |= key.starts_with(b"GNU.sparse.");
        }
        Some(())
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn header_name(block: &[u8]) -> Vec<u8> {
    let name = text(block.get(..100).unwrap_or_default());
    let is_posix = block.get(257..265) == Some(b"ustar\x0000");
    let is_star = is_posix && block.get(508..512) == Some(b"tar\0");
    let prefix = match (is_posix, is_star) {
        (true, true) => text(block.get(345..476).unwrap_or_default()),
        (true, false) => text(block.get(345..500).unwrap_or_default()),
        (false, _) => &[],
    };
    match prefix {
        [] => name.to_vec(),
        prefix => [prefix, b"/", name].concat(),
    }
}

/// Octal, or base 256 with the highest bit as the mark.
fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let start = i64::from(first & 0x7f);
        return rest.iter().try_fold(start, |sum, byte| {
            sum.checked_mul(256)?.checked_add(i64::from(*byte))
        });
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let digits = field.iter().skip_while(|byte| blank(byte));
    let mut digits = digits.take_while(|byte| !blank(byte));
    digits.try_fold(0_i64, |sum, digit| match digit {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// Components joined by single slashes.
fn clean(raw: &[u8]) -> Vec<u8> {
    let parts = raw.split(|byte| *byte == b'/');
    let parts = parts.filter(|part| !matches!(*part, b"" | b"."));
    parts.collect::<Vec<_>>().join(&b'/')
}
