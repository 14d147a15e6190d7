//! The `info` of verbose answers: JSON for people and their scripts, under the names that containerd made
//! customary (`crictl inspectp | jq .info.runtimeSpec.linux.namespaces` is in many of them; rows F105, F120,
//! F165). No value of an environment variable is in it: it may be a secret.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::node::{NetworkReport, Node};
use crate::config;
use crate::model::{
    ContainerSpec, ContainerStatus, Image, NamespaceMode, NamespaceModes, PodSpec, PodState,
    PodStatus, Resources, one_line,
};

/// The entry that holds everything about an object.
const INFO: &str = "info";

/// Bytes of it; the status itself has to fit into the message too.
const MAX_INFO: usize = 8 << 20;

/// What makes it long, in the order in which it goes: the status has the annotations and labels too.
const LONG_PARTS: [&str; 7] = [
    "/runtimeSpec/annotations",
    "/config/annotations",
    "/config/labels",
    "/imageSpec/config/Labels",
    "/runtimeSpec",
    "/config",
    "/imageSpec",
];

/// The name of this kind of runtime, where containerd names its shim.
const RUNTIME_TYPE: &str = "berth.shim.v1";

pub(super) fn pod(pod: &PodStatus) -> BTreeMap<String, String> {
    let spec = &pod.spec;
    let mut ips = pod.ips.iter().map(IpAddr::to_string);
    let metadata = &spec.metadata;
    let name = format!(
        "{}_{}_{}_{}",
        metadata.name, metadata.namespace, metadata.uid, metadata.attempt
    );
    let process = match pod.state {
        PodState::Ready => "running",
        PodState::NotReady => "stopped",
    };
    info(json!({
        "pid": pod.pause_pid.unwrap_or(0),
        "processStatus": process,
        "netNamespaceClosed": pod.netns.is_none() && spec.namespaces.network != NamespaceMode::Node,
        "problem": pod.problem,
        "runtimeHandler": spec.runtime_handler,
        "runtimeType": RUNTIME_TYPE,
        "config": pod_config(spec),
        "runtimeSpec": pod_runtime_spec(pod),
        "cniResult": pod.cni_result,
        "sandboxMetadata": {
            "Version": "v1",
            "Metadata": {
                "ID": pod.id.as_str(),
                "Name": name,
                "NetNSPath": pod.netns,
                "IP": ips.next().unwrap_or_default(),
                "AdditionalIPs": ips.collect::<Vec<_>>(),
                "RuntimeHandler": spec.runtime_handler,
                "CNIResult": pod.cni_result,
            },
        },
    }))
}

/// The pod's pause process is not made from an OCI configuration, but its namespaces can be told in that
/// form, and scripts look for the network's path here.
fn pod_runtime_spec(pod: &PodStatus) -> Value {
    let modes = &pod.spec.namespaces;
    let of_pause = |kind: &str| pod.pause_pid.map(|pid| format!("/proc/{pid}/ns/{kind}"));
    let mut namespaces = vec![json!({ "type": "mount", "path": of_pause("mnt") })];
    if modes.network != NamespaceMode::Node {
        namespaces.push(json!({ "type": "network", "path": pod.netns }));
        namespaces.push(json!({ "type": "uts", "path": of_pause("uts") }));
    }
    if modes.ipc != NamespaceMode::Node {
        namespaces.push(json!({ "type": "ipc", "path": of_pause("ipc") }));
    }
    if modes.pid == NamespaceMode::Pod {
        namespaces.push(json!({ "type": "pid", "path": of_pause("pid") }));
    }
    json!({
        "hostname": pod.spec.hostname,
        "annotations": pod.spec.annotations,
        "linux": { "namespaces": namespaces, "sysctl": pod.spec.sysctls },
    })
}

fn pod_config(spec: &PodSpec) -> Value {
    let ports = spec.port_mappings.iter().map(|port| {
        json!({
            "protocol": port.protocol.as_str(),
            "container_port": port.container_port,
            "host_port": port.host_port,
            "host_ip": port.host_ip,
        })
    });
    let dns = spec.dns.as_ref().map(
        |dns| json!({ "servers": dns.servers, "searches": dns.searches, "options": dns.options }),
    );
    json!({
        "metadata": {
            "name": spec.metadata.name,
            "uid": spec.metadata.uid,
            "namespace": spec.metadata.namespace,
            "attempt": spec.metadata.attempt,
        },
        "hostname": spec.hostname,
        "log_directory": spec.log_directory,
        "dns_config": dns,
        "port_mappings": ports.collect::<Vec<_>>(),
        "labels": spec.labels,
        "annotations": spec.annotations,
        "linux": {
            "cgroup_parent": spec.cgroup_parent,
            "sysctls": spec.sysctls,
            "overhead": spec.overhead.as_ref().map(resources),
            "resources": spec.resources.as_ref().map(resources),
            "security_context": {
                "namespace_options": namespaces(&spec.namespaces),
                "privileged": spec.privileged,
                "run_as_user": spec.run_as_user,
                "run_as_group": spec.run_as_group,
                "supplemental_groups": spec.supplemental_groups,
                "seccomp": format!("{:?}", spec.seccomp),
                "apparmor": format!("{:?}", spec.apparmor),
            },
        },
    })
}

