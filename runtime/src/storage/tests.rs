mod index;
mod partials;
mod volumes;

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};

use rustix::fs::OFlags;
use sha2::Digest as _;

use super::*;
use crate::model::ImageConfig;
use crate::sys::fs::open_in_root;
use crate::sys::mount::mounts;

fn digest(text: &str) -> Digest {
    Digest::from_bytes(sha2::Sha256::digest(text).into())
}

fn new() -> (tempfile::TempDir, Storage) {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(&dir.path().join("berth")).unwrap();
    (dir, storage)
}

fn reopen(dir: &tempfile::TempDir, storage: Storage) -> Storage {
    drop(storage);
    // The thread that sweeps has the store open until it is done.
    for _ in 0..100 {
        match Storage::open(&dir.path().join("berth")) {
            Err(Error::InUse(_)) => std::thread::sleep(std::time::Duration::from_millis(20)),
            opened => return opened.unwrap(),
        }
    }
    panic!("the store stays in use");
}

fn info(bytes: u64) -> LayerInfo {
    LayerInfo {
        diff_id: digest("diff"),
        blob: digest("blob"),
        blob_size: 7,
        bytes,
        inodes: 3,
        archive: None,
        recipe: 0,
    }
}

/// Publishes a layer that `make` fills.
fn layer(storage: &Storage, chain: &str, make: impl FnOnce(&Path)) -> ChainId {
    let staged = storage.stage_layer().unwrap();
    make(
        &storage
            .root()
            .join("staging")
            .join(staging_name(storage))
            .join("fs"),
    );
    let chain = digest(chain);
    storage.publish_layer(staged, &chain, info(1000)).unwrap();
    chain
}

fn staging_name(storage: &Storage) -> std::ffi::OsString {
    let names = names(storage.shared.dirs.staging.as_fd()).unwrap();
    let mut layers = names
        .into_iter()
        .filter(|name| name.to_str().unwrap().starts_with("layer-"));
    layers.next_back().unwrap()
}

fn record(id: &str, tags: &[&str], chain: &[ChainId], blobs: &[Digest]) -> ImageRecord {
    ImageRecord {
        id: digest(id),
        tags: tags.iter().map(ToString::to_string).collect(),
        digests: vec![format!("r/{id}@{}", digest(id))],
        manifest: digest("manifest"),
        size: 5,
        config: ImageConfig::default(),
        chain: chain.to_vec(),
        blobs: blobs.to_vec(),
        pinned: false,
        created_at: 1,
        platform: String::new(),
    }
}

/// The names in the root of a mount, whose descriptor itself cannot be read.
fn names_in(mount: &OwnedFd) -> Vec<std::ffi::OsString> {
    names(open_dir(mount.as_fd(), OsStr::new(".")).unwrap().as_fd()).unwrap()
}

fn read(root: &OwnedFd, path: &str) -> io::Result<String> {
    let file = open_in_root(root.as_fd(), Path::new(path), OFlags::RDONLY, Mode::empty())?;
    io::read_to_string(fs::File::from(file))
}

