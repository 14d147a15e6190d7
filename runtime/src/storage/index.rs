//! Which images there are: one table in a redb file, and all of it in memory.
//!
//! Every change is one durable transaction.

mod file;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use redb::{Database, Durability, TableDefinition};
use rustix::io::Errno;

use file::{DAMAGED, REPLACED, Unusable, load, lost_at, put_aside, set_aside};

use super::records::Records;
use super::{Error, failed};
use crate::model::{ChainId, Digest, ImageConfig, ImageId, chain};
use crate::record::{self, Form as _, Kept, Unreadable, convert, v1, v2};

/// Room that a change takes beside its records.
const SLACK: u64 = 128 << 10;

const TABLE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("images");

/// An image in the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    /// Digest of the configuration.
    pub id: ImageId,
    /// `registry/repository:tag`; each belongs to one image.
    pub tags: Vec<String>,
    /// `registry/repository@sha256:…`; each belongs to one image.
    pub digests: Vec<String>,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// Compressed layers and documents, bytes.
    pub size: u64,
    /// What containers of it should be like, hostile as it came.
    pub config: ImageConfig,
    /// Layers, lowest first.
    pub chain: Vec<ChainId>,
    /// Documents to keep: index, manifest, configuration.
    pub blobs: Vec<Digest>,
    /// Never removed by the kubelet's garbage collection.
    pub pinned: bool,
    /// When it was pulled, nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// `os/architecture[/variant]` that its configuration names; empty in records of versions that did not look.
    pub platform: String,
}

convert!(v1::Image as ImageRecord {
    id,
    tags,
    digests,
    manifest,
    size,
    config,
    chain,
    blobs,
    pinned,
    created_at,
    platform,
});

impl Kept for ImageRecord {
    const KIND: &'static str = "image";
    type Form = v2::Image;

    fn read_other(row: &[u8]) -> Result<Self, Unreadable> {
        let form: v1::Image = v1::image_row(row)?;
        Ok(form.thaw()?)
    }
}

/// The images, by id.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    images: RwLock<BTreeMap<ImageId, Arc<ImageRecord>>>,
    /// Writers wait for one another, as redb has them do anyway; readers wait for nobody. None after a write
    /// that failed: redb does not go on with that file until it is opened again.
    writer: Mutex<Option<Database>>,
    records: Records,
    loss: Mutex<Loss>,
}

/// What is known to be missing.
#[derive(Debug, Default)]
struct Loss {
    /// When an index was lost that could not be made again.
    at: Option<i64>,
    /// Keys of rows that cannot be read.
    rows: Vec<String>,
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Images = BTreeMap<ImageId, Arc<ImageRecord>>;

impl Index {
    /// Opens the index, making it if it is not there. One that is damaged is moved aside; that one and one that is
    /// gone are made again from the records in `images`.
    pub(super) fn open(path: &Path, images: OwnedFd) -> Result<Self, Error> {
        let records = Records::new(images);
        let is_there = std::fs::metadata(path).is_ok_and(|file| file.len() > 0);
        let (loaded, is_damaged) = match load(path) {
            Ok(loaded) => (loaded, false),
            Err(Unusable::Other(error)) => return Err(error),
            Err(Unusable::Damaged(error)) => {
                let aside = put_aside(path)?;
                tracing::error!(
                    index = %path.display(),
                    aside = %aside.display(),
                    error = &*error,
                    "the image index is damaged and was moved aside"
                );
                let again = load(path).map_err(|error| match error {
                    Unusable::Damaged(source) => index_error("create", path, source),
                    Unusable::Other(error) => error,
                })?;
                (again, true)
            }
        };
        let index = Self {
            path: path.to_owned(),
            images: RwLock::new(loaded.images),
            writer: Mutex::new(Some(loaded.database)),
            records,
            loss: Mutex::default(),
        };
        index.try_allocate();
        let mut rows = loaded.unreadable;
        if is_there && !is_damaged {
            index.renew(&loaded.outdated);
            index.mend(&mut rows)?;
        } else {
            index.rebuild(is_damaged)?;
        }
        let loss = Loss {
            at: lost_at(path)?,
            rows,
        };
        *index.loss() = loss;
        Ok(index)
    }

