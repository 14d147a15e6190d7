//! Unpacked layers.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::recipe::{Compare, Recorder, Replay};
use super::{Error, MAX_LAYERS, Shared, Storage, Thing, Usage, failed, open};
use crate::model::{ChainId, Digest};
use crate::sys::fs::{names, read_limited, remove_tree, sync_dir, unique_name, write_atomic};
use crate::sys::mount::{OverlayLayers, detached_overlay};

const META: &str = "meta.json";
const RECIPE: &str = "recipe";
/// Ends the name of a damaged layer that containers still use.
const DAMAGED: &str = ".damaged";
const VERSION: u32 = 1;

/// What is known about a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// Digest of the blob it came from.
    pub blob: Digest,
    /// Size of that blob.
    pub blob_size: u64,
    /// Allocated bytes, as counted while it was applied.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
    /// Bytes of the uncompressed archive, if it can be made again.
    #[serde(default)]
    pub archive: Option<u64>,
    /// Bytes of what it takes to make it.
    #[serde(default)]
    pub recipe: u64,
}

/// `meta.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Meta {
    version: u32,
    chain: ChainId,
    #[serde(flatten)]
    info: LayerInfo,
    /// It hides everything below; overlayfs does not look for that mark on a layer's root.
    #[serde(default)]
    opaque: bool,
}

impl Meta {
    pub(super) fn usage(&self) -> Usage {
        // The directory around it, meta.json and the recipe.
        Usage {
            bytes: self.info.bytes + 2 * 4096 + self.info.recipe.next_multiple_of(4096),
            inodes: self.info.inodes + 3,
        }
    }
}

/// A directory to apply a layer to. Removed when dropped, unless it was published.
#[derive(Debug)]
pub struct StagedLayer {
    shared: Arc<Shared>,
    name: String,
    /// The directory in staging; `fs` in it.
    outer: OwnedFd,
    dir: OwnedFd,
    published: bool,
}

impl StagedLayer {
    /// The layer's root directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Begins the recipe of the layer: what the archive has besides the content of files. It is to be fed
    /// every byte of the uncompressed archive.
    ///
    /// # Errors
    /// What the file system says.
    pub fn recorder(&self) -> Result<Recorder, Error> {
        let path = || self.shared.root.join("staging").join(&self.name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.outer, RECIPE, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| failed("create", path().join(RECIPE))(error))?;
        Recorder::new(File::from(file)).map_err(failed("write", path().join(RECIPE)))
    }

    /// What its files take, counted now.
    ///
    /// # Errors
    /// What the file system says.
    pub fn count(&self) -> Result<Usage, Error> {
        let path = || self.shared.root.join("staging").join(&self.name);
        let dir = open(&self.outer, "fs").map_err(|error| failed("open", path())(error))?;
        super::verify::count(dir).map_err(failed("add up", path()))
    }

    /// Writes out what was applied so far. Publishing does that as well; who calls this before waiting for
    /// another layer has less to wait for afterwards.
    ///
    /// # Errors
    /// What syncfs says: the disk is full or broken.
    pub fn sync(&self) -> Result<(), Error> {
        rustix::fs::syncfs(&self.dir).map_err(failed("sync", self.shared.root.join("staging")))
    }
}

impl Drop for StagedLayer {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        if let Err(error) = remove_tree(self.shared.dirs.staging.as_fd(), &self.name) {
            tracing::warn!(name = self.name, %error, "cannot remove an unfinished layer");
        }
    }
}

impl Storage {
    /// Whether the layer is there, whole.
    pub fn has_layer(&self, chain: &ChainId) -> bool {
        self.shared.state().layers.contains_key(chain)
    }

    /// What is known about a layer; none if it is not there.
    pub fn layer_info(&self, chain: &ChainId) -> Option<LayerInfo> {
        let state = self.shared.state();
        state.layers.get(chain).map(|meta| meta.info.clone())
    }