#[test]
fn directories_are_closed_to_others_and_the_root_is_passable() {
    let (dir, storage) = new();
    let mode = |name: &str| fs::metadata(storage.root().join(name)).unwrap().mode() & 0o7777;
    assert_eq!(mode(""), 0o711);
    for name in [
        "layers",
        "blobs",
        "blobs/sha256",
        "partial",
        "snapshots",
        "staging",
        "init",
    ] {
        assert_eq!(mode(name), 0o700, "{name}");
    }
    fs::set_permissions(
        dir.path().join("berth/layers"),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    let storage = reopen(&dir, storage);
    assert_eq!(
        fs::metadata(storage.root().join("layers")).unwrap().mode() & 0o7777,
        0o700
    );
}

#[test]
fn a_second_store_on_the_same_root_is_refused() {
    let (dir, storage) = new();
    let other = Storage::open(&dir.path().join("berth"));
    assert!(matches!(other, Err(Error::InUse(_))));
    drop(storage);
}

#[test]
fn layers_are_there_once_published_and_after_a_restart() {
    let (dir, storage) = new();
    let before = storage.usage();
    let chain = layer(&storage, "a", |fs| fs::write(fs.join("f"), "x").unwrap());
    assert!(storage.has_layer(&chain));
    assert_eq!(storage.layer_info(&chain), Some(info(1000)));
    assert!(storage.usage().bytes >= before.bytes + 1000);
    let storage = reopen(&dir, storage);
    assert!(storage.has_layer(&chain));
    // Somebody was faster: fine, and theirs stays.
    layer(&storage, "a", |fs| fs::write(fs.join("g"), "x").unwrap());
    let path = storage.root().join("layers").join(chain.hex());
    assert!(path.join("fs/f").exists() && !path.join("fs/g").exists());
    assert_eq!(names(storage.shared.dirs.staging.as_fd()).unwrap().len(), 0);
    storage.remove_layer(&chain).unwrap();
    storage.remove_layer(&chain).unwrap();
    assert!(!storage.has_layer(&chain) && !path.exists());
    assert_eq!(storage.usage(), before);
}

#[test]
fn unfinished_and_damaged_layers_are_not_there_and_are_swept() {
    let (dir, storage) = new();
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("torn", |path| {
            fs::write(path.join("meta.json"), "{\"version\":1,").unwrap()
        }),
        ("empty", |path| {
            fs::write(path.join("meta.json"), "").unwrap()
        }),
        ("none", |path| {
            fs::remove_file(path.join("meta.json")).unwrap()
        }),
        ("gone", |path| fs::remove_dir_all(path.join("fs")).unwrap()),
    ];
    for (name, damage) in damages {
        let chain = layer(&storage, name, |fs| fs::write(fs.join("f"), "x").unwrap());
        damage(&storage.root().join("layers").join(chain.hex()));
    }
    let moved = layer(&storage, "moved", |_| {});
    let layers = storage.root().join("layers");
    fs::rename(layers.join(moved.hex()), layers.join(digest("other").hex())).unwrap();
    let good = layer(&storage, "good", |_| {});
    let leftover = storage.root().join("staging/layer-left");
    fs::create_dir_all(leftover.join("fs/deep")).unwrap();
    fs::write(storage.root().join("blobs/sha256/.tmp-1"), "half").unwrap();
    let storage = reopen(&dir, storage);
    assert_eq!(storage.layers(), [good]);
    assert_eq!(fs::read_dir(&layers).unwrap().count(), 1);
    let storage = reopen(&dir, storage);
    assert_eq!(names(storage.shared.dirs.staging.as_fd()).unwrap().len(), 0);
    assert!(storage.blobs().is_empty());
}

#[test]
fn a_staged_layer_that_is_dropped_leaves_nothing() {
    let (_dir, storage) = new();
    let staged = storage.stage_layer().unwrap();
    rustix::fs::mkdirat(staged.dir(), "d", Mode::RWXU).unwrap();
    staged.sync().unwrap();
    drop(staged);
    assert!(
        names(storage.shared.dirs.staging.as_fd())
            .unwrap()
            .is_empty()
    );
}

#[test]
fn documents_are_what_their_digest_says() {
    let (dir, storage) = new();
    storage.put_blob(&digest("doc"), b"doc").unwrap();
    assert!(matches!(
        storage.put_blob(&digest("doc"), b"other"),
        Err(Error::Damaged(_))
    ));
    let storage = reopen(&dir, storage);
    assert!(storage.has_blob(&digest("doc")));
    assert_eq!(storage.get_blob(&digest("doc")).unwrap().unwrap(), b"doc");
    assert_eq!(storage.get_blob(&digest("no")).unwrap(), None);
    let path = storage
        .root()
        .join("blobs/sha256")
        .join(digest("doc").hex());
    fs::write(&path, "dok").unwrap();
    assert!(matches!(
        storage.get_blob(&digest("doc")),
        Err(Error::Damaged(_))
    ));
    storage.put_blob(&digest("doc"), b"doc").unwrap();
    assert_eq!(storage.get_blob(&digest("doc")).unwrap().unwrap(), b"doc");
    storage.remove_blob(&digest("doc")).unwrap();
    assert!(!storage.has_blob(&digest("doc")) && !path.exists());
}

