//! RuntimeConfig (rows R046, F166).

use berth_cri_api::v1::{self, LinuxRuntimeConfiguration, RuntimeConfigResponse};

use crate::cri::node::{CgroupDriver, Node};

/// The message is always there: systemd is 0, so its absence would say something else.
pub(super) fn handle(node: &Node) -> RuntimeConfigResponse {
    let driver = match node.cgroup_driver {
        CgroupDriver::Systemd => v1::CgroupDriver::Systemd,
        CgroupDriver::Cgroupfs => v1::CgroupDriver::Cgroupfs,
    };
    RuntimeConfigResponse {
        linux: Some(LinuxRuntimeConfiguration {
            cgroup_driver: driver.into(),
        }),
    }
}
