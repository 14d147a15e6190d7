//! Archives of both kinds.

use std::io::Cursor;

use super::*;
use crate::layer::tests::builder::Tar;

fn tar_of_all(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let files: Vec<_> = files
        .iter()
        .map(|(n, b)| (n.as_str(), b.as_slice()))
        .collect();
    tar_of(&files)
}

/// An OCI layout of images with the names they are given.
fn layout(images: &[(&Made, Option<&str>)]) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![(
        "oci-layout".to_owned(),
        b"{\"imageLayoutVersion\":\"1.0.0\"}".to_vec(),
    )];
    let mut manifests = Vec::new();
    for (made, name) in images {
        let mut blobs = made.blobs.clone();
        blobs.push((fake::digest(&made.manifest), made.manifest.clone()));
        for (digest, bytes) in blobs {
            files.push((format!("blobs/sha256/{}", digest.hex()), bytes));
        }
        let mut descriptor = fake::descriptor(fake::MANIFEST, &made.manifest);
        if let Some(name) = name {
            descriptor["annotations"] = json!({"io.containerd.image.name": name});
        }
        manifests.push(descriptor);
    }
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    files.push(("index.json".to_owned(), index.to_string().into_bytes()));
    files
}

fn saved(made: &Made, tars: &[Vec<u8>], tags: &[&str]) -> Vec<(String, Vec<u8>)> {
    let config = format!("{}.json", made.id.hex());
    let layers: Vec<_> = (0..tars.len()).map(|n| format!("{n}/layer.tar")).collect();
    let manifest = json!([{"Config": config, "RepoTags": tags, "Layers": layers}]);
    let mut files = vec![(config, made.config.clone())];
    files.extend(layers.into_iter().zip(tars.iter().cloned()));
    files.push((
        "./manifest.json".to_owned(),
        manifest.to_string().into_bytes(),
    ));
    files
}

#[tokio::test]
async fn layouts_load_with_several_images_and_in_any_compression() {
    let (one, two) = (three_layers(), one_layer("two"));
    let tar = tar_of_all(&layout(&[
        (&one, Some("docker.io/library/one:1")),
        (&two, None),
    ]));
    for pack in [Pack::Plain, Pack::Gzip, Pack::Zstd] {
        let rig = Rig::new();
        let images = rig
            .manager
            .load(Cursor::new(fake::packed(&tar, pack)))
            .await
            .unwrap();
        assert_eq!(images.len(), 2, "{pack:?}");
        assert_eq!(rig.manager.find("one:1").unwrap().unwrap().id, one.id);
        let digest = fake::digest(&one.manifest);
        assert_eq!(
            images[0].repo_digests,
            [format!("docker.io/library/one@{digest}")]
        );
        assert!(images[1].repo_tags.is_empty() && images[1].repo_digests.is_empty());
        assert_eq!(rig.manager.find(&two.id.hex()).unwrap().unwrap().id, two.id);
        assert_eq!(rig.files("canary"), 4);
        assert_eq!(rig.reopen().manager.list().len(), 2);
    }
}

#[tokio::test]
async fn what_docker_saves_loads() {
    let rig = Rig::new();
    let tars = [layer("canary-1", "1"), layer("canary-2", "2")];
    let packed: Vec<_> = tars.iter().map(|t| (t.clone(), Pack::Plain)).collect();
    let made = image(&packed, &json!({"User": "www-data"}));
    let tar = tar_of_all(&saved(&made, &tars, &["x:1", "r.test/pinned:1"]));
    let path = rig.root.path().join("archive.tar");
    std::fs::write(&path, tar).unwrap();
    let images = rig.manager.load_file(&path).await.unwrap();
    assert_eq!(images[0].id, made.id);
    assert_eq!(
        images[0].repo_tags,
        ["docker.io/library/x:1", "r.test/pinned:1"]
    );
    assert!(images[0].pinned && images[0].size > 0);
    assert_eq!(rig.files("canary-"), 2);
    let absent = rig.root.path().join("absent.tar");
    let error = rig.manager.load_file(&absent).await.unwrap_err();
    let told = error.to_string();
    assert!(told.contains(absent.to_str().unwrap()), "{told}");
}

