//! Device nodes that a container is given.

use std::path::{Path, PathBuf};

use crate::host::{HostDevice, all_devices, device_at};
use crate::model::DeviceRequest;
use crate::spec::DeviceNode;

/// The nodes asked for (a directory stands for every device below it, row F084); for a privileged container
/// all of the host's before them.
pub(super) fn resolve(requests: &[DeviceRequest], privileged: bool) -> Result<Vec<DeviceNode>, String> {
    let mut nodes = Vec::new();
    if privileged {
        let all = all_devices().map_err(|e| format!("cannot list the host's devices: {e}"))?;
        nodes.extend(all.into_iter().map(|device| {
            let path = device.path.display().to_string();
            node(device, path, "rwm")
        }));
    }
    for request in requests {
        let told = |e: std::io::Error| format!("device {}: {e}", request.host_path);
        let source = std::fs::canonicalize(&request.host_path).map_err(told)?;
        let target = match request.container_path.as_str() {
            "" => Path::new(&request.host_path),
            path => Path::new(path),
        };
        for device in device_at(&source).map_err(told)? {
            let path = match device.path.strip_prefix(&source) {
                Ok(below) if !below.as_os_str().is_empty() => target.join(below),
                _ => PathBuf::from(target),
            };
            nodes.push(node(device, path.display().to_string(), &request.permissions));
        }
    }
    Ok(nodes)
}

fn node(device: HostDevice, path: String, access: &str) -> DeviceNode {
    DeviceNode {
        path,
        kind: device.kind,
        major: device.major,
        minor: device.minor,
        mode: device.mode,
        uid: device.uid,
        gid: device.gid,
        access: access.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(host: &str, container: &str) -> Result<Vec<DeviceNode>, String> {
        let request = DeviceRequest { container_path: container.into(), host_path: host.into(), permissions: "rw".into() };
        resolve(&[request], false)
    }

    #[test]
    fn nodes_get_the_path_asked_for() {
        let nodes = ask("/dev/null", "/dev/nothing").unwrap();
        assert_eq!((nodes[0].path.as_str(), nodes[0].major, nodes[0].minor), ("/dev/nothing", 1, 3));
        assert_eq!(ask("/dev/null", "").unwrap()[0].path, "/dev/null");
        assert!(ask("/dev/nothing-here", "/dev/x").is_err());
        assert!(ask("/etc/hostname", "/dev/x").is_err());
    }
}
