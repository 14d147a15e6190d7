//! Images.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A text that is not a sha256 digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest: \"sha256:\" and 64 lower-case hexadecimal digits are wanted")]
pub struct NotADigest(pub String);

/// A digest, `sha256:` and 64 lower-case hexadecimal digits (OCI image-spec, descriptor.md; Berth takes no other algorithm).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// Digest of an image's configuration: what CRI calls the image id.
pub type ImageId = Digest;

/// Identity of a layer on top of all below it (OCI image-spec, config.md).
pub type ChainId = Digest;

impl Digest {
    /// From the hash itself.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The hash.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 digits without the algorithm.
    pub fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let bad = || NotADigest(text.chars().take(100).collect());
        let hex = text.strip_prefix("sha256:").ok_or_else(bad)?.as_bytes();
        let lower = hex
            .iter()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
        if hex.len() != 64 || !lower {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| bad())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| bad())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = NotADigest;

    fn try_from(text: String) -> Result<Self, NotADigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Digest of its configuration.
    pub id: ImageId,
    /// Fully qualified `registry/repository:tag`.
    pub repo_tags: Vec<String>,
    /// Fully qualified `registry/repository@sha256:…` (the digest that was pulled: of the index, where there was one).
    pub repo_digests: Vec<String>,
    /// Compressed layers and documents, bytes; never 0.
    pub size: u64,
    /// The configured user.
    pub user: ImageUser,
    /// Never collected.
    pub pinned: bool,
    /// What it says a container should be like.
    pub config: ImageConfig,
    /// Chain ids of its layers, lowest first.
    pub chain: Vec<ChainId>,
    /// `os/architecture[/variant]` that it says it is for; empty where it says nothing.
    pub platform: String,
}

/// `USER` of an image, as CRI reports it (row F097): the part before a colon.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ImageUser {
    /// None given.
    #[default]
    Unset,
    /// A number.
    Uid(u32),
    /// A name.
    Name(String),
}

/// The parts of an image's configuration that make a container. All of it is hostile input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `USER`, unparsed.
    pub user: String,
    /// Environment, `KEY=value`.
    pub env: Vec<String>,
    /// Entry point.
    pub entrypoint: Vec<String>,
    /// Command.
    pub cmd: Vec<String>,
    /// Working directory.
    pub working_dir: String,
    /// Declared volumes.
    pub volumes: Vec<String>,
    /// Stop signal, by name or number; empty: none.
    pub stop_signal: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// An image made ready to be the root of a container.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// Its id.
    pub id: ImageId,
    /// First tag, else digest reference, else id.
    pub name: String,
    /// Digest reference, else id.
    pub reference: String,
    /// Its configuration.
    pub config: ImageConfig,
    /// Chain ids of its layers, lowest first.
    pub chain: Vec<ChainId>,
}

/// Use of the file system that holds images or writable layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsUsage {
    /// Nanoseconds since the Unix epoch.
    pub timestamp: i64,
    /// An existing directory on it.
    pub mountpoint: PathBuf,
    /// Bytes.
    pub used_bytes: u64,
    /// Inodes.
    pub inodes_used: u64,
}

/// Credentials for a registry, as CRI's `AuthConfig`. Its `Debug` shows nothing.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RegistryAuth {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Base64 of `user:password`.
    pub auth: String,
    /// The host these are for; empty: the image's.
    pub server_address: String,
    /// OAuth2 refresh token.
    pub identity_token: String,
    /// Bearer token to send as it is.
    pub registry_token: String,
}

impl fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegistryAuth(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_parse_strictly_and_print_as_they_were() {
        let text = format!("sha256:{}", "0af9".repeat(16));
        assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        for bad in [
            "",
            "sha256:",
            "sha256:../../x",
            "sha512:00",
            &text[..70],
            &text.to_uppercase(),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn credentials_never_print() {
        let auth = RegistryAuth {
            password: "secret".into(),
            ..RegistryAuth::default()
        };
        assert!(!format!("{auth:?}").contains("secret"));
    }
}
