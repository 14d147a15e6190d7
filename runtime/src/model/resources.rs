//! Resource limits as CRI's `LinuxContainerResources` gives them.

use std::collections::BTreeMap;

/// Limits of a container. Zero or empty means "not given" everywhere, as in CRI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// CFS period in microseconds.
    pub cpu_period: i64,
    /// CFS quota in microseconds for each period; -1 is unlimited.
    pub cpu_quota: i64,
    /// CPU shares, 2 to 262144 (v1 scale).
    pub cpu_shares: i64,
    /// Memory limit in bytes; -1 is unlimited.
    pub memory_limit: i64,
    /// Memory plus swap limit in bytes (v1 meaning); -1 is unlimited.
    pub memory_swap_limit: i64,
    /// `oom_score_adj` of the first process.
    pub oom_score_adj: i64,
    /// CPUs, Linux list format.
    pub cpuset_cpus: String,
    /// Memory nodes, Linux list format.
    pub cpuset_mems: String,
    /// Huge page limits.
    pub hugepages: Vec<HugepageLimit>,
    /// cgroup v2 files and their values.
    pub unified: BTreeMap<String, String>,
}

/// Limit for huge pages of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HugepageLimit {
    /// As the kernel names it: `2MB`, `1GB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}
