//! Containers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{
    AppArmorProfile, CapabilityRequest, GroupsPolicy, ImageId, NamespaceModes, Resources,
    SeccompProfile, SignalName,
};
use crate::id::{ContainerId, PodId};

/// Name of a container in its pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerMetadata {
    /// Container name.
    pub name: String,
    /// Restart count.
    pub attempt: u32,
}

/// Everything asked for of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerSpec {
    /// Its name.
    pub metadata: ContainerMetadata,
    /// The image as the request names it (mostly an id).
    pub image: String,
    /// The image as the pod's author named it; may be empty.
    pub user_specified_image: String,
    /// Replaces the image's entry point.
    pub command: Vec<String>,
    /// Replaces the image's command.
    pub args: Vec<String>,
    /// Working directory; empty: the image's, else `/`.
    pub working_dir: String,
    /// Environment; values are bytes.
    pub envs: Vec<(String, Vec<u8>)>,
    /// Mounts.
    pub mounts: Vec<MountRequest>,
    /// Device nodes.
    pub devices: Vec<DeviceRequest>,
    /// Echoed, filtered by.
    pub labels: BTreeMap<String, String>,
    /// Echoed.
    pub annotations: BTreeMap<String, String>,
    /// Log file relative to the pod's log directory; empty: no log.
    pub log_path: String,
    /// Keep standard input open.
    pub stdin: bool,
    /// Close it when the first attached client leaves.
    pub stdin_once: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// Limits.
    pub resources: Resources,
    /// Added and dropped capabilities.
    pub capabilities: CapabilityRequest,
    /// All capabilities, devices and no masks.
    pub privileged: bool,
    /// Namespace choices; only `pid` may differ from the pod's.
    pub namespaces: NamespaceModes,
    /// User and group.
    pub user: UserRequest,
    /// Mount the root file system read-only.
    pub read_only_root: bool,
    /// Set `no_new_privs`.
    pub no_new_privs: bool,
    /// Exactly these paths are masked.
    pub masked_paths: Vec<String>,
    /// Exactly these paths are read-only.
    pub readonly_paths: Vec<String>,
    /// System call filter.
    pub seccomp: SeccompProfile,
    /// AppArmor profile.
    pub apparmor: AppArmorProfile,
    /// Signal for StopContainer; `None`: the image's, else SIGTERM.
    pub stop_signal: Option<SignalName>,
}

/// A process of Berth's that outlives the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// Its start time, clock ticks since boot: a pid alone may be somebody else's by now.
    pub start_time: u64,
}

/// User and groups asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserRequest {
    /// Numeric user; excludes `username`.
    pub uid: Option<u32>,
    /// Numeric group.
    pub gid: Option<u32>,
    /// User by name (or digits); empty: none.
    pub username: String,
    /// Further groups.
    pub supplemental_groups: Vec<u32>,
    /// How they combine with the image's.
    pub policy: GroupsPolicy,
}

/// Credentials of a container's first process, as resolved in its root file system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups, sorted; mostly with the primary one.
    pub groups: Vec<u32>,
    /// Home directory from `/etc/passwd`, else `/` (`/root` for uid 0).
    pub home: String,
}

/// Propagation of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountPropagation {
    /// `rprivate`.
    #[default]
    Private,
    /// `rslave`.
    HostToContainer,
    /// `rshared`.
    Bidirectional,
}

/// A mount asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountRequest {
    /// Path in the container, as sent.
    pub container_path: String,
    /// Path on the host, as sent (echoed even when it is a symlink).
    pub host_path: String,
    /// Read-only.
    pub readonly: bool,
    /// Ask for a relabel (echoed; refused where labels are needed).
    pub selinux_relabel: bool,
    /// Propagation.
    pub propagation: MountPropagation,
    /// Extra options: `noexec`, `nodev`, `nosuid` (row R101).
    pub options: Vec<String>,
}

/// A device node asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceRequest {
    /// Path in the container.
    pub container_path: String,
    /// Path on the host.
    pub host_path: String,
    /// Subset of `rwm`.
    pub permissions: String,
}

/// State of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Made, nothing executed.
    Created,
    /// Running.
    Running,
    /// Over.
    Exited,
    /// Cannot be told.
    Unknown,
}

/// Why a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// Exit code 0.
    Completed,
    /// Any other exit code.
    Error,
    /// The kernel's OOM killer.
    OomKilled,
    /// It was never executed.
    StartError,
    /// It was lost.
    Unknown,
}

impl ExitReason {
    /// The text that the kubelet knows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OomKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::Unknown => "Unknown",
        }
    }
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerExit {
    /// Exit code; 128 + signal; 128 for StartError; 255 when it was lost.
    pub code: i32,
    /// Nanoseconds since the Unix epoch.
    pub finished_at: i64,
    /// Why.
    pub reason: ExitReason,
    /// In words, else empty.
    pub message: String,
}

/// A container as it is now.
#[derive(Clone, Debug)]
pub struct ContainerStatus {
    /// Its id.
    pub id: ContainerId,
    /// Its pod.
    pub pod: PodId,
    /// What was asked for.
    pub spec: Arc<ContainerSpec>,
    /// State.
    pub state: ContainerState,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// Nanoseconds since the Unix epoch; 0 in `Created`.
    pub started_at: i64,
    /// How it ended, in `Exited`.
    pub exit: Option<ContainerExit>,
    /// Why its record cannot be read: little else is known of it.
    pub problem: Option<String>,
    /// Id of its image.
    pub image_id: ImageId,
    /// Human name of its image: first tag, else digest, else id. Never empty.
    pub image_name: String,
    /// Digest reference of its image, else its id.
    pub image_ref: String,
    /// Absolute path of its log; empty: none.
    pub log_path: String,
    /// Credentials of its first process.
    pub user: ContainerUser,
    /// Limits in force.
    pub resources: Resources,
    /// The signal that stops it.
    pub stop_signal: SignalName,
    /// Pid of its first process while it lives.
    pub pid: Option<i32>,
}

/// Which containers to list; all conditions must hold.
#[derive(Clone, Debug, Default)]
pub struct ContainerFilter {
    /// Id or unique prefix.
    pub id: String,
    /// Id or unique prefix of the pod.
    pub pod: String,
    /// State.
    pub state: Option<ContainerState>,
    /// Labels that must be equal.
    pub labels: BTreeMap<String, String>,
}

/// A command to run in a container.
#[derive(Clone, Debug)]
pub struct ExecRequest {
    /// Never empty.
    pub command: Vec<String>,
    /// Give it a terminal.
    pub tty: bool,
    /// Kill it and everything it started after this time.
    pub timeout: Option<std::time::Duration>,
}
