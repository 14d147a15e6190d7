//! UpdateRuntimeConfig (rows R042, F167). Always succeeds: the kubelet tells, it does not ask.

use berth_cri_api::v1::{UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse};

use crate::cri::node::Node;

pub(super) fn handle(
    node: &Node,
    request: UpdateRuntimeConfigRequest,
) -> UpdateRuntimeConfigResponse {
    let config = request.runtime_config.unwrap_or_default();
    let pod_cidr = config.network_config.unwrap_or_default().pod_cidr;
    if !pod_cidr.is_empty() {
        (node.pod_cidr)(&pod_cidr);
    }
    UpdateRuntimeConfigResponse {}
}