    /// Writes again what an earlier version wrote, before there is a Berth that reads it no longer.
    fn renew(&self, outdated: &[ImageId]) {
        let images = outdated.iter().filter_map(|id| self.get(id));
        let images = images.map(Arc::unwrap_or_clone).collect();
        if let Err(error) = self.change(images, &[]) {
            tracing::warn!(index = %self.path.display(), error = %chain(&error), "records of images stay as an earlier version left them until the next start");
        }
    }

    /// Takes rows that cannot be read from their copies, and makes the copies follow the index.
    fn mend(&self, unreadable: &mut Vec<String>) -> Result<(), Error> {
        let copy = |key: &String| {
            let id = format!("sha256:{key}").parse().ok()?;
            self.records.read(&id)
        };
        let (mut found, mut lost) = (Vec::new(), Vec::new());
        for key in std::mem::take(unreadable) {
            match copy(&key) {
                Some(record) => found.push(record),
                None => lost.push(key),
            }
        }
        *unreadable = lost;
        if !found.is_empty() {
            tracing::warn!(
                images = found.len(),
                "damaged records of images were restored"
            );
            self.change(found, &[])?;
        }
        let images = self.read();
        let images = images.values().map(|record| &**record);
        // The index is whole without them. On a disk that is full nobody could make room if this kept it shut.
        if let Err(error) = self.records.follow(images) {
            tracing::warn!(index = %self.path.display(), %error, "the copies of the image index do not follow it until the next start");
        }
        Ok(())
    }

    /// Makes the index again from the copies of its records.
    fn rebuild(&self, is_damaged: bool) -> Result<(), Error> {
        let failed = |error: std::io::Error| index_error("rebuild", &self.path, error.into());
        let found = self.records.all().map_err(failed)?;
        let (images, unreadable) = (found.records.len(), found.unreadable);
        if images == 0 && unreadable == 0 && !is_damaged {
            return Ok(());
        }
        self.change(found.records, &[])?;
        tracing::warn!(
            index = %self.path.display(), images, unreadable,
            "the image index was made again from what is beside the layers"
        );
        // Of what nobody names now some may be an image's of which no record is left.
        if is_damaged && images > 0 && unreadable == 0 {
            self.file_loss()?;
        }
        Ok(())
    }

    fn loss(&self) -> MutexGuard<'_, Loss> {
        self.loss.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives up what could not be made again: what only it named is no longer kept.
    ///
    /// # Errors
    /// [`Error::Index`], or what the file system says.
    pub fn forget_loss(&self) -> Result<(), Error> {
        self.file_loss()?;
        let rows = self.loss().rows.clone();
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if !rows.is_empty() {
            self.write(&mut writer, &self.read(), &rows)?;
        }
        *self.loss() = Loss::default();
        Ok(())
    }

    /// Renames what was moved aside, so that it says "lost" no longer. It takes the place of what was renamed before.
    fn file_loss(&self) -> Result<(), Error> {
        let lost = set_aside(&self.path, DAMAGED)?;
        if lost.is_empty() {
            return Ok(());
        }
        for (name, _) in set_aside(&self.path, REPLACED)? {
            let old = self.path.with_file_name(name);
            std::fs::remove_file(&old).map_err(failed("remove", old))?;
        }
        for (name, time) in lost {
            let from = self.path.with_file_name(name);
            let mut to = self.path.as_os_str().to_owned();
            to.push(format!("{REPLACED}{time}"));
            std::fs::rename(&from, &to).map_err(failed("rename", &from))?;
            tracing::info!(
                from = %from.display(),
                to = %Path::new(&to).display(),
                "nothing more is to be had from the image index that was moved aside, and it was renamed"
            );
        }
        Ok(())
    }

