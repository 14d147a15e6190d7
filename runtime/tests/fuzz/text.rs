//! Targets whose input is text: references, JSON, manifests, hosts.toml.

use std::str::FromStr as _;

use berth::json;
use berth::registry::{Content, Reference, check_hosts, parse};
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde_json::Value;

use crate::engine::{Rng, Target, scramble};

fn of(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// The first words of a sentence, without what it quotes.
fn gist(text: &str) -> String {
    let text = text.rsplit("]: ").next().unwrap_or_default();
    let start = text.split(['"', '`']).next().unwrap_or_default();
    let words: Vec<&str> = start.split(' ').take(4).collect();
    words.join(" ")
}

fn change(rng: &mut Rng, pool: &[Vec<u8>], words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = rng.pick(pool).clone();
    scramble(rng, &mut bytes, pool, words);
    bytes
}

pub(crate) const REFERENCE: Target = Target {
    name: "reference",
    seeds: || {
        of(&[
            "busybox",
            "docker.io/library/busybox:latest",
            "r.example:5000/a/b_c-d.e:Tag-1.0_x",
            "[::1]:5000/x@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "localhost/x:y@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ])
    },
    run: |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return "not text".to_owned();
        };
        match Reference::from_str(text) {
            Ok(reference) => {
                let shown = reference.to_string();
                let again = Reference::from_str(&shown).expect("its own text is a reference");
                assert_eq!(again, reference, "{text:?} is shown as {shown:?}");
                assert!(!shown.contains(|c: char| c.is_control() || c.is_whitespace()));
                let marks: std::collections::BTreeSet<char> =
                    shown.chars().filter(|c| ":@/[].-_".contains(*c)).collect();
                format!("good {marks:?}")
            }
            Err(error) => {
                let text = error.to_string();
                let reason = text.rsplit("reference: ").next().unwrap_or_default();
                reason.to_owned()
            }
        }
    },
    change: |rng, pool| {
        change(
            rng,
            pool,
            &[
                b"@sha256:",
                b"@sha512:",
                b"/",
                b":",
                b"..",
                b"__",
                b"--",
                b"//",
                b"xn--",
                b"[::1]",
                b"localhost",
                b":65536",
                b"\0",
                "\u{e9}".as_bytes(),
                b"A",
            ],
        )
    },
};

const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Without numbers that are not exact, which others round by rules of their own.
fn is_exact(value: &Value) -> bool {
    match value {
        Value::Number(number) => !number.is_f64(),
        Value::Array(list) => list.iter().all(is_exact),
        Value::Object(map) => map.values().all(is_exact),
        _ => true,
    }
}

pub(crate) const JSON: Target = Target {
    name: "json",
    seeds: || {
        of(&[
            r#"{"a":[1,-2,3.5e+7,true,false,null],"b":{"c":"d\n\u00e9\ud83d\ude00"},"e":[]}"#,
            r#"[[[{"a":{}}]],"\ud800",""]"#,
            "{\"a\":1,\"A\":2}",
            "\"\"",
        ])
    },
    run: |bytes| match (
        json::from_slice::<Value>(bytes),
        serde_json::from_slice::<Value>(bytes),
    ) {
        (Ok(ours), Ok(theirs)) => {
            assert!(ours == theirs || !is_exact(&theirs));
            format!("both {}", ours.to_string().len().min(5))
        }
        (Ok(ours), Err(_)) => {
            // Of what only this reader takes, the text had to be replaced.
            assert!(ours.to_string().contains('\u{fffd}'));
            "ours".to_owned()
        }
        (Err(error), theirs) => {
            let error = error.to_string();
            assert!(!error.is_empty() && !error.contains(char::is_control));
            let gist = gist(&error);
            match theirs {
                Ok(_) => format!("theirs {gist}"),
                Err(_) => gist,
            }
        }
    },
    change: |rng, pool| {
        change(
            rng,
            pool,
            &[
                b"{",
                b"}",
                b"[",
                b"]",
                b",",
                b":",
                b"\"",
                b"\\",
                b"null",
                b"\\u",
                b"\\ud800",
                b"\xff",
                b"\xed\xa0\x80",
                b"1e400",
                b"-0",
                b"0.",
                b"[[[[[[[[[[[[",
                b" ",
                b"\0",
                b"\xef\xbb\xbf",
            ],
        )
    },
};