#[tokio::test]
async fn broken_archives_leave_nothing() {
    let made = three_layers();
    let files = layout(&[(&made, Some("x:1"))]);
    let without = |part: &str| {
        let kept = files.iter().filter(|(name, _)| !name.contains(part));
        tar_of_all(&kept.cloned().collect::<Vec<_>>())
    };
    let mut changed = files.clone();
    changed[1].1[20] ^= 1;
    let whole = tar_of_all(&files);
    for (archive, want) in [
        (without("index.json"), "no images"),
        (without(&made.blobs[0].0.hex()), "is not in it"),
        (tar_of_all(&changed), "is not in it"),
        (whole[..whole.len() / 2].to_vec(), "archive"),
        (b"not an archive at all".to_vec(), "archive"),
        (Vec::new(), "archive"),
    ] {
        let rig = Rig::new();
        let error = rig.manager.load(Cursor::new(archive)).await.unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
        assert!(rig.manager.list().is_empty());
        // Layers that were whole stay for another try, until something is collected; one may still be
        // on its way into the store.
        let mut left = 1;
        for _ in 0..200 {
            rig.manager.collect().await.unwrap();
            left = rig.files("canary");
            if left == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        assert_eq!(left, 0);
    }
}

#[tokio::test]
async fn an_archive_for_several_machines_gives_this_one_its_image() {
    let (one, two) = (one_layer("one"), one_layer("two"));
    let mut files = layout(&[(&one, Some("r.io/one:1")), (&two, Some("r.io/two:1"))]);
    let index = files.last_mut().unwrap();
    let mut value: serde_json::Value = serde_json::from_slice(&index.1).unwrap();
    value["manifests"][0]["platform"] = json!({"os": "linux", "architecture": "s390x"});
    index.1 = value.to_string().into_bytes();
    let rig = Rig::new();
    let loaded = rig
        .manager
        .load(Cursor::new(tar_of_all(&files)))
        .await
        .unwrap();
    assert_eq!(loaded.len(), 1);
    assert_eq!(loaded[0].repo_tags, ["r.io/two:1"]);
    let index = files.last_mut().unwrap();
    let entry = value["manifests"][1].clone();
    value["manifests"] = vec![entry; 1001].into();
    index.1 = value.to_string().into_bytes();
    let error = rig
        .manager
        .load(Cursor::new(tar_of_all(&files)))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("more than 1000 images"),
        "{error}"
    );
}

async fn refused(archive: Vec<u8>) -> String {
    let rig = Rig::new();
    let error = rig.manager.load(Cursor::new(archive)).await.unwrap_err();
    assert!(rig.manager.list().is_empty());
    crate::model::chain(&error)
}

/// What is in memory has a length, whatever an archive says.
#[tokio::test]
async fn headers_names_and_documents_that_are_too_long_are_refused() {
    let long = vec![b'x'; (1 << 20) + 1];
    for kind in [b'L', b'K', b'x', b'g'] {
        let mut tar = Tar::new();
        tar.entry(b"long", kind, &long).file("a", b"");
        let said = refused(tar.finish()).await;
        assert!(
            said.contains("1048576 bytes in an extended header"),
            "{said}"
        );
    }
    let mut tar = Tar::new();
    tar.gnu_long(b'L', &[b'x'; 4097]).file("a", b"");
    let said = refused(tar.finish()).await;
    assert!(said.contains("more than 4096 bytes"), "{said}");
    let mut tar = Tar::new();
    for n in 0..4200 {
        tar.gnu_long(b'L', format!("{n:04000}").as_bytes());
        tar.file("a", b"");
    }
    let said = refused(tar.finish()).await;
    assert!(said.contains("bytes of names"), "{said}");
    for name in ["index.json", "manifest.json"] {
        let mut text = b"[]".to_vec();
        text.resize((4 << 20) + 1, b' ');
        let mut tar = Tar::new();
        tar.file(name, &text);
        let said = refused(tar.finish()).await;
        assert!(said.contains(&format!("{name} is longer than")), "{said}");
    }
    let mut tar = Tar::new();
    for _ in 0..=100_000 {
        tar.dir("d");
    }
    let said = refused(tar.finish()).await;
    assert!(said.contains("more than 100000 entries"), "{said}");
}

