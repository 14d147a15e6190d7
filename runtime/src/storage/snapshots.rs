//! Writable layers of containers.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;

use super::volumes::VOLUMES;
use super::{Collected, Error, Storage, Usage, failed, open};
use crate::id::ContainerId;
use crate::model::ChainId;
use crate::sys::fs::{names, read_limited, remove_tree, tree_usage, unlock_tree, write_atomic};
use crate::sys::mount::{OverlayLayers, detached_overlay};

const CHAIN: &str = "chain";

impl Storage {
    /// Makes the writable layer of a container on top of an image's layers (lowest first, may be empty),
    /// and keeps them from being collected as long as it exists.
    ///
    /// # Errors
    /// [`Error::NoLayer`], [`Error::SnapshotExists`], or what the file system says; nothing is left then.
    pub fn prepare(&self, id: &ContainerId, chain: &[ChainId]) -> Result<(), Error> {
        {
            // From here on the layers stay.
            let mut state = self.shared.state();
            if let Some(absent) = chain.iter().find(|id| !state.layers.contains_key(*id)) {
                return Err(Error::NoLayer(*absent));
            }
            if state.snapshots.contains_key(id) {
                return Err(Error::SnapshotExists(id.clone()));
            }
            state.snapshots.insert(id.clone(), chain.to_vec());
        }
        self.make_snapshot(id, chain).inspect_err(|_| {
            let dir = self.shared.dirs.snapshots.as_fd();
            if let Err(error) = remove_tree(dir, id.as_str()) {
                tracing::warn!(container.id = id.as_str(), %error, "cannot remove an unfinished writable layer");
            }
            self.shared.state().snapshots.remove(id);
        })
    }

