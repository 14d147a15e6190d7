//! Disks that are full, out of inodes, or broken.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use super::*;

/// A file system of its own on a temporary directory.
struct Mounted {
    dir: tempfile::TempDir,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(self.dir.path(), UnmountFlags::DETACH);
    }
}

impl Mounted {
    fn tmpfs(options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = std::ffi::CString::new(options).unwrap();
        mount(
            "tmpfs",
            dir.path(),
            "tmpfs",
            MountFlags::empty(),
            data.as_c_str(),
        )
        .unwrap();
        Self { dir }
    }

    fn resize(&self, options: &str) {
        let data = std::ffi::CString::new(options).unwrap();
        mount_remount(self.dir.path(), MountFlags::empty(), data.as_c_str()).unwrap();
    }

    /// A manager with its store on the file system.
    fn rig(&self) -> Rig {
        let root = tempfile::tempdir().unwrap();
        let storage = open(&self.dir.path().join("store"));
        let manager = ImageManager::open(Config {
            storage: storage.clone(),
            registry: root.path().join("certs.d").into(),
            pinned: Vec::new(),
            parallel_layers: 0,
            unpacked_limit: 0,
            metrics: Arc::default(),
        });
        Rig {
            root,
            storage,
            manager: manager.unwrap(),
        }
    }

    fn free(&self) -> (u64, u64) {
        let stat = rustix::fs::statvfs(self.dir.path()).unwrap();
        (stat.f_bfree * stat.f_frsize, stat.f_ffree)
    }

    fn count(&self, name: &str) -> usize {
        let path = self.dir.path().join("store").join(name);
        std::fs::read_dir(path).unwrap().count()
    }

    /// Nothing is left of an image that could not be had.
    async fn nothing_left(&self, rig: &Rig, free: (u64, u64)) {
        assert!(rig.manager.list().is_empty());
        for _ in 0..200 {
            // A stray page or two of the index.
            if self.count("staging") == 0 && self.free().0 + (128 << 10) >= free.0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        for name in ["staging", "layers", "blobs/sha256", "images"] {
            assert_eq!(self.count(name), 0, "{name}");
        }
        let (bytes, inodes) = self.free();
        assert!(bytes + (128 << 10) >= free.0, "{bytes} of {} bytes", free.0);
        assert!(inodes >= free.1, "{inodes} of {} inodes", free.1);
    }
}

/// Some two megabytes that do not compress, in files; and a layer above.
fn large() -> Made {
    let mut state = 1_u64;
    let mut noise = |length: usize| -> Vec<u8> {
        let next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state.to_le_bytes()[7]
        };
        std::iter::repeat_with(next).take(length).collect()
    };
    let files: Vec<_> = (0..64)
        .map(|n| (format!("d/{n}"), noise(32 << 10)))
        .collect();
    let files: Vec<_> = files
        .iter()
        .map(|(n, b)| (n.as_str(), b.as_slice()))
        .collect();
    image(
        &[
            (tar_of(&files), Pack::Gzip),
            (layer("top", "x"), Pack::Zstd),
        ],
        &json!({}),
    )
}

async fn pull_fails(rig: &Rig, name: &str) -> bool {
    match rig.pull(name).await {
        Ok(_) => false,
        Err(error) => {
            let text = crate::model::chain(&error);
            assert_eq!(error.kind(), Kind::ResourceExhausted, "{text}");
            let path = rig.storage.root().display().to_string();
            assert!(text.contains("is full") && text.contains(&path), "{text}");
            true
        }
    }
}

#[tokio::test]
async fn a_disk_that_is_full_at_any_point_keeps_nothing_and_works_again_with_room() {
    let fake = Fake::http().await;
    fake.put_image("x", "1", &large());
    let name = fake.name("x:1");
    let disk = Mounted::tmpfs("size=16m");
    let rig = disk.rig();
    let before = disk.free();
    let mut failures = 0;
    let mut room = 0;
    loop {
        let used = (16 << 20) - before.0;
        disk.resize(&format!("size={}", used + room));
        if !pull_fails(&rig, &name).await {
            break;
        }
        failures += 1;
        disk.resize("size=16m");
        disk.nothing_left(&rig, before).await;
        room += 192 << 10;
        assert!(room < 8 << 20, "it never fits");
    }
    assert!(failures > 5, "{failures}");
    assert!(
        rig.manager
            .check(false, false)
            .await
            .unwrap()
            .findings
            .is_empty()
    );
    // Not a byte is free: what is removed goes nevertheless, and the next pull has its room.
    let ballast = disk.dir.path().join("ballast");
    let mut file = File::create(&ballast).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    assert_eq!(disk.free().0, 0);
    rig.manager.remove(&name).await.unwrap();
    assert!(rig.manager.list().is_empty());
    assert!(
        disk.free().0 > 2 << 20,
        "removed files are really gone: {:?}",
        disk.free()
    );
    assert!(!pull_fails(&rig, &name).await);
}

