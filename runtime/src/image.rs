//! Images: pull, load, list, remove, resolve.
//!
//! An image is in the catalog with all its layers, or not at all. Readers see a snapshot in memory;
//! writers change the index on disk first. A pull is a task of the manager: whoever asked for it may
//! go away, and an equal pull joins it.

mod archive;
mod catalog;
mod check;
mod document;
mod download;
mod export;
mod flight;
mod layers;
mod progress;
mod pull;
mod report;
mod shelf;
mod unpack;

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use oci_spec::image::Descriptor;
use sha2::{Digest as _, Sha256};

use crate::metrics::Metrics;
use crate::model::{
    Digest, Explanation, FsUsage, Image, ImageId, Kind, Kinded, RegistryAuth, ResolvedImage,
};
use crate::registry::{self, Reference, Registry};
pub use crate::storage::Lease;
use crate::storage::Storage;
use crate::{layer, storage};
use catalog::{Catalog, Change};
pub use export::Export;
use flight::{Alone, Flights};
use layers::LayerFlights;
use progress::Board;
pub use progress::PullStatus;
pub use report::{
    CheckReport, DiskUse, Finding, ImageDetails, ImageSummary, LayerDetails, Loaded, Pruned, Share,
    Thing,
};
use shelf::Shelf;

/// Layers of one pull that are fetched and unpacked at the same time.
pub const PARALLEL_LAYERS: usize = 4;

/// Uncompressed bytes of the layers of one image.
pub const UNPACKED_LIMIT: u64 = 128 << 30;

/// Why an image operation failed. Everybody who waits for a pull gets the same error, so it can be cloned.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The registry, or the reference.
    #[error(transparent)]
    Registry(Arc<registry::Error>),
    /// The store.
    #[error(transparent)]
    Storage(Arc<storage::Error>),
    /// No such image.
    #[error("image {0:?} is not in the store")]
    NotFound(String),
    /// A prefix of several ids.
    #[error("several image ids begin with {0:?}")]
    Ambiguous(String),
    /// A layer does not unpack.
    #[error("cannot unpack layer {layer}")]
    Layer {
        /// Digest of the compressed layer.
        layer: Digest,
        /// Cause.
        #[source]
        source: Arc<layer::Error>,
    },
    /// A layer's bytes are not those that the manifest promises.
    #[error("{host} sent other content for {want}: its digest is {got}")]
    Content {
        /// Where the bytes came from.
        host: String,
        /// Digest that was promised.
        want: Digest,
        /// Digest of what came.
        got: Digest,
    },
    /// A layer is not the one that the configuration names (row S25).
    #[error(
        "diff id mismatch: layer {layer} unpacks to {got}, and the image's configuration names {want}"
    )]
    DiffId {
        /// Digest of the compressed layer.
        layer: Digest,
        /// Diff id of the configuration.
        want: Digest,
        /// Diff id of what came.
        got: Digest,
    },
    /// It would fill the disk.
    #[error(
        "the layers of the image unpack to more than {0} bytes: if that is meant to be, raise images.max_unpacked_gib"
    )]
    TooLarge(u64),
    /// A configuration that makes no image, or none for this machine.
    #[error("image configuration {id}: {reason}")]
    Configuration {
        /// Its digest.
        id: Digest,
        /// What is wrong with it.
        reason: String,
    },
    /// An archive that cannot be loaded.
    #[error("image archive: {0}")]
    Archive(String),
    /// The store's disk has no room for it, or no inodes.
    #[error(
        "the disk of {root:?} is full ({free} bytes and {inodes} inodes are free): make room on it, `berth df` and `berth images prune` help"
    )]
    Full {
        /// Where the store is.
        root: PathBuf,
        /// Bytes.
        free: u64,
        /// Inodes.
        inodes: u64,
        /// What did not fit.
        #[source]
        source: Box<Error>,
    },
    /// A layer needs a thread.
    #[error(
        "cannot start a thread to unpack a layer with: pull fewer images at a time, or allow Berth more tasks"
    )]
    Thread(#[source] Arc<std::io::Error>),
    /// The work ended without a result: a bug, or the daemon is going down.
    #[error("the operation was interrupted, try again")]
    Interrupted,
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Registry(error) => error.kind(),
            Self::Storage(error) => error.kind(),
            Self::NotFound(_) => Kind::NotFound,
            Self::Ambiguous(_) => Kind::InvalidArgument,
            Self::Layer { source, .. } => source.kind(),
            Self::Interrupted | Self::Thread(_) => Kind::Unavailable,
            Self::Full { .. } => Kind::ResourceExhausted,
            _ => Kind::Unknown,
        }
    }
}

