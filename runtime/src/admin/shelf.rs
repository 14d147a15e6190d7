//! What the admin socket needs of the images, so that tests can stand in for them.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::image::{self, ImageManager};
use crate::model::{Explanation, Image, Kind, Kinded, RegistryAuth, chain};

/// Why something could not be done: its kind and in words.
pub(super) type Failure = (Kind, String);

/// The images.
pub(super) trait Shelf: Send + Sync {
    fn list(&self) -> Vec<Image>;
    fn find(&self, reference: &str) -> Result<Option<Image>, Failure>;
    fn load(
        self: Arc<Self>,
        archive: Box<dyn Read + Send>,
    ) -> BoxFuture<'static, Result<Vec<Image>, Failure>>;
    fn load_file(self: Arc<Self>, path: PathBuf)
    -> BoxFuture<'static, Result<Vec<Image>, Failure>>;
    fn remove(self: Arc<Self>, reference: String) -> BoxFuture<'static, Result<(), Failure>>;
    fn explain(
        self: Arc<Self>,
        reference: String,
        auth: Option<RegistryAuth>,
    ) -> BoxFuture<'static, Result<Explanation, Failure>>;
}

fn failure(error: image::Error) -> Failure {
    (error.kind(), chain(&error))
}

impl Shelf for ImageManager {
    fn list(&self) -> Vec<Image> {
        self.list()
    }

    fn find(&self, reference: &str) -> Result<Option<Image>, Failure> {
        self.find(reference).map_err(failure)
    }

    fn load(
        self: Arc<Self>,
        archive: Box<dyn Read + Send>,
    ) -> BoxFuture<'static, Result<Vec<Image>, Failure>> {
        async move { ImageManager::load(&self, archive).await.map_err(failure) }.boxed()
    }

    fn load_file(
        self: Arc<Self>,
        path: PathBuf,
    ) -> BoxFuture<'static, Result<Vec<Image>, Failure>> {
        async move {
            let loaded = ImageManager::load_file(&self, &path).await;
            loaded.map_err(failure)
        }
        .boxed()
    }

    fn remove(self: Arc<Self>, reference: String) -> BoxFuture<'static, Result<(), Failure>> {
        async move {
            let removed = ImageManager::remove(&self, &reference).await;
            removed.map_err(failure)
        }
        .boxed()
    }

    fn explain(
        self: Arc<Self>,
        reference: String,
        auth: Option<RegistryAuth>,
    ) -> BoxFuture<'static, Result<Explanation, Failure>> {
        async move {
            let told = ImageManager::explain(&self, &reference, auth).await;
            told.map_err(failure)
        }
        .boxed()
    }
}
