//! The JSON that daemon and command line exchange.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::RegistryAuth;

/// An image in the store.
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
}

/// An archive that the daemon opens itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadRequest {
    /// Absolute path, as the daemon sees it.
    pub path: PathBuf,
}

/// An image to remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveRequest {
    /// Any name, digest or id.
    pub reference: String,
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