/// What cannot be moved or removed costs itself, not the start.
#[test]
fn leftovers_that_nobody_can_touch_do_not_stop_the_start() {
    let (dir, storage) = new();
    let good = layer(&storage, "good", |_| {});
    let root = storage.root().to_owned();
    let broken = root.join("layers").join(digest("broken").hex());
    fs::create_dir(&broken).unwrap();
    let half = root.join("blobs/sha256/.tmp-half");
    fs::write(&half, "x").unwrap();
    let lock = |flag: &str| {
        let chattr = std::process::Command::new("chattr")
            .arg(flag)
            .args([&broken, &half])
            .output();
        chattr.is_ok_and(|output| output.status.success())
    };
    if !lock("+i") {
        berth_skip::skip!(
            "chattr",
            "the file system of the temporary directory has no immutable files"
        );
    }
    drop(storage);
    let opened = std::panic::catch_unwind(|| Storage::open(&dir.path().join("berth")));
    lock("-i");
    let storage = opened.unwrap().unwrap();
    assert_eq!(storage.layers(), [good]);
    assert!(storage.blobs().is_empty());
}

#[test]
fn a_container_root_has_all_layers_and_is_attached_nowhere() {
    let (_dir, storage) = new();
    let low = layer(&storage, "low", |fs| {
        fs::create_dir_all(fs.join("etc")).unwrap();
        fs::write(fs.join("etc/a"), "low").unwrap();
        fs::write(fs.join("etc/b"), "low").unwrap();
        fs::write(fs.join("gone"), "low").unwrap();
        fs::set_permissions(
            fs.join("etc"),
            std::os::unix::fs::PermissionsExt::from_mode(0o751),
        )
        .unwrap();
    });
    let top = layer(&storage, "top", |fs| {
        fs::create_dir_all(fs.join("etc")).unwrap();
        fs::set_permissions(
            fs.join("etc"),
            std::os::unix::fs::PermissionsExt::from_mode(0o751),
        )
        .unwrap();
        fs::write(fs.join("etc/a"), "top").unwrap();
        std::os::unix::fs::chown(fs, Some(11), Some(12)).unwrap();
        fs::set_permissions(fs, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let node = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, fs.join("gone"), node, Mode::empty(), 0).unwrap();
    });
    let id = ContainerId::generate().unwrap();
    let chain = [low, top];
    assert!(matches!(
        storage.mount(&id, &chain),
        Err(Error::NoSnapshot(_))
    ));
    storage.prepare(&id, &chain).unwrap();
    assert!(matches!(
        storage.prepare(&id, &chain),
        Err(Error::SnapshotExists(_))
    ));
    let root = storage.mount(&id, &chain).unwrap();
    assert_eq!(read(&root, "etc/a").unwrap(), "top");
    assert_eq!(read(&root, "etc/b").unwrap(), "low");
    assert!(read(&root, "gone").is_err());
    let stat = |path: &str| rustix::fs::statat(&root, path, rustix::fs::AtFlags::empty()).unwrap();
    let facts = |path: &str| {
        (
            stat(path).st_mode & 0o7777,
            stat(path).st_uid,
            stat(path).st_gid,
        )
    };
    assert_eq!(facts("."), (0o755, 11, 12));
    assert_eq!(facts("etc"), (0o751, 0, 0));
    rustix::fs::mkdirat(&root, "written", Mode::RWXU).unwrap();
    let upper = storage
        .root()
        .join("snapshots")
        .join(id.as_str())
        .join("fs");
    assert!(upper.join("written").is_dir());
    assert_eq!(fs::read_dir(&upper).unwrap().count(), 1);
    assert_eq!(storage.snapshot_usage(&id).unwrap().inodes, 2);
    let all = mounts().unwrap();
    assert!(
        all.iter()
            .all(|mount| !mount.mount_point.starts_with(storage.root()))
    );
    drop(root);
    assert_eq!(storage.snapshots(), std::slice::from_ref(&id));
    storage.remove_snapshot(&id).unwrap();
    storage.remove_snapshot(&id).unwrap();
    assert!(storage.snapshots().is_empty() && !upper.exists());
}