/// redb takes no more writes after one that failed; the index goes on nevertheless.
#[test]
fn the_index_goes_on_after_a_write_that_failed() {
    let disk = Mounted::tmpfs("size=24m");
    let rig = disk.rig();
    let record = |n: u8, length: usize| crate::storage::ImageRecord {
        id: Digest::from_bytes([n; 32]),
        tags: vec![format!("r/x:{n}")],
        digests: Vec::new(),
        manifest: Digest::from_bytes([n; 32]),
        size: 1,
        config: crate::model::ImageConfig {
            env: vec!["x".repeat(length)],
            ..Default::default()
        },
        chain: Vec::new(),
        blobs: Vec::new(),
        pinned: false,
        created_at: 1,
        platform: String::new(),
    };
    let index = rig.storage.index();
    index.put(record(1, 10)).unwrap();
    let mut failures = 0;
    for room in [0_u64, 16, 300, 1100, 2000, 3000, 4000, 5000, 6000, 8000] {
        let ballast = disk.dir.path().join("ballast");
        let mut file = File::create(&ballast).unwrap();
        while disk.free().0 > room << 10 && file.write_all(&[1; 4096]).is_ok() {}
        if let Err(error) = index.put(record(2, 900_000)) {
            assert_eq!(error.kind(), Kind::ResourceExhausted, "{error:?}");
            failures += 1;
            assert_eq!(index.all().len(), 1);
            // What is small enough can be changed meanwhile.
            index.remove(&Digest::from_bytes([1; 32])).unwrap();
            assert!(index.all().is_empty());
        }
        std::fs::remove_file(&ballast).unwrap();
        index
            .change(vec![record(1, 10)], &[Digest::from_bytes([2; 32])])
            .unwrap();
    }
    assert!(failures > 2, "{failures}");
    index.put(record(2, 900_000)).unwrap();
    let before = index.all();
    drop(rig);
    let rig = disk.rig();
    assert_eq!(rig.storage.index().all(), before);
    assert_eq!(rig.storage.index().lost_at(), None);
}

/// A change that was cut short left a copy that the index does not know, and now there is no room to write it again.
#[tokio::test]
async fn a_store_opens_on_a_full_disk_whose_copies_have_to_be_written_again() {
    let fake = Fake::http().await;
    fake.put_image("x", "1", &large());
    let name = fake.name("x:1");
    let disk = Mounted::tmpfs("size=16m");
    let rig = disk.rig();
    rig.pull(&name).await.unwrap();
    let id = rig.manager.list()[0].id;
    drop(rig);
    let copy = format!("store/images/{}.json", id.hex());
    std::fs::write(disk.dir.path().join(&copy), "{}").unwrap();
    let mut file = File::create(disk.dir.path().join("ballast")).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    assert_eq!(disk.free().0, 0);
    let rig = disk.rig();
    assert_eq!(rig.manager.list().len(), 1);
    let text = std::fs::read_to_string(disk.dir.path().join(&copy)).unwrap();
    assert_eq!(text, "{}", "there was room");
    rig.manager.remove(&name).await.unwrap();
    assert!(disk.free().0 > 2 << 20, "{:?}", disk.free());
    assert_eq!(disk.count("images"), 0);
}

#[tokio::test]
async fn a_disk_without_inodes_keeps_nothing_and_works_again_with_some() {
    let fake = Fake::http().await;
    fake.put_image("x", "1", &large());
    let name = fake.name("x:1");
    let disk = Mounted::tmpfs("size=16m,nr_inodes=500");
    let rig = disk.rig();
    let before = disk.free();
    for room in [1, 5, 20, 60, 68] {
        disk.resize(&format!("nr_inodes={}", 500 - before.1 + room));
        assert!(pull_fails(&rig, &name).await, "{room}");
        disk.resize("nr_inodes=500");
        disk.nothing_left(&rig, before).await;
    }
    assert!(!pull_fails(&rig, &name).await);
}

#[tokio::test]
async fn an_archive_that_does_not_fit_leaves_nothing() {
    let disk = Mounted::tmpfs("size=6m");
    let rig = disk.rig();
    let before = disk.free();
    let source = Rig::new();
    let fake = Fake::http().await;
    fake.put_image("x", "1", &large());
    source.pull(&fake.name("x:1")).await.unwrap();
    let export = source.manager.export(vec![fake.name("x:1")]).await.unwrap();
    let mut archive = Vec::new();
    export.write(&mut archive).unwrap();
    for room in [1_u64 << 20, 3 << 20] {
        disk.resize(&format!("size={}", (6 << 20) - before.0 + room));
        let loaded = rig
            .manager
            .load(std::io::Cursor::new(archive.clone()))
            .await;
        let error = loaded.unwrap_err();
        let text = crate::model::chain(&error);
        assert_eq!(error.kind(), Kind::ResourceExhausted, "{text}");
        disk.resize("size=6m");
        disk.nothing_left(&rig, before).await;
    }
    rig.manager
        .load(std::io::Cursor::new(archive))
        .await
        .unwrap();
}

