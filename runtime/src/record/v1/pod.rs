//! Pods, version 1.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{AppArmorProfile, GroupsPolicy, Resources, SeccompProfile};
use crate::model;
use crate::record::form::{choice, form};

form! {
    /// What names a pod.
    PodMetadata as model::PodMetadata {
        name: String,
        uid: String,
        namespace: String,
        attempt: u32,
    }
}

form! {
    /// What was asked for of a pod.
    PodSpec as model::PodSpec {
        metadata: PodMetadata,
        hostname: String,
        log_directory: String,
        dns: Option<DnsConfig>,
        port_mappings: Vec<PortMapping>,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        cgroup_parent: String,
        sysctls: BTreeMap<String, String>,
        namespaces: NamespaceModes,
        privileged: bool,
        seccomp: SeccompProfile,
        #[serde(default)]
        apparmor: AppArmorProfile,
        run_as_user: Option<u32>,
        run_as_group: Option<u32>,
        supplemental_groups: Vec<u32>,
        supplemental_groups_policy: GroupsPolicy,
        overhead: Option<Resources>,
        resources: Option<Resources>,
        runtime_handler: String,
    }
}

form! {
    /// Resolver settings.
    DnsConfig as model::DnsConfig {
        servers: Vec<String>,
        searches: Vec<String>,
        options: Vec<String>,
    }
}

form! {
    /// A port.
    PortMapping as model::PortMapping {
        protocol: Protocol,
        container_port: u16,
        host_port: u16,
        host_ip: String,
    }
}

choice! {
    /// Transport protocols.
    #[serde(rename_all = "lowercase")]
    Protocol as model::Protocol {
        Tcp,
        Udp,
        Sctp,
    }
}

choice! {
    /// Where a namespace comes from.
    NamespaceMode as model::NamespaceMode {
        Pod,
        Container,
        Node,
        Target,
    }
}

form! {
    /// Namespace choices.
    NamespaceModes as model::NamespaceModes {
        network: NamespaceMode,
        pid: NamespaceMode,
        ipc: NamespaceMode,
        target: String,
        #[serde(default)]
        names_host_users: bool,
    }
}

choice! {
    /// What CRI calls a pod's state.
    PodState as model::PodState {
        Ready,
        NotReady,
    }
}

/// How far a pod has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Phase {
    /// Resources are being acquired.
    Creating,
    /// It was made.
    Made,
    /// Nothing is left of it but the record.
    Released,
}

form! {
    /// A process.
    Process as model::Process {
        pid: i32,
        start_time: u64,
    }
}

/// A scope of systemd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Scope {
    /// Its unit name.
    pub(crate) unit: String,
    /// The slice in which it stands.
    pub(crate) slice: String,
}

/// A pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Pod {
    pub(crate) spec: Box<PodSpec>,
    pub(crate) phase: Phase,
    pub(crate) state: PodState,
    pub(crate) created_at: i64,
    pub(crate) boot_id: String,
    pub(crate) hostname: String,
    pub(crate) cgroup_parent: String,
    #[serde(default)]
    pub(crate) scope: Option<Scope>,
    pub(crate) made_parents: Vec<PathBuf>,
    pub(crate) holds_parent: bool,
    pub(crate) cgroup: Vec<String>,
    pub(crate) netns: Option<PathBuf>,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) cni_result: Option<serde_json::Value>,
    pub(crate) pause: Option<Process>,
}
