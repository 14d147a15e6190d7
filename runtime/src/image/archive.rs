//! Archives of images: OCI layouts and what `docker save` writes.
//!
//! An archive is a stream, and what its blobs are is told at its end or in its middle. So it is spooled
//! first, every file under a number and known by its digest: no name of the archive ever is a path.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, ImageManifestBuilder, MediaType};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::layers::Source;
use super::pull::{Names, Resolved, import};
use super::shelf::{Scratch, Shelf};
use super::{Error, Inner, Reference, blocking, digest_of};
use crate::layer::{Decoder, MAX_WINDOW_LOG};
use crate::model::{Digest, Image};
use crate::registry::{Content, MAX_CONFIG, MAX_MANIFEST, choose, matches_host, parse};

/// Files in an archive; thousands of layers of hundreds of images.
const MAX_FILES: usize = 100_000;
/// Images in an archive.
const MAX_IMAGES: usize = 1000;
/// Indexes within indexes that are followed.
const MAX_DEPTH: usize = 2;
/// Read and written at a time, bytes.
const BUFFER: usize = 1 << 20;

/// The files of an archive, on disk until this is dropped.
#[derive(Debug)]
pub(crate) struct Spool {
    scratch: Scratch,
    files: Vec<Spooled>,
    by_digest: HashMap<Digest, usize>,
    by_name: HashMap<String, usize>,
}

#[derive(Debug)]
struct Spooled {
    digest: Digest,
    size: u64,
}

/// An image of an archive, before its layers are looked at.
struct Found {
    resolved: Resolved,
    config: Vec<u8>,
    names: Names,
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
    let (spool, found) = blocking(move || {
        let spool = Spool::read(&shelf, archive)?;
        let found = spool.images()?;
        Ok::<_, Error>((Arc::new(spool), found))
    })
    .await??;
    let mut images = Vec::with_capacity(found.len());
    for image in found {
        let source = Source::Archive(Arc::clone(&spool));
        let Found {
            resolved,
            config,
            names,
        } = image;
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

fn unreadable(error: io::Error) -> Error {
    bad(format!("cannot be read: {error}"))
}

impl Spool {
    fn read(shelf: &Shelf, archive: impl Read) -> Result<Self, Error> {
        let mut spool = Self {
            scratch: shelf.scratch()?,
            files: Vec::new(),
            by_digest: HashMap::new(),
            by_name: HashMap::new(),
        };
        let plain = Decoder::detect("", archive, MAX_WINDOW_LOG).map_err(unreadable)?;
        let mut archive = tar::Archive::new(plain);
        let mut links = Vec::new();
        for entry in archive.entries().map_err(unreadable)? {
            let mut entry = entry.map_err(unreadable)?;
            let name = normal(&String::from_utf8_lossy(&entry.path_bytes()));
            match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => spool.add(name, &mut entry)?,
                // Old archives share equal layers by links.
                EntryType::Symlink | EntryType::Link => {
                    let target = entry.link_name_bytes().unwrap_or_default();
                    let target = String::from_utf8_lossy(&target).into_owned();
                    let relative = entry.header().entry_type() == EntryType::Symlink;
                    links.push((name, target, relative));
                }
                _ => {}
            }
            if spool.files.len() + links.len() > MAX_FILES {
                return Err(bad(format!("more than {MAX_FILES} files")));
            }
        }
        for (name, target, relative) in links {
            let target = match (relative, name.rsplit_once('/')) {
                (true, Some((dir, _))) => normal(&format!("{dir}/{target}")),
                _ => normal(&target),
            };
            if let Some(file) = spool.by_name.get(&target) {
                spool.by_name.insert(name, *file);
            }
        }
        Ok(spool)
    }

    fn add(&mut self, name: String, content: &mut impl Read) -> Result<(), Error> {
        let number = self.files.len();
        let mut file = File::from(self.scratch.create(&number.to_string())?);
        let mut hash = Sha256::new();
        let mut buffer = vec![0; BUFFER];
        let mut size = 0;
        loop {
            let length = content.read(&mut buffer).map_err(unreadable)?;
            if length == 0 {
                break;
            }
            let bytes = &buffer[..length];
            hash.update(bytes);
            file.write_all(bytes)
                .map_err(|error| self.scratch.failed("write", error))?;
            size += length as u64;
        }
        let digest = Digest::from_bytes(hash.finalize().into());
        self.files.push(Spooled { digest, size });
        self.by_digest.insert(digest, number);
        self.by_name.insert(name, number);
        Ok(())
    }

    /// A blob.
    pub(crate) fn open(&self, digest: &Digest) -> Result<File, Error> {
        let number = self.by_digest.get(digest).ok_or_else(|| {
            bad(format!(
                "blob {digest} is not in it, or its content is another"
            ))
        })?;
        self.file(*number)
    }

    fn file(&self, number: usize) -> Result<File, Error> {
        let file: OwnedFd = self.scratch.open(&number.to_string())?;
        Ok(File::from(file))
    }

    fn bytes(&self, number: usize, limit: usize) -> Result<Vec<u8>, Error> {
        let size = self.files.get(number).map_or(0, |file| file.size);
        if size > limit as u64 {
            return Err(bad(format!("a document is longer than {limit} bytes")));
        }
        let mut bytes = Vec::new();
        self.file(number)?
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        Ok(bytes)
    }

    fn named(&self, name: &str, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        let number = self.by_name.get(name);
        number.map(|number| self.bytes(*number, limit)).transpose()
    }

    fn blob(&self, digest: &Digest, limit: usize) -> Result<Vec<u8>, Error> {
        let number = self.by_digest.get(digest).ok_or_else(|| {
            bad(format!(
                "blob {digest} is not in it, or its content is another"
            ))
        })?;
        self.bytes(*number, limit)
    }

    fn images(&self) -> Result<Vec<Found>, Error> {
        let saved: Vec<Saved> = match self.named("manifest.json", MAX_MANIFEST)? {
            None => Vec::new(),
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| bad(format!("manifest.json is malformed: {error}")))?,
        };
        if saved.len() > MAX_IMAGES {
            return Err(bad(format!("more than {MAX_IMAGES} images")));
        }
        // Current archives of docker are both; then the layout is the better one, for it has digests.
        let found = match self.named("index.json", MAX_MANIFEST)? {
            Some(bytes) => self.layout(&bytes, &saved)?,
            None => saved
                .iter()
                .map(|image| self.saved(image))
                .collect::<Result<_, _>>()?,
        };
        if found.is_empty() {
            return Err(bad(
                "it holds no images for this machine: neither index.json nor manifest.json names any",
            ));
        }
        Ok(found)
    }

