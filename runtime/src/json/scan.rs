//! The grammar (RFC 8259): where values begin and end.

use std::borrow::Cow;

use super::{Error, MAX_ENTRIES, lossy, text};

/// Lists and maps within each other that are stepped over; as deep as Go goes.
const MAX_DEPTH: usize = 10_000;

/// Reads along the bytes.
pub(super) struct Reader<'de> {
    bytes: &'de [u8],
    at: usize,
    /// Values that are kept and open.
    pub(super) depth: usize,
    /// Entries that a list or map may have.
    pub(super) entries: usize,
}

/// A value that is neither text nor holds others.
pub(super) enum Scalar<'de> {
    Null,
    Bool(bool),
    Number(&'de str),
}

impl<'de> Reader<'de> {
    pub(super) fn new(bytes: &'de [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            depth: 0,
            entries: MAX_ENTRIES,
        }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// That there is nothing more.
    pub(super) fn end(&mut self) -> Result<(), Error> {
        self.blanks();
        match self.byte() {
            None => Ok(()),
            Some(_) => Err(Error::new("something follows the value")),
        }
    }

    fn byte(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn blanks(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.byte() {
            self.at += 1;
        }
    }

    /// The next byte that is not blank.
    pub(super) fn peek(&mut self) -> Result<u8, Error> {
        self.blanks();
        self.byte().ok_or_else(|| Error::new("it ends too soon"))
    }

    /// Takes the next byte if it is this one.
    pub(super) fn take(&mut self, wanted: u8) -> Result<bool, Error> {
        let is = self.peek()? == wanted;
        self.at += usize::from(is);
        Ok(is)
    }

    pub(super) fn expect(&mut self, wanted: u8) -> Result<(), Error> {
        match self.take(wanted)? {
            true => Ok(()),
            false => Err(Error::new(format!("{:?} is missing", char::from(wanted)))),
        }
    }

    /// Whether the next value is `null`, which is taken then.
    pub(super) fn null(&mut self) -> Result<bool, Error> {
        if self.peek()? != b'n' {
            return Ok(false);
        }
        self.scalar().map(|_| true)
    }

    pub(super) fn scalar(&mut self) -> Result<Scalar<'de>, Error> {
        let words: [(&[u8], Scalar<'de>); 3] = [
            (b"null", Scalar::Null),
            (b"true", Scalar::Bool(true)),
            (b"false", Scalar::Bool(false)),
        ];
        let first = self.peek()?;
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        for (word, scalar) in words {
            if rest.starts_with(word) {
                self.at += word.len();
                return Ok(scalar);
            }
        }
        match first {
            b'-' | b'0'..=b'9' => self.number().map(Scalar::Number),
            _ => Err(Error::new("a value is missing")),
        }
    }

    fn number(&mut self) -> Result<&'de str, Error> {
        let start = self.at;
        let bad = || Error::new("a number is malformed");
        if self.byte() == Some(b'-') {
            self.at += 1;
        }
        match self.byte() {
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.byte() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.byte() {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = self.bytes.get(start..self.at).unwrap_or_default();
        std::str::from_utf8(text).map_err(|_| bad())
    }

    fn digits(&mut self) -> Result<(), Error> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.byte() {
            self.at += 1;
        }
        match self.at > start {
            true => Ok(()),
            false => Err(Error::new("a number is malformed")),
        }
    }

    /// A string, as it stands between its quotes, and whether there are escapes in it.
    fn quoted(&mut self) -> Result<(&'de [u8], bool), Error> {
        self.expect(b'"')?;
        let start = self.at;
        let mut escapes = false;
        loop {
            match self.byte() {
                None => return Err(Error::new("it ends within a string")),
                Some(b'"') => break,
                Some(b'\\') => {
                    escapes = true;
                    self.at += 1;
                    self.escape()?;
                }
                Some(0..=0x1f) => return Err(Error::new("a string has a control character in it")),
                Some(_) => self.at += 1,
            }
        }
        let bytes = self.bytes.get(start..self.at).unwrap_or_default();
        self.at += 1;
        Ok((bytes, escapes))
    }

    /// Steps over what follows a backslash.
    fn escape(&mut self) -> Result<(), Error> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = match rest {
            [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 1,
            [b'u', digits @ ..] if hex(digits).is_some() => 5,
            _ => return Err(Error::new("a string has an unknown escape in it")),
        };
        self.at += length;
        Ok(())
    }

    pub(super) fn string(&mut self) -> Result<Cow<'de, str>, Error> {
        let (bytes, escapes) = self.quoted()?;
        match escapes {
            true => Ok(Cow::Owned(unescaped(bytes))),
            false => Ok(text(bytes)),
        }
    }