    /// Bytes that a layer takes with all that is kept beside it; 0 if it is not there.
    pub fn layer_usage(&self, chain: &ChainId) -> u64 {
        let state = self.shared.state();
        state.layers.get(chain).map_or(0, |meta| meta.usage().bytes)
    }

    /// All layers.
    pub fn layers(&self) -> Vec<ChainId> {
        self.shared.state().layers.keys().copied().collect()
    }

    /// A new directory to apply a layer to.
    ///
    /// # Errors
    /// What the file system says.
    pub fn stage_layer(&self) -> Result<StagedLayer, Error> {
        let name = unique_name("layer-");
        let staging = &self.shared.dirs.staging;
        let make = || -> io::Result<(OwnedFd, OwnedFd)> {
            rustix::fs::mkdirat(staging, &name, Mode::RWXU)?;
            let outer = open(staging, &name)?;
            rustix::fs::mkdirat(&outer, "fs", Mode::RWXU)?;
            let dir = open(&outer, "fs")?;
            Ok((outer, dir))
        };
        let made = make().inspect_err(|_| {
            // What there is of it is swept at the next start if it cannot be removed now.
            let _ = remove_tree(staging.as_fd(), &name);
        });
        let (outer, dir) = made.map_err(failed("create", self.path("staging").join(&name)))?;
        crash_point!("pull_image.staged.after");
        Ok(StagedLayer {
            shared: Arc::clone(&self.shared),
            name,
            outer,
            dir,
            published: false,
        })
    }

    /// Makes a layer visible under its chain id, durably. If somebody was faster, theirs stays, and that is fine.
    ///
    /// # Errors
    /// What the file system says; the layer is not there then.
    pub fn publish_layer(
        &self,
        mut staged: StagedLayer,
        chain: &ChainId,
        info: LayerInfo,
    ) -> Result<(), Error> {
        let claim = self.shared.claim(Thing::Layer(*chain));
        if self.has_layer(chain) {
            return Ok(());
        }
        let hex = chain.hex();
        let path = self.path("layers").join(&hex);
        let meta = Meta {
            version: VERSION,
            chain: *chain,
            info,
            opaque: is_opaque(&staged.dir),
        };
        let text =
            serde_json::to_vec(&meta).map_err(|e| failed("write", &path)(io::Error::from(e)))?;
        write_atomic(
            staged.outer.as_fd(),
            META,
            &text,
            Mode::RUSR | Mode::WUSR,
            false,
        )
        .map_err(failed("write", path.join(META)))?;
        crash_point!("pull_image.meta.after");
        staged.sync()?;
        self.rename_into_place(&staged.name, &hex)
            .map_err(failed("publish", &path))?;
        staged.published = true;
        crash_point!("pull_image.layer.after");
        sync_dir(self.shared.dirs.layers.as_fd()).map_err(failed("sync", &path))?;
        self.shared.state().layers.insert(*chain, meta);
        drop(claim);
        Ok(())
    }

    fn rename_into_place(&self, name: &str, hex: &str) -> io::Result<()> {
        let dirs = &self.shared.dirs;
        let rename = || rustix::fs::renameat(&dirs.staging, name, &dirs.layers, hex);
        match rename() {
            // What is in the way is no layer, or it would be known: the rest of one that could not be removed.
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {
                remove_tree(dirs.layers.as_fd(), hex)?;
                Ok(rename()?)
            }
            result => Ok(result?),
        }
    }

    /// Removes a layer, whoever needs it; an absent one is fine. [`Storage::collect`] removes those that nobody needs.
    ///
    /// # Errors
    /// What the file system says. The layer is not there anymore nevertheless, its files are removed at the next start.
    pub fn remove_layer(&self, chain: &ChainId) -> Result<(), Error> {
        let claim = self.shared.claim(Thing::Layer(*chain));
        self.shared.state().layers.remove(chain);
        let removed = self.remove_layer_files(chain);
        drop(claim);
        removed
    }