    fn layout(&self, bytes: &[u8], saved: &[Saved]) -> Result<Vec<Found>, Error> {
        let index: ImageIndex = serde_json::from_slice(bytes)
            .map_err(|error| bad(format!("index.json is malformed: {error}")))?;
        if index.manifests().len() > MAX_IMAGES {
            return Err(bad(format!("more than {MAX_IMAGES} images")));
        }
        let mut found = Vec::with_capacity(index.manifests().len());
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
            let resolved = self.resolve(digest)?;
            let id = digest_of(resolved.manifest.config())?;
            let config = self.blob(&id, MAX_CONFIG)?;
            let mut names = Names::default();
            if let Some(reference) = annotated(descriptor) {
                names.digests.insert(reference.with_digest(digest));
                names.tags.extend(reference.tagged());
            }
            for image in saved {
                let number = self.by_name.get(&normal(&image.config));
                if number.is_some_and(|number| self.files[*number].digest == id) {
                    names.tags.extend(tags(image)?);
                }
            }
            found.push(Found {
                resolved,
                config,
                names,
            });
        }
        Ok(found)
    }

    fn resolve(&self, mut digest: Digest) -> Result<Resolved, Error> {
        let mut documents = Vec::new();
        for _ in 0..=MAX_DEPTH {
            let bytes = self.blob(&digest, MAX_MANIFEST)?;
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
    fn saved(&self, image: &Saved) -> Result<Found, Error> {
        let find = |name: &String| {
            let number = self.by_name.get(&normal(name)).copied();
            number.ok_or_else(|| bad(format!("{name:?} is not in it")))
        };
        let describe = |number: usize, kind| {
            let Spooled { digest, size } = &self.files[number];
            let text = digest.to_string();
            let digest = text.parse::<oci_spec::image::Digest>();
            digest
                .map(|digest| Descriptor::new(kind, *size, digest))
                .map_err(|error| bad(error.to_string()))
        };
        let number = find(&image.config)?;
        let layers = image
            .layers
            .iter()
            .map(|name| describe(find(name)?, MediaType::ImageLayer))
            .collect::<Result<Vec<_>, _>>()?;
        let manifest: ImageManifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(describe(number, MediaType::ImageConfig)?)
            .layers(layers)
            .build()
            .map_err(|error| bad(error.to_string()))?;
        let bytes = serde_json::to_vec(&manifest).map_err(|error| bad(error.to_string()))?;
        let digest = Digest::from_bytes(Sha256::digest(&bytes).into());
        Ok(Found {
            resolved: Resolved {
                documents: vec![(digest, bytes)],
                manifest,
                host: String::new(),
            },
            config: self.bytes(number, MAX_CONFIG)?,
            names: Names {
                tags: tags(image)?,
                digests: BTreeSet::new(),
            },
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

/// A name without `.`, `..` and empty parts, for comparison.
fn normal(name: &str) -> String {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}
