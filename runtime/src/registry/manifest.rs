//! Manifests and indexes: from verified bytes to types.
//!
//! What a document is follows from its bytes. One that could be read in two ways is refused
//! (CVE-2021-41190), and so is a Content-Type that contradicts it.

use std::fmt;

use oci_spec::image::{Descriptor, MediaType};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::platform::{Platform, host_arch};
use crate::json::{self, Lenient};

/// Longest manifest or index, bytes (containerd's limit as well).
pub const MAX_MANIFEST: usize = 4 << 20;
/// Entries of an index: as many as fit, if each has a digest.
const MAX_INDEX_ENTRIES: usize = 50_000;
/// Longest image configuration, bytes.
pub const MAX_CONFIG: usize = 8 << 20;

/// Sent as `Accept`.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
/// Of the configuration that an artifact has when it needs none (image-spec, "guidelines for artifact usage").
const EMPTY: &str = "application/vnd.oci.empty.v1+json";
const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+";

/// What a document turned out to be.
#[derive(Clone, Debug)]
pub enum Content {
    /// Manifests for several platforms.
    Index(Index),
    /// One image.
    Manifest(Box<Manifest>),
    /// Something else that a registry keeps: a sentence for the user.
    Artifact(String),
}

impl Content {
    /// What it is called in a message.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Index(_) => "image index",
            Self::Manifest(_) => "manifest",
            Self::Artifact(_) => "document",
        }
    }
}

/// An image's parts.
#[derive(Clone, Debug)]
pub struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
    /// Places of layers that do not say that they are some.
    unsaid: Vec<usize>,
    beside: Option<String>,
}

impl Manifest {
    /// Of a configuration and layers that no manifest names.
    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self {
            config,
            layers,
            unsaid: Vec::new(),
            beside: None,
        }
    }

    /// Tells how many layers the image has: if those that call themselves some are as many, no other is one.
    pub fn count_layers(&mut self, wanted: usize) {
        if self.unsaid.is_empty() || self.layers.len() - self.unsaid.len() != wanted {
            return;
        }
        let unsaid = std::mem::take(&mut self.unsaid);
        let mut place = 0..self.layers.len();
        self.layers.retain(|_| {
            let place = place.next();
            place.is_none_or(|place| unsaid.binary_search(&place).is_err())
        });
    }

    /// The configuration.
    pub fn config(&self) -> &Descriptor {
        &self.config
    }

    /// The blobs that are layers, whether Berth unpacks such or not, lowest first; also those that do not say what they are,
    /// until [`Self::count_layers`].
    pub fn layers(&self) -> &[Descriptor] {
        &self.layers
    }

    /// The type of a blob that is no layer and stands beside them.
    pub fn beside(&self) -> Option<&str> {
        self.beside.as_deref()
    }
}

/// Entries of an index, without those whose form nobody knows.
#[derive(Clone, Debug)]
pub struct Index {
    entries: Vec<Entry>,
}

/// One of them.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Entry {
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    artifact_type: String,
    annotations: Notes,
    urls: Option<IgnoredAny>,
    data: Option<IgnoredAny>,
}

/// The annotations that mean something here.
#[derive(Clone, Debug, Default)]
struct Notes {
    /// What containerd calls the image.
    name: String,
    /// What the layout specification has, often a tag alone.
    reference: String,
    /// What is said of another entry, which this one is about.
    about: String,
}

impl<'de> Deserialize<'de> for Notes {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Notes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("annotations")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Notes, A::Error> {
                let mut notes = Notes::default();
                while let Some(key) = members.next_key::<String>()? {
                    let text = members.next_value()?;
                    match key.as_str() {
                        "io.containerd.image.name" => notes.name = text,
                        "org.opencontainers.image.ref.name" => notes.reference = text,
                        "vnd.docker.reference.type" => notes.about = text,
                        _ => {}
                    }
                }
                Ok(notes)
            }
        }
        input.deserialize_map(Reader)
    }
}

