//! Version (row R012).

use berth_cri_api::v1::VersionResponse;

/// The protocol between kubelet and runtime. Not ours, and not that of the interface: the kubelet does not
/// start when it is anything else (row G001).
const PROTOCOL: &str = "0.1.0";

pub(super) fn handle() -> VersionResponse {
    VersionResponse {
        version: PROTOCOL.to_owned(),
        runtime_name: "berth".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    }
}