impl From<registry::Error> for Error {
    fn from(error: registry::Error) -> Self {
        Self::Registry(Arc::new(error))
    }
}

impl From<storage::Error> for Error {
    fn from(error: storage::Error) -> Self {
        Self::Storage(Arc::new(error))
    }
}

impl Error {
    /// Says which registry it was that sent the wrong bytes.
    fn at_host(self, name: &str) -> Self {
        match self {
            Self::Content { want, got, .. } => Self::Content {
                host: name.to_owned(),
                want,
                got,
            },
            other => other,
        }
    }
}

/// What the manager needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Layers, documents and the index.
    pub storage: Storage,
    /// What holds for all registries.
    pub registry: registry::Config,
    /// References that are never collected.
    pub pinned: Vec<String>,
    /// Layers of one pull at a time; 0 means [`PARALLEL_LAYERS`].
    pub parallel_layers: usize,
    /// Bytes that the archives of all layers which a pull adds may have, uncompressed; 0 means [`UNPACKED_LIMIT`].
    pub unpacked_limit: u64,
    /// Where pulls are counted.
    pub metrics: Arc<Metrics>,
}

/// All images of this daemon.
#[derive(Debug)]
pub struct ImageManager {
    inner: Arc<Inner>,
}

/// A pull is the same as another when reference and credentials are.
type PullKey = (String, [u8; 32]);

struct Inner {
    shelf: Shelf,
    registry: Arc<Registry>,
    pinned: Vec<Reference>,
    parallel_layers: usize,
    unpacked_limit: u64,
    catalog: RwLock<Arc<Catalog>>,
    /// Held by blocking threads while the index on disk and the catalog change; readers never wait for it.
    writer: Mutex<()>,
    pulls: Arc<Flights<PullKey, Result<ImageId, Error>>>,
    layers: Arc<LayerFlights>,
    board: Arc<Board>,
    metrics: Arc<Metrics>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageManager").finish_non_exhaustive()
    }
}

impl ImageManager {
    /// Takes up another configuration of the registries, for pulls that begin from now on.
    pub fn reload(&self, registry: registry::Config) {
        self.inner.registry.reload(registry);
    }

    /// With the images that the index has. One that lost a layer is taken out of it, which writes the index.
    ///
    /// # Errors
    /// The index cannot be written, or a pinned name is not a reference.
    pub fn open(config: Config) -> Result<Self, Error> {
        let shelf = Shelf::new(config.storage);
        let pinned = config.pinned.iter().map(|text| text.parse());
        let inner = Inner {
            catalog: RwLock::new(Arc::new(Catalog::new(shelf.entries()))),
            shelf,
            registry: Registry::new(config.registry),
            pinned: pinned.collect::<Result<_, registry::Error>>()?,
            parallel_layers: match config.parallel_layers {
                0 => PARALLEL_LAYERS,
                some => some,
            },
            unpacked_limit: match config.unpacked_limit {
                0 => UNPACKED_LIMIT,
                some => some,
            },
            writer: Mutex::default(),
            pulls: Arc::default(),
            layers: Arc::default(),
            board: Arc::new(Board::new(&config.metrics)),
            metrics: config.metrics,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Fetches and unpacks an image; an identical pull under way is joined. The pull goes on when the
    /// returned future is dropped.
    ///
    /// # Errors
    /// See [`Error`]; an unreachable registry's text starts with `RegistryUnavailable` (row R062).
    pub async fn pull(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
    ) -> Result<ImageId, Error> {
        let reference: Reference = reference.parse()?;
        let key = (reference.to_string(), fingerprint(auth.as_ref()));
        let inner = Arc::clone(&self.inner);
        let run = move |_| async move {
            let pulled = pull::run(Arc::clone(&inner), reference, auth).await;
            inner.make_room(pulled).await
        };
        let mut ticket = self.inner.pulls.join(key, Alone::Finish, run);
        ticket.wait().await.unwrap_or(Err(Error::Interrupted))
    }

    /// Loads the images of an archive: an OCI layout or what `docker save` writes, as a tar that may be
    /// compressed with gzip or zstd. The images get the names that the archive gives them, so this is for
    /// an operator's archives and for nobody else's (CVE-2026-50195). What is returned has these names alone.
    ///
    /// # Errors
    /// See [`Error`]; images before a broken one are loaded.
    pub async fn load(&self, archive: impl Read + Send + 'static) -> Result<Vec<Image>, Error> {
        let loaded = archive::load(&self.inner, archive).await;
        self.inner.make_room(loaded).await
    }

    /// As [`Self::load`], from a file.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn load_file(&self, path: &Path) -> Result<Vec<Image>, Error> {
        let path = path.to_owned();
        let open = move || {
            std::fs::File::open(&path)
                .map_err(|error| Error::Archive(format!("{}: {error}", path.display())))
        };
        let file = blocking(open).await??;
        self.load(file).await
    }

    /// Everything in the store, from memory.
    pub fn list(&self) -> Vec<Image> {
        let catalog = self.inner.catalog();
        let entries = catalog.entries();
        entries
            .map(|entry| entry.image(&self.inner.pinned))
            .collect()
    }

    /// Looks an image up by any name, digest, id or unique id prefix (row X058).
    ///
    /// # Errors
    /// A malformed reference; an absent image is `None`.
    pub fn find(&self, reference: &str) -> Result<Option<Image>, Error> {
        let catalog = self.inner.catalog();
        let found = catalog.find(reference)?;
        Ok(found.map(|entry| entry.image(&self.inner.pinned)))
    }

    /// Removes an image with all its names; an absent one is fine. Layers below a container's writable layer
    /// stay until [`Self::collect`] finds them unused.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove(&self, reference: &str) -> Result<(), Error> {
        let Some(id) = self.inner.catalog().find(reference)?.map(|entry| entry.id) else {
            return Ok(());
        };
        self.inner
            .commit(Vec::new(), move |catalog| catalog.remove(&id))
            .await?;
        self.collect().await
    }

