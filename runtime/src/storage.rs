//! What is kept on disk: unpacked layers, documents of images, writable layers, the index.
//!
//! ```text
//! <root>/                  0711, everything below 0700: nobody but root finds a set-id file of an image (S22)
//!   layers/<chain id>/     fs/ is the unpacked layer, meta.json says so; without a good meta.json it is not there;
//!                          recipe is what it takes to make the layer's archive again
//!   blobs/sha256/<digest>  manifests, indexes, configurations
//!   images/<id>.json       a copy of each record of the index, from which a lost one is made again
//!   partial/<digest>       downloads that were interrupted
//!   snapshots/<container>/ fs/ is the writable layer, work/ is overlayfs's, chain lists the layers below; volumes/ has
//!                          those that the image declares
//!   staging/               what is not finished; swept at start
//!   init/                  the layer above all images, see below
//!   index.redb             which images there are
//! ```
//!
//! A layer, a document or the index never is there by half: it is written in `staging` (or beside its
//! place), synced, renamed into place, and the directory is synced. Writable layers are not synced at all,
//! for no container outlives a power failure.
//!
//! # Roots of containers
//!
//! A container's root is an overlay mount that is attached nowhere ([`Storage::mount`]): the writable layer,
//! the *init layer*, the image's layers. The init layer has nothing but the empty, opaque directories `/dev`, `/proc` and
//! `/sys`. Whatever an image has in their place (a symbolic link to a directory of the host, say,
//! CVE-2026-41579) does not exist in a container, whoever mounts there later. It has no `/etc`: a directory
//! in an upper layer hides mode and owner of the one below, and links at `/etc/hosts` or `/etc/mtab` are
//! for those to resolve inside the root who mount there. Nothing else of an image is changed by it.
//!
//! The root directory itself is root of the writable layer: mode 0755 as containerd has it, whatever the
//! image says (images made from a `mktemp -d` have 0700 there), with the owner that the topmost layer gives it.
//!
//! All methods block, so call them where that is allowed; none holds a lock while it waits for the disk.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;

use crate::id::ContainerId;
use crate::model::{ChainId, Digest, Kind, Kinded};
use crate::sys::fs::{names, open_dir, open_dir_path, remove_tree, tree_usage};
use crate::sys::mount::{Method, probe_overlay};

mod blobs;
mod collect;
mod index;
mod init;
mod layers;
mod recipe;
mod records;
mod snapshots;
mod verify;
mod volumes;

pub use blobs::Partial;
pub use collect::{Collected, Lease};
pub use index::{ImageRecord, Index};
pub use layers::{LayerInfo, StagedLayer};
pub use recipe::{Recorded, Recorder, Replay};
pub use verify::Verdict;

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system said no.
    #[error("cannot {action} {path:?}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process has it.
    #[error("{0:?} is in use by another Berth: stop that one, or take another root")]
    InUse(PathBuf),
    /// A layer that should be there is not.
    #[error("layer {0} is not in the store: pull the image again")]
    NoLayer(ChainId),
    /// The writable layer exists.
    #[error("container {0} has a writable layer already")]
    SnapshotExists(ContainerId),
    /// A layer whose archive cannot be made again.
    #[error(
        "the archive of layer {0} cannot be made again: it has names more than once; save the image where it was built"
    )]
    NoRecipe(ChainId),
    /// The container has no writable layer.
    #[error("container {0} has no writable layer")]
    NoSnapshot(ContainerId),
    /// More layers than an overlay can have.
    #[error("the image has {0} layers, more than the {max} that overlayfs can stack", max = MAX_LAYERS)]
    TooManyLayers(usize),
    /// Bytes that are not what they are called.
    #[error("document {0} does not have the content of that digest")]
    Damaged(Digest),
    /// A document larger than any should be.
    #[error("document {0} is larger than {max} bytes", max = MAX_DOCUMENT)]
    TooLarge(Digest),
    /// The partial download is open.
    #[error("{0} is being downloaded already")]
    PartialInUse(Digest),
    /// The index could not be read or written.
    #[error("cannot {action} the image index {path:?}")]
    Index {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The index has a record of a later Berth.
    #[error("image {id} in the index has format {version}, this Berth knows up to {known}: use a newer one", known = crate::record::NEWEST)]
    Newer {
        /// Which.
        id: String,
        /// Its format.
        version: u32,
    },
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Kind::ResourceExhausted
                }
                _ => Kind::Unknown,
            },
            Self::Index { source, .. } if index::is_full(&**source) => Kind::ResourceExhausted,
            Self::NoLayer(_) | Self::NoSnapshot(_) => Kind::NotFound,
            Self::NoRecipe(_) => Kind::FailedPrecondition,
            Self::SnapshotExists(_) => Kind::AlreadyExists,
            Self::InUse(_) | Self::PartialInUse(_) => Kind::Unavailable,
            Self::TooManyLayers(_) => Kind::InvalidArgument,
            _ => Kind::Unknown,
        }
    }
}

