//! CreateContainer: root file system, plan, bundle, monitor, record.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;

use shim_protocol::{monitor, worker};

use super::log::{self, Fresh, Log};
use super::record::{ContainerRecord, Parts};
use super::state::Status;
use super::{
    Change, Container, ContainerManager, Error, Inner, Name, devices, mounts, remove, users,
    volumes,
};
use crate::blocking;
use crate::id::ContainerId;
use crate::model::{
    ContainerSpec, ContainerState, ContainerUser, Kind, Kinded, NamespaceMode, PodSpec, ReadyPod,
    ResolvedImage, SignalName, chain, now_nanos,
};
use crate::runtime::ContainerLaunch;
use crate::spec;
use crate::store::{Refused, Reservation};
use crate::sys;

/// What makes two creates the same.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request(Arc<ContainerSpec>);

type NameReservation = Reservation<Name, ContainerId, Request, Error>;

pub(super) async fn join_or_create(
    manager: &ContainerManager,
    pod: ReadyPod,
    request_pod: Option<PodSpec>,
    image: ResolvedImage,
    held: impl Send + 'static,
    spec: ContainerSpec,
) -> Result<ContainerId, Error> {
    let inner = manager.0.clone();
    let spec = Arc::new(spec);
    let name: Name = (pod.id.clone(), spec.metadata.clone());
    let request = Arc::new(Request(spec.clone()));
    let making = Making {
        inner,
        pod,
        request_pod,
        image,
        spec,
    };
    let make = |reservation| async move {
        making.run(reservation).await;
        drop(held);
    };
    // An equal request may come again before its container is started, and not later.
    let fresh = |id: &ContainerId| {
        let container = manager.0.containers.get(id);
        container.is_some_and(|c| c.state() == ContainerState::Created)
    };
    let made = manager
        .0
        .names
        .join_or_make(name.clone(), request, fresh, make)
        .await;
    made.map_err(|refused| match refused {
        Refused::Failed(error) => Error::Shared(error),
        Refused::Busy => Error::Busy(print(&name)),
        Refused::Taken(id) => Error::Exists {
            name: print(&name),
            id,
        },
        Refused::Lost => Error::Step {
            name: print(&name),
            step: "finish the making",
            problem: "the task ended without a result (a bug in Berth, see its log)".to_owned(),
            kind: Kind::Unknown,
        },
    })
}

fn print((pod, name): &Name) -> String {
    format!(
        "{} (attempt {}) of pod sandbox {}",
        name.name,
        name.attempt,
        pod.short()
    )
}

/// One create under way.
struct Making {
    inner: Arc<Inner>,
    pod: ReadyPod,
    request_pod: Option<PodSpec>,
    image: ResolvedImage,
    spec: Arc<ContainerSpec>,
}

/// What is known before anything of the container is made.
struct Given {
    /// The PID namespace that it joins, with `pid: Target` only.
    target: Option<PathBuf>,
    /// The AppArmor profile that it changes to; empty: none to set.
    apparmor: String,
}

/// What is ready before the monitor is started.
struct Prepared {
    rootfs: OwnedFd,
    user: ContainerUser,
    plan: spec::ContainerPlan,
    log: Option<Log>,
    /// The log, where a failed create has to remove it.
    fresh: Option<Fresh>,
    /// The system call filter and its name.
    program: Option<(String, File)>,
}

impl Making {
    fn failed(&self, step: &'static str, kind: Kind, problem: impl Into<String>) -> Error {
        Error::Step {
            name: self.spec.metadata.name.clone(),
            step,
            problem: problem.into(),
            kind,
        }
    }

    async fn run(self, reservation: NameReservation) {
        match self.make().await {
            Ok(container) => {
                reservation.finish(Ok(container.id.clone()));
                if self.inner.containers.get(&container.id).is_none() {
                    // Somebody has found it in a list and removed it already.
                    self.inner.names.free(&container.name(), &container.id);
                }
            }
            Err(error) => reservation.finish(Err(Arc::new(error))),
        }
    }

    async fn make(&self) -> Result<Arc<Container>, Error> {
        self.check()?;
        let id = ContainerId::generate()
            .map_err(|e| self.failed("choose the id", Kind::Unknown, e.to_string()))?;
        let record = self.intent(&id)?;
        let container = Container::new(id, record);
        crash_point!("create_container.record.before");
        let saved = self.inner.save(&container).await;
        saved.map_err(|e| self.failed("write the record", Kind::Unknown, chain(&e)))?;
        crash_point!("create_container.record.after");
        let made = self.acquire(&container).await;
        match made {
            Ok(()) => Ok(container),
            Err((error, fresh)) => {
                remove::undo(&self.inner, &container, fresh).await;
                Err(error)
            }
        }
    }

