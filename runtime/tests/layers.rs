//! From an archive to a container's root: what layer and storage do together, without knowing each other.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests, too.

use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use berth::id::ContainerId;
use berth::layer::{self, Compression, Decoder, HashingReader, Limits};
use berth::model::Digest;
use berth::storage::{LayerInfo, Storage};
use berth::sys::fs::open_in_root;
use rustix::fs::{AtFlags, Mode, OFlags};

/// One entry: name, type, mode, content.
type Entry<'a> = (&'a str, tar::EntryType, u32, &'a [u8]);

fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind, mode, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        if kind.is_character_special() {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        tar.append_data(&mut header, name, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

/// Applies, finishes and publishes a layer above `below`; its chain id is its diff id here.
fn publish(storage: &Storage, below: &[Digest], blob: &[u8]) -> Digest {
    let staged = storage.stage_layer().unwrap();
    let decoder = Decoder::new(Compression::Gzip, blob).unwrap();
    let mut reader = HashingReader::new(decoder);
    let mut applied = layer::apply(&mut reader, staged.dir(), &Limits::default()).unwrap();
    let (diff_id, ..) = reader.finish();
    let view = storage.view(below).unwrap();
    layer::finish(staged.dir(), view.as_ref().map(AsFd::as_fd), &mut applied).unwrap();
    let info = LayerInfo {
        diff_id,
        blob: diff_id,
        blob_size: blob.len() as u64,
        bytes: applied.bytes,
        inodes: applied.inodes,
        archive: None,
        recipe: 0,
    };
    storage.publish_layer(staged, &diff_id, info).unwrap();
    diff_id
}

#[test]
fn archives_become_the_root_of_a_container() {
    use tar::EntryType::{Char, Directory, Regular};
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::open(&dir.path().join("berth")).unwrap();
    let base = gzip(&archive(&[
        ("usr/", Directory, 0o750, b""),
        ("usr/old", Regular, 0o644, b"old"),
        ("usr/kept", Regular, 0o644, b"kept"),
    ]));
    let top = gzip(&archive(&[
        ("usr/share/file", Regular, 0o644, b"hello"),
        ("usr/.wh.old", Regular, 0o644, b""),
        ("usr/null", Char, 0o666, b""),
    ]));
    let base = publish(&storage, &[], &base);
    let top = publish(&storage, &[base], &top);
    let chain = [base, top];

    let id = ContainerId::generate().unwrap();
    storage.prepare(&id, &chain).unwrap();
    let root = storage.mount(&id, &chain).unwrap();
    let read = |path: &str| {
        let path = Path::new(path);
        let file = open_in_root(root.as_fd(), path, OFlags::RDONLY, Mode::empty())?;
        std::io::read_to_string(std::fs::File::from(file))
    };
    assert_eq!(read("usr/share/file").unwrap(), "hello");
    assert_eq!(read("usr/kept").unwrap(), "kept");
    assert!(read("usr/old").is_err());
    // The top layer only implies usr: it looks as in the layer below.
    let stat = rustix::fs::statat(&root, "usr", AtFlags::empty()).unwrap();
    assert_eq!(stat.st_mode & 0o7777, 0o750);
    let null = storage
        .root()
        .join("layers")
        .join(top.hex())
        .join("fs/usr/null");
    let null = std::fs::symlink_metadata(null).unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
}

/// Not a check but a figure: `cargo test --release -p berth --test layers -- --ignored --nocapture`, with
/// `BERTH_TAR` naming an archive, compressed or not.
#[test]
#[ignore = "a measurement, run by hand"]
fn apply_throughput() {
    let Some(path) = std::env::var_os("BERTH_TAR") else {
        eprintln!("BERTH_TAR is not set");
        return;
    };
    for round in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(&dir.path().join("berth")).unwrap();
        let staged = storage.stage_layer().unwrap();
        let start = std::time::Instant::now();
        let file = std::fs::File::open(&path).unwrap();
        let decoder = Decoder::detect("", file, layer::MAX_WINDOW_LOG).unwrap();
        let hashed = std::env::var_os("BERTH_NO_HASH").is_none();
        let (applied, bytes) = if hashed {
            let mut reader = HashingReader::new(decoder);
            let applied = layer::apply(&mut reader, staged.dir(), &Limits::default()).unwrap();
            (applied, reader.bytes())
        } else {
            let applied = layer::apply(decoder, staged.dir(), &Limits::default()).unwrap();
            (applied, 0)
        };
        let unpacked = start.elapsed();
        staged.sync().unwrap();
        let synced = start.elapsed();
        eprintln!(
            "round {round}: {} entries, {} MiB of tar, {} MiB on disk, apply {unpacked:?}, with sync {synced:?}",
            applied.entries,
            bytes >> 20,
            applied.bytes >> 20,
        );
    }
}
