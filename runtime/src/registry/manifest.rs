//! Manifests and indexes: from verified bytes to types, and from an index to this machine's image.
//!
//! What a document is follows from its bytes. One that could be read in two ways is refused
//! (CVE-2021-41190), and so is a Content-Type that contradicts it.

use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest, Os, Platform};
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Longest manifest or index, bytes (containerd's limit as well).
pub const MAX_MANIFEST: usize = 4 << 20;
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
    Index(Box<ImageIndex>),
    /// One image.
    Manifest(Box<ImageManifest>),
}

/// The members that tell what a document is. serde refuses a member that is there twice.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<IgnoredAny>,
    manifests: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
    signatures: Option<IgnoredAny>,
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
        serde_json::from_slice(bytes).map_err(|error| format!("not a manifest: {error}"))?;
    let said = content_type.map(|text| text.split(';').next().unwrap_or_default().trim());
    let schema1 = [shape.media_type.as_deref(), said]
        .iter()
        .flatten()
        .any(|kind| kind.starts_with(SCHEMA1));
    if schema1 || shape.schema_version == Some(1) || shape.fs_layers.is_some() {
        return Err(
            "it is a Docker schema 1 manifest, a format without content digests that was given up in 2017; push the image again with a current tool"
                .to_owned(),
        );
    }
    if shape.schema_version != Some(2) {
        return Err("schemaVersion is not 2".to_owned());
    }
    let image = shape.layers.is_some() || shape.config.is_some() || shape.signatures.is_some();
    let index = shape.manifests.is_some();
    if index && image {
        return Err("ambiguous: it has the members of an index and of a manifest".to_owned());
    }
    for kind in [shape.media_type.as_deref(), said].into_iter().flatten() {
        let contradicts =
            (INDEXES.contains(&kind) && !index) || (MANIFESTS.contains(&kind) && index);
        if contradicts {
            return Err(format!("ambiguous: it is called {kind:?} and is not one"));
        }
    }
    if let (Some(inside), Some(said)) = (shape.media_type.as_deref(), said) {
        let known = |kind| INDEXES.contains(&kind) || MANIFESTS.contains(&kind);
        if known(inside) && known(said) && inside != said {
            return Err(format!(
                "ambiguous: it calls itself {inside:?}, and the registry calls it {said:?}"
            ));
        }
    }
    let words = |error: serde_json::Error| format!("malformed: {error}");
    if index {
        serde_json::from_slice(bytes)
            .map(|index| Content::Index(Box::new(index)))
            .map_err(words)
    } else if shape.layers.is_some() && shape.config.is_some() {
        let manifest: ImageManifest = serde_json::from_slice(bytes).map_err(words)?;
        is_runnable(&manifest)?;
        Ok(Content::Manifest(Box::new(manifest)))
    } else if shape.artifact_type.is_some() {
        Err("it is an artifact, not an image".to_owned())
    } else {
        Err("it has neither manifests nor config and layers".to_owned())
    }
}

/// Refuses an artifact before its configuration is read as that of an image. The type alone makes none: an image may
/// have one as well, and tools call the configurations of images by many names.
fn is_runnable(manifest: &ImageManifest) -> Result<(), String> {
    let config = manifest.config().media_type().to_string();
    let artifact = manifest.artifact_type().as_ref();
    let artifact = artifact
        .map(ToString::to_string)
        .filter(|kind| !kind.is_empty() && !CONFIGS.contains(&config.as_str()));
    if artifact.is_none() && config != EMPTY {
        return Ok(());
    }
    let kind: String = artifact.unwrap_or(config).chars().take(100).collect();
    Err(format!(
        "it is an artifact ({kind:?}), not an image: there is nothing in it to run"
    ))
}

/// The entry of an index that fits this machine best.
///
/// # Errors
/// A sentence that lists what there is.
pub fn choose(index: &ImageIndex) -> Result<&Descriptor, String> {
    let best = index
        .manifests()
        .iter()
        .filter_map(|entry| Some((rank_entry(entry)?, entry)))
        // The first of equals, as every client takes it.
        .min_by_key(|(rank, _)| *rank);
    best.map(|(_, entry)| entry).ok_or_else(|| {
        let mut there: Vec<_> = index
            .manifests()
            .iter()
            .filter_map(|entry| entry.platform().as_ref())
            .map(platform_name)
            .filter(|name| name != "unknown/unknown")
            .collect();
        there.sort();
        there.dedup();
        there.truncate(16);
        let there: Vec<_> = there.iter().map(|name| format!("{name:?}")).collect();
        format!(
            "no image for linux/{} is in it, only for: {}",
            host_arch(),
            there.join(", ")
        )
    })
}

