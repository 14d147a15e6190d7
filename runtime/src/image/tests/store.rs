//! What is in the store is whole, known, and goes when nobody needs it.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use super::odd::append_sparse;
use super::*;
use crate::id::ContainerId;
use crate::image::Thing;

impl Rig {
    fn layer_file(&self, chain: &Digest, name: &str) -> PathBuf {
        let layers = self.root.path().join("store/layers");
        layers.join(chain.hex()).join("fs").join(name)
    }

    pub(super) fn du(&self, name: &str) -> (u64, u64) {
        fn walk(path: &Path, seen: &mut std::collections::HashSet<u64>) -> (u64, u64) {
            let own = std::fs::symlink_metadata(path).unwrap();
            let mut sum = match seen.insert(own.ino()) {
                true => (own.blocks() * 512, 1),
                false => (0, 0),
            };
            if own.is_dir() {
                for entry in std::fs::read_dir(path).unwrap() {
                    let one = walk(&entry.unwrap().path(), seen);
                    sum = (sum.0 + one.0, sum.1 + one.1);
                }
            }
            sum
        }
        let path = self.root.path().join("store").join(name);
        walk(&path, &mut Default::default())
    }
}

/// An archive without some of its files.
fn without(archive: &[u8], names: &[&str]) -> Vec<u8> {
    let mut kept = Vec::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        if !names.contains(&name.as_str()) {
            kept.push((name, bytes));
        }
    }
    let kept: Vec<_> = kept.iter().map(|(n, b)| (n.as_str(), &b[..])).collect();
    tar_of(&kept)
}

#[tokio::test]
async fn a_saved_image_is_the_same_image_elsewhere() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let (made, other) = (three_layers(), one_layer("other"));
    fake.put_image("a/x", "1", &made);
    fake.put_image("a/y", "2", &other);
    let (x, y) = (fake.name("a/x:1"), fake.name("a/y:2"));
    rig.pull(&x).await.unwrap();
    rig.pull(&y).await.unwrap();
    let export = rig
        .manager
        .export(vec![x.clone(), other.id.to_string(), x.clone()])
        .await
        .unwrap();
    let mut bytes = Vec::new();
    export.write(&mut bytes).unwrap();
    let elsewhere = Rig::new();
    let loaded = elsewhere
        .manager
        .load(std::io::Cursor::new(bytes.clone()))
        .await
        .unwrap();
    assert_eq!(loaded.len(), 2);
    for (name, made) in [(&x, &made), (&y, &other)] {
        let image = elsewhere.manager.find(name).unwrap().unwrap();
        assert_eq!(image.id, made.id);
        assert_eq!(image.repo_tags, std::slice::from_ref(name));
        assert_eq!(image.chain, document::chain_ids(&made.diff_ids));
    }
    // Older tools read docker's half of it alone.
    let half = without(&bytes, &["index.json", "oci-layout"]);
    let third = Rig::new();
    let loaded = third.manager.load(std::io::Cursor::new(half)).await;
    assert_eq!(loaded.unwrap().len(), 2);
    for (name, made) in [(&x, &made), (&y, &other)] {
        let image = third.manager.find(name).unwrap().unwrap();
        assert_eq!(
            (image.id, &image.repo_tags[..]),
            (made.id, &[name.clone()][..])
        );
        assert_eq!(image.chain, document::chain_ids(&made.diff_ids));
    }
    // What it is loaded from again is the same, whether the first image was pulled or loaded.
    let again = elsewhere.manager.export(vec![x, y]).await.unwrap();
    let mut second = Vec::new();
    again.write(&mut second).unwrap();
    assert!(second == bytes);
    let absent = rig
        .manager
        .export(vec!["no/such:1".to_owned()])
        .await
        .unwrap_err();
    assert_eq!(absent.kind(), Kind::NotFound);
}

