//! What an operator is told about images. These values are the JSON of `berth images` and `berth df`.

use serde::{Deserialize, Serialize};

use crate::model::{Digest, ImageConfig};

/// An image in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSummary {
    /// `sha256:…` of its configuration.
    pub id: String,
    /// Names with a tag.
    pub tags: Vec<String>,
    /// Names with a digest.
    pub digests: Vec<String>,
    /// Bytes, compressed.
    pub size: u64,
    /// Never collected.
    pub pinned: bool,
    /// Bytes on the disk, layers that other images have as well included.
    #[serde(default)]
    pub disk: u64,
    /// First pulled or loaded, nanoseconds since the Unix epoch.
    #[serde(default)]
    pub pulled_at: i64,
    /// A container stands on its layers.
    #[serde(default)]
    pub in_use: bool,
}

/// An image that was loaded from an archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// As in a list, with all names.
    #[serde(flatten)]
    pub summary: ImageSummary,
    /// Names that the archive gave it: with a tag, else with a digest.
    #[serde(default)]
    pub names: Vec<String>,
}

/// All about an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageDetails {
    /// As in a list.
    #[serde(flatten)]
    pub summary: ImageSummary,
    /// Digest of the manifest that was pulled last.
    pub manifest: Digest,
    /// Indexes, manifests and the configuration.
    pub documents: Vec<Digest>,
    /// What its containers are like.
    pub config: ImageConfig,
    /// Lowest first.
    pub layers: Vec<LayerDetails>,
}

/// A layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerDetails {
    /// What it is with all that is below it; its directory is called so.
    pub chain: Digest,
    /// Digest of its archive.
    pub diff_id: Digest,
    /// Digest of what was pulled.
    pub blob: Digest,
    /// Bytes that were pulled.
    pub size: u64,
    /// Bytes on the disk.
    pub disk: u64,
    /// Inodes.
    pub inodes: u64,
    /// Images that have it.
    pub images: u64,
    /// Its archive can be made again, so that it can be saved and checked.
    pub archive: bool,
}

/// A part of what the store takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// How many.
    pub count: u64,
    /// Bytes on the disk.
    pub bytes: u64,
    /// Bytes that would be free without those that nothing needs.
    pub reclaimable: u64,
}

/// What takes room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskUse {
    /// Where.
    pub root: std::path::PathBuf,
    /// Images; an image's layers are counted once. No container needs those that are reclaimable.
    pub images: Share,
    /// Layers, also those of no image.
    pub layers: Share,
    /// Manifests, indexes and configurations.
    pub documents: Share,
    /// Interrupted downloads.
    pub partial: Share,
    /// Writable layers of containers.
    pub containers: Share,
    /// Size of the file system, bytes.
    pub total: u64,
    /// What is free of it for root, bytes.
    pub free: u64,
    /// Inodes of it, and free ones; 0 where they are not limited.
    pub inodes: u64,
    /// See there.
    pub inodes_free: u64,
}

/// What a removal of unneeded images came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pruned {
    /// Best names of the images.
    pub images: Vec<String>,
    /// Bytes that are free now.
    pub bytes: u64,
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Thing {
    /// An image that lacks something.
    Image,
    /// An unpacked layer.
    Layer,
    /// A manifest, index or configuration.
    Document,
    /// The index of images.
    Index,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about.
    pub thing: Thing,
    /// Its digest or path.
    pub what: String,
    /// What is wrong with it.
    pub problem: String,
    /// Names of the images that need it.
    pub images: Vec<String>,
}

/// What a check of the store came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Images that were looked at.
    pub images: u64,
    /// Layers.
    pub layers: u64,
    /// Documents.
    pub documents: u64,
    /// What is wrong. Not empty and not repaired: the check fails.
    pub findings: Vec<Finding>,
    /// Layers whose content could not be compared, because their archives have names twice.
    pub unverifiable: Vec<Digest>,
    /// Layers and documents that nothing needs; they go with the next removal.
    pub orphans: u64,
    /// What was found is gone: the next pull fetches it again.
    pub repaired: bool,
    /// Images that were taken out because they are not complete.
    pub dropped: Vec<String>,
    /// What was found, is out of use, and could not be deleted: where it is and why.
    #[serde(default)]
    pub stays: Vec<String>,
}
