//! What archives rightly contain and few people expect, and what containerd makes of it.

use super::*;

/// An access control list as the kernel has it: version 2, then tag, permissions and id of each entry.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

const NOBODY: u32 = u32::MAX;

fn sample_acl() -> Vec<u8> {
    acl(&[
        (1, 6, NOBODY),
        (2, 7, 1000),
        (4, 4, NOBODY),
        (0x10, 7, NOBODY),
        (0x20, 0, NOBODY),
    ])
}

/// The order of containerd: the list first, then the mode, whose group bits are the list's mask.
#[test]
fn access_control_lists_are_kept_and_the_mode_has_the_last_word() {
    let bench = Bench::new();
    let list = sample_acl();
    let access: &[u8] = b"SCHILY.xattr.system.posix_acl_access";
    let mut tar = Tar::new();
    tar.pax_bytes(&[(access, &list)]);
    tar.file("f", b"x").mode(0o670);
    tar.pax_bytes(&[(access, &list)]);
    tar.file("narrow", b"x").mode(0o640);
    tar.pax_bytes(&[(b"SCHILY.xattr.system.posix_acl_default", &list)]);
    tar.dir("d/").mode(0o750);
    tar.file("d/child", b"x").mode(0o604);
    tar.dir("d/dir/").mode(0o711);
    // As text, which neither containerd nor Docker read.
    tar.pax(&[("SCHILY.acl.access", "user::rwx,group::r-x,other::r-x")]);
    tar.file("text", b"x").mode(0o600);
    let applied = bench.apply(tar).unwrap();
    assert_eq!(applied.dropped_xattrs, 0);
    let mode = |name: &str| fs::metadata(bench.path(name)).unwrap().mode() & 0o7777;
    let kept = |name: &str, kind: &str| xattr(&bench.path(name), kind);
    let narrowed = acl(&[
        (1, 6, NOBODY),
        (2, 7, 1000),
        (4, 4, NOBODY),
        (0x10, 4, NOBODY),
        (0x20, 0, NOBODY),
    ]);
    assert_eq!(kept("f", "system.posix_acl_access"), Some(list.clone()));
    assert_eq!(kept("narrow", "system.posix_acl_access"), Some(narrowed));
    assert_eq!(kept("d", "system.posix_acl_default"), Some(list));
    assert_eq!(kept("text", "system.posix_acl_access"), None);
    assert_eq!(
        ["f", "narrow", "d", "d/child", "d/dir", "text"].map(mode),
        [0o670, 0o640, 0o750, 0o604, 0o711, 0o600]
    );
}

#[test]
fn a_malformed_access_control_list_is_an_error() {
    let bench = Bench::new();
    let access: &[u8] = b"SCHILY.xattr.system.posix_acl_access";
    // Of another version: the kernel does not know that, which is no error.
    let mut tar = Tar::new();
    tar.pax_bytes(&[(access, b"rubbish")]);
    tar.file("f", b"x");
    assert_eq!(bench.apply(tar).unwrap().dropped_xattrs, 1);
    let mut tar = Tar::new();
    tar.pax_bytes(&[(access, &acl(&[(99, 7, 0)]))]);
    tar.file("g", b"x");
    assert!(matches!(bench.apply(tar), Err(Error::Entry { .. })));
}

/// Where blocks have to be counted at the end: of attributes nobody knows how many they take.
#[test]
fn a_file_with_two_names_is_one_inode() {
    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.pax(&[("SCHILY.xattr.user.note", &"v".repeat(200))]);
    tar.file("f", b"x");
    tar.hard_link("g", "f");
    assert_eq!(bench.apply(tar).unwrap().inodes, 2);
}