    /// Deletes layers and documents that no image, pull or container needs.
    ///
    /// # Errors
    /// The first thing that could not be deleted; the rest is.
    pub async fn collect(&self) -> Result<(), Error> {
        let inner = Arc::clone(&self.inner);
        // A task of its own: a caller that goes away must not leave it half done.
        let task = tokio::spawn(blocking(move || inner.shelf.collect()));
        task.await.map_err(|_| Error::Interrupted)??
    }

    /// What a container needs of an image.
    ///
    /// # Errors
    /// Not in the store, or malformed.
    pub fn resolve(&self, reference: &str) -> Result<ResolvedImage, Error> {
        let catalog = self.inner.catalog();
        let found = catalog.find(reference)?;
        let entry = found.ok_or_else(|| Error::NotFound(reference.chars().take(300).collect()))?;
        Ok(entry.resolved())
    }

    /// As [`Self::resolve`], with the promise that the layers stay until the lease is dropped: for the time
    /// until the container has its writable layer, which keeps them from then on.
    ///
    /// # Errors
    /// Not in the store, or malformed.
    pub fn acquire(&self, reference: &str) -> Result<(ResolvedImage, Lease), Error> {
        let image = self.resolve(reference)?;
        let mut lease = self.inner.shelf.lease();
        for layer in &image.chain {
            if !lease.hold_layer(*layer) {
                // It was removed before the lease was there, or its layer is damaged.
                return Err(storage::Error::NoLayer(*layer).into());
            }
        }
        Ok((image, lease))
    }

    /// What a pull of a reference would do, without doing it. The image's absence is part of the answer.
    ///
    /// # Errors
    /// A malformed reference.
    pub async fn explain(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
    ) -> Result<Explanation, Error> {
        let reference: Reference = reference.parse()?;
        let mut told = registry::explain(&self.inner.registry, &reference, auth.as_ref()).await;
        if let Some(image) = &mut told.image {
            let id = image.id.parse().ok();
            let catalog = self.inner.catalog();
            image.stored = Some(id.is_some_and(|id| catalog.get(&id).is_some()));
        }
        Ok(told)
    }

    /// The pulls in progress.
    pub fn pulls(&self) -> Vec<PullStatus> {
        self.inner.board.statuses()
    }

    /// Use of the image store.
    ///
    /// # Errors
    /// What the file system said.
    pub async fn fs_usage(&self) -> Result<FsUsage, Error> {
        let shelf = self.inner.shelf.clone();
        blocking(move || shelf.image_usage()).await?
    }

