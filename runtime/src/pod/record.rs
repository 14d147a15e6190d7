//! What is kept of a pod on disk.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{PodSpec, PodState};

/// How far a pod has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Resources are being acquired: found at start, it is undone.
    Creating,
    /// It was made.
    Made,
    /// Nothing is left of it but this record.
    Released,
}

/// A process of ours that outlives the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// Its start time, clock ticks since boot: a pid alone may be somebody else's by now.
    pub start_time: u64,
}

/// A scope of systemd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// Its unit name.
    pub unit: String,
    /// The slice in which it stands.
    pub slice: String,
}

/// The record of a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodRecord {
    /// What was asked for.
    pub spec: Arc<PodSpec>,
    /// How far it has come.
    pub phase: Phase,
    /// What CRI calls its state.
    pub state: PodState,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// The boot in which it was made.
    pub boot_id: String,
    /// Effective host name.
    pub hostname: String,
    /// Parent of the cgroups of pause and containers, in canonical form: under systemd the pod's scope.
    pub cgroup_parent: String,
    /// The pod's scope, where systemd makes the cgroups.
    #[serde(default)]
    pub scope: Option<Scope>,
    /// Directories on the way to the parent that Berth made, and that go with the last pod.
    pub made_parents: Vec<PathBuf>,
    /// It is counted among the pods below its parent.
    pub holds_parent: bool,
    /// Its own cgroup's directories.
    pub cgroup: Vec<String>,
    /// Where its network namespace is pinned; `None`: the host's.
    pub netns: Option<PathBuf>,
    /// Its addresses, primary first.
    pub ips: Vec<IpAddr>,
    /// What the network said.
    pub cni_result: Option<serde_json::Value>,
    /// Its pause process.
    pub pause: Option<Process>,
}
