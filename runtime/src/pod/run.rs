//! RunPodSandbox: namespaces, then the network beside the pause process, then the record.

use std::path::PathBuf;
use std::sync::Arc;

use shim_protocol::worker;

use super::record::{Phase, PodRecord, Process};
use super::{Error, Inner, Pod, PodManager, files, release, sysctl};
use crate::events::Event;
use crate::id::PodId;
use crate::model::{Kind, Kinded, NamespaceMode, PodSpec, PodState, chain, now_nanos};
use crate::network::{self, Bandwidth, NetworkResult, PodNetwork, set_sysctls};
use crate::shim::PauseHandle;
use crate::spec;
use crate::store::{Claim, Reservation};
use crate::sys::mount::{TmpfsOptions, mount_tmpfs};
use crate::{blocking, sys};

/// The operation whose steps are measured.
const OPERATION: &str = "run_pod";

/// Size of a pod's `/dev/shm` in bytes (row X033).
const SHM_SIZE: u64 = 64 << 20;

pub(super) type NameReservation = Reservation<crate::model::PodMetadata, PodId, PodSpec, Error>;

pub(super) async fn join_or_run(manager: &PodManager, spec: Arc<PodSpec>) -> Result<PodId, Error> {
    let inner = &manager.0;
    let name = spec.metadata.clone();
    let mut outcome = match inner.names.claim(name.clone(), spec.clone()) {
        Claim::Mine(reservation) => {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            let inner = inner.clone();
            // The work belongs to the manager: a caller that goes away does not leave half a pod behind.
            tokio::spawn(async move {
                let _ = sender.send(run(&inner, spec, reservation).await);
            });
            let id = receiver
                .await
                .map_err(|_| panicked(&name))?
                .map_err(Error::Shared)?;
            manager.0.names.told(&name);
            return Ok(id);
        }
        Claim::Join(outcome) => outcome,
        Claim::Made(id) => {
            inner.names.told(&name);
            return Ok(id);
        }
        Claim::Taken(id) => {
            return Err(Error::Exists {
                name: print(&name),
                id,
            });
        }
        Claim::Other => return Err(Error::Busy(print(&name))),
    };
    let outcome = outcome
        .wait_for(Option::is_some)
        .await
        .map_err(|_| panicked(&name))?
        .clone();
    let id = outcome
        .ok_or_else(|| panicked(&name))?
        .map_err(Error::Shared)?;
    inner.names.told(&name);
    Ok(id)
}

fn panicked(name: &crate::model::PodMetadata) -> Error {
    Error::Step {
        name: print(name),
        step: "finish the making",
        problem: "the task ended without a result (a bug in Berth, see its log)".to_owned(),
        kind: Kind::Unknown,
    }
}

/// A pod's name as people know it.
pub(super) fn print(name: &crate::model::PodMetadata) -> String {
    format!(
        "{}/{} (attempt {})",
        name.namespace, name.name, name.attempt
    )
}

async fn run(
    inner: &Arc<Inner>,
    spec: Arc<PodSpec>,
    reservation: NameReservation,
) -> Result<PodId, Arc<Error>> {
    let pod = match prepare(inner, &spec) {
        Ok(pod) => pod,
        Err(error) => {
            let error = Arc::new(error);
            reservation.finish(Err(error.clone()));
            return Err(error);
        }
    };
    match acquire(inner, &pod).await {
        Ok(()) => {
            inner.insert(&pod);
            reservation.finish(Ok(pod.id.clone()));
            inner.deps.events.send(Event::PodReady(pod.id.clone()));
            Ok(pod.id.clone())
        }
        Err(error) => {
            let error = Arc::new(error);
            if release::undo(inner, &pod).await {
                reservation.finish(Err(error.clone()));
            } else {
                // Not all of it could be given back: it stays visible, so that it is stopped again.
                inner.insert(&pod);
                reservation.finish_failed_but_kept(pod.id.clone(), error.clone());
            }
            Err(error)
        }
    }
}