fn platform_name(platform: &Platform) -> String {
    let mut name = format!("{}/{}", platform.os(), platform.architecture());
    if let Some(variant) = platform.variant().as_deref().filter(|v| !v.is_empty()) {
        name = format!("{name}/{variant}");
    }
    name.chars().take(40).collect()
}

/// Lower is better.
fn rank_entry(entry: &Descriptor) -> Option<u8> {
    match entry.platform() {
        Some(platform) => {
            let variant = platform.variant().as_deref().unwrap_or_default();
            (*platform.os() == Os::Linux)
                .then(|| rank(&platform.architecture().to_string(), variant))?
        }
        // An entry that does not say may fit; its configuration will tell.
        None => Some(u8::MAX),
    }
}

/// Whether an image with this configuration runs here. Empty values are those of tools that leave them out.
pub fn matches_host(os: &Os, arch: &Arch, variant: Option<&str>) -> bool {
    let (os, arch) = (os.to_string(), arch.to_string());
    (os.is_empty() || os == "linux")
        && (arch.is_empty() || rank(&arch, variant.unwrap_or_default()).is_some())
}

/// This machine's architecture, as Go and OCI call it.
fn host_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

fn rank(arch: &str, variant: &str) -> Option<u8> {
    match (host_arch(), arch) {
        ("amd64", "amd64") => {
            let level = match variant {
                "" | "v1" => 1,
                "v2" => 2,
                "v3" => 3,
                "v4" => 4,
                _ => return None,
            };
            (level <= cpu_level()).then(|| 10 - level)
        }
        // The kernel runs these too; containerd takes them when there is nothing better.
        ("amd64", "386") => Some(20),
        ("arm64", "arm64") => match variant {
            "v8" => Some(0),
            "" => Some(1),
            _ => variant.starts_with("v8.").then_some(2),
        },
        (host, arch) => (host == arch).then_some(0),
    }
}

