//! The store, in the words of this module.

use std::io::{self, Read};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant, SystemTime};

use super::catalog::{Catalog, Change, Entry};
use super::{Error, blocking};
use crate::layer::{Applied, finish};
use crate::model::{ChainId, Digest, FsUsage};
use crate::storage;
use crate::storage::{
    ImageRecord, LayerInfo, Lease, Recorded, Recorder, StagedLayer, Storage, Usage,
};

/// How long a sum over all writable layers is good: making one walks them.
const WRITABLE_AGE: Duration = Duration::from_secs(30);

/// What files of somebody's making leave of the disk: a twentieth, at most this many bytes.
const RESERVE: u64 = 1 << 30;

/// Handle on the store.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    pub(super) storage: Storage,
    writable: Arc<Kept<FsUsage>>,
}

/// The last outcome of something that takes long. Only one makes a new one at a time.
#[derive(Debug)]
struct Kept<T> {
    last: Mutex<Option<(Instant, T)>>,
    making: Mutex<()>,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self {
            last: Mutex::default(),
            making: Mutex::default(),
        }
    }
}

impl<T: Clone> Kept<T> {
    /// The last one if it is not older than that or another one is being made, else a new one.
    fn get<E>(&self, age: Duration, make: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        if let Some(kept) = self.last(age) {
            return Ok(kept);
        }
        let making = match self.making.try_lock() {
            Ok(making) => making,
            Err(TryLockError::Poisoned(making)) => making.into_inner(),
            Err(TryLockError::WouldBlock) => match self.last(Duration::MAX) {
                Some(kept) => return Ok(kept),
                None => self.making.lock().unwrap_or_else(PoisonError::into_inner),
            },
        };
        // Whoever was waited for has just made it.
        if let Some(kept) = self.last(age) {
            return Ok(kept);
        }
        let made = make()?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some((Instant::now(), made.clone()));
        drop(making);
        Ok(made)
    }

    fn last(&self, age: Duration) -> Option<T> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let young = last.as_ref().filter(|(when, _)| when.elapsed() < age);
        young.map(|(_, kept)| kept.clone())
    }
}

/// A layer that is unpacked and verified, and not yet in the store.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) layer: StagedLayer,
    pub(crate) applied: Applied,
    pub(crate) diff_id: Digest,
    pub(crate) digest: Digest,
    pub(crate) compressed: u64,
    pub(crate) recorded: Recorded,
}

/// A reader of a layer's archive that keeps what it takes to make the archive again.
pub(crate) struct Recording<R> {
    reader: R,
    recorder: Recorder,
}

impl<R: Read> Recording<R> {
    pub(crate) fn new(reader: R, recorder: Recorder) -> Self {
        Self { reader, recorder }
    }

    /// `exact`: the archive has no name twice.
    pub(crate) fn finish(self, exact: bool) -> io::Result<Recorded> {
        self.recorder.finish(exact)
    }
}

impl<R: Read> Read for Recording<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(buffer)?;
        let fed = self.recorder.feed(buffer.get(..length).unwrap_or_default());
        fed.map_err(|error| {
            io::Error::new(error.kind(), format!("its recipe cannot be kept: {error}"))
        })?;
        Ok(length)
    }
}

/// Files that go away with it.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: StagedLayer,
    root: PathBuf,
}

impl Shelf {
    pub(crate) fn new(storage: Storage) -> Self {
        Self {
            storage,
            writable: Arc::default(),
        }
    }

    pub(crate) fn lease(&self) -> Lease {
        self.storage.lease()
    }

    pub(crate) fn has_layer(&self, id: &ChainId) -> bool {
        self.storage.has_layer(id)
    }

    pub(crate) fn stage(&self) -> Result<StagedLayer, Error> {
        Ok(self.storage.stage_layer()?)
    }

