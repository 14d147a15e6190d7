//! Targets that unpack: any bytes as an archive, and sequences of names and whiteouts against a model of them.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use berth::layer::{Applied, Error, Limits, apply, finish};
use berth::sys::fs::{open_dir_path, tree_usage};

use crate::engine::{Rng, Target, scramble};

const BLOCK: usize = 512;

fn limits() -> Limits {
    Limits {
        entries: 500,
        bytes: 4 << 20,
        header: 64 << 10,
        ..Limits::default()
    }
}

fn octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    let text = format!("{value:0width$o}");
    field[..width].copy_from_slice(text.as_bytes());
    field[width] = 0;
}

fn set_checksum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut header[148..155], sum);
}

fn entry(kind: u8, name: &str, link: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    for (field, value) in [
        (100..108, 0o755),
        (108..116, 0),
        (116..124, 0),
        (136..148, 9),
    ] {
        octal(&mut bytes[field], value);
    }
    octal(&mut bytes[124..136], content.len() as u64);
    bytes[156] = kind;
    bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
    bytes[257..265].copy_from_slice(b"ustar\x0000");
    set_checksum(&mut bytes);
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in records {
        let body = key.len() + value.len() + 3;
        let mut length = body;
        while length.to_string().len() + body != length {
            length = length.to_string().len() + body;
        }
        text += &format!("{length} {key}={value}\n");
    }
    entry(b'x', "pax", "", text.as_bytes())
}

fn seeds() -> Vec<Vec<u8>> {
    let mut gnu = entry(b'S', "sparse", "", &[7; 512]);
    gnu[257..265].copy_from_slice(b"ustar  \0");
    octal(&mut gnu[386..398], 4096);
    octal(&mut gnu[398..410], 512);
    octal(&mut gnu[483..495], 8192);
    set_checksum(&mut gnu[..BLOCK]);
    let map = ("1\n4096\n3\n".to_owned() + &"\0".repeat(503)).into_bytes();
    let sparse = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "s"),
        ("GNU.sparse.realsize", "5000"),
    ];
    vec![
        [
            entry(b'5', "d/", "", b""),
            entry(b'0', "d/f", "", b"content"),
        ]
        .concat(),
        [
            entry(b'2', "l", "d", b""),
            entry(b'0', "l/f", "", b""),
            entry(b'1', "h", "l/f", b""),
        ]
        .concat(),
        [
            entry(b'0', "d/.wh.x", "", b""),
            entry(b'0', "d/.wh..wh..opq", "", b""),
            entry(b'5', "d/x", "", b""),
        ]
        .concat(),
        [
            entry(b'3', "c", "", b""),
            entry(b'6', "p", "", b""),
            entry(b'1', "q", "p", b""),
        ]
        .concat(),
        [
            pax(&[
                ("path", "long/name"),
                ("mtime", "1.5"),
                ("SCHILY.xattr.user.x", "y"),
                ("size", "3"),
            ]),
            entry(b'0', "short", "", b"abc"),
        ]
        .concat(),
        [
            pax(&[
                ("GNU.sparse.size", "9"),
                ("GNU.sparse.numblocks", "1"),
                ("GNU.sparse.map", "3,2"),
            ]),
            entry(b'0', "m", "", b"ab"),
        ]
        .concat(),
        [
            pax(&sparse),
            entry(b'0', "GNUSparseFile.0/s", "", &[&map[..], b"abc"].concat()),
        ]
        .concat(),
        [gnu, entry(b'0', "after", "", b"x")].concat(),
        [
            entry(b'L', "x", "", b"a/long/name\0"),
            entry(b'K', "x", "", b"../target\0"),
            entry(b'2', "x", "y", b""),
        ]
        .concat(),
        [
            pax(&[("path", "a"), ("linkpath", "/../canary")]),
            entry(b'1', "x", "y", b""),
        ]
        .concat(),
        [
            entry(b'g', "g", "", b"13 comment=x\n"),
            entry(b'0', "f", "", b""),
            vec![0; 1024],
            b"after the end".to_vec(),
        ]
        .concat(),
        [
            entry(b'0', "x", "", b""),
            entry(b'5', "x", "", b""),
            entry(b'0', "x/y", "", b""),
            entry(b'2', "x", "..", b""),
        ]
        .concat(),
    ]
}

