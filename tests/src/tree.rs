//! Trees of files, compared in everything that a program can see of them.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};

/// What is known of a name in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// type and permissions
    pub mode: u32,
    /// user and group
    pub owner: (u32, u32),
    /// last change, seconds and nanoseconds
    pub mtime: (i64, i64),
    /// last reading; not of directories and links, which reading them changes
    pub atime: Option<(i64, i64)>,
    /// device number
    pub device: u64,
    /// bytes, of a file
    pub size: Option<u64>,
    /// content of a file, target of a link
    pub content: String,
    /// extended attributes besides `trusted.`
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// number of names
    pub links: u64,
    /// the first of its names, of a file with several
    pub twin: Option<PathBuf>,
}

/// A tree: names relative to its root.
pub type Tree = BTreeMap<PathBuf, Facts>;

/// Reads a tree, its root included.
///
/// # Errors
/// When something cannot be read.
pub fn read(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut twins: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(name) = todo.pop() {
        let path = root.join(&name);
        let facts = facts(&path, &name, &mut twins)
            .with_context(|| format!("looking at {}", path.display()))?;
        if facts.mode & 0o170_000 == 0o040_000 {
            let mut names: Vec<PathBuf> = std::fs::read_dir(&path)?
                .map(|entry| Ok(name.join(entry?.file_name())))
                .collect::<std::io::Result<_>>()?;
            names.sort();
            todo.extend(names.into_iter().rev());
        }
        tree.insert(name, facts);
    }
    // Which of the names came first depends on the order of reading only within a group, and that is fixed.
    Ok(tree)
}

fn facts(path: &Path, name: &Path, twins: &mut BTreeMap<(u64, u64), PathBuf>) -> Result<Facts> {
    let meta = std::fs::symlink_metadata(path)?;
    let kind = meta.file_type();
    let content = if kind.is_file() {
        hash(path)?
    } else if kind.is_symlink() {
        format!("{:?}", std::fs::read_link(path)?)
    } else {
        String::new()
    };
    let twin = (!kind.is_dir() && meta.nlink() > 1).then(|| {
        let id = (meta.dev(), meta.ino());
        twins.entry(id).or_insert_with(|| name.to_owned()).clone()
    });
    Ok(Facts {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        // Taken before the content was read.
        atime: (!kind.is_dir() && !kind.is_symlink()).then(|| (meta.atime(), meta.atime_nsec())),
        device: meta.rdev(),
        size: kind.is_file().then_some(meta.len()),
        content,
        xattrs: xattrs(path)?,
        links: if kind.is_dir() { 1 } else { meta.nlink() },
        twin,
    })
}

fn hash(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            let sum = hasher.finalize();
            return Ok(sum.iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hasher.update(&buffer[..length]);
    }
}

fn xattrs(path: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut list = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut list[..])?;
    let mut found = BTreeMap::new();
    for name in list[..length].split(|byte| *byte == 0) {
        if name.is_empty() || name.starts_with(b"trusted.") {
            continue;
        }
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        value.truncate(length);
        found.insert(String::from_utf8_lossy(name).into_owned(), value);
    }
    Ok(found)
}

/// The parts of a file with content, as (offset, end).
///
/// # Errors
/// When it cannot be read.
pub fn data_of(path: &Path) -> Result<Vec<(u64, u64)>> {
    use rustix::fs::SeekFrom;
    let file = std::fs::File::open(path)?;
    let mut parts = Vec::new();
    let mut at = 0;
    loop {
        let from = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Err(rustix::io::Errno::NXIO) => return Ok(parts),
            from => from?,
        };
        at = rustix::fs::seek(&file, SeekFrom::Hole(from))?;
        parts.push((from, at));
    }
}

/// Fails with a line for each difference between `left` and `right`. Of the names in `any_time` the time may differ.
///
/// # Errors
/// When they are not the same.
pub fn ensure_same(left: (&str, &Tree), right: (&str, &Tree), any_time: &[&str]) -> Result<()> {
    let mut lines = Vec::new();
    for name in left.1.keys().chain(right.1.keys()) {
        let shown = String::from_utf8_lossy(name.as_os_str().as_bytes()).into_owned();
        match (left.1.get(name), right.1.get(name)) {
            (Some(one), Some(other)) => {
                let mut other = other.clone();
                if any_time.iter().any(|any| Path::new(any) == name) {
                    other.mtime = one.mtime;
                }
                if *one != other {
                    let (a, b) = (left.0, right.0);
                    lines.push(format!("{shown:?}\n    {a}: {one:?}\n    {b}: {other:?}"));
                }
            }
            (Some(_), None) => lines.push(format!("{shown:?} is in {} only", left.0)),
            (None, Some(_)) => lines.push(format!("{shown:?} is in {} only", right.0)),
            (None, None) => {}
        }
    }
    lines.sort();
    lines.dedup();
    ensure!(
        lines.is_empty(),
        "{} differences:\n{}",
        lines.len(),
        lines.join("\n")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    /// Changes something in a tree.
    type Change = fn(&Path);

    /// Each thing that may differ is seen.
    #[test]
    fn differences_are_found() {
        let changes: [(&str, Change); 8] = [
            ("content", |dir| fs::write(dir.join("f"), "other").unwrap()),
            ("mode", |dir| {
                fs::set_permissions(dir.join("f"), fs::Permissions::from_mode(0o4755)).unwrap();
            }),
            ("time", |dir| {
                let file = fs::File::options().write(true).open(dir.join("f")).unwrap();
                file.set_modified(std::time::UNIX_EPOCH).unwrap();
            }),
            ("link", |dir| {
                fs::remove_file(dir.join("l")).unwrap();
                symlink("elsewhere", dir.join("l")).unwrap();
            }),
            ("twin", |dir| {
                fs::remove_file(dir.join("twin")).unwrap();
                fs::copy(dir.join("f"), dir.join("twin")).unwrap();
            }),
            ("xattr", |dir| {
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::setxattr(dir.join("f"), "user.x", b"1", flags).unwrap();
            }),
            ("missing", |dir| fs::remove_file(dir.join("l")).unwrap()),
            ("new", |dir| fs::write(dir.join("new"), "").unwrap()),
        ];
        let make = || {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("f"), "same").unwrap();
            fs::hard_link(dir.path().join("f"), dir.path().join("twin")).unwrap();
            symlink("target", dir.path().join("l")).unwrap();
            let of_all = rustix::fs::Timespec {
                tv_sec: 9,
                tv_nsec: 9,
            };
            let times = rustix::fs::Timestamps {
                // In the future, so that reading does not change it.
                last_access: rustix::fs::Timespec {
                    tv_sec: 4_000_000_000,
                    tv_nsec: 0,
                },
                last_modification: of_all,
            };
            for name in ["f", "l", ""] {
                let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                let path = dir.path().join(name);
                rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
            }
            dir
        };
        let (one, other) = (make(), make());
        let left = read(one.path()).unwrap();
        let compare = |right: &Tree| ensure_same(("a", &left), ("b", right), &[""]);
        compare(&read(other.path()).unwrap()).unwrap();
        for (what, change) in changes {
            let other = make();
            change(other.path());
            assert!(compare(&read(other.path()).unwrap()).is_err(), "{what}");
        }
    }
}
