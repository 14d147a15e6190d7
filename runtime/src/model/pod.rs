//! Pod sandboxes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::{AppArmorProfile, GroupsPolicy, Resources, SeccompProfile};
use crate::id::PodId;

/// The four values that name a sandbox; unique among living ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodMetadata {
    /// Pod name.
    pub name: String,
    /// Pod UID.
    pub uid: String,
    /// Pod namespace.
    pub namespace: String,
    /// How often the sandbox was made anew.
    pub attempt: u32,
}

/// Everything asked for of a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSpec {
    /// Its name.
    pub metadata: PodMetadata,
    /// Host name; empty: the host's.
    pub hostname: String,
    /// Directory for the containers' logs; empty: no logs.
    pub log_directory: String,
    /// Resolver settings; `None`: the host's.
    pub dns: Option<DnsConfig>,
    /// Ports, also those without a host port.
    pub port_mappings: Vec<PortMapping>,
    /// Echoed, filtered by.
    pub labels: BTreeMap<String, String>,
    /// Echoed.
    pub annotations: BTreeMap<String, String>,
    /// Cgroup under which the pod's cgroups go; empty: the runtime's default.
    pub cgroup_parent: String,
    /// Kernel parameters, dotted names.
    pub sysctls: BTreeMap<String, String>,
    /// Namespace choices.
    pub namespaces: NamespaceModes,
    /// The sandbox may hold privileged containers.
    pub privileged: bool,
    /// Filter of the pause process.
    pub seccomp: SeccompProfile,
    /// AppArmor profile of the pause process.
    pub apparmor: AppArmorProfile,
    /// User of the pause process.
    pub run_as_user: Option<u32>,
    /// Group of the pause process.
    pub run_as_group: Option<u32>,
    /// Further groups of the pause process.
    pub supplemental_groups: Vec<u32>,
    /// How they combine.
    pub supplemental_groups_policy: GroupsPolicy,
    /// RuntimeClass overhead (informational).
    pub overhead: Option<Resources>,
    /// Sum of the containers' resources (informational).
    pub resources: Option<Resources>,
    /// Which runtime handler; empty: the default.
    pub runtime_handler: String,
}

/// Resolver settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsConfig {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// `search` words.
    pub searches: Vec<String>,
    /// `options` words.
    pub options: Vec<String>,
}

/// A container port and perhaps a host port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port in the pod.
    pub container_port: u16,
    /// Port on the host; 0: not published.
    pub host_port: u16,
    /// Host address; empty: all.
    pub host_ip: String,
}

/// Transport protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Lower-case name, as CNI wants it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Where a namespace comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NamespaceMode {
    /// One for the pod.
    #[default]
    Pod,
    /// One for each container.
    Container,
    /// The host's.
    Node,
    /// That of another container.
    Target,
}

/// Namespace choices of a pod or container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceModes {
    /// Network: pod or node.
    pub network: NamespaceMode,
    /// Processes: any.
    pub pid: NamespaceMode,
    /// IPC: pod or node.
    pub ipc: NamespaceMode,
    /// Container whose PID namespace is shared; with `pid: Target` only.
    pub target: String,
    /// The request names the host's user namespace; the answer then does too (both mean the same).
    pub names_host_users: bool,
}

/// State of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodState {
    /// Its isolation is intact.
    Ready,
    /// It is not.
    NotReady,
}

/// A sandbox as it is now.
#[derive(Clone, Debug)]
pub struct PodStatus {
    /// Its id.
    pub id: PodId,
    /// What was asked for.
    pub spec: Arc<PodSpec>,
    /// State.
    pub state: PodState,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// Addresses, primary first; empty for the host's network.
    pub ips: Vec<IpAddr>,
    /// Where the network namespace is pinned; `None` for the host's.
    pub netns: Option<PathBuf>,
    /// Pid of the pause process while it lives.
    pub pause_pid: Option<i32>,
    /// Why its record cannot be read: little else is known of it.
    pub problem: Option<String>,
    /// CNI result as JSON, for verbose status.
    pub cni_result: Option<serde_json::Value>,
}

/// Which sandboxes to list; all conditions must hold.
#[derive(Clone, Debug, Default)]
pub struct PodFilter {
    /// Id or unique prefix.
    pub id: String,
    /// State.
    pub state: Option<PodState>,
    /// Labels that must be equal.
    pub labels: BTreeMap<String, String>,
}

/// What a container needs to know of the sandbox it goes into.
#[derive(Clone, Debug)]
pub struct ReadyPod {
    /// Its id.
    pub id: PodId,
    /// What was asked for.
    pub spec: Arc<PodSpec>,
    /// Pinned network namespace; `None`: the host's.
    pub netns: Option<PathBuf>,
    /// Pinned IPC namespace; `None`: the host's.
    pub ipcns: Option<PathBuf>,
    /// Pinned UTS namespace; `None`: the host's.
    pub utsns: Option<PathBuf>,
    /// Pinned PID namespace of pause; `None`: pause runs in the host's.
    pub pidns: Option<PathBuf>,
    /// Effective host name.
    pub hostname: String,
    /// Mount point of the pod's own bounded place for `hosts`, `hostname` and `resolv.conf`.
    pub files: PathBuf,
    /// Where `/dev/shm` comes from: a mount point of the pod's, or the host's when IPC is the node's.
    pub shm: PathBuf,
    /// The pod's cgroup parent in canonical form (cgroupfs: "/kubepods/…").
    pub cgroup_parent: String,
    /// Set when the pod is stopped: long work for a container of it is given up then.
    pub closing: Arc<AtomicBool>,
}