/// S78 (CVE-2026-41579): whatever an image has for /dev, a container has a directory.
#[test]
fn the_init_layer_hides_what_an_image_has_for_dev_proc_and_sys() {
    let (dir, storage) = new();
    let canary = dir.path().join("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("ptmx"), "host").unwrap();
    let chain = layer(&storage, "evil", |fs| {
        symlink(&canary, fs.join("dev")).unwrap();
        fs::write(fs.join("proc"), "a file").unwrap();
        fs::create_dir(fs.join("sys")).unwrap();
        fs::write(fs.join("sys/fake"), "x").unwrap();
        symlink("/proc/mounts", fs.join("mtab")).unwrap();
    });
    let id = ContainerId::generate().unwrap();
    storage.prepare(&id, &[chain]).unwrap();
    let root = storage.mount(&id, &[chain]).unwrap();
    for (name, mode) in [("dev", 0o755), ("proc", 0o555), ("sys", 0o555)] {
        let open = open_dir(root.as_fd(), OsStr::new(name)).unwrap();
        assert!(names(open.as_fd()).unwrap().is_empty(), "{name}");
        assert_eq!(rustix::fs::fstat(&open).unwrap().st_mode & 0o7777, mode);
    }
    let link = rustix::fs::readlinkat(&root, "mtab", Vec::new()).unwrap();
    assert_eq!(link.as_c_str(), c"/proc/mounts");
    // What is in them can be written, in the container's own layer.
    rustix::fs::mkdirat(&root, "dev/x", Mode::RWXU).unwrap();
    assert_eq!(fs::read_dir(&canary).unwrap().count(), 1);
}

#[test]
fn an_image_without_layers_has_a_root_too() {
    let (_dir, storage) = new();
    let id = ContainerId::generate().unwrap();
    storage.prepare(&id, &[]).unwrap();
    let root = storage.mount(&id, &[]).unwrap();
    let mut found = names_in(&root);
    found.sort();
    assert_eq!(found, ["dev", "proc", "sys"]);
    rustix::fs::mkdirat(&root, "tmp", Mode::RWXU).unwrap();
    assert!(storage.view(&[]).unwrap().is_none());
}

#[test]
fn as_many_layers_as_overlayfs_takes() {
    let (_dir, storage) = new();
    let chain: Vec<ChainId> = (0..MAX_LAYERS)
        .map(|n| {
            layer(&storage, &n.to_string(), |fs| {
                fs::write(fs.join(n.to_string()), "").unwrap()
            })
        })
        .collect();
    let id = ContainerId::generate().unwrap();
    storage.prepare(&id, &chain).unwrap();
    let root = storage.mount(&id, &chain).unwrap();
    assert_eq!(names_in(&root).len(), MAX_LAYERS + 3);
    let view = storage.view(&chain).unwrap().unwrap();
    assert_eq!(names_in(&view).len(), MAX_LAYERS);
    let more = [&chain[..], &chain[..1]].concat();
    let other = ContainerId::generate().unwrap();
    assert!(matches!(
        storage.prepare(&other, &more),
        Err(Error::TooManyLayers(_))
    ));
    assert_eq!(storage.snapshots(), [id]);
    // The same with the option string of old kernels.
    let dirs = storage.open_layers(&chain).unwrap();
    let lower: Vec<_> = dirs.iter().map(AsFd::as_fd).collect();
    let layers = crate::sys::mount::OverlayLayers {
        lower: &lower,
        upper: None,
    };
    let scratch = storage.scratch().unwrap();
    let old = crate::sys::mount::detached_overlay(Method::OptionString, &layers, &scratch).unwrap();
    assert_eq!(names_in(&old).len(), MAX_LAYERS);
}

#[test]
fn a_layer_whose_root_is_opaque_hides_all_below() {
    let (dir, storage) = new();
    let low = layer(&storage, "low", |fs| {
        fs::write(fs.join("low"), "x").unwrap()
    });
    let top = layer(&storage, "top", |fs| {
        fs::write(fs.join("top"), "x").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(fs, "trusted.overlay.opaque", b"y", flags).unwrap();
    });
    let storage = reopen(&dir, storage);
    let view = storage.view(&[low, top]).unwrap().unwrap();
    assert_eq!(names_in(&view), ["top"]);
}

#[test]
fn missing_layers_are_named() {
    let (_dir, storage) = new();
    let id = ContainerId::generate().unwrap();
    let error = storage.prepare(&id, &[digest("no")]).unwrap_err();
    assert!(matches!(error, Error::NoLayer(_)) && error.kind() == Kind::NotFound);
    assert!(storage.snapshots().is_empty());
}

#[test]
fn what_nobody_names_is_collected() {
    let (dir, storage) = new();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| layer(&storage, name, |_| {}));
    for name in ["x", "y", "z"] {
        storage.put_blob(&digest(name), name.as_bytes()).unwrap();
    }
    storage
        .index()
        .put(record("image", &["t"], &[a], &[digest("x")]))
        .unwrap();
    let id = ContainerId::generate().unwrap();
    storage.prepare(&id, &[b]).unwrap();
    let mut lease = storage.lease();
    assert!(lease.hold_layer(c) && !lease.hold_layer(digest("later")));
    assert!(lease.hold_blob(digest("y")));
    let collected = storage.collect().unwrap();
    assert_eq!((collected.layers, collected.blobs), (1, 1));
    assert!(!storage.has_layer(&d) && !storage.has_blob(&digest("z")));
    for chain in [a, b, c] {
        assert!(storage.has_layer(&chain));
    }
    drop(lease);
    let storage = reopen(&dir, storage);
    assert_eq!(storage.collect().unwrap().layers, 1);
    storage.index().remove(&digest("image")).unwrap();
    storage.remove_snapshot(&id).unwrap();
    assert!(!storage.has_layer(&b), "the container's layers go with it");
    assert!(storage.has_layer(&a), "others wait for a collection");
    let collected = storage.collect().unwrap();
    assert_eq!((collected.layers, collected.blobs), (1, 1));
    assert!(storage.layers().is_empty() && storage.blobs().is_empty());
    assert_eq!(
        fs::read_dir(storage.root().join("layers")).unwrap().count(),
        0
    );
}

