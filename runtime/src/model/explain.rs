//! How a reference becomes an image, step by step, for an operator. Nothing in it is secret.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What a pull of a reference would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Fully qualified.
    pub reference: String,
    /// The `hosts.toml`, or the directory of certificates, that decides; none: the registry itself is asked.
    pub hosts_file: Option<PathBuf>,
    /// The hosts in the order in which they are asked.
    pub hosts: Vec<ExplainHost>,
    /// What was asked, in order.
    pub steps: Vec<ExplainStep>,
    /// What would be pulled.
    pub image: Option<ExplainImage>,
    /// Why nothing would be.
    pub error: Option<String>,
}

/// A place to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainHost {
    /// Root of its API.
    pub url: String,
    /// `mirror` or `server`.
    pub role: String,
    /// `pull`, `resolve`.
    pub capabilities: Vec<String>,
    /// How it is known to be itself.
    pub tls: String,
    /// The proxy on the way.
    pub proxy: Option<String>,
    /// Where the credentials for it come from.
    pub credentials: String,
    /// Names of the headers that are added.
    pub headers: Vec<String>,
}

/// One host asked for one thing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainStep {
    /// What for.
    pub what: String,
    /// Who.
    pub host: String,
    /// The requests, with those for tokens and those that redirects led to.
    pub exchanges: Vec<ExplainExchange>,
    /// Why the host did not do; none: it did.
    pub error: Option<String>,
    /// What was done then.
    pub next: Option<String>,
}

/// A request and its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainExchange {
    /// GET, HEAD or POST.
    pub method: String,
    /// Without query.
    pub url: String,
    /// HTTP status.
    pub status: Option<u16>,
    /// Why there was no answer.
    pub error: Option<String>,
    /// Until the head of the answer, milliseconds.
    pub millis: u64,
}

/// An image in a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainImage {
    /// What the reference means: of an index, where there is one.
    pub digest: String,
    /// Of the manifest for this machine.
    pub manifest: String,
    /// Image id: digest of its configuration.
    pub id: String,
    /// `os/architecture[/variant]` of its configuration.
    pub platform: String,
    /// Number of its layers.
    pub layers: usize,
    /// Compressed layers and documents, bytes.
    pub size: u64,
    /// Whether the daemon has it; none: there was no daemon to ask.
    pub stored: Option<bool>,
}
