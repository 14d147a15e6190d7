//! Archives that want out, or want more than their share.

use super::*;

/// S1, S7: links first, then an entry of that name whose mode must not reach the target.
#[test]
fn s01_s07_a_mode_never_goes_through_a_link() {
    for last in [b'0', b'5', b'6'] {
        for target in ["dir", "plain"] {
            let bench = Bench::new();
            let canary = format!("{}/{target}", bench.canary());
            let mut tar = Tar::new();
            tar.symlink("x", "to-be-set").edit(|header| {
                header[157..157 + canary.len()].copy_from_slice(canary.as_bytes());
            });
            tar.entry(b"x", last, b"").mode(0o777).owner(1, 1);
            bench.apply(tar).unwrap();
            let kind = fs::symlink_metadata(bench.path("x")).unwrap().file_type();
            assert!(!kind.is_symlink());
        }
    }
}

/// S2, S5, S23: through links to directories, with every way to write the name.
#[test]
fn s02_s05_s23_nothing_is_written_through_links_to_the_outside() {
    for target in ["CANARY", "../canary", "../../../../../../../../../..", "/"] {
        for name in [
            "a/plain",
            "a//plain",
            "./a/./plain",
            "/a/plain",
            "a/dir/plain",
            "a/plain/",
        ] {
            let bench = Bench::new();
            let target = target.replace("CANARY", &bench.canary());
            let mut tar = Tar::new();
            tar.symlink("a", &target);
            tar.file(name, b"overwritten");
            tar.dir("a/dir/").mode(0o777);
            tar.symlink("a/dir/x", "/etc");
            tar.hard_link("h", "a/plain");
            tar.entry(b"a/.wh.plain", b'0', b"");
            tar.entry(b"a/dir/.wh..wh..opq", b'0', b"");
            // Most go to a place of the same name inside the root; some are errors. None leaves it.
            let _ = bench.apply(tar);
        }
    }
}

/// S2: a name that is by turns a directory and a link.
#[test]
fn s02_a_directory_swapped_for_a_link_is_looked_up_again() {
    let bench = Bench::new();
    let canary = bench.canary();
    let mut tar = Tar::new();
    for round in 0..50 {
        tar.dir("a/");
        tar.file(&format!("a/b{round}"), b"x");
        tar.symlink("a", &canary);
        tar.file(&format!("a/plain{round}"), b"x");
    }
    bench.apply(tar).unwrap();
    let inside = bench.path(canary.trim_start_matches('/'));
    assert!(inside.join("plain49").exists());
    assert!(!fs::exists(bench.path("b0")).unwrap());
}

/// S3.
#[test]
fn s03_names_that_lead_out_are_refused_and_odd_ones_confined() {
    let long = format!("{}f", "d/".repeat(2100));
    for name in [
        "../x",
        "../../x",
        "a/../../x",
        "./../x",
        "..",
        "a/..",
        &long,
    ] {
        let bench = Bench::new();
        let mut tar = Tar::new();
        tar.pax(&[("path", name)]);
        tar.file("x", b"x");
        assert!(
            matches!(bench.apply(tar), Err(Error::Refused { .. })),
            "{name}"
        );
    }
    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.pax_bytes(&[(b"path", b"a\0b")]);
    tar.file("x", b"x");
    assert!(bench.apply(tar).is_err());
    let bench = Bench::new();
    let mut tar = Tar::new();
    for name in [
        "/abs",
        "a//b",
        "./c/.",
        "d/",
        "e/../f",
        "/../g",
        "./n/./../h/../i",
    ] {
        tar.file(name, b"x");
    }
    tar.symlink("l", "a");
    tar.file("l/../j", b"x");
    bench.apply(tar).unwrap();
    for name in ["abs", "a/b", "c", "d", "f", "g", "i", "j"] {
        assert_eq!(bench.text(name), "x");
    }
    let component = "n".repeat(256);
    let mut tar = Tar::new();
    tar.pax(&[("path", &component)]);
    tar.file("x", b"x");
    assert!(matches!(bench.apply(tar), Err(Error::Entry { .. })));
}

/// S4.
#[test]
fn s04_the_root_stays_a_directory() {
    for name in [".", "/", "./", "//./"] {
        for kind in [b'0', b'1', b'2', b'3', b'6'] {
            let bench = Bench::new();
            let mut tar = Tar::new();
            tar.entry(name.as_bytes(), kind, b"");
            tar.edit(|header| header[157..161].copy_from_slice(b"/etc"));
            assert!(
                matches!(bench.apply(tar), Err(Error::Refused { .. })),
                "{name} {kind}"
            );
        }
    }
}