    /// Finishes a layer with what is below it, and makes it visible. `chain` ends with its own id; `room` decides about the
    /// bytes that were copied from below.
    pub(crate) fn publish(
        &self,
        staged: Staged,
        chain: &[ChainId],
        room: impl FnOnce(u64) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Some((id, below)) = chain.split_last() else {
            return Ok(());
        };
        let Staged {
            layer,
            mut applied,
            diff_id,
            digest,
            compressed,
            recorded,
        } = staged;
        // Where names came and went, or came from below, counting on the way does not do.
        let recount = applied.replaced || applied.deferred > 0;
        if applied.needs_lower() {
            let before = applied.bytes;
            let view = self.storage.view(below)?;
            let lower = view.as_ref().map(|view| view.as_fd());
            finish(layer.dir(), lower, &mut applied).map_err(|source| Error::Layer {
                layer: digest,
                source: Arc::new(source),
            })?;
            room(applied.bytes.saturating_sub(before))?;
        }
        if recount {
            let counted = layer.count()?;
            (applied.bytes, applied.inodes) = (counted.bytes, counted.inodes);
        }
        let info = LayerInfo {
            diff_id,
            blob: digest,
            blob_size: compressed,
            bytes: applied.bytes,
            inodes: applied.inodes,
            archive: recorded.stored.map(|_| recorded.archive),
            recipe: recorded.stored.unwrap_or(0),
        };
        Ok(self.storage.publish_layer(layer, id, info)?)
    }

    pub(crate) fn collect(&self) -> Result<(), Error> {
        let collected = self.storage.collect()?;
        tracing::debug!(?collected, "collected unused content");
        Ok(())
    }

    pub(crate) async fn document(&self, digest: Digest) -> Result<Option<Vec<u8>>, Error> {
        let storage = self.storage.clone();
        match blocking(move || storage.get_blob(&digest)).await? {
            // As good as none: the next pull writes it again.
            Err(error) if error.is_damage() => Ok(None),
            document => Ok(document?),
        }
    }

    pub(crate) fn put_document(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        Ok(self.storage.put_blob(digest, bytes)?)
    }

