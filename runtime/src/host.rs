//! Facts about the machine, probed once at start.

mod devices;
mod mounts;
mod probe;
mod selinux;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub use devices::{HostDevice, all_devices, device_at};
pub use mounts::{
    MountEntry, SourcePropagation, parse_mountinfo, propagation_of, source_propagation,
};
pub use probe::Error;
pub use selinux::{Selinux, SelinuxMode};

/// What the spec builder, Status and RuntimeConfig need to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// Kernel release, e.g. (6, 18).
    pub kernel: (u32, u32),
    /// The control groups.
    pub cgroup: CgroupFacts,
    /// AppArmor is enabled.
    pub apparmor: bool,
    /// SELinux.
    pub selinux: Selinux,
    /// Our own bounding set: what "privileged" can give at most (bit N is capability N).
    pub capabilities: u64,
    /// Huge page sizes as CRI names them (`2MB`, `1GB`).
    pub hugepage_sizes: Vec<String>,
    /// The lowest `oom_score_adj` we may set (without CAP_SYS_RESOURCE: our own).
    pub min_oom_score_adj: i32,
    /// systemd is PID 1.
    pub systemd: bool,
    /// This boot (`/proc/sys/kernel/random/boot_id`).
    pub boot_id: String,
    /// The host's name.
    pub hostname: String,
}

/// Where control groups are mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CgroupFacts {
    /// v1, perhaps with a v2 hierarchy beside it (hybrid).
    V1 {
        /// Controller (or `name=systemd`) to mount point; co-mounted controllers share one.
        hierarchies: BTreeMap<String, PathBuf>,
        /// The v2 mount point and the controllers it has, in hybrid mode.
        unified: Option<(PathBuf, Vec<String>)>,
        /// Swap is accounted (`memory.memsw.limit_in_bytes` exists).
        swap: bool,
    },
    /// v2 alone.
    V2 {
        /// Mount point.
        root: PathBuf,
        /// Controllers of the root.
        controllers: Vec<String>,
        /// Swap is accounted.
        swap: bool,
    },
}

/// The CPUs and memory nodes of a cgroup. On v1 a new cgroup has none and takes no process until it is given some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpuset {
    /// CPUs, list format.
    pub cpus: String,
    /// Memory nodes, list format.
    pub mems: String,
}

impl HostFacts {
    /// Looks at the machine. Reads `/proc` and `/sys` only.
    ///
    /// # Errors
    /// When `/proc` cannot be read or no cgroup hierarchy is mounted.
    pub fn probe() -> Result<Self, Error> {
        probe::probe()
    }
}

#[cfg(test)]
impl HostFacts {
    /// A machine for tests without root: what is done to cgroups is done to directories below `dir`.
    pub(crate) fn for_tests(dir: &std::path::Path) -> Self {
        let root = dir.join("cgroup");
        std::fs::create_dir_all(&root).unwrap();
        Self {
            kernel: (6, 12),
            cgroup: CgroupFacts::V2 {
                root,
                controllers: Vec::new(),
                swap: false,
            },
            apparmor: false,
            selinux: Selinux::default(),
            capabilities: 0,
            hugepage_sizes: Vec::new(),
            min_oom_score_adj: -1000,
            systemd: false,
            boot_id: "this boot".to_owned(),
            hostname: "node".to_owned(),
        }
    }
}

impl CgroupFacts {
    /// Is this v2 alone?
    pub fn is_v2(&self) -> bool {
        matches!(self, Self::V2 { .. })
    }

    /// The mount points of the hierarchies that carry controllers, each once: the one of v2, or all of
    /// v1 without the named ones and the v2 one of hybrid mode (libcontainer joins neither).
    pub fn controller_mounts(&self) -> Vec<PathBuf> {
        match self {
            Self::V2 { root, .. } => vec![root.clone()],
            Self::V1 { hierarchies, .. } => {
                let mut mounts: Vec<_> = hierarchies
                    .iter()
                    .filter(|(name, _)| !name.starts_with("name="))
                    .map(|(_, mount)| mount.clone())
                    .collect();
                mounts.sort();
                mounts.dedup();
                mounts
            }
        }
    }

    /// The mount points of all hierarchies, named ones and hybrid mode's v2 too, each once.
    pub fn all_mounts(&self) -> Vec<PathBuf> {
        let mut mounts = match self {
            Self::V2 { root, .. } => vec![root.clone()],
            Self::V1 {
                hierarchies,
                unified,
                ..
            } => hierarchies
                .values()
                .cloned()
                .chain(unified.iter().map(|(root, _)| root.clone()))
                .collect(),
        };
        mounts.sort();
        mounts.dedup();
        mounts
    }

    /// Where a controller's files are: its v1 hierarchy, or the v2 root.
    pub fn mount_of(&self, controller: &str) -> Option<PathBuf> {
        match self {
            Self::V1 { hierarchies, .. } => hierarchies.get(controller).cloned(),
            Self::V2 { root, .. } => Some(root.clone()),
        }
    }

    /// Is swap accounted?
    pub fn swap(&self) -> bool {
        match self {
            Self::V1 { swap, .. } | Self::V2 { swap, .. } => *swap,
        }
    }
}