/// The pod as it will be, before anything of it exists.
fn prepare(inner: &Arc<Inner>, spec: &Arc<PodSpec>) -> Result<Arc<Pod>, Error> {
    let failed = |step, problem: String| Error::Step {
        name: print(&spec.metadata),
        step,
        problem,
        kind: Kind::Unknown,
    };
    let (deps, config) = (&inner.deps, &inner.deps.config);
    let id = PodId::generate().map_err(|e| failed("choose the id", e.to_string()))?;
    let cgroup_parent = spec::cgroupfs_parent(&spec.cgroup_parent, &config.default_cgroup_parent)
        .map_err(|e| Error::Invalid(e.to_string()))?;
    let own_network = spec.namespaces.network != NamespaceMode::Node;
    let hostname = match spec.hostname.as_str() {
        "" => deps.facts.hostname.clone(),
        name => name.to_owned(),
    };
    if hostname.len() > 64 || hostname.chars().any(char::is_control) {
        return Err(Error::Invalid(format!(
            "{hostname:?} is no host name: at most 64 printable characters"
        )));
    }
    let record = PodRecord {
        spec: spec.clone(),
        phase: Phase::Creating,
        state: PodState::NotReady,
        created_at: now_nanos(),
        boot_id: deps.facts.boot_id.clone(),
        hostname,
        cgroup_parent,
        made_parents: Vec::new(),
        holds_parent: false,
        cgroup: Vec::new(),
        netns: own_network.then(|| netns_path(inner, &id)),
        ips: Vec::new(),
        cni_result: None,
        pause: None,
    };
    Ok(Pod::new(id, record))
}

pub(super) fn netns_path(inner: &Inner, id: &PodId) -> PathBuf {
    inner.deps.config.netns_dir.join(format!("berth-{id}"))
}

async fn acquire(inner: &Arc<Inner>, pod: &Arc<Pod>) -> Result<(), Error> {
    let spec = &pod.spec;
    let failed = |step: &'static str, kind: Kind, problem: String| Error::Step {
        name: print(&spec.metadata),
        step,
        problem,
        kind,
    };
    let deps = &inner.deps;
    let dir = inner.state_dir(&pod.id);
    let sysctls = sysctl::split(spec).map_err(Error::Invalid)?;
    // The intent: whatever a killed daemon leaves half-made is found by what this record says.
    enter_parent(inner, pod);
    inner
        .save(pod)
        .await
        .map_err(|e| failed("write the record", Kind::Unknown, chain(&e)))?;
    let (owner, parent) = (inner.clone(), pod.now().cgroup_parent.clone());
    let cpuset = blocking::run("make the parent cgroup of a pod", move || {
        owner.parents.make(&owner.deps.facts.cgroup, &parent)
    })
    .await
    .map_err(|e| failed("make the parent cgroup", Kind::Unknown, chain(&e)))?;
    let plan = spec::pause(&spec::PauseInput {
        id: &pod.id,
        spec,
        cgroup_parent: &pod.now().cgroup_parent,
        facts: &deps.facts,
        cpuset: cpuset.as_ref(),
    })
    .map_err(|e| Error::Invalid(e.to_string()))?;
    let (hostname, own_ipc) = (
        pod.now().hostname.clone(),
        spec.namespaces.ipc != NamespaceMode::Node,
    );
    make_files(&dir, hostname.clone(), spec.clone(), own_ipc)
        .await
        .map_err(|e| failed("make the files", Kind::Unknown, e))?;

    let pin = |wanted: bool, name: &str| {
        if wanted {
            dir.join("ns").join(name).display().to_string()
        } else {
            String::new()
        }
    };
    let netns = pod.now().netns.clone();
    let namespaces = worker::Pod {
        id: pod.id.to_string(),
        net: netns
            .as_ref()
            .map(|p| p.display().to_string())
            .unwrap_or_default(),
        ipc: pin(own_ipc, "ipc"),
        uts: pin(netns.is_some(), "uts"),
        // Without a UTS namespace of its own the pod has the host's name.
        hostname: if netns.is_some() {
            hostname
        } else {
            String::new()
        },
        ipc_sysctls: sysctls.ipc,
    };
    if netns.is_some() {
        let dir = deps.config.netns_dir.clone();
        blocking::run("make the directory of network namespaces", move || {
            std::fs::create_dir_all(dir)
        })
        .await
        .map_err(|e| failed("make the namespaces", Kind::Unknown, e.to_string()))?;
    }
    let clock = deps.metrics.step(OPERATION, "namespaces");
    let worker = deps
        .launcher
        .pod(namespaces)
        .await
        .map_err(|e| failed("make the namespaces", e.kind(), chain(&e)))?;

    drop(clock);
    let program = seccomp_program(inner, &plan)
        .map_err(|e| failed("prepare the system call filter", Kind::InvalidArgument, e))?;
    let pause = worker::Pause {
        pid: pin(spec.namespaces.pid != NamespaceMode::Node, "pid"),
        cgroup: Some(plan.cgroup),
        process: Some(plan.process),
    };
    let (network, pause) = tokio::join!(connect(inner, pod), async {
        let _clock = deps.metrics.step(OPERATION, "pause");
        worker.pause(pause, program).await
    });
    // Both are looked at before either error is returned: what one of them made must be known to the undo.
    let pause = pause.map_err(|e| failed("start the pause process", e.kind(), chain(&e)));
    if let Ok(handle) = &pause {
        pod.now().pause = Some(Process {
            pid: handle.pid,
            start_time: handle.start_time,
        });
    }
    let network = network.map_err(|e| failed("set up the network", e.kind(), chain(&e)))?;
    let pause = pause?;
    if let (Some(network), Some(netns)) = (network, netns) {
        blocking::run("set the network sysctls of a pod", move || {
            set_sysctls(&netns, &sysctls.net)
        })
        .await
        .map_err(|e| failed("set the network sysctls", e.kind(), chain(&e)))?;
        let mut record = pod.now();
        record.ips = network.ips;
        record.cni_result = Some(network.raw);
    }
    {
        let mut record = pod.now();
        record.phase = Phase::Made;
        record.state = PodState::Ready;
    }
    pod.over.send_replace(false);
    inner
        .save(pod)
        .await
        .map_err(|e| failed("write the record", Kind::Unknown, chain(&e)))?;
    watch(inner, pod, pause);
    Ok(())
}

