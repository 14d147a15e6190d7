//! Device nodes of the host that a container is given.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::model::DeviceRequest;
use crate::spec::DeviceNode;

/// Directories of `/dev` whose contents are mounts of their own in every container, or none of its business.
const SKIPPED: &[&str] = &["pts", "shm", "fd", "mqueue", "console", ".lxc", ".lxd-mounts", ".udev"];

/// The nodes asked for; a directory stands for every device below it (row F084).
pub(super) fn requested(requests: &[DeviceRequest]) -> Result<Vec<DeviceNode>, String> {
    let mut nodes = Vec::new();
    for request in requests {
        if request.permissions.is_empty() || !request.permissions.bytes().all(|b| b"rwm".contains(&b)) {
            return Err(format!("device {}: permissions {:?} are not among r, w and m", request.host_path, request.permissions));
        }
        let source = fs::canonicalize(&request.host_path).map_err(|e| format!("device {}: {e}", request.host_path))?;
        let target = match request.container_path.as_str() {
            "" => PathBuf::from(&request.host_path),
            path => PathBuf::from(path),
        };
        let before = nodes.len();
        collect(&source, &target, &request.permissions, &mut nodes).map_err(|e| format!("device {}: {e}", request.host_path))?;
        if nodes.len() == before {
            return Err(format!("device {}: there is no device node", request.host_path));
        }
    }
    Ok(nodes)
}

/// Every device node of the host, for a privileged container.
pub(super) fn host() -> Result<Vec<DeviceNode>, String> {
    let mut nodes = Vec::new();
    let entries = fs::read_dir("/dev").map_err(|e| format!("cannot list /dev: {e}"))?;
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(|n| SKIPPED.contains(&n)) {
            continue;
        }
        let path = entry.path();
        // A node that vanishes meanwhile is no reason to fail.
        let _ = collect(&path, &path, "rwm", &mut nodes);
    }
    Ok(nodes)
}

fn collect(source: &Path, target: &Path, access: &str, nodes: &mut Vec<DeviceNode>) -> io::Result<()> {
    let meta = fs::symlink_metadata(source)?;
    let kind = meta.file_type();
    if kind.is_dir() {
        for entry in fs::read_dir(source)? {
            let entry = entry?;
            collect(&entry.path(), &target.join(entry.file_name()), access, nodes)?;
        }
    } else if kind.is_char_device() || kind.is_block_device() {
        let device = meta.rdev();
        nodes.push(DeviceNode {
            path: target.to_owned(),
            kind: if kind.is_char_device() { 'c' } else { 'b' },
            major: i64::from(rustix::fs::major(device)),
            minor: i64::from(rustix::fs::minor(device)),
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            access: access.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(host: &str, permissions: &str) -> Result<Vec<DeviceNode>, String> {
        requested(&[DeviceRequest {
            container_path: "/dev/x".into(),
            host_path: host.into(),
            permissions: permissions.into(),
        }])
    }

    #[test]
    fn a_node_is_described_and_nonsense_is_refused() {
        let nodes = ask("/dev/null", "rw").unwrap();
        assert_eq!((nodes[0].kind, nodes[0].major, nodes[0].minor), ('c', 1, 3));
        assert!(ask("/dev/null", "rx").is_err());
        assert!(ask("/dev/nothing-here", "r").is_err());
        assert!(ask("/etc/hostname", "r").is_err());
    }

    #[test]
    fn the_host_has_devices() {
        assert!(host().unwrap().iter().any(|n| n.path == Path::new("/dev/null")));
    }
}
