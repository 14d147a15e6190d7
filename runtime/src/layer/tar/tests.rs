//! Rows S8 to S12: where readers of tar disagree.

use super::*;
use crate::layer::tests::builder::{Tar, octal, record};

fn read(bytes: &[u8]) -> Result<Vec<(String, u64)>, Error> {
    let limits = Limits::default();
    let mut archive = Archive::new(bytes, &limits);
    let mut names = Vec::new();
    while let Some(entry) = archive.next()? {
        names.push((
            String::from_utf8_lossy(&entry.name).into_owned(),
            entry.size,
        ));
    }
    Ok(names)
}

fn is_malformed(bytes: &[u8]) -> bool {
    matches!(read(bytes), Err(Error::Malformed { .. }))
}

/// S8, S9 (CVE-2025-62518, CVE-2026-33055): the pax size counts, whatever the header says.
#[test]
fn s08_s09_a_pax_size_overrides_the_header() {
    let mut nested = Tar::new();
    nested.file("hidden", b"x");
    let nested = nested.unfinished();
    let size = nested.len().to_string();
    for header_size in [0, 7, nested.len() as u64 * 3] {
        let mut tar = Tar::new();
        tar.pax(&[("size", &size)]);
        tar.entry(b"outer", b'0', &nested);
        tar.edit(|header| octal(&mut header[124..136], header_size));
        tar.file("after", b"y");
        let wanted = [
            ("outer".to_owned(), nested.len() as u64),
            ("after".to_owned(), 1),
        ];
        assert_eq!(read(&tar.finish()).unwrap(), wanted);
    }
    // And the reverse: pax says nothing is there.
    let mut tar = Tar::new();
    tar.pax(&[("size", "0")]);
    tar.entry(b"outer", b'0', &nested);
    let names: Vec<_> = read(&tar.finish())
        .unwrap()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["outer", "hidden"]);
}

/// What is no file has no content, whatever size it claims (Go and Python agree).
#[test]
fn s08_only_files_have_content() {
    for kind in *b"123456" {
        let mut tar = Tar::new();
        tar.entry(b"d", kind, b"");
        tar.edit(|header| octal(&mut header[124..136], 512));
        tar.file("after", b"y");
        assert_eq!(read(&tar.finish()).unwrap().len(), 2);
    }
}

/// S10.
#[test]
fn s10_malformed_extended_headers_are_refused() {
    let record = |key: &str, value: &str| record(key.as_bytes(), value.as_bytes());
    let bad: Vec<Vec<u8>> = vec![
        b"x".to_vec(),
        b"5 a=b\n".to_vec(),
        b"7 a=b\n".to_vec(),
        b"+6 a=b\n".to_vec(),
        b"06".to_vec(),
        b"0 \n".to_vec(),
        b"99999999999999999999 a=b\n".to_vec(),
        b"6 abc\n".to_vec(),
        b"6 a=bc".to_vec(),
        b"5 =b\n".to_vec(),
        record("size", "-1"),
        record("size", "1e3"),
        record("size", "99999999999999999999"),
        record("uid", "4294967295"),
        record("mtime", "1.x"),
        record("path", "a\0b"),
        [record("path", "a"), record("path", "b")].concat(),
        [record("size", "1"), record("size", "1")].concat(),
        [
            record("GNU.sparse.offset", "1"),
            record("GNU.sparse.offset", "1"),
        ]
        .concat(),
        record("GNU.sparse.numbytes", "1"),
        record("GNU.sparse.major", "2"),
        record("GNU.sparse.unknown", "2"),
        record("SCHILY.xattr.", "x"),
    ];
    for text in bad {
        let mut tar = Tar::new();
        tar.entry(b"pax", b'x', &text);
        tar.file("f", b"");
        let shown = String::from_utf8_lossy(&text).into_owned();
        assert!(is_malformed(&tar.finish()), "{shown:?}");
    }
    let mut tar = Tar::new();
    tar.pax(&[("path", "a")]);
    tar.gnu_long(b'L', b"b");
    tar.file("f", b"");
    assert!(is_malformed(&tar.finish()), "a name by pax and GNU");
    for kind in *b"xLK" {
        let mut tar = Tar::new();
        for _ in 0..2 {
            tar.entry(
                b"e",
                kind,
                &crate::layer::tests::builder::record(b"a", b"b"),
            );
        }
        tar.file("f", b"");
        assert!(is_malformed(&tar.finish()), "two of {kind}");
        let mut tar = Tar::new();
        tar.entry(
            b"e",
            kind,
            &crate::layer::tests::builder::record(b"a", b"b"),
        );
        assert!(is_malformed(&tar.finish()), "{kind} before the end");
    }
    let mut tar = Tar::new();
    tar.entry(b"g", b'g', &record("path", "everything"));
    assert!(is_malformed(&tar.finish()));
    // Go forgets the first header then, others do not.
    for kind in *b"xLK" {
        let mut tar = Tar::new();
        let text = crate::layer::tests::builder::record(b"path", b"hidden");
        tar.entry(b"e", kind, &text);
        tar.entry(b"g", b'g', &record("comment", "0123"));
        tar.file("f", b"");
        assert!(is_malformed(&tar.finish()), "a global header after {kind}");
    }
    let mut tar = Tar::new();
    tar.entry(b"g", b'g', &record("comment", "0123"));
    tar.file("f", b"");
    assert_eq!(read(&tar.finish()).unwrap().len(), 1);
}