    fn check(&self) -> Result<(), Error> {
        let (pod, spec) = (&self.pod, &self.spec);
        if spec.privileged && !pod.spec.privileged {
            return Err(Error::Invalid(format!(
                "container {} is privileged, but its pod sandbox is not: set privileged in the sandbox's security context too",
                spec.metadata.name
            )));
        }
        let (own, its) = (&spec.namespaces, &pod.spec.namespaces);
        if own.network != its.network || own.ipc != its.ipc {
            return Err(Error::Invalid(format!(
                "container {} asks for other network or IPC namespaces than its pod sandbox has",
                spec.metadata.name
            )));
        }
        Ok(())
    }

    /// The record before anything is acquired: what a killed daemon leaves half-made is found by what it says.
    fn intent(&self, id: &ContainerId) -> Result<ContainerRecord, Error> {
        let (image, spec) = (&self.image, &self.spec);
        let cgroup_path = spec::container_cgroup(&self.pod, id);
        let leaves = spec::leaves(&self.inner.deps.facts.cgroup, &cgroup_path);
        let log_directory = self
            .request_pod
            .as_ref()
            .map_or(&self.pod.spec.log_directory, |p| &p.log_directory);
        let log_path = log::path(log_directory, &spec.log_path);
        let parts = Parts {
            spec: spec.clone(),
            pod: self.pod.id.clone(),
            created_at: now_nanos(),
            boot_id: self.inner.deps.facts.boot_id.clone(),
            image_id: image.id,
            image_name: image.name.clone(),
            image_ref: image.reference.clone(),
            chain: image.chain.clone(),
            log_path,
            user: ContainerUser::default(),
            resources: spec.resources.clone(),
            stop_signal: self.stop_signal(id),
            process: worker::Process::default(),
            seccomp: String::new(),
            cgroup_path,
            leaves,
        };
        Ok(ContainerRecord {
            status: Status::new(),
            parts,
        })
    }

    /// That of an image is somebody else's word: what is none keeps no container from being made.
    fn stop_signal(&self, id: &ContainerId) -> SignalName {
        let image = self.image.config.stop_signal.as_str();
        match (&self.spec.stop_signal, image) {
            (Some(signal), _) => signal.clone(),
            (None, "") => spec::signals::term(),
            (None, text) => spec::signals::parse(text).unwrap_or_else(|error| {
                tracing::warn!(
                    container = %id,
                    image = self.image.name,
                    "the image's stop signal is none, SIGTERM is taken: {error}"
                );
                spec::signals::term()
            }),
        }
    }

    async fn acquire(&self, container: &Arc<Container>) -> Result<(), (Error, Option<Fresh>)> {
        let mut prepared = self.prepare(container).await.map_err(|e| (e, None))?;
        let fresh = prepared.fresh.take();
        self.launch(container, prepared)
            .await
            .map_err(|e| (e, fresh))
    }

    async fn prepare(&self, container: &Arc<Container>) -> Result<Prepared, Error> {
        let given = Given {
            target: self.target_pidns()?,
            apparmor: self.apparmor().await?,
        };
        let inner = self.inner.clone();
        let (pod, image, spec) = (self.pod.clone(), self.image.clone(), self.spec.clone());
        let (id, log_path) = (container.id.clone(), container.parts().log_path.clone());
        let _clock = self.inner.deps.metrics.step("create_container", "prepare");
        let prepared = blocking::run("prepare a container", move || {
            prepare_blocking(&inner, &id, &pod, &image, &spec, &given, &log_path)
        })
        .await;
        let prepared = prepared.map_err(|(step, kind, problem)| match kind {
            Kind::InvalidArgument => {
                Error::Invalid(format!("container {}: {problem}", self.spec.metadata.name))
            }
            kind => self.failed(step, kind, problem),
        })?;
        let mut parts = container.parts();
        parts.user = prepared.user.clone();
        parts.process = prepared.plan.process.clone();
        if let Some((name, _)) = &prepared.program {
            parts.seccomp.clone_from(name);
        }
        drop(parts);
        Ok(prepared)
    }

    async fn apparmor(&self) -> Result<String, Error> {
        let (spec, apparmor) = (&self.spec, &self.inner.deps.apparmor);
        let resolved = apparmor.resolve(&spec.apparmor, spec.privileged).await;
        resolved.map_err(|e| self.failed("choose the AppArmor profile", e.kind(), chain(&e)))
    }

