//! The configuration of an image: hostile JSON to plain values.

use oci_spec::image::ImageConfiguration;
use sha2::{Digest as _, Sha256};

use crate::model::{ChainId, Digest, ImageConfig, ImageUser};
use crate::registry::matches_host;

/// Layers an image may have. overlayfs takes 500 lower directories (`OVL_MAX_STACK`).
const MAX_LAYERS: usize = 500;

/// What the store and a container need of a configuration.
#[derive(Clone, Debug)]
pub(crate) struct Configuration {
    /// What a container should be like.
    pub(crate) config: ImageConfig,
    /// Digests of the uncompressed layers, lowest first.
    pub(crate) diff_ids: Vec<Digest>,
}

/// Reads a configuration for this machine.
///
/// # Errors
/// A sentence for the user.
pub(crate) fn parse(bytes: &[u8]) -> Result<Configuration, String> {
    let document: ImageConfiguration =
        serde_json::from_slice(bytes).map_err(|error| format!("malformed: {error}"))?;
    if !matches_host(
        document.os(),
        document.architecture(),
        document.variant().as_deref(),
    ) {
        return Err(format!(
            "the image is for {}/{}, which does not run on this machine",
            document.os(),
            document.architecture()
        ));
    }
    let diff_ids = document.rootfs().diff_ids();
    if diff_ids.len() > MAX_LAYERS {
        return Err(format!(
            "{} layers, {MAX_LAYERS} are the most",
            diff_ids.len()
        ));
    }
    let diff_ids = diff_ids
        .iter()
        .map(|text| text.parse::<Digest>().map_err(|error| error.to_string()))
        .collect::<Result<_, _>>()?;
    Ok(Configuration {
        config: execution(&document),
        diff_ids,
    })
}

fn execution(document: &ImageConfiguration) -> ImageConfig {
    let Some(config) = document.config() else {
        return ImageConfig::default();
    };
    let list = |value: &Option<Vec<String>>| value.clone().unwrap_or_default();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let mut volumes = list(config.volumes());
    // The library reads them through a hash map.
    volumes.sort();
    ImageConfig {
        user: text(config.user()),
        env: list(config.env()),
        entrypoint: list(config.entrypoint()),
        cmd: list(config.cmd()),
        working_dir: text(config.working_dir()),
        volumes,
        stop_signal: text(config.stop_signal()),
        labels: config
            .labels()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect(),
    }
}

/// Chain ids of layers, lowest first (OCI image-spec, config.md, "Layer ChainID").
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<ChainId> {
    let mut chain: Vec<ChainId> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let id = match chain.last() {
            None => *diff_id,
            Some(parent) => {
                Digest::from_bytes(Sha256::digest(format!("{parent} {diff_id}")).into())
            }
        };
        chain.push(id);
    }
    chain
}

/// What CRI is told about `USER` (row F097).
pub(crate) fn user(text: &str) -> ImageUser {
    match text.split(':').next().unwrap_or_default() {
        "" => ImageUser::Unset,
        name => match name.parse() {
            Ok(uid) => ImageUser::Uid(uid),
            Err(_) => ImageUser::Name(name.to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn users_are_told_as_the_kubelet_wants_them() {
        let name = |text: &str| ImageUser::Name(text.to_owned());
        for (text, want) in [
            ("", ImageUser::Unset),
            (":5", ImageUser::Unset),
            ("1002", ImageUser::Uid(1002)),
            ("1003:1004", ImageUser::Uid(1003)),
            ("www-data", name("www-data")),
            ("www-data:1004", name("www-data")),
            ("0", ImageUser::Uid(0)),
            ("-1", name("-1")),
            ("4294967296", name("4294967296")),
        ] {
            assert_eq!(user(text), want, "{text}");
        }
    }

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        let a: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let b: Digest = format!("sha256:{}", "b".repeat(64)).parse().unwrap();
        let chain = chain_ids(&[a, b]);
        assert_eq!(chain[0], a);
        let want = Sha256::digest(format!("sha256:{} sha256:{}", a.hex(), b.hex()));
        assert_eq!(chain[1], Digest::from_bytes(want.into()));
        assert!(chain_ids(&[]).is_empty());
    }

    #[test]
    fn nulls_and_unknown_members_are_endured_and_strangers_refused() {
        let text = r#"{"architecture":"ARCH","os":"linux","x":1,"rootfs":{"type":"layers","diff_ids":[]},
            "config":{"Env":null,"Cmd":["sh"],"Volumes":{"/b":{},"/a":{}},"Labels":null,"User":"u:g"}}"#;
        let arch = if cfg!(target_arch = "aarch64") {
            "arm64"
        } else {
            "amd64"
        };
        let got = parse(text.replace("ARCH", arch).as_bytes()).unwrap();
        assert_eq!(got.config.volumes, ["/a", "/b"]);
        assert_eq!((got.config.user.as_str(), got.config.cmd.len()), ("u:g", 1));
        let said = parse(text.replace("ARCH", "s390x").as_bytes()).unwrap_err();
        assert!(said.contains("linux/s390x"), "{said}");
        let evil = text
            .replace("ARCH", arch)
            .replace("[]}", "[\"sha256:../x\"]}");
        assert!(
            parse(evil.as_bytes())
                .unwrap_err()
                .contains("is not a digest")
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
