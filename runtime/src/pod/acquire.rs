//! What a pod holds, acquired step by step. Whatever fails here, [`super::release`] gives back.

use std::fmt::Display;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shim_protocol::worker;

use super::run::{print, watch};
use super::state::Change;
use super::sysctl::{self, Sysctls};
use super::{Error, Inner, Pod, files};
use crate::blocking;
use crate::host::Cpuset;
use crate::model::{Kind, Kinded, NamespaceMode, PodSpec, Process, SeccompProfile, chain};
use crate::network::{self, Bandwidth, NetworkResult, PodNetwork, set_sysctls};
use crate::shim::{PauseHandle, PodWorker};
use crate::spec;
use crate::sys::fs::make_own_dir;
use crate::systemd;

/// The operation whose steps are measured.
const OPERATION: &str = "run_pod";

/// One pod being made.
pub(super) struct Acquiring<'a> {
    inner: &'a Arc<Inner>,
    pod: &'a Arc<Pod>,
    dir: PathBuf,
}

impl<'a> Acquiring<'a> {
    pub(super) fn new(inner: &'a Arc<Inner>, pod: &'a Arc<Pod>) -> Self {
        let dir = inner.state_dir(&pod.id);
        Self { inner, pod, dir }
    }

    /// Acquires everything; the pod is Ready then.
    pub(super) async fn run(&self) -> Result<(), Error> {
        let sysctls = sysctl::split(&self.pod.spec).map_err(Error::Invalid)?;
        let plan = self.plan().await?;
        self.files().await?;
        let worker = self.namespaces(&sysctls).await?;
        crash_point!("run_pod.namespaces.after");
        let (network, pause) = self.network_and_pause(worker, plan).await?;
        crash_point!("run_pod.network_and_pause.after");
        self.settle(network, sysctls).await?;
        crash_point!("run_pod.sysctls.after");
        self.ready(pause).await
    }

    fn failed(&self, step: &'static str, kind: Kind, problem: impl Display) -> Error {
        Error::Step {
            name: print(&self.pod.spec.metadata),
            step,
            problem: problem.to_string(),
            kind,
        }
    }

    /// Writes the record as it will be after a change.
    async fn save(&self, change: Option<Change>) -> Result<(), Error> {
        let saved = self.inner.save_after(self.pod, change).await;
        saved.map_err(|e| self.failed("write the record", Kind::Unknown, chain(&e)))
    }

    /// The intent, on disk before anything is made: whatever a killed daemon leaves half-made is found by
    /// what this record says. Then the parent cgroup, and what pause will be.
    async fn plan(&self) -> Result<spec::PausePlan, Error> {
        let facts = &self.inner.deps.facts;
        let parent = {
            let mut parts = self.pod.parts();
            if parts.scope.is_none() {
                parts.made_parents = self
                    .inner
                    .parents
                    .enter(&facts.cgroup, &parts.cgroup_parent);
                parts.holds_parent = true;
            }
            let own = format!("{}/{}", parts.cgroup_parent, self.pod.id);
            parts.cgroup = spec::leaves(&facts.cgroup, &own);
            parts.cgroup_parent.clone()
        };
        crash_point!("run_pod.record.before");
        self.save(None).await?;
        crash_point!("run_pod.record.after");
        let apparmor = self.apparmor().await?;
        let cpuset = self.make_parent(parent.clone()).await?;
        crash_point!("run_pod.parent.after");
        let input = spec::PauseInput {
            id: &self.pod.id,
            spec: &self.pod.spec,
            cgroup_parent: &parent,
            facts,
            cpuset: cpuset.as_ref(),
            apparmor: &apparmor,
        };
        spec::pause(&input).map_err(|e| Error::Invalid(chain(&e)))
    }

    /// The parent cgroup, unless it is a scope: that is made around the pod's first process.
    async fn make_parent(&self, path: String) -> Result<Option<Cpuset>, Error> {
        if self.pod.parts().scope.is_some() {
            return Ok(None);
        }
        let inner = self.inner.clone();
        let made = blocking::run("make the parent cgroup of a pod", move || {
            inner.parents.make(&inner.deps.facts.cgroup, &path)
        });
        made.await
            .map_err(|e| self.failed("make the parent cgroup", e.kind(), chain(&e)))
    }

