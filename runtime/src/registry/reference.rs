//! Names of images.
//!
//! The grammar is the distribution project's (`reference`), with Docker's rules for names without a
//! registry, which is what the kubelet and every user expect: `busybox` is
//! `docker.io/library/busybox:latest`. It is parsed by hand: the regular expression behind
//! `oci_spec::distribution::Reference` takes 56 ms to compile and keeps 12 MiB for the life of the
//! process (measured, release build: nearly the daemon's whole budget), takes letters outside ASCII in
//! tags and underscores in hosts, and knows no IPv6 hosts. A test compares the two where they agree.

use std::fmt;
use std::str::FromStr;

use super::Error;
use crate::model::Digest;

/// Longest `registry/repository`, bytes (distribution `reference`, `NameTotalLengthMax`).
const MAX_NAME: usize = 255;
/// Longest tag, bytes.
const MAX_TAG: usize = 128;
/// The registry of names that have none.
const DEFAULT_REGISTRY: &str = "docker.io";

/// A fully qualified image name with a tag, a digest, or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// What to ask a registry for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// Whatever the tag means now.
    Tag(&'a str),
    /// Exactly this.
    Digest(Digest),
}

impl fmt::Display for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl Reference {
    /// Host, with the port if one was given.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path within the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. One of tag and digest is always there: a name alone means `latest`.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// `registry/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// `registry/repository:tag`, when the reference means a tag: one with a digest means the digest
    /// alone, and its tag is decoration (row F086).
    pub fn tagged(&self) -> Option<String> {
        match (&self.tag, self.digest) {
            (Some(tag), None) => Some(format!("{}:{tag}", self.name())),
            _ => None,
        }
    }

    /// `registry/repository@digest` for a digest of this repository.
    pub fn with_digest(&self, digest: Digest) -> String {
        format!("{}@{digest}", self.name())
    }

    /// What to ask the registry for: the digest, where there is one.
    pub fn target(&self) -> Target<'_> {
        match (self.digest, &self.tag) {
            (Some(digest), _) => Target::Digest(digest),
            (None, tag) => Target::Tag(tag.as_deref().unwrap_or("latest")),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).map_err(|reason| Error::Reference {
            reference: text.chars().take(300).collect(),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        None => (text, None),
        Some((rest, digest)) => {
            let digest = digest
                .parse()
                .map_err(|_| "after \"@\" stands sha256: and 64 lower-case hexadecimal digits")?;
            (rest, Some(digest))
        }
    };
    let last = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[last..].find(':') {
        None => (rest, None),
        Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..])),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err(
            "a tag has 1 to 128 letters, digits, \"_\", \".\" and \"-\", and starts with neither of the last two",
        );
    }
    let (registry, repository) = split_registry(name)?;
    if registry.len() + 1 + repository.len() > MAX_NAME {
        return Err("the name is longer than 255 characters");
    }
    let tag = tag
        .or_else(|| digest.is_none().then_some("latest"))
        .map(str::to_owned);
    Ok(Reference {
        registry,
        repository,
        tag,
        digest,
    })
}

