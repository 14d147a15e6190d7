use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};

use proptest::prelude::*;

use super::super::{open_dir_path, tree_usage};
use super::*;

struct Case {
    _dir: tempfile::TempDir,
    from: PathBuf,
    to: PathBuf,
}

impl Case {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir(&from).unwrap();
        std::fs::create_dir(&to).unwrap();
        Self {
            _dir: dir,
            from,
            to,
        }
    }

    fn copy_while(&self, go_on: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let from = open_dir_path(&self.from).unwrap();
        let to = open_dir_path(&self.to).unwrap();
        copy_tree(from.as_fd(), to.as_fd(), go_on)
    }

    fn copy(&self) {
        self.copy_while(&mut || Ok(())).unwrap();
    }
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn set_time(path: &Path, seconds: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: 7,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
}

/// What must be the same in the copy.
fn facts(path: &Path) -> (u32, u32, u32, u64, i64, i64, u64) {
    let m = std::fs::symlink_metadata(path).unwrap();
    let size = if m.is_dir() { 0 } else { m.size() };
    (
        m.mode(),
        m.uid(),
        m.gid(),
        size,
        m.mtime(),
        m.mtime_nsec(),
        m.rdev(),
    )
}

#[test]
fn everything_that_belongs_to_a_tree_is_copied() {
    let case = Case::new();
    let from = |name: &str| case.from.join(name);
    let to = |name: &str| case.to.join(name);
    std::fs::create_dir_all(from("dir/deep")).unwrap();
    std::fs::write(from("file"), "content").unwrap();
    std::fs::write(from("setuid"), "x").unwrap();
    std::os::unix::fs::chown(from("setuid"), Some(1000), Some(2000)).unwrap();
    set_mode(&from("setuid"), 0o6755);
    std::fs::hard_link(from("file"), from("dir/deep/again")).unwrap();
    symlink("/etc/passwd", from("link")).unwrap();
    std::os::unix::fs::lchown(from("link"), Some(5), Some(6)).unwrap();
    for (name, kind, device) in [
        ("fifo", FileType::Fifo, 0),
        ("socket", FileType::Socket, 0),
        ("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
    ] {
        let mode = Mode::from_raw_mode(0o620);
        rustix::fs::mknodat(rustix::fs::CWD, from(name), kind, mode, device).unwrap();
        set_mode(&from(name), 0o642);
    }
    let hole = std::fs::File::create(from("sparse")).unwrap();
    hole.write_all_at(b"data", 3 << 20).unwrap();
    hole.set_len(8 << 20).unwrap();
    let flags = XattrFlags::empty();
    rustix::fs::setxattr(from("file"), "user.x", b"y", flags).unwrap();
    // cap_net_raw, which a chown would take away.
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(from("setuid"), "security.capability", &capability, flags).unwrap();
    // A default list changes what is made below, unless it comes last: user::rwx, user:9:rwx, group::---, mask, other::---
    let list: Vec<u8> = [
        &[2, 0, 0, 0][..],
        &[1, 0, 7, 0, 255, 255, 255, 255],
        &[2, 0, 7, 0, 9, 0, 0, 0],
        &[4, 0, 0, 0, 255, 255, 255, 255],
        &[16, 0, 7, 0, 255, 255, 255, 255],
        &[32, 0, 0, 0, 255, 255, 255, 255],
    ]
    .concat();
    rustix::fs::setxattr(from("dir"), "system.posix_acl_default", &list, flags).unwrap();
    set_mode(&from("dir"), 0o2711);
    set_mode(&case.from, 0o1777);
    std::os::unix::fs::chown(&case.from, Some(33), Some(44)).unwrap();
    let names = [
        "dir/deep/again",
        "dir/deep",
        "dir",
        "file",
        "setuid",
        "link",
        "fifo",
        "socket",
        "null",
        "sparse",
        "",
    ];
    for (at, name) in names.iter().enumerate() {
        set_time(&from(name), 1_000_000 + i64::try_from(at).unwrap());
    }
    case.copy();
    for name in names {
        assert_eq!(facts(&from(name)), facts(&to(name)), "{name}");
    }
    assert_eq!(std::fs::read_to_string(to("file")).unwrap(), "content");
    assert_eq!(
        std::fs::read_link(to("link")).unwrap(),
        Path::new("/etc/passwd")
    );
    assert!(to("fifo").metadata().unwrap().file_type().is_fifo());
    let ino = |name: &str| to(name).metadata().unwrap().ino();
    assert_eq!(ino("file"), ino("dir/deep/again"));
    assert_ne!(ino("file"), from("file").metadata().unwrap().ino());
    let sparse = to("sparse").metadata().unwrap();
    assert!(sparse.blocks() * 512 <= 1 << 20, "{}", sparse.blocks());
    let mut part = [0; 4];
    std::fs::File::open(to("sparse"))
        .unwrap()
        .read_exact_at(&mut part, 3 << 20)
        .unwrap();
    assert_eq!(&part, b"data");
    for (name, attribute, value) in [
        ("file", "user.x", &b"y"[..]),
        ("setuid", "security.capability", &capability),
        ("dir", "system.posix_acl_default", &list),
    ] {
        let mut buffer = vec![0; 256];
        let length = rustix::fs::getxattr(to(name), attribute, &mut buffer[..]).unwrap();
        assert_eq!(&buffer[..length], value, "{name}");
    }
    let lists = rustix::fs::getxattr_query(to("dir/deep"), "system.posix_acl_access");
    assert_eq!(lists, Err(Errno::NODATA));
}

#[test]
fn links_lead_nowhere_else() {
    let case = Case::new();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "s").unwrap();
    symlink(outside.path(), case.from.join("dir")).unwrap();
    symlink(outside.path().join("secret"), case.from.join("file")).unwrap();
    symlink("dangling", case.from.join("dangling")).unwrap();
    case.copy();
    for name in ["dir", "file", "dangling"] {
        assert!(case.to.join(name).is_symlink(), "{name}");
    }
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn depth_costs_no_descriptors_and_names_may_be_any_bytes() {
    const DEPTH: u64 = 300;
    let case = Case::new();
    let mut dir = open_dir_path(&case.from).unwrap();
    let name = OsStr::from_bytes(b"\xff a\n");
    for _ in 0..DEPTH {
        rustix::fs::mkdirat(&dir, name, Mode::RWXU).unwrap();
        let flags = OFlags::WRONLY | OFlags::CREATE;
        rustix::fs::openat(&dir, "after", flags, Mode::RUSR).unwrap();
        dir = open_dir(dir.as_fd(), name).unwrap();
    }
    case.copy();
    let usage = |path: &Path| tree_usage(open_dir_path(path).unwrap().as_fd()).unwrap();
    assert_eq!(usage(&case.from), usage(&case.to));
    assert_eq!(usage(&case.to).inodes, 2 * DEPTH + 1);
}

#[test]
fn a_copy_ends_when_it_is_told_to_and_says_where() {
    let case = Case::new();
    std::fs::write(case.from.join("big"), vec![1; 4 * CHUNK]).unwrap();
    let mut left = 3;
    let said = case
        .copy_while(&mut || {
            left -= 1;
            match left {
                0 => Err(io::Error::new(io::ErrorKind::TimedOut, "enough")),
                _ => Ok(()),
            }
        })
        .unwrap_err();
    assert_eq!(said.kind(), io::ErrorKind::TimedOut);
    assert_eq!(said.to_string(), "\"big\": enough");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn holes_and_data_come_out_as_they_are(parts in prop::collection::vec((0u64..600_000, 1usize..70_000), 0..6), tail in 0u64..300_000) {
        let case = Case::new();
        let file = std::fs::File::create(case.from.join("f")).unwrap();
        let mut at = 0;
        for (skip, length) in parts {
            at += skip;
            file.write_all_at(&vec![7; length], at).unwrap();
            at += length as u64;
        }
        file.set_len(at + tail).unwrap();
        case.copy();
        let read = |path: &Path| std::fs::read(path.join("f")).unwrap();
        prop_assert!(read(&case.from) == read(&case.to));
    }
}
