//! What is kept of a pod on disk.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::state::Stage;
use crate::model::{PodMetadata, PodSpec, PodState, Process};
use crate::record::{self, Form, Identity, Kept, ProcessRole, Unfit, Unreadable, convert, v1, v2};
use crate::store::Object;

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
    /// How far it has come.
    pub stage: Stage,
    /// All the rest.
    pub parts: Parts,
}

/// What a pod is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// What was asked for.
    pub spec: Arc<PodSpec>,
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

impl Form for v1::Pod {
    type Model = PodRecord;

    fn freeze(model: &PodRecord) -> Self {
        let parts = &model.parts;
        let (phase, state) = match model.stage {
            Stage::Making => (v1::Phase::Creating, PodState::NotReady),
            Stage::Ready => (v1::Phase::Made, PodState::Ready),
            Stage::NotReady => (v1::Phase::Made, PodState::NotReady),
            Stage::Released | Stage::Removed => (v1::Phase::Released, PodState::NotReady),
        };
        Self {
            phase,
            state: Form::freeze(&state),
            spec: Form::freeze(&parts.spec),
            created_at: parts.created_at,
            boot_id: parts.boot_id.clone(),
            hostname: parts.hostname.clone(),
            cgroup_parent: parts.cgroup_parent.clone(),
            scope: Form::freeze(&parts.scope),
            made_parents: parts.made_parents.clone(),
            holds_parent: parts.holds_parent,
            cgroup: parts.cgroup.clone(),
            netns: parts.netns.clone(),
            ips: parts.ips.clone(),
            cni_result: parts.cni_result.clone(),
            pause: Form::freeze(&parts.pause),
        }
    }

    fn thaw(self) -> Result<PodRecord, Unfit> {
        let stage = match (self.phase, self.state.thaw()?) {
            (v1::Phase::Creating, _) => Stage::Making,
            (v1::Phase::Released, _) => Stage::Released,
            (v1::Phase::Made, PodState::Ready) => Stage::Ready,
            (v1::Phase::Made, PodState::NotReady) => Stage::NotReady,
        };
        let parts = Parts {
            spec: self.spec.thaw()?,
            created_at: self.created_at,
            boot_id: self.boot_id,
            hostname: self.hostname,
            cgroup_parent: self.cgroup_parent,
            scope: self.scope.thaw()?,
            made_parents: self.made_parents,
            holds_parent: self.holds_parent,
            cgroup: self.cgroup,
            netns: self.netns,
            ips: self.ips,
            cni_result: self.cni_result,
            pause: self.pause.thaw()?,
        };
        Ok(PodRecord { stage, parts })
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
        let parts = &self.parts;
        let name = &parts.spec.metadata;
        let pause = parts.pause.as_ref();
        Identity {
            kind: Self::KIND.to_owned(),
            id: id.to_owned(),
            pod: id.to_owned(),
            name: name.name.clone(),
            namespace: name.namespace.clone(),
            uid: name.uid.clone(),
            attempt: name.attempt,
            labels: parts.spec.labels.clone(),
            created_at: parts.created_at,
            boot_id: parts.boot_id.clone(),
            processes: pause
                .map(|p| record::Process::of(ProcessRole::Pause, p))
                .into_iter()
                .collect(),
            cgroup: parts.cgroup.iter().map(PathBuf::from).collect(),
            cgroup_parent: parts.cgroup_parent.clone(),
            scope: parts
                .scope
                .as_ref()
                .map_or_else(String::new, |scope| scope.unit.clone()),
            made_parents: parts.made_parents.clone(),
            netns: parts.netns.clone().unwrap_or_default(),
            log: PathBuf::from(&parts.spec.log_directory),
            ..Identity::default()
        }
    }