/// What the file system does not take for this kind of file is left out; what it takes and cannot hold is an error.
#[test]
fn attributes_that_the_file_system_refuses() {
    let bench = Bench::new();
    let mut tar = Tar::new();
    for kind in [b'2', b'3', b'6'] {
        tar.pax(&[
            ("SCHILY.xattr.user.note", "x"),
            ("SCHILY.xattr.nonsense", "x"),
            ("SCHILY.xattr.none.such", "x"),
            ("LIBARCHIVE.xattr.user.other", "eA"),
            ("LIBARCHIVE.creationtime", "1"),
        ]);
        let name = format!("n{kind}");
        tar.entry(name.as_bytes(), kind, b"").edit(|header| {
            header[157] = b't';
            header[336] = b'1';
            header[344] = b'3';
        });
    }
    let applied = bench.apply(tar).unwrap();
    assert_eq!(applied.dropped_xattrs, 9);
    let big = "v".repeat(100_000);
    let mut tar = Tar::new();
    tar.pax(&[("SCHILY.xattr.user.big", &big)]);
    tar.file("f", b"x");
    let error = bench.apply(tar).unwrap_err();
    assert!(matches!(error, Error::Entry { .. }), "{error}");
    // A disk that is full is another thing, for which other images would have to give.
    let big = "v".repeat(5000);
    for kind in [b'0', b'5'] {
        let mut tar = Tar::new();
        tar.pax(&[("SCHILY.xattr.user.big", &big)]);
        tar.entry(b"of-ext4", kind, b"");
        let Err(error) = bench.apply(tar) else {
            // This file system has room for it.
            continue;
        };
        assert_eq!(crate::model::Kinded::kind(&error), Kind::Unknown);
        let Error::Entry { name, source, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(name, "of-ext4");
        let text = source.to_string();
        assert!(text.contains("user.big") && text.contains("5000"), "{text}");
        assert_ne!(source.kind(), io::ErrorKind::StorageFull);
    }
    let long = format!("SCHILY.xattr.user.{}", "n".repeat(300));
    let mut tar = Tar::new();
    tar.pax(&[(&long, "x")]);
    tar.file("g", b"x");
    assert!(matches!(bench.apply(tar), Err(Error::Entry { .. })));
}

/// A later entry may change the file by its other name, as containerd lets it.
#[test]
fn the_last_entry_of_a_hard_link_counts() {
    let capability: &[u8] = &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.file("f", b"x").mode(0o600).owner(1, 2).mtime(5);
    tar.hard_link("g", "f").mode(0o4755).owner(3, 4).mtime(9);
    tar.pax_bytes(&[(b"SCHILY.xattr.security.capability", capability)]);
    tar.file("ping", b"x").mode(0o755).owner(0, 0).mtime(5);
    tar.hard_link("ping6", "ping").mode(0o755).mtime(5);
    tar.symlink("s", "/etc/passwd").owner(1, 2);
    tar.hard_link("t", "s").mode(0o777).owner(5, 6).mtime(7);
    bench.apply(tar).unwrap();
    let facts = |name: &str| {
        let meta = fs::symlink_metadata(bench.path(name)).unwrap();
        (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime())
    };
    assert_eq!(facts("f"), (0o4755, 3, 4, 9));
    assert_eq!(facts("g"), facts("f"));
    assert_eq!(facts("s"), (0o777, 5, 6, 7));
    // The second entry says nothing new, so it must not cost the first one's capability.
    let kept = xattr(&bench.path("ping6"), "security.capability");
    assert_eq!(kept.as_deref(), Some(capability));
}

#[test]
fn times_are_exact_and_within_bounds() {
    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.pax(&[("mtime", "12.000000017"), ("atime", "99.5")]);
    tar.file("fraction", b"");
    tar.pax(&[("mtime", "50"), ("atime", "40")]);
    tar.file("early", b"");
    for (name, time) in [
        ("negative", "-1.5"),
        ("far", "9223372037"),
        ("farthest", "9223372036854775807"),
    ] {
        tar.pax(&[("mtime", time)]);
        tar.file(name, b"");
    }
    tar.file("gnu", b"").mtime(7).edit(|header| {
        header[257..265].copy_from_slice(b"ustar  \0");
        builder::octal(&mut header[345..357], 8);
    });
    tar.file("rubbish", b"").mtime(7).edit(|header| {
        header[257..265].copy_from_slice(b"ustar  \0");
        header[345..357].copy_from_slice(b"\xffot a number");
    });
    tar.file("binary", b"").edit(|header| {
        header[136..148].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
        header[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe]);
    });
    bench.apply(tar).unwrap();
    let times = |name: &str| {
        let meta = fs::metadata(bench.path(name)).unwrap();
        (
            (meta.mtime(), meta.mtime_nsec()),
            (meta.atime(), meta.atime_nsec()),
        )
    };
    assert_eq!(times("fraction"), ((12, 17), (99, 500_000_000)));
    // Nothing was read before it was written.
    assert_eq!(times("early"), ((50, 0), (50, 0)));
    for name in ["negative", "far", "farthest"] {
        assert_eq!(times(name), ((0, 0), (0, 0)), "{name}");
    }
    assert_eq!(times("gnu"), ((7, 0), (8, 0)));
    assert_eq!(times("rubbish"), ((7, 0), (7, 0)));
    assert_eq!(times("binary").0, (65536, 0));
    let uid = fs::metadata(bench.path("binary")).unwrap().uid();
    assert_eq!(uid, u32::MAX - 1);
}

