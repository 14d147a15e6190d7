//! Containers, version 2.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shim_protocol::worker;

use crate::id::PodId;
use crate::model::{self, Digest};
use crate::record::form::{Bytes, form};
use crate::record::v1::{
    AppArmorProfile, CapabilityRequest, ContainerExit, ContainerMetadata, ContainerState,
    ContainerUser, DeviceRequest, MountRequest, NamespaceModes, Process, Resources, SeccompProfile,
    SignalName, UserRequest,
};

form! {
    /// What was asked for of a container.
    ContainerSpec as model::ContainerSpec {
        metadata: ContainerMetadata,
        image: String,
        user_specified_image: String,
        command: Vec<String>,
        args: Vec<String>,
        working_dir: String,
        envs: Vec<(String, Bytes)>,
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
        apparmor: AppArmorProfile,
        stop_signal: Option<SignalName>,
    }
}

form! {
    /// Sets of capabilities, bit N is capability N.
    Capabilities as worker::Capabilities {
        bounding: u64,
        effective: u64,
        inheritable: u64,
        permitted: u64,
        ambient: u64,
    }
}

form! {
    /// What was executed.
    Command as worker::Process {
        args: Vec<Bytes>,
        env: Vec<Bytes>,
        cwd: Bytes,
        uid: u32,
        gid: u32,
        groups: Vec<u32>,
        capabilities: Option<Capabilities>,
        no_new_privs: bool,
        oom_score_adj: Option<i32>,
        terminal: bool,
        rows: u32,
        columns: u32,
        umask: Option<u32>,
        apparmor: String,
        selinux: String,
    }
}

/// A container.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    pub(crate) monitor: Option<Process>,
    pub(crate) process: Command,
    pub(crate) seccomp: String,
    pub(crate) cgroup_path: String,
    pub(crate) leaves: Vec<String>,
}
