//! Tests of the whole with fake plugins.

use super::*;

/// A pod for tests.
pub(super) fn pod(netns: impl Into<PathBuf>) -> PodNetwork {
    PodNetwork {
        id: PodId::generate().unwrap(),
        name: "web".into(),
        namespace: "default".into(),
        uid: "u-1".into(),
        netns: netns.into(),
        port_mappings: Vec::new(),
        dns: None,
        bandwidth: None,
        cgroup_path: "/kubepods/podu-1".into(),
        annotations: BTreeMap::new(),
    }
}