/// The members that tell what a document is.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Shape {
    schema_version: u64,
    media_type: String,
    artifact_type: String,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
    signatures: Option<IgnoredAny>,
    blobs: Option<IgnoredAny>,
    // These two so that they are not there twice.
    subject: Option<IgnoredAny>,
    annotations: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawIndex {
    manifests: Vec<Lenient<Entry>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawManifest {
    config: Entry,
    layers: Vec<Entry>,
}

/// Reads a manifest or an index.
///
/// # Errors
/// A sentence for the user.
pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Content, String> {
    if bytes.len() > MAX_MANIFEST {
        return Err(format!("longer than {MAX_MANIFEST} bytes"));
    }
    let shape: Shape =
        json::from_slice(bytes).map_err(|error| format!("not a manifest: {error}"))?;
    let said = content_type.map(|text| text.split(';').next().unwrap_or_default().trim());
    unambiguous(&shape, said.unwrap_or_default())?;
    let malformed = |error: json::Error| format!("malformed: {error}");
    if shape.manifests.is_some() {
        let RawIndex { manifests } =
            json::from_slice_up_to(bytes, MAX_INDEX_ENTRIES).map_err(malformed)?;
        let entries = manifests.into_iter().filter_map(|entry| entry.0);
        return Ok(Content::Index(Index {
            entries: entries.collect(),
        }));
    }
    if shape.config.is_none() {
        return match shape.artifact_type.is_empty() && shape.blobs.is_none() {
            true => Err("it has neither manifests nor config and layers".to_owned()),
            false => Ok(Content::Artifact(
                "it is an artifact, not an image".to_owned(),
            )),
        };
    }
    let raw: RawManifest = json::from_slice(bytes).map_err(malformed)?;
    if let Some(kind) = artifact(&raw, &shape.artifact_type) {
        let kind: String = kind.chars().take(100).collect();
        return Ok(Content::Artifact(format!(
            "it is an artifact ({kind:?}), not an image: there is nothing in it to run"
        )));
    }
    raw.manifest()
        .map(|manifest| Content::Manifest(Box::new(manifest)))
        .map_err(|error| format!("malformed: {error}"))
}

/// Refuses what another reader could take for something else.
fn unambiguous(shape: &Shape, said: &str) -> Result<(), String> {
    let inside = shape.media_type.as_str();
    let kinds = [inside, said];
    let schema1 = kinds.iter().any(|kind| kind.starts_with(SCHEMA1));
    // A wrong number on what is otherwise a manifest or an index of today; other readers go by the type.
    let today = kinds
        .iter()
        .any(|kind| MANIFESTS.contains(kind) && shape.layers.is_some() || INDEXES.contains(kind));
    if schema1 || shape.schema_version == 1 && !today || shape.fs_layers.is_some() {
        return Err(
            "it is a Docker schema 1 manifest, a format without content digests that was given up in 2017; push the image again with a current tool"
                .to_owned(),
        );
    }
    // Left out it is 0, and what the document is follows from the rest.
    if !matches!(shape.schema_version, 0..=2) {
        return Err("schemaVersion is not 2".to_owned());
    }
    let image = shape.layers.is_some() || shape.config.is_some() || shape.signatures.is_some();
    let index = shape.manifests.is_some();
    if index && image {
        return Err("ambiguous: it has the members of an index and of a manifest".to_owned());
    }
    for kind in kinds {
        let contradicts =
            (INDEXES.contains(&kind) && !index) || (MANIFESTS.contains(&kind) && index);
        if contradicts {
            return Err(format!("ambiguous: it is called {kind:?} and is not one"));
        }
    }
    Ok(())
}

/// What an artifact is called, which is to be refused before its configuration is read as that of an image. The type alone
/// makes none: an image may have one as well, and tools call the configurations of images by many names. But where
/// nothing is a layer, there is nothing to run, whatever it is.
fn artifact<'a>(raw: &'a RawManifest, kind: &'a str) -> Option<&'a str> {
    let config = raw.config.media_type.as_str();
    if !kind.is_empty() && !CONFIGS.contains(&config) {
        return Some(kind);
    }
    if config == EMPTY {
        return Some(config);
    }
    let mut kinds = raw.layers.iter().map(|blob| blob.media_type.as_str());
    let first = kinds.clone().next()?;
    (!kinds.any(is_layer)).then_some(first)
}

/// Whether a blob of this type is a layer, of a kind that Berth unpacks or not: what is none stands beside the layers
/// and is passed over (containerd draws the same line). A blob that does not say is a layer, as in archives of images,
/// unless the others are all that the image has.
fn is_layer(media_type: &str) -> bool {
    let base = media_type.split('+').next().unwrap_or_default();
    media_type.is_empty()
        || media_type.starts_with("application/vnd.oci.image.layer.")
        || base.starts_with("application/vnd.docker.image.rootfs.")
        || base == "application/vnd.erofs.layer.v1"
}

impl RawManifest {
    fn manifest(self) -> Result<Manifest, String> {
        let (layers, beside): (Vec<_>, Vec<_>) = self
            .layers
            .into_iter()
            .partition(|blob| is_layer(&blob.media_type));
        let unsaid = layers.iter().enumerate();
        let unsaid = unsaid.filter(|(_, blob)| blob.media_type.is_empty());
        Ok(Manifest {
            unsaid: unsaid.map(|(place, _)| place).collect(),
            config: self.config.descriptor()?,
            layers: layers
                .iter()
                .map(Entry::descriptor)
                .collect::<Result<_, _>>()?,
            beside: beside.into_iter().next().map(|blob| blob.media_type),
        })
    }
}

impl Entry {
    /// The digest, in whatever algorithm.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The machine that it says it is for.
    pub fn platform(&self) -> Option<&Platform> {
        let platform = self.platform.as_ref();
        platform.filter(|platform| !platform.is_unsaid())
    }

    /// Whether it may be an image or an index: it is not said to be something else.
    pub fn may_be_image(&self) -> bool {
        let kind = self.media_type.as_str();
        let known = kind.is_empty() || INDEXES.contains(&kind) || MANIFESTS.contains(&kind);
        // An attestation, of another entry.
        known && self.annotations.about.is_empty()
    }

    /// Whether it may be for this machine.
    fn runs_here(&self) -> bool {
        self.platform().is_none_or(Platform::runs_here)
    }

    /// Names that it goes by, the best first.
    pub fn names(&self) -> [&str; 2] {
        [&self.annotations.name, &self.annotations.reference]
    }

    /// Whether it can be fetched: not by a digest that is none, or of another algorithm than is read here.
    fn has_digest(&self) -> bool {
        self.digest.parse::<crate::model::Digest>().is_ok()
    }

    fn descriptor(&self) -> Result<Descriptor, String> {
        let shown: String = self.digest.chars().take(100).collect();
        let digest = self.digest.parse::<oci_spec::image::Digest>();
        let digest = digest.map_err(|_| format!("{shown:?} is not a digest"))?;
        let kind = MediaType::from(self.media_type.as_str());
        Ok(Descriptor::new(kind, self.size, digest))
    }
}

impl Index {
    /// All of them.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry that fits this machine best; where none says that it fits, all that may, for the images will tell.
    ///
    /// # Errors
    /// A sentence that lists what there is.
    pub fn candidates(&self) -> Result<Vec<&Entry>, String> {
        let entries = self.entries.iter().filter(|entry| entry.has_digest());
        let images = entries.clone().filter(|entry| entry.may_be_image());
        let said = images.filter_map(|entry| Some((entry.platform()?.rank()?, entry)));
        // The first of equals, as every client takes it.
        if let Some((_, best)) = said.min_by_key(|(rank, _)| *rank) {
            return Ok(vec![best]);
        }
        let unsaid =
            entries.filter(|entry| entry.runs_here() && entry.annotations.about.is_empty());
        let mut unsaid: Vec<_> = unsaid.collect();
        unsaid.sort_by_key(|entry| !entry.may_be_image() || !entry.artifact_type.is_empty());
        match unsaid.is_empty() {
            true => Err(self.odd().unwrap_or_else(|| self.nothing_here())),
            false => Ok(unsaid),
        }
    }

    /// An entry that would do, but for its digest.
    fn odd(&self) -> Option<String> {
        let mut odd = self.entries.iter().filter(|entry| !entry.has_digest());
        let odd = odd.find(|entry| entry.may_be_image() && entry.runs_here())?;
        let digest: String = odd.digest.chars().take(100).collect();
        let what = match odd.platform() {
            Some(platform) => format!("its entry for {platform}"),
            None => "an entry of it".to_owned(),
        };
        Some(format!(
            "{what} has the digest {digest:?}, and only sha256 is read here: push the image again with such digests"
        ))
    }

    fn nothing_here(&self) -> String {
        let platforms = self.entries.iter().filter_map(Entry::platform);
        let mut there: Vec<_> = platforms
            .filter(|platform| platform.os != "unknown")
            .map(ToString::to_string)
            .collect();
        there.sort();
        there.dedup();
        there.truncate(16);
        let only = match there.is_empty() {
            true => String::new(),
            false => format!(", only for: {}", there.join(", ")),
        };
        format!("no image for linux/{} is in it{only}", host_arch())
    }
}

#[cfg(test)]
mod tests;