#[test]
fn pax_overrides_every_field() {
    let bench = Bench::new();
    let mut tar = Tar::new();
    // What stands before all entries is for nobody in particular (git writes such), and not heeded.
    tar.entry(
        b"pax_global_header",
        b'g',
        &builder::record(b"mtime", b"77"),
    );
    tar.pax(&[
        ("path", "dir/real"),
        ("uid", "4000000000"),
        ("gid", "3000000000"),
        ("size", "3"),
        ("comment", "x"),
        ("uname", "root"),
    ]);
    tar.file("short", b"abc")
        .edit(|header| builder::octal(&mut header[124..136], 0));
    let target = "t".repeat(300);
    tar.pax(&[("linkpath", &target)]);
    tar.symlink("link", "x");
    tar.gnu_long(b'K', b"dir/real");
    tar.hard_link("hard", "x").owner(0, 0);
    // An empty value takes it back.
    tar.pax(&[("path", ""), ("uid", "")]);
    tar.file("own-name", b"x").owner(7, 0).mtime(5);
    bench.apply(tar).unwrap();
    assert_eq!(bench.text("dir/real"), "abc");
    assert_eq!(bench.text("hard"), "abc");
    let own = fs::metadata(bench.path("own-name")).unwrap();
    assert_eq!((own.uid(), own.mtime()), (7, 5));
    let link = fs::read_link(bench.path("link")).unwrap();
    assert_eq!(link.as_os_str().len(), 300);
}

/// Large ids, which a signed number has no room for.
#[test]
fn ids_are_32_bits() {
    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.pax(&[("uid", "4000000000"), ("gid", "3000000000")]);
    tar.file("f", b"");
    bench.apply(tar).unwrap();
    let meta = fs::metadata(bench.path("f")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (4_000_000_000, 3_000_000_000));
    for id in ["4294967295", "4294967296", "-1"] {
        let mut tar = Tar::new();
        tar.pax(&[("uid", id)]);
        tar.file("g", b"");
        assert!(bench.apply(tar).is_err(), "{id}");
    }
}

#[test]
fn twins_by_case_and_by_unicode_are_two() {
    let bench = Bench::new();
    let mut tar = Tar::new();
    let names = [
        "File",
        "file",
        "FILE",
        "caf\u{e9}",
        "cafe\u{301}",
        "\u{202e}x",
        "a\nb",
        "-rf",
    ];
    for name in names {
        tar.file(name, name.as_bytes());
    }
    for name in [&b"\xff\xfe"[..], b"\xc3\x28", b"\x01", b"\x7f"] {
        tar.raw_name(name).content(name);
    }
    bench.apply(tar).unwrap();
    for name in names {
        assert_eq!(bench.text(name), name);
    }
    for name in [&b"\xff\xfe"[..], b"\xc3\x28", b"\x01", b"\x7f"] {
        let path = bench.path("").join(std::ffi::OsStr::from_bytes(name));
        assert_eq!(fs::read(path).unwrap(), name);
    }
    assert_eq!(fs::read_dir(bench.path("")).unwrap().count(), 12);
}