/// A loop device whose file cannot grow: writes to some of its blocks fail when they are written out.
struct Broken {
    device: String,
    below: Mounted,
    above: Option<Mounted>,
}

impl Drop for Broken {
    fn drop(&mut self) {
        drop(self.above.take());
        let _ = Command::new("losetup").args(["-d", &self.device]).output();
    }
}

fn run(program: &str, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(args).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(format!(
            "{program}: {}",
            String::from_utf8_lossy(&output.stderr)
        )),
    }
}

impl Broken {
    fn new() -> Result<Self, String> {
        let below = Mounted::tmpfs("size=64m");
        let file = below.dir.path().join("disk");
        File::create(&file)
            .and_then(|f| f.set_len(48 << 20))
            .unwrap();
        let path = file.to_str().unwrap();
        let options = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
        run(
            "mkfs.ext4",
            &["-q", "-b", "1024", "-J", "size=1", "-E", options, path],
        )?;
        let device = run("losetup", &["-f", "--show", path])?;
        let mut broken = Self {
            device,
            below,
            above: None,
        };
        broken.attach()?;
        Ok(broken)
    }

    fn attach(&mut self) -> Result<(), String> {
        drop(self.above.take());
        let dir = tempfile::tempdir().unwrap();
        mount(
            self.device.as_str(),
            dir.path(),
            "ext4",
            MountFlags::empty(),
            None,
        )
        .map_err(|error| format!("mount: {error}"))?;
        self.above = Some(Mounted { dir });
        Ok(())
    }

    fn disk(&self) -> &Mounted {
        self.above.as_ref().unwrap()
    }
}

#[tokio::test]
async fn an_image_is_absent_after_a_write_error_of_the_disk() {
    let mut disk = match Broken::new() {
        Ok(disk) => disk,
        Err(why) => berth_skip::skip!("loop-disks", "{why}"),
    };
    let fake = Fake::http().await;
    fake.put_image("x", "1", &large());
    let name = fake.name("x:1");
    let rig = disk.disk().rig();
    // Everything of the store so far is on the disk, and of what comes now a part fits.
    rustix::fs::sync();
    let stat = rustix::fs::statvfs(disk.below.dir.path()).unwrap();
    let used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize;
    disk.below.resize(&format!("size={}", used + (700 << 10)));
    let error = rig.pull(&name).await.unwrap_err();
    let text = crate::model::chain(&error);
    assert!(
        text.contains("cannot sync") || text.contains("cannot "),
        "{text}"
    );
    assert!(rig.manager.list().is_empty());
    drop(rig);
    // The disk is repaired, as an operator would.
    disk.below.resize("size=64m");
    drop(disk.above.take());
    let _ = Command::new("e2fsck").args(["-fy", &disk.device]).output();
    disk.attach().unwrap();
    let rig = disk.disk().rig();
    assert!(rig.manager.list().is_empty());
    rig.manager.collect().await.unwrap();
    rig.pull(&name).await.unwrap();
    assert!(
        rig.manager
            .check(false, false)
            .await
            .unwrap()
            .findings
            .is_empty()
    );
    drop(rig);
}

impl Broken {
    /// Makes blocks of the disk unreadable, and puts the first blocks of files there: each with its number of blocks.
    fn spoil(&mut self, files: &[(String, u32)]) {
        const END: u32 = 48_500;
        // Really unmounted, or what is remembered is read: the thread that sweeps may have it still.
        let above = self.above.take().unwrap();
        let unmounted = || unmount(above.dir.path(), UnmountFlags::empty()).is_ok();
        assert!((0..200).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            unmounted()
        }));
        drop(above);
        let mut commands = String::new();
        let mut at = END + 16;
        for (path, blocks) in files {
            writeln!(
                commands,
                "extent_open /store/{path}\nroot\nreplace_node 0 {blocks} {at}\nextent_close\nsetb {at} {blocks}"
            )
            .unwrap();
            at += blocks;
        }
        let script = self.below.dir.path().join("script");
        std::fs::write(&script, commands).unwrap();
        let script = script.to_str().unwrap();
        run("debugfs", &["-w", "-f", script, &self.device]).unwrap();
        // A loop device says EIO where its file has ended.
        let disk = self.below.dir.path().join("disk");
        let disk = File::options().write(true).open(disk).unwrap();
        disk.set_len(u64::from(END) << 10).unwrap();
        self.attach().unwrap();
    }
}

