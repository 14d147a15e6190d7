//! Random archives never touch what is not theirs.

use proptest::prelude::*;

use super::*;

fn component() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => prop::sample::select(vec!["a", "b", "c", "l"]).prop_map(|s| s.as_bytes().to_vec()),
        1 => Just(b"..".to_vec()),
        1 => Just(b".".to_vec()),
        1 => Just(Vec::new()),
        1 => Just(b".wh.a".to_vec()),
        1 => Just(b".wh..wh..opq".to_vec()),
        1 => Just(b"canary".to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..6),
        1 => Just(vec![b'n'; 300]),
    ]
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    (prop::collection::vec(component(), 0..5), any::<bool>()).prop_map(|(parts, absolute)| {
        let path = parts.join(&b'/');
        if absolute {
            [b"/", &path[..]].concat()
        } else {
            path
        }
    })
}

fn target() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        path(),
        Just(b"../canary".to_vec()),
        Just(b"../../root/../canary/dir".to_vec()),
        Just(b"/".to_vec()),
        Just(b".".to_vec()),
        Just(b"CANARY".to_vec()),
    ]
}

fn archive() -> impl Strategy<Value = Vec<(Vec<u8>, u8, Vec<u8>, u16)>> {
    let kind = prop::sample::select(b"0012233555561".to_vec());
    prop::collection::vec((path(), kind, target(), any::<u16>()), 1..25)
}

fn build(entries: &[(Vec<u8>, u8, Vec<u8>, u16)], canary: &str, part: Option<usize>) -> Tar {
    let mut tar = Tar::new();
    let part = part.map_or(entries, |part| &entries[part..=part]);
    for (name, kind, target, mode) in part {
        let target = if target == b"CANARY" {
            canary.as_bytes()
        } else {
            target
        };
        tar.pax_bytes(&[(b"path", name), (b"linkpath", target)]);
        let content: &[u8] = if *kind == b'0' { b"content" } else { b"" };
        tar.entry(b"x", *kind, content)
            .mode(u64::from(*mode & 0o7777))
            .owner(1, 2);
        if *kind == b'3' {
            tar.edit(|header| builder::octal(&mut header[337..345], u64::from(*mode % 3)));
        }
    }
    tar
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Each entry on its own archive into the same root, so that one that is refused does not stop the rest.
    #[test]
    fn nothing_outside_the_root_changes(entries in archive()) {
        let bench = Bench::new();
        for part in 0..entries.len() {
            let tar = build(&entries, &bench.canary(), Some(part)).finish();
            let _ = apply(&tar[..], bench.root.as_fd(), &Limits::default());
        }
        bench.check_canary();
        let whole = Bench::new();
        let tar = build(&entries, &whole.canary(), None);
        if let Ok(mut applied) = whole.apply(tar) {
            let usage = crate::sys::fs::tree_usage(whole.root.as_fd()).unwrap();
            // The mark of a link to a lower layer takes room until `finish`; such layers are counted afterwards.
            if applied.deferred == 0 {
                prop_assert_eq!(applied.bytes, usage.bytes);
            }
            let _ = finish(whole.root.as_fd(), Some(bench.root.as_fd()), &mut applied);
            whole.check_canary();
        }
    }

    /// Any bytes end in an error or a tree, never in a panic.
    #[test]
    fn any_bytes_are_survived(start in prop::collection::vec(any::<u8>(), 0..4000), at in 0usize..2000, byte: u8) {
        let bench = Bench::new();
        let _ = bench.apply_bytes(&start);
        let mut tar = Tar::new();
        tar.pax(&[("mtime", "1.5"), ("GNU.sparse.size", "9"), ("GNU.sparse.numblocks", "0")]);
        tar.file("a", b"");
        tar.sparse("old", "s", &[(5, 3)], 10, b"abc");
        tar.dir("d/");
        let mut bytes = tar.finish();
        bytes[at] = byte;
        // Keep the checksum right, or nothing but it is tested.
        let header = at / 512 * 512;
        if bytes[header + 257..].starts_with(b"ustar") {
            let sum: u32 = bytes[header..header + 512].iter().enumerate()
                .map(|(i, b)| if (148..156).contains(&i) { 32 } else { u32::from(*b) }).sum();
            builder::octal(&mut bytes[header + 148..header + 155], u64::from(sum));
        }
        let _ = bench.apply_bytes(&bytes);
    }
}