/// S5: hard links, whose targets are as hostile as names.
#[test]
fn s05_hard_links_stay_inside() {
    for target in [
        "CANARY/plain",
        "../canary/plain",
        "..",
        "",
        "/",
        "a/../../canary/plain",
    ] {
        let bench = Bench::new();
        let target = target.replace("CANARY", &bench.canary());
        let mut tar = Tar::new();
        tar.hard_link("h", &target);
        match bench.apply(tar) {
            Ok(applied) => {
                let mut applied = applied;
                assert_eq!(applied.deferred, 1, "{target}");
                let finished = finish(bench.root.as_fd(), None, &mut applied);
                assert!(matches!(finished, Err(Error::Refused { .. })), "{target}");
            }
            Err(error) => assert!(matches!(error, Error::Refused { .. }), "{target}: {error}"),
        }
    }
    // Targets are cleaned under the root.
    for target in [
        "./a/../real/f",
        "real//f",
        "/real/./f",
        "../../real/f",
        "/../real/f",
        "real/x/../f/",
        "real/../real/nothing/../f",
    ] {
        let bench = Bench::new();
        let mut tar = Tar::new();
        tar.file("real/f", b"inside");
        tar.hard_link("h", target);
        let applied = bench.apply(tar).unwrap();
        assert_eq!(
            (applied.deferred, bench.text("h").as_str()),
            (0, "inside"),
            "{target}"
        );
    }
    // But where the text and the kernel lead to two places, to none.
    for target in ["out/../f", "d/in/../f", "./out/./../real/../real/f"] {
        let bench = Bench::new();
        let mut tar = Tar::new();
        tar.file("real/f", b"inside")
            .file("f", b"other")
            .file("d/f", b"third");
        tar.symlink("out", "/real/deep")
            .symlink("d/in", "../real/deep");
        tar.hard_link("h", target);
        let error = bench.apply(tar).unwrap_err();
        assert!(
            error.to_string().contains("goes up from a symbolic link"),
            "{error}"
        );
    }
    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.pax(&[("linkpath", &format!("{}f", "d/../".repeat(65)))]);
    tar.hard_link("h", "x");
    assert!(matches!(bench.apply(tar), Err(Error::Refused { .. })));
    // Through a link that an earlier entry made: a place inside, and a hard link to a link is one to the link.
    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.file("real/f", b"inside");
    tar.symlink("out", "/real");
    tar.hard_link("h", "out/f");
    tar.symlink("s", "/etc/passwd");
    tar.hard_link("hs", "s");
    tar.hard_link("self", "self");
    bench.apply(tar).unwrap();
    assert_eq!(bench.text("h"), "inside");
    assert!(fs::symlink_metadata(bench.path("hs")).unwrap().is_symlink());
    // To itself: there is something to link to, or there is not.
    let mut applied = bench.apply({
        let mut tar = Tar::new();
        tar.hard_link("absent", "absent");
        tar
    });
    let applied = applied.as_mut().unwrap();
    assert_eq!(applied.deferred, 1);
    let finished = finish(bench.root.as_fd(), None, applied);
    assert!(matches!(finished, Err(Error::Refused { .. })));
    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.file("self", b"x");
    tar.hard_link("./self", "self").mode(0o600);
    assert_eq!(bench.apply(tar).unwrap().deferred, 0);
    assert_eq!(bench.text("self"), "x");
    for (kind, target) in [("dir", "d"), ("removed", "w")] {
        let bench = Bench::new();
        let mut tar = Tar::new();
        tar.dir("d/");
        tar.entry(b".wh.w", b'0', b"");
        tar.hard_link("h", target);
        assert!(
            matches!(bench.apply(tar), Err(Error::Refused { .. })),
            "{kind}"
        );
    }
}

/// S12, S13, S17.
#[test]
fn s13_s17_limits_hold() {
    let bench = Bench::new();
    let mut tar = Tar::new();
    for number in 0..11 {
        tar.file(&format!("f{number}"), b"");
    }
    let bytes = tar.finish();
    let limits = Limits {
        entries: 10,
        ..Limits::default()
    };
    let applied = apply(&bytes[..], bench.root.as_fd(), &limits);
    assert!(matches!(
        applied,
        Err(Error::Limit {
            what: "entries",
            ..
        })
    ));

    // What follows the end counts as well: endless zeros, in no memory.
    let limits = Limits {
        bytes: 1 << 30,
        ..Limits::default()
    };
    let endless = std::io::Read::chain(&[0; 1024][..], std::io::repeat(0));
    let applied = apply(endless, Bench::new().root.as_fd(), &limits);
    assert!(matches!(
        applied,
        Err(Error::Limit {
            what: "uncompressed bytes",
            ..
        })
    ));

    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.sparse("0.1", "s", &[(0, 1)], i64::MAX.cast_unsigned(), b"x");
    assert!(matches!(bench.apply(tar), Err(Error::Limit { .. })));
}

/// S14: the stream fails in the middle.
#[test]
fn s14_a_read_error_is_an_error() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("cut"))
        }
    }
    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.file("f", &[1; 100_000]);
    let bytes = tar.finish();
    let reader = std::io::Read::chain(&bytes[..50_000], Broken);
    let applied = apply(reader, bench.root.as_fd(), &Limits::default());
    assert!(matches!(applied, Err(Error::Read(_))));
    for cut in [1, 511, 513, 50_000, 100_500] {
        let applied = apply(&bytes[..cut], bench.root.as_fd(), &Limits::default());
        assert!(applied.is_err(), "{cut}");
    }
}

