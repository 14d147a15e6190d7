//! The index's file: read whole, and put aside when it cannot be.

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError};

use super::super::{Error, failed};
use super::{BoxError, ImageRecord, Images, TABLE};
use crate::model::ImageId;
use crate::record::{self, Unreadable};
use crate::sys::fs::open_private;

/// The file is small: redb's default cache of a GiB is not needed.
const CACHE: usize = 1 << 20;

/// The name of an index that could not be read has this after the file's own name, and a time.
pub(super) const DAMAGED: &str = ".damaged-";
/// Once nothing more is to be had from it, it has this.
pub(super) const REPLACED: &str = ".replaced-";

/// What is in a file.
pub(super) struct Loaded {
    pub(super) database: Database,
    pub(super) images: Images,
    /// Keys of rows that cannot be read.
    pub(super) unreadable: Vec<String>,
    /// Images of rows that an earlier version wrote.
    pub(super) outdated: Vec<ImageId>,
}

/// What stands in the way of using a file.
pub(super) enum Unusable {
    /// It has to be put aside.
    Damaged(BoxError),
    /// It is good, or may be.
    Other(Error),
}

/// redb checks what it reads; should it stumble over a damaged page nevertheless, the file is damaged, not we.
pub(super) fn load(path: &Path) -> Result<Loaded, Unusable> {
    match catch_unwind(AssertUnwindSafe(|| load_unguarded(path))) {
        Ok(loaded) => loaded,
        Err(_) => Err(Unusable::Damaged("redb panicked".into())),
    }
}

fn load_unguarded(path: &Path) -> Result<Loaded, Unusable> {
    let database = Database::builder()
        .set_cache_size(CACHE)
        .create_file(
            open_private(path)
                .map_err(failed("open", path))
                .map_err(Unusable::Other)?,
        )
        .map_err(|error| sort_out(path, error))?;
    let damaged = |error: BoxError| Unusable::Damaged(error);
    let transaction = database.begin_read().map_err(|e| damaged(e.into()))?;
    let table = match transaction.open_table(TABLE) {
        Err(redb::TableError::TableDoesNotExist(_)) => {
            return Ok(Loaded {
                database,
                images: Images::new(),
                unreadable: Vec::new(),
                outdated: Vec::new(),
            });
        }
        table => table.map_err(|e| damaged(e.into()))?,
    };
    let mut images = Images::new();
    let (mut unreadable, mut outdated) = (Vec::new(), Vec::new());
    for item in table.iter().map_err(|e| damaged(e.into()))? {
        let (key, value) = item.map_err(|e| damaged(e.into()))?;
        match parse(key.value(), value.value()).map_err(Unusable::Other)? {
            Some(record) => {
                if record::is_outdated(value.value()) {
                    outdated.push(record.id);
                }
                images.insert(record.id, Arc::new(record));
            }
            // One bad record costs one image at most; it stays where it is.
            None => {
                tracing::error!(image = key.value(), "the record of an image is damaged");
                unreadable.push(key.value().to_owned());
            }
        }
    }
    Ok(Loaded {
        database,
        images,
        unreadable,
        outdated,
    })
}

fn parse(key: &str, value: &[u8]) -> Result<Option<ImageRecord>, Error> {
    match record::decode::<ImageRecord>(value) {
        Ok(record) => Ok(Some(record).filter(|record| record.id.hex() == key)),
        Err(Unreadable::Version { found }) => Err(Error::Newer {
            id: key.to_owned(),
            version: found,
        }),
        Err(_) => Ok(None),
    }
}

fn sort_out(path: &Path, error: DatabaseError) -> Unusable {
    match error {
        DatabaseError::DatabaseAlreadyOpen => Unusable::Other(Error::InUse(path.to_owned())),
        DatabaseError::Storage(StorageError::Io(source))
            if !matches!(
                source.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
            ) =>
        {
            Unusable::Other(failed("open", path)(source))
        }
        error => Unusable::Damaged(error.into()),
    }
}

pub(super) fn put_aside(path: &Path) -> Result<PathBuf, Error> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let mut name = path.as_os_str().to_owned();
    name.push(format!("{DAMAGED}{}", now.as_secs()));
    let aside = PathBuf::from(name);
    std::fs::rename(path, &aside).map_err(failed("move away", path))?;
    Ok(aside)
}

/// The latest time in the names of indexes that were moved aside.
pub(super) fn lost_at(path: &Path) -> Result<Option<i64>, Error> {
    let times = set_aside(path, DAMAGED)?.into_iter().map(|(_, time)| time);
    Ok(times.max())
}

/// The indexes that have such a mark in their names, and when they got it.
pub(super) fn set_aside(path: &Path, mark: &str) -> Result<Vec<(OsString, i64)>, Error> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let prefix = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let prefix = format!("{prefix}{mark}");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed("list", dir))? {
        let name = entry.map_err(failed("list", dir))?.file_name();
        let time = name.to_str().and_then(|name| name.strip_prefix(&prefix));
        if let Some(time) = time.and_then(|time| time.parse().ok()) {
            found.push((name, time));
        }
    }
    Ok(found)
}