    /// The name of a member, with the colon behind it.
    pub(super) fn name(&mut self) -> Result<Cow<'de, str>, Error> {
        let name = self.string()?;
        self.expect(b':')?;
        Ok(name)
    }

    /// Steps over a value, which is returned as it stands.
    pub(super) fn skip(&mut self) -> Result<&'de [u8], Error> {
        self.blanks();
        let start = self.at;
        // What closes each of the values that are open.
        let mut open = Vec::new();
        loop {
            let first = self.peek()?;
            match first {
                b'{' | b'[' => {
                    let close = if first == b'{' { b'}' } else { b']' };
                    self.at += 1;
                    if open.len() == MAX_DEPTH {
                        return Err(Error::new(format!("nested more than {MAX_DEPTH} deep")));
                    }
                    if !self.take(close)? {
                        open.push(close);
                        self.skip_name(close)?;
                        continue;
                    }
                }
                b'"' => {
                    self.quoted()?;
                }
                _ => {
                    self.scalar()?;
                }
            }
            loop {
                let Some(close) = open.last().copied() else {
                    return Ok(self.bytes.get(start..self.at).unwrap_or_default());
                };
                if self.take(b',')? {
                    self.skip_name(close)?;
                    break;
                }
                self.expect(close)?;
                open.pop();
            }
        }
    }

    fn skip_name(&mut self, close: u8) -> Result<(), Error> {
        if close == b'}' {
            self.quoted()?;
            self.expect(b':')?;
        }
        Ok(())
    }
}

/// Four hexadecimal digits at the start.
fn hex(bytes: &[u8]) -> Option<u16> {
    let digits = bytes.first_chunk::<4>()?;
    digits.iter().try_fold(0, |value, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(value << 4 | u16::try_from(digit).ok()?)
    })
}

/// The content of a string whose escapes are known to be good.
fn unescaped(mut bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    while let Some(at) = bytes.iter().position(|byte| *byte == b'\\') {
        let (before, escape) = bytes.split_at(at);
        lossy(before, &mut out);
        let (c, length) = match escape {
            [_, b'u', digits @ ..] => unicode(digits),
            [_, b'b', ..] => ('\u{8}', 2),
            [_, b'f', ..] => ('\u{c}', 2),
            [_, b'n', ..] => ('\n', 2),
            [_, b'r', ..] => ('\r', 2),
            [_, b't', ..] => ('\t', 2),
            [_, c, ..] => (char::from(*c), 2),
            _ => (char::REPLACEMENT_CHARACTER, 1),
        };
        out.push(c);
        bytes = escape.get(length..).unwrap_or_default();
    }
    lossy(bytes, &mut out);
    out
}

/// What `\u` and the digits after it stand for, and the length of all of it. A half of a pair without the other stands for
/// U+FFFD, and what follows it for itself.
fn unicode(digits: &[u8]) -> (char, usize) {
    let first = hex(digits).unwrap_or(0xfffd);
    let second = match digits.get(4..) {
        Some([b'\\', b'u', digits @ ..]) => hex(digits),
        _ => None,
    };
    if let Some(second) = second
        && let Some(Ok(c)) = char::decode_utf16([first, second]).next()
        && c.len_utf16() == 2
    {
        return (c, 12);
    }
    let c = char::from_u32(u32::from(first));
    (c.unwrap_or(char::REPLACEMENT_CHARACTER), 6)
}