/// S10: a record is bytes. What is no UTF-8 is no reason to refuse it, nor to read it otherwise.
#[test]
fn s10_keywords_and_values_need_not_be_text() {
    let mut tar = Tar::new();
    tar.pax_bytes(&[
        (b"vendor.\xff", b"\xfe=\xff\n\0"),
        (b"path", b"caf\xe9"),
        (b"SCHILY.xattr.user.\xff", b"\0\xff"),
    ]);
    tar.file("f", b"");
    let bytes = tar.finish();
    let limits = Limits::default();
    let entry = Archive::new(&bytes[..], &limits).next().unwrap().unwrap();
    assert_eq!(entry.name, b"caf\xe9");
    let xattr = (b"user.\xff".to_vec(), b"\0\xff".to_vec());
    assert_eq!(entry.xattrs, [xattr]);
}

/// S11 (CVE-2022-2879): a header that claims a terabyte is refused before anything is read for it.
#[test]
fn s11_extended_headers_are_bounded() {
    for kind in *b"xgLK" {
        for size in [1 << 40, (1 << 20) + 1] {
            let mut tar = Tar::new();
            tar.entry(b"e", kind, b"");
            tar.edit(|header| {
                header[124..136].fill(0);
                header[124] = 0x80;
                header[128..136].copy_from_slice(&u64::to_be_bytes(size));
            });
            assert!(matches!(read(&tar.finish()), Err(Error::Limit { .. })));
        }
    }
}

/// S12 (CVE-2025-58183): maps of sparse files are bounded and have to make sense.
#[test]
fn s12_sparse_maps_are_bounded_and_sane() {
    let bad: [(&[(u64, u64)], u64); 6] = [
        (&[(5, 3)], 7),
        (&[(5, 2)], 100),
        (&[(5, 2), (6, 1)], 100),
        (&[(6, 1), (5, 2)], 100),
        (&[(0, 4)], 100),
        (&[(0o77777777777, 3)], 100),
    ];
    for (map, size) in bad {
        for version in ["old", "0.0", "0.1", "1.0"] {
            let mut tar = Tar::new();
            tar.sparse(version, "s", map, size, b"abc");
            assert!(is_malformed(&tar.finish()), "{version} {map:?}");
        }
    }
    let mut tar = Tar::new();
    tar.pax(&[
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "s"),
        ("GNU.sparse.realsize", "1"),
    ]);
    tar.file(
        "x",
        &b"1000000000\n"
            .iter()
            .copied()
            .chain(b"0\n".repeat(2_000_000))
            .collect::<Vec<_>>(),
    );
    assert!(is_malformed(&tar.finish()));
    // The old format chains blocks of parts: as long as there are blocks, up to the limit.
    let mut tar = Tar::new();
    tar.sparse("old", "s", &[(0, 0)], 1, b"");
    tar.edit(|header| header[482] = 1);
    let mut block = [0; 512];
    octal(&mut block[..12], 0);
    octal(&mut block[12..24], 0);
    let parts: Vec<u8> = block[..24].repeat(21);
    block[..504].copy_from_slice(&parts);
    block[504] = 1;
    let mut bytes = tar.unfinished();
    bytes.extend(block.repeat(3000));
    assert!(matches!(read(&bytes), Err(Error::Limit { .. })));
}

