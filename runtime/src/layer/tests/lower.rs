//! What is settled when the layers below can be seen.

use super::*;
use crate::sys::mount::{Method, OverlayLayers, detached_overlay, probe_overlay};

/// A lower layer of two, seen as one through an overlay, and a bench on top.
struct Stack {
    bench: Bench,
    view: OwnedFd,
    _lower: [Bench; 2],
}

impl Stack {
    fn new(bottom: Tar, middle: Tar, top: Tar) -> (Self, Applied) {
        Self::limited(bottom, middle, top, &Limits::default())
    }

    fn limited(bottom: Tar, middle: Tar, top: Tar, limits: &Limits) -> (Self, Applied) {
        let lower = [Bench::new(), Bench::new()];
        lower[0].apply(bottom).unwrap();
        lower[1].apply(middle).unwrap();
        let dirs = [lower[1].root.as_fd(), lower[0].root.as_fd()];
        let layers = OverlayLayers {
            lower: &dirs,
            upper: None,
        };
        let method = probe_overlay(dirs[0]).unwrap();
        assert_ne!(
            method,
            Method::OptionString,
            "this test wants a newer kernel"
        );
        let view = detached_overlay(method, &layers, Path::new("/")).unwrap();
        let bench = Bench::new();
        let applied = apply(&top.finish()[..], bench.root.as_fd(), limits).unwrap();
        (
            Self {
                bench,
                view,
                _lower: lower,
            },
            applied,
        )
    }

    fn finish(&self, applied: &mut Applied) -> Result<(), Error> {
        let finished = finish(self.bench.root.as_fd(), Some(self.view.as_fd()), applied);
        self.bench.check_canary();
        finished
    }

    fn facts(&self, name: &str) -> (u32, u32, u32, i64) {
        let meta = fs::symlink_metadata(self.bench.path(name)).unwrap();
        (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime())
    }
}

#[test]
fn implied_directories_look_as_they_do_below() {
    let mut bottom = Tar::new();
    bottom.dir("./").mode(0o751).mtime(5);
    bottom.dir("a/").mode(0o1777).owner(1, 2).mtime(10);
    bottom.dir("a/b/").mode(0o700).owner(3, 4).mtime(20);
    bottom.dir("gone/").mode(0o700).mtime(1);
    bottom.dir("hidden/").mode(0o700).mtime(1);
    bottom.dir("hidden/in/").mode(0o700).mtime(1);
    bottom.symlink("link", "a");
    let mut middle = Tar::new();
    middle.dir("./").mode(0o750).mtime(6);
    middle.pax(&[("SCHILY.xattr.user.x", "1")]);
    middle.dir("a/").mode(0o755).owner(5, 6).mtime(30);
    middle.file(".wh.gone", b"");
    let mut top = Tar::new();
    top.file("a/b/c/f", b"x");
    top.file("gone/f", b"x");
    top.file("hidden/.wh..wh..opq", b"");
    top.file("hidden/in/f", b"x");
    top.file("link/f", b"x");
    let (stack, mut applied) = Stack::new(bottom, middle, top);
    assert!(applied.needs_lower());
    stack.finish(&mut applied).unwrap();
    assert_eq!(stack.facts("").0, 0o755);
    assert_eq!(stack.facts("a"), (0o755, 5, 6, 30));
    assert_eq!(xattr(&stack.bench.path("a"), "user.x").unwrap(), b"1");
    assert_eq!(stack.facts("a/b"), (0o700, 3, 4, 20));
    assert_eq!(stack.facts("a/b/c").0, 0o755);
    assert_eq!(stack.facts("gone").0, 0o755);
    assert_eq!(stack.facts("hidden"), (0o700, 0, 0, 1));
    assert_eq!(stack.facts("hidden/in").0, 0o755);
    // As in Docker: the link is hidden by a directory.
    assert_eq!(stack.facts("link").0, 0o755);
    assert!(!applied.needs_lower());
}