    /// Pause is confined like a container: it is the first process of a PID namespace that they may share,
    /// and what shares one profile may signal and trace itself as if there were none.
    async fn apparmor(&self) -> Result<String, Error> {
        let (spec, apparmor) = (&self.pod.spec, &self.inner.deps.apparmor);
        let resolved = apparmor.resolve(&spec.apparmor, spec.privileged).await;
        resolved.map_err(|e| self.failed("choose the AppArmor profile", e.kind(), chain(&e)))
    }

    async fn files(&self) -> Result<(), Error> {
        let (dir, spec) = (self.dir.clone(), self.pod.spec.clone());
        let hostname = self.pod.parts().hostname.clone();
        let netns_dir = self.inner.deps.config.netns_dir.clone();
        let made = blocking::run("make the files of a pod", move || {
            make_files(&dir, &hostname, &spec)?;
            std::fs::create_dir_all(&netns_dir).map_err(|e| format!("{}: {e}", netns_dir.display()))
        });
        made.await
            .map_err(|e| self.failed("make the files", Kind::Unknown, e))
    }

    /// Where a namespace is pinned; empty when the pod has the host's.
    fn pin(&self, own: bool, name: &str) -> String {
        match own {
            true => self.dir.join("ns").join(name).display().to_string(),
            false => String::new(),
        }
    }

    async fn namespaces(&self, sysctls: &Sysctls) -> Result<PodWorker, Error> {
        let _clock = self.inner.deps.metrics.step(OPERATION, "namespaces");
        let (netns, hostname) = {
            let parts = self.pod.parts();
            (parts.netns.clone(), parts.hostname.clone())
        };
        let own_ipc = self.pod.spec.namespaces.ipc != NamespaceMode::Node;
        let request = worker::Pod {
            id: self.pod.id.to_string(),
            net: netns
                .as_ref()
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
            ipc: self.pin(own_ipc, "ipc"),
            uts: self.pin(netns.is_some(), "uts"),
            // Without a UTS namespace of its own the pod has the host's name.
            hostname: netns.map(|_| hostname).unwrap_or_default(),
            sysctls: sysctls.early.clone(),
        };
        let worker = self.inner.deps.launcher.pod(request).await;
        worker.map_err(|e| self.failed("make the namespaces", e.kind(), chain(&e)))
    }

    async fn network_and_pause(
        &self,
        worker: PodWorker,
        plan: spec::PausePlan,
    ) -> Result<(Option<NetworkResult>, PauseHandle), Error> {
        let (inner, profile) = (self.inner.clone(), plan.seccomp.clone());
        let program = blocking::run("prepare a pod's system call filter", move || {
            seccomp_program(&inner, &profile)
        });
        let program = program
            .await
            .map_err(|e| self.failed("prepare the system call filter", Kind::InvalidArgument, e))?;
        let request = worker::Pause {
            pid: self.pin(self.pod.spec.namespaces.pid != NamespaceMode::Node, "pid"),
            cgroup: Some(plan.cgroup),
            process: Some(plan.process),
        };
        let (network, pause) = tokio::join!(self.connect(), async {
            let _clock = self.inner.deps.metrics.step(OPERATION, "pause");
            self.enter_scope(worker.pid()).await?;
            let paused = worker.pause(request, program).await;
            crash_point!("run_pod.pause.after");
            paused.map_err(|e| self.failed("start the pause process", e.kind(), chain(&e)))
        });
        // Both are looked at before either error is returned: what one of them made must be known to the undo.
        if let Ok(handle) = &pause {
            self.pod.parts().pause = Some(Process {
                pid: handle.pid,
                start_time: handle.start_time,
            });
        }
        let network =
            network.map_err(|e| self.failed("set up the network", e.kind(), chain(&e)))?;
        Ok((network, pause?))
    }

