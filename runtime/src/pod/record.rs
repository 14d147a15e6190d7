//! What is kept of a pod on disk.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::model::{PodMetadata, PodSpec, PodState, Process};
use crate::record::{self, Form, Identity, Kept, ProcessRole, Unfit, Unreadable, convert, v1, v2};
use crate::store::Object;

/// How far a pod has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Resources are being acquired: found at start, it is undone.
    Creating,
    /// It was made.
    Made,
    /// Nothing is left of it but this record.
    Released,
}

/// A scope of systemd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Its unit name.
    pub unit: String,
    /// The slice in which it stands.
    pub slice: String,
}

/// The record of a pod.
#[derive(Clone, Debug)]
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

convert!(v1::Scope as Scope { unit, slice });

convert!(v1::Pod as PodRecord {
    spec,
    phase,
    state,
    created_at,
    boot_id,
    hostname,
    cgroup_parent,
    scope,
    made_parents,
    holds_parent,
    cgroup,
    netns,
    ips,
    cni_result,
    pause,
});

impl Form for v1::Phase {
    type Model = Phase;

    fn freeze(model: &Phase) -> Self {
        match model {
            Phase::Creating => Self::Creating,
            Phase::Made => Self::Made,
            Phase::Released => Self::Released,
        }
    }

    fn thaw(self) -> Result<Phase, Unfit> {
        Ok(match self {
            Self::Creating => Phase::Creating,
            Self::Made => Phase::Made,
            Self::Released => Phase::Released,
        })
    }
}

impl Kept for PodRecord {
    const KIND: &'static str = "pod";
    type Form = v2::Pod;

    fn read_other(file: &[u8]) -> Result<Self, Unreadable> {
        let form: v1::Pod = v1::object(file, Self::KIND)?;
        Ok(form.thaw()?)
    }
}

impl Object for PodRecord {
    fn identity(&self, id: &str) -> Identity {
        let name = &self.spec.metadata;
        let pause = self.pause.as_ref();
        Identity {
            kind: Self::KIND.to_owned(),
            id: id.to_owned(),
            pod: id.to_owned(),
            name: name.name.clone(),
            namespace: name.namespace.clone(),
            uid: name.uid.clone(),
            attempt: name.attempt,
            labels: self.spec.labels.clone(),
            created_at: self.created_at,
            boot_id: self.boot_id.clone(),
            processes: pause
                .map(|p| record::Process::of(ProcessRole::Pause, p))
                .into_iter()
                .collect(),
            cgroup: self.cgroup.iter().map(PathBuf::from).collect(),
            cgroup_parent: self.cgroup_parent.clone(),
            scope: self
                .scope
                .as_ref()
                .map_or_else(String::new, |scope| scope.unit.clone()),
            made_parents: self.made_parents.clone(),
            netns: self.netns.clone().unwrap_or_default(),
            log: PathBuf::from(&self.spec.log_directory),
            ..Identity::default()
        }
    }

    /// A pod that is not ready, with what has to be given back.
    fn from_identity(identity: Identity) -> Result<Self, Unfit> {
        identity.expect_kind(Self::KIND)?;
        let pause = identity.process(ProcessRole::Pause);
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        Ok(Self {
            pause,
            cgroup: identity.cgroup.iter().map(text).collect(),
            scope: (!identity.scope.is_empty()).then(|| Scope {
                unit: identity.scope,
                slice: String::new(),
            }),
            netns: Some(identity.netns).filter(|path| !path.as_os_str().is_empty()),
            spec: Arc::new(PodSpec {
                metadata: PodMetadata {
                    name: identity.name,
                    uid: identity.uid,
                    namespace: identity.namespace,
                    attempt: identity.attempt,
                },
                labels: identity.labels,
                log_directory: text(&identity.log),
                ..PodSpec::default()
            }),
            phase: Phase::Made,
            state: PodState::NotReady,
            created_at: identity.created_at,
            boot_id: identity.boot_id,
            hostname: String::new(),
            cgroup_parent: identity.cgroup_parent,
            holds_parent: !identity.made_parents.is_empty(),
            made_parents: identity.made_parents,
            ips: Vec::new(),
            cni_result: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::golden;

    #[test]
    fn pods_in_every_state_are_read_as_each_version_wrote_them() {
        for found in golden::check::<PodRecord>("pods") {
            let state = |record: &PodRecord| {
                (
                    record.phase,
                    record.state,
                    record.netns.is_some(),
                    record.pause.is_some(),
                )
            };
            let all = found
                .iter()
                .map(|(name, record)| (name.as_str(), state(record)));
            let (made, ready) = (Phase::Made, PodState::Ready);
            let wanted = [
                (
                    "half-made",
                    (Phase::Creating, PodState::NotReady, false, false),
                ),
                ("host", (made, ready, false, true)),
                ("not-ready", (made, PodState::NotReady, true, true)),
                ("ready", (made, ready, true, true)),
                ("stopped", (Phase::Released, PodState::NotReady, true, true)),
            ];
            assert_eq!(all.collect::<Vec<_>>(), wanted);
            let of_ready = &found["ready"];
            assert_eq!(of_ready.ips.len(), 1);
            assert_eq!(of_ready.spec.port_mappings.len(), 2);
            assert_eq!(of_ready.spec.sysctls.len(), 1);
            assert!(of_ready.spec.overhead.is_some() && of_ready.cni_result.is_some());
        }
    }

    #[test]
    fn identities_of_pods_are_what_they_were() {
        let [_, found] = golden::check::<PodRecord>("pods");
        for (name, file) in golden::files(2, "identities/pods") {
            let kept = Identity::decode(&file).unwrap();
            assert_eq!(kept, found[&name].identity(&kept.id), "{name}");
            assert_eq!(kept.encode().unwrap(), file, "{name}");
        }
    }
}
