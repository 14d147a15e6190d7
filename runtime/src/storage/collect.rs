//! Removing what nobody needs, while others pull.
//!
//! Who looks at the store and means to use what is there first takes a [`Lease`] on it, whether or not it is
//! there; a collection decides and takes the layer out of sight under the same lock, so either the lease comes first
//! and the layer stays, or the layer is gone when the lease's owner looks.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::{Error, Shared, Storage, Thing};
use crate::model::{ChainId, Digest};

/// Layers and documents that are not collected while it lives, be they there already or not.
#[derive(Debug)]
pub struct Lease {
    shared: Arc<Shared>,
    layers: HashSet<ChainId>,
    blobs: HashSet<Digest>,
}

/// What a collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layers removed.
    pub layers: u64,
    /// Documents removed.
    pub blobs: u64,
    /// Layers and documents kept because the index was lost: they may be what it is to be rebuilt from.
    pub kept_for_rebuild: u64,
}

impl Lease {
    /// Holds a layer as well; tells whether it is there.
    pub fn hold_layer(&mut self, chain: ChainId) -> bool {
        let mut state = self.shared.state();
        if self.layers.insert(chain) {
            *state.held_layers.entry(chain).or_default() += 1;
        }
        state.layers.contains_key(&chain)
    }

    /// Holds a document as well; tells whether it is there.
    pub fn hold_blob(&mut self, digest: Digest) -> bool {
        let mut state = self.shared.state();
        if self.blobs.insert(digest) {
            *state.held_blobs.entry(digest).or_default() += 1;
        }
        state.blobs.contains_key(&digest)
    }
}

fn release<K: std::hash::Hash + Eq>(held: &mut std::collections::HashMap<K, usize>, key: &K) {
    if let Some(count) = held.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            held.remove(key);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        for chain in &self.layers {
            release(&mut state.held_layers, chain);
        }
        for digest in &self.blobs {
            release(&mut state.held_blobs, digest);
        }
    }
}

impl Storage {
    /// A lease on nothing yet.
    pub fn lease(&self) -> Lease {
        Lease {
            shared: Arc::clone(&self.shared),
            layers: HashSet::new(),
            blobs: HashSet::new(),
        }
    }

    /// Removes layers and documents that no image, no writable layer and no lease names, and downloads that nobody
    /// came back for.
    ///
    /// After the index was lost (see [`super::Index::lost_at`]) what was there before stays.
    ///
    /// # Errors
    /// The first failure, after everything has been tried.
    pub fn collect(&self) -> Result<Collected, Error> {
        let mut collected = Collected::default();
        let mut outcome = Ok(());
        for chain in self.layers() {
            match self.collect_layer(chain, &mut collected) {
                Ok(removed) => collected.layers += u64::from(removed),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        for digest in self.blobs() {
            match self.collect_blob(digest, &mut collected) {
                Ok(removed) => collected.blobs += u64::from(removed),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome = outcome.and(self.remove_discarded());
        self.sweep_partials();
        outcome.map(|()| collected)
    }

    pub(super) fn collect_layer(
        &self,
        chain: ChainId,
        collected: &mut Collected,
    ) -> Result<bool, Error> {
        if self.is_from_before_loss(self.shared.dirs.layers.as_fd(), &chain) {
            collected.kept_for_rebuild += 1;
            return Ok(false);
        }
        let claim = {
            let mut state = self.shared.state();
            let used = state.held_layers.contains_key(&chain)
                || state.snapshots.values().any(|used| used.contains(&chain))
                || self.shared.index.names_layer(&chain);
            if used {
                return Ok(false);
            }
            let Some(claim) = self.shared.claim_now(&mut state, Thing::Layer(chain)) else {
                return Ok(false);
            };
            if state.layers.remove(&chain).is_none() {
                drop(state);
                return Ok(false);
            }
            claim
        };
        let removed = self.remove_layer_files(&chain);
        crash_point!("remove_image.layer.after");
        drop(claim);
        removed.map(|()| true)
    }

    fn collect_blob(&self, digest: Digest, collected: &mut Collected) -> Result<bool, Error> {
        if self.is_from_before_loss(self.shared.dirs.blobs.as_fd(), &digest) {
            collected.kept_for_rebuild += 1;
            return Ok(false);
        }
        let claim = {
            let mut state = self.shared.state();
            if state.held_blobs.contains_key(&digest) || self.shared.index.names_blob(&digest) {
                return Ok(false);
            }
            let Some(claim) = self.shared.claim_now(&mut state, Thing::Blob(digest)) else {
                return Ok(false);
            };
            state.blobs.remove(&digest);
            claim
        };
        let removed = self.remove_blob_file(&digest);
        crash_point!("remove_image.document.after");
        drop(claim);
        removed.map(|()| true)
    }

    fn is_from_before_loss(&self, dir: std::os::fd::BorrowedFd<'_>, digest: &Digest) -> bool {
        let Some(lost) = self.shared.index.lost_at() else {
            return false;
        };
        // The rename that published it set its change time.
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::statat(dir, digest.hex(), flags).is_ok_and(|stat| stat.st_ctime <= lost)
    }
}