/// A few bytes that unpack to more than the disk has do not get as far as filling it.
#[tokio::test]
async fn a_file_that_is_larger_than_the_disk_is_refused_at_once() {
    let mut tar = Tar::new();
    tar.file("blob", b"").edit(|header| {
        header[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0]);
    });
    let rig = Rig::new();
    let archive = Cursor::new(tar.unfinished()).chain(std::io::repeat(0));
    let error = rig.manager.load(archive).await.unwrap_err();
    let text = crate::model::chain(&error);
    assert_eq!(error.kind(), Kind::ResourceExhausted, "{text}");
    assert!(text.contains("bytes more leave less than"), "{text}");
}

#[tokio::test]
async fn a_thousand_equal_entries_are_one_image() {
    let made = one_layer("one");
    let mut files = layout(&[(&made, Some("r.io/one:1"))]);
    let index = files.last_mut().unwrap();
    let mut value: serde_json::Value = serde_json::from_slice(&index.1).unwrap();
    let entry = value["manifests"][0].clone();
    value["manifests"] = vec![entry; 1000].into();
    value["manifests"][999]["annotations"] = json!({"io.containerd.image.name": "r.io/two:2"});
    index.1 = value.to_string().into_bytes();
    let rig = Rig::new();
    let load = |files: &[(String, Vec<u8>)]| rig.manager.load(Cursor::new(tar_of_all(files)));
    let loaded = load(&files).await.unwrap();
    assert_eq!(loaded.len(), 1);
    assert_eq!(loaded[0].repo_tags, ["r.io/one:1", "r.io/two:2"]);
    // And so in docker's list.
    let tars = [layer("canary", "one")];
    let mut files = saved(&made, &tars, &["r.io/three:3"]);
    let list = files.last_mut().unwrap();
    let mut value: serde_json::Value = serde_json::from_slice(&list.1).unwrap();
    value = vec![value[0].clone(); 1000].into();
    value[999]["RepoTags"] = json!(["r.io/four:4"]);
    list.1 = value.to_string().into_bytes();
    let loaded = load(&files).await.unwrap();
    assert_eq!(loaded.len(), 1);
    // It is told by the names of this archive, and keeps those that it had.
    assert_eq!(loaded[0].repo_tags, ["r.io/four:4", "r.io/three:3"]);
    let all = rig.manager.list();
    assert_eq!((all.len(), all[0].repo_tags.len()), (1, 4));
}

/// Old archives of docker have equal layers once.
#[tokio::test]
async fn layers_that_are_links_load() {
    let tars = [
        layer("canary-1", "1"),
        layer("canary-1", "1"),
        layer("canary-1", "1"),
    ];
    let packed: Vec<_> = tars.iter().map(|tar| (tar.clone(), Pack::Plain)).collect();
    let made = image(&packed, &json!({}));
    let mut tar = Tar::new();
    for (name, bytes) in saved(&made, &tars, &["x:1"]) {
        match name.as_str() {
            "1/layer.tar" => tar.symlink(&name, "../0/layer.tar"),
            "2/layer.tar" => tar.hard_link(&name, "0/layer.tar"),
            _ => tar.file(&name, &bytes),
        };
    }
    let rig = Rig::new();
    let loaded = rig.manager.load(Cursor::new(tar.finish())).await.unwrap();
    assert_eq!((loaded[0].id, loaded[0].chain.len()), (made.id, 3));
    assert_eq!(loaded[0].repo_tags, ["docker.io/library/x:1"]);
    let mut tar = Tar::new();
    tar.sparse("old", "blob", &[(0, 1)], 1, b"x");
    assert!(refused(tar.finish()).await.contains("sparse"));
}