/// An opaque whiteout is about the layers below, wherever in the stream it is.
#[test]
fn an_opaque_whiteout_in_the_middle_hides_nothing_of_its_own_layer() {
    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.dir("o/").mtime(5);
    tar.file("o/before", b"x");
    tar.dir("o/sub/");
    tar.file("o/.wh..wh..opq", b"");
    tar.file("o/after", b"x");
    tar.file("o/.wh.before", b"");
    tar.file("o/.wh..wh..opq", b"");
    bench.apply(tar).unwrap();
    assert!(bench.is_opaque("o") && !bench.is_opaque("o/sub"));
    assert_eq!(fs::read_dir(bench.path("o")).unwrap().count(), 3);
    assert_eq!(fs::metadata(bench.path("o")).unwrap().mtime(), 5);
}

/// The other way round is no way at all, in containerd as here.
#[test]
fn a_hard_link_to_a_later_entry_is_refused() {
    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.hard_link("h", "later");
    tar.file("later", b"x");
    let mut applied = bench.apply(tar).unwrap();
    assert!(applied.needs_lower());
    let error = finish(bench.root.as_fd(), None, &mut applied).unwrap_err();
    assert!(error.to_string().contains("no layer has"), "{error}");
}

/// Through links, each name within bounds, to a place that no name leads to.
#[test]
fn a_place_deeper_than_any_name_is_refused() {
    let bench = Bench::new();
    let deep = vec!["d"; 1500].join("/");
    let mut tar = Tar::new();
    tar.pax(&[("path", &deep)]);
    tar.dir("x");
    tar.pax(&[("linkpath", &deep)]);
    tar.symlink("l", "x");
    tar.pax(&[("path", &format!("l/{deep}/f"))]);
    tar.file("x", b"x");
    let error = bench.apply(tar).unwrap_err();
    assert!(error.to_string().contains("too deep"), "{error}");
}

/// What is added up and thrown away is deeper than there are descriptors for.
#[test]
fn a_deep_tree_can_be_replaced_and_counted() {
    let bench = Bench::new();
    let mut tar = Tar::new();
    for top in ["gone", "stays"] {
        tar.pax(&[("path", &format!("{top}/{}/f", vec!["d"; 2000].join("/")))]);
        tar.file("x", b"bottom");
    }
    tar.file("gone", b"x");
    let applied = bench.apply(tar).unwrap();
    assert_eq!(applied.inodes, 2004);
    assert_eq!(bench.text("gone"), "x");
}

/// As many implied directories as an archive likes, and nothing is remembered of them.
#[test]
fn thousands_of_implied_directories_are_finished() {
    let bench = Bench::new();
    let mut tar = Tar::new();
    for number in 0..5000 {
        tar.file(&format!("{}/{number}/deeper/f", number % 7), b"");
    }
    tar.dir("3/").mode(0o700).mtime(9);
    let mut applied = bench.apply(tar).unwrap();
    assert_eq!(applied.implied, 6 + 5000 * 2);
    assert_eq!(bench.implied().len(), 10_006);
    finish(bench.root.as_fd(), None, &mut applied).unwrap();
    assert!(bench.implied().is_empty() && !applied.needs_lower());
    let three = fs::metadata(bench.path("3")).unwrap();
    assert_eq!((three.mode() & 0o7777, three.mtime()), (0o700, 9));
}