pub(super) fn container(
    container: &ContainerStatus,
    runtime_spec: Option<Value>,
) -> BTreeMap<String, String> {
    info(json!({
        "sandboxID": container.pod.as_str(),
        "pid": container.pid.unwrap_or(0),
        "snapshotKey": container.id.as_str(),
        "snapshotter": "overlayfs",
        "runtimeType": RUNTIME_TYPE,
        "config": container_config(&container.spec),
        "runtimeSpec": runtime_spec,
    }))
}

fn container_config(spec: &ContainerSpec) -> Value {
    let envs = spec.envs.iter().map(|(key, _)| json!({ "key": key }));
    let mounts = spec.mounts.iter().map(|mount| {
        json!({
            "container_path": mount.container_path,
            "host_path": mount.host_path,
            "readonly": mount.readonly,
            "propagation": format!("{:?}", mount.propagation),
            "selinux_relabel": mount.selinux_relabel,
            "mount_options": mount.options,
        })
    });
    let devices = spec.devices.iter().map(|device| {
        json!({
            "container_path": device.container_path,
            "host_path": device.host_path,
            "permissions": device.permissions,
        })
    });
    json!({
        "metadata": { "name": spec.metadata.name, "attempt": spec.metadata.attempt },
        "image": { "image": spec.image, "user_specified_image": spec.user_specified_image },
        "command": spec.command,
        "args": spec.args,
        "working_dir": spec.working_dir,
        "envs": envs.collect::<Vec<_>>(),
        "mounts": mounts.collect::<Vec<_>>(),
        "devices": devices.collect::<Vec<_>>(),
        "labels": spec.labels,
        "annotations": spec.annotations,
        "log_path": spec.log_path,
        "stdin": spec.stdin,
        "stdin_once": spec.stdin_once,
        "tty": spec.tty,
        "stop_signal": spec.stop_signal.as_ref().map(|signal| signal.name.clone()),
        "linux": {
            "resources": resources(&spec.resources),
            "security_context": container_security(spec),
        },
    })
}

fn container_security(spec: &ContainerSpec) -> Value {
    json!({
        "privileged": spec.privileged,
        "namespace_options": namespaces(&spec.namespaces),
        "capabilities": {
            "add_capabilities": spec.capabilities.add,
            "drop_capabilities": spec.capabilities.drop,
            "add_ambient_capabilities": spec.capabilities.add_ambient,
        },
        "run_as_user": spec.user.uid,
        "run_as_group": spec.user.gid,
        "run_as_username": spec.user.username,
        "supplemental_groups": spec.user.supplemental_groups,
        "supplemental_groups_policy": format!("{:?}", spec.user.policy),
        "readonly_rootfs": spec.read_only_root,
        "no_new_privs": spec.no_new_privs,
        "masked_paths": spec.masked_paths,
        "readonly_paths": spec.readonly_paths,
        "seccomp": format!("{:?}", spec.seccomp),
        "apparmor": format!("{:?}", spec.apparmor),
    })
}

fn namespaces(modes: &NamespaceModes) -> Value {
    let name = |mode: NamespaceMode| format!("{mode:?}").to_uppercase();
    json!({
        "network": name(modes.network),
        "pid": name(modes.pid),
        "ipc": name(modes.ipc),
        "target_id": modes.target,
    })
}

fn resources(resources: &Resources) -> Value {
    let hugepages = resources.hugepages.iter();
    let hugepages = hugepages.map(|h| json!({ "page_size": h.page_size, "limit": h.limit }));
    json!({
        "cpu_period": resources.cpu_period,
        "cpu_quota": resources.cpu_quota,
        "cpu_shares": resources.cpu_shares,
        "memory_limit_in_bytes": resources.memory_limit,
        "memory_swap_limit_in_bytes": resources.memory_swap_limit,
        "oom_score_adj": resources.oom_score_adj,
        "cpuset_cpus": resources.cpuset_cpus,
        "cpuset_mems": resources.cpuset_mems,
        "hugepage_limits": hugepages.collect::<Vec<_>>(),
        "unified": resources.unified,
    })
}

