//! What other programs read in the archives that are accepted here: the same files, or a scanner that uses them is blind.

use std::process::{Command, Stdio};

use super::*;

/// What is known to read otherwise: Python takes the times of a GNU header for a prefix of the name.
const KNOWN: [(&str, &str); 1] = [("gnu times", "python3")];

/// Prints a line with size and name for each file.
const PYTHON: &str = "
import sys, tarfile
for entry in tarfile.open(sys.argv[1], 'r:'):
    if entry.isreg():
        print(entry.size, entry.name)
";

/// Size and name of each regular file.
type Files = Vec<(u64, String)>;

type Reader = fn(&Path) -> Files;

fn plain(name: &str) -> String {
    let parts = name.split('/').filter(|part| !matches!(*part, "" | "."));
    parts.collect::<Vec<_>>().join("/")
}

fn ours(bytes: &[u8]) -> Result<Files, Error> {
    let limits = Limits::default();
    let mut archive = tar::Archive::new(bytes, &limits);
    let mut files = Vec::new();
    while let Some(entry) = archive.next()? {
        if entry.kind == tar::Type::File {
            files.push((entry.size, plain(std::str::from_utf8(&entry.name).unwrap())));
        }
    }
    Ok(files)
}

fn run(command: &mut Command) -> String {
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

fn pythons(path: &Path) -> Files {
    let text = run(Command::new("python3").args(["-c", PYTHON]).arg(path));
    let lines = text.lines().map(|line| line.split_once(' ').unwrap());
    lines
        .map(|(size, name)| (size.parse().unwrap(), plain(name)))
        .collect()
}

/// `-rw-r--r-- 0/0  3 1970-01-01 00:00 name`
fn gnus(path: &Path) -> Files {
    let text = run(Command::new("tar")
        .args(["--numeric-owner", "--quoting-style=literal", "-tvf"])
        .arg(path)
        .env("LC_ALL", "C"));
    let mut files = Vec::new();
    // C is a contiguous file, which is one like others.
    for line in text.lines().filter(|line| line.starts_with(['-', 'C'])) {
        let mut rest = line;
        let mut words = Vec::new();
        for _ in 0..5 {
            let (word, after) = rest.split_once(' ').unwrap();
            words.push(word);
            rest = after.trim_start();
        }
        files.push((words[2].parse().unwrap(), plain(rest)));
    }
    files
}

fn has(program: &str) -> bool {
    let mut command = Command::new(program);
    let asked = command.arg("--version").stdout(Stdio::null()).status();
    let found = asked.is_ok_and(|status| status.success());
    if !found {
        eprintln!("SKIP {program} is not there to compare with");
    }
    found
}

/// An archive that ends with a file that has to be found behind whatever is before.
fn made(make: &dyn Fn(&mut Tar)) -> Tar {
    let mut tar = Tar::new();
    make(&mut tar);
    tar.file("after", b"last");
    tar
}

/// An archive that is the content of a file, or is not.
fn nested() -> Vec<u8> {
    let mut nested = Tar::new();
    nested.file("hidden", b"x");
    nested.unfinished()
}

type Corpus = Vec<(&'static str, Tar)>;

fn names() -> Corpus {
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(120));
    vec![
        (
            "plain",
            made(&|tar| {
                tar.dir("./d/").file("./d/f", b"abc");
            }),
        ),
        (
            "prefix",
            made(&|tar| {
                tar.file("f", b"abc").edit(|header| header[345] = b'p');
            }),
        ),
        (
            "gnu long",
            made(&|tar| {
                tar.gnu_long(b'L', long.as_bytes()).file("s", b"abc");
            }),
        ),
        (
            "pax long",
            made(&|tar| {
                tar.pax(&[("path", &long)]).file("s", b"abc");
            }),
        ),
        (
            "global",
            made(&|tar| {
                tar.entry(b"g", b'g', &builder::record(b"comment", b"x"));
                tar.pax(&[("path", "named")]).file("s", b"abc");
            }),
        ),
    ]
}

fn formats() -> Corpus {
    let long = "l".repeat(200);
    vec![
        (
            "contiguous",
            made(&|tar| {
                tar.entry(b"f", b'7', b"abc");
            }),
        ),
        (
            "v7",
            made(&|tar| {
                for (name, kind) in [("f", 0), ("g", b'0'), ("old/", 0)] {
                    tar.entry(name.as_bytes(), kind, b"")
                        .edit(|header| header[257..].fill(0));
                }
            }),
        ),
        (
            "gnu times",
            made(&|tar| {
                tar.file("f", b"abc").edit(|header| {
                    header[257..265].copy_from_slice(b"ustar  \0");
                    builder::octal(&mut header[345..357], 8);
                    builder::octal(&mut header[357..369], 9);
                });
            }),
        ),
        (
            "links",
            made(&|tar| {
                tar.gnu_long(b'K', long.as_bytes()).symlink("l", "x");
                tar.pax(&[("linkpath", "after")]).hard_link("h", "x");
                tar.node("n", b'3', 1, 3);
                tar.node("p", b'6', 0, 0);
            }),
        ),
    ]
}

fn sizes() -> Corpus {
    let nested = nested();
    let mut corpus = vec![
        (
            "base 256",
            made(&|tar| {
                tar.file("f", &[1; 700]).edit(|header| {
                    header[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0xbc]);
                });
            }),
        ),
        (
            "header after header",
            made(&|tar| {
                tar.pax(&[("path", "one")]);
                tar.entry(b"g", b'g', &builder::record(b"comment", b"x"));
                tar.file("two", &nested);
            }),
        ),
        (
            "path twice",
            made(&|tar| {
                tar.pax(&[("path", "one")])
                    .gnu_long(b'L', b"two")
                    .file("three", &nested);
            }),
        ),
    ];
    for (name, size) in [("size 0", 0), ("size 7", 7), ("size large", 1 << 20)] {
        corpus.push((
            name,
            made(&|tar| {
                tar.pax(&[("size", &nested.len().to_string())]);
                tar.file("outer", &nested);
                tar.edit(|header| builder::octal(&mut header[124..136], size));
            }),
        ));
    }
    for version in ["old", "0.0", "0.1", "1.0"] {
        corpus.push((
            version,
            made(&|tar| {
                tar.sparse(version, "s", &[(1000, 3), (1 << 20, 3)], 2 << 20, b"onetwo");
            }),
        ));
    }
    corpus
}

#[test]
fn others_read_the_same_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("archive.tar");
    let others: [(&str, Reader); 2] = [("python3", pythons), ("tar", gnus)];
    let others = others.into_iter().filter(|(name, _)| has(name));
    let others: Vec<_> = others.collect();
    let (mut refused, mut differing) = (Vec::new(), Vec::new());
    for (name, tar) in [names(), formats(), sizes()].into_iter().flatten() {
        let bytes = tar.finish();
        fs::write(&path, &bytes).unwrap();
        let Ok(files) = ours(&bytes) else {
            refused.push(name);
            continue;
        };
        for (other, read) in &others {
            let theirs = read(&path);
            if (theirs != files) != KNOWN.contains(&(name, *other)) {
                differing.push(format!("{name}: {files:?}, {other}: {theirs:?}"));
            }
        }
    }
    assert!(differing.is_empty(), "{differing:#?}");
    assert_eq!(refused, ["header after header", "path twice"]);
}