impl Error {
    /// Content that is there and is not what it should be, or cannot be read: to have it again it has to be fetched.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Damaged(_) => true,
            Self::Io { source, .. } => is_unreadable(source),
            _ => false,
        }
    }
}

/// What a disk says that cannot give back what it has: a block that is bad, or a file system whose own checksums or
/// structures do not fit.
fn is_unreadable(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::IO | Errno::UCLEAN | Errno::BADMSG | Errno::NODATA)
    )
}

fn failed<E: Into<io::Error>>(
    action: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(E) -> Error {
    let path = path.into();
    move |error| Error::Io {
        action,
        path,
        source: error.into(),
    }
}

/// overlayfs takes 500 lower layers (`OVL_MAX_STACK`); one is the init layer.
pub const MAX_LAYERS: usize = 499;

/// Manifests and indexes have at most 4 MiB by the distribution specification; configurations grow a little larger.
pub const MAX_DOCUMENT: u64 = 16 << 20;

/// Bytes and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// The store of one Berth. Cheap to clone; clones are the same store.
#[derive(Clone, Debug)]
pub struct Storage {
    shared: Arc<Shared>,
}

/// Something that only one at a time changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Thing {
    Layer(ChainId),
    Blob(Digest),
}

/// A thing that nobody else publishes or removes meanwhile.
struct Claim<'a> {
    shared: &'a Shared,
    thing: Thing,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.shared.state().busy.remove(&self.thing);
        self.shared.idle.notify_all();
    }
}

/// What lives as long as anybody uses the store.
#[derive(Debug)]
struct Shared {
    root: PathBuf,
    dirs: Dirs,
    /// The init layer, and an empty directory.
    init: OwnedFd,
    empty: OwnedFd,
    method: Method,
    index: Index,
    state: Mutex<State>,
    /// Told when something is no longer busy.
    idle: Condvar,
}

#[derive(Debug)]
struct Dirs {
    layers: OwnedFd,
    blobs: OwnedFd,
    partial: OwnedFd,
    snapshots: OwnedFd,
    staging: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    layers: HashMap<ChainId, layers::Meta>,
    /// What is being published or removed.
    busy: HashSet<Thing>,
    /// Sizes of documents.
    blobs: HashMap<Digest, u64>,
    snapshots: HashMap<ContainerId, Vec<ChainId>>,
    held_layers: HashMap<ChainId, usize>,
    held_blobs: HashMap<Digest, usize>,
    partials: HashSet<Digest>,
}

impl Shared {
    /// Waits until nobody else publishes or removes the thing. The lock is not held meanwhile.
    fn claim(&self, thing: Thing) -> Claim<'_> {
        let mut state = self.state();
        while !state.busy.insert(thing) {
            state = self
                .idle
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Claim {
            shared: self,
            thing,
        }
    }