#[tokio::test]
async fn a_changed_layer_is_neither_saved_nor_whole_and_is_pulled_again() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let made = three_layers();
    fake.put_image("x", "1", &made);
    let name = fake.name("x:1");
    rig.pull(&name).await.unwrap();
    let whole = rig.manager.check(false, true).await.unwrap();
    assert_eq!((whole.images, whole.layers, whole.documents), (1, 3, 2));
    assert!(whole.findings.is_empty() && whole.unverifiable.is_empty() && !whole.repaired);
    let chain = document::chain_ids(&made.diff_ids);
    let file = rig.layer_file(&chain[2], "canary-plain");
    let good = std::fs::read(&file).unwrap();
    let changes: [(&str, &dyn Fn()); 5] = [
        ("content of a file changed", &|| {
            std::fs::write(&file, "X").unwrap()
        }),
        ("is no file of", &|| {
            std::fs::write(&file, "longer").unwrap()
        }),
        ("has 1 files, not 2", &|| {
            std::fs::remove_file(&file).unwrap()
        }),
        ("has 3 files, not 2", &|| {
            std::fs::write(file.with_file_name("more"), "").unwrap()
        }),
        ("another mode", &|| {
            std::fs::set_permissions(&file, PermissionsExt::from_mode(0o4777)).unwrap();
        }),
    ];
    for (want, change) in changes {
        change();
        let quick = rig.manager.check(true, false).await.unwrap();
        assert!(quick.findings.is_empty());
        let report = rig.manager.check(false, false).await.unwrap();
        let [finding] = &report.findings[..] else {
            panic!("{want}: {:?}", report.findings);
        };
        assert!(
            finding.problem.contains(want),
            "{want}: {}",
            finding.problem
        );
        assert_eq!(
            (finding.thing, &finding.images),
            (Thing::Layer, &vec![name.clone()])
        );
        assert_eq!(finding.what, chain[2].to_string());
        // It was only looked at.
        assert!(rig.manager.find(&name).unwrap().is_some());
        if want.contains("content") {
            let export = rig.manager.export(vec![name.clone()]).await.unwrap();
            let error = export.write(Vec::new()).unwrap_err();
            assert!(error.to_string().contains("content changed"), "{error}");
        }
        let report = rig.manager.check(false, true).await.unwrap();
        assert!(report.repaired);
        assert_eq!(report.dropped, std::slice::from_ref(&name));
        assert_eq!(rig.manager.find(&name).unwrap(), None);
        let before = fake.count("GET", "/blobs/");
        rig.pull(&name).await.unwrap();
        assert_eq!(
            fake.count("GET", "/blobs/") - before,
            1,
            "only the damaged layer is fetched"
        );
        assert_eq!(std::fs::read(&file).unwrap(), good);
        assert!(
            rig.manager
                .check(false, false)
                .await
                .unwrap()
                .findings
                .is_empty()
        );
    }
}

/// Entries of many types, with all that a check compares of them.
fn all_types() -> Vec<u8> {
    use tar::EntryType::{Char, Directory, Fifo, Link, Regular, Symlink};
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, mode, text) in [
        ("d/", Directory, 0o711, ""),
        ("d/", Directory, 0o2750, ""),
        ("empty", Regular, 0o644, ""),
        ("link", Symlink, 0o777, "target"),
        ("pipe", Fifo, 0o600, ""),
        ("device", Char, 0o640, ""),
        ("one", Regular, 0o600, "one"),
        ("first", Link, 0o640, "one"),
        ("two", Regular, 0o600, "two"),
        ("second", Link, 0o640, "two"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1);
        header.set_size(text.len() as u64);
        if kind == Char {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        if matches!(kind, Link | Symlink) {
            header.set_size(0);
            builder.append_link(&mut header, name, text).unwrap();
        } else {
            let content = text.as_bytes();
            builder.append_data(&mut header, name, content).unwrap();
        }
    }
    append_sparse(&mut builder, &["GNU.sparse.name", "path"]);
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn whatever_changes_of_an_entry_is_found() {
    use std::os::unix::fs::{FileExt, chown, lchown, symlink};
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let made = image(&[(all_types(), Pack::Gzip)], &json!({}));
    fake.put_image("x", "1", &made);
    let name = fake.name("x:1");
    let chain = document::chain_ids(&made.diff_ids);
    let path = |name: &str| rig.layer_file(&chain[0], name);
    let chmod = |name: &str, mode| {
        std::fs::set_permissions(path(name), PermissionsExt::from_mode(mode)).unwrap();
    };
    let write = |name: &str, bytes: &[u8], at| {
        let file = std::fs::File::options().write(true).open(path(name));
        file.unwrap().write_all_at(bytes, at).unwrap();
    };
    let again = |name: &str, make: &dyn Fn(&PathBuf)| {
        std::fs::remove_file(path(name)).unwrap();
        make(&path(name));
    };
    let swap = |one: &str, other: &str| {
        std::fs::rename(path(one), path("swapped")).unwrap();
        std::fs::rename(path(other), path(one)).unwrap();
        std::fs::rename(path("swapped"), path(other)).unwrap();
    };
    let device = rustix::fs::makedev(1, 5);
    let kind = rustix::fs::FileType::CharacterDevice;
    let changes: [(&str, &dyn Fn()); 15] = [
        ("\"empty\" is no file of 0 bytes", &|| {
            write("empty", b"x", 0)
        }),
        ("\"link\" has another target", &|| {
            again("link", &|path| {
                symlink("tarGet", path).unwrap();
                lchown(path, Some(7), Some(8)).unwrap();
            });
        }),
        ("\"link\" has another owner", &|| {
            lchown(path("link"), Some(8), Some(8)).unwrap();
        }),
        ("\"d\" has another mode", &|| chmod("d", 0o711)),
        ("\"d\" has another owner", &|| {
            chown(path("d"), Some(0), None).unwrap();
        }),
        ("\"pipe\" has another mode", &|| chmod("pipe", 0o666)),
        ("\"device\" has another mode", &|| chmod("device", 0o666)),
        ("\"device\" has another device number", &|| {
            again("device", &|path| {
                let mode = rustix::fs::Mode::from_raw_mode(0o640);
                rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, device).unwrap();
            });
        }),
        ("\"first\" has another mode", &|| chmod("one", 0o600)),
        ("\"second\" has another owner", &|| {
            chown(path("two"), Some(0), None).unwrap();
            chmod("two", 0o640);
        }),
        ("\"first\" is no link to \"one\"", &|| {
            swap("first", "second")
        }),
        ("content of \"sparse\" changed", &|| {
            write("sparse", b"X", 524_289)
        }),
        ("content of \"sparse\" changed", &|| {
            write("sparse", b"X", 70_000)
        }),
        ("content of \"sparse\" changed", &|| {
            write("sparse", b"X", 1_048_575)
        }),
        ("\"sparse\" is no file of 1048576 bytes", &|| {
            write("sparse", b"\0", 1 << 20)
        }),
    ];
    for (want, change) in changes {
        rig.pull(&name).await.unwrap();
        let report = rig.manager.check(false, false).await.unwrap();
        assert_eq!((report.findings, report.unverifiable), (vec![], vec![]));
        change();
        let report = rig.manager.check(false, true).await.unwrap();
        let [finding] = &report.findings[..] else {
            panic!("{want}: {:?}", report.findings);
        };
        assert!(
            finding.problem.contains(want),
            "{want}: {}",
            finding.problem
        );
    }
}