/// By blocks, by fields of headers, or anyhow; the checksums are mostly made right, or nothing else would be tried.
fn change(rng: &mut Rng, pool: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = rng.pick(pool).clone();
    for _ in 0..=rng.below(3) {
        let blocks = bytes.len() / BLOCK;
        let at = rng.below(blocks + 1) * BLOCK;
        match rng.below(6) {
            0 => {
                let other = rng.pick(pool);
                let from = rng.below(other.len() / BLOCK + 1) * BLOCK;
                let to = (from + (1 + rng.below(4)) * BLOCK).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            1 if at < bytes.len() => drop(bytes.drain(at..(at + BLOCK).min(bytes.len()))),
            2 | 3 if at + BLOCK <= bytes.len() => change_field(rng, &mut bytes[at..at + BLOCK]),
            4 => {
                let other = rng.pick(pool).clone();
                bytes.extend(other);
            }
            _ => scramble(
                rng,
                &mut bytes,
                pool,
                &[
                    b"../",
                    b"/",
                    b".wh.",
                    b".wh..wh..opq",
                    b"ustar  \0",
                    b"\n",
                    b"=",
                    b"\x80\0\0\0",
                    b"GNU.sparse.",
                    b"canary",
                ],
            ),
        }
    }
    bytes.truncate(64 << 10);
    if rng.below(16) > 0 {
        for header in bytes.chunks_exact_mut(BLOCK) {
            if header[257..].starts_with(b"ustar") {
                set_checksum(header);
            }
        }
    }
    bytes
}

fn change_field(rng: &mut Rng, header: &mut [u8]) {
    const NAMES: [&[u8]; 20] = [
        b"a",
        b"a/b",
        b"a/b/c",
        b"../canary/f",
        b"/canary",
        b".",
        b"./",
        b"..",
        b"a/",
        b"a//b",
        b".wh.a",
        b"a/.wh.b",
        b"a/.wh..wh..opq",
        b".wh.",
        b".wh...",
        b".wh..wh.plnk/x",
        b"l",
        b"l/x",
        b"\xff",
        b"a/../b",
    ];
    match rng.below(8) {
        0..=2 => {
            header[..100].fill(0);
            let name = *rng.pick(&NAMES);
            header[..name.len()].copy_from_slice(name);
        }
        3 => {
            header[157..257].fill(0);
            let name = *rng.pick(&NAMES);
            header[157..157 + name.len()].copy_from_slice(name);
        }
        4 => header[156] = *rng.pick(b"0123456712225557xgLKSVN\0"),
        5 => {
            let (from, to) = *rng.pick(&[
                (100, 108),
                (108, 116),
                (116, 124),
                (124, 136),
                (136, 148),
                (329, 337),
                (337, 345),
            ]);
            let value = *rng.pick(&[0, 1, 3, 0o777, 0o7777, 511, 512, 513, 0o777_7777]);
            octal(&mut header[from..to], value);
        }
        6 => {
            let at = *rng.pick(&[100, 108, 116, 124, 136, 329, 337, 386, 398, 483]);
            header[at] = *rng.pick(&[0x80, 0xff, b'-', b' ', b'8', 0]);
        }
        _ => {
            let at = rng.below(BLOCK);
            header[at] = rng.byte();
        }
    }
}

/// A root beside something that must stay as it is, in memory where there is such a file system.
struct Place {
    dir: tempfile::TempDir,
    root: OwnedFd,
    canary: String,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm")
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir(dir.path().join("canary")).unwrap();
        fs::write(dir.path().join("canary/f"), "canary").unwrap();
        let root = open_dir_path(&dir.path().join("root")).unwrap();
        let canary = listing(&dir.path().join("canary"));
        Self { dir, root, canary }
    }

    fn apply(&self, bytes: &[u8]) -> Result<Applied, Error> {
        let applied = apply(bytes, self.root.as_fd(), &limits());
        self.check();
        applied
    }

    fn check(&self) {
        assert_eq!(
            fs::read_dir(self.dir.path()).unwrap().count(),
            2,
            "something is beside the root"
        );
        assert_eq!(
            listing(&self.dir.path().join("canary")),
            self.canary,
            "the canary changed"
        );
    }

    fn tree(&self) -> String {
        listing(&self.dir.path().join("root"))
    }
}

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
        let mut names = vec![0; 4096];
        let length = rustix::fs::llistxattr(&path, &mut names[..]).unwrap_or(0);
        let names = String::from_utf8_lossy(&names[..length]);
        // Nobody says when an implied directory, a whiteout, or what stands for a link was made.
        let untimed = meta.is_dir() || meta.file_type().is_char_device() || names.contains("berth");
        let mtime = if untimed { 0 } else { meta.mtime() };
        lines.push(format!(
            "{:?} {:o} {}:{} {} {mtime} {} {content} {:?}",
            path.strip_prefix(dir).unwrap(),
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.nlink(),
            meta.rdev(),
            names,
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

fn run(bytes: &[u8]) -> String {
    let place = Place::new();
    match place.apply(bytes) {
        Ok(mut applied) => {
            let usage = tree_usage(place.root.as_fd()).unwrap();
            assert!(usage.bytes <= 16 << 20, "{usage:?}");
            assert!(applied.entries <= 500);
            let (implied, deferred) = (applied.implied, applied.deferred);
            let kinds = (
                implied > 0,
                deferred > 0,
                applied.dropped_xattrs > 0,
                applied.entries.min(4),
                usage.inodes.min(6),
            );
            let behaviour = format!("{kinds:?}").replace(['1', '2', '3', '4', '5', '6'], "i")
                + &"e".repeat(usize::try_from(kinds.3).unwrap());
            // The same bytes again: the same tree.
            let again = Place::new();
            let second = again
                .apply(bytes)
                .expect("what was applied once can be applied");
            assert_eq!((second.implied, second.deferred), (implied, deferred));
            assert_eq!(again.tree(), place.tree());
            // And with a lower layer, which here is the layer itself.
            let finished = finish(place.root.as_fd(), Some(again.root.as_fd()), &mut applied);
            place.check();
            again.check();
            if finished.is_ok() {
                assert!(
                    !place.tree().contains("trusted.berth"),
                    "a mark is left: {}",
                    place.tree()
                );
            }
            format!("{behaviour} {}", finished.is_ok())
        }
        Err(error) => match error {
            Error::Malformed { what, .. } => what.to_owned(),
            Error::Refused { why, .. } => why.to_owned(),
            Error::Limit { what, .. } => what.to_owned(),
            Error::Entry { action, source, .. } => format!("{action} {source}"),
            Error::Read(_) => "read".to_owned(),
        },
    }
}

pub(crate) const TAR: Target = Target {
    name: "tar",
    seeds,
    run,
    change,
};

/// What a layer has by a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    File,
    Dir { opaque: bool },
    Whiteout,
}

/// What the rules of whiteouts say a sequence of entries comes to.
#[derive(Default)]
struct Model(BTreeMap<String, What>);

impl Model {
    /// Makes the way to a name; false if there is a file on it.
    fn enter(&mut self, dir: &str) -> bool {
        let mut here = String::new();
        for part in dir.split('/').filter(|part| !part.is_empty()) {
            if !here.is_empty() {
                here.push('/');
            }
            here += part;
            let next = match self.0.get(&here) {
                None => What::Dir { opaque: false },
                Some(What::Whiteout) => What::Dir { opaque: true },
                Some(What::File) => return false,
                Some(dir) => *dir,
            };
            self.0.insert(here.clone(), next);
        }
        true
    }

    fn remove(&mut self, name: &str) {
        let below = format!("{name}/");
        self.0
            .retain(|other, _| other != name && !other.starts_with(&below));
    }

    /// One entry; false if it is refused.
    fn entry(&mut self, kind: u8, dir: &str, base: &str) -> bool {
        if !self.enter(dir) {
            return false;
        }
        let name = if dir.is_empty() {
            base.to_owned()
        } else {
            format!("{dir}/{base}")
        };
        let there = self.0.get(&name).copied();
        let next = match (kind, there) {
            (b'f', _) => {
                self.remove(&name);
                What::File
            }
            (b'd', Some(What::Whiteout)) => What::Dir { opaque: true },
            (b'd', Some(dir @ What::Dir { .. })) => dir,
            (b'd', _) => What::Dir { opaque: false },
            (b'w', None) => What::Whiteout,
            (b'w', Some(What::Dir { .. })) => What::Dir { opaque: true },
            (b'w', Some(other)) => other,
            // An opaque whiteout is in the directory that it is about.
            _ => {
                if !self.enter(&name) {
                    return false;
                }
                What::Dir { opaque: true }
            }
        };
        self.0.insert(name, next);
        true
    }
}

fn found(root: &Path) -> BTreeMap<String, What> {
    let mut names = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let what = if meta.is_dir() {
                todo.push(path.clone());
                let mut value = [0; 8];
                let opaque = rustix::fs::getxattr(&path, "trusted.overlay.opaque", &mut value[..]);
                What::Dir {
                    opaque: opaque.is_ok(),
                }
            } else if meta.file_type().is_char_device() {
                What::Whiteout
            } else {
                What::File
            };
            names.insert(
                path.strip_prefix(root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned(),
                what,
            );
        }
    }
    names
}

