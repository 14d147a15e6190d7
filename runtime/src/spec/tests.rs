//! Every field of a request, seen in the plan that comes of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use insta::assert_json_snapshot;
use serde_json::json;

use super::*;
use crate::host::CgroupFacts;
use crate::model::{
    CapabilityRequest, ContainerMetadata, ExecRequest, HugepageLimit, Kind, Kinded as _,
    MountPropagation, NamespaceModes, PodMetadata, Resources, UserRequest,
};

mod case;
mod process;

use case::{Case, parsed, shown};

#[test]
fn an_ordinary_container_on_v2() {
    let plan = Case::v2().plan().unwrap();
    assert_json_snapshot!("ordinary_v2", shown(&plan));
}

#[test]
fn an_ordinary_container_on_v1() {
    let plan = Case::v1().plan().unwrap();
    assert_json_snapshot!("ordinary_v1", shown(&plan));
}

#[test]
fn a_privileged_container_on_v2() {
    let mut case = Case::v2().privileged();
    case.devices.push(DeviceNode {
        asked: true,
        path: "/dev/sda".into(),
        kind: 'b',
        major: 8,
        minor: 0,
        mode: 0o660,
        uid: 0,
        gid: 6,
        access: "rwm".into(),
    });
    let plan = case.plan().unwrap();
    assert_json_snapshot!("privileged_v2", shown(&plan));
}

#[test]
fn a_privileged_container_on_v1_has_its_own_cgroup_writable() {
    let case = Case::v1().privileged();
    let memory = case.mounts_on("/sys/fs/cgroup/memory");
    assert!(
        memory[0]["options"]
            .as_array()
            .unwrap()
            .contains(&json!("rw")),
        "{memory:?}"
    );
    let plan = case.plan().unwrap();
    assert_eq!(plan.oci["linux"]["readonlyPaths"], json!([]));
    assert!(
        plan.cgroup
            .writes
            .iter()
            .any(|write| write.file.ends_with("devices.allow") && write.value == "a")
    );
}

#[test]
fn a_busy_request() {
    let mut case = Case::v2();
    case.spec.command = vec!["sh".into(), "-c".into()];
    case.spec.args = vec!["echo $X".into()];
    case.spec.tty = true;
    case.spec.working_dir = "/app/../data/".into();
    case.spec.read_only_root = true;
    case.spec.no_new_privs = true;
    case.spec.capabilities = CapabilityRequest {
        add: vec!["net_admin".into()],
        drop: vec!["ALL".into()],
        add_ambient: vec![],
    };
    case.spec.resources = Resources {
        cpu_shares: 512,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        memory_limit: 64 << 20,
        oom_score_adj: 987,
        cpuset_cpus: "0".into(),
        hugepages: vec![HugepageLimit {
            page_size: "2MB".into(),
            limit: 0,
        }],
        unified: BTreeMap::from([("memory.oom.group".into(), "1".into())]),
        ..Resources::default()
    };
    case.devices.push(DeviceNode {
        asked: true,
        path: "/dev/fuse".into(),
        kind: 'c',
        major: 10,
        minor: 229,
        mode: 0o666,
        uid: 0,
        gid: 0,
        access: "rw".into(),
    });
    case.mount("/etc/hosts", |_| {});
    case.mount("/dev/termination-log", |_| {});
    case.mount("data/in", |mount| {
        mount.request.options = vec!["noexec".into(), "rnodev".into()]
    });
    case.mount("/data", |mount| mount.request.readonly = true);
    let plan = case.plan().unwrap();
    parsed(&plan);
    assert_json_snapshot!("busy_v2", shown(&plan));
}

#[test]
fn nothing_is_injected_that_nobody_asked_for() {
    for case in [
        Case::v1(),
        Case::v2(),
        Case::v1().privileged(),
        Case::v2().privileged(),
    ] {
        let spec = parsed(&case.plan().unwrap());
        let process = spec.process().as_ref().unwrap();
        assert!(process.no_new_privileges().is_none(), "false is not absent");
        assert!(process.capabilities().is_none() && process.rlimits().is_none());
        assert!(process.apparmor_profile().is_none() && process.selinux_label().is_none());
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.resources().is_none() && linux.seccomp().is_none());
        assert!(linux.uid_mappings().is_none() && linux.sysctl().is_none());
        assert!(spec.hostname().is_none() && spec.hooks().is_none());
    }
}

