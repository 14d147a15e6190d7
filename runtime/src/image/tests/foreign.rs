//! Images as other programs make them: documents that Go reads, blobs that are no layers, names with detours.

use std::io::Cursor;

use serde_json::Value;
use tar::EntryType::{Link, Regular};

use super::*;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const IN_TOTO: &str = "application/vnd.in-toto+json";
const SIGNATURE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// An image with other text for its configuration and its manifest. In the first `IDS` are its diff ids, in the second
/// `CONFIG` and `LAYERS` its descriptors.
fn written(made: &Made, config: &[u8], manifest: &str) -> Made {
    let ids = serde_json::to_string(&made.diff_ids).unwrap();
    let at = config.windows(3).position(|word| word == b"IDS");
    let config = match at {
        Some(at) => [&config[..at], ids.as_bytes(), &config[at + 3..]].concat(),
        None => config.to_vec(),
    };
    let old: Value = serde_json::from_slice(&made.manifest).unwrap();
    let layers = old["layers"].to_string();
    let descriptor = fake::descriptor(CONFIG, &config).to_string();
    let manifest = manifest.replace("CONFIG", &descriptor);
    let manifest = manifest.replace("LAYERS", &layers[1..layers.len() - 1]);
    let id = fake::digest(&config);
    let mut blobs = made.blobs.clone();
    blobs.push((id, config.clone()));
    Made {
        id,
        manifest: manifest.into_bytes(),
        config,
        blobs,
        diff_ids: made.diff_ids.clone(),
    }
}

const PLAIN_MANIFEST: &str = r#"{"schemaVersion":2,"config":CONFIG,"layers":[LAYERS]}"#;
const PLAIN_CONFIG: &[u8] = br#"{"rootfs":{"diff_ids":IDS}}"#;

