//! The configuration of an image: hostile JSON to plain values.
//!
//! Of eight megabytes of JSON the smallest entries make hundreds of megabytes of lists, so only what is needed is kept,
//! and every list has a length at which reading ends.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use oci_spec::image::{Arch, Os};
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use sha2::{Digest as _, Sha256};

use crate::model::{ChainId, Digest, ImageConfig, ImageUser};
use crate::registry::matches_host;
use crate::storage::MAX_LAYERS;

/// Entries of one list or map. Images have some dozens.
const MAX_ENTRIES: usize = 10_000;
/// Bytes of all text that is kept: it stays in memory as long as the image is there, and goes through the index.
const MAX_TEXT: usize = 2 << 20;
/// Characters of a user's name that CRI is told; Linux knows none longer than 32 (useradd(8)).
const MAX_USER: usize = 256;
/// Characters of a platform in a message.
const SHOWN: usize = 40;

/// What the store and a container need of a configuration.
#[derive(Clone, Debug)]
pub(crate) struct Configuration {
    /// What a container should be like.
    pub(crate) config: ImageConfig,
    /// Digests of the uncompressed layers, lowest first.
    pub(crate) diff_ids: Vec<Digest>,
}

/// The members that are needed; the others, the history above all, are stepped over.
#[derive(Deserialize)]
struct Document {
    architecture: Arch,
    os: Os,
    variant: Option<String>,
    #[serde(default)]
    config: Option<Execution>,
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(deserialize_with = "layers")]
    diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Execution {
    user: Option<String>,
    #[serde(deserialize_with = "list")]
    env: Vec<String>,
    #[serde(deserialize_with = "list")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "list")]
    cmd: Vec<String>,
    working_dir: Option<String>,
    #[serde(deserialize_with = "map")]
    volumes: BTreeMap<String, IgnoredAny>,
    stop_signal: Option<String>,
    #[serde(deserialize_with = "map")]
    labels: BTreeMap<String, String>,
}

fn layers<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<Digest>, D::Error> {
    input.deserialize_seq(Limited::<Vec<_>>::new(MAX_LAYERS, "layers"))
}

fn list<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    // Of any type, for tools write null for an empty one.
    input.deserialize_any(Limited::<Vec<_>>::new(MAX_ENTRIES, "entries in a list"))
}

fn map<'de, D, V>(input: D) -> Result<BTreeMap<String, V>, D::Error>
where
    D: Deserializer<'de>,
    V: Deserialize<'de>,
{
    input.deserialize_any(Limited::<BTreeMap<_, _>>::new(
        MAX_ENTRIES,
        "entries in a map",
    ))
}

/// Reads a list or a map up to a number of entries.
struct Limited<C> {
    max: usize,
    what: &'static str,
    collection: PhantomData<C>,
}

impl<C> Limited<C> {
    fn new(max: usize, what: &'static str) -> Self {
        Self {
            max,
            what,
            collection: PhantomData,
        }
    }

    fn check<E: serde::de::Error>(&self, count: usize) -> Result<(), E> {
        match count > self.max {
            true => Err(E::custom(format!("more than {} {}", self.max, self.what))),
            false => Ok(()),
        }
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Limited<Vec<T>> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(entry) = entries.next_element()? {
            list.push(entry);
            self.check(list.len())?;
        }
        Ok(list)
    }
}

impl<'de, V: Deserialize<'de>> Visitor<'de> for Limited<BTreeMap<String, V>> {
    type Value = BTreeMap<String, V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(BTreeMap::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((key, value)) = entries.next_entry()? {
            map.insert(key, value);
            self.check(map.len())?;
        }
        Ok(map)
    }
}

/// Reads a configuration for this machine.
///
/// # Errors
/// A sentence for the user.
pub(crate) fn parse(bytes: &[u8]) -> Result<Configuration, String> {
    let document: Document =
        serde_json::from_slice(bytes).map_err(|error| format!("malformed: {error}"))?;
    let (os, arch) = (&document.os, &document.architecture);
    if !matches_host(os, arch, document.variant.as_deref()) {
        let platform: String = format!("{os}/{arch}").chars().take(SHOWN).collect();
        return Err(format!(
            "the image is for {platform:?}, which does not run on this machine"
        ));
    }
    let config = execution(document.config.unwrap_or_default());
    let length = text_length(&config);
    if length > MAX_TEXT {
        return Err(format!(
            "its environment, commands, volumes and labels have {length} bytes, {MAX_TEXT} are the most"
        ));
    }
    Ok(Configuration {
        config,
        diff_ids: document.rootfs.diff_ids,
    })
}

fn execution(config: Execution) -> ImageConfig {
    ImageConfig {
        user: config.user.unwrap_or_default(),
        env: config.env,
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        working_dir: config.working_dir.unwrap_or_default(),
        volumes: config.volumes.into_keys().collect(),
        stop_signal: config.stop_signal.unwrap_or_default(),
        labels: config.labels,
    }
}