#[tokio::test]
async fn documents_and_directories_that_are_gone_are_found() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let made = three_layers();
    fake.put_image("x", "1", &made);
    let name = fake.name("x:1");
    rig.pull(&name).await.unwrap();
    let chain = document::chain_ids(&made.diff_ids);
    let layers = rig.root.path().join("store/layers");
    let config = rig
        .root
        .path()
        .join("store/blobs/sha256")
        .join(made.id.hex());
    let manifest = config.with_file_name(fake::digest(&made.manifest).hex());
    std::fs::write(&config, "{}").unwrap();
    std::fs::remove_file(manifest).unwrap();
    std::fs::remove_dir_all(layers.join(chain[0].hex())).unwrap();
    std::fs::write(layers.join(chain[1].hex()).join("meta.json"), "").unwrap();
    let report = rig.manager.check(true, true).await.unwrap();
    let mut problems: Vec<_> = report.findings.iter().map(|f| f.problem.as_str()).collect();
    problems.sort_unstable();
    let want = [
        "it is gone",
        "its content changed",
        "its files are gone",
        "its meta.json is gone or damaged",
    ];
    assert_eq!(problems, want);
    rig.pull(&name).await.unwrap();
    assert!(
        rig.manager
            .check(false, false)
            .await
            .unwrap()
            .findings
            .is_empty()
    );
    assert_eq!(rig.reopen().manager.list().len(), 1);
}

/// A container that runs on a damaged layer keeps its files; nobody else gets them.
#[tokio::test]
async fn a_damaged_layer_below_a_container_stays_for_it_alone() {
    let (mut rig, fake) = (Rig::new(), Fake::http().await);
    let made = one_layer("text");
    fake.put_image("x", "1", &made);
    let name = fake.name("x:1");
    rig.pull(&name).await.unwrap();
    let chain = document::chain_ids(&made.diff_ids);
    let id = ContainerId::generate().unwrap();
    rig.storage.prepare(&id, &chain).unwrap();
    let file = rig.layer_file(&chain[0], "canary");
    std::fs::write(&file, "evil").unwrap();
    let root = rig.storage.mount(&id, &chain).unwrap();
    assert!(rig.manager.check(false, true).await.unwrap().repaired);
    let read = |root: &std::os::fd::OwnedFd| {
        use std::os::fd::AsRawFd;
        std::fs::read_to_string(format!("/proc/self/fd/{}/canary", root.as_raw_fd())).unwrap()
    };
    assert_eq!(read(&root), "evil", "the container goes on");
    for _ in 0..2 {
        rig.manager.collect().await.unwrap();
        assert_eq!(rig.files("canary"), 1);
        rig = rig.reopen();
    }
    rig.pull(&name).await.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "text");
    assert_eq!((read(&root).as_str(), rig.files("canary")), ("evil", 2));
    drop(root);
    rig.storage.remove_snapshot(&id).unwrap();
    rig.manager.collect().await.unwrap();
    assert_eq!(rig.files("canary"), 1);
}

