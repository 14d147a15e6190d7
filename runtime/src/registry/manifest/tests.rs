//! Documents as tools write them, and as nobody should.

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

fn index(entries: &[String]) -> Index {
    let text = format!(
        r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
        entries.join(",")
    );
    match parse(text.as_bytes(), None).unwrap() {
        Content::Index(index) => index,
        _ => unreachable!(),
    }
}

#[test]
fn documents_are_what_their_bytes_say() {
    let layer = entry("").replace(MANIFESTS[0], "");
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
        (r#"{"schemaVersion":3,"manifests":[]}"#, "schemaVersion"),
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
fn odd_entries_for_this_machine_spoil_no_index() {
    let here = platform("linux", host_arch(), "");
    let elsewhere = platform("linux", "s390x", "");
    for digest in ["md5:d41d8cd98f00b204e9800998ecf8427e", "sha512:00", "", "x"] {
        let odd = here.replace(D, digest);
        let good = index(&[odd.clone(), elsewhere.clone(), here.clone()]);
        let found = good.candidates().unwrap();
        assert_eq!((found.len(), found[0].digest()), (1, D), "{digest}");
        let said = index(&[elsewhere.clone(), odd]).candidates().unwrap_err();
        assert!(
            said.contains(&format!("{digest:?}")) && said.contains("only sha256"),
            "{said}"
        );
        assert!(said.contains(host_arch()), "{said}");
    }
}

#[test]
fn entries_that_want_features_are_for_others() {
    let plain = platform("linux", host_arch(), "");
    let wants = |features: &str| {
        let with = format!(r#""variant":"","os.features":{features}"#);
        plain.replace(r#""variant":"""#, &with)
    };
    let other = D.replace("9700", "0079");
    let both = index(&[wants(r#"["erofs"]"#), plain.replace(D, &other)]);
    assert_eq!(both.candidates().unwrap()[0].digest(), other);
    let said = index(&[wants(r#"["erofs"]"#)]).candidates().unwrap_err();
    assert!(
        said.contains("no image for") && said.contains("\"erofs\""),
        "{said}"
    );
    for none in ["[]", "null", r#"[""]"#] {
        assert!(index(&[wants(none)]).candidates().is_ok(), "{none}");
    }
}

#[test]
fn a_wrong_version_is_passed_over_where_the_type_is_of_today() {
    let layer = entry("").replace(MANIFESTS[0], "");
    let text = |kind: &str, rest: &str| format!(r#"{{"schemaVersion":1,{kind}{rest}}}"#);
    let image = format!(r#""config":{layer},"layers":[{layer}]"#);
    for kind in MANIFESTS {
        let inside = text(&format!(r#""mediaType":"{kind}","#), &image);
        assert!(matches!(
            parse(inside.as_bytes(), None),
            Ok(Content::Manifest(_))
        ));
        assert!(parse(text("", &image).as_bytes(), Some(kind)).is_ok());
        let old = text("", &format!(r#"{image},"fsLayers":[]"#));
        assert!(
            parse(old.as_bytes(), Some(kind))
                .unwrap_err()
                .contains("schema 1")
        );
    }
    for kind in INDEXES {
        assert!(parse(text("", r#""manifests":[]"#).as_bytes(), Some(kind)).is_ok());
    }
    assert!(
        parse(text("", &image).as_bytes(), None)
            .unwrap_err()
            .contains("schema 1")
    );
}

#[test]
fn artifacts_are_called_by_their_name() {
    let layer = entry("").replace(MANIFESTS[0], "");
    let read = |config: &str, more: &str| {
        let config = entry("").replace(MANIFESTS[0], config);
        let text = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]{more}}}"#);
        parse(text.as_bytes(), None)
    };
    let kind = r#","artifactType":"application/x-model""#;
    for config in [EMPTY, "application/octet-stream"] {
        let Ok(Content::Artifact(said)) = read(config, kind) else {
            panic!("{config}");
        };
        assert!(
            said.contains(r#"an artifact ("application/x-model")"#),
            "{said}"
        );
    }
    assert!(matches!(read(EMPTY, ""), Ok(Content::Artifact(_))));
    let image = |content| matches!(content, Ok(Content::Manifest(_)));
    for config in CONFIGS {
        assert!(image(read(config, kind)), "{config}");
    }
    assert!(image(read("application/octet-stream", "")));
    for text in [
        r#"{"schemaVersion":2,"artifactType":"x","blobs":[]}"#,
        r#"{"blobs":[]}"#,
    ] {
        let got = parse(text.as_bytes(), None);
        assert!(matches!(got, Ok(Content::Artifact(_))), "{text}: {got:?}");
    }
}

/// Docker's and OCI's names are of one kind; a manifest that is called an index is none of either.
#[test]
fn only_a_type_of_another_kind_is_ambiguous() {
    let text =
        |kind: &str, rest: &str| format!(r#"{{"schemaVersion":2,"mediaType":"{kind}",{rest}}}"#);
    let manifest = format!(r#""config":{0},"layers":[{0}]"#, entry(""));
    let index = r#""manifests":[]"#;
    for (own, other, rest) in [(INDEXES, MANIFESTS, index), (MANIFESTS, INDEXES, &manifest)] {
        for inside in own.iter().chain(&[""]) {
            let text = text(inside, rest);
            for outside in own.iter().chain(&["application/json", "text/plain"]) {
                assert!(parse(text.as_bytes(), Some(outside)).is_ok(), "{outside}");
            }
            for outside in other {
                let said = parse(text.as_bytes(), Some(outside)).unwrap_err();
                assert!(said.contains("ambiguous"), "{said}");
            }
        }
        for inside in other {
            for outside in [None, Some(own[0]), Some(other[0])] {
                let said = parse(text(inside, rest).as_bytes(), outside).unwrap_err();
                assert!(said.contains("ambiguous"), "{said}");
            }
        }
    }
}

fn choose(index: &Index) -> usize {
    let digest = index.candidates().unwrap()[0];
    let at = |entry: &Entry| std::ptr::eq(entry, digest);
    index.entries().iter().position(at).unwrap()
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
        platform("linux", here, ""),
    ]);
    assert_eq!(choose(&list), 3);
    assert_eq!(list.candidates().unwrap().len(), 1);
    let none = index(&[
        platform("linux", other, ""),
        platform("unknown", "unknown", ""),
        platform("linux", "a\\nb", ""),
    ]);
    let said = none.candidates().unwrap_err();
    assert!(
        said.contains(&format!("linux/{other}")) && !said.contains("unknown"),
        "{said}"
    );
    assert!(
        said.contains(r#""linux/a\nb""#) && !said.contains('\n'),
        "{said}"
    );
    let unsaid = index(&[platform("linux", other, ""), entry("")]);
    assert_eq!(choose(&unsaid), 1);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_machine_by_any_of_its_names_is_chosen() {
    let other = platform("linux", "s390x", "");
    for (os, arch) in [
        ("linux", "x86_64"),
        ("Linux", "AMD64"),
        ("", "x86-64"),
        ("linux", "i386"),
        ("linux", "386"),
    ] {
        let list = index(&[entry(""), other.clone(), platform(os, arch, "")]);
        assert_eq!(choose(&list), 2, "{os}/{arch}");
    }
    let list = index(&[
        platform("linux", "386", ""),
        platform("linux", "x86_64", "v1"),
    ]);
    assert_eq!(choose(&list), 1);
}

/// One odd entry spoils nothing.
#[test]
fn odd_entries_of_an_index_are_passed_over() {
    let good = platform("linux", host_arch(), "");
    for odd in [
        entry(r#","platform":{}"#),
        entry(r#","platform":null"#),
        entry(r#","platform":{"os":null,"architecture":null}"#),
        entry(r#","platform":"linux/amd64""#),
        entry(r#","platform":{"os":7}"#),
        entry(r#","annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#),
        entry("").replace(D, "sha256:../x"),
        good.replace(D, "not a digest"),
        good.replace("\"size\":1", "\"size\":-1"),
        good.replace("\"size\":1", "\"size\":1.0"),
        good.replace("image.manifest.v1", "signature.v1"),
        "{}".to_owned(),
        "null".to_owned(),
        "7".to_owned(),
        "[[]]".to_owned(),
    ] {
        let list = index(&[odd.clone(), good.clone()]);
        let best = list.candidates().unwrap();
        assert_eq!(best.len(), 1, "{odd}");
        assert!(
            std::ptr::eq(best[0], list.entries().last().unwrap()),
            "{odd}"
        );
    }
    // What others could read in two ways is not odd.
    for twice in [
        good.replace("\"size\"", "\"Digest\":\"x\",\"size\""),
        good.replace("\"os\"", "\"OS\":\"windows\",\"os\""),
    ] {
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{twice},{good}]}}"#);
        let said = parse(text.as_bytes(), None).unwrap_err();
        assert!(said.contains("duplicate member"), "{said}");
    }
}

#[test]
fn entries_that_do_not_say_are_tried_in_order_and_likely_ones_first() {
    let digest = |n: usize| format!("sha256:{n:064x}");
    let other = if host_arch() == "amd64" {
        "arm64"
    } else {
        "amd64"
    };
    let list = index(&[
        entry(r#","artifactType":"application/x""#).replace(D, &digest(1)),
        entry("")
            .replace("image.manifest", "other")
            .replace(D, &digest(2)),
        platform("linux", other, "").replace(D, &digest(3)),
        entry(r#","platform":{}"#).replace(D, &digest(4)),
        entry("").replace(MANIFESTS[0], "").replace(D, &digest(5)),
        entry("").replace(D, "sha256:x"),
    ]);
    let digests: Vec<_> = list
        .candidates()
        .unwrap()
        .iter()
        .map(|e| e.digest().to_owned())
        .collect();
    assert_eq!(digests, [4, 5, 1, 2].map(digest));
}

/// What Go's programs write for nothing, and what they read as it.
#[test]
fn nulls_names_in_any_case_and_missing_types_are_read_as_go_does() {
    let config = entry("");
    for text in [
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":null}}"#),
        format!(r#"{{"schemaVersion":2,"config":{config}}}"#),
        format!(r#"{{"config":{config},"layers":[]}}"#),
        format!(r#"{{"SchemaVersion":2,"CONFIG":{config},"Layers":[],"manifests":null}}"#),
        format!(
            r#"{{"schemaVersion":null,"mediaType":null,"annotations":null,"config":{config},"layers":[]}}"#
        ),
    ] {
        let Ok(Content::Manifest(manifest)) = parse(text.as_bytes(), None) else {
            panic!("{text}");
        };
        assert!(manifest.layers().is_empty());
    }
    let bare =
        format!(r#"{{"digest":"{D}","size":3,"annotations":{{"a":null}},"x":[{{"y":1e9}}]}}"#);
    let text = format!(r#"{{"schemaVersion":2,"config":{bare},"layers":[{bare},{bare}]}}"#);
    let Ok(Content::Manifest(manifest)) = parse(text.as_bytes(), None) else {
        panic!("{text}");
    };
    assert_eq!(manifest.layers().len(), 2);
    assert_eq!(manifest.config().media_type().to_string(), "");
    let text = format!(
        r#"{{"Manifests":[{{"Digest":"{D}","Platform":{{"Architecture":"{}"}}}}]}}"#,
        host_arch()
    );
    let Ok(Content::Index(index)) = parse(text.as_bytes(), None) else {
        panic!("{text}");
    };
    assert_eq!(index.candidates().unwrap().len(), 1);
}

#[test]
fn what_two_readers_could_take_for_two_things_is_refused() {
    let config = entry("");
    let member =
        |more: &str| format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]{more}}}"#);
    for more in [
        r#","Layers":[]"#,
        r#","layer\u017f":[]"#,
        r#","LAYERS":null"#,
        r#","CONFIG":{}"#,
        r#","SCHEMAVERSION":2"#,
        r#","mediaType":"","MediaType":"""#,
        r#","annotations":{},"Annotations":{}"#,
    ] {
        let said = parse(member(more).as_bytes(), None).unwrap_err();
        assert!(said.contains("duplicate member"), "{more}: {said}");
    }
    for more in [r#","Manifests":[]"#, r#","manifests":{}"#] {
        let said = parse(member(more).as_bytes(), None).unwrap_err();
        assert!(said.contains("ambiguous"), "{more}: {said}");
    }
    for bad in [
        member(r#","fsLayers":[]"#),
        member("").replace("\"size\":1", "\"size\":1.0"),
        member("").replace("\"size\":1", "\"size\":1e3"),
        member("").replace("\"size\":1", "\"size\":\"1\""),
        member("").replace(D, "sha256:/../"),
        member("").replace("[]", "{}"),
        member("").replace("[]", "[null]"),
        member("") + "{}",
        member("").replace("2,", "3,"),
    ] {
        assert!(parse(bad.as_bytes(), None).is_err(), "{bad}");
    }
}

#[test]
fn blobs_that_are_no_layers_stand_beside_them() {
    let blob = |kind: &str| entry("").replace(MANIFESTS[0], kind);
    let read = |kinds: &[&str]| {
        let blobs: Vec<_> = kinds.iter().map(|kind| blob(kind)).collect();
        let text = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
            blob(CONFIGS[0]),
            blobs.join(",")
        );
        parse(text.as_bytes(), None).unwrap()
    };
    let oci = "application/vnd.oci.image.layer.v1.tar+gzip";
    for beside in [
        "application/vnd.in-toto+json",
        "application/vnd.dev.cosign.simplesigning.v1+json",
        "application/vnd.oci.image.config.v1+json",
        "text/plain",
    ] {
        let Content::Manifest(manifest) = read(&[beside, oci, beside, ""]) else {
            panic!("{beside}");
        };
        assert_eq!(manifest.layers().len(), 2, "{beside}");
        assert_eq!(manifest.beside(), Some(beside));
        // One that does not say is a layer only where one is missing.
        for (wanted, there) in [(0, 2), (2, 2), (1, 1)] {
            let mut counted = manifest.clone();
            counted.count_layers(wanted);
            assert_eq!(counted.layers().len(), there, "{wanted}");
        }
        let Content::Artifact(said) = read(&[beside, beside]) else {
            panic!("{beside}");
        };
        assert!(said.contains("nothing in it to run"), "{said}");
    }
    // In whatever place it stands, those remain that say that they are layers.
    let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    let Content::Manifest(mut manifest) = read(&["", oci, "", docker, ""]) else {
        panic!("it is a manifest");
    };
    manifest.count_layers(2);
    let kinds = manifest.layers().iter();
    let kinds: Vec<_> = kinds.map(|layer| layer.media_type().to_string()).collect();
    assert_eq!(kinds, [oci, docker]);
    // What calls itself a layer is one, and an error where it cannot be unpacked.
    for layer in [
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.oci.image.layer.v2.squashfs",
        "application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.erofs.layer.v1",
    ] {
        let Content::Manifest(manifest) = read(&[layer, oci]) else {
            panic!("{layer}");
        };
        assert_eq!((manifest.layers().len(), manifest.beside()), (2, None));
    }
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
