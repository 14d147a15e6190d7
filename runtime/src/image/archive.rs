//! Archives of images: OCI layouts and what `docker save` writes.
//!
//! An archive is a stream, and what its blobs are is told at its end or in its middle. So it is spooled
//! first. The images are read from there one after the other, for an archive may list a thousand with large documents.

mod spool;

use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::sync::Arc;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, ImageManifestBuilder, MediaType};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::layers::Source;
use super::pull::{Names, Resolved, import};
use super::{Error, Inner, Reference, blocking, digest_of};
use crate::model::{Digest, Image};
use crate::registry::{Content, MAX_CONFIG, MAX_MANIFEST, choose, matches_host, parse};
use crate::storage::MAX_LAYERS;
pub(crate) use spool::Spool;

/// Images in an archive.
const MAX_IMAGES: usize = 1000;
/// Indexes within indexes that are followed.
const MAX_DEPTH: usize = 2;

/// An image that an archive lists, before its documents are read.
struct Listed {
    place: Place,
    names: Names,
}

/// Where an image is in the spool.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Place {
    /// A manifest, or an index with one.
    Document(Digest),
    /// Files of docker's `manifest.json`, by their numbers.
    Files { config: usize, layers: Vec<usize> },
}

/// One image of docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// Loads all images of an archive.
pub(crate) async fn load(
    inner: &Arc<Inner>,
    archive: impl Read + Send + 'static,
) -> Result<Vec<Image>, Error> {
    let row = inner.board.enter("image archive".to_owned());
    row.progress.set_source("archive");
    let shelf = inner.shelf.clone();
    let (spool, listed) = blocking(move || {
        let spool = Spool::read(&shelf, archive)?;
        let listed = spool.images()?;
        Ok::<_, Error>((Arc::new(spool), listed))
    })
    .await??;
    let mut images = Vec::with_capacity(listed.len());
    for Listed { place, names } in listed {
        let documents = Arc::clone(&spool);
        let (resolved, config) = blocking(move || documents.take(&place)).await??;
        let source = Source::Archive(Arc::clone(&spool));
        let id = import(inner, source, resolved, config, names, &row).await?;
        let catalog = inner.catalog();
        images.extend(catalog.get(&id).map(|entry| entry.image(&inner.pinned)));
    }
    // The spool's files are deleted where deleting may block.
    blocking(move || drop(spool)).await?;
    Ok(images)
}

fn bad(reason: impl Into<String>) -> Error {
    Error::Archive(reason.into())
}

/// The images of an archive, each once.
#[derive(Default)]
struct List {
    images: Vec<Listed>,
    known: HashMap<Place, usize>,
}

impl List {
    /// The names of an image, which is put on the list if it is not there.
    fn names(&mut self, place: Place) -> Option<&mut Names> {
        let next = self.images.len();
        let number = *self.known.entry(place.clone()).or_insert(next);
        if number == next {
            let names = Names::default();
            self.images.push(Listed { place, names });
        }
        self.images.get_mut(number).map(|image| &mut image.names)
    }
}

