//! Archives of many kinds, taken in pieces of every size, come out as they went in.

use std::fs;
use std::io::{Cursor, Read};
use std::path::Path;

use proptest::prelude::*;
use tar::EntryType;

use super::*;
use crate::sys::fs::open_dir_path;

struct Made {
    dir: tempfile::TempDir,
    recorded: Recorded,
}

/// Records an archive in pieces, and unpacks it with another program's code.
fn record(archive: &[u8], pieces: &[usize]) -> Made {
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("recipe")).unwrap();
    let mut recorder = Recorder::new(file).unwrap();
    let mut rest = archive;
    let mut sizes = pieces.iter().cycle();
    while !rest.is_empty() {
        let (now, after) = rest.split_at((*sizes.next().unwrap()).clamp(1, rest.len()));
        recorder.feed(now).unwrap();
        rest = after;
    }
    let recorded = recorder.finish(true).unwrap();
    fs::create_dir(dir.path().join("fs")).unwrap();
    tar::Archive::new(archive)
        .unpack(dir.path().join("fs"))
        .unwrap();
    Made { dir, recorded }
}

impl Made {
    fn replay(&self, compare: Compare) -> io::Result<Vec<u8>> {
        let recipe = File::open(self.dir.path().join("recipe")).unwrap();
        let root = open_dir_path(&self.dir.path().join("fs")).unwrap();
        let mut bytes = Vec::new();
        Replay::new(recipe, root, compare)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("fs").join(name)
    }
}

fn header(kind: EntryType, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header
}

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut dir = header(EntryType::Directory, 0);
    dir.set_mode(0o755);
    builder.append_data(&mut dir, "d/", &b""[..]).unwrap();
    for (n, (name, content)) in files.iter().enumerate() {
        if n % 3 == 0 {
            builder
                .append_pax_extensions([("SCHILY.xattr.user.a", &b"b"[..])])
                .unwrap();
        }
        let mut file = header(EntryType::Regular, content.len());
        builder
            .append_data(&mut file, format!("d/{n}{name}"), content.as_slice())
            .unwrap();
    }
    let mut link = header(EntryType::Symlink, 0);
    builder
        .append_link(&mut link, "d/link", "/nowhere")
        .unwrap();
    if !files.is_empty() {
        let mut hard = header(EntryType::Link, 0);
        let target = format!("d/0{}", files[0].0);
        builder.append_link(&mut hard, "hard", target).unwrap();
    }
    builder.into_inner().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn what_went_in_comes_out(
        files in proptest::collection::vec(("[a-z]{1,150}", proptest::collection::vec(any::<u8>(), 0..2000)), 0..8),
        pieces in proptest::collection::vec(1_usize..3000, 1..6),
        tail in 0_usize..3,
    ) {
        let mut bytes = archive(&files);
        bytes.extend(vec![0; tail * 512]);
        let made = record(&bytes, &pieces);
        prop_assert_eq!(made.recorded.archive, bytes.len() as u64);
        prop_assert!(made.recorded.stored.is_some());
        prop_assert!(made.replay(Compare::Entries).unwrap() == bytes);
    }

    #[test]
    fn any_bytes_are_recorded_or_given_up(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let dir = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::new(File::create(dir.path().join("r")).unwrap()).unwrap();
        recorder.feed(&bytes).unwrap();
        let recorded = recorder.finish(true).unwrap();
        prop_assert_eq!(recorded.archive, bytes.len() as u64);
    }

    #[test]
    fn any_bytes_are_a_recipe_or_damage(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("r");
        fs::write(&file, zstd::encode_all(Cursor::new(&bytes), 1).unwrap()).unwrap();
        let root = open_dir_path(dir.path()).unwrap();
        let mut replay = Replay::new(File::open(&file).unwrap(), root, Compare::Entries).unwrap();
        let mut out = Vec::new();
        if let Err(error) = replay.read_to_end(&mut out) {
            prop_assert!(is_fault(&error), "{error}");
        }
    }
}

