//! The configuration of an image: hostile JSON to plain values.
//!
//! Of eight megabytes of JSON the smallest entries make hundreds of megabytes of lists, so only what is needed is kept,
//! and every list has a length at which reading ends ([`json::MAX_ENTRIES`]).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::{Digest as _, Sha256};

use crate::json;
use crate::model::{ChainId, Digest, ImageConfig, ImageUser};
use crate::registry::Platform;
use crate::storage::MAX_LAYERS;

/// Bytes of all text that is kept: it stays in memory as long as the image is there, and goes through the index.
const MAX_TEXT: usize = 2 << 20;
/// Characters of a user's name that CRI is told; Linux knows none longer than 32 (useradd(8)).
const MAX_USER: usize = 256;

/// What the store and a container need of a configuration.
#[derive(Clone, Debug)]
pub(crate) struct Configuration {
    /// The machine that it says it is for.
    pub(crate) platform: Platform,
    /// What a container should be like.
    pub(crate) config: ImageConfig,
    /// Digests of the uncompressed layers, lowest first.
    pub(crate) diff_ids: Vec<Digest>,
}

/// The members that are needed; the others, the history above all, are stepped over, but for those that another reader
/// needs and that must not be there twice.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Document {
    architecture: String,
    os: String,
    variant: String,
    config: Execution,
    rootfs: RootFs,
    history: Option<IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Execution {
    user: String,
    env: Vec<String>,
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    working_dir: String,
    volumes: BTreeMap<String, IgnoredAny>,
    stop_signal: String,
    labels: BTreeMap<String, String>,
}

/// Reads a configuration, for whichever machine it is.
///
/// # Errors
/// A sentence for the user.
pub(crate) fn parse(bytes: &[u8]) -> Result<Configuration, String> {
    let document: Document =
        json::from_slice(bytes).map_err(|error| format!("malformed: {error}"))?;
    let platform = Platform {
        os: document.os,
        architecture: document.architecture,
        variant: document.variant,
        // What an entry wants is for whoever chooses among entries.
        features: Vec::new(),
    };
    let diff_ids = document.rootfs.diff_ids;
    if diff_ids.len() > MAX_LAYERS {
        return Err(format!("malformed: more than {MAX_LAYERS} layers"));
    }
    let config = execution(document.config);
    let length = text_length(&config);
    if length > MAX_TEXT {
        return Err(format!(
            "its environment, commands, volumes and labels have {length} bytes, {MAX_TEXT} are the most"
        ));
    }
    Ok(Configuration {
        platform,
        config,
        diff_ids,
    })
}

