//! What is kept of a container on disk.

use std::path::PathBuf;
use std::sync::Arc;

use shim_protocol::worker;

use crate::id::PodId;
use crate::model::{
    ChainId, ContainerExit, ContainerMetadata, ContainerSpec, ContainerState, ContainerUser,
    ImageId, Process, Resources, SignalName,
};
use crate::record::{
    self, Form as _, Identity, Kept, ProcessRole, Unfit, Unreadable, convert, v1, v2,
};
use crate::store::Object;

/// The record of a container.
#[derive(Clone, Debug)]
pub struct ContainerRecord {
    /// What was asked for.
    pub spec: Arc<ContainerSpec>,
    /// Its pod.
    pub pod: PodId,
    /// Still being made: found at start, it is undone.
    pub creating: bool,
    /// What CRI calls its state.
    pub state: ContainerState,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// Nanoseconds since the Unix epoch; 0: not started.
    pub started_at: i64,
    /// How it ended.
    pub exit: Option<ContainerExit>,
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
    /// Its first process.
    pub init: Option<Process>,
    /// Its monitor, to be found when it does not answer.
    pub monitor: Option<Process>,
    /// What was executed; later execs are like it.
    pub process: worker::Process,
    /// Name of its system call filter among the kept programs; empty: none.
    pub seccomp: String,
    /// Path of its cgroup below each hierarchy's root.
    pub cgroup_path: String,
    /// Directories of its cgroup.
    pub leaves: Vec<String>,
}

convert!(v2::Container as ContainerRecord {
    spec,
    pod,
    creating,
    state,
    created_at,
    started_at,
    exit,
    boot_id,
    image_id,
    image_name,
    image_ref,
    chain,
    log_path,
    user,
    resources,
    stop_signal,
    init,
    monitor,
    process,
    seccomp,
    cgroup_path,
    leaves,
});

impl Kept for ContainerRecord {
    const KIND: &'static str = "container";
    type Form = v2::Container;

    fn read_other(file: &[u8]) -> Result<Self, Unreadable> {
        let old: v1::Container = v1::object(file, Self::KIND)?;
        Ok(Self {
            process: old.process,
            spec: old.spec.thaw()?,
            pod: old.pod.thaw()?,
            creating: old.creating.thaw()?,
            state: old.state.thaw()?,
            created_at: old.created_at.thaw()?,
            started_at: old.started_at.thaw()?,
            exit: old.exit.thaw()?,
            boot_id: old.boot_id.thaw()?,
            image_id: old.image_id.thaw()?,
            image_name: old.image_name.thaw()?,
            image_ref: old.image_ref.thaw()?,
            chain: old.chain.thaw()?,
            log_path: old.log_path.thaw()?,
            user: old.user.thaw()?,
            resources: old.resources.thaw()?,
            stop_signal: old.stop_signal.thaw()?,
            init: old.init.thaw()?,
            monitor: old.monitor.thaw()?,
            seccomp: old.seccomp.thaw()?,
            cgroup_path: old.cgroup_path.thaw()?,
            leaves: old.leaves.thaw()?,
        })
    }
}

impl Object for ContainerRecord {
    fn identity(&self, id: &str) -> Identity {
        let init = self.init.as_ref().map(|p| (ProcessRole::Init, p));
        let monitor = self.monitor.as_ref().map(|p| (ProcessRole::Monitor, p));
        let processes = init.into_iter().chain(monitor);
        Identity {
            kind: Self::KIND.to_owned(),
            id: id.to_owned(),
            pod: self.pod.to_string(),
            name: self.spec.metadata.name.clone(),
            attempt: self.spec.metadata.attempt,
            labels: self.spec.labels.clone(),
            created_at: self.created_at,
            boot_id: self.boot_id.clone(),
            processes: processes
                .map(|(role, p)| record::Process::of(role, p))
                .collect(),
            cgroup: self.leaves.iter().map(PathBuf::from).collect(),
            cgroup_parent: self.cgroup_path.clone(),
            log: PathBuf::from(&self.log_path),
            image: [
                self.image_id.to_string(),
                self.image_name.clone(),
                self.image_ref.clone(),
            ],
            layers: self.chain.clone(),
            seccomp: self.seccomp.clone(),
            ..Identity::default()
        }
    }

    /// A container in an unknown state, with what has to be given back.
    fn from_identity(identity: Identity) -> Result<Self, Unfit> {
        identity.expect_kind(Self::KIND)?;
        let unfit = |what: &str, why: &dyn std::fmt::Display| Unfit(format!("{what}: {why}"));
        let [image_id, image_name, image_ref] = identity.image.clone();
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        Ok(Self {
            pod: identity.pod.parse().map_err(|e| unfit("its pod", &e))?,
            creating: false,
            state: ContainerState::Unknown,
            created_at: identity.created_at,
            started_at: 0,
            exit: None,
            init: identity.process(ProcessRole::Init),
            monitor: identity.process(ProcessRole::Monitor),
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
        })
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
            let state = |name: &str| {
                let record = &found[name];
                let exit = record.exit.as_ref().map(|e| (e.code, e.reason));
                (record.state, record.init.is_some(), exit)
            };
            let all = found.keys().map(|name| (name.as_str(), state(name)));
            let runs = (ContainerState::Running, true, None);
            let waits = (ContainerState::Created, true, None);
            let over = |code, reason| (ContainerState::Exited, true, Some((code, reason)));
            let wanted = [
                ("configured", waits),
                ("confined", runs),
                ("created", waits),
                ("exited", over(3, ExitReason::Error)),
                ("failed", over(128, ExitReason::StartError)),
                ("half-made", (ContainerState::Created, false, None)),
                ("killed", over(137, ExitReason::Error)),
                ("privileged", runs),
                ("running", runs),
                ("target", runs),
                ("terminal", runs),
                ("volumes", runs),
            ];
            assert_eq!(all.collect::<Vec<_>>(), wanted);
            assert!(found["half-made"].creating && !found["running"].creating);
            assert!(found["terminal"].process.terminal && found["terminal"].spec.tty);
            assert_eq!(found["volumes"].spec.mounts.len(), 2);
            assert_eq!(found["confined"].process.uid, 1000);
            assert_eq!(
                found["running"].process.env.last().unwrap(),
                "NAME=wert ü".as_bytes()
            );
        }
    }

    #[test]
    fn identities_of_containers_are_what_they_were() {
        let [_, found] = golden::check::<ContainerRecord>("containers");
        for (name, file) in golden::files(2, "identities/containers") {
            let kept = Identity::decode(&file).unwrap();
            assert_eq!(kept, found[&name].identity(&kept.id), "{name}");
            assert_eq!(kept.encode().unwrap(), file, "{name}");
        }
    }
}
