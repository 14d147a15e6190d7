//! `/proc/self/mountinfo` (proc(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The parts of a mountinfo line that somebody needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Which part of the file system is mounted.
    pub root: PathBuf,
    /// Where.
    pub mount_point: PathBuf,
    /// The optional fields: `shared:N`, `master:N`, `unbindable`.
    pub optional: Vec<String>,
    /// File system type.
    pub fs_type: String,
    /// Options of the file system (for cgroup v1: its controllers).
    pub super_options: Vec<String>,
}

/// How mounts travel to and from a mount (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourcePropagation {
    /// Neither way.
    #[default]
    Private,
    /// Received from a peer group.
    Slave,
    /// Both ways.
    Shared,
}

/// Parses a mountinfo text; lines that make no sense are left out.
pub fn parse_mountinfo(text: &str) -> Vec<MountEntry> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<MountEntry> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let root = unescape(left.next()?);
    let mount_point = unescape(left.next()?);
    let optional = left.skip(1).map(str::to_owned).collect();
    let mut right = right.split(' ');
    let fs_type = right.next()?.to_owned();
    let super_options = right.nth(1)?.split(',').map(str::to_owned).collect();
    Some(MountEntry {
        root,
        mount_point,
        optional,
        fs_type,
        super_options,
    })
}

/// mountinfo writes space, tab, newline and backslash as `\ooo`.
fn unescape(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let octal = bytes
            .get(at + 1..at + 4)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

/// The propagation of the mount that `path` (absolute, without symlinks) lies on.
pub fn propagation_of(mounts: &[MountEntry], path: &Path) -> SourcePropagation {
    // The longest mount point wins, and of equal ones the last: it lies on top.
    let on = mounts
        .iter()
        .filter(|mount| path.starts_with(&mount.mount_point))
        .max_by_key(|mount| mount.mount_point.components().count());
    let Some(mount) = on else {
        return SourcePropagation::Private;
    };
    if mount
        .optional
        .iter()
        .any(|field| field.starts_with("shared:"))
    {
        SourcePropagation::Shared
    } else if mount
        .optional
        .iter()
        .any(|field| field.starts_with("master:"))
    {
        SourcePropagation::Slave
    } else {
        SourcePropagation::Private
    }
}

/// [`propagation_of`] for our own mount namespace as it is now.
///
/// # Errors
/// When mountinfo cannot be read.
pub fn source_propagation(path: &Path) -> std::io::Result<SourcePropagation> {
    let text = String::from_utf8_lossy(&std::fs::read("/proc/self/mountinfo")?).into_owned();
    Ok(propagation_of(&parse_mountinfo(&text), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
25 1 0:23 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 25 0:40 / /srv/with\\040space rw master:4 propagate_from:2 - tmpfs none rw,size=1k
31 25 0:41 /sub /srv/private rw - xfs /dev/sdb rw
32 31 0:42 / /srv/private rw shared:9 - tmpfs none rw
broken line";

    #[test]
    fn lines_are_parsed_and_broken_ones_are_left_out() {
        let mounts = parse_mountinfo(TEXT);
        assert_eq!(mounts.len(), 4);
        assert_eq!(mounts[1].mount_point, Path::new("/srv/with space"));
        assert_eq!(mounts[1].optional, ["master:4", "propagate_from:2"]);
        assert_eq!(mounts[2].root, Path::new("/sub"));
    }

    #[test]
    fn the_topmost_mount_decides_the_propagation() {
        let mounts = parse_mountinfo(TEXT);
        let of = |path: &str| propagation_of(&mounts, Path::new(path));
        assert_eq!(of("/etc"), SourcePropagation::Shared);
        assert_eq!(of("/srv/with space/a"), SourcePropagation::Slave);
        assert_eq!(of("/srv/private/a"), SourcePropagation::Shared);
        assert_eq!(of("/srv/privateer"), SourcePropagation::Shared);
        assert_eq!(
            propagation_of(&mounts[2..3], Path::new("/srv/private")),
            SourcePropagation::Private
        );
    }
}