#[test]
fn blocks_that_are_no_headers_are_refused() {
    let mut tar = Tar::new();
    tar.file("f", b"");
    let good = tar.unfinished();
    let mut bad_sum = good.clone();
    bad_sum[0] ^= 1;
    assert!(is_malformed(&bad_sum));
    assert!(
        is_malformed(&[&[0; 512][..], &good].concat()),
        "a lone block of zeros"
    );
    assert!(is_malformed(&good[..300]));
    assert_eq!(read(&good).unwrap().len(), 1, "an archive without its end");
    assert_eq!(read(&[&good[..], &[0; 512]].concat()).unwrap().len(), 1);
    for kind in *b"89ADMNVXZ\xff" {
        let mut tar = Tar::new();
        tar.entry(b"f", kind, b"");
        assert!(is_malformed(&tar.finish()), "{kind}");
    }
    let mut tar = Tar::new();
    tar.file("f", b"").edit(|header| {
        header[257..265].copy_from_slice(b"ustar\x0099");
        header[345] = b'p';
    });
    assert!(
        is_malformed(&tar.finish()),
        "a prefix in an unknown version"
    );
}

#[test]
fn formats_differ_in_where_the_name_is() {
    let (posix, gnu, none) = (b"ustar\x0000", b"ustar  \0", b"\0\0\0\0\0\0\0\0");
    let cases: [(_, _, &[u8], _); 9] = [
        (posix, b"\0\0\0\0", b"prefix", "prefix/f"),
        (posix, b"tar\0", b"prefix", "prefix/f"),
        (none, b"\0\0\0\0", b"prefix", "f"),
        // Two times, the first of which is none, the second of which is none, that are times, and that are not there.
        (gnu, b"\0\0\0\0", b"prefix", "prefix/f"),
        (
            gnu,
            b"\0\0\0\0",
            b"12345670123/prefix",
            "12345670123/prefix/f",
        ),
        (gnu, b"\0\0\0\0", b"00000000017\x0000000000017\0", "f"),
        (gnu, b"\0\0\0\0", b"\x80\0\0\0\0\0\0\0\0\0\0\x01", "f"),
        (gnu, b"\0\0\0\0", b"\0refix", "f"),
        (gnu, b"\0\0\0\0", b"pr\xe9fix", "f"),
    ];
    for (magic, trailer, prefix, wanted) in cases {
        let mut tar = Tar::new();
        tar.file("f", b"").edit(|header| {
            header[257..265].copy_from_slice(magic);
            header[345..345 + prefix.len()].copy_from_slice(prefix);
            header[508..512].copy_from_slice(trailer);
        });
        assert_eq!(read(&tar.finish()).unwrap()[0].0, wanted);
    }
    let mut tar = Tar::new();
    tar.entry(b"old/", 0, b"");
    let bytes = tar.finish();
    let limits = Limits::default();
    let entry = Archive::new(&bytes[..], &limits).next().unwrap().unwrap();
    assert_eq!(entry.kind, Type::Dir);
}

#[test]
fn numbers_are_octal_or_base_256() {
    for (field, wanted) in [
        (&b"0000644\0"[..], Some(0o644)),
        (b" 644 \0\0\0", Some(0o644)),
        (b"\0\0\0\0", Some(0)),
        (b"12345678", None),
        (b"12 34\0\0\0", None),
        (b"12\0junk!", Some(0o12)),
        (b"-1\0\0\0\0\0\0", None),
        (&[0x80, 0, 0, 0, 0, 0, 1, 0], Some(256)),
        (&[0xff; 12], Some(-1)),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe], Some(-2)),
        (&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0], None),
        (&[0xbf; 12], None),
    ] {
        assert_eq!(header::number(field), wanted, "{field:?}");
    }
}

#[test]
fn times_have_fractions_and_may_be_before_1970() {
    for (text, sec, nsec) in [
        ("1.5", 1, 500_000_000),
        ("-1.5", -2, 500_000_000),
        ("-3", -3, 0),
        ("7.1234567899", 7, 123_456_789),
        ("8.", 8, 0),
    ] {
        let mut tar = Tar::new();
        tar.pax(&[("mtime", text)]);
        tar.file("f", b"");
        let bytes = tar.finish();
        let limits = Limits::default();
        let entry = Archive::new(&bytes[..], &limits).next().unwrap().unwrap();
        assert_eq!(entry.mtime, Time { sec, nsec }, "{text}");
    }
}
