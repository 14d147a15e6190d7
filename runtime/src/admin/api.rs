//! The JSON that daemon and command line exchange.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::image::{
    CheckReport, DiskUse, Finding, ImageDetails, ImageSummary, LayerDetails, Loaded, Pruned, Share,
    Thing,
};
use crate::model::RegistryAuth;

/// An archive that the daemon opens itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadRequest {
    /// Absolute path, as the daemon sees it.
    pub path: PathBuf,
}

/// An image to remove or to tell about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRequest {
    /// Any name, digest or id.
    pub reference: String,
}

/// An image to pull. Its `Debug` shows no password.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PullRequest {
    /// A name with a tag, a digest, both or neither.
    pub reference: String,
    /// Empty: none but what the daemon is configured with.
    #[serde(default)]
    pub username: String,
    /// Goes with it.
    #[serde(default)]
    pub password: String,
}

impl std::fmt::Debug for PullRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PullRequest").field(&self.reference).finish()
    }
}

/// A pull under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullProgress {
    /// What is pulled.
    pub reference: String,
    /// Milliseconds since it began.
    pub milliseconds: u64,
    /// Host that the manifest came from; empty before it came.
    pub source: String,
    /// Layers of the image; 0 until that is known.
    pub layers: u64,
    /// Those of them that are in the store.
    pub layers_done: u64,
    /// Compressed bytes to fetch.
    pub bytes: u64,
    /// Those of them that came.
    pub bytes_done: u64,
}

/// Images to save.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaveRequest {
    /// Any names, digests or ids.
    pub references: Vec<String>,
}

/// What is to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneRequest {
    /// Images with tags, too.
    pub all: bool,
}

/// How to look at the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckRequest {
    /// Only whether everything is there.
    pub quick: bool,
    /// Take away what is damaged.
    pub repair: bool,
}

/// A pull to explain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// Any name that could be pulled.
    pub reference: String,
    /// The credentials that the pull would bring.
    #[serde(default)]
    pub auth: Option<RegistryAuth>,
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// In words.
    pub error: String,
}

/// A setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// Text, number or list.
    pub value: serde_json::Value,
    /// `default`, a file with a line, or a flag.
    pub origin: String,
}

/// All settings by their dotted names.
pub type Settings = BTreeMap<String, Setting>;
