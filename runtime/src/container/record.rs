//! What is kept of a container on disk.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use shim_protocol::worker;

use super::state::{Stage, Status};
use crate::id::PodId;
use crate::model::{
    ChainId, ContainerExit, ContainerMetadata, ContainerSpec, ContainerState, ContainerUser,
    ImageId, Process, Resources, SignalName,
};
use crate::record::{self, Form, Identity, Kept, ProcessRole, Unfit, Unreadable, v1, v2};
use crate::store::Object;

/// The record of a container.
#[derive(Clone, Debug)]
pub struct ContainerRecord {
    /// How far it has come. No handles are kept.
    pub status: Status<Infallible>,
    /// All the rest.
    pub parts: Parts,
}

/// What a container is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// What was asked for.
    pub spec: Arc<ContainerSpec>,
    /// Its pod.
    pub pod: PodId,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// The boot in which it was made.
    pub boot_id: String,
    /// Id of its image.
    pub image_id: ImageId,
    /// Human name of its image.
    pub image_name: String,
    /// Digest reference of its image.
    pub image_ref: String,
    /// Its image's layers, which must stay as long as it does.
    pub chain: Vec<ChainId>,
    /// Absolute path of its log; empty: none.
    pub log_path: String,
    /// Credentials.
    pub user: ContainerUser,
    /// Limits in force.
    pub resources: Resources,
    /// The signal that stops it.
    pub stop_signal: SignalName,
    /// What was executed; later execs are like it.
    pub process: worker::Process,
    /// Name of its system call filter among the kept programs; empty: none.
    pub seccomp: String,
    /// Path of its cgroup below each hierarchy's root.
    pub cgroup_path: String,
    /// Directories of its cgroup.
    pub leaves: Vec<String>,
}

impl Form for v2::Container {
    type Model = ContainerRecord;

    fn freeze(model: &ContainerRecord) -> Self {
        let (status, parts) = (&model.status, &model.parts);
        Self {
            creating: status.stage == Stage::Making,
            state: Form::freeze(&status.state()),
            started_at: status.started_at,
            exit: Form::freeze(&status.exit),
            init: Form::freeze(&status.init),
            monitor: Form::freeze(&status.found),
            spec: Form::freeze(&parts.spec),
            pod: parts.pod.clone(),
            created_at: parts.created_at,
            boot_id: parts.boot_id.clone(),
            image_id: Form::freeze(&parts.image_id),
            image_name: parts.image_name.clone(),
            image_ref: parts.image_ref.clone(),
            chain: Form::freeze(&parts.chain),
            log_path: parts.log_path.clone(),
            user: Form::freeze(&parts.user),
            resources: Form::freeze(&parts.resources),
            stop_signal: Form::freeze(&parts.stop_signal),
            process: Form::freeze(&parts.process),
            seccomp: parts.seccomp.clone(),
            cgroup_path: parts.cgroup_path.clone(),
            leaves: parts.leaves.clone(),
        }
    }

    fn thaw(self) -> Result<ContainerRecord, Unfit> {
        let status = Progress {
            creating: self.creating,
            state: self.state.thaw()?,
            started_at: self.started_at,
            exit: self.exit.thaw()?,
            init: self.init.thaw()?,
            monitor: self.monitor.thaw()?,
        };
        let parts = Parts {
            spec: self.spec.thaw()?,
            pod: self.pod,
            created_at: self.created_at,
            boot_id: self.boot_id,
            image_id: self.image_id.thaw()?,
            image_name: self.image_name,
            image_ref: self.image_ref,
            chain: self.chain.thaw()?,
            log_path: self.log_path,
            user: self.user.thaw()?,
            resources: self.resources.thaw()?,
            stop_signal: self.stop_signal.thaw()?,
            process: self.process.thaw()?,
            seccomp: self.seccomp,
            cgroup_path: self.cgroup_path,
            leaves: self.leaves,
        };
        Ok(ContainerRecord {
            status: status.into(),
            parts,
        })
    }
}

/// How far a container has come, as records say it.
struct Progress {
    creating: bool,
    state: ContainerState,
    started_at: i64,
    exit: Option<ContainerExit>,
    init: Option<Process>,
    monitor: Option<Process>,
}

impl From<Progress> for Status<Infallible> {
    fn from(said: Progress) -> Self {
        let stage = match said.state {
            _ if said.creating => Stage::Making,
            ContainerState::Exited => Stage::Exited,
            ContainerState::Running => Stage::Running,
            ContainerState::Created => Stage::Created,
            ContainerState::Unknown if said.started_at != 0 => Stage::Running,
            ContainerState::Unknown => Stage::Created,
        };
        Self {
            stage,
            silent: !said.creating && said.state == ContainerState::Unknown,
            started_at: said.started_at,
            exit: said.exit,
            init: said.init,
            found: said.monitor,
            ..Self::new()
        }
    }
}

impl Kept for ContainerRecord {
    const KIND: &'static str = "container";
    type Form = v2::Container;

    fn read_other(file: &[u8]) -> Result<Self, Unreadable> {
        let old: v1::Container = v1::object(file, Self::KIND)?;
        let status = Progress {
            creating: old.creating,
            state: old.state.thaw()?,
            started_at: old.started_at,
            exit: old.exit.thaw()?,
            init: old.init.thaw()?,
            monitor: old.monitor.thaw()?,
        };
        let parts = Parts {
            process: old.process,
            spec: old.spec.thaw()?,
            pod: old.pod,
            created_at: old.created_at,
            boot_id: old.boot_id,
            image_id: old.image_id.thaw()?,
            image_name: old.image_name,
            image_ref: old.image_ref,
            chain: old.chain.thaw()?,
            log_path: old.log_path,
            user: old.user.thaw()?,
            resources: old.resources.thaw()?,
            stop_signal: old.stop_signal.thaw()?,
            seccomp: old.seccomp,
            cgroup_path: old.cgroup_path,
            leaves: old.leaves,
        };
        Ok(Self {
            status: status.into(),
            parts,
        })
    }
}

