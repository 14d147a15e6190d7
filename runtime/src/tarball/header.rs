//! One block of 512 bytes as a header.

use super::{BLOCK, Time};

/// Which fields a header has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Before POSIX.
    Old,
    /// POSIX, with a prefix of the name.
    Ustar,
    /// Schilling's, with a shorter prefix.
    Star,
    /// GNU's, without.
    Gnu,
}

pub(crate) struct Block([u8; BLOCK]);

impl Block {
    pub(crate) fn new(bytes: [u8; BLOCK]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8; BLOCK] {
        &self.0
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.0 == [0; BLOCK]
    }

    fn field(&self, at: usize, length: usize) -> &[u8] {
        self.0.get(at..at + length).unwrap_or_default()
    }

    fn text(&self, at: usize, length: usize) -> Vec<u8> {
        let field = self.field(at, length);
        let end = field.iter().position(|byte| *byte == 0);
        field
            .get(..end.unwrap_or(length))
            .unwrap_or_default()
            .to_vec()
    }

    /// POSIX adds bytes as unsigned numbers; old writers added them as signed ones.
    pub(crate) fn checksum_matches(&self) -> bool {
        let Some(wanted) = number(self.field(148, 8)) else {
            return false;
        };
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (at, byte) in self.0.iter().enumerate() {
            let byte = if (148..156).contains(&at) {
                b' '
            } else {
                *byte
            };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        wanted == unsigned || wanted == signed
    }

    /// A text, or nothing if it is none that everybody reads alike.
    fn ascii(&self, at: usize, length: usize) -> Vec<u8> {
        let text = self.text(at, length);
        if text.is_ascii() { text } else { Vec::new() }
    }

    pub(crate) fn typeflag(&self) -> u8 {
        self.0[156]
    }

    pub(crate) fn format(&self) -> Result<Format, &'static str> {
        match self.field(257, 8) {
            b"ustar\x0000" if self.field(508, 4) == b"tar\0" => Ok(Format::Star),
            b"ustar\x0000" => Ok(Format::Ustar),
            b"ustar  \0" => Ok(Format::Gnu),
            // Some readers look at the version, some do not; without a prefix it is all the same.
            other if other.starts_with(b"ustar\0") && self.0[345] != 0 => {
                Err("a header of an unknown version has a name with a prefix")
            }
            _ => Ok(Format::Old),
        }
    }

    pub(crate) fn name(&self, format: Format) -> Vec<u8> {
        let name = self.text(0, 100);
        let mut prefix = match format {
            Format::Ustar => self.text(345, 155),
            Format::Star => self.text(345, 131),
            Format::Gnu if self.has_prefix_for_times() => self.ascii(345, 155),
            Format::Old | Format::Gnu => return name,
        };
        if prefix.is_empty() {
            return name;
        }
        prefix.push(b'/');
        prefix.extend_from_slice(&name);
        prefix
    }

    /// Go before 1.8 wrote a prefix of the name where GNU has two times; as Go reads that, it is one when they are no
    /// times. What is no plain text there was never meant as a prefix.
    fn has_prefix_for_times(&self) -> bool {
        let is_time = |at| {
            let field = self.field(at, 12);
            field.first() == Some(&0) || number(field).is_some()
        };
        !(is_time(345) && is_time(357))
    }

    pub(crate) fn link(&self) -> Vec<u8> {
        self.text(157, 100)
    }

    pub(crate) fn mode(&self) -> &[u8] {
        self.field(100, 8)
    }

    pub(crate) fn uid(&self) -> &[u8] {
        self.field(108, 8)
    }

    pub(crate) fn gid(&self) -> &[u8] {
        self.field(116, 8)
    }

    pub(crate) fn size(&self) -> &[u8] {
        self.field(124, 12)
    }

    pub(crate) fn mtime(&self) -> &[u8] {
        self.field(136, 12)
    }

    /// When the format has a field for it that makes sense: writers have put other things there.
    pub(crate) fn atime(&self, format: Format) -> Option<Time> {
        let field = match format {
            Format::Gnu if !self.has_prefix_for_times() => self.field(345, 12),
            Format::Star => self.field(476, 12),
            Format::Old | Format::Ustar | Format::Gnu => return None,
        };
        let sec = number(field).filter(|_| field.first() != Some(&0))?;
        Some(Time { sec, nsec: 0 })
    }

    pub(crate) fn major(&self) -> &[u8] {
        self.field(329, 8)
    }

    pub(crate) fn minor(&self) -> &[u8] {
        self.field(337, 8)
    }

    /// The four parts of a sparse file, and whether a block with more follows.
    pub(crate) fn sparse(&self) -> (&[u8], bool) {
        (self.field(386, 96), self.0[482] != 0)
    }

    /// The 21 parts of a block that follows, and whether there is another.
    pub(crate) fn more_sparse(&self) -> (&[u8], bool) {
        (self.field(0, 504), self.0[504] != 0)
    }

    pub(crate) fn real_size(&self) -> &[u8] {
        self.field(483, 12)
    }
}

/// Octal digits among blanks and NULs, or GNU's base 256. An empty field is 0.
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        return base256(*first, rest);
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let from = field.iter().position(|byte| !blank(byte));
    let Some(from) = from else { return Some(0) };
    let digits = field.get(from..)?;
    let length = digits.iter().position(blank).unwrap_or(digits.len());
    let (digits, after) = digits.split_at_checked(length)?;
    // What follows a NUL is nobody's business, what follows a blank has to be blank.
    if after.first() == Some(&b' ') && !after.iter().all(blank) {
        return None;
    }
    digits.iter().try_fold(0i64, |sum, digit| match digit {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// Two's complement, big endian, the highest bit of the first byte being the mark.
fn base256(first: u8, rest: &[u8]) -> Option<i64> {
    let negative = first & 0x40 != 0;
    let start = if negative {
        i128::from(first | 0x80) - 256
    } else {
        i128::from(first & 0x7f)
    };
    let sum = rest.iter().try_fold(start, |sum, byte| {
        sum.checked_mul(256)?.checked_add(i128::from(*byte))
    })?;
    i64::try_from(sum).ok()
}
