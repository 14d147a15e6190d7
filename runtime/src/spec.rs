//! From a request to everything that makes a container: the OCI configuration for libcontainer, the process
//! for the worker, the cgroup with its limits. Pure: values in, values out, no file is read.

mod capabilities;
mod cgroup_path;
mod devices;
mod error;
mod mounts;
mod oci;
mod plan;
mod process;
pub mod resources;
pub mod seccomp;
pub mod signals;
pub mod users;

use std::path::{Path, PathBuf};

use shim_protocol::monitor::OomSource;
use shim_protocol::worker;

pub use capabilities::{DEFAULT as DEFAULT_CAPABILITIES, parse as parse_capability};
pub use cgroup_path::{DEFAULT_PARENT, cgroupfs_parent, leaves, slice_path};
pub use error::Error;
pub use mounts::normalise;
pub use plan::{container, pause};
pub use process::exec;
pub use resources::{Place, Update, update};

use crate::host::{Cpuset, HostDevice, HostFacts, SourcePropagation};
use crate::id::{ContainerId, PodId};
use crate::model::{
    ContainerSpec, ContainerUser, DeviceRequest, ImageConfig, MountRequest, NamespaceMode, PodSpec,
    ReadyPod, SeccompProfile,
};

/// A mount of the request, looked at on the host.
#[derive(Clone, Debug)]
pub struct ResolvedMount {
    /// As asked for.
    pub request: MountRequest,
    /// The source without symlinks, absolute.
    pub source: PathBuf,
    /// Propagation of the mount that the source lies on.
    pub propagation: SourcePropagation,
    /// Nobody but this container has it: what links and devices name may be made in it.
    pub own: bool,
}

/// A device node to make in the container.
#[derive(Clone, Debug)]
pub struct DeviceNode {
    /// Path in the container.
    pub path: String,
    /// `b` or `c`.
    pub kind: char,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Subset of `rwm`.
    pub access: String,
    /// Somebody named it; else it comes with the privilege.
    pub asked: bool,
}

impl DeviceNode {
    /// A node that was asked for, as [`crate::host::device_at`] found it; of a directory, each keeps its place.
    pub fn requested(request: &DeviceRequest, found: &HostDevice) -> Self {
        let path = match found.below.to_string_lossy().as_ref() {
            "" => request.container_path.clone(),
            below => format!("{}/{below}", request.container_path.trim_end_matches('/')),
        };
        Self {
            asked: true,
            ..Self::new(path, found, &request.permissions)
        }
    }

    /// A node of the host's, for a privileged container.
    pub fn of_host(found: &HostDevice) -> Self {
        Self::new(found.path.to_string_lossy().into_owned(), found, "rwm")
    }

    fn new(path: String, found: &HostDevice, access: &str) -> Self {
        Self {
            path,
            kind: found.kind,
            major: found.major,
            minor: found.minor,
            mode: found.mode,
            uid: found.uid,
            gid: found.gid,
            access: access.to_owned(),
            asked: false,
        }
    }
}

/// Everything that decides what a container will be.
#[derive(Clone, Copy, Debug)]
pub struct ContainerInput<'a> {
    /// Its id.
    pub id: &'a ContainerId,
    /// Its pod.
    pub pod: &'a ReadyPod,
    /// What was asked for.
    pub spec: &'a ContainerSpec,
    /// What the image says.
    pub image: &'a ImageConfig,
    /// Credentials, resolved in the container's root ([`users::resolve`]).
    pub user: &'a ContainerUser,
    /// The machine.
    pub facts: &'a HostFacts,
    /// Where the worker will attach the root file system.
    pub rootfs: &'a Path,
    /// The request's mounts.
    pub mounts: &'a [ResolvedMount],
    /// The request's device nodes; for a privileged container all of the host's.
    pub devices: &'a [DeviceNode],
    /// PID namespace of the container that is shared with; with `pid: Target` only.
    pub target_pidns: Option<&'a Path>,
    /// cgroup v1: the cpuset of the pod's cgroup.
    pub cpuset: Option<&'a Cpuset>,
    /// AppArmor profile to change to; empty: none to set.
    pub apparmor: &'a str,
}

/// Path of a container's cgroup below each hierarchy's root.
pub fn container_cgroup(pod: &ReadyPod, id: &ContainerId) -> String {
    format!("{}/{id}", pod.cgroup_parent)
}

impl ContainerInput<'_> {
    pub(crate) fn cgroup_path(&self) -> String {
        container_cgroup(self.pod, self.id)
    }

    /// Row X049: private on v2, the host's for a privileged container and on v1.
    pub(crate) fn cgroup_namespace(&self) -> bool {
        self.facts.cgroup.is_v2() && !self.spec.privileged
    }

    /// The kernel kills everything in it when its first process ends.
    pub(crate) fn own_pid_namespace(&self) -> bool {
        self.spec.namespaces.pid == NamespaceMode::Container
    }
}

/// Everything that is needed to make a container.
#[derive(Clone, Debug)]
pub struct ContainerPlan {
    /// `config.json` for libcontainer. Its `process` is for libcontainer's own checks and for people to
    /// read; what is executed is [`ContainerPlan::process`], whose bytes JSON cannot carry.
    pub oci: serde_json::Value,
    /// The first process.
    pub process: worker::Process,
    /// The cgroup.
    pub cgroup: worker::Cgroup,
    /// Where out-of-memory kills are counted.
    pub oom: OomSource,
    /// Cgroup directories to kill when the first process ends; empty: the kernel does it.
    pub kill_cgroup: Vec<String>,
    /// The container's own cgroup directories.
    pub leaves: Vec<String>,
    /// The filter to load; a privileged container has none.
    pub seccomp: SeccompProfile,
    /// The `oom_score_adj` asked for could not be given: the runtime may not go that low.
    pub oom_score_clamped: bool,
    /// Names of capabilities in the request that are none: somebody else's text.
    pub unknown_capabilities: Vec<String>,
}

/// Everything that decides what a pause process will be.
#[derive(Clone, Copy, Debug)]
pub struct PauseInput<'a> {
    /// The pod's id.
    pub id: &'a PodId,
    /// What was asked for.
    pub spec: &'a PodSpec,
    /// The pod's cgroup parent in canonical form.
    pub cgroup_parent: &'a str,
    /// The machine.
    pub facts: &'a HostFacts,
    /// cgroup v1: the cpuset of the pod's cgroup.
    pub cpuset: Option<&'a Cpuset>,
    /// AppArmor profile to change to; empty: none to set.
    pub apparmor: &'a str,
}

/// Everything that is needed to start a pause process.
#[derive(Clone, Debug)]
pub struct PausePlan {
    /// Credentials and the rest.
    pub process: worker::Process,
    /// The cgroup.
    pub cgroup: worker::Cgroup,
    /// The filter to load.
    pub seccomp: SeccompProfile,
}

#[cfg(test)]
mod tests;