    /// For a layer that is claimed and no longer in the state.
    pub(super) fn remove_layer_files(&self, chain: &ChainId) -> Result<(), Error> {
        let hex = chain.hex();
        let path = self.path("layers").join(&hex);
        let dirs = &self.shared.dirs;
        // Out of sight first: a crash while it is being deleted leaves something for the sweep.
        let name = unique_name("removed-");
        match rustix::fs::renameat(&dirs.layers, &hex, &dirs.staging, &name) {
            Ok(()) => {
                // A power failure must not bring back the name without all of the files.
                sync_dir(dirs.layers.as_fd()).map_err(failed("sync", self.path("layers")))?;
                crash_point!("remove_image.layer_away.after");
                remove_tree(dirs.staging.as_fd(), &name)
                    .map_err(failed("remove", self.path("staging").join(&name)))
            }
            Err(Errno::NOENT) => Ok(()),
            // With not a byte free there may be no room for the new name.
            Err(Errno::NOSPC | Errno::DQUOT) => {
                let remove = || -> io::Result<()> {
                    let outer = open(&dirs.layers, &hex)?;
                    remove_tree(outer.as_fd(), META)?;
                    sync_dir(outer.as_fd())?;
                    remove_tree(dirs.layers.as_fd(), &hex)
                };
                remove().map_err(failed("remove", path))
            }
            Err(error) => Err(failed("move away", path)(error)),
        }
    }

    /// Reads what is known of all layers. One without a good `meta.json` is moved to where it is swept.
    pub(super) fn load_layers(&self) -> Result<HashMap<ChainId, Meta>, Error> {
        let path = self.path("layers");
        let dirs = &self.shared.dirs;
        let mut layers = HashMap::new();
        for name in names(dirs.layers.as_fd()).map_err(failed("list", &path))? {
            if let Some(meta) = read_meta(&dirs.layers, &name) {
                layers.insert(meta.chain, meta);
                continue;
            }
            if damaged_chain(&name).is_some_and(|chain| self.is_below_container(&chain)) {
                continue;
            }
            tracing::warn!(?name, "removing an incomplete or damaged layer");
            let aside = unique_name("damaged-");
            let moved = rustix::fs::renameat(&dirs.layers, &name, &dirs.staging, &aside);
            // It is as good as absent where it is; one that is pulled again takes its place.
            if let Err(error) = moved {
                tracing::warn!(?name, %error, "it cannot be moved away and stays");
            }
        }
        Ok(layers)
    }

    /// Takes a layer that is not what it should be out of use: it is as absent as if it had never been
    /// there, and the next pull fetches it. Containers that run on it keep its files until they are removed.
    ///
    /// # Errors
    /// What the file system says.
    pub fn discard_layer(&self, chain: &ChainId) -> Result<(), Error> {
        if !self.is_below_container(chain) {
            return self.remove_layer(chain);
        }
        let claim = self.shared.claim(Thing::Layer(*chain));
        self.shared.state().layers.remove(chain);
        let (hex, dirs) = (chain.hex(), &self.shared.dirs);
        let aside = unique_name(&format!("{hex}{DAMAGED}-"));
        let moved = match rustix::fs::renameat(&dirs.layers, &hex, &dirs.layers, &aside) {
            Ok(()) => sync_dir(dirs.layers.as_fd()),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        };
        drop(claim);
        moved.map_err(failed("move away", self.path("layers").join(hex)))
    }

    /// Deletes damaged layers that no container runs on any more.
    pub(super) fn remove_discarded(&self) -> Result<(), Error> {
        let path = self.path("layers");
        let dir = self.shared.dirs.layers.as_fd();
        for name in names(dir).map_err(failed("list", &path))? {
            let unused = damaged_chain(&name).is_some_and(|chain| !self.is_below_container(&chain));
            if unused {
                remove_tree(dir, &name).map_err(failed("remove", path.join(&name)))?;
            }
        }
        Ok(())
    }

    fn is_below_container(&self, chain: &ChainId) -> bool {
        let state = self.shared.state();
        state.snapshots.values().any(|used| used.contains(chain))
    }

