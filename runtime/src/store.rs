//! Records of pods and containers on disk: one directory for each object, one versioned JSON envelope in it.
//!
//! A record survives the daemon, not the machine: it is written beside and renamed, without a sync on
//! the pod's path. A record torn by a power cut is an orphan to sweep (design, rule 4).

mod names;
mod programs;
mod table;

use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::sys;

pub use names::{Names, Refused, Reservation};
pub use programs::Programs;
pub use table::Table;

/// The envelope's version.
const VERSION: u32 = 1;

/// More than any record has, bytes.
const LIMIT: u64 = 64 << 20;

/// File name of the record in the object's directory.
const RECORD: &str = "record.json";

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
    /// The bytes are not a record.
    #[error("the record {} is damaged: {problem}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// How.
        problem: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    version: u32,
    kind: String,
    sha256: String,
    #[serde(borrow)]
    data: &'a RawValue,
}

/// All records of one kind, `DIR/<id>/record.json`.
#[derive(Debug)]
pub struct Records<T> {
    dir: PathBuf,
    kind: &'static str,
    of: PhantomData<fn() -> T>,
}

/// One object's directory as found at start.
#[derive(Debug)]
pub struct Found<T> {
    /// The directory's name.
    pub id: String,
    /// Its record, or why there is none.
    pub record: Result<T, Error>,
}

impl<T: Serialize + DeserializeOwned> Records<T> {
    /// Opens the directory, making it if needed.
    ///
    /// # Errors
    /// What the file system said.
    pub fn open(dir: PathBuf, kind: &'static str) -> Result<Self, Error> {
        make_dir(&dir)?;
        Ok(Self {
            dir,
            kind,
            of: PhantomData,
        })
    }

    /// The directory of one object; other files may lie beside its record.
    pub fn path(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    /// Writes a record, making the object's directory if needed.
    ///
    /// # Errors
    /// What the file system said.
    pub fn write(&self, id: &str, record: &T) -> Result<(), Error> {
        let dir = self.path(id);
        let path = dir.join(RECORD);
        let damaged = |problem: serde_json::Error| Error::Damaged {
            path: path.clone(),
            problem: problem.to_string(),
        };
        let data = serde_json::value::to_raw_value(record).map_err(damaged)?;
        let envelope = Envelope {
            version: VERSION,
            kind: self.kind.to_owned(),
            sha256: sum(data.get()),
            data: &data,
        };
        let bytes = serde_json::to_vec(&envelope).map_err(damaged)?;
        make_dir(&dir)?;
        let fresh = dir.join("record.tmp");
        std::fs::write(&fresh, bytes).map_err(io_error("write", &fresh))?;
        std::fs::rename(&fresh, &path).map_err(io_error("replace", &path))
    }

    /// Reads one record.
    ///
    /// # Errors
    /// When it is not there, or damaged, or of another kind or version.
    pub fn read(&self, id: &str) -> Result<T, Error> {
        let path = self.path(id).join(RECORD);
        let bytes = sys::fs::read_regular(&path, LIMIT).map_err(io_error("read", &path))?;
        let damaged = |problem: String| Error::Damaged {
            path: path.clone(),
            problem,
        };
        let envelope: Envelope<'_> =
            serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?;
        if envelope.version != VERSION || envelope.kind != self.kind {
            return Err(damaged(format!(
                "it is a {} of version {}, this Berth reads a {} of version {VERSION}",
                envelope.kind, envelope.version, self.kind
            )));
        }
        if envelope.sha256 != sum(envelope.data.get()) {
            return Err(damaged("its checksum does not fit".to_owned()));
        }
        serde_json::from_str(envelope.data.get()).map_err(|e| damaged(e.to_string()))
    }

    /// Removes an object's directory; a missing one is fine.
    ///
    /// # Errors
    /// What the file system said.
    pub fn remove(&self, id: &str) -> Result<(), Error> {
        let dir = self.path(id);
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &dir)(e)),
            _ => Ok(()),
        }
    }

    /// Every object's directory. A damaged record costs its object, never the others.
    ///
    /// # Errors
    /// When the directory itself cannot be read.
    pub fn load_all(&self) -> Result<Vec<Found<T>>, Error> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(io_error("list", &self.dir))? {
            let entry = entry.map_err(io_error("list", &self.dir))?;
            if let Ok(id) = entry.file_name().into_string() {
                let record = self.read(&id);
                found.push(Found { id, record });
            }
        }
        Ok(found)
    }
}

fn sum(data: &str) -> String {
    sum_bytes(data.as_bytes())
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

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::<Vec<String>>::open(dir.path().join("things"), "thing").unwrap();
        records.write("a", &vec!["x".to_owned()]).unwrap();
        records.write("b", &vec![]).unwrap();
        assert_eq!(records.read("a").unwrap(), ["x"]);

        let path = records.path("b").join(RECORD);
        let torn = std::fs::read_to_string(&path)
            .unwrap()
            .replace("[]", "[\"y\"]");
        std::fs::write(&path, torn).unwrap();
        let mut all = records.load_all().unwrap();
        all.sort_by(|a, b| a.id.cmp(&b.id));
        assert!(all[0].record.is_ok());
        assert!(matches!(&all[1].record, Err(Error::Damaged { .. })));

        records.remove("a").unwrap();
        records.remove("a").unwrap();
        assert!(records.read("a").is_err());
    }

    #[test]
    fn a_record_of_another_kind_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        Records::<u8>::open(dir.path().into(), "pod")
            .unwrap()
            .write("a", &1)
            .unwrap();
        let other = Records::<u8>::open(dir.path().into(), "container").unwrap();
        assert!(
            other
                .read("a")
                .unwrap_err()
                .to_string()
                .contains("it is a pod")
        );
    }
}
