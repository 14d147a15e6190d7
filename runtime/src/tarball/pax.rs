//! Pax extended headers: `"%d %s=%s\n"`, the number being the length of the whole record.

use super::Time;
use super::sparse;

/// What of a pax header matters here.
#[derive(Debug, Default)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) linkpath: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mtime: Option<Time>,
    pub(crate) atime: Option<Time>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: Sparse,
}

/// GNU's keywords for sparse files, versions 0.0, 0.1 and 1.0.
#[derive(Debug, Default)]
pub(crate) struct Sparse {
    version: (Option<u64>, Option<u64>),
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    blocks: Option<u64>,
    list: Option<Vec<(u64, u64)>>,
    pairs: Vec<(u64, u64)>,
    offset: Option<u64>,
}

pub(crate) enum SparseKind {
    InHeader(Vec<(u64, u64)>),
    InContent,
}

type Outcome<T> = Result<T, &'static str>;

const BAD_RECORD: &str = "a pax record is malformed";
const TWICE: &str = "a pax keyword is there twice";
const BAD_VALUE: &str = "a pax value is malformed";

impl Pax {
    pub(crate) fn parse(mut text: &[u8]) -> Outcome<Self> {
        let mut pax = Self::default();
        let mut seen: Vec<&[u8]> = Vec::new();
        while !text.is_empty() {
            let (key, value, rest) = record(text).ok_or(BAD_RECORD)?;
            text = rest;
            // In version 0.0 of sparse maps these two are repeated on purpose.
            let repeated = matches!(key, b"GNU.sparse.offset" | b"GNU.sparse.numbytes");
            if !repeated {
                seen.push(key);
            }
            pax.set(key, value)?;
        }
        let count = seen.len();
        seen.sort_unstable();
        seen.dedup();
        if seen.len() < count {
            return Err(TWICE);
        }
        Ok(pax)
    }

    /// Whether it says what a reader that heeds it would make of other entries.
    pub(crate) fn changes_entries(&self) -> bool {
        self.path.is_some() || self.linkpath.is_some() || self.size.is_some() || self.sparse.any()
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Outcome<()> {
        // An empty value takes a keyword back, so that the header's field counts (POSIX pax).
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            if name.is_empty() || name.contains(&0) {
                return Err(BAD_RECORD);
            }
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        if value.is_empty() {
            return Ok(());
        }
        match key {
            b"path" => self.path = Some(text(value)?),
            b"linkpath" => self.linkpath = Some(text(value)?),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(id(value)?),
            b"gid" => self.gid = Some(id(value)?),
            b"mtime" => self.mtime = Some(time(value).ok_or(BAD_VALUE)?),
            b"atime" => self.atime = Some(time(value).ok_or(BAD_VALUE)?),
            _ => {
                if let Some(rest) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(rest, value)?;
                }
            }
        }
        Ok(())
    }
}

impl Sparse {
    fn any(&self) -> bool {
        self.version != (None, None)
            || self.name.is_some()
            || self.size.is_some()
            || self.blocks.is_some()
            || self.list.is_some()
            || !self.pairs.is_empty()
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Outcome<()> {
        match key {
            b"major" => self.version.0 = Some(decimal(value)?),
            b"minor" => self.version.1 = Some(decimal(value)?),
            b"name" => self.name = Some(text(value)?),
            b"size" | b"realsize" => {
                if self.size.replace(decimal(value)?).is_some() {
                    return Err(TWICE);
                }
            }
            b"numblocks" => self.blocks = Some(decimal(value)?),
            b"map" => self.list = Some(sparse::read_list(value).ok_or(BAD_VALUE)?),
            b"offset" => {
                if self.offset.replace(decimal(value)?).is_some() {
                    return Err(BAD_VALUE);
                }
            }
            b"numbytes" => {
                let offset = self.offset.take().ok_or(BAD_VALUE)?;
                self.pairs.push((offset, decimal(value)?));
            }
            _ => return Err("a pax header has an unknown keyword for sparse files"),
        }
        Ok(())
    }

    /// Which version of map there is, if any.
    pub(crate) fn kind(&self) -> Outcome<Option<SparseKind>> {
        if !self.any() {
            return Ok(None);
        }
        if self.size.is_none() || self.offset.is_some() {
            return Err(BAD_VALUE);
        }
        let map = match (self.version, &self.list) {
            ((Some(1), Some(0)), None) if self.pairs.is_empty() => {
                return Ok(Some(SparseKind::InContent));
            }
            ((None, None) | (Some(0), Some(0 | 1)), None) => &self.pairs,
            ((None, None) | (Some(0), Some(1)), Some(list)) if self.pairs.is_empty() => list,
            _ => return Err("a pax header mixes versions of sparse files"),
        };
        if self.blocks != Some(map.len() as u64) {
            return Err(BAD_VALUE);
        }
        Ok(Some(SparseKind::InHeader(map.clone())))
    }
}

/// Keyword, value and what follows.
fn record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = text.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(text.get(..space)?).ok()?).ok()?;
    let (record, rest) = text.split_at_checked(length)?;
    let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (body.get(..equals)?, body.get(equals + 1..)?);
    (!key.is_empty() && !key.contains(&0)).then_some((key, value, rest))
}

fn text(value: &[u8]) -> Outcome<Vec<u8>> {
    if value.contains(&0) {
        return Err("a name contains a NUL");
    }
    Ok(value.to_vec())
}

/// Digits only: no sign, no blank.
pub(crate) fn decimal(value: &[u8]) -> Outcome<u64> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(value).ok().filter(|_| digits);
    // Sizes are signed everywhere else.
    let number = number.and_then(|digits| digits.parse::<i64>().ok());
    number
        .and_then(|number| u64::try_from(number).ok())
        .ok_or(BAD_VALUE)
}

fn id(value: &[u8]) -> Outcome<u32> {
    let id = u32::try_from(decimal(value)?)
        .ok()
        .filter(|id| *id != u32::MAX);
    id.ok_or("a user or group id is out of range")
}

/// Decimal seconds with a fraction, maybe negative; beyond nanoseconds it is cut off.
fn time(value: &[u8]) -> Option<Time> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let sec = i64::try_from(decimal(parts.next()?).ok()?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction
        .iter()
        .copied()
        .chain(std::iter::repeat(b'0'))
        .take(9);
    let nsec = digits.fold(0u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    Some(match (negative, nsec) {
        (false, nsec) => Time { sec, nsec },
        (true, 0) => Time { sec: -sec, nsec },
        (true, nsec) => Time {
            sec: -sec - 1,
            nsec: 1_000_000_000 - nsec,
        },
    })
}
