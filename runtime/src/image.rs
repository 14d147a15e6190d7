//! Images: pull, load, list, remove, resolve.

use crate::model::{FsUsage, Image, ImageId, Kind, Kinded, RegistryAuth, ResolvedImage};

/// Why an image operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Anything.
    #[error("{message}")]
    Other {
        /// Kind.
        kind: Kind,
        /// Words.
        message: String,
    },
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Other { kind, .. } => *kind,
        }
    }
}

/// All images of this daemon.
#[derive(Debug)]
pub struct ImageManager {}

impl ImageManager {
    /// Fetches and unpacks an image; an identical pull under way is joined.
    ///
    /// # Errors
    /// See [`Error`]; an unreachable registry's text starts with `RegistryUnavailable` (row R062).
    pub async fn pull(
        &self,
        _reference: &str,
        _auth: Option<RegistryAuth>,
    ) -> Result<ImageId, Error> {
        todo!()
    }

    /// Everything in the store, from memory.
    pub fn list(&self) -> Vec<Image> {
        todo!()
    }

    /// Looks an image up by any name, digest, id or unique id prefix (row X058).
    ///
    /// # Errors
    /// A malformed reference; an absent image is `None`.
    pub fn find(&self, _reference: &str) -> Result<Option<Image>, Error> {
        todo!()
    }

    /// Removes an image with all its names; an absent one is fine.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove(&self, _reference: &str) -> Result<(), Error> {
        todo!()
    }

    /// What a container needs of an image.
    ///
    /// # Errors
    /// Not in the store, or malformed.
    pub fn resolve(&self, _reference: &str) -> Result<ResolvedImage, Error> {
        todo!()
    }

    /// Use of the image store, cheap.
    ///
    /// # Errors
    /// What the file system said.
    pub async fn fs_usage(&self) -> Result<FsUsage, Error> {
        todo!()
    }

    /// Use of the containers' writable layers, cheap.
    ///
    /// # Errors
    /// What the file system said.
    pub async fn container_fs_usage(&self) -> Result<FsUsage, Error> {
        todo!()
    }
}