    /// Use of the containers' writable layers, at most half a minute old, or as old as it is when somebody is just
    /// walking them.
    ///
    /// # Errors
    /// What the file system said.
    pub async fn container_fs_usage(&self) -> Result<FsUsage, Error> {
        let shelf = self.inner.shelf.clone();
        blocking(move || shelf.container_usage()).await?
    }
}

impl Inner {
    fn catalog(&self) -> Arc<Catalog> {
        let catalog = self.catalog.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&catalog)
    }

    /// Of something that did not fit on the disk nothing stays there, so that others find the room; and whoever
    /// asked for it learns which disk that is.
    async fn make_room<T>(self: &Arc<Self>, outcome: Result<T, Error>) -> Result<T, Error> {
        let error = match outcome {
            Err(error) if error.kind() == Kind::ResourceExhausted => error,
            outcome => return outcome,
        };
        let inner = Arc::clone(self);
        let disk = blocking(move || {
            let root = inner.shelf.storage.root().to_owned();
            let disk = rustix::fs::statvfs(&root);
            if let Err(error) = inner.shelf.collect() {
                tracing::warn!(%error, "cannot collect on a full disk");
            }
            if let Err(error) = inner.shelf.storage.remove_partials() {
                tracing::warn!(%error, "cannot remove interrupted downloads from a full disk");
            }
            disk.ok().map(|disk| (root, disk))
        });
        Err(match disk.await? {
            None => error,
            Some((root, disk)) => Error::Full {
                root,
                free: disk.f_bavail * disk.f_frsize,
                inodes: disk.f_ffree,
                source: Box::new(error),
            },
        })
    }

    /// Writes documents, then the index, then shows the change to readers. Returns what they see now.
    async fn commit(
        self: &Arc<Self>,
        documents: Vec<(Digest, Vec<u8>)>,
        change: impl FnOnce(&mut Catalog) -> Change + Send + 'static,
    ) -> Result<Arc<Catalog>, Error> {
        let inner = Arc::clone(self);
        blocking(move || {
            for (digest, bytes) in &documents {
                inner.shelf.put_document(digest, bytes)?;
                crash_point!("pull_image.document.after");
            }
            let _writer = inner.writer.lock().unwrap_or_else(PoisonError::into_inner);
            inner.change(change)
        })
        .await?
    }

    /// Changes index and catalog. Only for who holds `writer`.
    fn change(&self, change: impl FnOnce(&mut Catalog) -> Change) -> Result<Arc<Catalog>, Error> {
        let mut next = Catalog::clone(&self.catalog());
        let change = change(&mut next);
        // A check may have found a layer damaged since the pull saw it.
        for entry in change.put.iter().filter_map(|id| next.get(id)) {
            if let Some(gone) = entry
                .chain
                .iter()
                .find(|layer| !self.shelf.has_layer(layer))
            {
                return Err(storage::Error::NoLayer(*gone).into());
            }
        }
        self.shelf.write(&next, &change)?;
        let next = Arc::new(next);
        let mut shown = self.catalog.write().unwrap_or_else(PoisonError::into_inner);
        *shown = Arc::clone(&next);
        Ok(next)
    }
}

/// Runs blocking work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::Interrupted)
}

/// Runs work that takes as long as a registry likes on a thread of its own: containers are started and stopped by those
/// of the pool, which is not large.
async fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("unpack".to_owned())
        .spawn(move || sender.send(work()))
        .map_err(|error| Error::Thread(Arc::new(error)))?;
    receiver.await.map_err(|_| Error::Interrupted)
}

/// Tells callers with different credentials apart without keeping what they brought.
fn fingerprint(auth: Option<&RegistryAuth>) -> [u8; 32] {
    let mut hash = Sha256::new();
    if let Some(auth) = auth {
        for text in [
            &auth.username,
            &auth.password,
            &auth.auth,
            &auth.server_address,
            &auth.identity_token,
            &auth.registry_token,
        ] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
    }
    hash.finalize().into()
}

/// The digest of a descriptor, in the one algorithm that Berth takes.
fn digest_of(descriptor: &Descriptor) -> Result<Digest, Error> {
    let text = descriptor.digest().to_string();
    text.parse().map_err(|error: crate::model::NotADigest| {
        Error::from(registry::Error::Document {
            what: "a descriptor".to_owned(),
            reason: error.to_string(),
        })
    })
}

#[cfg(test)]
mod tests;