#[tokio::test]
async fn bad_blocks_of_the_disk_are_named_and_their_content_is_fetched_again() {
    let mut disk = match Broken::new() {
        Ok(disk) => disk,
        Err(why) => berth_skip::skip!("loop-disks", "{why}"),
    };
    let fake = Fake::http().await;
    fake.put_image("x", "1", &large());
    fake.put_image(
        "y",
        "1",
        &image(&[(layer("d/y", "y"), Pack::Gzip)], &json!({})),
    );
    let (name, other) = (fake.name("x:1"), fake.name("y:1"));
    let rig = disk.disk().rig();
    rig.pull(&name).await.unwrap();
    rig.pull(&other).await.unwrap();
    let details = rig.manager.inspect(&name).unwrap().unwrap();
    let layer = details.layers[0].chain;
    let directory = rig.manager.inspect(&other).unwrap().unwrap().layers[0].chain;
    drop(rig);
    disk.spoil(&[
        (format!("layers/{}/fs/d/7", layer.hex()), 32),
        (format!("blobs/sha256/{}", details.manifest.hex()), 1),
        (format!("layers/{}/fs/d", directory.hex()), 1),
    ]);
    let rig = disk.disk().rig();
    let mut found = rig.manager.check(false, true).await.unwrap();
    let of_directory = |finding: &super::Finding| finding.what == directory.to_string();
    let at = found.findings.iter().position(of_directory).unwrap();
    let of_directory = found.findings.remove(at);
    assert_eq!(of_directory.images, [other.as_str()]);
    assert!(
        of_directory.problem.contains("cannot be read"),
        "{of_directory:?}"
    );
    let [of_layer, of_document] = &found.findings[..] else {
        panic!("{found:?}");
    };
    assert_eq!(of_layer.what, layer.to_string());
    assert!(of_layer.problem.contains("d/7"), "{}", of_layer.problem);
    assert_eq!(of_document.what, details.manifest.to_string());
    for finding in &found.findings {
        assert!(finding.problem.contains("cannot be read"), "{finding:?}");
        assert_eq!(finding.images, [name.as_str()]);
    }
    found.dropped.sort();
    assert_eq!(found.dropped, [name.as_str(), other.as_str()]);
    // What a directory that cannot be read names can be deleted by nobody; it is out of the way.
    let [stays] = &found.stays[..] else {
        panic!("{:?}", found.stays);
    };
    assert!(stays.contains("staging/removed-"), "{stays}");
    // The layer above was whole and is there still.
    let before = fake.count("GET", "/blobs/");
    rig.pull(&name).await.unwrap();
    assert_eq!(fake.count("GET", "/blobs/") - before, 1, "{:?}", fake.log());
    rig.pull(&other).await.unwrap();
    let found = rig.manager.check(false, false).await.unwrap();
    assert!(found.findings.is_empty(), "{:?}", found.findings);
    assert_eq!(rig.manager.list().len(), 2);
}

/// On a disk without a free block even a rename fails when the directory it goes to has no room for the name.
#[tokio::test]
async fn an_image_is_removed_from_a_disk_on_which_no_name_can_be_added() {
    let disk = match Broken::new() {
        Ok(disk) => disk,
        Err(why) => berth_skip::skip!("loop-disks", "{why}"),
    };
    let fake = Fake::http().await;
    fake.put_image("x", "1", &large());
    let name = fake.name("x:1");
    let mounted = disk.disk();
    let rig = mounted.rig();
    rig.pull(&name).await.unwrap();
    rustix::fs::sync();
    let mut file = File::create(mounted.dir.path().join("ballast")).unwrap();
    for length in [64 << 10, 1 << 10] {
        while file
            .write_all(&vec![1; length])
            .and_then(|()| file.sync_data())
            .is_ok()
        {}
    }
    let staging = mounted.dir.path().join("store/staging");
    for length in [200, 100, 30] {
        let mut n = 0;
        while File::create(staging.join(format!("{n:0length$}"))).is_ok() {
            n += 1;
            assert!(n < 1000, "there is no end to it");
        }
    }
    let into_staging = || {
        let at = mounted.dir.path().join("store/images/probe");
        File::create(&at)?;
        let moved = std::fs::rename(&at, staging.join("x".repeat(40)));
        std::fs::remove_file(&at)?;
        moved
    };
    let error = into_staging().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    rig.manager.remove(&name).await.unwrap();
    assert!(rig.manager.list().is_empty());
    assert_eq!(
        (mounted.count("layers"), mounted.count("blobs/sha256")),
        (0, 0)
    );
    assert!(mounted.free().0 > 2 << 20, "{:?}", mounted.free());
    drop(file);
    drop(rig);
}
