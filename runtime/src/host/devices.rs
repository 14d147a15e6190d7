//! Device nodes of the host: those asked for, and all of them for a privileged container.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How many entries of `/dev` are looked at, at most.
const MAX_NODES: usize = 20_000;

/// A device node as it is on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// Its path.
    pub path: PathBuf,
    /// Its path below the directory that was asked for; empty when it was asked for itself.
    pub below: PathBuf,
    /// `b` or `c`.
    pub kind: char,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The device nodes that `path` stands for: itself, what a symlink leads to, or all nodes below a
/// directory but for terminals, their multiplexer and the console, which a container has of its own. Blocking.
///
/// # Errors
/// When there is nothing, or it is no device and no directory.
pub fn device_at(path: &Path) -> io::Result<Vec<HostDevice>> {
    let resolved = std::fs::canonicalize(path)?;
    let mut nodes = Vec::new();
    if resolved.is_dir() {
        walk_dev(&resolved, &mut nodes)?;
    } else {
        nodes.extend(node(&resolved, &resolved)?);
    }
    if nodes.is_empty() {
        let text = format!(
            "{} is neither a device nor a directory with devices",
            path.display()
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(nodes)
}

/// All device nodes below `/dev` that a privileged container is given. Left out: what the container
/// has of its own (terminals' multiplexer, console, shared memory, message queues). Blocking.
///
/// # Errors
/// When `/dev` cannot be listed.
pub fn all_devices() -> io::Result<Vec<HostDevice>> {
    let mut nodes = Vec::new();
    walk_dev(Path::new("/dev"), &mut nodes)?;
    Ok(nodes)
}

/// All nodes of a directory that may be a `/dev`.
fn walk_dev(dev: &Path, nodes: &mut Vec<HostDevice>) -> io::Result<()> {
    let own = ["pts", "shm", "mqueue", "fd", "console", "ptmx"].map(|name| dev.join(name));
    walk(dev, dev, nodes, &|path| own.iter().any(|own| path == own))
}

fn walk(
    root: &Path,
    dir: &Path,
    nodes: &mut Vec<HostDevice>,
    skip: &dyn Fn(&Path) -> bool,
) -> io::Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(dir)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if skip(&path) || nodes.len() >= MAX_NODES {
            continue;
        }
        // A node may vanish while we look: hot-unplug is no reason to fail.
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() {
            match walk(root, &path, nodes, skip) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        } else if (kind.is_char_device() || kind.is_block_device())
            && let Ok(Some(device)) = node(root, &path)
        {
            nodes.push(device);
        }
    }
    Ok(())
}

fn node(root: &Path, path: &Path) -> io::Result<Option<HostDevice>> {
    let meta = std::fs::symlink_metadata(path)?;
    let kind = match meta.file_type() {
        kind if kind.is_char_device() => 'c',
        kind if kind.is_block_device() => 'b',
        _ => return Ok(None),
    };
    Ok(Some(HostDevice {
        path: path.to_owned(),
        below: path
            .strip_prefix(root)
            .map(Path::to_owned)
            .unwrap_or_default(),
        kind,
        major: rustix::fs::major(meta.rdev()),
        minor: rustix::fs::minor(meta.rdev()),
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_a_character_device_and_a_file_is_none() {
        let null = device_at(Path::new("/dev/null")).unwrap();
        assert_eq!((null[0].kind, null[0].major, null[0].minor), ('c', 1, 3));
        assert_eq!(null[0].below, Path::new(""));
        let dir = device_at(Path::new("/dev")).unwrap();
        assert!(dir.iter().any(|node| node.below == Path::new("null")));
        assert!(!dir.iter().any(|node| node.below == Path::new("ptmx")));
        assert!(device_at(Path::new("/etc/passwd")).is_err());
        assert!(device_at(Path::new("/no/such/device")).is_err());
    }

    #[test]
    fn all_devices_leave_out_what_a_container_has_of_its_own() {
        let all = all_devices().unwrap();
        assert!(all.iter().any(|node| node.path == Path::new("/dev/null")));
        assert!(!all.iter().any(|node| node.path.starts_with("/dev/pts")));
        assert!(!all.iter().any(|node| node.path == Path::new("/dev/ptmx")));
    }
}