    /// The images of the index. One that lost a layer is absent, so that it is pulled again.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut broken = Vec::new();
        for record in self.storage.index().all() {
            match record.chain.iter().find(|layer| !self.has_layer(layer)) {
                None => entries.push(entry(&record)),
                Some(layer) => {
                    tracing::warn!(
                        image.id = %record.id, image.tags = ?record.tags, layer.chain = %layer,
                        "an image is incomplete and taken out of the index: pull it again"
                    );
                    broken.push(record.id);
                }
            }
        }
        // Nobody could make room on a full disk if this kept the daemon from starting.
        if let Err(error) = self.storage.index().change(Vec::new(), &broken) {
            tracing::warn!(%error, "incomplete images stay in the index until the next start");
        }
        entries
    }

    /// Brings a change of the catalog to the index, in one transaction.
    pub(crate) fn write(&self, catalog: &Catalog, change: &Change) -> Result<(), Error> {
        let put = change.put.iter().filter_map(|id| catalog.get(id));
        let put = put.map(|entry| record(entry)).collect();
        let remove: Vec<_> = change.remove.iter().copied().collect();
        Ok(self.storage.index().change(put, &remove)?)
    }

    /// What layers and documents take is a sum in memory; what there is beside them is a handful of files.
    pub(crate) fn image_usage(&self) -> Result<FsUsage, Error> {
        let (content, beside) = (self.storage.usage(), self.storage.overhead()?);
        Ok(self.told(Usage {
            bytes: content.bytes + beside.bytes,
            inodes: content.inodes + beside.inodes,
        }))
    }

    pub(crate) fn container_usage(&self) -> Result<FsUsage, Error> {
        self.writable.get(WRITABLE_AGE, || {
            let mut sum = Usage::default();
            for id in self.storage.snapshots() {
                match self.storage.snapshot_footprint(&id) {
                    Ok(usage) => {
                        sum.bytes += usage.bytes;
                        sum.inodes += usage.inodes;
                    }
                    // Removed since it was listed.
                    Err(storage::Error::NoSnapshot(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(self.told(sum))
        })
    }

    fn told(&self, usage: Usage) -> FsUsage {
        FsUsage {
            timestamp: now(),
            mountpoint: self.storage.root().to_owned(),
            used_bytes: usage.bytes,
            inodes_used: usage.inodes,
        }
    }

    pub(crate) fn scratch(&self) -> Result<Scratch, Error> {
        Ok(Scratch {
            dir: self.stage()?,
            root: self.storage.root().to_owned(),
        })
    }
}

fn entry(record: &ImageRecord) -> Entry {
    Entry {
        id: record.id,
        tags: record.tags.iter().cloned().collect(),
        digests: record.digests.iter().cloned().collect(),
        manifest: record.manifest,
        documents: record.blobs.iter().copied().collect(),
        chain: record.chain.clone(),
        size: record.size,
        config: record.config.clone(),
        pinned: record.pinned,
        pulled_at: record.created_at,
        platform: record.platform.clone(),
    }
}

fn record(entry: &Entry) -> ImageRecord {
    ImageRecord {
        id: entry.id,
        tags: entry.tags.iter().cloned().collect(),
        digests: entry.digests.iter().cloned().collect(),
        manifest: entry.manifest,
        size: entry.size,
        config: entry.config.clone(),
        chain: entry.chain.clone(),
        blobs: entry.documents.iter().copied().collect(),
        pinned: entry.pinned,
        created_at: entry.pulled_at,
        platform: entry.platform.clone(),
    }
}

/// Nanoseconds since the Unix epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

impl Scratch {
    pub(crate) fn create(&self, name: &str) -> Result<OwnedFd, Error> {
        use rustix::fs::{Mode, OFlags, openat};
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        openat(self.dir(), name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| self.failed("create", error))
    }

    pub(crate) fn open(&self, name: &str) -> Result<OwnedFd, Error> {
        use rustix::fs::{Mode, OFlags, openat};
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        openat(self.dir(), name, flags, Mode::empty()).map_err(|error| self.failed("open", error))
    }

    fn dir(&self) -> BorrowedFd<'_> {
        self.dir.dir()
    }

    /// Fails if so many bytes more would fill the disk: containers and pulls write there meanwhile.
    pub(crate) fn leave_room(&self, length: u64) -> Result<(), Error> {
        let disk = rustix::fs::fstatvfs(self.dir());
        let disk = disk.map_err(|error| self.failed("look at", error))?;
        let reserve = (disk.f_blocks * disk.f_frsize / 20).min(RESERVE);
        // Some file systems do not know how large they are.
        if disk.f_blocks == 0 || disk.f_bavail * disk.f_frsize >= reserve.saturating_add(length) {
            return Ok(());
        }
        let text = format!("{length} bytes more leave less than {reserve} free");
        Err(self.failed("write", io::Error::new(io::ErrorKind::StorageFull, text)))
    }

    /// An error of its files.
    pub(crate) fn failed(&self, action: &'static str, error: impl Into<io::Error>) -> Error {
        storage::Error::Io {
            action,
            path: self.root.join("staging"),
            source: error.into(),
        }
        .into()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// However many ask at once, one makes it; the others wait for the first one and take the last one after that.
    #[test]
    fn one_at_a_time_is_made() {
        let kept = Kept::default();
        let (made, start) = (AtomicU32::new(0), Barrier::new(8));
        let make = || {
            std::thread::sleep(Duration::from_millis(100));
            Ok::<_, ()>(made.fetch_add(1, Ordering::SeqCst) + 1)
        };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    assert_eq!(kept.get(WRITABLE_AGE, make), Ok(1));
                });
            }
        });
        let (entered, leave) = (Barrier::new(2), Barrier::new(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let slow = || {
                    entered.wait();
                    leave.wait();
                    make()
                };
                assert_eq!(kept.get(Duration::ZERO, slow), Ok(2));
            });
            entered.wait();
            assert_eq!(kept.get(Duration::ZERO, || Err(())), Ok(1));
            leave.wait();
        });
        assert_eq!(kept.get(Duration::ZERO, || Err(())), Err(()));
        assert_eq!(kept.get(WRITABLE_AGE, || Err(())), Ok(2));
    }
}