/// Separates the registry from the path as Docker does: the first component is a host when it could
/// not be part of a path, or is `localhost`.
fn split_registry(name: &str) -> Result<(String, String), &'static str> {
    if name.is_empty() {
        return Err("the name is empty");
    }
    if name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("64 hexadecimal digits are an image id, which no registry knows");
    }
    let is_host = |first: &str| {
        first == "localhost"
            || first.contains(['.', ':', '['])
            || first.bytes().any(|b| b.is_ascii_uppercase())
    };
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_host(first) => (first, path),
        _ => (DEFAULT_REGISTRY, name),
    };
    if !is_registry(registry) {
        return Err("the part before the first \"/\" is not a host name with an optional port");
    }
    if !path.split('/').all(is_path_component) {
        return Err(
            "a repository is lower-case letters and digits, separated by \"/\", \".\", \"_\", \"__\" or dashes",
        );
    }
    let registry = match registry {
        "index.docker.io" => DEFAULT_REGISTRY,
        other => other,
    };
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    Ok((registry.to_owned(), repository))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = tag.as_bytes();
    bytes.len() <= MAX_TAG
        && bytes.first().is_some_and(|b| word(*b))
        && bytes.iter().all(|b| word(*b) || matches!(b, b'.' | b'-'))
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (Err(address), None),
            Some((address, port)) => match port.strip_prefix(':') {
                Some(port) => (Err(address), Some(port)),
                None => return false,
            },
            None => return false,
        },
        None => match registry.split_once(':') {
            Some((host, port)) => (Ok(host), Some(port)),
            None => (Ok(registry), None),
        },
    };
    let host = match host {
        Ok(name) => name.split('.').all(is_domain_component),
        Err(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
    };
    host && port
        .is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

fn is_domain_component(component: &str) -> bool {
    !component.is_empty()
        && !component.starts_with('-')
        && !component.ends_with('-')
        && component
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Letters and digits in groups, between them one `.`, one or two `_`, or dashes.
fn is_path_component(component: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = bytes.first().zip(bytes.last());
    if !ends.is_some_and(|(a, b)| alnum(*a) && alnum(*b)) {
        return false;
    }
    bytes
        .split(|b| alnum(*b))
        .filter(|separator| !separator.is_empty())
        .all(|separator| {
            matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const D: &str = "sha256:9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf";

    fn whole(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn short_names_are_expanded_as_docker_does() {
        for (text, want) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1", "docker.io/library/busybox:1"),
            ("berth/x", "docker.io/berth/x:latest"),
            ("docker.io/x", "docker.io/library/x:latest"),
            ("index.docker.io/a/b", "docker.io/a/b:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x:1", "localhost:5000/x:1"),
            ("test.com:5000", "docker.io/library/test.com:5000"),
            ("[::1]:5000/a__b/c---d", "[::1]:5000/a__b/c---d:latest"),
            ("Host/x", "Host/x:latest"),
            ("r.io/a/b/c.d_e:T-1.2_", "r.io/a/b/c.d_e:T-1.2_"),
        ] {
            assert_eq!(whole(text), want, "{text}");
        }
        assert_eq!(whole(&format!("r.io/a@{D}")), format!("r.io/a@{D}"));
    }

    #[test]
    fn a_digest_wins_over_a_tag() {
        let both: Reference = format!("r.io/a:1@{D}").parse().unwrap();
        assert_eq!(both.target(), Target::Digest(D.parse().unwrap()));
        assert_eq!(both.tagged(), None);
        assert_eq!(both.tag(), Some("1"));
        let tag: Reference = "r.io/a".parse().unwrap();
        assert_eq!(tag.target(), Target::Tag("latest"));
    }

    #[test]
    fn what_is_not_a_reference_is_refused() {
        let long = format!("r.io/{}", "a".repeat(251));
        for bad in [
            "",
            ":",
            "a:",
            "@",
            "a@",
            "/a",
            "a/",
            "a//b",
            "a/../b",
            "../a",
            "a b",
            "A",
            "r.io/A",
            "r.io/a:é",
            "r.io/é",
            "r.io/a:-x",
            "r.io/a:b:c",
            "a___b",
            "a..b",
            "-a",
            "a-",
            "r.io:x/a",
            "r.io:/a:1:2",
            "r.io:99999/a",
            "-r.io/a",
            "r..io/a",
            "[::1/a",
            "[x]/a",
            "http://r.io/a",
            "user@r.io/a",
            "r.io/a@sha512:00",
            "r.io/a@sha256:../../x",
            &long,
            &"a".repeat(64),
            &format!("r.io/a@{}", D.to_uppercase()),
            &format!("r.io/a:{}", "t".repeat(129)),
            "r.io/a\n",
            "r.io/a\0",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_and_what_parses_is_stable(text in "\\PC{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let whole = reference.to_string();
                prop_assert_eq!(whole.parse::<Reference>().unwrap().to_string(), whole);
            }
        }

        /// Differential: on plain host names and ASCII, the library of the field says the same.
        #[test]
        fn agrees_with_oci_spec(text in "([a-z0-9.-]{1,9}(:[0-9]{1,4})?/)?[a-z0-9._-]{1,6}(/[a-z0-9_.-]{1,6})?(:[A-Za-z0-9_.-]{0,5})?") {
            let ours = text.parse::<Reference>().map(|r| r.to_string()).ok();
            let theirs = text.parse::<oci_spec::distribution::Reference>().ok();
            // It takes hosts that no host can be called, when they could be the beginning of a path.
            let theirs = theirs.filter(|r| is_registry(r.registry())).map(|r| r.whole());
            prop_assert_eq!(ours, theirs);
        }
    }
}
