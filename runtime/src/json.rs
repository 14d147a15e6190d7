//! JSON that others wrote: registries, archives of images, tools of the node.
//!
//! Nearly all of it is written and read by programs in Go, so what counts as well-formed is what Go's encoding/json
//! reads, where that is harmless (docs/adr/0018):
//!
//! * `null` is the zero value of whatever it stands for: a member that is `null` is one that is not there, an element
//!   that is `null` is an empty string, a zero, an empty list;
//! * names of members are matched in any case, by Go's rule of folding; the keys of a map are what they are;
//! * in strings, bytes that are no UTF-8 and halves of surrogate pairs become U+FFFD;
//! * members that nobody asked for are stepped over, whatever is in them.
//!
//! What two readers could take for two things is refused: a member that is there twice, in whatever case, and anything
//! behind the value. Everything is bounded: what is stepped over takes no memory, a list or map that is kept has at most
//! [`MAX_ENTRIES`] entries.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::DeserializeOwned;

mod access;
mod scan;

use scan::Reader;

/// Entries of one list or map that is kept. Documents have some dozens.
pub const MAX_ENTRIES: usize = 10_000;

/// Reads the one value that the bytes are.
///
/// Types should be `#[serde(default)]`, for any member may be missing or `null`.
///
/// # Errors
/// See [`Error`].
pub fn from_slice<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, Error> {
    from_slice_up_to(bytes, MAX_ENTRIES)
}

/// The same with another number of entries that a list or map may have.
///
/// # Errors
/// See [`Error`].
pub fn from_slice_up_to<'de, T: Deserialize<'de>>(
    bytes: &'de [u8],
    entries: usize,
) -> Result<T, Error> {
    let mut reader = Reader::new(bytes);
    reader.entries = entries;
    let value = T::deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    value.map_err(|error| error.at(bytes, reader.position()))
}

/// Reads the value that the bytes begin with, as programs do that read from a stream: what follows is not looked at.
///
/// # Errors
/// See [`Error`].
pub fn first_of<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, Error> {
    let mut reader = Reader::new(bytes);
    let value = T::deserialize(&mut reader);
    value.map_err(|error| error.at(bytes, reader.position()))
}

/// Why a text is not what it should be.
#[derive(Debug)]
pub struct Error {
    what: String,
    form: bool,
    /// From 1; 0 where it is not known.
    line: usize,
    column: usize,
}

impl Error {
    fn new(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            form: false,
            line: 0,
            column: 0,
        }
    }

    /// It is JSON, but not of the form that was asked for.
    fn form(what: impl fmt::Display) -> Self {
        let mut error = Self::new(printable(&what.to_string()));
        error.form = true;
        error
    }

    fn at(mut self, bytes: &[u8], position: usize) -> Self {
        let before = bytes.get(..position).unwrap_or(bytes);
        let start = before.iter().rposition(|byte| *byte == b'\n');
        self.line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        self.column = before.len() - start.map_or(0, |newline| newline + 1);
        self
    }

    /// Counted from 1.
    pub fn line(&self) -> usize {
        self.line
    }

    /// Bytes from the start of the line.
    pub fn column(&self) -> usize {
        self.column
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.what),
            line => write!(f, "{} at line {line} column {}", self.what, self.column),
        }
    }
}

impl std::error::Error for Error {}

impl serde::de::Error for Error {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Self::form(what)
    }
}

/// Foreign text within a sentence.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().take(300) {
        match c.is_control() {
            true => out.extend(c.escape_default()),
            false => out.push(c),
        }
    }
    out
}

/// One of several, which may be of a form that nobody expects: then it is none, and the others are read nevertheless.
/// A member that is there twice is refused here as well.
#[derive(Clone, Debug)]
pub struct Lenient<T>(pub Option<T>);

/// The name by which the reader knows that it is asked for a value as it stands.
const RAW: &str = "$berth::json::raw";

impl<'de, T: DeserializeOwned> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);

        impl<'de, T: DeserializeOwned> serde::de::Visitor<'de> for Visitor<T> {
            type Value = Lenient<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON of this reader")
            }

            fn visit_borrowed_bytes<E: serde::de::Error>(
                self,
                bytes: &'de [u8],
            ) -> Result<Self::Value, E> {
                match T::deserialize(&mut Reader::new(bytes)) {
                    Ok(value) => Ok(Lenient(Some(value))),
                    Err(error) if error.form => Ok(Lenient(None)),
                    Err(error) => Err(E::custom(error)),
                }
            }
        }
        input.deserialize_newtype_struct(RAW, Visitor(std::marker::PhantomData))
    }
}

/// Whether two names are one to encoding/json: in any case, and with the two letters beyond ASCII that fold to one of it.
fn is_same_name(one: &str, other: &str) -> bool {
    let fold = |c: char| match c {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        c => c.to_ascii_lowercase(),
    };
    one.chars().map(fold).eq(other.chars().map(fold))
}

/// Bytes as text, each that is none replaced.
fn lossy(mut bytes: &[u8], out: &mut String) {
    loop {
        match std::str::from_utf8(bytes) {
            Ok(text) => return out.push_str(text),
            Err(error) => {
                let (good, bad) = bytes.split_at(error.valid_up_to());
                out.push_str(&String::from_utf8_lossy(good));
                out.push(char::REPLACEMENT_CHARACTER);
                bytes = bad.get(1..).unwrap_or_default();
            }
        }
    }
}

/// A string's bytes, or what became of them.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => {
            let mut out = String::with_capacity(bytes.len());
            lossy(bytes, &mut out);
            Cow::Owned(out)
        }
    }
}

#[cfg(test)]
mod tests;
