//! Registries: names, hosts, credentials, manifests and blobs.
//!
//! [`Registry`] holds what outlives a pull (connections, tokens); [`Session`] is one pull's way to its
//! repository through the hosts that `hosts.toml` names. Everything that comes back is hostile:
//! sizes are bounded, digests checked, and types taken from verified bytes. Credentials are bound to
//! the host they are for and never travel with a redirect.

mod auth;
mod blob;
mod client;
#[cfg(test)]
pub(crate) mod fake;
mod hosts;
mod manifest;
mod reference;
mod session;
mod token;

use std::path::PathBuf;

pub use blob::Blob;
pub use hosts::check_hosts;
pub use manifest::{Content, MAX_CONFIG, MAX_MANIFEST, choose, matches_host, parse};
pub use reference::{Reference, Target};
pub use session::{Document, Registry, Session};

use crate::model::{Digest, Kind, Kinded};

/// Why a registry operation failed. No text holds a query string, user information, a header or a token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not a reference.
    #[error("{reference:?} is not an image reference: {reason}")]
    Reference {
        /// What was given, cut to 300 characters.
        reference: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A `hosts.toml`, or a file that it names, is not usable.
    #[error("{}: {reason}", path.display())]
    Hosts {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The credentials of the request contradict themselves.
    #[error("the pull credentials are not usable: {0}")]
    Credentials(&'static str),
    /// No answer. The kubelet knows this beginning (row R062).
    #[error("RegistryUnavailable: {host}: {reason}")]
    Unavailable {
        /// The host that was asked.
        host: String,
        /// Cause.
        reason: String,
    },
    /// The registry has no such thing, or does not show it to us.
    #[error("{host} has no {what}")]
    NotFound {
        /// The host that was asked.
        host: String,
        /// Manifest or blob.
        what: String,
    },
    /// The registry wants other credentials.
    #[error("{host} denies access to {what}: {reason}; check the pull secret")]
    Denied {
        /// The host that was asked.
        host: String,
        /// Manifest or blob.
        what: String,
        /// Cause.
        reason: String,
    },
    /// Any other answer that is not a success.
    #[error("{host} answered {status} for {what}{}", .detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default())]
    Status {
        /// The host that was asked.
        host: String,
        /// Manifest or blob.
        what: String,
        /// HTTP status.
        status: u16,
        /// What the registry said about it.
        detail: Option<String>,
    },
    /// A redirect that is not followed.
    #[error("{host} redirects {what} to {to}, which is not followed: {reason}")]
    Redirect {
        /// The host that was asked.
        host: String,
        /// Manifest or blob.
        what: String,
        /// Host of the target.
        to: String,
        /// Why not.
        reason: &'static str,
    },
    /// A document that is not what it should be.
    #[error("{what}: {reason}")]
    Document {
        /// Manifest, index or configuration.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The bytes are not those that were asked for.
    #[error("{host} sent other content for {want}: its digest is {got}")]
    Mismatch {
        /// The host that was asked.
        host: String,
        /// Digest that was asked for.
        want: Digest,
        /// Digest of what came.
        got: Digest,
    },
    /// The content ended early, went on too long, or stalled.
    #[error("{host} sent {what} incompletely: {reason}")]
    Broken {
        /// The host that was asked.
        host: String,
        /// Manifest or blob.
        what: String,
        /// Cause.
        reason: String,
    },
    /// No host of the registry may be used for it.
    #[error("{0}: no host in hosts.toml has the capability \"{1}\"")]
    NoHost(String, &'static str),
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Reference { .. } | Self::Credentials(_) => Kind::InvalidArgument,
            Self::Hosts { .. } | Self::NoHost(..) => Kind::FailedPrecondition,
            Self::NotFound { .. } => Kind::NotFound,
            _ => Kind::Unknown,
        }
    }
}

#[cfg(test)]
mod tests;