fn text_length(config: &ImageConfig) -> usize {
    let lists = [
        &config.env,
        &config.entrypoint,
        &config.cmd,
        &config.volumes,
    ];
    let labels = config.labels.iter().flat_map(|(key, value)| [key, value]);
    let texts = lists.into_iter().flatten().chain(labels);
    let texts = texts.chain([&config.user, &config.working_dir, &config.stop_signal]);
    texts.map(String::len).sum()
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

/// What CRI is told about `USER` (row F097). It is in the list of all images, which is one message: of a name
/// that no account has, the beginning is enough.
pub(crate) fn user(text: &str) -> ImageUser {
    match text.split(':').next().unwrap_or_default() {
        "" => ImageUser::Unset,
        name => match name.parse() {
            Ok(uid) => ImageUser::Uid(uid),
            Err(_) => ImageUser::Name(name.chars().take(MAX_USER).collect()),
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
            ("0010", ImageUser::Uid(10)),
            ("+7:x", ImageUser::Uid(7)),
            ("-1", name("-1")),
            ("4294967296", name("4294967296")),
        ] {
            assert_eq!(user(text), want, "{text}");
        }
        let long = "x".repeat(MAX_TEXT);
        assert_eq!(user(&long), name(&long[..MAX_USER]));
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
        assert!(said.contains("\"linux/s390x\""), "{said}");
        let said = parse(text.replace("ARCH", "x\\n\\u001b[2J").as_bytes()).unwrap_err();
        assert!(said.contains(r#""linux/x\n\u{1b}[2J""#), "{said}");
        let os = text
            .replace("ARCH", arch)
            .replace("\"linux\"", "\"l\\r\\nx\"");
        let said = parse(os.as_bytes()).unwrap_err();
        assert!(said.contains(r#""l\r\nx/"#), "{said}");
        let evil = text
            .replace("ARCH", arch)
            .replace("[]}", "[\"sha256:../x\"]}");
        assert!(
            parse(evil.as_bytes())
                .unwrap_err()
                .contains("is not a digest")
        );
    }

    fn with(config: &str, diff_ids: &str) -> Result<Configuration, String> {
        let text = format!(
            r#"{{"architecture":"","os":"","config":{config},"rootfs":{{"diff_ids":[{diff_ids}]}}}}"#
        );
        parse(text.as_bytes())
    }

    fn repeated(entry: impl Fn(usize) -> String, count: usize) -> String {
        let entries: Vec<_> = (0..count).map(entry).collect();
        entries.join(",")
    }

    #[test]
    fn an_image_has_as_many_layers_as_can_be_stacked() {
        let digest = |n: usize| format!("\"sha256:{n:064x}\"");
        let most = with("null", &repeated(digest, MAX_LAYERS)).unwrap();
        assert_eq!(most.diff_ids.len(), MAX_LAYERS);
        let said = with("{}", &repeated(digest, 500)).unwrap_err();
        assert!(said.contains("more than 499 layers"), "{said}");
    }

    #[test]
    fn lists_that_are_too_long_are_refused_and_a_long_history_is_not_read() {
        for (name, brackets) in [
            ("Env", ["[", "]"]),
            ("Cmd", ["[", "]"]),
            ("Entrypoint", ["[", "]"]),
            ("Labels", ["{", "}"]),
            ("Volumes", ["{", "}"]),
        ] {
            let entry = |n: usize| match brackets[0] {
                "[" => "\"\"".to_owned(),
                _ => format!("\"{n}\":{}", if name == "Labels" { "\"\"" } else { "{}" }),
            };
            let make = |count: usize| {
                let entries = repeated(entry, count);
                with(
                    &format!("{{\"{name}\":{}{entries}{}}}", brackets[0], brackets[1]),
                    "",
                )
            };
            make(MAX_ENTRIES).unwrap();
            let said = make(MAX_ENTRIES + 1).unwrap_err();
            assert!(said.contains("more than 10000 entries"), "{name}: {said}");
        }
        let long = |length| with(&format!("{{\"User\":\"{}\"}}", "x".repeat(length)), "");
        long(MAX_TEXT).unwrap();
        let said = long(MAX_TEXT + 1).unwrap_err();
        assert!(said.contains("2097152 are the most"), "{said}");
        let history = repeated(|_| "{}".to_owned(), 100_000);
        let text = format!(
            r#"{{"history":[{history}],"architecture":"","os":"","rootfs":{{"type":"layers","diff_ids":[]}}}}"#
        );
        parse(text.as_bytes()).unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_mixture_of_members_is_read_or_refused(
            members in proptest::collection::vec((
                "architecture|os|variant|config|rootfs|history|x",
                "\"\"|null|1|\"linux\"|\"amd64\"|\\[\\]|\\{\\}|\\[null\\]|\\{\"diff_ids\":\\[\\]\\}|\\{\"diff_ids\":\\[\"x\"\\]\\}",
            ), 0..7),
            inner in proptest::collection::vec((
                "User|Env|Entrypoint|Cmd|WorkingDir|Volumes|StopSignal|Labels|ExposedPorts|x",
                "\"\"|null|1|\\[\\]|\\{\\}|\\[null\\]|\\[\"a\"\\]|\\{\"a\":\\{\\}\\}|\\{\"a\":\"b\"\\}|\\{\"a\":null\\}",
            ), 0..5),
        ) {
            let text = |members: &[(String, String)]| {
                let text: Vec<_> = members.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
                text.join(",")
            };
            let _ = parse(format!("{{{}}}", text(&members)).as_bytes());
            let _ = with(&format!("{{{}}}", text(&inner)), "");
        }
    }
}