#[test]
fn v1_never_mounts_a_cgroup_file_system() {
    for case in [Case::v1(), Case::v1().privileged()] {
        let plan = case.plan().unwrap();
        assert!(
            plan.oci["mounts"]
                .as_array()
                .unwrap()
                .iter()
                .all(|mount| mount["type"] != "cgroup")
        );
        assert!(
            plan.oci["linux"]["namespaces"]
                .as_array()
                .unwrap()
                .iter()
                .all(|ns| ns["type"] != "cgroup")
        );
    }
}

#[test]
fn without_a_cgroup_namespace_v2_is_bound() {
    let case = Case::v2().privileged();
    let mount = &case.mounts_on("/sys/fs/cgroup")[0];
    assert_eq!(
        (&mount["type"], &mount["source"]),
        (&json!("bind"), &json!("/sys/fs/cgroup"))
    );
}

#[test]
fn namespaces_of_pids() {
    let pid = |mode, target: Option<&str>| {
        let mut case = Case::v2();
        case.spec.namespaces.pid = mode;
        case.target = target.map(PathBuf::from);
        case.plan().map(|plan| {
            let list = plan.oci["linux"]["namespaces"].as_array().unwrap().clone();
            (
                list.into_iter().find(|ns| ns["type"] == "pid"),
                plan.kill_cgroup.is_empty(),
            )
        })
    };
    assert_eq!(
        pid(NamespaceMode::Container, None).unwrap(),
        (Some(json!({"type": "pid"})), true)
    );
    assert_eq!(pid(NamespaceMode::Node, None).unwrap(), (None, false));
    let joined = |path: &str| Some(json!({"type": "pid", "path": path}));
    assert_eq!(
        pid(NamespaceMode::Pod, None).unwrap(),
        (joined("/run/berth/pods/p/pid"), false)
    );
    assert_eq!(
        pid(NamespaceMode::Target, Some("/t")).unwrap(),
        (joined("/t"), false)
    );
    assert!(pid(NamespaceMode::Target, None).is_err());
    let mut case = Case::v2();
    case.pod.pidns = None;
    case.spec.namespaces.pid = NamespaceMode::Pod;
    assert!(case.plan().is_err());
}

#[test]
fn a_pod_on_the_hosts_namespaces_joins_none() {
    let mut case = Case::v2();
    (case.pod.netns, case.pod.ipcns, case.pod.utsns) = (None, None, None);
    let plan = case.plan().unwrap();
    assert_eq!(
        plan.oci["linux"]["namespaces"],
        json!([{"type": "mount"}, {"type": "pid"}, {"type": "cgroup"}])
    );
}

#[test]
fn a_privileged_container_needs_a_privileged_pod() {
    let mut case = Case::v2();
    case.spec.privileged = true;
    assert!(matches!(case.plan(), Err(Error::Namespace(_))));
}

#[test]
fn a_privileged_container_ignores_filters_and_masks_but_not_a_read_only_root() {
    let mut case = Case::v2().privileged();
    case.spec.seccomp = SeccompProfile::Localhost("/x.json".into());
    case.spec.read_only_root = true;
    let plan = case.plan().unwrap();
    assert_eq!(plan.seccomp, SeccompProfile::Unconfined);
    assert_eq!(plan.oci["linux"]["maskedPaths"], json!([]));
    assert_eq!(plan.oci["root"]["readonly"], json!(true));
}

#[test]
fn masked_paths_are_exactly_the_requests() {
    let mut case = Case::v2();
    case.spec.masked_paths.clear();
    case.spec.readonly_paths.clear();
    let linux = &case.plan().unwrap().oci["linux"];
    assert_eq!(
        (&linux["maskedPaths"], &linux["readonlyPaths"]),
        (&json!([]), &json!([]))
    );
}