    fn read(&self) -> RwLockReadGuard<'_, Images> {
        self.images.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// An image by its id.
    pub fn get(&self, id: &ImageId) -> Option<Arc<ImageRecord>> {
        self.read().get(id).cloned()
    }

    /// All images, by id.
    pub fn all(&self) -> Vec<Arc<ImageRecord>> {
        self.read().values().cloned().collect()
    }

    /// When an index was lost whose parts may still be in the store (seconds since the Unix epoch); the file that was
    /// moved aside says so until somebody removes it. With a record that cannot be read: now and for ever.
    pub fn lost_at(&self) -> Option<i64> {
        let loss = self.loss();
        if !loss.rows.is_empty() {
            return Some(i64::MAX);
        }
        loss.at
    }

    /// Whether an image has this layer.
    pub fn names_layer(&self, chain: &ChainId) -> bool {
        self.read()
            .values()
            .any(|image| image.chain.contains(chain))
    }

    /// Whether an image has this document.
    pub fn names_blob(&self, digest: &Digest) -> bool {
        self.read()
            .values()
            .any(|image| image.blobs.contains(digest))
    }

    /// Adds an image or replaces the record of one. Its tags and digests are taken from the images that had them.
    /// When this returns it is on the disk.
    ///
    /// # Errors
    /// [`Error::Index`]; nothing has changed then.
    pub fn put(&self, record: ImageRecord) -> Result<(), Error> {
        self.change(vec![record], &[])
    }

    /// Removes an image; an absent one is fine.
    ///
    /// # Errors
    /// [`Error::Index`]; nothing has changed then.
    pub fn remove(&self, id: &ImageId) -> Result<(), Error> {
        self.change(Vec::new(), std::slice::from_ref(id))
    }

    /// Both, in one transaction: removals first, then the records in their order.
    ///
    /// # Errors
    /// [`Error::Index`]; nothing has changed then.
    pub fn change(&self, put: Vec<ImageRecord>, remove: &[ImageId]) -> Result<(), Error> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = self.read().clone();
        let mut touched = BTreeSet::new();
        for id in remove {
            if next.remove(id).is_some() {
                touched.insert(*id);
            }
        }
        for record in put {
            touched.extend(take_names(&mut next, &record));
            touched.insert(record.id);
            next.insert(record.id, Arc::new(record));
        }
        if touched.is_empty() {
            return Ok(());
        }
        self.reserve(touched.iter().filter_map(|id| next.get(id)))?;
        for record in touched.iter().filter_map(|id| next.get(id)) {
            let copied = self.records.write(record);
            copied.map_err(|error| self.copy_error(error))?;
            crash_point!("image_index.copy.after");
        }
        let rows: Vec<String> = touched.iter().map(ImageId::hex).collect();
        self.write(&mut writer, &next, &rows)?;
        crash_point!("image_index.commit.after");
        for id in touched.iter().filter(|id| !next.contains_key(*id)) {
            if let Err(error) = self.records.remove(id) {
                tracing::warn!(image.id = %id, %error, "a removed image's record stays until the next start");
            }
        }
        crash_point!("image_index.copies.after");
        *self.images.write().unwrap_or_else(PoisonError::into_inner) = next;
        drop(writer);
        Ok(())
    }

    fn copy_error(&self, error: std::io::Error) -> Error {
        failed("copy a record of", &self.path)(error)
    }