    /// Has systemd make the pod's scope around the worker that will start pause.
    async fn enter_scope(&self, worker: i32) -> Result<(), Error> {
        let Some(scope) = self.pod.parts().scope.clone() else {
            return Ok(());
        };
        let description = format!("Pod sandbox {}", print(&self.pod.spec.metadata));
        let wanted = systemd::Scope {
            unit: &scope.unit,
            slice: &scope.slice,
            description: &description,
            pid: worker,
        };
        let made = self.inner.deps.cgroups.start(&wanted).await;
        crash_point!("run_pod.scope.after");
        made.map_err(|e| self.failed("make the scope", Kind::Unknown, chain(&e)))
    }

    async fn connect(&self) -> Result<Option<NetworkResult>, network::Error> {
        let (netns, cgroup_path) = {
            let parts = self.pod.parts();
            (parts.netns.clone(), parts.cgroup_parent.clone())
        };
        let Some(netns) = netns else { return Ok(None) };
        let spec = &self.pod.spec;
        let attachment = PodNetwork {
            id: self.pod.id.clone(),
            name: spec.metadata.name.clone(),
            namespace: spec.metadata.namespace.clone(),
            uid: spec.metadata.uid.clone(),
            netns,
            port_mappings: spec.port_mappings.clone(),
            dns: spec.dns.clone(),
            bandwidth: Bandwidth::from_annotations(&spec.annotations)?,
            cgroup_path,
            annotations: spec.annotations.clone(),
        };
        let _clock = self.inner.deps.metrics.step(OPERATION, "network");
        self.inner.deps.network.setup(&attachment).await.map(Some)
    }

    /// What can be set only once the network is there.
    async fn settle(&self, network: Option<NetworkResult>, sysctls: Sysctls) -> Result<(), Error> {
        let netns = self.pod.parts().netns.clone();
        let (Some(network), Some(netns)) = (network, netns) else {
            return Ok(());
        };
        let set = blocking::run("set the network sysctls of a pod", move || {
            set_sysctls(&netns, &sysctls.net)
        });
        set.await
            .map_err(|e| self.failed("set the network sysctls", e.kind(), chain(&e)))?;
        let mut parts = self.pod.parts();
        parts.ips = network.ips;
        parts.cni_result = Some(network.raw);
        Ok(())
    }

    async fn ready(&self, pause: PauseHandle) -> Result<(), Error> {
        // What is heard of is on disk.
        self.save(Some(Change::Made)).await?;
        crash_point!("run_pod.ready.after");
        let (table, events) = (&self.inner.pods, &self.inner.deps.events);
        let publish = || table.insert(&self.pod.id, self.pod);
        self.pod.change_and(events, Change::Made, publish);
        watch(self.inner, self.pod, pause);
        Ok(())
    }
}

fn seccomp_program(inner: &Inner, profile: &SeccompProfile) -> Result<Option<OwnedFd>, String> {
    let deps = &inner.deps;
    let program = deps.seccomp.program(profile, 0).map_err(|e| chain(&e))?;
    let Some(program) = program else {
        return Ok(None);
    };
    let (name, file) = deps.programs.hold(&program).map_err(|e| chain(&e))?;
    crash_point!("run_pod.filter.after");
    // Pause never runs anything else, so its filter need not be found again.
    deps.programs.release(&name).map_err(|e| chain(&e))?;
    Ok(Some(file.into()))
}

/// A link in its place would have logs of root's hands written elsewhere; links on the way to it are the operator's.
fn log_directory(path: &str, error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ELOOP | libc::ENOTDIR) => format!(
            "log directory {path:?} is not a directory: a link in its place is not followed; remove it"
        ),
        _ => format!("log directory {path:?}: {error}"),
    }
}

fn make_files(dir: &Path, hostname: &str, spec: &PodSpec) -> Result<(), String> {
    files::make(dir, hostname, spec)?;
    crash_point!("run_pod.files.after");
    if !spec.log_directory.is_empty() {
        let made = make_own_dir(Path::new(&spec.log_directory));
        made.map_err(|e| log_directory(&spec.log_directory, &e))?;
    }
    crash_point!("run_pod.log_directory.after");
    Ok(())
}
