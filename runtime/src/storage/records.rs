//! Copies of the index's records, one file each, from which a lost index is made again.
//!
//! A file is written before the index has the change, and removed after. So after a crash there may be one too
//! many or a newer one; what the index says counts, and the files follow it. Only when the index is lost do they count themselves.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::Mode;

use super::index::ImageRecord;
use crate::model::ImageId;
use crate::record::{self, Form as _, Kept, Unreadable, convert, v1, v2};
use crate::sys::fs::{names, read_limited, remove_tree, write_atomic};

/// Longest record: configurations are at most 16 MiB.
const LONGEST: u64 = 32 << 20;

const SUFFIX: &str = ".json";

#[derive(Debug)]
pub(super) struct Records {
    dir: OwnedFd,
}

/// A file.
#[derive(Debug)]
pub(crate) struct Copy {
    /// Nanoseconds since the Unix epoch: of two records with the same name the later one has it.
    written_at: u64,
    image: Arc<ImageRecord>,
}

convert!(v2::ImageCopy as Copy { written_at, image });

impl Kept for Copy {
    const KIND: &'static str = "image copy";
    type Form = v2::ImageCopy;

    fn read_other(file: &[u8]) -> Result<Self, Unreadable> {
        let (written_at, image): (u64, v1::Image) = v1::image_copy(file)?;
        let image = Arc::new(image.thaw()?);
        Ok(Self { written_at, image })
    }
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Good records, the earliest first.
    pub(super) records: Vec<ImageRecord>,
    /// Files that are no good record.
    pub(super) unreadable: u64,
}

fn name_of(id: &ImageId) -> String {
    format!("{}{SUFFIX}", id.hex())
}

impl Records {
    pub(super) fn new(dir: OwnedFd) -> Self {
        Self { dir }
    }

    /// Keeps a copy, durably.
    pub(super) fn write(&self, record: &ImageRecord) -> io::Result<()> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let bytes = record::encode(&Copy {
            written_at: u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX),
            image: Arc::new(record.clone()),
        })?;
        let mode = Mode::RUSR | Mode::WUSR;
        write_atomic(self.dir.as_fd(), &name_of(&record.id), &bytes, mode, true)
    }

    pub(super) fn remove(&self, id: &ImageId) -> io::Result<()> {
        remove_tree(self.dir.as_fd(), name_of(id))
    }

    pub(super) fn read(&self, id: &ImageId) -> Option<ImageRecord> {
        self.parse(OsStr::new(&name_of(id)))
            .map(|(_, record)| record)
    }

    pub(super) fn all(&self) -> io::Result<Found> {
        let mut found = BTreeMap::new();
        let mut unreadable = 0;
        for name in self.files()? {
            match self.parse(&name) {
                Some((when, record)) => {
                    found.insert((when, record.id), record);
                }
                None => unreadable += 1,
            }
        }
        Ok(Found {
            records: found.into_values().collect(),
            unreadable,
        })
    }

    /// Makes the files follow the index.
    ///
    /// # Errors
    /// The first failure, after everything has been tried.
    pub(super) fn follow<'a>(
        &self,
        index: impl Iterator<Item = &'a ImageRecord>,
    ) -> io::Result<()> {
        let mut strangers: std::collections::HashSet<OsString> =
            self.files()?.into_iter().collect();
        let mut changed = Vec::new();
        for record in index {
            strangers.remove(OsStr::new(&name_of(&record.id)));
            if self.read(&record.id).as_ref() != Some(record) {
                changed.push(record);
            }
        }
        // On a disk that is full, what goes makes room for what comes.
        let mut outcome = Ok(());
        for name in strangers {
            outcome = outcome.and(remove_tree(self.dir.as_fd(), name));
        }
        for record in changed {
            outcome = outcome.and(self.write(record));
        }
        outcome
    }

    /// All files; what is left of a write that was cut off is removed.
    fn files(&self) -> io::Result<Vec<OsString>> {
        let mut files = Vec::new();
        for name in names(self.dir.as_fd())? {
            if name.as_encoded_bytes().ends_with(SUFFIX.as_bytes()) {
                files.push(name);
            } else {
                remove_tree(self.dir.as_fd(), name)?;
            }
        }
        Ok(files)
    }

    fn parse(&self, name: &OsStr) -> Option<(u64, ImageRecord)> {
        let bytes = read_limited(self.dir.as_fd(), name, LONGEST).ok()?;
        let Copy { written_at, image } = record::decode(&bytes).ok()?;
        let image = Arc::unwrap_or_clone(image);
        (OsStr::new(&name_of(&image.id)) == name).then_some((written_at, image))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::golden;

    #[test]
    fn images_and_their_copies_are_read_as_each_version_wrote_them() {
        let rows = golden::check::<ImageRecord>("index");
        let copies = golden::check::<Copy>("images");
        for (rows, copies) in rows.into_iter().zip(copies) {
            assert!(rows.keys().eq(copies.keys()));
            for (name, row) in &rows {
                assert_eq!(row.id.hex(), *name);
                assert_eq!(*copies[name].image, *row);
            }
            let count = |holds: &dyn Fn(&ImageRecord) -> bool| {
                rows.values().filter(|image| holds(image)).count()
            };
            assert_eq!(count(&|image| image.tags.len() > 1), 1, "by several names");
            assert_eq!(count(&|image| !image.config.volumes.is_empty()), 1);
        }
    }
}