    /// A claim, if nobody has it; for use under the lock.
    fn claim_now(&self, state: &mut State, thing: Thing) -> Option<Claim<'_>> {
        // Not `then_some`: a claim that is made and dropped gives up somebody else's.
        state.busy.insert(thing).then(|| Claim {
            shared: self,
            thing,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage {
    /// Opens the store below `root`, making it if it is not there. Leftovers of a crash are no longer
    /// visible when this returns; they are deleted by a thread of their own, for they may be large.
    ///
    /// # Errors
    /// [`Error::InUse`] when another process has it; what the file system says; an index of a later version.
    pub fn open(root: &Path) -> Result<Self, Error> {
        Self::open_with(root, None)
    }

    /// The same without overlayfs: a container's root is its writable layer alone, and nothing of it needs root.
    ///
    /// # Errors
    /// See [`Storage::open`].
    #[cfg(test)]
    pub(crate) fn open_flat(root: &Path) -> Result<Self, Error> {
        Self::open_with(root, Some(Method::Never))
    }

    /// How overlays are made is found out, unless it is given.
    fn open_with(root: &Path, given: Option<Method>) -> Result<Self, Error> {
        make_dir(root, 0o711)?;
        let dir = |name: &str| -> Result<OwnedFd, Error> {
            let path = root.join(name);
            make_dir(&path, 0o700)?;
            open_dir_path(&path).map_err(failed("open", &path))
        };
        let layers = dir("layers")?;
        // On a directory that only the store uses, so that nobody else's lock on the root is in the way.
        match rustix::fs::flock(&layers, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::InUse(root.to_owned())),
            Err(error) => return Err(failed("lock", root.join("layers"))(error)),
        }
        dir("blobs")?;
        let dirs = Dirs {
            layers,
            blobs: dir("blobs/sha256")?,
            partial: dir("partial")?,
            snapshots: dir("snapshots")?,
            staging: dir("staging")?,
        };
        let index = Index::open(&root.join("index.redb"), dir("images")?)?;
        let (init, empty) = init::make(&root.join("init"), given.is_none())?;
        let method = match given {
            Some(method) => method,
            None => probe_overlay(empty.as_fd()).map_err(failed("use overlayfs in", root))?,
        };
        let shared = Shared {
            root: root.to_owned(),
            dirs,
            init,
            empty,
            method,
            index,
            state: Mutex::default(),
            idle: Condvar::new(),
        };
        let storage = Self {
            shared: Arc::new(shared),
        };
        storage.load()?;
        storage.sweep()?;
        Ok(storage)
    }

    fn load(&self) -> Result<(), Error> {
        // First of all, for it says which damaged layers are still in use.
        let snapshots = self.load_snapshots()?;
        self.shared.state().snapshots = snapshots;
        let layers = self.load_layers()?;
        let blobs = self.load_blobs()?;
        let mut state = self.shared.state();
        state.layers = layers;
        state.blobs = blobs;
        Ok(())
    }

    /// Deletes what is in `staging` now; what comes later has other names.
    fn sweep(&self) -> Result<(), Error> {
        let staging = self.path("staging");
        let leftovers =
            names(self.shared.dirs.staging.as_fd()).map_err(failed("list", &staging))?;
        self.sweep_partials();
        if leftovers.is_empty() {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let work = move || {
            for name in leftovers {
                if let Err(error) = remove_tree(shared.dirs.staging.as_fd(), &name) {
                    tracing::warn!(?name, %error, "cannot remove a leftover in staging");
                }
            }
        };
        let thread = std::thread::Builder::new().name("storage-sweep".into());
        thread.spawn(work).map_err(failed("sweep", &staging))?;
        Ok(())
    }

    /// Which images there are.
    pub fn index(&self) -> &Index {
        &self.shared.index
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.shared.root
    }

    /// A new directory for somebody's temporary files, on the store's file system. Left there, it is swept at the next start.
    ///
    /// # Errors
    /// What the file system says.
    pub fn scratch(&self) -> Result<PathBuf, Error> {
        let path = self
            .path("staging")
            .join(crate::sys::fs::unique_name("scratch-"));
        make_dir(&path, 0o700)?;
        Ok(path)
    }

    /// What layers and documents take: a sum in memory.
    pub fn usage(&self) -> Usage {
        let state = self.shared.state();
        let layers = state.layers.values().map(layers::Meta::usage);
        let documents = state.blobs.values().map(|size| Usage {
            bytes: size.next_multiple_of(4096),
            inodes: 1,
        });
        layers
            .chain(documents)
            .fold(Usage::default(), |sum, one| Usage {
                bytes: sum.bytes + one.bytes,
                inodes: sum.inodes + one.inodes,
            })
    }

    /// What there is beside layers, documents and writable layers: the index, the copies of its records, interrupted
    /// downloads. Some dozens of system calls.
    ///
    /// # Errors
    /// What the file system says.
    pub fn overhead(&self) -> Result<Usage, Error> {
        let mut usage = Usage::default();
        for name in ["partial", "images", "init"] {
            let path = self.path(name);
            let dir = open_dir_path(&path).map_err(failed("open", &path))?;
            let tree = tree_usage(dir.as_fd()).map_err(failed("add up", &path))?;
            usage.bytes += tree.bytes;
            usage.inodes += tree.inodes;
        }
        let path = self.path("index.redb");
        let index = std::fs::metadata(&path).map_err(failed("look at", path))?;
        usage.bytes += std::os::unix::fs::MetadataExt::blocks(&index) * 512;
        usage.inodes += 1;
        Ok(usage)
    }

    /// What interrupted downloads take.
    ///
    /// # Errors
    /// What the file system says.
    pub fn partial_usage(&self) -> Result<Usage, Error> {
        let tree = tree_usage(self.shared.dirs.partial.as_fd())
            .map_err(failed("add up", self.path("partial")))?;
        Ok(Usage {
            bytes: tree.bytes,
            inodes: tree.inodes,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.shared.root.join(name)
    }
}

/// Makes a directory or sets the mode of one: modes are asserted again at every start.
fn make_dir(path: &Path, mode: u32) -> Result<(), Error> {
    let error = |e: io::Error| failed("create", path)(e);
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(rustix::io::Errno::NOENT) => std::fs::create_dir_all(path).map_err(error)?,
        Err(errno) => return Err(error(errno.into())),
    }
    let dir = open_dir_path(path).map_err(error)?;
    rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode)).map_err(|errno| error(errno.into()))
}

/// Opens a directory of a name that is ours.
fn open(dir: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    open_dir(dir.as_fd(), std::ffi::OsStr::new(name))
}

#[cfg(test)]
mod tests;
