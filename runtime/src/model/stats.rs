//! What pods and containers use.

use std::path::PathBuf;
use std::sync::Arc;

use super::{ContainerSpec, ContainerState, FsUsage, PodSpec};
use crate::id::{ContainerId, PodId};

/// One line of a pressure file (Documentation/accounting/psi.rst).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// Microseconds since the cgroup exists.
    pub total: u64,
    /// Per cent of the last 10 seconds.
    pub avg10: f64,
    /// Per cent of the last 60 seconds.
    pub avg60: f64,
    /// Per cent of the last 300 seconds.
    pub avg300: f64,
}

/// A pressure file.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// At least one task could not go on.
    pub some: Stall,
    /// No task could go on; zeros where the kernel does not tell.
    pub full: Stall,
}

/// CPU time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuUsage {
    /// Nanoseconds since the start.
    pub nanoseconds: u64,
    /// Nanoseconds per second between two readings; `None`: there is only one.
    pub nano_cores: Option<u64>,
    /// Waiting for a CPU; `None`: the kernel does not tell.
    pub pressure: Option<Pressure>,
}

/// Memory, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MemoryUsage {
    /// Everything that is charged.
    pub usage: u64,
    /// The same without the file pages that were not used lately.
    pub working_set: u64,
    /// What is left below the limit; `None`: there is no limit.
    pub available: Option<u64>,
    /// Anonymous memory.
    pub rss: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that needed the disk.
    pub major_page_faults: u64,
    /// Waiting for memory; `None`: the kernel does not tell.
    pub pressure: Option<Pressure>,
}

/// Swap, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwapUsage {
    /// What is swapped out.
    pub usage: u64,
    /// What is left below the limit; `None`: there is no limit.
    pub available: Option<u64>,
}

/// What a cgroup uses, with everything below it. A part is `None` where its controller is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CgroupUsage {
    /// When it was read, nanoseconds since the Unix epoch.
    pub at: i64,
    /// CPU.
    pub cpu: Option<CpuUsage>,
    /// Memory.
    pub memory: Option<MemoryUsage>,
    /// Swap.
    pub swap: Option<SwapUsage>,
    /// Waiting for disks; `None`: the kernel does not tell.
    pub io: Option<Pressure>,
}

/// Traffic of an interface since it exists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceUsage {
    /// Its name.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Errors in receiving.
    pub rx_errors: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Errors in sending.
    pub tx_errors: u64,
}

/// Traffic of a pod, the loopback left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkUsage {
    /// When it was read, nanoseconds since the Unix epoch.
    pub at: i64,
    /// The interface that the pod's address is on.
    pub default: InterfaceUsage,
    /// All others.
    pub others: Vec<InterfaceUsage>,
}

/// A container to be measured.
#[derive(Clone, Debug)]
pub struct ContainerSubject {
    /// Its id.
    pub id: ContainerId,
    /// Its pod.
    pub pod: PodId,
    /// What was asked for.
    pub spec: Arc<ContainerSpec>,
    /// State.
    pub state: ContainerState,
    /// Path of its cgroup below each hierarchy's root.
    pub cgroup: String,
}

impl ContainerSubject {
    /// Does it have a process, if only one that waits for the start?
    pub fn lives(&self) -> bool {
        matches!(
            self.state,
            ContainerState::Created | ContainerState::Running
        )
    }
}

/// What a container uses.
#[derive(Clone, Debug)]
pub struct ContainerStats {
    /// Which.
    pub subject: ContainerSubject,
    /// Its cgroup; `None`: it is over.
    pub cgroup: Option<CgroupUsage>,
    /// Its writable layer; `None`: not added up yet.
    pub writable: Option<FsUsage>,
}

/// Where a pod's use is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodCgroup {
    /// In a cgroup of the pod's own, path below each hierarchy's root.
    Own(String),
    /// Nowhere: its parent is shared with other pods, and the sum of pause's cgroup, which this is, and of
    /// those of the containers has to do.
    Shared(String),
}

/// A ready pod to be measured.
#[derive(Clone, Debug)]
pub struct PodSubject {
    /// Its id.
    pub id: PodId,
    /// What was asked for.
    pub spec: Arc<PodSpec>,
    /// Where its use is counted.
    pub cgroup: PodCgroup,
    /// Its pause process.
    pub pause: Option<i32>,
    /// Where its network namespace is pinned; `None`: the host's.
    pub netns: Option<PathBuf>,
}

/// What a pod uses.
#[derive(Clone, Debug)]
pub struct PodStats {
    /// Which.
    pub subject: PodSubject,
    /// All of the pod, pause included.
    pub cgroup: CgroupUsage,
    /// How many processes and threads it has; `None`: the kernel does not count them.
    pub processes: Option<u64>,
    /// Its traffic; `None`: it has no network of its own.
    pub network: Option<NetworkUsage>,
    /// Its running containers.
    pub containers: Vec<ContainerStats>,
}