    /// The PID namespace of the container that this one looks into (row F017).
    fn target_pidns(&self) -> Result<Option<PathBuf>, Error> {
        let modes = &self.spec.namespaces;
        if modes.pid != NamespaceMode::Target {
            return Ok(None);
        }
        let target = self.inner.find(&modes.target)?;
        let pid = target.status().init.as_ref().map(|p| p.pid);
        let running = target.state() == ContainerState::Running;
        match pid {
            // Whatever namespace the target is in, its own or a shared one, is the one that is meant.
            Some(pid) if running && target.pod == self.pod.id => {
                Ok(Some(PathBuf::from(format!("/proc/{pid}/ns/pid"))))
            }
            _ => Err(Error::Invalid(format!(
                "container {}: its target {} is not a running container of the same pod sandbox",
                self.spec.metadata.name, modes.target
            ))),
        }
    }

    async fn launch(&self, container: &Arc<Container>, prepared: Prepared) -> Result<(), Error> {
        let deps = &self.inner.deps;
        let dir = self.inner.state_dir(&container.id);
        let program = prepared.program.map(|(_, file)| file);
        let plan = prepared.plan;
        let terminal = plan.process.terminal;
        let create = monitor::Create {
            container: Some(worker::Create {
                id: container.id.to_string(),
                bundle: dir.display().to_string(),
                engine_root: dir.join("engine").display().to_string(),
                rootfs: self.inner.rootfs_path().display().to_string(),
                cgroup: Some(plan.cgroup.clone()),
                process: Some(plan.process),
                rlimits: super::limits(&deps.config),
            }),
            boot_id: deps.facts.boot_id.clone(),
            log_name: prepared
                .log
                .as_ref()
                .map(|l| l.name.clone())
                .unwrap_or_default(),
            log_line: deps.config.log_line_max,
            stdin: self.spec.stdin,
            stdin_once: self.spec.stdin_once,
            oom: Some(plan.oom),
            kill_cgroup: plan.kill_cgroup,
            leaves: plan.cgroup.leaves,
        };
        debug_assert_eq!(terminal, self.spec.tty);
        let launch = ContainerLaunch {
            id: container.id.clone(),
            dir,
            create,
            rootfs: prepared.rootfs,
            seccomp: program.map(OwnedFd::from),
            log_dir: prepared.log.map(|l| l.dir),
        };
        let clock = deps.metrics.step("create_container", "monitor");
        let (monitor, init) = deps
            .runtime
            .create(launch)
            .await
            .map_err(|e| self.failed("make the process", e.kind(), chain(&e)))?;
        drop(clock);
        crash_point!("create_container.made.after");
        container.attach(&deps.events, monitor);
        let made = Change::Made { init: init.clone() };
        // What is heard of is on disk.
        let saved = self.inner.save_after(container, Some(made.clone())).await;
        crash_point!("create_container.ready.after");
        saved.map_err(|e| self.failed("write the record", Kind::Unknown, chain(&e)))?;
        let table = &self.inner.containers;
        container.change_and(&deps.events, made, || {
            table.insert(&container.id, container)
        });
        // One that ended before it was inserted was reported to nobody.
        if deps.runtime.is_alive(&init).is_ok_and(|alive| !alive) {
            super::exit::await_end(&self.inner, container).await;
        }
        Ok(())
    }
}

impl Inner {
    /// Where every worker, in a mount namespace of its own, attaches its container's root.
    fn rootfs_path(&self) -> PathBuf {
        self.deps.config.state.join("stage").join("rootfs")
    }
}

/// Foreign names for the log: quoted, and not more of them than can be read.
fn shown(names: &[String]) -> String {
    const NAMES: usize = 16;
    const LETTERS: usize = 64;
    let quoted = names.iter().take(NAMES).map(|name| {
        let name: String = name.chars().take(LETTERS).collect();
        format!("{name:?}")
    });
    let mut text = quoted.collect::<Vec<_>>().join(", ");
    if names.len() > NAMES {
        text.push_str(&format!(" and {} more", names.len() - NAMES));
    }
    text
}

