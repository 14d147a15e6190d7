//! Images into an archive: an OCI layout that is also what `docker save` writes.
//!
//! The layers are made again from their recipes, uncompressed, so the image that is loaded elsewhere has the same
//! id. Its manifest is a new one, for the old one names compressed layers that are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::sync::Arc;

use oci_spec::image::{
    Descriptor, DescriptorBuilder, ImageIndexBuilder, ImageManifestBuilder, MediaType,
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::catalog::Entry;
use super::{Error, ImageManager, Lease, Reference, Shelf};
use crate::model::{ChainId, Digest};
use crate::storage;

/// Images that are about to be written. Their layers stay until it is dropped.
#[derive(Debug)]
pub struct Export {
    shelf: Shelf,
    lease: Lease,
    documents: BTreeMap<Digest, Vec<u8>>,
    layers: BTreeMap<Digest, Layer>,
    index: Vec<u8>,
    saved: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Layer {
    chain: ChainId,
    length: u64,
}

/// An image and the tags that it is saved under.
struct Chosen {
    entry: Arc<Entry>,
    tags: BTreeSet<String>,
}

fn wrong(error: impl std::fmt::Display) -> Error {
    Error::Archive(error.to_string())
}

fn hex_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

impl ImageManager {
    /// Makes ready to save images: by a tag under that tag, by anything else under all of their tags. Reads the
    /// documents, so it blocks.
    ///
    /// # Errors
    /// An image that is not there, or that has a layer whose archive cannot be made again.
    pub async fn export(&self, references: Vec<String>) -> Result<Export, Error> {
        let inner = Arc::clone(&self.inner);
        super::blocking(move || {
            let catalog = inner.catalog();
            let mut chosen: BTreeMap<Digest, Chosen> = BTreeMap::new();
            for text in &references {
                let found = catalog.find(text)?;
                let entry = found.ok_or_else(|| Error::NotFound(text.clone()))?;
                let one = chosen.entry(entry.id).or_insert_with(|| Chosen {
                    entry: Arc::clone(entry),
                    tags: BTreeSet::new(),
                });
                let tag = text.parse::<Reference>().ok();
                let tag = tag.filter(|reference| reference.digest().is_none());
                let tag = tag.and_then(|reference| reference.tagged());
                match tag.filter(|tag| entry.tags.contains(tag)) {
                    Some(tag) => {
                        one.tags.insert(tag);
                    }
                    None => one.tags.extend(entry.tags.iter().cloned()),
                }
            }
            Export::new(inner.shelf.clone(), chosen.into_values().collect())
        })
        .await?
    }
}

impl Export {
    fn new(shelf: Shelf, chosen: Vec<Chosen>) -> Result<Self, Error> {
        let mut export = Self {
            lease: shelf.lease(),
            shelf,
            documents: BTreeMap::new(),
            layers: BTreeMap::new(),
            index: Vec::new(),
            saved: Vec::new(),
        };
        let mut descriptors = Vec::new();
        let mut saved = Vec::new();
        for Chosen { entry, tags } in chosen {
            let manifest = export.add(&entry)?;
            let layers = entry.chain.iter().map(|chain| export.path_of(chain));
            saved.push(json!({
                "Config": hex_path(&entry.id),
                "RepoTags": tags,
                "Layers": layers.collect::<Result<Vec<_>, _>>()?,
            }));
            for tag in &tags {
                descriptors.push(named(&manifest, tag));
            }
            if tags.is_empty() {
                descriptors.push(manifest);
            }
        }
        let index = ImageIndexBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageIndex)
            .manifests(descriptors)
            .build()
            .map_err(wrong)?;
        // By way of a value, which has its members in order: the same images are the same archive.
        let index = serde_json::to_value(&index).map_err(wrong)?;
        export.index = serde_json::to_vec(&index).map_err(wrong)?;
        export.saved = serde_json::to_vec(&saved).map_err(wrong)?;
        Ok(export)
    }

    /// Takes an image in, and describes its new manifest.
    fn add(&mut self, entry: &Entry) -> Result<Descriptor, Error> {
        let storage = &self.shelf.storage;
        let lacks = || Error::Archive(format!("{} is damaged: pull it again", entry.best_name()));
        self.lease.hold_blob(entry.id);
        let config = storage.get_blob(&entry.id)?.ok_or_else(lacks)?;
        let mut layers = Vec::with_capacity(entry.chain.len());
        for chain in &entry.chain {
            self.lease.hold_layer(*chain);
            let info = storage.layer_info(chain);
            let info = info.ok_or(storage::Error::NoLayer(*chain))?;
            let length = info.archive.ok_or(storage::Error::NoRecipe(*chain))?;
            layers.push(describe(MediaType::ImageLayer, length, &info.diff_id)?);
            let chain = *chain;
            self.layers.insert(info.diff_id, Layer { chain, length });
        }
        let length = config.len() as u64;
        let manifest = ImageManifestBuilder::default()
            .schema_version(2_u32)
            .media_type(MediaType::ImageManifest)
            .config(describe(MediaType::ImageConfig, length, &entry.id)?)
            .layers(layers)
            .build()
            .map_err(wrong)?;
        let bytes = serde_json::to_vec(&manifest).map_err(wrong)?;
        let digest = Digest::from_bytes(Sha256::digest(&bytes).into());
        let descriptor = describe(MediaType::ImageManifest, bytes.len() as u64, &digest)?;
        self.documents.insert(entry.id, config);
        self.documents.insert(digest, bytes);
        Ok(descriptor)
    }

    fn path_of(&self, chain: &ChainId) -> Result<String, Error> {
        let info = self.shelf.storage.layer_info(chain);
        let info = info.ok_or(storage::Error::NoLayer(*chain))?;
        Ok(hex_path(&info.diff_id))
    }

    /// Writes the archive. Blocks.
    ///
    /// # Errors
    /// What writing says; a layer that is no longer what it was. What has been written is no whole archive then.
    pub fn write(&self, out: impl Write) -> io::Result<()> {
        let mut archive = tar::Builder::new(out);
        let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
        put(&mut archive, "oci-layout", layout.len() as u64, &layout[..])?;
        for (name, bytes) in [("index.json", &self.index), ("manifest.json", &self.saved)] {
            put(&mut archive, name, bytes.len() as u64, bytes.as_slice())?;
        }
        for (digest, bytes) in &self.documents {
            let length = bytes.len() as u64;
            put(&mut archive, &hex_path(digest), length, bytes.as_slice())?;
        }
        for (digest, layer) in &self.layers {
            let replay = self.shelf.storage.layer_archive(&layer.chain);
            let mut reader = Hashing {
                reader: replay.map_err(io::Error::other)?,
                hash: Sha256::new(),
            };
            let written = put(&mut archive, &hex_path(digest), layer.length, &mut reader);
            let got = Digest::from_bytes(reader.hash.finalize().into());
            written.and_then(|()| match got == *digest {
                true => Ok(()),
                false => Err(io::Error::other("its content changed")),
            })
            .map_err(|error| {
                let text = format!(
                    "layer {}: {error}; `berth images check --repair` takes it away, so that it can be pulled again",
                    layer.chain
                );
                io::Error::new(error.kind(), text)
            })?;
        }
        archive.into_inner()?.flush()
    }
}

fn describe(kind: MediaType, length: u64, digest: &Digest) -> Result<Descriptor, Error> {
    let digest = digest.to_string().parse::<oci_spec::image::Digest>();
    DescriptorBuilder::default()
        .media_type(kind)
        .size(length)
        .digest(digest.map_err(wrong)?)
        .build()
        .map_err(wrong)
}

/// The descriptor under a name: containerd's, and the bare tag that the layout specification has.
fn named(manifest: &Descriptor, name: &str) -> Descriptor {
    let tag = name.rsplit_once(':').map_or(name, |(_, tag)| tag);
    let mut named = manifest.clone();
    named.set_annotations(Some(std::collections::HashMap::from([
        ("io.containerd.image.name".to_owned(), name.to_owned()),
        (
            "org.opencontainers.image.ref.name".to_owned(),
            tag.to_owned(),
        ),
    ])));
    named
}

fn put(
    archive: &mut tar::Builder<impl Write>,
    name: &str,
    length: u64,
    content: impl Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(length);
    header.set_mode(0o644);
    header.set_mtime(0);
    let mut content = Exactly {
        content,
        left: length,
    };
    archive.append_data(&mut header, name, &mut content)?;
    if content.left > 0 || content.content.read(&mut [0])? > 0 {
        return Err(io::Error::other("its length changed"));
    }
    Ok(())
}

/// No more of a reader than a length, which is counted down.
struct Exactly<R> {
    content: R,
    left: u64,
}

impl<R: Read> Read for Exactly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let length = self
            .content
            .read(buffer.get_mut(..room).unwrap_or_default())?;
        self.left -= length as u64;
        Ok(length)
    }
}

struct Hashing<R> {
    reader: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(buffer)?;
        self.hash.update(buffer.get(..length).unwrap_or_default());
        Ok(length)
    }
}