/// S13: a name of some kilobytes is one entry and as many directories as it has slashes.
#[test]
fn s13_implied_directories_count_as_entries() {
    let limits = Limits {
        entries: 1000,
        ..Limits::default()
    };
    let is_limit = |bytes: &[u8]| {
        let applied = apply(bytes, Bench::new().root.as_fd(), &limits);
        match applied {
            Ok(applied) => {
                assert!(applied.inodes <= 1001, "{}", applied.inodes);
                false
            }
            Err(Error::Limit { what, limit }) => (what, limit) == ("entries", 1000),
            Err(error) => panic!("{error}"),
        }
    };
    let named = |names: &[String]| {
        let mut tar = Tar::new();
        for name in names {
            tar.pax(&[("path", name)]);
            tar.file("x", b"");
        }
        tar.finish()
    };
    let deep = |first: &str, count: usize| format!("{first}/{}f", "d/".repeat(count));
    assert!(is_limit(&named(&[deep("a", 2046)])));
    assert!(is_limit(&named(&[deep("a", 600), deep("b", 600)])));
    assert!(!is_limit(&named(&[deep("a", 400), deep("b", 400)])));
    // By way of a link that leads nowhere yet.
    let mut tar = Tar::new();
    tar.pax(&[("linkpath", &deep("a", 2000))]);
    tar.symlink("l", "x");
    tar.file("l/f", b"");
    assert!(is_limit(&tar.finish()));
}

fn bomb(size: u64) -> Vec<u8> {
    let mut tar = Tar::new();
    tar.entry(b"zeros", b'0', b"").edit(|header| {
        builder::octal(&mut header[124..136], size);
    });
    let start = tar.unfinished();
    let zeros = std::io::Read::take(std::io::repeat(0), size);
    let stream = std::io::Read::chain(&start[..], zeros);
    zstd::encode_all(stream, 1).unwrap()
}

/// S17: some kilobytes that become a gibibyte end at the limit, and in no memory.
#[test]
fn s17_a_bomb_ends_at_the_limit() {
    let bench = Bench::new();
    let bytes = bomb(1 << 30);
    assert!(bytes.len() < 1 << 20, "{}", bytes.len());
    let limits = Limits {
        bytes: 64 << 20,
        ..Limits::default()
    };
    let media_type = "application/vnd.oci.image.layer.v1.tar+zstd";
    let plain = Decoder::detect(media_type, &bytes[..], MAX_WINDOW_LOG).unwrap();
    let error = apply(plain, bench.root.as_fd(), &limits).unwrap_err();
    assert!(matches!(error, Error::Limit { limit, .. } if limit == 64 << 20));
    let written = fs::metadata(bench.path("zeros")).unwrap().len();
    assert!(written <= 64 << 20, "{written}");
}

/// Endless extended headers before an entry that never comes: each within its limit, all together within the layer's.
#[test]
fn s11_endless_headers_end_at_the_limit() {
    struct Endless(Vec<u8>, usize);
    impl std::io::Read for Endless {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let rest = &self.0[self.1..];
            let length = rest.len().min(buffer.len());
            buffer[..length].copy_from_slice(&rest[..length]);
            self.1 = (self.1 + length) % self.0.len();
            Ok(length)
        }
    }
    let mut tar = Tar::new();
    let comment = "c".repeat(900_000);
    tar.entry(b"g", b'g', &builder::record(b"comment", comment.as_bytes()));
    let limits = Limits {
        bytes: 100 << 20,
        ..Limits::default()
    };
    let bench = Bench::new();
    let endless = Endless(tar.unfinished(), 0);
    let error = apply(endless, bench.root.as_fd(), &limits).unwrap_err();
    assert!(matches!(error, Error::Limit { .. }), "{error}");
}

/// What is said of the space is true to the block, also where it cannot be told from sizes.
#[test]
fn the_space_is_what_the_file_system_says() {
    let bench = Bench::new();
    let mut tar = Tar::new();
    let regions: Vec<(u64, u64)> = (0..20).map(|n| (n * 100_000, 1)).collect();
    tar.sparse("0.1", "scattered", &regions, 3_000_000, &[1; 20]);
    let value = "v".repeat(700);
    for number in 0..10 {
        tar.pax(&[("SCHILY.xattr.user.note", &format!("{number}{value}"))]);
        tar.file(&format!("noted{number}"), b"x");
        tar.pax(&[("SCHILY.xattr.user.note", &format!("{number}{value}"))]);
        tar.dir(&format!("dir{number}/"));
    }
    let applied = bench.apply(tar).unwrap();
    let usage = crate::sys::fs::tree_usage(bench.root.as_fd()).unwrap();
    assert_eq!((applied.bytes, applied.inodes), (usage.bytes, usage.inodes));
}