type Failed = (&'static str, Kind, String);

const OPEN_LOG: &str = "open the log";
const VOLUMES: &str = "make the volumes";

/// Without their mounts the places of the pod's files would be the node's own state, for the container to fill.
fn in_place(pod: &ReadyPod) -> Result<(), Failed> {
    let own = pod.ipcns.as_ref().map(|_| &pod.shm);
    for place in own.into_iter().chain([&pod.files]) {
        if !sys::mount::is_mount_point(place).unwrap_or(false) {
            let problem = format!(
                "{} is not mounted any more: restart Berth, which mounts it again",
                place.display()
            );
            return Err(("use the pod's files", Kind::FailedPrecondition, problem));
        }
    }
    Ok(())
}

fn prepare_blocking(
    inner: &Inner,
    id: &ContainerId,
    pod: &ReadyPod,
    image: &ResolvedImage,
    spec: &ContainerSpec,
    given: &Given,
    log_path: &str,
) -> Result<Prepared, Failed> {
    let deps = &inner.deps;
    let storage =
        |e: crate::storage::Error| ("make the root file system", Kind::Unknown, chain(&e));
    let invalid = |problem: String| ("read the request", Kind::InvalidArgument, problem);
    let disk = |step: &'static str| move |e: std::io::Error| (step, Kind::Unknown, e.to_string());

    deps.storage.prepare(id, &image.chain).map_err(storage)?;
    crash_point!("create_container.layer.after");
    let rootfs = deps.storage.mount(id, &image.chain).map_err(storage)?;
    let user = users::resolve(id, rootfs.as_fd(), &spec.user, &image.config.user);
    let user = user.map_err(invalid)?;
    in_place(pod)?;
    let declared = volumes::Source {
        storage: &deps.storage,
        id,
        root: rootfs.as_fd(),
        declared: &image.config.volumes,
        mounts: &spec.mounts,
        closing: &pod.closing,
    };
    let mut mounts = volumes::make(&declared).map_err(|e| (VOLUMES, e.kind(), chain(&e)))?;
    crash_point!("create_container.volumes.after");
    mounts.extend(mounts::resolve(&spec.mounts).map_err(invalid)?);
    let nodes = devices::resolve(&spec.devices, spec.privileged).map_err(invalid)?;
    let cpuset = crate::cgroup::cpuset(&deps.facts.cgroup, &pod.cgroup_parent)
        .map_err(|e| ("read the pod's cpuset", Kind::Unknown, chain(&e)))?;
    let dir = inner.state_dir(id);
    let plan = spec::container(&spec::ContainerInput {
        id,
        pod,
        spec,
        image: &image.config,
        user: &user,
        facts: &deps.facts,
        rootfs: &inner.rootfs_path(),
        mounts: &mounts,
        devices: &nodes,
        target_pidns: given.target.as_deref(),
        cpuset: cpuset.as_ref(),
        apparmor: &given.apparmor,
    })
    .map_err(|e| invalid(chain(&e)))?;
    if !plan.unknown_capabilities.is_empty() {
        tracing::warn!(
            container.id = %id,
            unknown = shown(&plan.unknown_capabilities),
            "the container's request names capabilities that do not exist: they are passed over"
        );
    }
    if plan.oom_score_clamped {
        tracing::warn!(
            container.id = %id,
            wanted = spec.resources.oom_score_adj,
            given = plan.process.oom_score_adj,
            "the kernel lets Berth go no lower with oom_score_adj: it has no CAP_SYS_RESOURCE"
        );
    }

    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir.join("engine"))
        .map_err(disk("make the bundle"))?;
    crash_point!("create_container.directory.after");
    let config = serde_json::to_vec(&plan.oci)
        .map_err(|e| ("make the bundle", Kind::Unknown, e.to_string()))?;
    std::fs::write(dir.join("config.json"), config).map_err(disk("make the bundle"))?;
    crash_point!("create_container.bundle.after");
    let directory = log::directory_of(log_path, &spec.log_path);
    let log = log::open(directory, &spec.log_path).map_err(|e| (OPEN_LOG, Kind::Unknown, e))?;
    let fresh = log.as_ref().map(Log::fresh).transpose();
    let fresh = fresh.map_err(disk(OPEN_LOG))?.flatten();
    crash_point!("create_container.log_directory.after");
    // Last: from here on somebody has to let go of it.
    let program = program(deps, &plan)?;
    crash_point!("create_container.filter.after");
    Ok(Prepared {
        rootfs,
        user,
        plan,
        log,
        fresh,
        program,
    })
}

fn program(
    deps: &super::Deps,
    plan: &spec::ContainerPlan,
) -> Result<Option<(String, File)>, Failed> {
    let bounding = plan.process.capabilities.as_ref().map_or(0, |c| c.bounding);
    let program = deps
        .seccomp
        .program(&plan.seccomp, bounding)
        .map_err(|e| ("read the request", Kind::InvalidArgument, chain(&e)))?;
    let Some(program) = program else {
        return Ok(None);
    };
    let kept = deps.programs.hold(&program);
    kept.map(Some)
        .map_err(|e| ("keep the system call filter", Kind::Unknown, chain(&e)))
}

/// The request that an existing container was made by.
pub(super) fn request(spec: &Arc<ContainerSpec>) -> Request {
    Request(spec.clone())
}
