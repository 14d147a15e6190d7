//! The RPCs that tell of the node itself.

mod sandboxes;

use std::sync::{Arc, Mutex};

use berth_cri_api::v1;

use super::{runtime_config, status, update_runtime_config, version};
use crate::config::{Config, Live};
use crate::cri::{Abilities, CgroupDriver, Condition, NetworkReport, Node};

fn node(network: NetworkReport, cidr: Arc<Mutex<String>>) -> Node {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "state = \"/run/other\"\n").unwrap();
    Node {
        config: Arc::new(Live::new(Arc::new(
            Config::load(Some(file.path()), &[]).unwrap(),
        ))),
        cgroup_driver: CgroupDriver::Cgroupfs,
        abilities: Box::new(|| Abilities {
            mount_options: true,
            ..Abilities::default()
        }),
        handlers: vec!["berth".into()],
        runtime: Box::new(Condition::ready),
        network: Box::new(move || network.clone()),
        notices: Box::new(|| vec!["swap is off".into()]),
        pod_cidr: Box::new(move |range| range.clone_into(&mut cidr.lock().unwrap())),
    }
}

fn status_of(network: NetworkReport, verbose: bool) -> v1::StatusResponse {
    let request = v1::StatusRequest { verbose };
    status::handle(&node(network, Arc::default()), &request)
}

#[test]
fn the_kubelet_starts_with_this_version() {
    let version = version::handle();
    assert_eq!(version.version, "0.1.0");
    assert_eq!(version.runtime_name, "berth");
    assert_eq!(version.runtime_api_version, "v1");
    assert_eq!(version.runtime_version.split('.').count(), 3);
}

#[test]
fn a_missing_network_is_a_condition_and_features_are_told_truthfully() {
    let network = NetworkReport {
        condition: Condition {
            message: "no configuration in /etc/cni/net.d".into(),
            ..Condition::default()
        },
        ..NetworkReport::default()
    };
    let out = status_of(network, false);
    let conditions = out.status.unwrap().conditions;
    let told: Vec<_> = conditions
        .iter()
        .map(|c| (c.r#type.as_str(), c.status, c.reason.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("RuntimeReady", true, ""),
            ("NetworkReady", false, "NetworkPluginNotReady"),
        ]
    );
    let names: Vec<_> = out
        .runtime_handlers
        .iter()
        .map(|h| h.name.as_str())
        .collect();
    assert_eq!(names, ["", "berth"]);
    for handler in &out.runtime_handlers {
        let features = handler.features.unwrap();
        assert!(!features.user_namespaces && !features.recursive_read_only_mounts);
    }
    let features = out.features.unwrap();
    assert!(features.supplemental_groups_policy && features.mount_options);
    assert!(!features.user_namespaces_host_network);
    assert!(out.info.is_empty());
}

#[test]
fn verbose_status_has_what_tools_look_up() {
    let network = NetworkReport {
        condition: Condition::ready(),
        config: serde_json::json!({ "name": "pods" }),
        last_load: "OK".into(),
    };
    let info = status_of(network, true).info;
    let config: serde_json::Value = serde_json::from_str(&info["config"]).unwrap();
    assert_eq!(config["stateDir"], "/run/other");
    assert_eq!(config["rootDir"], "/var/lib/berth");
    assert_eq!(config["cgroupDriver"], "cgroupfs");
    assert!(config["maxContainerLogLineSize"].is_number());
    assert_eq!(config["network"]["cniConfDir"], "/etc/cni/net.d");
    assert_eq!(info["lastCNILoadStatus"], "OK");
    assert!(info["cniconfig"].contains("pods") && info["notices"].contains("swap"));
}

#[test]
fn the_cgroup_driver_is_always_told() {
    let mut node = node(NetworkReport::default(), Arc::default());
    let driver = |node: &Node| runtime_config::handle(node).linux.unwrap().cgroup_driver;
    assert_eq!(driver(&node), v1::CgroupDriver::Cgroupfs as i32);
    node.cgroup_driver = CgroupDriver::Systemd;
    assert_eq!(driver(&node), v1::CgroupDriver::Systemd as i32);
}

#[test]
fn the_range_of_pods_is_handed_on() {
    let cidr = Arc::new(Mutex::new(String::new()));
    let node = node(NetworkReport::default(), cidr.clone());
    update_runtime_config::handle(&node, v1::UpdateRuntimeConfigRequest::default());
    assert_eq!(*cidr.lock().unwrap(), "");
    let request = v1::UpdateRuntimeConfigRequest {
        runtime_config: Some(v1::RuntimeConfig {
            network_config: Some(v1::NetworkConfig {
                pod_cidr: "10.1.0.0/24,fd00::/64".into(),
            }),
        }),
    };
    update_runtime_config::handle(&node, request);
    assert_eq!(*cidr.lock().unwrap(), "10.1.0.0/24,fd00::/64");
}
