//! What the admin socket needs of the images, so that tests can stand in for them.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::api::{CheckReport, DiskUse, ImageDetails, ImageSummary, Pruned};
use crate::image::{self, ImageManager, PullStatus};
use crate::model::{Explanation, Image, Kind, Kinded, RegistryAuth, chain};

/// Why something could not be done: its kind and in words.
pub(super) type Failure = (Kind, String);

/// Something that goes on without its caller.
pub(super) type Work<T> = BoxFuture<'static, Result<T, Failure>>;

/// Writes an archive, blocking.
pub(super) type Writer = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// The images.
pub(super) trait Shelf: Send + Sync {
    fn list(&self) -> Vec<ImageSummary>;
    fn find(&self, reference: &str) -> Result<Option<Image>, Failure>;
    fn inspect(&self, reference: &str) -> Result<Option<ImageDetails>, Failure>;
    fn pulls(&self) -> Vec<PullStatus>;
    fn load(self: Arc<Self>, archive: Box<dyn Read + Send>) -> Work<Vec<Image>>;
    fn load_file(self: Arc<Self>, path: PathBuf) -> Work<Vec<Image>>;
    fn remove(self: Arc<Self>, reference: String) -> Work<()>;
    /// Gives the id.
    fn pull(self: Arc<Self>, reference: String, auth: Option<RegistryAuth>) -> Work<String>;
    fn export(self: Arc<Self>, references: Vec<String>) -> Work<Writer>;
    fn prune(self: Arc<Self>, all: bool) -> Work<Pruned>;
    fn check(self: Arc<Self>, quick: bool, repair: bool) -> Work<CheckReport>;
    fn disk_use(self: Arc<Self>) -> Work<DiskUse>;
    fn explain(self: Arc<Self>, reference: String, auth: Option<RegistryAuth>)
    -> Work<Explanation>;
}

fn failure(error: image::Error) -> Failure {
    (error.kind(), chain(&error))
}

impl Shelf for ImageManager {
    fn list(&self) -> Vec<ImageSummary> {
        self.summaries()
    }

    fn find(&self, reference: &str) -> Result<Option<Image>, Failure> {
        self.find(reference).map_err(failure)
    }

    fn inspect(&self, reference: &str) -> Result<Option<ImageDetails>, Failure> {
        self.inspect(reference).map_err(failure)
    }

    fn pulls(&self) -> Vec<PullStatus> {
        self.pulls()
    }

    fn load(self: Arc<Self>, archive: Box<dyn Read + Send>) -> Work<Vec<Image>> {
        async move { ImageManager::load(&self, archive).await.map_err(failure) }.boxed()
    }

    fn load_file(self: Arc<Self>, path: PathBuf) -> Work<Vec<Image>> {
        async move {
            let loaded = ImageManager::load_file(&self, &path).await;
            loaded.map_err(failure)
        }
        .boxed()
    }

    fn remove(self: Arc<Self>, reference: String) -> Work<()> {
        async move {
            let removed = ImageManager::remove(&self, &reference).await;
            removed.map_err(failure)
        }
        .boxed()
    }

    fn pull(self: Arc<Self>, reference: String, auth: Option<RegistryAuth>) -> Work<String> {
        async move {
            let pulled = ImageManager::pull(&self, &reference, auth).await;
            pulled.map(|id| id.to_string()).map_err(failure)
        }
        .boxed()
    }

    fn export(self: Arc<Self>, references: Vec<String>) -> Work<Writer> {
        async move {
            let export = ImageManager::export(&self, references).await;
            let export = export.map_err(failure)?;
            let write: Writer = Box::new(move |out| export.write(out));
            Ok(write)
        }
        .boxed()
    }

    fn prune(self: Arc<Self>, all: bool) -> Work<Pruned> {
        async move { ImageManager::prune(&self, all).await.map_err(failure) }.boxed()
    }

    fn check(self: Arc<Self>, quick: bool, repair: bool) -> Work<CheckReport> {
        async move {
            let checked = ImageManager::check(&self, quick, repair).await;
            checked.map_err(failure)
        }
        .boxed()
    }

    fn disk_use(self: Arc<Self>) -> Work<DiskUse> {
        async move { ImageManager::disk_use(&self).await.map_err(failure) }.boxed()
    }

    fn explain(
        self: Arc<Self>,
        reference: String,
        auth: Option<RegistryAuth>,
    ) -> Work<Explanation> {
        async move {
            let told = ImageManager::explain(&self, &reference, auth).await;
            told.map_err(failure)
        }
        .boxed()
    }
}