/// The x86-64 level of this processor (psABI, "micro-architecture levels").
#[cfg(target_arch = "x86_64")]
fn cpu_level() -> u8 {
    use std::arch::is_x86_feature_detected as has;
    let v2 = has!("sse4.2") && has!("ssse3") && has!("popcnt") && has!("cmpxchg16b");
    let v3 = v2
        && has!("avx2")
        && has!("bmi1")
        && has!("bmi2")
        && has!("f16c")
        && has!("fma")
        && has!("lzcnt")
        && has!("movbe");
    let v4 = v3
        && has!("avx512f")
        && has!("avx512bw")
        && has!("avx512cd")
        && has!("avx512dq")
        && has!("avx512vl");
    1 + u8::from(v2) + u8::from(v3) + u8::from(v4)
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_level() -> u8 {
    1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const D: &str = "sha256:9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf";

    fn entry(platform: &str) -> String {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{D}","size":1{platform}}}"#
        )
    }

    fn platform(os: &str, arch: &str, variant: &str) -> String {
        entry(&format!(
            r#","platform":{{"os":"{os}","architecture":"{arch}","variant":"{variant}"}}"#
        ))
    }

    fn index(entries: &[String]) -> ImageIndex {
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            entries.join(",")
        );
        match parse(text.as_bytes(), None).unwrap() {
            Content::Index(index) => *index,
            Content::Manifest(_) => unreachable!(),
        }
    }

    #[test]
    fn documents_are_what_their_bytes_say() {
        let layer = entry("");
        let manifest = format!(r#"{{"schemaVersion":2,"config":{layer},"layers":[{layer}]}}"#);
        for kind in [
            None,
            Some(MANIFESTS[0]),
            Some("application/json; charset=utf-8"),
        ] {
            assert!(matches!(
                parse(manifest.as_bytes(), kind),
                Ok(Content::Manifest(_))
            ));
        }
        assert!(parse(manifest.as_bytes(), Some(INDEXES[0])).is_err());
        for (bad, want) in [
            (
                r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#,
                "ambiguous",
            ),
            (
                r#"{"schemaVersion":2,"manifests":[],"config":{}}"#,
                "ambiguous",
            ),
            (
                r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","config":{},"layers":[]}"#,
                "ambiguous",
            ),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1"),
            (
                r#"{"schemaVersion":2,"layers":[],"layers":[]}"#,
                "duplicate",
            ),
            (
                r#"{"schemaVersion":2,"config":{},"layers":[],"config":{}}"#,
                "duplicate",
            ),
            (
                r#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#,
                "duplicate",
            ),
            ("\u{feff}{}", "not a manifest"),
            (r#"{"schemaVersion":2}"#, "neither"),
            (r#"{"manifests":[]}"#, "schemaVersion"),
            (
                r#"{"schemaVersion":2,"config":null,"layers":[]}"#,
                "neither",
            ),
            ("[]", "not a manifest"),
            (
                r#"{"schemaVersion":2,"config":{"size":-1},"layers":[]}"#,
                "malformed",
            ),
        ] {
            let said = parse(bad.as_bytes(), None).unwrap_err();
            assert!(said.contains(want), "{bad}: {said}");
        }
        let said = parse(
            b"{}",
            Some("application/vnd.docker.distribution.manifest.v1+prettyjws"),
        );
        assert!(said.unwrap_err().contains("schema 1"));
    }

    #[test]
    fn artifacts_are_called_by_their_name() {
        let layer = entry("");
        let read = |config: &str, more: &str| {
            let config = entry("").replace(MANIFESTS[0], config);
            let text =
                format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]{more}}}"#);
            parse(text.as_bytes(), None)
        };
        let kind = r#","artifactType":"application/x-model""#;
        for config in [EMPTY, "application/octet-stream"] {
            let said = read(config, kind).unwrap_err();
            assert!(
                said.contains(r#"an artifact ("application/x-model")"#),
                "{said}"
            );
        }
        let said = read(EMPTY, "").unwrap_err();
        assert!(said.contains("it is an artifact"), "{said}");
        for config in CONFIGS {
            assert!(read(config, kind).is_ok(), "{config}");
        }
        assert!(read("application/octet-stream", "").is_ok());
        let said = parse(
            br#"{"schemaVersion":2,"artifactType":"x","blobs":[]}"#,
            None,
        );
        assert!(said.unwrap_err().contains("it is an artifact"));
    }

    #[test]
    fn a_type_inside_that_is_not_the_one_outside_is_ambiguous() {
        let text = |kind: &str, rest: &str| {
            format!(r#"{{"schemaVersion":2,"mediaType":"{kind}",{rest}}}"#)
        };
        let manifest = format!(r#""config":{0},"layers":[{0}]"#, entry(""));
        for (kinds, rest) in [(INDEXES, r#""manifests":[]"#), (MANIFESTS, &manifest)] {
            for (inside, outside) in [(0, 1), (1, 0)] {
                let text = text(kinds[inside], rest);
                let said = parse(text.as_bytes(), Some(kinds[outside])).unwrap_err();
                assert!(said.contains("the registry calls it"), "{said}");
                assert!(parse(text.as_bytes(), Some(kinds[inside])).is_ok());
            }
        }
    }

    #[test]
    fn the_best_platform_is_chosen() {
        let here = host_arch();
        let other = if here == "amd64" { "s390x" } else { "amd64" };
        let list = index(&[
            platform("windows", here, ""),
            platform("linux", other, ""),
            entry(""),
            platform("linux", here, ""),
            platform("unknown", "unknown", ""),
        ]);
        assert_eq!(choose(&list).unwrap(), &list.manifests()[3]);
        let none = index(&[
            platform("linux", other, ""),
            platform("unknown", "unknown", ""),
        ]);
        let said = choose(&none).unwrap_err();
        assert!(
            said.contains(&format!("linux/{other}")) && !said.contains("unknown"),
            "{said}"
        );
        let unsaid = index(&[platform("linux", other, ""), entry("")]);
        assert_eq!(choose(&unsaid).unwrap(), &unsaid.manifests()[1]);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_level_that_the_processor_has_beats_a_lower_one() {
        let list = index(&[
            platform("linux", "386", ""),
            platform("linux", "amd64", ""),
            platform("linux", "amd64", "v2"),
            platform("linux", "amd64", "v9"),
        ]);
        let want = if cpu_level() >= 2 { 2 } else { 1 };
        assert_eq!(choose(&list).unwrap(), &list.manifests()[want]);
        assert!(matches_host(&Os::Linux, &Arch::i386, None));
        assert!(!matches_host(&Os::Linux, &Arch::ARM64, None));
        assert!(!matches_host(&Os::Windows, &Arch::Amd64, None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, None);
        }

        #[test]
        fn any_mixture_of_members_is_read_or_refused(members in proptest::collection::vec((
            "schemaVersion|mediaType|manifests|layers|config|fsLayers|subject|annotations",
            "2|1|-1|null|\"x\"|\\[\\]|\\{\\}|\\[null\\]|\\[\\{\\}\\]|99999999999999999999",
        ), 0..6)) {
            let text: Vec<_> = members.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
            let _ = parse(format!("{{{}}}", text.join(",")).as_bytes(), None);
        }
    }
}
