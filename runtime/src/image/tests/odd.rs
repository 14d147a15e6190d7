//! Layers in which names come twice, go, and come from below.

use tar::EntryType::{self, Char, Directory, Link, Regular, Symlink};

use super::*;

/// An archive of entries: name, type, mode, content or target.
fn tar(entries: &[(&str, EntryType, u32, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, mode, text) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_uid(1000);
        header.set_gid(2_100_000);
        header.set_mtime(1);
        header.set_size(0);
        if matches!(kind, Link | Symlink) {
            builder.append_link(&mut header, name, text).unwrap();
        } else {
            header.set_size(text.len() as u64);
            builder
                .append_data(&mut header, name, text.as_bytes())
                .unwrap();
        }
    }
    builder.into_inner().unwrap()
}

/// `sparse`: a mebibyte of nothing, in whose middle is "abc". The names stand in the header in this order.
pub(super) fn append_sparse(builder: &mut tar::Builder<Vec<u8>>, names: &[&str]) {
    let mut records = vec![
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.realsize", "1048576"),
    ];
    records.extend(names.iter().map(|name| match *name {
        "path" => (*name, "GNUSparseFile.0/dummy"),
        name => (name, "sparse"),
    }));
    let records = records.iter().map(|(key, value)| (*key, value.as_bytes()));
    builder.append_pax_extensions(records).unwrap();
    let mut content = b"1\n524288\n3\n".to_vec();
    content.resize(512, 0);
    content.extend(b"abc");
    let mut header = tar::Header::new_ustar();
    header.set_path("x").unwrap();
    header.set_mode(0o644);
    header.set_uid(7);
    header.set_gid(8);
    header.set_mtime(1);
    header.set_size(content.len() as u64);
    header.set_cksum();
    builder.append(&header, &content[..]).unwrap();
}

/// Layers with everything that makes names come, go and come from below: the counts and checks of all of them hold.
#[tokio::test]
async fn odd_layers_are_counted_and_checked_as_well() {
    let base = tar(&[
        ("d/", Directory, 0o2775, ""),
        ("d/set", Regular, 0o6755, "set"),
        ("d/low", Regular, 0o600, "low"),
        ("d/link", Symlink, 0o777, "/etc/passwd"),
        ("d/same", Link, 0o644, "d/set"),
        ("gone/x", Regular, 0o1644, "x"),
    ]);
    let middle = tar(&[
        ("other/from-below", Link, 0o644, "d/low"),
        ("d/.wh.link", Regular, 0, ""),
        ("gone/.wh..wh..opq", Regular, 0, ""),
        ("gone/new", Regular, 0o644, "new"),
    ]);
    let replacing = {
        let mut builder = tar::Builder::new(Vec::new());
        let whiteout = Char;
        for (name, kind, mode) in [
            ("over/", Directory, 0o700),
            ("over/kept", Regular, 0o600),
            ("over", whiteout, 0o644),
            ("file", Regular, 0o600),
            ("file", whiteout, 0o644),
            ("x", whiteout, 0o644),
            ("x/f", Regular, 0o600),
            ("over/", Directory, 0o711),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_uid(1);
            header.set_gid(2);
            header.set_size(0);
            builder.append_data(&mut header, name, &b""[..]).unwrap();
        }
        append_sparse(&mut builder, &["GNU.sparse.name", "path"]);
        builder.into_inner().unwrap()
    };
    let mut other_order = tar::Builder::new(Vec::new());
    append_sparse(&mut other_order, &["path", "GNU.sparse.name"]);
    let other_order = other_order.into_inner().unwrap();
    let twice = tar(&[
        ("a", Regular, 0o644, "first"),
        ("b", Link, 0o644, "a"),
        ("a", Regular, 0o644, "second, longer"),
        ("tree/x/y", Regular, 0o644, "y"),
        ("tree", Regular, 0o644, "file"),
    ]);
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let layers = [base, middle, replacing, other_order, twice].map(|tar| (tar, Pack::Gzip));
    let made = image(&layers, &json!({}));
    fake.put_image("x", "1", &made);
    let name = fake.name("x:1");
    rig.pull(&name).await.unwrap();
    let report = rig.manager.check(false, false).await.unwrap();
    assert_eq!(report.findings, []);
    let details = rig.manager.inspect(&name).unwrap().unwrap();
    assert_eq!(report.unverifiable, [details.layers[4].chain]);
    for layer in &details.layers {
        let (bytes, inodes) = rig.du(&format!("layers/{}/fs", layer.chain.hex()));
        assert_eq!((layer.disk, layer.inodes), (bytes, inodes));
    }
    let error = rig.manager.export(vec![name]).await.unwrap_err();
    assert!(
        error.to_string().contains("cannot be made again"),
        "{error}"
    );
    assert_eq!(error.kind(), Kind::FailedPrecondition);
}
