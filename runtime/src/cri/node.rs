//! What the border tells of the node itself. The daemon fills it in: the border knows managers, not the
//! network or the monitors.

use std::fmt;
use std::sync::Arc;

use super::convert::Abilities;
use crate::config::Config;

/// Who makes cgroups, once `auto` is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Directories, made by Berth.
    Cgroupfs,
    /// Scopes and slices, made by systemd.
    Systemd,
}

impl CgroupDriver {
    /// The name in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }
}

/// Whether a part works, and if not, why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// It works.
    pub ready: bool,
    /// Why not, in one word of camel case; empty when it works.
    pub reason: String,
    /// Why not, in a sentence; empty when it works.
    pub message: String,
}

impl Condition {
    /// It works.
    pub fn ready() -> Self {
        Self {
            ready: true,
            ..Self::default()
        }
    }
}

/// The network, for Status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NetworkReport {
    /// Whether pods can be given a network.
    pub condition: Condition,
    /// The configuration in force, for people.
    pub config: serde_json::Value,
    /// What the last attempt to load a configuration gave; `OK` or an error.
    pub last_load: String,
}

type Ask<T> = Box<dyn Fn() -> T + Send + Sync>;

/// The node, as far as the RPCs that do not touch a manager need it.
pub struct Node {
    /// The configuration, for verbose Status.
    pub config: Arc<Config>,
    /// Who makes cgroups.
    pub cgroup_driver: CgroupDriver,
    /// What requests may ask for, now.
    pub abilities: Ask<Abilities>,
    /// Names of the runtime handlers besides the default one, which has the empty name.
    pub handlers: Vec<String>,
    /// Whether containers can be made.
    pub runtime: Ask<Condition>,
    /// Whether pods can be given a network.
    pub network: Ask<NetworkReport>,
    /// What was weakened or limited on this machine, in sentences, for verbose Status.
    pub notices: Ask<Vec<String>>,
    /// Takes the address range for pods that the kubelet tells.
    pub pod_cidr: Box<dyn Fn(&str) + Send + Sync>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("cgroup_driver", &self.cgroup_driver)
            .field("abilities", &(self.abilities)())
            .field("handlers", &self.handlers)
            .finish_non_exhaustive()
    }
}