    /// Writes rows as they are in `images`, in one durable transaction.
    fn write(
        &self,
        writer: &mut Option<Database>,
        images: &Images,
        rows: &[String],
    ) -> Result<(), Error> {
        let failed = |source| index_error("write", &self.path, source);
        let mut rows: BTreeSet<String> = rows.iter().cloned().collect();
        if writer.is_none() {
            let loaded = load(&self.path).map_err(|error| match error {
                Unusable::Damaged(source) => failed(source),
                Unusable::Other(error) => error,
            })?;
            // Whether the write that failed is on the disk nobody knows: what is shown counts.
            let known = self.read();
            rows.extend(loaded.images.keys().chain(known.keys()).map(ImageId::hex));
            *writer = Some(loaded.database);
        }
        let Some(database) = writer else {
            return Ok(());
        };
        if let Err(source) = commit(database, images, &rows) {
            *writer = None;
            return Err(failed(source));
        }
        self.try_allocate();
        Ok(())
    }

    /// Takes room for records before redb is asked to write them: after a write that failed it would need some
    /// to go on at all.
    fn reserve<'a>(
        &self,
        records: impl Iterator<Item = &'a Arc<ImageRecord>>,
    ) -> Result<(), Error> {
        let lengths = records.map(|image| record::encode(&**image).map(|row| row.len()));
        let lengths: Result<Vec<usize>, _> = lengths.collect();
        let lengths = lengths.map_err(|error| index_error("write", &self.path, error.into()))?;
        if lengths.is_empty() {
            return Ok(());
        }
        let sum: usize = lengths.into_iter().sum();
        self.allocate(SLACK + 4 * sum as u64)
            .map_err(failed("take room for", &self.path))
    }

    /// Takes blocks for all of the file and for `more` bytes, so that an image can be removed from a disk that is full.
    fn allocate(&self, more: u64) -> std::io::Result<()> {
        let file = std::fs::File::options().write(true).open(&self.path)?;
        let size = file.metadata()?;
        if size.blocks() * 512 >= size.len() + more {
            return Ok(());
        }
        let flags = rustix::fs::FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&file, flags, 0, size.len() + more) {
            // Some file systems cannot.
            Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn try_allocate(&self) {
        if let Err(error) = self.allocate(0) {
            tracing::debug!(%error, "the image index may not be writable on a full disk");
        }
    }
}

fn commit(database: &Database, images: &Images, rows: &BTreeSet<String>) -> Result<(), BoxError> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    {
        let mut table = transaction.open_table(TABLE)?;
        for key in rows {
            let id: Option<ImageId> = format!("sha256:{key}").parse().ok();
            let Some(image) = id.and_then(|id| images.get(&id)) else {
                table.remove(key.as_str())?;
                continue;
            };
            let bytes = record::encode(&**image)?;
            table.insert(key.as_str(), bytes.as_slice())?;
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Takes the names of `record` from all other images; returns which those are.
fn take_names(images: &mut Images, record: &ImageRecord) -> Vec<ImageId> {
    let tags: HashSet<&str> = record.tags.iter().map(String::as_str).collect();
    let digests: HashSet<&str> = record.digests.iter().map(String::as_str).collect();
    let mut losers = Vec::new();
    for (id, image) in images.iter_mut().filter(|(id, _)| **id != record.id) {
        let loses = image.tags.iter().any(|tag| tags.contains(tag.as_str()))
            || image
                .digests
                .iter()
                .any(|digest| digests.contains(digest.as_str()));
        if loses {
            let image = Arc::make_mut(image);
            image.tags.retain(|tag| !tags.contains(tag.as_str()));
            image
                .digests
                .retain(|digest| !digests.contains(digest.as_str()));
            losers.push(*id);
        }
    }
    losers
}

/// Whether the disk was full, or what may be used of it.
pub(super) fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    let mut cause = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| matches!(io.kind(), StorageFull | QuotaExceeded)) {
            return true;
        }
        cause = error.source();
    }
    // redb's errors tell their cause in words only, which differ between C libraries.
    let text = error.to_string();
    text.contains("No space left on device") || text.contains("uota exceeded")
}

fn index_error(action: &'static str, path: &Path, source: BoxError) -> Error {
    Error::Index {
        action,
        path: path.to_owned(),
        source,
    }
}
