//! Security settings and limits, version 1.

use std::collections::BTreeMap;

use crate::model;
use crate::record::form::{choice, form};

choice! {
    /// Which system call filter to load.
    #[derive(Default)]
    SeccompProfile as model::SeccompProfile {
        #[default]
        Unconfined,
        RuntimeDefault,
        Localhost(file: String),
    }
}

choice! {
    /// Which AppArmor profile to run under.
    #[derive(Default)]
    AppArmorProfile as model::AppArmorProfile {
        #[default]
        Unset,
        RuntimeDefault,
        Unconfined,
        Localhost(name: String),
    }
}

choice! {
    /// What groups that were asked for mean beside the image's.
    #[derive(Default)]
    GroupsPolicy as model::GroupsPolicy {
        #[default]
        Merge,
        Strict,
    }
}

form! {
    /// Capabilities beside the default ones.
    #[derive(Default)]
    #[serde(default)]
    CapabilityRequest as model::CapabilityRequest {
        add: Vec<String>,
        drop: Vec<String>,
        add_ambient: Vec<String>,
    }
}

form! {
    /// A signal.
    SignalName as model::SignalName {
        number: i32,
        name: String,
    }
}

form! {
    /// Limits.
    #[derive(Default)]
    #[serde(default)]
    Resources as model::Resources {
        cpu_period: i64,
        cpu_quota: i64,
        cpu_shares: i64,
        memory_limit: i64,
        memory_swap_limit: i64,
        oom_score_adj: i64,
        cpuset_cpus: String,
        cpuset_mems: String,
        hugepages: Vec<HugepageLimit>,
        unified: BTreeMap<String, String>,
    }
}

form! {
    /// Limit for huge pages of one size.
    HugepageLimit as model::HugepageLimit {
        page_size: String,
        limit: u64,
    }
}
