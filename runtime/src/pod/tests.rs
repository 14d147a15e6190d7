//! What the tests of this module share.

mod life;

use crate::model::{
    AppArmorProfile, GroupsPolicy, NamespaceModes, PodMetadata, PodSpec, SeccompProfile,
};

/// A pod that asks for nothing.
pub(super) fn spec() -> PodSpec {
    PodSpec {
        metadata: PodMetadata {
            name: "web".into(),
            uid: "u".into(),
            namespace: "default".into(),
            attempt: 0,
        },
        hostname: String::new(),
        log_directory: String::new(),
        dns: None,
        port_mappings: Vec::new(),
        labels: Default::default(),
        annotations: Default::default(),
        cgroup_parent: String::new(),
        sysctls: Default::default(),
        namespaces: NamespaceModes::default(),
        privileged: false,
        seccomp: SeccompProfile::Unconfined,
        apparmor: AppArmorProfile::Unset,
        run_as_user: None,
        run_as_group: None,
        supplemental_groups: Vec::new(),
        supplemental_groups_policy: GroupsPolicy::Merge,
        overhead: None,
        resources: None,
        runtime_handler: String::new(),
    }
}
