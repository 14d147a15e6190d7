//! Records: what Berth keeps on disk about pods, containers, networks and images, in forms that outlive programs.
//!
//! One envelope for all of them, JSON with the version of the form, what it is a record of, and a checksum. The forms
//! are frozen types of their own, one module for each version, apart from the model that the program works with: the
//! model may change with every commit, a form never does. Two versions are read, and one of them is written
//! (`versions` says which).
//!
//! What cannot be read is told apart from what is not there, and is never a reason to destroy anything: its owner
//! shows it, and beside it lies an `Identity` whose form is the same for ever, by which it can be named and ended.

mod form;
mod identity;
pub(crate) mod v1;
pub(crate) mod v2;
mod versions;

#[cfg(test)]
pub(crate) mod golden;
#[cfg(test)]
mod tests;

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

pub(crate) use form::convert;
pub(crate) use form::{Form, Unfit};
pub(crate) use identity::{Identity, Process, ProcessRole};
use versions::{VERSIONS, Versions};

/// The newest version of the forms that is read.
pub const NEWEST: u32 = VERSIONS.newest;

/// Why a record cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// The bytes are no envelope, or what is in it is not of its form.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// Another Berth wrote it.
    #[error(
        "it is of version {found}, and this Berth reads {} and {}: a Berth that knows it reads it again",
        VERSIONS.oldest, VERSIONS.newest
    )]
    Version {
        /// Its version.
        found: u32,
    },
    /// It is in the place of another record.
    #[error("it is the record of {found:?}, not of {wanted:?}")]
    Kind {
        /// What it is of.
        found: String,
        /// What was looked for.
        wanted: &'static str,
    },
}

impl Unreadable {
    /// What is not of its form, in words.
    fn damaged(why: impl ToString) -> Self {
        Self::Damaged(why.to_string())
    }
}

impl From<Unfit> for Unreadable {
    fn from(unfit: Unfit) -> Self {
        Self::Damaged(unfit.to_string())
    }
}

impl From<Unreadable> for io::Error {
    fn from(error: Unreadable) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// What is kept as a record.
pub(crate) trait Kept: Sized {
    /// What it is called in its envelope.
    const KIND: &'static str;

    /// How this version writes it.
    type Form: Form<Model = Self> + Serialize + DeserializeOwned;

    /// Reads a whole file of the other version that this one reads.
    ///
    /// # Errors
    /// See [`Unreadable`].
    fn read_other(file: &[u8]) -> Result<Self, Unreadable>;
}

/// The envelope.
#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    version: u32,
    kind: String,
    /// SHA-256 of `data` as it stands here, in hexadecimal digits.
    sha256: String,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// All that every version's envelope has.
#[derive(Deserialize)]
struct AnyVersion {
    version: u32,
}

/// A record as it goes to the disk.
///
/// # Errors
/// A path that is no text.
pub(crate) fn encode<K: Kept>(kept: &K) -> io::Result<Vec<u8>> {
    encode_as(VERSIONS, kept)
}

fn encode_as<K: Kept>(versions: Versions, kept: &K) -> io::Result<Vec<u8>> {
    let data = serde_json::value::to_raw_value(&K::Form::freeze(kept))?;
    Ok(serde_json::to_vec(&Envelope {
        version: versions.written,
        kind: K::KIND.to_owned(),
        sha256: sum(data.get()),
        data: &data,
    })?)
}

/// A record from what was on the disk.
///
/// # Errors
/// See [`Unreadable`].
pub(crate) fn decode<K: Kept>(file: &[u8]) -> Result<K, Unreadable> {
    decode_as(VERSIONS, file)
}

fn decode_as<K: Kept>(versions: Versions, file: &[u8]) -> Result<K, Unreadable> {
    let found = version_of(file)?;
    if found == versions.written {
        let data = open_envelope(file, K::KIND)?;
        let form: K::Form = serde_json::from_str(data.get()).map_err(Unreadable::damaged)?;
        return Ok(form.thaw()?);
    }
    if found == versions.other() {
        return K::read_other(file);
    }
    Err(Unreadable::Version { found })
}

/// Whether an earlier version wrote what can be read: it is to be written again, before there is a Berth that reads
/// it no longer.
pub(crate) fn is_outdated(file: &[u8]) -> bool {
    version_of(file).is_ok_and(|found| found < VERSIONS.written)
}

fn version_of(file: &[u8]) -> Result<u32, Unreadable> {
    let any: AnyVersion = serde_json::from_slice(file).map_err(Unreadable::damaged)?;
    Ok(any.version)
}

/// What is in the envelope that objects have had since version 1.
fn open_envelope<'a>(file: &'a [u8], wanted: &'static str) -> Result<&'a RawValue, Unreadable> {
    let envelope: Envelope<'a> = serde_json::from_slice(file).map_err(Unreadable::damaged)?;
    if envelope.kind != wanted {
        return Err(Unreadable::Kind {
            found: envelope.kind,
            wanted,
        });
    }
    if envelope.sha256 != sum(envelope.data.get()) {
        return Err(Unreadable::damaged("its checksum does not fit"));
    }
    Ok(envelope.data)
}

/// SHA-256 of a text, in hexadecimal digits.
fn sum(text: &str) -> String {
    let hash = Sha256::digest(text);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