impl Object for ContainerRecord {
    fn identity(&self, id: &str) -> Identity {
        let (status, parts) = (&self.status, &self.parts);
        let init = status.init.as_ref().map(|p| (ProcessRole::Init, p));
        let monitor = status.found.as_ref().map(|p| (ProcessRole::Monitor, p));
        let processes = init.into_iter().chain(monitor);
        Identity {
            kind: Self::KIND.to_owned(),
            id: id.to_owned(),
            pod: parts.pod.to_string(),
            name: parts.spec.metadata.name.clone(),
            attempt: parts.spec.metadata.attempt,
            labels: parts.spec.labels.clone(),
            created_at: parts.created_at,
            boot_id: parts.boot_id.clone(),
            processes: processes
                .map(|(role, p)| record::Process::of(role, p))
                .collect(),
            cgroup: parts.leaves.iter().map(PathBuf::from).collect(),
            cgroup_parent: parts.cgroup_path.clone(),
            log: PathBuf::from(&parts.log_path),
            image: [
                parts.image_id.to_string(),
                parts.image_name.clone(),
                parts.image_ref.clone(),
            ],
            layers: parts.chain.clone(),
            seccomp: parts.seccomp.clone(),
            ..Identity::default()
        }
    }

    /// A container in an unknown state, with what has to be given back.
    fn from_identity(identity: Identity) -> Result<Self, Unfit> {
        identity.expect_kind(Self::KIND)?;
        let unfit = |what: &str, why: &dyn std::fmt::Display| Unfit(format!("{what}: {why}"));
        let [image_id, image_name, image_ref] = identity.image.clone();
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let status = Status {
            stage: Stage::Created,
            silent: true,
            init: identity.process(ProcessRole::Init),
            found: identity.process(ProcessRole::Monitor),
            ..Status::new()
        };
        let parts = Parts {
            pod: identity.pod.parse().map_err(|e| unfit("its pod", &e))?,
            created_at: identity.created_at,
            image_id: image_id.parse().map_err(|e| unfit("its image", &e))?,
            image_name,
            image_ref,
            log_path: text(&identity.log),
            user: ContainerUser::default(),
            resources: Resources::default(),
            stop_signal: crate::spec::signals::term(),
            process: worker::Process::default(),
            cgroup_path: identity.cgroup_parent,
            leaves: identity.cgroup.iter().map(text).collect(),
            spec: Arc::new(ContainerSpec {
                metadata: ContainerMetadata {
                    name: identity.name,
                    attempt: identity.attempt,
                },
                image: identity.image[0].clone(),
                labels: identity.labels,
                ..ContainerSpec::default()
            }),
            boot_id: identity.boot_id,
            chain: identity.layers,
            seccomp: identity.seccomp,
        };
        Ok(Self { status, parts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ExitReason;
    use crate::record::golden;

    #[test]
    fn containers_in_every_state_are_read_as_each_version_wrote_them() {
        for found in golden::check::<ContainerRecord>("containers") {
            let state = |record: &ContainerRecord| {
                let status = &record.status;
                let exit = status.exit.as_ref().map(|e| (e.code, e.reason));
                (status.stage, status.init.is_some(), exit)
            };
            let all = found.iter().map(|(name, c)| (name.as_str(), state(c)));
            let runs = (Stage::Running, true, None);
            let waits = (Stage::Created, true, None);
            let over = |code, reason| (Stage::Exited, true, Some((code, reason)));
            let wanted = [
                ("completed", over(0, ExitReason::Completed)),
                ("configured", waits),
                ("confined", runs),
                ("created", waits),
                ("exited", over(3, ExitReason::Error)),
                ("failed", over(128, ExitReason::StartError)),
                ("half-made", (Stage::Making, false, None)),
                ("hungry", over(137, ExitReason::OomKilled)),
                ("killed", over(137, ExitReason::Error)),
                ("lost", over(255, ExitReason::Unknown)),
                ("privileged", runs),
                ("running", runs),
                ("target", runs),
                ("terminal", runs),
                ("volumes", runs),
            ];
            assert_eq!(all.collect::<Vec<_>>(), wanted);
            assert!(found.values().all(|c| !c.status.silent));
            let of = |name: &str| &found[name].parts;
            assert!(of("terminal").process.terminal && of("terminal").spec.tty);
            assert_eq!(of("volumes").spec.mounts.len(), 2);
            assert_eq!(of("confined").process.uid, 1000);
            let env = &of("running").process.env;
            assert!(env.contains(&"NAME=wert ü".as_bytes().to_vec()));
        }
    }

    #[test]
    fn no_state_of_a_container_is_missing_in_the_files() {
        for version in [1, 2] {
            let states = golden::unmade::<v1::ContainerState>(version, "containers", "/state");
            let reasons = golden::unmade::<v1::ExitReason>(version, "containers", "/exit/reason");
            assert!(
                states.is_empty() && reasons.is_empty(),
                "version {version}: {states:?} {reasons:?}"
            );
        }
    }

    #[test]
    fn identities_of_containers_are_what_they_were() {
        let [_, found] = golden::check::<ContainerRecord>("containers");
        let identities = golden::files(2, "identities/containers");
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
