//! Containers, version 1.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use shim_protocol::worker;

use super::{
    AppArmorProfile, CapabilityRequest, GroupsPolicy, NamespaceModes, Process, Resources,
    SeccompProfile, SignalName,
};
use crate::id::PodId;
use crate::model::{self, Digest};
use crate::record::form::{Numbers, choice, form};

form! {
    /// Name of a container in its pod.
    ContainerMetadata as model::ContainerMetadata {
        name: String,
        attempt: u32,
    }
}

form! {
    /// What was asked for of a container.
    ContainerSpec as model::ContainerSpec {
        metadata: ContainerMetadata,
        image: String,
        user_specified_image: String,
        command: Vec<String>,
        args: Vec<String>,
        working_dir: String,
        envs: Vec<(String, Numbers)>,
        mounts: Vec<MountRequest>,
        devices: Vec<DeviceRequest>,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
        log_path: String,
        stdin: bool,
        stdin_once: bool,
        tty: bool,
        resources: Resources,
        capabilities: CapabilityRequest,
        privileged: bool,
        namespaces: NamespaceModes,
        user: UserRequest,
        read_only_root: bool,
        no_new_privs: bool,
        masked_paths: Vec<String>,
        readonly_paths: Vec<String>,
        seccomp: SeccompProfile,
        #[serde(default)]
        apparmor: AppArmorProfile,
        stop_signal: Option<SignalName>,
    }
}

form! {
    /// User and groups asked for.
    #[derive(Default)]
    #[serde(default)]
    UserRequest as model::UserRequest {
        uid: Option<u32>,
        gid: Option<u32>,
        username: String,
        supplemental_groups: Vec<u32>,
        policy: GroupsPolicy,
    }
}

form! {
    /// Credentials.
    #[derive(Default)]
    ContainerUser as model::ContainerUser {
        uid: u32,
        gid: u32,
        groups: Vec<u32>,
        home: String,
    }
}

choice! {
    /// Propagation of a mount.
    MountPropagation as model::MountPropagation {
        Private,
        HostToContainer,
        Bidirectional,
    }
}

form! {
    /// A mount.
    MountRequest as model::MountRequest {
        container_path: String,
        host_path: String,
        readonly: bool,
        selinux_relabel: bool,
        propagation: MountPropagation,
        options: Vec<String>,
    }
}

form! {
    /// A device node.
    DeviceRequest as model::DeviceRequest {
        container_path: String,
        host_path: String,
        permissions: String,
    }
}

choice! {
    /// State of a container.
    ContainerState as model::ContainerState {
        Created,
        Running,
        Exited,
        Unknown,
    }
}

choice! {
    /// Why a container ended.
    ExitReason as model::ExitReason {
        Completed,
        Error,
        OomKilled,
        StartError,
        Unknown,
    }
}

form! {
    /// How a container ended.
    ContainerExit as model::ContainerExit {
        code: i32,
        finished_at: i64,
        reason: ExitReason,
        message: String,
    }
}

/// A container; read only.
#[derive(Debug, Deserialize)]
pub(crate) struct Container {
    pub(crate) spec: Box<ContainerSpec>,
    pub(crate) pod: PodId,
    pub(crate) creating: bool,
    pub(crate) state: ContainerState,
    pub(crate) created_at: i64,
    pub(crate) started_at: i64,
    pub(crate) exit: Option<ContainerExit>,
    pub(crate) boot_id: String,
    pub(crate) image_id: Digest,
    pub(crate) image_name: String,
    pub(crate) image_ref: String,
    pub(crate) chain: Vec<Digest>,
    pub(crate) log_path: String,
    pub(crate) user: ContainerUser,
    pub(crate) resources: Resources,
    pub(crate) stop_signal: SignalName,
    pub(crate) init: Option<Process>,
    #[serde(default)]
    pub(crate) monitor: Option<Process>,
    /// A message of the shim's protocol in hexadecimal digits.
    #[serde(deserialize_with = "from_hex")]
    pub(crate) process: worker::Process,
    pub(crate) seccomp: String,
    pub(crate) cgroup_path: String,
    pub(crate) leaves: Vec<String>,
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<worker::Process, D::Error> {
    use serde::de::Error;
    let text = String::deserialize(deserializer)?;
    let digits = text.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).map_err(D::Error::custom)?;
        u8::from_str_radix(pair, 16).map_err(D::Error::custom)
    });
    let bytes = digits.collect::<Result<Vec<u8>, _>>()?;
    prost::Message::decode(bytes.as_slice()).map_err(D::Error::custom)
}
