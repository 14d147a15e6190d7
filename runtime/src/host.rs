//! Facts about the machine, probed once at start.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// What the spec builder, Status and RuntimeConfig need to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFacts {
    /// Kernel release, e.g. (6, 18).
    pub kernel: (u32, u32),
    /// The control groups.
    pub cgroup: CgroupFacts,
    /// AppArmor is enabled.
    pub apparmor: bool,
    /// SELinux is enabled.
    pub selinux: bool,
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
