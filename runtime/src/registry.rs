//! Registries: names, hosts, credentials, manifests and blobs.
//!
//! [`Registry`] holds what outlives a pull (connections, tokens); [`Session`] is one pull's way to its
//! repository through the hosts that `hosts.toml` names. Everything that comes back is hostile:
//! sizes are bounded, digests checked, and types taken from verified bytes. Credentials are bound to
//! the host they are for and never travel with a redirect.

mod auth;
mod blob;
mod certificate;
mod challenge;
mod client;
mod exchange;
mod explain;
#[cfg(test)]
pub(crate) mod fake;
mod hosts;
mod login;
mod manifest;
mod pace;
mod platform;
mod proxy;
mod redirect;
mod reference;
mod refusal;
mod resolve;
mod rounds;
mod search;
mod session;
mod tls;
mod token;
mod trace;
mod trust;
mod words;

use std::path::PathBuf;
use std::time::Duration;

pub use blob::{Blob, Resume};
pub use explain::explain;
pub use hosts::{broken_hosts, check_hosts};
pub use login::of_pull_secret;
pub use manifest::{Content, Entry, Index, MAX_CONFIG, MAX_MANIFEST, Manifest, parse};
pub use platform::Platform;
pub use reference::{Reference, Target};
pub use resolve::Resolved;
pub use search::{Search, Step, ToldBy};
pub use session::{Document, Registry, Session};

/// A registry that sends nothing for this long is given up.
pub const DEFAULT_SILENCE: Duration = Duration::from_secs(60);

/// What an operator decides about all registries.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of `hosts.toml` files; may be absent.
    pub hosts_dir: PathBuf,
    /// Credentials of the node, in the format of docker's `config.json`; may be absent.
    pub credentials_file: Option<PathBuf>,
    /// `REGISTRY=HOST`: the token service of a registry, which may see its credentials although it is of another domain.
    pub token_services: Vec<String>,
    /// A registry that sends nothing for this long, or next to nothing for five times as long, is given up; none: never.
    pub silence: Option<Duration>,
}

impl From<PathBuf> for Config {
    /// With a directory of `hosts.toml` files, and nothing else.
    fn from(hosts_dir: PathBuf) -> Self {
        Self {
            hosts_dir,
            credentials_file: None,
            token_services: Vec::new(),
            silence: Some(DEFAULT_SILENCE),
        }
    }
}

use crate::model::{Digest, Kind, Kinded};

impl From<&crate::config::Config> for Config {
    fn from(config: &crate::config::Config) -> Self {
        let silence = u64::from(config.silence_limit);
        Self {
            hosts_dir: config.registry_hosts_dir.clone(),
            credentials_file: Some(config.credentials_file.clone()),
            token_services: config.token_services.clone(),
            silence: (silence > 0).then(|| Duration::from_secs(silence)),
        }
    }
}

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
    /// The node's own credentials cannot be had.
    #[error("the credentials of this node for {host} cannot be had: {}: {reason}", path.display())]
    Login {
        /// The host that they would be for.
        host: String,
        /// The file that names them, or the helper.
        path: PathBuf,
        /// What is wrong with it; nothing secret.
        reason: String,
    },
    /// No answer. The kubelet knows this beginning (row R062).
    #[error("RegistryUnavailable: {host}: {reason}")]
    Unavailable {
        /// The host that was asked.
        host: String,
        /// Cause.
        reason: String,
        /// Another try would end the same: a certificate that is not trusted.
        lasting: bool,
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
    #[error("{host} answered {status} for {what}{}{}", .detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default(), .retry_after.map(|d| format!("; it asks to be left alone for {} s", d.as_secs())).unwrap_or_default())]
    Status {
        /// The host that was asked.
        host: String,
        /// Manifest or blob.
        what: String,
        /// HTTP status.
        status: u16,
        /// What the registry said about it.
        detail: Option<String>,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
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
    /// None of several hosts did it.
    #[error("{}", everywhere(*counts, errors))]
    Everywhere {
        /// Which of them decides what kind of error it is.
        counts: usize,
        /// What each of them said, in the order in which they are configured.
        errors: Vec<Error>,
    },
    /// No host of the registry may be used for it.
    #[error("{0}: no host in hosts.toml has the capability \"{1}\"")]
    NoHost(String, &'static str),
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Reference { .. } | Self::Credentials(_) => Kind::InvalidArgument,
            Self::Hosts { .. } | Self::NoHost(..) | Self::Login { .. } => Kind::FailedPrecondition,
            Self::NotFound { .. } => Kind::NotFound,
            Self::Everywhere { counts, errors } => {
                errors.get(*counts).map_or(Kind::Unknown, Kinded::kind)
            }
            _ => Kind::Unknown,
        }
    }
}

/// One sentence for each host. The kubelet's word stands at the beginning, if the one that counts has it.
fn everywhere(counts: usize, errors: &[Error]) -> String {
    let sentences = errors.iter().map(|error| match error {
        Error::Unavailable { host, reason, .. } => format!("{host}: {reason}"),
        other => other.to_string(),
    });
    let sentences: Vec<_> = sentences.collect();
    let silent = matches!(errors.get(counts), Some(Error::Unavailable { .. }));
    let begin = if silent { "RegistryUnavailable: " } else { "" };
    format!("{begin}{}", sentences.join("; "))
}

/// Whether a status tells of a state and not of the request. Proxies have many of their own above 511.
fn passes(status: u16) -> bool {
    match status {
        // What was asked for is not spoken there, leads in circles, or wants a login at the network itself.
        501 | 505 | 506 | 508 | 510 | 511 => false,
        429 | 500..=599 => true,
        _ => false,
    }
}

impl Error {
    /// Whether another try may end better, and how long the registry wants to wait for it.
    fn passing(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { lasting: false, .. } | Self::Broken { .. } => Some(Duration::ZERO),
            Self::Status {
                status,
                retry_after,
                ..
            } if passes(*status) => Some(retry_after.unwrap_or_default()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