    fn make_snapshot(&self, id: &ContainerId, chain: &[ChainId]) -> Result<(), Error> {
        let top = self.open_layers(chain)?.into_iter().next();
        let make = || -> io::Result<()> {
            let snapshots = &self.shared.dirs.snapshots;
            rustix::fs::mkdirat(snapshots, id.as_str(), Mode::RWXU)?;
            crash_point!("create_container.layer_directory.after");
            let outer = open(snapshots, id.as_str())?;
            let text: Vec<String> = chain.iter().map(ToString::to_string).collect();
            let mode = Mode::RUSR | Mode::WUSR;
            write_atomic(
                outer.as_fd(),
                CHAIN,
                text.join("\n").as_bytes(),
                mode,
                false,
            )?;
            crash_point!("create_container.layer_chain.after");
            rustix::fs::mkdirat(&outer, "work", Mode::RWXU)?;
            rustix::fs::mkdirat(&outer, "fs", Mode::RWXU)?;
            let dir = open(&outer, "fs")?;
            if let Some(top) = top {
                let stat = rustix::fs::fstat(&top)?;
                let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
                rustix::fs::fchown(&dir, Some(uid), Some(gid))?;
            }
            Ok(rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o755))?)
        };
        make().map_err(failed("create", self.path("snapshots").join(id.as_str())))
    }

    /// The root of a container that was prepared, as a mount that is attached nowhere: whoever is given the
    /// descriptor can attach it in a mount namespace. Like `O_PATH` it is a place, not a readable directory. A
    /// second mount of the same container while the first is in use is undefined behaviour of overlayfs: do not.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`], [`Error::NoLayer`], [`Error::TooManyLayers`], or what the kernel says.
    pub fn mount(&self, id: &ContainerId, chain: &[ChainId]) -> Result<OwnedFd, Error> {
        let path = self.path("snapshots").join(id.as_str());
        let image = self.open_layers(chain)?;
        let dirs = || -> io::Result<(OwnedFd, OwnedFd)> {
            let outer = open(&self.shared.dirs.snapshots, id.as_str())?;
            Ok((open(&outer, "fs")?, open(&outer, "work")?))
        };
        let (upper, work) = dirs().map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => Error::NoSnapshot(id.clone()),
            _ => failed("open", &path)(error),
        })?;
        let mut lower: Vec<BorrowedFd<'_>> = vec![self.shared.init.as_fd()];
        lower.extend(image.iter().map(AsFd::as_fd));
        let layers = OverlayLayers {
            lower: &lower,
            upper: Some((upper.as_fd(), work.as_fd())),
        };
        detached_overlay(self.shared.method, &layers, &self.path("staging"))
            .map_err(failed("mount", path))
    }

    /// Removes the writable layer of a container, and the layers that only it still needed; an absent one is
    /// fine. Its root must not be mounted anymore.
    ///
    /// # Errors
    /// What the file system says; what could not be removed is listed by [`Storage::snapshots`] still.
    pub fn remove_snapshot(&self, id: &ContainerId) -> Result<(), Error> {
        self.remove_files(id)
            .map_err(failed("remove", self.path("snapshots").join(id.as_str())))?;
        crash_point!("remove_container.layer_files.after");
        let chain = self.shared.state().snapshots.remove(id);
        for layer in chain.unwrap_or_default() {
            if let Err(error) = self.collect_layer(layer, &mut Collected::default()) {
                tracing::warn!(container.id = id.as_str(), %layer, %error, "a layer that nobody needs stays until the next collection");
            }
        }
        Ok(())
    }

    /// Also what a privileged container has made immutable.
    fn remove_files(&self, id: &ContainerId) -> io::Result<()> {
        let dir = self.shared.dirs.snapshots.as_fd();
        match remove_tree(dir, id.as_str()) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                unlock_tree(dir, id.as_str())?;
                remove_tree(dir, id.as_str())
            }
            removed => removed,
        }
    }

    /// The containers that have a writable layer, also those that nobody knows anymore.
    pub fn snapshots(&self) -> Vec<ContainerId> {
        self.shared.state().snapshots.keys().cloned().collect()
    }

    /// What a container has written, and what its image's volumes hold. This walks all of it: not for the way of a
    /// request, and no more often than needed.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`], or what the file system says.
    pub fn snapshot_usage(&self, id: &ContainerId) -> Result<Usage, Error> {
        let layer = self.usage_of(id, &format!("{}/fs", id.as_str()))?;
        match self.usage_of(id, &format!("{}/{VOLUMES}", id.as_str())) {
            Ok(volumes) => Ok(Usage {
                bytes: layer.bytes + volumes.bytes,
                inodes: layer.inodes + volumes.inodes,
            }),
            Err(Error::NoSnapshot(_)) => Ok(layer),
            Err(error) => Err(error),
        }
    }

    /// All that a container's writable layer takes, with what overlayfs and Berth keep beside it. Walks it as well.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`], or what the file system says.
    pub fn snapshot_footprint(&self, id: &ContainerId) -> Result<Usage, Error> {
        self.usage_of(id, id.as_str())
    }

    /// The layers below each writable layer.
    pub fn used_chains(&self) -> Vec<Vec<ChainId>> {
        self.shared.state().snapshots.values().cloned().collect()
    }

    fn usage_of(&self, id: &ContainerId, name: &str) -> Result<Usage, Error> {
        let path = self.path("snapshots").join(name);
        let dir = match open(&self.shared.dirs.snapshots, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NoSnapshot(id.clone()));
            }
            dir => dir.map_err(failed("open", &path))?,
        };
        let usage = tree_usage(dir.as_fd()).map_err(failed("add up", path))?;
        Ok(Usage {
            bytes: usage.bytes,
            inodes: usage.inodes,
        })
    }

    pub(super) fn load_snapshots(&self) -> Result<HashMap<ContainerId, Vec<ChainId>>, Error> {
        let path = self.path("snapshots");
        let dir = &self.shared.dirs.snapshots;
        let mut snapshots = HashMap::new();
        for name in names(dir.as_fd()).map_err(failed("list", &path))? {
            let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else {
                tracing::warn!(
                    ?name,
                    "ignoring something in snapshots that is no container's"
                );
                continue;
            };
            let chain = read_chain(dir, &name).unwrap_or_else(|| {
                // Torn by a power failure, which no container survived.
                tracing::warn!(?name, "writable layer without a list of layers");
                Vec::new()
            });
            snapshots.insert(id, chain);
        }
        Ok(snapshots)
    }
}

fn read_chain(dir: &OwnedFd, name: &OsStr) -> Option<Vec<ChainId>> {
    let outer = crate::sys::fs::open_dir(dir.as_fd(), name).ok()?;
    let text = read_limited(outer.as_fd(), OsStr::new(CHAIN), 64 * 1024).ok()?;
    let lines = std::str::from_utf8(&text).ok()?.lines();
    lines.map(|line| line.parse().ok()).collect()
}