pub(super) fn image(image: &Image) -> BTreeMap<String, String> {
    let config = &image.config;
    let volumes = config.volumes.iter().map(|v| (v.clone(), json!({})));
    let keys = config
        .env
        .iter()
        .map(|entry| entry.split('=').next().unwrap_or_default());
    let mut platform = image.platform.split('/');
    let mut part = || platform.next().unwrap_or_default();
    info(json!({
        "chainID": image.chain.last().map(ToString::to_string),
        "layers": image.chain.len(),
        "imageSpec": {
            "os": part(),
            "architecture": part(),
            "variant": part(),
            "config": {
                "User": config.user,
                "Env": keys.collect::<Vec<_>>(),
                "Entrypoint": config.entrypoint,
                "Cmd": config.cmd,
                "WorkingDir": config.working_dir,
                "Volumes": volumes.collect::<Map<_, _>>(),
                "StopSignal": config.stop_signal,
                "Labels": config.labels,
            },
        },
    }))
}

pub(super) fn node(node: &Node, network: &NetworkReport) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("config".to_owned(), node_config(node).to_string()),
        ("cniconfig".to_owned(), network.config.to_string()),
        (
            "lastCNILoadStatus".to_owned(),
            one_line(&network.last_load).into_owned(),
        ),
        ("notices".to_owned(), json!((node.notices)()).to_string()),
    ])
}

/// Every setting under its own name in camel case, and beside them those that tools of the Kubernetes
/// world look up under containerd's names (critest: `stateDir`; kubeadm: `sandboxImage`).
fn node_config(node: &Node) -> Value {
    let config = node.config.get();
    let mut all = Map::new();
    for (key, value, _) in &config.origins {
        insert(&mut all, key, setting(value));
    }
    let known = json!({
        "rootDir": config.root,
        "stateDir": config.state,
        "sandboxImage": "built-in",
        "maxContainerLogLineSize": config.log_line_max,
        "cgroupDriver": node.cgroup_driver.as_str(),
        "systemdCgroup": node.cgroup_driver == super::CgroupDriver::Systemd,
        "enableSelinux": false,
        "streamServerAddress": config.streaming_address.ip().to_string(),
        "streamServerPort": config.streaming_address.port().to_string(),
        "cni": { "binDirs": config.cni_bin_dirs, "confDir": config.cni_conf_dir },
        "registry": { "configPath": config.registry_hosts_dir },
    });
    if let Value::Object(known) = known {
        all.extend(known);
    }
    Value::Object(all)
}

fn insert(into: &mut Map<String, Value>, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            into.insert(camel_case(key), value);
        }
        Some((table, rest)) => {
            let table = into.entry(camel_case(table)).or_insert_with(|| json!({}));
            if let Value::Object(table) = table {
                insert(table, rest, value);
            }
        }
    }
}

fn setting(value: &config::Value) -> Value {
    match value {
        config::Value::Text(text) => json!(text),
        config::Value::Number(number) => json!(number),
        config::Value::List(list) => json!(list),
    }
}

fn camel_case(key: &str) -> String {
    let mut name = String::with_capacity(key.len());
    for part in key.split('_') {
        match part.chars().next() {
            Some(first) if !name.is_empty() => {
                name.push(first.to_ascii_uppercase());
                name.push_str(&part[first.len_utf8()..]);
            }
            _ => name.push_str(part),
        }
    }
    name
}

/// Everything about an object. Where that would not fit into a message beside its status, the parts that
/// can be long are null, and `leftOut` names them.
fn info(mut value: Value) -> BTreeMap<String, String> {
    let mut text = value.to_string();
    let mut left_out = Vec::new();
    for part in LONG_PARTS {
        if text.len() <= MAX_INFO {
            break;
        }
        if let Some(part_value) = value.pointer_mut(part).filter(|v| !v.is_null()) {
            *part_value = Value::Null;
            left_out.push(part);
            value["leftOut"] = json!(left_out);
            text = value.to_string();
        }
    }
    BTreeMap::from([(INFO.to_owned(), text)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_named_instead() {
        let long = "\u{1}".repeat(2 << 20);
        let (config, spec) = (
            json!({ "annotations": { "k": long }, "x": 1 }),
            json!({ "annotations": { "k": long } }),
        );
        let told = info(json!({ "pid": 7, "config": config, "runtimeSpec": spec }));
        let told: Value = serde_json::from_str(&told[INFO]).unwrap();
        assert_eq!((&told["pid"], &told["config"]["x"]), (&json!(7), &json!(1)));
        let left_out = ["/runtimeSpec/annotations", "/config/annotations"];
        assert_eq!(told["leftOut"], json!(left_out));
        let whole = json!({ "pid": 7, "config": { "annotations": { "k": "v".repeat(1 << 20) } } });
        assert_eq!(info(whole.clone())[INFO], whole.to_string());
    }

    #[test]
    fn keys_become_nested_camel_case() {
        let mut all = Map::new();
        insert(&mut all, "images.registry_hosts_dir", json!("/x"));
        insert(&mut all, "images.max_concurrent_layers", json!(3));
        insert(&mut all, "log_level", json!("info"));
        assert_eq!(
            Value::Object(all),
            json!({
                "images": { "registryHostsDir": "/x", "maxConcurrentLayers": 3 },
                "logLevel": "info",
            })
        );
    }
}
