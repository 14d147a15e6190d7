//! Rows S1 to S25 of the threat list, each on bytes made by hand, and what a good layer is to become.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use super::*;
use crate::sys::fs::open_dir_path;

pub(crate) mod builder;
mod differential;
mod hostile;
mod lower;
mod odd;
mod property;
mod replace;

use builder::Tar;

/// A root to apply to, beside a canary that has to stay as it is.
struct Bench {
    dir: tempfile::TempDir,
    root: OwnedFd,
    before: String,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root")).unwrap();
        fs::create_dir_all(dir.path().join("canary/dir")).unwrap();
        for (name, mode) in [
            ("plain", 0o600),
            ("ptmx", 0o755),
            ("setuid", 0o4755),
            ("dir/x", 0o644),
        ] {
            let path = dir.path().join("canary").join(name);
            fs::write(&path, name).unwrap();
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        }
        let root = open_dir_path(&dir.path().join("root")).unwrap();
        let before = listing(&dir.path().join("canary"));
        Self { dir, root, before }
    }

    fn apply(&self, tar: Tar) -> Result<Applied, Error> {
        self.apply_bytes(&tar.finish())
    }

    fn apply_bytes(&self, bytes: &[u8]) -> Result<Applied, Error> {
        let applied = apply(bytes, self.root.as_fd(), &Limits::default());
        self.check_canary();
        applied
    }

    fn check_canary(&self) {
        assert_eq!(listing(&self.dir.path().join("canary")), self.before);
        let mut names: Vec<_> = fs::read_dir(self.dir.path()).unwrap().collect();
        assert_eq!(
            names.drain(..).count(),
            2,
            "something was made beside the root"
        );
    }

    /// The directories that are marked as implied.
    fn implied(&self) -> Vec<String> {
        let mut paths = Vec::new();
        crate::sys::fs::visit_tree(self.root.as_fd(), &mut |visit| {
            let path = visit.path.to_str().unwrap().to_owned();
            if xattr(&self.path(&path), IMPLIED).is_some() {
                paths.push(path);
            }
            Ok(crate::sys::fs::Next::Enter)
        })
        .unwrap();
        paths.sort();
        paths
    }

    fn canary(&self) -> String {
        self.dir.path().join("canary").to_str().unwrap().to_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("root").join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn is_whiteout(&self, name: &str) -> bool {
        let Ok(meta) = fs::symlink_metadata(self.path(name)) else {
            return false;
        };
        meta.file_type().is_char_device() && meta.rdev() == 0
    }

    fn is_opaque(&self, name: &str) -> bool {
        xattr(&self.path(name), "trusted.overlay.opaque").as_deref() == Some(b"y")
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 4096];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

/// Everything about a tree that may not change, as text.
fn listing(dir: &Path) -> String {
    let mut lines = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let content = match meta.file_type() {
            kind if kind.is_file() => format!("{:?}", fs::read(&path).unwrap()),
            kind if kind.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
            _ => String::new(),
        };
        lines.push(format!(
            "{path:?} {:o} {}:{} {} {}.{} {} {content}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.nlink(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.rdev(),
        ));
        if meta.is_dir() {
            todo.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
    }
    lines.sort();
    lines.join("\n")
}

#[test]
fn a_layer_becomes_what_its_archive_says() {
    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.dir("./").mode(0o711).owner(7, 8).mtime(1000);
    tar.dir("usr/").mode(0o2755).owner(0, 50).mtime(2000);
    tar.file("usr/program", b"code")
        .mode(0o4711)
        .owner(3, 4)
        .mtime(3000);
    tar.file("usr/empty", b"");
    tar.symlink("usr/link", "/etc/passwd")
        .owner(5, 6)
        .mtime(4000);
    tar.hard_link("usr/other", "usr/program")
        .mode(0o4711)
        .owner(3, 4)
        .mtime(3000);
    tar.node("dev/null", b'3', 1, 3).mode(0o666);
    tar.node("dev/disk", b'4', 259, 1_048_575)
        .mode(0o640)
        .owner(0, 6);
    tar.node("fifo", b'6', 0, 0).mode(0o622);
    tar.pax(&[("mtime", "1234567890.000000017")]);
    tar.file("usr/big", &vec![7; 1_000_000]);
    let applied = bench.apply(tar).unwrap();
    assert_eq!(applied.entries, 10);
    let usage = crate::sys::fs::tree_usage(bench.root.as_fd()).unwrap();
    // tree_usage counts the second name of a hard link as an inode.
    assert_eq!(applied.inodes, usage.inodes - 1);
    assert_eq!(applied.bytes, usage.bytes);
    assert_eq!(
        (applied.implied, bench.implied()),
        (1, vec!["dev".to_owned()])
    );

    let of = |name: &str| fs::symlink_metadata(bench.path(name)).unwrap();
    let facts = |name: &str| {
        (
            of(name).mode() & 0o7777,
            of(name).uid(),
            of(name).gid(),
            of(name).mtime(),
        )
    };
    // As in containerd: of the root only the time is the archive's.
    assert_eq!(facts(""), (0o755, 0, 0, 1000));
    assert_eq!(facts("usr"), (0o2755, 0, 50, 2000));
    assert_eq!(facts("usr/program"), (0o4711, 3, 4, 3000));
    assert_eq!(facts("usr/empty"), (0o644, 0, 0, 0));
    assert_eq!(
        (
            of("usr/link").uid(),
            of("usr/link").gid(),
            of("usr/link").mtime()
        ),
        (5, 6, 4000)
    );
    assert_eq!(
        fs::read_link(bench.path("usr/link")).unwrap(),
        Path::new("/etc/passwd")
    );
    assert_eq!(of("usr/other").ino(), of("usr/program").ino());
    assert_eq!(of("dev/null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(of("dev/null").mode(), 0o20666);
    assert_eq!(of("dev/disk").rdev(), rustix::fs::makedev(259, 1_048_575));
    assert_eq!((of("dev/disk").mode(), of("dev/disk").gid()), (0o60640, 6));
    assert_eq!(of("fifo").mode(), 0o10622);
    assert_eq!(
        (of("usr/big").mtime(), of("usr/big").mtime_nsec()),
        (1_234_567_890, 17)
    );
    assert_eq!(of("usr/big").len(), 1_000_000);
}

#[test]
fn names_longer_than_a_header_and_not_utf8_arrive() {
    let bench = Bench::new();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let mut tar = Tar::new();
    tar.pax(&[("path", &long)]);
    tar.file("short", b"pax");
    tar.gnu_long(b'L', format!("x{long}").replace("xd", "g").as_bytes());
    tar.file("short", b"gnu");
    tar.raw_name(b"caf\xe9").content(b"latin");
    bench.apply(tar).unwrap();
    assert_eq!(bench.text(&long), "pax");
    assert_eq!(bench.text(&long.replacen("d", "g", 1)), "gnu");
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9");
    assert_eq!(
        fs::read_to_string(bench.path("").join(name)).unwrap(),
        "latin"
    );
}

#[test]
fn extended_attributes_are_kept_by_list() {
    let bench = Bench::new();
    let capability: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut tar = Tar::new();
    tar.pax_bytes(&[
        (b"SCHILY.xattr.security.capability", capability),
        (b"SCHILY.xattr.user.note", b"kept\0binary"),
        (b"SCHILY.xattr.trusted.overlay.redirect", b"/../../etc"),
        (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
        (b"SCHILY.xattr.user.overlay.metacopy", b"y"),
        (b"SCHILY.xattr.trusted.berth.link", b"0"),
        (b"SCHILY.xattr.security.selinux", b"x"),
    ]);
    tar.file("ping", b"x").owner(1, 1);
    tar.pax(&[
        ("SCHILY.xattr.trusted.overlay.opaque", "y"),
        ("SCHILY.xattr.user.d", "1"),
    ]);
    tar.dir("d/");
    let applied = bench.apply(tar).unwrap();
    assert_eq!(applied.dropped_xattrs, 6);
    let mut names = vec![0; 4096];
    let length = rustix::fs::llistxattr(bench.path("ping"), &mut names[..]).unwrap();
    let mut names: Vec<_> = names[..length]
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .collect();
    names.sort_unstable();
    assert_eq!(names, [&b"security.capability"[..], b"user.note"]);
    assert_eq!(
        xattr(&bench.path("ping"), "user.note").unwrap(),
        b"kept\0binary"
    );
    assert_eq!(
        xattr(&bench.path("ping"), "security.capability").unwrap(),
        capability
    );
    assert!(!bench.is_opaque("d"));
}

#[test]
fn times_of_directories_are_those_of_their_entries_in_any_order() {
    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.dir("a/").mtime(10);
    tar.dir("a/b/").mtime(20);
    tar.file("a/b/f", b"x");
    tar.file("a/g", b"x");
    tar.symlink("l", "a/b");
    tar.file("late/f", b"x");
    tar.dir("late/").mtime(30);
    tar.file("l/through", b"x");
    tar.dir("a/").mtime(40);
    tar.file("a/b/c/d/e/f", b"x");
    tar.file("a/h", b"x");
    bench.apply(tar).unwrap();
    let time = |name: &str| fs::metadata(bench.path(name)).unwrap().mtime();
    assert_eq!([time("a"), time("a/b"), time("late")], [40, 20, 30]);
    assert_eq!(bench.text("a/b/through"), "x");
}

#[test]
fn a_deep_tree_needs_few_descriptors() {
    let bench = Bench::new();
    let deep = vec!["d"; 1500].join("/");
    let mut tar = Tar::new();
    tar.pax(&[("path", &format!("{deep}/f"))]);
    tar.file("x", b"bottom");
    tar.file("d/d/top", b"top");
    tar.pax(&[("path", &format!("{deep}/g"))]);
    tar.file("x", b"bottom");
    let applied = bench.apply(tar).unwrap();
    assert_eq!(applied.implied, 1500);
    assert_eq!(bench.text("d/d/top"), "top");
}

#[test]
fn sparse_files_of_every_version_have_their_holes() {
    let content = b"onetwo";
    let regions = [(1_000_000u64, 3u64), (2_000_000, 3)];
    for version in ["old", "0.0", "0.1", "1.0"] {
        let bench = Bench::new();
        let mut tar = Tar::new();
        tar.sparse(version, "s", &regions, 3_000_000, content);
        tar.file("after", b"x");
        bench.apply(tar).unwrap();
        let bytes = fs::read(bench.path("s")).unwrap();
        assert_eq!(bytes.len(), 3_000_000, "{version}");
        assert_eq!(&bytes[1_000_000..1_000_003], b"one", "{version}");
        assert_eq!(&bytes[2_000_000..2_000_003], b"two", "{version}");
        assert!(
            fs::metadata(bench.path("s")).unwrap().blocks() < 100,
            "{version}"
        );
        assert_eq!(bench.text("after"), "x");
    }
}

#[test]
fn the_whole_stream_is_hashed() {
    use sha2::Digest as _;
    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.file("f", b"x");
    let mut bytes = tar.finish();
    bytes.extend(vec![b'z'; 1_000_001]);
    let wanted: [u8; 32] = sha2::Sha256::digest(&bytes).into();
    let mut reader = HashingReader::new(&bytes[..]);
    apply(&mut reader, bench.root.as_fd(), &Limits::default()).unwrap();
    let (digest, length, _) = reader.finish();
    assert_eq!((digest.as_bytes(), length), (&wanted, bytes.len() as u64));
}

#[test]
fn an_empty_layer_is_one() {
    for bytes in [&[][..], &[0; 512], &[0; 1024], &[0; 10240]] {
        let bench = Bench::new();
        assert_eq!(bench.apply_bytes(bytes).unwrap().entries, 0);
    }
}