pub(crate) const MANIFEST: Target = Target {
    name: "manifest",
    seeds: || {
        let config = format!(
            "{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"{DIGEST}\",\"size\":7}}"
        );
        let layer = config.replace("config.v1+json", "layer.v1.tar+gzip");
        let oci = "application/vnd.oci.image.manifest.v1+json";
        let index = "application/vnd.oci.image.index.v1+json";
        vec![
            format!("{{\"schemaVersion\":2,\"mediaType\":\"{oci}\",\"config\":{config},\"layers\":[{layer}]}}"),
            format!("{{\"schemaVersion\":2,\"config\":{config},\"layers\":[]}}"),
            format!(
                "{{\"schemaVersion\":2,\"mediaType\":\"{index}\",\"manifests\":[{{\"mediaType\":\"{oci}\",\
                 \"digest\":\"{DIGEST}\",\"size\":9,\"platform\":{{\"os\":\"linux\",\"architecture\":\"amd64\",\
                 \"variant\":\"v2\"}}}}]}}"
            ),
            "{\"schemaVersion\":1,\"fsLayers\":[],\"signatures\":[]}".to_owned(),
            format!("{{\"schemaVersion\":2,\"artifactType\":\"a/b\",\"config\":{config},\"layers\":[{layer}]}}"),
        ]
        .into_iter()
        .map(String::into_bytes)
        .collect()
    },
    run: |bytes| {
        let mut behaviour = String::new();
        for kind in [
            None,
            Some("application/vnd.oci.image.index.v1+json"),
            Some("application/vnd.docker.distribution.manifest.v2+json; charset=utf-8"),
        ] {
            match parse(bytes, kind) {
                Ok(Content::Manifest(manifest)) => {
                    // What was read is what it is: another reader of the same text sees the same image.
                    if let Ok(other) = serde_json::from_slice::<ImageManifest>(bytes) {
                        assert_eq!(other.config().digest(), manifest.config().digest());
                        let digests = |layers: &[Descriptor]| -> Vec<_> {
                            layers.iter().map(|layer| layer.digest().clone()).collect()
                        };
                        let all = digests(other.layers());
                        let ours = digests(manifest.layers());
                        assert!(ours.iter().all(|digest| all.contains(digest)));
                        assert!(manifest.beside().is_some() || all == ours);
                        behaviour += "plain ";
                    }
                    behaviour += "manifest ";
                }
                Ok(Content::Index(index)) => {
                    if let Ok(other) = serde_json::from_slice::<ImageIndex>(bytes) {
                        assert_eq!(other.manifests().len(), index.entries().len());
                        behaviour += "plain ";
                    }
                    behaviour += &match index.candidates() {
                        Ok(candidates) => format!("index {} ", candidates.len().min(3)),
                        Err(_) => "strange index ".to_owned(),
                    };
                }
                Ok(Content::Artifact(_)) => behaviour += "artifact ",
                Err(error) => {
                    assert!(!error.is_empty() && !error.contains(char::is_control));
                    let start = error.split(['"', '`']).next().unwrap_or_default();
                    behaviour += start;
                }
            }
        }
        behaviour
    },
    change: |rng, pool| {
        change(
            rng,
            pool,
            &[
                b"\"manifests\":[]",
                b"\"layers\":[]",
                b"\"config\":{}",
                b"null",
                b"-1",
                b"1e400",
                b"[[[[",
                b"{",
                b"\"schemaVersion\":2,",
                b"\\u0000",
                b"18446744073709551616",
                b"\xef\xbb\xbf",
                b"\"urls\":[\"x\"]",
                b"\"Layers\":[]",
                b"\"MediaType\":\"\",",
                b"\"platform\":{}",
                b"x86_64",
                b"\\ud800",
                b"\xff",
            ],
        )
    },
};

pub(crate) const HOSTS: Target = Target {
    name: "hosts",
    seeds: || {
        of(&[
            "server = \"https://up.example\"\n",
            "[host.\"https://m.example/v2/x\"]\ncapabilities = [\"pull\", \"resolve\"]\nskip_verify = true\n\
             override_path = true\ndial_timeout = \"3s\"\n[host.\"https://m.example/v2/x\".header]\nx-a = [\"1\", \"2\"]\n",
            "ca = \"ca.pem\"\nclient = [[\"a.pem\", \"a.key\"], [\"b.pem\", \"\"]]\n",
            "[host.\"http://a:5000\"]\n[host.\"http://b:5000\"]\nca = [\"x\", \"y\"]\nclient = \"c.pem\"\n",
        ])
    },
    run: |bytes| {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return "not text".to_owned();
        };
        match check_hosts(text, "r.example") {
            Ok(endpoints) => {
                assert!(endpoints > 0, "the registry itself is always one");
                format!("good {}", "x".repeat(endpoints.min(9)))
            }
            Err(error) => {
                assert!(!error.is_empty());
                gist(error.lines().last().unwrap_or_default())
            }
        }
    },
    change: |rng, pool| {
        change(
            rng,
            pool,
            &[
                b"[host.\"https://u:p@x\"]\n",
                b"capabilities = []\n",
                b"\"push\"",
                b"ca = 1\n",
                b"[[host]]\n",
                b"= ",
                b"\"\"",
                b"dial_timeout = \"1h1m1s1ms\"\n",
                b"\"-1s\"",
                b"https://",
                b"?x#y",
                b"\r\n",
                b"\\u0000",
                b"[host.\"x\".header]\n",
                b"\"a\\r\\nb\"",
                b"server = \"\"\n",
            ],
        )
    },
};
