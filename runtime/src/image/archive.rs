//! Archives of images: OCI layouts and what `docker save` writes.
//!
//! An archive is a stream, and what its blobs are is told at its end or in its middle. So it is spooled
//! first. The images are read from there one after the other, for an archive may list a thousand with large documents.

mod spool;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::sync::Arc;

use oci_spec::image::{Descriptor, ImageManifestBuilder, MediaType};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::layers::Source;
use super::pull::{Names, Resolved, import};
use super::{Error, Inner, Reference, blocking, digest_of};
use crate::json;
use crate::model::{Digest, Image};
use crate::registry::{
    Content, Entry, MAX_CONFIG, MAX_MANIFEST, Manifest, Platform, Search, Step, ToldBy, parse,
};
use crate::storage::MAX_LAYERS;
pub(crate) use spool::Spool;

/// Images in an archive.
const MAX_IMAGES: usize = 1000;

/// An image that an archive lists, before its documents are read.
struct Listed {
    place: Place,
    /// Who says that it is for this machine.
    told_by: ToldBy,
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
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// Loads all images of an archive. Each is told with the names that it has there, whatever it was called before.
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
    for image in listed {
        let documents = Arc::clone(&spool);
        let Listed {
            place,
            told_by,
            names,
        } = image;
        let (resolved, config) = blocking(move || documents.take(&place, told_by)).await??;
        let source = Source::Archive(Arc::clone(&spool));
        let (tags, digests) = (names.tags.clone(), names.digests.clone());
        let id = import(inner, source, resolved, config, names, &row).await?;
        let catalog = inner.catalog();
        images.extend(catalog.get(&id).map(|entry| Image {
            repo_tags: tags.into_iter().collect(),
            repo_digests: digests.into_iter().collect(),
            ..entry.image(&inner.pinned)
        }));
    }
    // The spool's files are deleted where deleting may block.
    blocking(move || drop(spool)).await?;
    Ok(images)
}

fn bad(reason: impl Into<String>) -> Error {
    Error::Archive(reason.into())
}

enum Found {
    Document(Digest),
    Image(Box<Manifest>),
}

/// Why the way from a document to an image ended.
enum End {
    /// It is not for this machine, or no image.
    NoImage(String),
    Broken(Error),
}

impl From<Error> for End {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}

/// The images of an archive, each once.
#[derive(Default)]
struct List {
    images: Vec<Listed>,
    known: HashMap<Place, usize>,
    /// What is no image for this machine, and why: signatures and attestations stand beside the images that they are about.
    passed: BTreeMap<Digest, String>,
    /// What is wrong with an entry that names no document.
    odd: Option<String>,
}

impl List {
    /// The names of an image, which is put on the list if it is not there.
    fn names(&mut self, place: Place, told_by: ToldBy) -> Option<&mut Names> {
        let next = self.images.len();
        let number = *self.known.entry(place.clone()).or_insert(next);
        if number == next {
            let names = Names::default();
            self.images.push(Listed {
                place,
                told_by,
                names,
            });
        }
        self.images.get_mut(number).map(|image| &mut image.names)
    }
}

impl Spool {
    fn images(&self) -> Result<Vec<Listed>, Error> {
        let saved: Vec<Saved> = match self.named("manifest.json")? {
            None => Vec::new(),
            Some(bytes) => json::from_slice(&bytes)
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
            let reasons = list.passed.into_iter().next();
            let reason = reasons.map(|(digest, reason)| format!("{digest}: {reason}"));
            return Err(bad(reason.or(list.odd).unwrap_or_else(|| {
                "it holds no images for this machine: neither index.json nor manifest.json names any"
                    .to_owned()
            })));
        }
        Ok(list.images)
    }

    fn named(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let number = self.find(name);
        let bytes = number.map(|number| self.bytes(number, MAX_MANIFEST, name));
        bytes.transpose()
    }

    fn layout(&self, bytes: &[u8], saved: &[Saved]) -> Result<List, Error> {
        let index = match parse(bytes, None) {
            Ok(Content::Index(index)) => index,
            Ok(other) => return Err(bad(format!("index.json is a {}", other.kind()))),
            Err(reason) => return Err(bad(format!("index.json is malformed: {reason}"))),
        };
        if index.entries().len() > MAX_IMAGES {
            return Err(bad(format!("more than {MAX_IMAGES} images")));
        }
        let mut tagged = self.by_configuration(saved);
        let mut list = List::default();
        for entry in index.entries() {
            // An archive for several machines: the others' images are none of ours, nor are attestations.
            if !entry.may_be_image() || !entry.platform().is_none_or(Platform::runs_here) {
                continue;
            }
            let digest: Digest = match entry.digest().parse() {
                Ok(digest) => digest,
                // One that is null, or by an algorithm that nobody here knows: others are good nevertheless.
                Err(error) => {
                    let why = format!("an entry of index.json names no document: {error}");
                    list.odd.get_or_insert(why);
                    continue;
                }
            };
            let told_by = match entry.platform() {
                Some(_) => ToldBy::Index,
                None => ToldBy::Configuration,
            };
            let place = Place::Document(digest);
            if list.passed.contains_key(&digest) {
                continue;
            }
            if !list.known.contains_key(&place) {
                // Before the first image is loaded it is known that the documents of all of them are there.
                let manifest = match self.resolve(digest, told_by)? {
                    Ok(resolved) => resolved.manifest,
                    Err(reason) => {
                        list.passed.insert(digest, reason);
                        continue;
                    }
                };
                let id = digest_of(manifest.config())?;
                self.number(&id)?;
                // An image under several manifests gets its tags once.
                if let Some(names) = list.names(place.clone(), told_by) {
                    for image in tagged.remove(&id).unwrap_or_default() {
                        names.tags.extend(tags(image)?);
                    }
                }
            }
            if let Some(names) = list.names(place, told_by)
                && let Some(reference) = named(entry)
            {
                names.digests.insert(reference.with_digest(digest));
                names.tags.extend(reference.tagged());
            }
        }
        Ok(list)
    }