fn execution(config: Execution) -> ImageConfig {
    ImageConfig {
        user: config.user,
        env: config.env,
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        working_dir: config.working_dir,
        volumes: config.volumes.into_keys().collect(),
        stop_signal: config.stop_signal,
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
        let platform = |text: &str| parse(text.as_bytes()).unwrap().platform;
        let other = platform(&text.replace("ARCH", "s390x"));
        assert_eq!(other.to_string(), "\"linux/s390x\"");
        assert!(!other.runs_here());
        let odd = platform(&text.replace("ARCH", "x\\n\\u001b[2J")).to_string();
        assert_eq!(odd, r#""linux/x\n\u{1b}[2J""#);
        let os = text
            .replace("ARCH", arch)
            .replace("\"linux\"", "\"l\\r\\nx\"");
        let odd = platform(&os).to_string();
        assert!(odd.starts_with(r#""l\r\nx/"#), "{odd}");
        let evil = text
            .replace("ARCH", arch)
            .replace("[]}", "[\"sha256:../x\"]}");
        assert!(
            parse(evil.as_bytes())
                .unwrap_err()
                .contains("is not a digest")
        );
    }

    /// What Go's programs read as well, and take for the same.
    #[test]
    fn configurations_are_read_as_go_reads_them() {
        let id = format!("sha256:{}", "a".repeat(64));
        for text in [
            r#"{"config":{"Labels":{"a":null,"b":"x"},"Env":["A=1",null]},"rootfs":{"diff_ids":["ID"]}}"#,
            r#"{"os":null,"architecture":null,"config":{"labels":{"a":"","b":"x"},"ENV":["A=1",""]},"rootfs":{"diff_ids":["ID"]}}"#,
            r#"{"created":"","Config":{"Labels":{"b":"x","a":null},"Env":["A=1",""],"User":null,"Cmd":null,"Healthcheck":null},
                "RootFS":{"Type":null,"DIFF_ids":["ID"]},"history":null,"size":1.5e3,"x":{"y":[[[]]],"x":{}}}"#,
        ] {
            let got = parse(text.replace("ID", &id).as_bytes()).unwrap();
            let labels: Vec<_> = got
                .config
                .labels
                .iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .collect();
            assert_eq!(labels, [("a", ""), ("b", "x")]);
            assert_eq!(got.config.env, ["A=1", ""]);
            assert_eq!(got.diff_ids.len(), 1);
            assert_eq!(got.config.user, "");
        }
        for text in [
            "{}",
            r#"{"config":null,"rootfs":null}"#,
            r#"{"rootfs":{"diff_ids":null}}"#,
        ] {
            assert!(
                parse(text.as_bytes()).unwrap().diff_ids.is_empty(),
                "{text}"
            );
        }
        let text =
            br#"{"config":{"Env":["A=\ud800x","B=\xff\xfe"],"Labels":{"\ud83d\ude00":"\udc00"}}}"#;
        let text: Vec<u8> = String::from_utf8_lossy(text)
            .replace("\\xff\\xfe", "@")
            .into_bytes();
        let at = text.iter().position(|byte| *byte == b'@').unwrap();
        let text = [&text[..at], b"\xff\xfe", &text[at + 1..]].concat();
        let got = parse(&text).unwrap().config;
        assert_eq!(got.env, ["A=\u{fffd}x", "B=\u{fffd}\u{fffd}"]);
        assert_eq!(got.labels["\u{1f600}"], "\u{fffd}");
    }

    #[test]
    fn platforms_have_many_names_and_are_quoted() {
        let read = |platform: &str| {
            let read = parse(format!("{{{platform}}}").as_bytes());
            read.unwrap().platform
        };
        let here = match std::env::consts::ARCH {
            "aarch64" => ["arm64", "aarch64", "ARM64", "armhf"],
            _ => ["amd64", "x86_64", "X86-64", "i386"],
        };
        for arch in here {
            assert!(read(&format!(r#""architecture":"{arch}""#)).runs_here());
            assert!(read(&format!(r#""OS":"Linux","Architecture":"{arch}""#)).runs_here());
        }
        for (platform, shown) in [
            (r#""os":"windows""#, r#""windows/""#),
            (
                r#""os":"linux","architecture":"s390x\nlevel=error""#,
                r#""linux/s390x\nlevel=error""#,
            ),
            (
                r#""os":"a\u001b[2J","architecture":"amd64""#,
                r#""a\u{1b}[2J/amd64""#,
            ),
        ] {
            let platform = read(platform);
            let said = platform.to_string();
            assert!(!platform.runs_here());
            assert!(
                said.contains(shown) && !said.contains(char::is_control),
                "{said}"
            );
        }
    }

    #[test]
    fn a_member_that_is_there_twice_is_refused() {
        for text in [
            r#"{"os":"linux","OS":"linux"}"#,
            r#"{"config":{},"Config":{}}"#,
            r#"{"rootfs":{"diff_ids":[],"DIFF_IDS":[]}}"#,
            r#"{"config":{"Env":[],"env":[]}}"#,
            r#"{"config":{"Labels":{"a":"1","a":"1"}}}"#,
            r#"{"config":{"Volumes":{"/a":{},"/a":{}}}}"#,
            r#"{"history":[],"history":[]}"#,
        ] {
            let said = parse(text.as_bytes()).unwrap_err();
            assert!(said.contains("duplicate member"), "{text}: {said}");
        }
        // Keys of a map are what they are.
        let text = r#"{"config":{"Labels":{"a":"1","A":"2"}},"x":{"a":1,"a":2}}"#;
        assert_eq!(parse(text.as_bytes()).unwrap().config.labels.len(), 2);
        for bad in [
            r#"{"config":{"Cmd":"sh"}}"#,
            r#"{"config":[]}"#,
            "[]",
            "{} {}",
            "",
            r#"{"rootfs":{"diff_ids":[null]}}"#,
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
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
            make(json::MAX_ENTRIES).unwrap();
            let said = make(json::MAX_ENTRIES + 1).unwrap_err();
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