    /// A pod that is not ready, with what has to be given back.
    fn from_identity(identity: Identity) -> Result<Self, Unfit> {
        identity.expect_kind(Self::KIND)?;
        let pause = identity.process(ProcessRole::Pause);
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let parts = Parts {
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
            created_at: identity.created_at,
            boot_id: identity.boot_id,
            hostname: String::new(),
            cgroup_parent: identity.cgroup_parent,
            holds_parent: !identity.made_parents.is_empty(),
            made_parents: identity.made_parents,
            ips: Vec::new(),
            cni_result: None,
        };
        Ok(Self {
            stage: Stage::NotReady,
            parts,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::golden;

    /// Whether a record can say so: those that can stand in `wanted` below.
    fn is_kept(stage: Stage) -> bool {
        match stage {
            Stage::Making | Stage::Ready | Stage::NotReady | Stage::Released => true,
            Stage::Removed => false,
        }
    }

    #[test]
    fn pods_in_every_state_are_read_as_each_version_wrote_them() {
        for found in golden::check::<PodRecord>("pods") {
            let state = |record: &PodRecord| {
                let parts = &record.parts;
                // What there is of one that is being made is a matter of when it was seen.
                let whole = record.stage != Stage::Making;
                let has_netns = whole && parts.netns.is_some();
                (record.stage, has_netns, whole && parts.pause.is_some())
            };
            let all = found.iter().map(|(name, pod)| (name.as_str(), state(pod)));
            let wanted = [
                ("half-made", (Stage::Making, false, false)),
                ("host", (Stage::Ready, false, true)),
                ("not-ready", (Stage::NotReady, true, true)),
                ("ready", (Stage::Ready, true, true)),
                ("stopped", (Stage::Released, true, true)),
            ];
            assert_eq!(all.collect::<Vec<_>>(), wanted);
            assert!(found.values().all(|pod| is_kept(pod.stage)));
            let of_ready = &found["ready"].parts;
            assert_eq!(of_ready.ips.len(), 1);
            assert_eq!(of_ready.spec.port_mappings.len(), 2);
            assert_eq!(of_ready.spec.sysctls.len(), 1);
            assert!(of_ready.spec.overhead.is_some() && of_ready.cni_result.is_some());
        }
    }

    #[test]
    fn no_state_of_a_pod_is_missing_in_the_files() {
        for version in [1, 2] {
            let states = golden::unmade::<v1::PodState>(version, "pods", "/state");
            let phases = golden::unmade::<v1::Phase>(version, "pods", "/phase");
            assert!(
                states.is_empty() && phases.is_empty(),
                "version {version}: {states:?} {phases:?}"
            );
        }
    }

    impl golden::Choice for v1::Phase {
        const NAMES: &[&str] = &["Creating", "Made", "Released"];
    }

    /// The golden files come from a machine without systemd.
    #[test]
    fn a_scope_comes_back() {
        let [_, mut found] = golden::check::<PodRecord>("pods");
        let mut pod = found.remove("ready").unwrap();
        pod.parts.scope = Some(Scope {
            unit: "berth-a.scope".to_owned(),
            slice: "kubepods.slice".to_owned(),
        });
        let file = record::encode(&pod).unwrap();
        let text = String::from_utf8_lossy(&file);
        let form = r#""scope":{"unit":"berth-a.scope","slice":"kubepods.slice"}"#;
        assert!(text.contains(form), "{text}");
        let again: PodRecord = record::decode(&file).unwrap();
        assert_eq!(again.parts.scope, pod.parts.scope);
        assert_eq!(again.identity("a").scope, "berth-a.scope");
    }

    #[test]
    fn identities_of_pods_are_what_they_were() {
        let [_, found] = golden::check::<PodRecord>("pods");
        let identities = golden::files(2, "identities/pods");
        // Of one that is being made there may be none yet.
        let others = found.keys().filter(|name| *name != "half-made");
        assert!(identities.keys().eq(others));
        for (name, file) in identities {
            let kept = Identity::decode(&file).unwrap();
            assert_eq!(kept, found[&name].identity(&kept.id), "{name}");
            assert_eq!(kept.encode().unwrap(), file, "{name}");
        }
    }
}