#[test]
fn the_recipe_of_a_large_file_is_small_and_changes_are_noticed() {
    let files = [
        ("big".to_owned(), vec![7; 3_000_000]),
        ("b".to_owned(), vec![1; 5]),
    ];
    let bytes = archive(&files);
    let made = record(&bytes, &[70_000]);
    assert!(made.recorded.stored.unwrap() < 1000);
    let check = |want: &str| {
        let error = made.replay(Compare::Entries).unwrap_err();
        assert!(
            is_fault(&error) && error.to_string().contains(want),
            "{error}"
        );
    };
    let small = made.path("d/1b");
    fs::write(&small, "other").unwrap();
    assert!(
        made.replay(Compare::Entries).unwrap() != bytes,
        "the digest tells"
    );
    fs::write(&small, "longer").unwrap();
    check("no file of 5 bytes");
    fs::remove_file(&small).unwrap();
    check("is missing");
    std::os::unix::fs::symlink("/etc/hostname", &small).unwrap();
    check("another type");
    fs::remove_file(&small).unwrap();
    fs::write(&small, [1; 5]).unwrap();
    fs::set_permissions(&small, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    check("another mode");
    assert!(made.replay(Compare::Content).unwrap() == bytes);
    let recipe = made.dir.path().join("recipe");
    let whole = fs::read(&recipe).unwrap();
    fs::write(&recipe, &whole[..whole.len() / 2]).unwrap();
    check("its recipe is damaged");
}

#[test]
fn sparse_files_whiteouts_and_odd_headers_are_kept_whole() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut map = header(EntryType::GNUSparse, 512);
    let gnu = map.as_gnu_mut().unwrap();
    gnu.realsize.copy_from_slice(b"00000002000\0");
    gnu.sparse[0].offset.copy_from_slice(b"00000001000\0");
    gnu.sparse[0].numbytes.copy_from_slice(b"00000001000\0");
    builder
        .append_data(&mut map, "sparse", &[9_u8; 512][..])
        .unwrap();
    let mut hidden = header(EntryType::Regular, 3);
    builder
        .append_data(&mut hidden, "d/.wh.x", &b"abc"[..])
        .unwrap();
    let bytes = builder.into_inner().unwrap();
    let made = record(&bytes, &[100]);
    assert!(made.replay(Compare::Entries).unwrap() == bytes);
    let names = fs::read_dir(made.path("")).unwrap().count();
    assert!(names > 0 && Path::new(&made.path("sparse")).exists());
}

#[test]
fn an_archive_with_a_name_twice_or_cut_off_has_no_recipe() {
    let bytes = archive(&[("a".to_owned(), vec![1; 700])]);
    for (length, exact) in [(bytes.len(), false), (1500, true), (100, true)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recipe");
        let mut recorder = Recorder::new(File::create(&path).unwrap()).unwrap();
        recorder.feed(&bytes[..length]).unwrap();
        assert_eq!(recorder.finish(exact).unwrap().stored, None, "{length}");
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    }
}
/// The form as it is written down, from which layers of earlier builds are read. What an entry says besides its content is
/// taken from the archive, whatever stands beside it.
#[test]
fn a_recipe_made_by_hand_is_read() {
    let archive = archive(&[("a".to_owned(), vec![1; 700]), ("b".to_owned(), vec![])]);
    let made = record(&archive, &[512]);
    let content = archive.windows(700).position(|at| at == [1; 700]).unwrap();
    let (before, after) = (&archive[..content], &archive[content + 700..]);
    let mut parts = vec![LITERAL_TAG];
    parts.extend(length(before));
    parts.extend(before);
    for (size, content) in [(0_u64, 0_u8), (700, 1)] {
        parts.extend([ENTRY_TAG, 3]);
        parts.extend([0xff; 12]);
        parts.extend(size.to_le_bytes());
        parts.push(content);
        parts.extend(length(b"d/0a"));
        parts.extend(b"d/0a");
    }
    parts.push(LITERAL_TAG);
    parts.extend(length(after));
    parts.extend(after);
    let file = made.dir.path().join("recipe");
    fs::write(file, zstd::encode_all(Cursor::new(&parts), 1).unwrap()).unwrap();
    assert!(made.replay(Compare::Entries).unwrap() == archive);
}