fn enter_parent(inner: &Inner, pod: &Pod) {
    let facts = &inner.deps.facts.cgroup;
    let mut record = pod.now();
    record.made_parents = inner.parents.enter(facts, &record.cgroup_parent);
    record.holds_parent = true;
    record.cgroup = spec::leaves(facts, &format!("{}/{}", record.cgroup_parent, pod.id));
}

async fn make_files(
    dir: &std::path::Path,
    hostname: String,
    spec: Arc<PodSpec>,
    own_ipc: bool,
) -> Result<(), String> {
    let dir = dir.to_owned();
    blocking::run("make the files of a pod", move || {
        files::write(&dir, &hostname, spec.dns.as_ref()).map_err(|e| e.to_string())?;
        if own_ipc {
            let shm = dir.join("shm");
            std::fs::create_dir_all(&shm)
                .and_then(|()| mount_tmpfs(&shm, TmpfsOptions::shm(SHM_SIZE)))
                .map_err(|e| format!("cannot mount {}: {e}", shm.display()))?;
        }
        if !spec.log_directory.is_empty() {
            std::fs::create_dir_all(&spec.log_directory).map_err(|e| {
                format!("cannot make the log directory {}: {e}", spec.log_directory)
            })?;
        }
        Ok(())
    })
    .await
}

fn seccomp_program(
    inner: &Inner,
    plan: &spec::PausePlan,
) -> Result<Option<std::os::fd::OwnedFd>, String> {
    let deps = &inner.deps;
    let Some(program) = deps
        .seccomp
        .program(&plan.seccomp, 0, |path| std::fs::read(path))
        .map_err(|e| chain(&e))?
    else {
        return Ok(None);
    };
    let (name, file) = deps.programs.hold(&program).map_err(|e| chain(&e))?;
    // Pause never runs anything else, so its filter need not be found again.
    deps.programs.release(&name).map_err(|e| chain(&e))?;
    Ok(Some(file.into()))
}

async fn connect(
    inner: &Arc<Inner>,
    pod: &Arc<Pod>,
) -> Result<Option<NetworkResult>, network::Error> {
    let (netns, cgroup_path) = {
        let record = pod.now();
        (record.netns.clone(), record.cgroup_parent.clone())
    };
    let Some(netns) = netns else { return Ok(None) };
    let spec = &pod.spec;
    let attachment = PodNetwork {
        id: pod.id.clone(),
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
    let _clock = inner.deps.metrics.step(OPERATION, "network");
    inner.deps.network.setup(&attachment).await.map(Some)
}

/// The pod is NotReady as soon as its pause process is gone.
pub(super) fn watch(inner: &Arc<Inner>, pod: &Arc<Pod>, pause: PauseHandle) {
    let (inner, pod) = (inner.clone(), pod.clone());
    tokio::spawn(async move {
        let mut over = pod.over.subscribe();
        tokio::select! {
            ended = sys::process::ended(pause.pidfd) => {
                if let Err(error) = ended {
                    tracing::error!(pod.id = %pod.id, %error, "cannot watch the pause process");
                    return;
                }
            }
            _ = over.wait_for(|over| *over) => {}
        }
        let was_ready = {
            let mut record = pod.now();
            std::mem::replace(&mut record.state, PodState::NotReady) == PodState::Ready
        };
        pod.over.send_replace(true);
        if was_ready {
            tracing::warn!(pod.id = %pod.id, "the pause process is gone: the pod sandbox is not ready any more");
            if let Err(error) = inner.save(&pod).await {
                tracing::error!(pod.id = %pod.id, error = %chain(&error), "cannot record that the pod is not ready");
            }
            inner.deps.events.send(Event::PodNotReady(pod.id.clone()));
        }
    });
}