impl Spool {
    fn images(&self) -> Result<Vec<Listed>, Error> {
        let saved: Vec<Saved> = match self.named("manifest.json")? {
            None => Vec::new(),
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| bad(format!("manifest.json is malformed: {error}")))?,
        };
        if saved.len() > MAX_IMAGES {
            return Err(bad(format!("more than {MAX_IMAGES} images")));
        }
        // Current archives of docker are both; then the layout is the better one, for it has digests.
        let list = match self.named("index.json")? {
            Some(bytes) => self.layout(&bytes, &saved)?,
            None => self.saved(&saved)?,
        };
        if list.images.is_empty() {
            return Err(bad(
                "it holds no images for this machine: neither index.json nor manifest.json names any",
            ));
        }
        Ok(list.images)
    }

    fn named(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let number = self.find(name);
        let bytes = number.map(|number| self.bytes(number, MAX_MANIFEST, name));
        bytes.transpose()
    }

    fn layout(&self, bytes: &[u8], saved: &[Saved]) -> Result<List, Error> {
        let index: ImageIndex = serde_json::from_slice(bytes)
            .map_err(|error| bad(format!("index.json is malformed: {error}")))?;
        if index.manifests().len() > MAX_IMAGES {
            return Err(bad(format!("more than {MAX_IMAGES} images")));
        }
        let mut tagged: HashMap<Digest, Vec<&Saved>> = HashMap::new();
        for image in saved {
            let config = self.find(&image.config);
            if let Some(config) = config.and_then(|number| self.about(number)) {
                tagged.entry(config.digest).or_default().push(image);
            }
        }
        let mut list = List::default();
        for descriptor in index.manifests() {
            // An archive for several machines: the others' images are none of ours, nor are attestations.
            let stranger = descriptor.platform().as_ref().is_some_and(|platform| {
                !matches_host(
                    platform.os(),
                    platform.architecture(),
                    platform.variant().as_deref(),
                )
            });
            if stranger {
                continue;
            }
            let digest = digest_of(descriptor)?;
            let place = Place::Document(digest);
            let is_new = !list.known.contains_key(&place);
            let Some(names) = list.names(place) else {
                continue;
            };
            if is_new {
                // Before the first image is loaded it is known that the documents of all of them are there.
                let id = digest_of(self.resolve(digest)?.manifest.config())?;
                self.number(&id)?;
                // An image under several manifests gets its tags once.
                for image in tagged.remove(&id).unwrap_or_default() {
                    names.tags.extend(tags(image)?);
                }
            }
            if let Some(reference) = annotated(descriptor) {
                names.digests.insert(reference.with_digest(digest));
                names.tags.extend(reference.tagged());
            }
        }
        Ok(list)
    }

    fn saved(&self, saved: &[Saved]) -> Result<List, Error> {
        let find = |name: &String| {
            let number = self.find(name);
            number.ok_or_else(|| bad(format!("{name:?} is not in it")))
        };
        let mut list = List::default();
        for image in saved {
            if image.layers.len() > MAX_LAYERS {
                return Err(bad(format!(
                    "an image has more than {MAX_LAYERS} layers, which is all that overlayfs can stack"
                )));
            }
            let layers = image.layers.iter().map(find);
            let place = Place::Files {
                config: find(&image.config)?,
                layers: layers.collect::<Result<_, _>>()?,
            };
            if let Some(names) = list.names(place) {
                names.tags.extend(tags(image)?);
            }
        }
        Ok(list)
    }

    /// The documents of an image: all but the configuration, and that.
    fn take(&self, place: &Place) -> Result<(Resolved, Vec<u8>), Error> {
        let (resolved, config) = match place {
            Place::Document(digest) => {
                let resolved = self.resolve(*digest)?;
                let config = self.number(&digest_of(resolved.manifest.config())?)?;
                (resolved, config)
            }
            Place::Files { config, layers } => (self.describe(*config, layers)?, *config),
        };
        Ok((resolved, self.bytes(config, MAX_CONFIG, "a configuration")?))
    }

    fn resolve(&self, mut digest: Digest) -> Result<Resolved, Error> {
        let mut documents = Vec::new();
        for _ in 0..=MAX_DEPTH {
            let bytes = self.bytes(self.number(&digest)?, MAX_MANIFEST, digest)?;
            let content = parse(&bytes, None);
            documents.push((digest, bytes));
            match content.map_err(|reason| bad(format!("{digest}: {reason}")))? {
                Content::Manifest(manifest) => {
                    return Ok(Resolved {
                        documents,
                        manifest: *manifest,
                        host: String::new(),
                    });
                }
                Content::Index(index) => {
                    let child = choose(&index);
                    digest = digest_of(child.map_err(|reason| Error::Index { digest, reason })?)?;
                }
            }
        }
        let reason = format!("indexes are nested more than {MAX_DEPTH} deep");
        Err(Error::Index { digest, reason })
    }

    /// An image without a manifest gets one: of the layers as they are.
    fn describe(&self, config: usize, layers: &[usize]) -> Result<Resolved, Error> {
        let describe = |number: usize, kind| {
            let file = self.about(number);
            let file = file.ok_or_else(|| bad(format!("file {number} is not in it")))?;
            let digest = file.digest.to_string().parse::<oci_spec::image::Digest>();
            digest
                .map(|digest| Descriptor::new(kind, file.size, digest))
                .map_err(|error| bad(error.to_string()))
        };
        let layers = layers
            .iter()
            .map(|number| describe(*number, MediaType::ImageLayer))
            .collect::<Result<Vec<_>, _>>()?;
        let manifest: ImageManifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(describe(config, MediaType::ImageConfig)?)
            .layers(layers)
            .build()
            .map_err(|error| bad(error.to_string()))?;
        let bytes = serde_json::to_vec(&manifest).map_err(|error| bad(error.to_string()))?;
        let digest = Digest::from_bytes(Sha256::digest(&bytes).into());
        Ok(Resolved {
            documents: vec![(digest, bytes)],
            manifest,
            host: String::new(),
        })
    }
}

fn tags(image: &Saved) -> Result<BTreeSet<String>, Error> {
    let mut tags = BTreeSet::new();
    for text in image.repo_tags.iter().flatten() {
        let reference: Reference = text.parse()?;
        tags.extend(reference.tagged());
    }
    Ok(tags)
}

/// Names that a layout gives an image. A bare tag is not one: it says nothing about the repository.
fn annotated(descriptor: &Descriptor) -> Option<Reference> {
    let annotations = descriptor.annotations().as_ref()?;
    [
        "io.containerd.image.name",
        "org.opencontainers.image.ref.name",
    ]
    .iter()
    .filter_map(|key| annotations.get(*key))
    .find_map(|text| text.contains([':', '/']).then(|| text.parse().ok())?)
}