    fn by_configuration<'a>(&self, saved: &'a [Saved]) -> HashMap<Digest, Vec<&'a Saved>> {
        let mut found: HashMap<Digest, Vec<&Saved>> = HashMap::new();
        for image in saved {
            let config = self.find(&image.config);
            if let Some(config) = config.and_then(|number| self.about(number)) {
                found.entry(config.digest).or_default().push(image);
            }
        }
        found
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
            if let Some(names) = list.names(place, ToldBy::Configuration) {
                names.tags.extend(tags(image)?);
            }
        }
        Ok(list)
    }

    /// The documents of an image: all but the configuration, and that.
    fn take(&self, place: &Place, told_by: ToldBy) -> Result<(Resolved, Vec<u8>), Error> {
        let (resolved, config) = match place {
            Place::Document(digest) => {
                let resolved = self.resolve(*digest, told_by)?;
                let resolved = resolved.map_err(|reason| bad(format!("{digest}: {reason}")))?;
                let config = self.number(&digest_of(resolved.manifest.config())?)?;
                (resolved, config)
            }
            Place::Files { config, layers } => (self.describe(*config, layers)?, *config),
        };
        Ok((resolved, self.bytes(config, MAX_CONFIG, "a configuration")?))
    }

    /// Follows a document to an image; else tells why it leads to none for this machine.
    fn resolve(&self, digest: Digest, told_by: ToldBy) -> Result<Result<Resolved, String>, Error> {
        let mut search = Search::from_entry(told_by);
        let mut next = digest;
        loop {
            let outcome = self.step(&mut search, next);
            next = match outcome {
                Ok(Found::Document(next)) => next,
                Ok(Found::Image(manifest)) => {
                    return Ok(Ok(Resolved {
                        told_by: search.told_by(),
                        documents: search.into_way(),
                        manifest: *manifest,
                        host: String::new(),
                    }));
                }
                Err(end) => match search.retreat(end) {
                    Ok(next) => next,
                    Err(End::NoImage(reason)) => return Ok(Err(reason)),
                    Err(End::Broken(error)) => return Err(error),
                },
            };
        }
    }

    fn step(&self, search: &mut Search<End>, digest: Digest) -> Result<Found, End> {
        let bytes = self.bytes(self.number(&digest)?, MAX_MANIFEST, digest)?;
        let content = parse(&bytes, None);
        let content = content.map_err(|reason| bad(format!("{digest}: {reason}")))?;
        let step = search.enter(digest, bytes, content);
        let manifest = match step.map_err(End::NoImage)? {
            Step::Document(next) => return Ok(Found::Document(next)),
            Step::Image(manifest) if search.told_by() != ToldBy::Configuration => {
                return Ok(Found::Image(manifest));
            }
            Step::Image(manifest) | Step::Perhaps(manifest) => manifest,
        };
        let config = self.number(&digest_of(manifest.config())?)?;
        let config = self.bytes(config, MAX_CONFIG, "a configuration")?;
        search.confirm(&config).map_err(End::NoImage)?;
        Ok(Found::Image(manifest))
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
        let config = describe(config, MediaType::ImageConfig)?;
        let manifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(config.clone())
            .layers(layers.clone())
            .build()
            .map_err(|error| bad(error.to_string()))?;
        let bytes = serde_json::to_vec(&manifest).map_err(|error| bad(error.to_string()))?;
        let digest = Digest::from_bytes(Sha256::digest(&bytes).into());
        Ok(Resolved {
            documents: vec![(digest, bytes)],
            manifest: Manifest::new(config, layers),
            host: String::new(),
            told_by: ToldBy::Configuration,
        })
    }
}

fn tags(image: &Saved) -> Result<BTreeSet<String>, Error> {
    let mut tags = BTreeSet::new();
    for text in &image.repo_tags {
        let reference: Reference = text.parse()?;
        tags.extend(reference.tagged());
    }
    Ok(tags)
}

/// Names that a layout gives an image. A bare tag is not one: it says nothing about the repository.
fn named(entry: &Entry) -> Option<Reference> {
    let names = entry.names().into_iter();
    names
        .filter(|text| text.contains([':', '/']))
        .find_map(|text| text.parse().ok())
}