#[test]
fn an_entry_for_an_implied_directory_wins() {
    let mut bottom = Tar::new();
    bottom.dir("a/").mode(0o700);
    let mut top = Tar::new();
    top.file("a/f", b"x");
    top.dir("a/").mode(0o555).mtime(7);
    let (stack, mut applied) = Stack::new(bottom, Tar::new(), top);
    stack.finish(&mut applied).unwrap();
    assert_eq!(stack.facts("a"), (0o555, 0, 0, 7));
}

#[test]
fn hard_links_to_lower_files_get_their_content() {
    let mut bottom = Tar::new();
    bottom.dir("usr/").mtime(9).mode(0o750);
    bottom
        .file("usr/tool", b"content")
        .mode(0o4755)
        .owner(7, 8)
        .mtime(99);
    bottom.symlink("bin", "usr");
    bottom.symlink("usr/alias", "tool");
    bottom.node("usr/pipe", b'6', 0, 0).mode(0o622);
    bottom.file("usr/old", b"old");
    let mut top = Tar::new();
    top.hard_link("one", "usr/tool");
    top.hard_link("two", "one");
    top.hard_link("three", "bin/tool");
    top.hard_link("alias", "usr/alias");
    top.hard_link("pipe", "usr/pipe");
    top.hard_link("replaced", "usr/tool");
    top.file("replaced", b"other");
    top.hard_link("copy", "usr/old");
    top.file("usr/old", b"new");
    let (stack, mut applied) = Stack::new(bottom, Tar::new(), top);
    stack.finish(&mut applied).unwrap();
    let bench = &stack.bench;
    let inode = |name: &str| fs::symlink_metadata(bench.path(name)).unwrap().ino();
    for name in ["one", "two", "three", "usr/tool"] {
        assert_eq!(bench.text(name), "content", "{name}");
        assert_eq!(stack.facts(name), (0o4755, 7, 8, 99), "{name}");
        assert_eq!(xattr(&bench.path(name), LINK), None, "{name}");
    }
    assert_eq!(inode("one"), inode("two"));
    assert_eq!(inode("one"), inode("usr/tool"));
    assert_eq!(stack.facts("usr"), (0o750, 0, 0, 9));
    assert_eq!(
        fs::read_link(bench.path("alias")).unwrap(),
        Path::new("tool")
    );
    assert!(
        fs::symlink_metadata(bench.path("pipe"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert_eq!(
        (bench.text("copy"), bench.text("usr/old")),
        ("old".into(), "new".into())
    );
    assert_eq!(bench.text("replaced"), "other");
}

#[test]
fn hard_links_to_nothing_are_errors() {
    for target in ["nothing", "d", "gone", "d/../d/f"] {
        let mut bottom = Tar::new();
        bottom.dir("d/");
        bottom.file("gone", b"x");
        let mut middle = Tar::new();
        middle.file(".wh.gone", b"");
        let mut top = Tar::new();
        top.hard_link("h", if target.contains("..") { "d/f" } else { target });
        let (stack, mut applied) = Stack::new(bottom, middle, top);
        assert!(
            matches!(stack.finish(&mut applied), Err(Error::Refused { .. })),
            "{target}"
        );
    }
}

/// A few bytes of a layer must not become as much as the largest file below holds, nor that once more for each link.
#[test]
fn a_sparse_lower_file_is_copied_once_and_with_its_holes() {
    let mut bottom = Tar::new();
    bottom.sparse("1.0", "s", &[(1 << 20, 1), (1 << 29, 2)], 1 << 30, b"abc");
    bottom.hard_link("d/other-name", "s");
    bottom.sparse("1.0", "hole", &[], 1 << 30, b"");
    bottom.file("replaced", &[7; 5000]).mode(0o600);
    let mut top = Tar::new();
    for name in ["h1", "h2", "d/h3"] {
        top.hard_link(name, "s").mode(0o644);
    }
    top.hard_link("h4", "h2");
    top.hard_link("h5", "d/other-name");
    top.hard_link("h6", "hole");
    top.hard_link("r1", "replaced");
    top.hard_link("r2", "replaced");
    top.dir("d/").mtime(77);
    top.file("replaced", b"new");
    let (stack, mut applied) = Stack::new(bottom, Tar::new(), top);
    stack.finish(&mut applied).unwrap();
    let of = |name: &str| fs::symlink_metadata(stack.bench.path(name)).unwrap();
    let one = of("s");
    for name in ["h1", "h2", "d/h3", "h4", "h5", "d/other-name"] {
        assert_eq!(of(name).ino(), one.ino(), "{name}");
    }
    assert_eq!((one.nlink(), one.len()), (7, 1 << 30));
    assert!(one.blocks() < 100, "{}", one.blocks());
    assert_eq!((of("h6").len(), of("h6").blocks()), (1 << 30, 0));
    let file = fs::File::open(stack.bench.path("h1")).unwrap();
    let mut bytes = [0; 3];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, (1 << 29) - 1).unwrap();
    assert_eq!(&bytes, b"\0bc");
    // Where the target itself cannot come along, its links are one file all the same.
    assert_eq!(of("r1").ino(), of("r2").ino());
    assert_eq!((of("r1").len(), of("replaced").len()), (5000, 3));
    assert_eq!(stack.facts("d").3, 77);
    let mut seen = std::collections::HashSet::from(
        [stack.bench.root.as_fd()].map(|root| rustix::fs::fstat(root).unwrap().st_ino),
    );
    crate::sys::fs::visit_tree(stack.bench.root.as_fd(), &mut |visit| {
        seen.insert(of(visit.path.to_str().unwrap()).ino());
        Ok(crate::sys::fs::Next::Enter)
    })
    .unwrap();
    assert_eq!(applied.inodes, seen.len() as u64);
}

#[test]
fn what_hard_links_copy_counts_against_the_limits() {
    let limits = Limits {
        bytes: 1 << 20,
        entries: 100,
        ..Limits::default()
    };
    let mut bottom = Tar::new();
    for number in 0..3 {
        bottom.file(&format!("f{number}"), &vec![1; 400_000]);
    }
    let mut top = Tar::new();
    for number in 0..3 {
        top.hard_link(&format!("h{number}"), &format!("f{number}"));
    }
    let (stack, mut applied) = Stack::limited(bottom, Tar::new(), top, &limits);
    let error = stack.finish(&mut applied).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Limit {
                limit: 1_048_576,
                ..
            }
        ),
        "{error}"
    );
    // And so do the directories that the target is in.
    let deep = format!("{}f", "d/".repeat(120));
    let mut bottom = Tar::new();
    bottom.pax(&[("path", &deep)]);
    bottom.file("x", b"x");
    let mut top = Tar::new();
    top.pax(&[("linkpath", &deep)]);
    top.hard_link("h", "x");
    let (stack, mut applied) = Stack::limited(bottom, Tar::new(), top, &limits);
    let error = stack.finish(&mut applied).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Limit {
                what: "entries",
                ..
            }
        ),
        "{error}"
    );
}

/// The file below may have as many attributes as fit, and the mark of the link is one more.
#[test]
fn a_mark_takes_no_room_from_what_is_copied() {
    let target = ["t".repeat(200), "u".repeat(200), "v".repeat(200)].join("/");
    let note = "n".repeat(3600);
    let mut bottom = Tar::new();
    bottom.pax(&[("path", &target), ("SCHILY.xattr.user.note", &note)]);
    bottom.file("x", b"x");
    let mut top = Tar::new();
    top.pax(&[("linkpath", &target)]);
    top.hard_link("h", "x");
    let (stack, mut applied) = Stack::new(bottom, Tar::new(), top);
    stack.finish(&mut applied).unwrap();
    let kept = xattr(&stack.bench.path("h"), "user.note").unwrap();
    assert_eq!(kept, note.as_bytes());
}