/// Pulls and collections side by side: what a lease holds, or was published under it, is always there.
#[test]
fn collecting_beside_pulls_takes_nothing_from_them() {
    let (_dir, storage) = new();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                storage.collect().unwrap();
            }
        });
        let pulls: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    for round in 0..40 {
                        let (chain, doc) = (
                            digest(&format!("c{}", round % 5)),
                            format!("d{}", round % 5),
                        );
                        let mut lease = storage.lease();
                        if !lease.hold_layer(chain) {
                            let staged = storage.stage_layer().unwrap();
                            storage.publish_layer(staged, &chain, info(1)).unwrap();
                        }
                        lease.hold_blob(digest(&doc));
                        storage.put_blob(&digest(&doc), doc.as_bytes()).unwrap();
                        assert!(storage.view(&[chain]).unwrap().is_some());
                        assert!(storage.get_blob(&digest(&doc)).unwrap().is_some());
                        drop(lease);
                    }
                })
            })
            .collect();
        let ended: Vec<_> = pulls
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    storage.collect().unwrap();
    assert!(storage.layers().is_empty() && storage.blobs().is_empty());
}

#[test]
fn tags_move_and_records_survive_a_restart() {
    let (dir, storage) = new();
    let index = storage.index();
    index
        .put(record("one", &["r:latest", "r:1"], &[], &[]))
        .unwrap();
    index.put(record("two", &["r:latest"], &[], &[])).unwrap();
    assert_eq!(index.get(&digest("one")).unwrap().tags, ["r:1"]);
    assert_eq!(index.get(&digest("one")).unwrap().digests.len(), 1);
    let storage = reopen(&dir, storage);
    let index = storage.index();
    assert_eq!(index.all().len(), 2);
    assert_eq!(index.get(&digest("one")).unwrap().tags, ["r:1"]);
    index
        .change(vec![record("three", &["r:1"], &[], &[])], &[digest("two")])
        .unwrap();
    let storage = reopen(&dir, storage);
    let index = storage.index();
    let tags: Vec<_> = index
        .all()
        .iter()
        .flat_map(|image| image.tags.clone())
        .collect();
    assert_eq!(tags, ["r:1"]);
    assert_eq!(index.get(&digest("two")), None);
    index.remove(&digest("two")).unwrap();
}