/// Two bytes are an entry: what, and where.
fn run_whiteouts(bytes: &[u8]) -> String {
    const DIRS: [&str; 6] = ["", "a", "b", "a/a", "a/b", "a/b/c"];
    const BASES: [&str; 4] = ["a", "b", "c", "d"];
    let (mut archive, mut model, mut good) = (Vec::new(), Model::default(), true);
    for pair in bytes.chunks_exact(2).take(40) {
        let kind = b"fdwo"[usize::from(pair[0]) % 4];
        let dir = DIRS[usize::from(pair[1] & 0xf) % DIRS.len()];
        let base = BASES[usize::from(pair[1] >> 4) % BASES.len()];
        let at = if dir.is_empty() {
            String::new()
        } else {
            format!("{dir}/")
        };
        archive.extend(match kind {
            b'f' => entry(b'0', &format!("{at}{base}"), "", b""),
            b'd' => entry(b'5', &format!("{at}{base}/"), "", b""),
            b'w' => entry(b'0', &format!("{at}.wh.{base}"), "", b""),
            _ => entry(b'0', &format!("{at}{base}/.wh..wh..opq"), "", b""),
        });
        good = good && model.entry(kind, dir, base);
    }
    let place = Place::new();
    let applied = place.apply(&archive);
    assert_eq!(
        applied.is_ok(),
        good,
        "{applied:?}, and the model: {:?}",
        model.0
    );
    if !good {
        return "refused".to_owned();
    }
    assert_eq!(found(&place.dir.path().join("root")), model.0);
    let mut kinds: Vec<String> = model.0.values().map(|what| format!("{what:?}")).collect();
    kinds.sort();
    kinds
        .join(" ")
        .chars()
        .filter(|c| "FDWt".contains(*c))
        .collect()
}

pub(crate) const WHITEOUT: Target = Target {
    name: "whiteout",
    seeds: || {
        vec![
            b"f0w0d0o0".to_vec(),
            b"\x02\x01\x00\x02\x01\x12\x03\x11".to_vec(),
            vec![0, 1, 1, 2, 2, 3],
        ]
    },
    run: run_whiteouts,
    change: |rng, pool| {
        let mut bytes = rng.pick(pool).clone();
        for _ in 0..rng.below(4) {
            bytes.extend([rng.byte(), rng.byte()]);
        }
        scramble(rng, &mut bytes, pool, &[b"\0\0", b"\x02\0", b"\x03\x12"]);
        bytes.truncate(80);
        bytes
    },
};