    /// The archive of a layer, made again from its recipe and its files.
    ///
    /// # Errors
    /// [`Error::NoLayer`], [`Error::NoRecipe`], or what the file system says.
    pub fn layer_archive(&self, chain: &ChainId) -> Result<Replay, Error> {
        self.replay(chain, Compare::Content)
    }

    pub(super) fn replay(&self, chain: &ChainId, compare: Compare) -> Result<Replay, Error> {
        let info = self.layer_info(chain).ok_or(Error::NoLayer(*chain))?;
        if info.archive.is_none() {
            return Err(Error::NoRecipe(*chain));
        }
        let open = || -> io::Result<Replay> {
            let outer = open(&self.shared.dirs.layers, &chain.hex())?;
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let recipe = rustix::fs::openat(&outer, RECIPE, flags, Mode::empty())?;
            Replay::new(File::from(recipe), self::open(&outer, "fs")?, compare)
        };
        open().map_err(failed("open", self.path("layers").join(chain.hex())))
    }

    /// Opens the root directories of layers, topmost first, down to one that hides all below.
    pub(super) fn open_layers(&self, chain: &[ChainId]) -> Result<Vec<OwnedFd>, Error> {
        if chain.len() > MAX_LAYERS {
            return Err(Error::TooManyLayers(chain.len()));
        }
        let mut used = Vec::with_capacity(chain.len());
        {
            let state = self.shared.state();
            for id in chain {
                if !state.layers.contains_key(id) {
                    return Err(Error::NoLayer(*id));
                }
            }
            for id in chain.iter().rev() {
                used.push(*id);
                if state.layers.get(id).is_some_and(|meta| meta.opaque) {
                    break;
                }
            }
        }
        let open_one = |id: ChainId| {
            let name = format!("{}/fs", id.hex());
            open(&self.shared.dirs.layers, &name)
                .map_err(failed("open", self.path("layers").join(name)))
        };
        used.into_iter().map(open_one).collect()
    }

    /// The layers of `chain`, lowest first, seen as one, read-only and attached nowhere: what the layer above them
    /// is finished with. None for no layers.
    ///
    /// # Errors
    /// [`Error::NoLayer`], or what the kernel says.
    pub fn view(&self, chain: &[ChainId]) -> Result<Option<OwnedFd>, Error> {
        if chain.is_empty() {
            return Ok(None);
        }
        let dirs = self.open_layers(chain)?;
        let mut lower: Vec<BorrowedFd<'_>> = dirs.iter().map(AsFd::as_fd).collect();
        // An overlay without an upper wants two.
        lower.push(self.shared.empty.as_fd());
        let layers = OverlayLayers {
            lower: &lower,
            upper: None,
        };
        let scratch = self.path("staging");
        detached_overlay(self.shared.method, &layers, &scratch)
            .map(Some)
            .map_err(failed("stack the layers in", self.path("layers")))
    }
}

/// The chain id of a layer that was found damaged.
fn damaged_chain(name: &OsStr) -> Option<ChainId> {
    let (hex, _) = name.to_str()?.split_once(DAMAGED)?;
    format!("sha256:{hex}").parse().ok()
}

pub(super) fn read_meta(layers: &OwnedFd, name: &OsStr) -> Option<Meta> {
    let chain: ChainId = format!("sha256:{}", name.to_str()?).parse().ok()?;
    let dir = crate::sys::fs::open_dir(layers.as_fd(), name).ok()?;
    rustix::fs::statat(&dir, "fs", AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let text = read_limited(dir.as_fd(), OsStr::new(META), 64 * 1024).ok()?;
    let meta: Meta = serde_json::from_slice(&text).ok()?;
    (meta.version == VERSION && meta.chain == chain).then_some(meta)
}

fn is_opaque(dir: &OwnedFd) -> bool {
    let mut value = [0; 1];
    let read = rustix::fs::fgetxattr(dir, "trusted.overlay.opaque", &mut value[..]);
    read.is_ok() && value == *b"y"
}
