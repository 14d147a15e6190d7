//! Device nodes that a container is given.

use std::path::Path;

use crate::host::{all_devices, device_at};
use crate::model::DeviceRequest;
use crate::spec::DeviceNode;

/// The nodes asked for (a directory stands for every device below it, row F084); for a privileged container
/// all of the host's before them.
pub(super) fn resolve(
    requests: &[DeviceRequest],
    privileged: bool,
) -> Result<Vec<DeviceNode>, String> {
    let mut nodes = Vec::new();
    if privileged {
        let all = all_devices().map_err(|e| format!("cannot list the host's devices: {e}"))?;
        nodes.extend(all.iter().map(DeviceNode::of_host));
    }
    for request in requests {
        let found = device_at(Path::new(&request.host_path))
            .map_err(|e| format!("device {}: {e}", request.host_path))?;
        nodes.extend(
            found
                .iter()
                .map(|device| DeviceNode::requested(request, device)),
        );
    }
    Ok(nodes)
}