/// S18.
#[test]
fn s18_devices_that_linux_has_no_number_for_are_refused() {
    for (major, minor) in [(0o10000, 1), (1, 0o4000000), (4096, 0)] {
        let bench = Bench::new();
        let mut tar = Tar::new();
        tar.node("d", b'3', major, minor);
        assert!(
            matches!(bench.apply(tar), Err(Error::Malformed { .. })),
            "{major}:{minor}"
        );
    }
    for wide in [[0x80, 0, 0, 1, 0, 0, 0, 1], [0xff; 8]] {
        let bench = Bench::new();
        let mut tar = Tar::new();
        tar.node("d", b'4', 1, 1);
        tar.edit(|header| header[329..337].copy_from_slice(&wide));
        assert!(matches!(bench.apply(tar), Err(Error::Malformed { .. })));
    }
}

/// S19.
#[test]
fn s19_a_device_0_0_is_a_whiteout() {
    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.node("w", b'3', 0, 0).mode(0o666);
    tar.dir("d/");
    tar.node("d", b'3', 0, 0);
    tar.node("b", b'4', 0, 0);
    bench.apply(tar).unwrap();
    assert!(bench.is_whiteout("w"));
    assert_eq!(fs::metadata(bench.path("w")).unwrap().mode() & 0o777, 0);
    assert!(bench.is_opaque("d"));
    assert!(
        fs::metadata(bench.path("b"))
            .unwrap()
            .file_type()
            .is_block_device()
    );
}

/// S20.
#[test]
fn s20_whiteouts_hide_names_below_and_remove_nothing() {
    for name in [
        ".wh.", ".wh..", ".wh...", "a/.wh.", "a/.wh..", "a/.wh...", ".wh.x/y", ".wh./x",
    ] {
        let bench = Bench::new();
        let mut tar = Tar::new();
        tar.dir("a/");
        tar.file(name, b"");
        assert!(
            matches!(bench.apply(tar), Err(Error::Refused { .. })),
            "{name}"
        );
    }
    let bench = Bench::new();
    let canary = bench.canary();
    let mut tar = Tar::new();
    tar.file(".wh.gone", b"ignored content");
    tar.file("implied/.wh.gone", b"");
    tar.file(".wh.again", b"");
    tar.file(".wh.again", b"");
    tar.symlink("out", &canary);
    tar.file("out/.wh.plain", b"");
    tar.file("out/.wh..wh..opq", b"");
    tar.dir("o/");
    tar.entry(b"o/.wh..wh..opq", b'5', b"");
    tar.file("o/.wh..wh..opq/ignored", b"x");
    tar.dir("p/");
    tar.symlink("p/.wh..wh..opq", "/etc");
    tar.file("p/f", b"x");
    // Whatever a whiteout is, it is one.
    for kind in *b"123456" {
        let name = format!(".wh.type{}", char::from(kind));
        tar.entry(name.as_bytes(), kind, b"").edit(|header| {
            header[157..160].copy_from_slice(b"p/f");
            header[336] = b'1';
        });
    }
    // The name that it hides may be as long as a name can be.
    let longest = "n".repeat(255);
    tar.pax(&[("path", &format!(".wh.{longest}"))]);
    tar.file("x", b"");
    tar.file(".wh..wh.plnk/1.2", b"x");
    tar.file(".wh..wh.aufs", b"x");
    bench.apply(tar).unwrap();
    for name in [
        "gone",
        "implied/gone",
        "again",
        "type1",
        "type2",
        "type3",
        "type4",
        "type5",
        "type6",
        &longest,
    ] {
        assert!(bench.is_whiteout(name), "{name}");
    }
    let inside = canary.trim_start_matches('/');
    assert!(bench.is_whiteout(&format!("{inside}/plain")));
    assert!(bench.is_opaque(inside));
    assert!(bench.is_opaque("o") && bench.is_opaque("p"));
    assert_eq!(fs::read_dir(bench.path("o")).unwrap().count(), 0);
    assert_eq!(bench.text("p/f"), "x");
    assert!(!fs::exists(bench.path(".wh..wh.plnk")).unwrap());
    let mut tar = Tar::new();
    tar.pax(&[("path", &format!(".wh.{longest}n"))]);
    tar.file("x", b"");
    assert!(matches!(bench.apply(tar), Err(Error::Entry { .. })));
}

/// S22: what was unpacked is as unreachable as the directory it is in, and made with no other permission on the way.
#[test]
fn s22_the_layer_is_made_in_the_directory_given() {
    let bench = Bench::new();
    let mut tar = Tar::new();
    tar.dir("d/").mode(0o1777);
    tar.file("d/su", b"x").mode(0o4755);
    bench.apply(tar).unwrap();
    let mode = fs::metadata(bench.path("d/su")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o4755);
}
