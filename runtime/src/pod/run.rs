//! RunPodSandbox: one maker for each name, and the watch over the pause process.

use std::path::PathBuf;
use std::sync::Arc;

use super::acquire::Acquiring;
use super::record::{Parts, PodRecord};
use super::state::{Change, Stage};
use super::{Error, Inner, Pod, PodManager, release};
use crate::id::PodId;
use crate::model::{Kind, NamespaceMode, PodSpec, chain, now_nanos};
use crate::shim::PauseHandle;
use crate::store::{Refused, Reservation};
use crate::sys;

pub(super) type NameReservation = Reservation<crate::model::PodMetadata, PodId, PodSpec, Error>;

pub(super) async fn join_or_run(manager: &PodManager, spec: Arc<PodSpec>) -> Result<PodId, Error> {
    let (inner, name) = (manager.0.clone(), spec.metadata.clone());
    let making = spec.clone();
    let make = |reservation| async move { run(&inner, making, reservation).await };
    let ready = |id: &PodId| {
        let pod = manager.0.pods.get(id);
        pod.is_some_and(|p| p.is_ready())
    };
    let names = &manager.0.names;
    let made = names.join_or_make(name.clone(), spec, ready, make).await;
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

/// A pod's name as people know it.
pub(super) fn print(name: &crate::model::PodMetadata) -> String {
    format!(
        "{}/{} (attempt {})",
        name.namespace, name.name, name.attempt
    )
}

async fn run(inner: &Arc<Inner>, spec: Arc<PodSpec>, reservation: NameReservation) {
    let pod = match prepare(inner, &spec) {
        Ok(pod) => pod,
        Err(error) => return reservation.finish(Err(Arc::new(error))),
    };
    let outcome = Acquiring::new(inner, &pod).run().await;
    let Err(error) = outcome else {
        reservation.finish(Ok(pod.id.clone()));
        if inner.pods.get(&pod.id).is_none() {
            // Somebody has found it in a list and removed it already.
            inner.names.free(&pod.spec.metadata, &pod.id);
        }
        return;
    };
    if release::undo(inner, &pod).await {
        reservation.finish(Err(Arc::new(error)));
    } else {
        // Not all of it could be given back: it stays visible, so that it is stopped again.
        inner.pods.insert(&pod.id, &pod);
        reservation.finish_failed_but_kept(pod.id.clone(), Arc::new(error));
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
    let deps = &inner.deps;
    let id = PodId::generate().map_err(|e| failed("choose the id", e.to_string()))?;
    let (cgroup_parent, scope) = deps
        .cgroups
        .of(&id, &spec.cgroup_parent)
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
    let parts = Parts {
        spec: spec.clone(),
        created_at: now_nanos(),
        boot_id: deps.facts.boot_id.clone(),
        hostname,
        cgroup_parent,
        scope,
        made_parents: Vec::new(),
        holds_parent: false,
        cgroup: Vec::new(),
        netns: own_network.then(|| netns_path(inner, &id)),
        ips: Vec::new(),
        cni_result: None,
        pause: None,
    };
    let stage = Stage::Making;
    Ok(Pod::new(id, PodRecord { stage, parts }))
}

pub(super) fn netns_path(inner: &Inner, id: &PodId) -> PathBuf {
    inner.deps.config.netns_dir.join(format!("berth-{id}"))
}

/// The pod is NotReady as soon as its pause process is gone.
pub(super) fn watch(inner: &Arc<Inner>, pod: &Arc<Pod>, pause: PauseHandle) {
    let (inner, pod) = (inner.clone(), pod.clone());
    tokio::spawn(async move {
        let mut stage = pod.stage.subscribe();
        tokio::select! {
            ended = sys::process::ended(pause.pidfd) => {
                if let Err(error) = ended {
                    tracing::error!(pod.id = %pod.id, %error, "cannot watch the pause process");
                    return;
                }
            }
            _ = stage.wait_for(|stage| *stage > Stage::Ready) => return,
        }
        if pod.change(&inner.deps.events, Change::Lost) == Stage::Ready {
            tracing::warn!(pod.id = %pod.id, "the pause process is gone: the pod sandbox is not ready any more");
            if let Err(error) = inner.save(&pod).await {
                tracing::error!(pod.id = %pod.id, error = %chain(&error), "cannot record that the pod is not ready");
            }
        }
    });
}
