//! A name that comes twice: the last entry counts.

use super::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    File,
    Dir,
    Link,
    Fifo,
    Hard,
    Whiteout,
}

const ALL: [What; 6] = [
    What::File,
    What::Dir,
    What::Link,
    What::Fifo,
    What::Hard,
    What::Whiteout,
];

fn add(tar: &mut Tar, what: What) {
    match what {
        What::File => tar.file("x", b"file"),
        What::Dir => tar.dir("x/").mode(0o711),
        What::Link => tar.symlink("x", "/nowhere"),
        What::Fifo => tar.node("x", b'6', 0, 0),
        What::Hard => tar.hard_link("x", "other"),
        What::Whiteout => tar.file(".wh.x", b""),
    };
}

#[test]
fn every_kind_replaces_every_other() {
    for first in ALL {
        for second in ALL {
            let bench = Bench::new();
            let mut tar = Tar::new();
            tar.file("other", b"other");
            add(&mut tar, first);
            if first == What::Dir {
                tar.file("x/inside", b"x");
            }
            add(&mut tar, second);
            let applied = bench.apply(tar).unwrap();
            let stays = second == What::Whiteout || first == second && second == What::Dir;
            let same = first == What::Hard && second == What::Hard;
            assert!(applied.replaced || stays || same || first == What::Whiteout);
            let kind = fs::symlink_metadata(bench.path("x")).unwrap().file_type();
            // A whiteout concerns lower layers; what this layer has stays.
            let wanted = if second == What::Whiteout {
                first
            } else {
                second
            };
            let found = match wanted {
                What::File => kind.is_file() && bench.text("x") == "file",
                What::Dir => kind.is_dir(),
                What::Link => kind.is_symlink(),
                What::Fifo => kind.is_fifo(),
                What::Hard => kind.is_file() && bench.text("x") == "other",
                What::Whiteout => bench.is_whiteout("x"),
            };
            assert!(found, "{first:?} then {second:?}");
            if wanted == What::Dir {
                let hides = first == What::Whiteout || second == What::Whiteout;
                assert_eq!(bench.is_opaque("x"), hides, "{first:?} then {second:?}");
                assert_eq!(
                    fs::exists(bench.path("x/inside")).unwrap(),
                    first == What::Dir
                );
            }
            assert_eq!(bench.text("other"), "other");
            let usage = crate::sys::fs::tree_usage(bench.root.as_fd()).unwrap();
            assert_eq!(applied.bytes, usage.bytes, "{first:?} then {second:?}");
        }
    }
}

#[test]
fn a_directory_is_not_a_file_on_the_way() {
    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.file("f", b"x");
    tar.file("f/g", b"x");
    assert!(matches!(bench.apply(tar), Err(Error::Entry { .. })));
}

#[test]
fn a_whiteout_on_the_way_becomes_a_new_directory() {
    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.file(".wh.d", b"");
    tar.file("d/f", b"x");
    let applied = bench.apply(tar).unwrap();
    assert!(bench.is_opaque("d"));
    assert_eq!(bench.text("d/f"), "x");
    assert_eq!((applied.implied, bench.implied()), (0, vec![]));
}

#[test]
fn a_dangling_link_on_the_way_gets_its_directory() {
    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.symlink("lib", "usr/lib");
    tar.file("lib/so", b"x");
    let applied = bench.apply(tar).unwrap();
    assert_eq!(bench.text("usr/lib/so"), "x");
    assert_eq!(applied.implied, 2);
    assert_eq!(bench.implied(), ["usr", "usr/lib"]);
    let root = bench.path("");
    symlink("x", root.join("later")).unwrap();
}
