//! Pods and containers on disk: one directory for each object, with its record and its identity.
//!
//! Both survive the daemon, not the machine: they are written beside and renamed, without a sync on the pod's path.
//! What was torn by a power cut costs one object (design, rule 4).

mod names;
mod place;
mod programs;
mod table;

use std::collections::HashMap;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest as _, Sha256};

use crate::model::chain;
use crate::record::{self, Identity, Kept, Unfit, Unreadable};
use crate::sys;

pub use names::{Names, Refused, Reservation};
pub use programs::Programs;
pub use table::Table;

/// More than any record has, bytes.
const LIMIT: u64 = 64 << 20;

/// File name of the record in the object's directory.
const RECORD: &str = "record.json";

/// File name of the identity beside it.
const IDENTITY: &str = "identity.json";

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The bytes are not a record that this Berth reads.
    #[error("{} cannot be read", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Unreadable,
    },
}

/// What has a directory of its own.
pub(crate) trait Object: Kept {
    /// Who it is and where its things are.
    fn identity(&self, id: &str) -> Identity;

    /// An object of which no more is known: it can be shown and ended.
    ///
    /// # Errors
    /// The identity is that of something else.
    fn from_identity(identity: Identity) -> Result<Self, Unfit>;
}

/// All records of one kind, `ROOT/records/KIND/<id>/record.json`.
#[derive(Debug)]
pub(crate) struct Records<T> {
    dir: PathBuf,
    /// Checksums of the identities as they were written last, so that they are written when they change.
    identities: Mutex<HashMap<String, [u8; 32]>>,
    of: PhantomData<fn() -> T>,
}

/// One object's directory as found at start.
#[derive(Debug)]
pub(crate) struct Found<T> {
    /// The directory's name.
    pub id: String,
    /// What is in it.
    pub object: Loaded<T>,
}

/// What could be read of an object.
#[derive(Debug)]
pub(crate) enum Loaded<T> {
    /// Its record.
    Whole(T),
    /// Its identity only, and why.
    Shown(T, Error),
    /// Nothing, for two reasons.
    Lost {
        /// Of the record.
        record: Error,
        /// Of the identity.
        identity: Error,
    },
}

impl<T: Object> Records<T> {
    /// Opens the directory for one kind below the root directory, making it if needed.
    ///
    /// # Errors
    /// What the file system said.
    pub(crate) fn open(root: &Path, kind: &str) -> Result<Self, Error> {
        Ok(Self {
            dir: place::claim(root, kind)?,
            identities: Mutex::default(),
            of: PhantomData,
        })
    }

    /// The directory of one object; other files may lie beside its record.
    pub(crate) fn path(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    /// Writes a record and, where it has changed, the identity, making the object's directory if needed.
    ///
    /// # Errors
    /// What the file system said.
    pub(crate) fn write(&self, id: &str, object: &T) -> Result<(), Error> {
        let dir = self.path(id);
        make_dir(&dir)?;
        crash_point!("record.directory.after");
        let in_words = |name| io_error("put into words", &dir.join(name));
        let record = record::encode(object).map_err(in_words(RECORD))?;
        let identity = object.identity(id).encode().map_err(in_words(IDENTITY))?;
        // The record first: what a daemon began that died in between is undone by it, and not shown for what it never was.
        put(&dir, RECORD, &record)?;
        crash_point!("record.identity.before");
        let sum = Sha256::digest(&identity).into();
        if self.known().get(id) != Some(&sum) {
            put(&dir, IDENTITY, &identity)?;
            self.known().insert(id.to_owned(), sum);
        }
        Ok(())
    }

    // Every change is one insertion or removal.
    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, [u8; 32]>> {
        self.identities
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// One record, and its file as it stands.
    ///
    /// # Errors
    /// What the file system said; [`Error::Unreadable`] when no form fits.
    pub(crate) fn read(&self, id: &str) -> Result<(T, Vec<u8>), Error> {
        let path = self.path(id).join(RECORD);
        let bytes = sys::fs::read_regular(&path, LIMIT).map_err(io_error("read", &path))?;
        let object = record::decode(&bytes).map_err(unreadable(&path))?;
        Ok((object, bytes))
    }

    fn read_identity(&self, id: &str) -> Result<Identity, Error> {
        let path = self.path(id).join(IDENTITY);
        let bytes = sys::fs::read_regular(&path, LIMIT).map_err(io_error("read", &path))?;
        let identity = Identity::decode(&bytes).map_err(unreadable(&path))?;
        if identity.id != id {
            let problem = format!("it is that of {:?}", identity.id);
            return Err(unreadable(&path)(Unreadable::Damaged(problem)));
        }
        Ok(identity)
    }

    /// What an earlier version wrote, and what a crash kept from being written.
    fn renew(&self, id: &str, object: &T, file: &[u8]) {
        let identity = object.identity(id);
        let is_known = self.read_identity(id).is_ok_and(|known| known == identity);
        if is_known && let Ok(bytes) = identity.encode() {
            self.known()
                .insert(id.to_owned(), Sha256::digest(bytes).into());
        }
        if is_known && !record::is_outdated(file) {
            return;
        }
        if let Err(error) = self.write(id, object) {
            tracing::warn!(id, error = %chain(&error), "a record stays as an earlier version left it until it changes");
        }
    }

    fn load(&self, id: &str) -> Loaded<T> {
        let record = match self.read(id) {
            Ok((object, file)) => {
                self.renew(id, &object, &file);
                return Loaded::Whole(object);
            }
            Err(record) => record,
        };
        let shown = self.read_identity(id).and_then(|identity| {
            let path = self.path(id).join(IDENTITY);
            T::from_identity(identity).map_err(|unfit| unreadable(&path)(unfit.into()))
        });
        match shown {
            Ok(object) => Loaded::Shown(object, record),
            Err(identity) => Loaded::Lost { record, identity },
        }
    }

    /// Removes an object's directory; a missing one is fine.
    ///
    /// # Errors
    /// What the file system said.
    pub(crate) fn remove(&self, id: &str) -> Result<(), Error> {
        let dir = self.path(id);
        self.known().remove(id);
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &dir)(e)),
            _ => Ok(()),
        }
    }

    /// Every object's directory. What cannot be read costs its object, never the others; what an earlier version
    /// wrote is written again.
    ///
    /// # Errors
    /// When the directory itself cannot be read.
    pub(crate) fn load_all(&self) -> Result<Vec<Found<T>>, Error> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(io_error("list", &self.dir))? {
            let entry = entry.map_err(io_error("list", &self.dir))?;
            if let Ok(id) = entry.file_name().into_string() {
                let object = self.load(&id);
                found.push(Found { id, object });
            }
        }
        Ok(found)
    }
}

/// Puts a file in the place of an older one.
fn put(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    let (path, fresh) = (dir.join(name), dir.join(format!("{name}.tmp")));
    std::fs::write(&fresh, bytes).map_err(io_error("write", &fresh))?;
    crash_point!("record.file.after");
    std::fs::rename(&fresh, &path).map_err(io_error("replace", &path))
}

fn unreadable(path: &Path) -> impl FnOnce(Unreadable) -> Error {
    let path = path.to_owned();
    move |source| Error::Unreadable { path, source }
}

fn sum_bytes(data: &[u8]) -> String {
    Sha256::digest(data)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

fn make_dir(dir: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io_error("make", dir))
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io { what, path, source }
}

#[cfg(test)]
mod tests;