#[tokio::test]
async fn pruning_leaves_what_is_used_pinned_or_tagged() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let texts = ["used", "old", "new", "tagged"];
    let made = texts.map(one_layer);
    fake.put_image("x", "used", &made[0]);
    fake.put_image("x", "moves", &made[1]);
    fake.put_image("x", "tagged", &made[3]);
    for tag in ["used", "moves", "tagged"] {
        rig.pull(&fake.name(&format!("x:{tag}"))).await.unwrap();
    }
    fake.put_image("x", "moves", &made[2]);
    rig.pull(&fake.name("x:moves")).await.unwrap();
    let id = ContainerId::generate().unwrap();
    let chain = document::chain_ids(&made[0].diff_ids);
    rig.storage.prepare(&id, &chain).unwrap();
    let used = |rig: &Rig| rig.manager.summaries().iter().filter(|i| i.in_use).count();
    assert_eq!(used(&rig), 1);
    let before = rig.manager.disk_use().await.unwrap();
    assert_eq!(
        (
            before.images.count,
            before.layers.count,
            before.containers.count
        ),
        (4, 4, 1)
    );
    let pruned = rig.manager.prune(false).await.unwrap();
    assert_eq!(pruned.images.len(), 1, "the one that lost its tag");
    assert!(pruned.bytes > 0);
    assert_eq!(rig.manager.find(&made[1].id.to_string()).unwrap(), None);
    let pruned = rig.manager.prune(true).await.unwrap();
    assert_eq!(pruned.images.len(), 2);
    assert_eq!(rig.manager.list().len(), 1);
    let after = rig.manager.disk_use().await.unwrap();
    assert_eq!((after.images.reclaimable, after.layers.count), (0, 1));
    assert!(after.free > 0 && after.total > after.free);
}

/// The sums in memory are what du says, through pulls, shared layers, removals and restarts.
#[tokio::test]
async fn the_room_that_is_reported_is_the_room_that_is_taken() {
    let (mut rig, fake) = (Rig::new(), Fake::http().await);
    let file = |n: usize| {
        (
            format!("some/where/{}/file-{n}", n % 7),
            vec![b'x'; 1 + n * 997 % 90_000],
        )
    };
    let files: Vec<_> = (0..400).map(file).collect();
    let listed: Vec<_> = files
        .iter()
        .map(|(n, b)| (n.as_str(), b.as_slice()))
        .collect();
    let shared = (tar_of(&listed), Pack::Gzip);
    let top = |text: &str| (layer("top", &text.repeat(200_000)), Pack::Zstd);
    for (tag, text) in [("1", "a"), ("2", "b")] {
        let made = image(&[shared.clone(), top(text)], &json!({}));
        fake.put_image("x", tag, &made);
    }
    for step in 0..5 {
        match step {
            0 => drop(rig.pull(&fake.name("x:1")).await.unwrap()),
            1 => drop(rig.pull(&fake.name("x:2")).await.unwrap()),
            2 => rig = rig.reopen(),
            3 => rig.manager.remove(&fake.name("x:1")).await.unwrap(),
            _ => rig.manager.remove(&fake.name("x:2")).await.unwrap(),
        }
        let told = rig.manager.fs_usage().await.unwrap();
        let (bytes, inodes) = ["layers", "blobs", "images", "partial", "init", "index.redb"]
            .map(|name| rig.du(name))
            .into_iter()
            .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let near = |told: u64, real: u64, slack: u64| told.abs_diff(real) <= real / 100 + slack;
        // Besides, some directories that never go.
        assert!(
            near(told.used_bytes, bytes, 16 << 10),
            "step {step}: {} is {bytes}",
            told.used_bytes
        );
        assert!(
            near(told.inodes_used, inodes, 4),
            "step {step}: {} is {inodes}",
            told.inodes_used
        );
        for image in rig.manager.summaries() {
            let of = |layer: &Digest| rig.du(&format!("layers/{}", layer.hex())).0;
            let details = rig.manager.inspect(&image.id).unwrap().unwrap();
            let real: u64 = details.layers.iter().map(|layer| of(&layer.chain)).sum();
            assert!(near(image.disk, real, 0), "{} is {real}", image.disk);
            let names = rig.manager.list().len() as u64;
            assert_eq!(details.layers[0].images, names, "shared");
            assert_eq!(details.layers[1].images, 1);
        }
    }
}