#[tokio::test]
async fn what_go_reads_is_pulled() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let made = three_layers();
    let arch = if cfg!(target_arch = "aarch64") {
        "aarch64"
    } else {
        "x86_64"
    };
    let odd = format!(r#"{{"architecture":"{arch}","OS":"Linux","rootfs":{{"diff_ids":IDS}}}}"#);
    let none = image(&[], &json!({}));
    for (tag, image) in [
        ("labels", written(&made, br#"{"config":{"Labels":{"a":null},"Env":null,"Cmd":null,"User":null},"rootfs":{"diff_ids":IDS}}"#, PLAIN_MANIFEST)),
        ("surrogate", written(&made, b"{\"author\":\"\\ud800\",\"config\":{\"Env\":[\"A=\\udc00\xff\"]},\"rootfs\":{\"diff_ids\":IDS}}", PLAIN_MANIFEST)),
        ("arch", written(&made, odd.as_bytes(), PLAIN_MANIFEST)),
        ("case", written(&made, br#"{"RootFS":{"Diff_ids":IDS}}"#, r#"{"SchemaVersion":2,"Config":CONFIG,"LayerS":[LAYERS]}"#)),
        ("version", written(&made, PLAIN_CONFIG, r#"{"config":CONFIG,"layers":[LAYERS],"manifests":null,"x":{"y":[1e99]}}"#)),
        ("none", written(&none, br#"{"os":null,"rootfs":null}"#, r#"{"schemaVersion":2,"config":CONFIG,"layers":null}"#)),
    ] {
        fake.put_image("x", tag, &image);
        let id = rig.pull(&fake.name(&format!("x:{tag}"))).await;
        assert_eq!(id.unwrap_or_else(|error| panic!("{tag}: {error}")), image.id, "{tag}");
    }
    let found = rig
        .manager
        .inspect(&fake.name("x:labels"))
        .unwrap()
        .unwrap();
    assert_eq!(found.config.labels["a"], "");
    let found = rig
        .manager
        .inspect(&fake.name("x:surrogate"))
        .unwrap()
        .unwrap();
    assert_eq!(found.config.env, ["A=\u{fffd}\u{fffd}"]);
    // Descriptors that do not say of what type they are.
    let mut bare = written(&made, PLAIN_CONFIG, PLAIN_MANIFEST);
    let mut manifest: Value = serde_json::from_slice(&bare.manifest).unwrap();
    manifest["config"]
        .as_object_mut()
        .unwrap()
        .remove("mediaType");
    for layer in manifest["layers"].as_array_mut().unwrap() {
        layer["mediaType"] = Value::Null;
    }
    bare.manifest = manifest.to_string().into_bytes();
    fake.put_image("x", "bare", &bare);
    rig.pull(&fake.name("x:bare")).await.unwrap();
    let report = rig.manager.check(false, false).await.unwrap();
    assert_eq!(report.findings, []);
    for (tag, config, manifest) in [
        (
            "twice",
            r#"{"rootfs":{"diff_ids":IDS},"RootFS":{}}"#,
            PLAIN_MANIFEST,
        ),
        (
            "both",
            r#"{"rootfs":{"diff_ids":IDS}}"#,
            r#"{"schemaVersion":2,"config":CONFIG,"layers":[LAYERS],"Manifests":[]}"#,
        ),
        (
            "other",
            r#"{"os":"a\nb","rootfs":{"diff_ids":IDS}}"#,
            PLAIN_MANIFEST,
        ),
    ] {
        fake.put_image("x", tag, &written(&made, config.as_bytes(), manifest));
        let error = rig.pull(&fake.name(&format!("x:{tag}"))).await.unwrap_err();
        let text = crate::model::chain(&error);
        let want = ["duplicate", "ambiguous", r#""a\nb/""#];
        assert!(want.iter().any(|want| text.contains(want)), "{tag}: {text}");
        assert!(!text.contains('\n'), "{text}");
    }
}

/// A manifest with more blobs than layers, in this order.
fn with_blobs(made: &Made, kinds: &[&str]) -> Made {
    let mut more = written(made, PLAIN_CONFIG, PLAIN_MANIFEST);
    let mut manifest: Value = serde_json::from_slice(&more.manifest).unwrap();
    for (n, kind) in kinds.iter().enumerate() {
        let bytes = format!("{{\"n\":{n}}}").into_bytes();
        let blobs = manifest["layers"].as_array_mut().unwrap();
        blobs.insert(n * 2, fake::descriptor(kind, &bytes));
        more.blobs.push((fake::digest(&bytes), bytes));
    }
    more.manifest = manifest.to_string().into_bytes();
    more
}

#[tokio::test]
async fn blobs_beside_the_layers_are_passed_over_if_the_rest_is_the_image() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let made = three_layers();
    let beside = with_blobs(&made, &[IN_TOTO, SIGNATURE, CONFIG]);
    fake.put_image("x", "1", &beside);
    let name = fake.name("x:1");
    assert_eq!(rig.pull(&name).await.unwrap(), beside.id);
    assert_eq!(rig.files("canary"), 3);
    assert_eq!(
        fake.count("GET", &fake::digest(b"{\"n\":0}").to_string()),
        0
    );
    let report = rig.manager.check(false, false).await.unwrap();
    assert_eq!(report.findings, []);
    // Saved and loaded elsewhere it is the same image.
    let mut archive = Vec::new();
    let export = rig.manager.export(vec![name]).await.unwrap();
    export.write(&mut archive).unwrap();
    let other = Rig::new();
    let loaded = other.manager.load(Cursor::new(archive)).await.unwrap();
    assert_eq!(loaded[0].id, beside.id);
    // An unknown or encrypted layer is a layer, and one too few is one too few.
    for (tag, made, want) in [
        (
            "encrypted",
            with_blobs(
                &made,
                &["application/vnd.oci.image.layer.v1.tar+gzip+encrypted"],
            ),
            "names 3 layers, and the manifest has 4",
        ),
        (
            "unknown",
            with_blobs(
                &made,
                &["application/vnd.oci.image.layer.v9.squash", IN_TOTO],
            ),
            "the manifest has 4, and beside them what is none",
        ),
        ("few", with_blobs(&one_layer("x"), &[IN_TOTO]), ""),
    ] {
        fake.put_image("x", tag, &made);
        let pulled = rig.pull(&fake.name(&format!("x:{tag}"))).await;
        match want {
            "" => assert_eq!(pulled.unwrap(), made.id),
            want => {
                let text = crate::model::chain(&pulled.unwrap_err());
                assert!(text.contains(want), "{tag}: {text}");
            }
        }
    }
    let mut lacks = with_blobs(&made, &[IN_TOTO]);
    let mut manifest: Value = serde_json::from_slice(&lacks.manifest).unwrap();
    manifest["layers"].as_array_mut().unwrap().pop();
    lacks.manifest = manifest.to_string().into_bytes();
    fake.put_image("x", "lacks", &lacks);
    let text = crate::model::chain(&rig.pull(&fake.name("x:lacks")).await.unwrap_err());
    assert!(
        text.contains("names 3 layers, and the manifest has 2") && text.contains(IN_TOTO),
        "{text}"
    );
}

/// A blob that does not say what it is, beside layers that do.
#[tokio::test]
async fn blobs_without_a_type_are_layers_only_where_one_is_missing() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let made = with_blobs(&three_layers(), &[]);
    let blob = b"no layer".to_vec();
    let with_untyped = |kind: Option<Value>, first: bool| {
        let mut other = made.clone();
        let mut manifest: Value = serde_json::from_slice(&other.manifest).unwrap();
        let mut untyped = fake::descriptor("", &blob);
        match kind {
            Some(kind) => untyped["mediaType"] = kind,
            None => drop(untyped.as_object_mut().unwrap().remove("mediaType")),
        }
        let layers = manifest["layers"].as_array_mut().unwrap();
        let place = if first { 0 } else { layers.len() };
        layers.insert(place, untyped);
        other.manifest = manifest.to_string().into_bytes();
        other
    };
    for (tag, kind, first) in [
        ("null", Some(Value::Null), true),
        ("empty", Some(json!("")), false),
        ("missing", None, true),
    ] {
        fake.put_image("x", tag, &with_untyped(kind, first));
        let name = fake.name(&format!("x:{tag}"));
        let pulled = rig.pull(&name).await;
        assert_eq!(pulled.unwrap_or_else(|e| panic!("{tag}: {e}")), made.id);
        let image = rig.manager.find(&name).unwrap().unwrap();
        assert_eq!(image.chain.len(), 3, "{tag}");
    }
    // All of them without a type: layers, as in archives.
    let mut manifest: Value = serde_json::from_slice(&made.manifest).unwrap();
    for layer in manifest["layers"].as_array_mut().unwrap() {
        layer["mediaType"] = Value::Null;
    }
    let mut untyped = made.clone();
    untyped.manifest = manifest.to_string().into_bytes();
    fake.put_image("x", "all", &untyped);
    assert_eq!(rig.pull(&fake.name("x:all")).await.unwrap(), made.id);
}

/// What the entry of an index says of a machine counts, and of an image that was asked for by its own name nothing does.
#[tokio::test]
async fn another_architecture_in_a_configuration_is_told_and_believed_only_where_nobody_else_says()
{
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let of = |platform: &str| {
        let config = format!(r#"{{{platform},"rootfs":{{"diff_ids":IDS}}}}"#);
        written(&one_layer("x"), config.as_bytes(), PLAIN_MANIFEST)
    };
    let other = of(r#""os":"linux","architecture":"s390x","variant":"z15""#);
    let windows = of(r#""os":"windows","architecture":"amd64""#);
    let hostile = of(r#""os":"linux","architecture":"a\nb""#);
    for (tag, made, taken) in [
        ("other", &other, true),
        ("windows", &windows, false),
        ("hostile", &hostile, false),
    ] {
        let digest = fake.put_image("x", tag, made);
        for name in [
            fake.name(&format!("x:{tag}")),
            fake.name(&format!("x@{digest}")),
        ] {
            match rig.pull(&name).await {
                Ok(id) => assert!(taken && id == made.id, "{tag}"),
                Err(error) => {
                    let text = crate::model::chain(&error);
                    assert!(
                        !taken && text.contains("does not run on this machine"),
                        "{text}"
                    );
                }
            }
        }
        // An index that says so is believed, whatever it is.
        let index = index_of(&made.manifest);
        fake.put_manifest("x", "index", fake::INDEX, &index);
        assert_eq!(rig.pull(&fake.name("x:index")).await.unwrap(), made.id);
        let nested =
            json!({"schemaVersion": 2, "manifests": [fake::descriptor(fake::INDEX, &index)]});
        fake.put_manifest("x", "nested", fake::INDEX, nested.to_string().as_bytes());
        assert_eq!(rig.pull(&fake.name("x:nested")).await.unwrap(), made.id);
        // One that does not say leaves it to the image.
        let unsaid =
            json!({"schemaVersion": 2, "manifests": [entry(made, &json!({"platform": {}}))]});
        fake.put_manifest("x", "unsaid", fake::INDEX, unsaid.to_string().as_bytes());
        let text = crate::model::chain(&rig.pull(&fake.name("x:unsaid")).await.unwrap_err());
        assert!(text.contains("does not run on this machine"), "{text}");
    }
    let platform = |rig: &Rig| {
        let image = rig.manager.find(&other.id.to_string()).unwrap();
        image.unwrap().platform
    };
    assert_eq!(platform(&rig), "linux/s390x/z15");
    assert_eq!(platform(&rig.reopen()), "linux/s390x/z15");
    // So in archives.
    let rig = Rig::new();
    let here = json!({"platform": {"os": "linux", "architecture": here()}});
    let archive = layout(&[&other], vec![entry(&other, &here)]);
    let loaded = rig.manager.load(Cursor::new(archive)).await.unwrap();
    assert_eq!(loaded[0].id, other.id);
    let archive = layout(&[&other], vec![entry(&other, &json!({}))]);
    let error = Rig::new()
        .manager
        .load(Cursor::new(archive))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("does not run on this machine"),
        "{error}"
    );
}

fn here() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    }
}

/// Docker's types and OCI's are two names of one kind.
#[tokio::test]
async fn manifests_are_served_by_either_name_of_their_kind() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let made = one_layer("x");
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    let text = String::from_utf8(made.manifest.clone()).unwrap();
    assert!(text.contains(fake::MANIFEST), "{text}");
    let other = text.replace(fake::MANIFEST, docker);
    fake.put_image("x", "blobs", &made);
    for (tag, kind, bytes) in [
        ("a", docker, text.as_bytes()),
        ("b", fake::MANIFEST, other.as_bytes()),
    ] {
        fake.put_manifest("x", tag, kind, bytes);
        let pulled = rig.pull(&fake.name(&format!("x:{tag}"))).await;
        assert_eq!(pulled.unwrap_or_else(|e| panic!("{tag}: {e}")), made.id);
        fake.put_manifest("x", "index", list, &index_of(bytes));
        assert_eq!(rig.pull(&fake.name("x:index")).await.unwrap(), made.id);
        for wrong in [fake::INDEX, list] {
            fake.put_manifest("y", "wrong", wrong, bytes);
            let error = rig.pull(&fake.name("y:wrong")).await.unwrap_err();
            assert!(error.to_string().contains("ambiguous"), "{error}");
        }
    }
}

/// What cosign and buildx put beside an image: an image by its configuration, of blobs that are no layers.
fn signature() -> Made {
    let blob = b"{\"critical\":{}}".to_vec();
    let id = fake::digest(&blob);
    let config = format!(
        r#"{{"architecture":"","os":"","rootfs":{{"type":"layers","diff_ids":["{id}"]}}}}"#
    );
    let manifest = json!({
        "schemaVersion": 2, "mediaType": fake::MANIFEST,
        "config": fake::descriptor(CONFIG, config.as_bytes()),
        "layers": [fake::descriptor(SIGNATURE, &blob)],
    });
    Made {
        id: fake::digest(config.as_bytes()),
        manifest: manifest.to_string().into_bytes(),
        config: config.clone().into_bytes(),
        blobs: vec![
            (fake::digest(config.as_bytes()), config.into_bytes()),
            (id, blob),
        ],
        diff_ids: vec![id],
    }
}

/// Files of a layout: blobs of all, and the index with these entries.
fn layout(all: &[&Made], entries: Vec<Value>) -> Vec<u8> {
    let mut files = vec![(
        "oci-layout".to_owned(),
        b"{\"imageLayoutVersion\":\"1.0.0\"}".to_vec(),
    )];
    for made in all {
        let mut blobs = made.blobs.clone();
        blobs.push((fake::digest(&made.manifest), made.manifest.clone()));
        let path = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
        files.extend(
            blobs
                .into_iter()
                .map(|(digest, bytes)| (path(&digest), bytes)),
        );
    }
    let index = json!({"schemaVersion": 2, "manifests": entries});
    files.push(("index.json".to_owned(), index.to_string().into_bytes()));
    let files: Vec<_> = files
        .iter()
        .map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
        .collect();
    tar_of(&files)
}

fn entry(made: &Made, more: &Value) -> Value {
    let mut entry = fake::descriptor(fake::MANIFEST, &made.manifest);
    for (key, value) in more.as_object().unwrap() {
        entry[key] = value.clone();
    }
    entry
}

#[tokio::test]
async fn an_archive_with_signatures_and_attestations_gives_its_image() {
    let (image, signature) = (three_layers(), signature());
    let foreign = written(
        &one_layer("x"),
        br#"{"os":"linux","architecture":"s390x","rootfs":{"diff_ids":IDS}}"#,
        PLAIN_MANIFEST,
    );
    let name = json!({"annotations": {"io.containerd.image.name": "r.io/x:1"}});
    let attestation = json!({
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
        "platform": {"os": "unknown", "architecture": "unknown"},
    });
    let rig = Rig::new();
    for entries in [
        vec![entry(&signature, &json!({})), entry(&image, &name)],
        vec![
            entry(&image, &name),
            entry(&signature, &json!({"platform": {}})),
        ],
        vec![
            entry(&signature, &attestation),
            entry(&signature, &json!({})),
            entry(&image, &name),
        ],
        vec![
            entry(&foreign, &json!({})),
            json!({}),
            json!({"digest": 5}),
            entry(&image, &name),
        ],
        vec![
            entry(&foreign, &json!({"mediaType": "application/x-other"})),
            entry(&image, &name),
        ],
        vec![
            json!(5),
            Value::Null,
            json!("x"),
            json!({}),
            entry(&image, &json!({"digest": ""})),
            entry(
                &image,
                &json!({"digest": format!("sha512:{}", "a".repeat(128))}),
            ),
            entry(&image, &name),
        ],
    ] {
        let archive = layout(&[&image, &signature, &foreign], entries);
        let loaded = rig.manager.load(Cursor::new(archive)).await.unwrap();
        assert_eq!(loaded.len(), 1);
        assert_eq!(
            (loaded[0].id, &loaded[0].repo_tags[..]),
            (image.id, &["r.io/x:1".to_owned()][..])
        );
    }
    // Nothing but what is no image: the reason.
    for (entries, want) in [
        (vec![entry(&signature, &json!({}))], "nothing in it to run"),
        (
            vec![entry(&foreign, &json!({}))],
            "does not run on this machine",
        ),
        (
            vec![entry(
                &foreign,
                &json!({"platform": {"os": "linux", "architecture": "s390x"}}),
            )],
            "no images for this machine",
        ),
        (vec![json!({})], "an entry of index.json names no document"),
    ] {
        let archive = layout(&[&signature, &foreign], entries);
        let error = rig.manager.load(Cursor::new(archive)).await.unwrap_err();
        let text = crate::model::chain(&error);
        assert!(text.contains(want), "{text}");
    }
    // One that is announced and is not there is still an error.
    let archive = layout(
        &[&image],
        vec![entry(&image, &name), entry(&signature, &json!({}))],
    );
    let error = rig.manager.load(Cursor::new(archive)).await.unwrap_err();
    assert!(error.to_string().contains("is not in it"), "{error}");
}

/// Of entries that do not say for which machine they are, the first that is an image for this one.
#[tokio::test]
async fn odd_entries_do_not_spoil_an_index() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let (image, signature) = (three_layers(), signature());
    let foreign = written(
        &one_layer("x"),
        br#"{"architecture":"s390x","rootfs":{"diff_ids":IDS}}"#,
        PLAIN_MANIFEST,
    );
    let unsaid = json!({"platform": {}});
    let mut gone = entry(&image, &json!({}));
    gone["digest"] = json!(format!("sha256:{}", "0".repeat(64)));
    for (n, entries) in [
        vec![entry(&signature, &unsaid), entry(&image, &json!({}))],
        vec![
            entry(&foreign, &json!({})),
            entry(&signature, &unsaid),
            entry(&image, &unsaid),
        ],
        vec![
            gone,
            entry(&foreign, &unsaid),
            entry(&image, &json!({"platform": null})),
        ],
        vec![
            json!(7),
            json!({"platform": "x"}),
            entry(&image, &json!({})),
        ],
    ]
    .into_iter()
    .enumerate()
    {
        for made in [&image, &signature, &foreign] {
            fake.put_image("x", "part", made);
        }
        let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
        fake.put_manifest("x", &n.to_string(), fake::INDEX, index.as_bytes());
        let pulled = rig.pull(&fake.name(&format!("x:{n}"))).await;
        assert_eq!(
            pulled.unwrap_or_else(|error| panic!("{n}: {error}")),
            image.id,
            "{n}"
        );
    }
    let entries = vec![entry(&signature, &unsaid), entry(&foreign, &json!({}))];
    let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    fake.put_manifest("x", "none", fake::INDEX, index.as_bytes());
    let text = crate::model::chain(&rig.pull(&fake.name("x:none")).await.unwrap_err());
    assert!(text.contains("nothing in it to run"), "{text}");
}

/// Names and targets with detours are files like others, which can be looked at and saved.
#[tokio::test]
async fn names_with_detours_are_unpacked_checked_and_saved() {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, text) in [
        ("d/f", Regular, "content"),
        ("./d/../e", Regular, "more"),
        ("nowhere/../d/./g", Regular, "again"),
        ("h1", Link, "./a/../d/f"),
        ("d/h2", Link, "../../d//f/"),
        ("x/../h3", Link, "/d/../e"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(3);
        header.set_gid(4);
        header.set_mtime(1);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        let content = match kind {
            Link => {
                header.as_old_mut().linkname[..text.len()].copy_from_slice(text.as_bytes());
                &b""[..]
            }
            _ => text.as_bytes(),
        };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let made = image(&[(builder.into_inner().unwrap(), Pack::Gzip)], &json!({}));
    fake.put_image("x", "1", &made);
    let name = fake.name("x:1");
    rig.pull(&name).await.unwrap();
    let details = rig.manager.inspect(&name).unwrap().unwrap();
    let chain = details.layers[0].chain.hex();
    let root = rig.root.path().join(format!("store/layers/{chain}/fs"));
    for (name, text) in [
        ("e", "more"),
        ("d/g", "again"),
        ("h1", "content"),
        ("d/h2", "content"),
        ("h3", "more"),
    ] {
        assert_eq!(
            std::fs::read_to_string(root.join(name)).unwrap(),
            text,
            "{name}"
        );
    }
    let report = rig.manager.check(false, false).await.unwrap();
    assert_eq!((report.findings, report.unverifiable), (vec![], vec![]));
    let mut archive = Vec::new();
    rig.manager
        .export(vec![name])
        .await
        .unwrap()
        .write(&mut archive)
        .unwrap();
    let loaded = Rig::new().manager.load(Cursor::new(archive)).await.unwrap();
    assert_eq!(loaded[0].id, made.id);
}
