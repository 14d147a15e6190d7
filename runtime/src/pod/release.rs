//! Giving back what a pod holds. Every step may be repeated, and none is left out because another failed.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::state::{Change, Stage};
use super::{Error, Inner, Pod, files};
use crate::model::{Process, chain};
use crate::sys;
use crate::undo::{Failures, Steps};

/// How long systemd may take to see that a scope is empty, and how often that is looked at.
const SCOPE_END: Duration = Duration::from_secs(1);
const SCOPE_LOOK: Duration = Duration::from_millis(5);

/// How long a chain of CNI plugins may take in all; each has a limit of its own.
const NETWORK_LIMIT: Duration = Duration::from_secs(600);

/// Stops: pause dies, network and namespaces go, the record stays.
pub(super) async fn stop(inner: &Arc<Inner>, pod: &Arc<Pod>) -> Result<(), Error> {
    let events = &inner.deps.events;
    if pod.change(events, Change::Lost) >= Stage::Released {
        return Ok(());
    }
    let released = resources(inner, pod).run().await;
    if released.is_ok() {
        pod.change(events, Change::Released);
    }
    let saved = inner.save(pod).await;
    crash_point!("stop_pod.record.after");
    let failed = |failures| Error::Release {
        id: pod.id.clone(),
        failures,
    };
    released.map_err(failed)?;
    saved.map_err(|e| failed(Failures(vec![("record", chain(&e))])))
}

/// Removes what a stop leaves: files, record, name.
pub(super) async fn remove(inner: &Arc<Inner>, pod: &Arc<Pod>) -> Result<(), Error> {
    stop(inner, pod).await?;
    forget(inner, pod)
        .await
        .map_err(|failures| Error::Release {
            id: pod.id.clone(),
            failures,
        })?;
    inner.pods.remove(&pod.id);
    inner.names.free(&pod.spec.metadata, &pod.id);
    pod.change(&inner.deps.events, Change::Removed);
    Ok(())
}

/// Undoes a run that failed. False when something is left; the record then says so.
pub(super) async fn undo(inner: &Arc<Inner>, pod: &Arc<Pod>) -> bool {
    let outcome = match resources(inner, pod).run().await {
        Ok(()) => forget(inner, pod).await,
        Err(failures) => Err(failures),
    };
    let events = &inner.deps.events;
    let Err(failures) = outcome else {
        pod.change(events, Change::Removed);
        return true;
    };
    tracing::error!(pod.id = %pod.id, %failures, "a failed pod could not be undone: it stays until it is removed");
    pod.change(events, Change::Kept);
    if let Err(error) = inner.save(pod).await {
        tracing::error!(pod.id = %pod.id, error = %chain(&error), "cannot record the failed pod");
    }
    false
}

fn resources(inner: &Arc<Inner>, pod: &Arc<Pod>) -> Steps {
    let mut steps = Steps::of("stop_pod");
    let parts = pod.parts().clone();
    let same_boot = parts.boot_id == inner.deps.facts.boot_id;
    if same_boot {
        if let Some(pause) = parts.pause.clone() {
            steps.push_blocking("pause process", move || kill(&pause));
        }
        let leaves = parts.cgroup.clone();
        steps.push_blocking("cgroup", move || {
            crate::cgroup::kill(&leaves)
                .and_then(|()| crate::cgroup::remove(&leaves))
                .map_err(|e| chain(&e))
        });
    }
    if let Some(scope) = parts.scope.filter(|_| same_boot) {
        let inner = inner.clone();
        let dirs = crate::spec::leaves(&inner.deps.facts.cgroup, &parts.cgroup_parent);
        steps.push("scope", async move {
            // It goes with its last process. What stays holds something foreign.
            let end = Instant::now() + SCOPE_END;
            while dirs.iter().any(|dir| Path::new(dir).exists()) {
                if Instant::now() > end {
                    let stopped = inner.deps.cgroups.stop(&scope.unit).await;
                    return stopped.map_err(|e| chain(&e));
                }
                tokio::time::sleep(SCOPE_LOOK).await;
            }
            Ok(())
        });
    }
    if let Some(netns) = parts.netns {
        let (inner, id) = (inner.clone(), pod.id.clone());
        steps.push_within("network", NETWORK_LIMIT, async move {
            inner.deps.network.forget(&id).await.map_err(|e| chain(&e))
        });
        steps.push_blocking("network namespace", move || sys::netns::unpin(&netns));
    }
    let dir = inner.state_dir(&pod.id);
    for name in ["ns/ipc", "ns/uts", "ns/pid"] {
        let path = dir.join(name);
        steps.push_blocking("namespace", move || sys::netns::unpin(&path));
    }
    steps.push_blocking("files and shared memory", move || files::unmount(&dir));
    steps
}

/// The pod's files and record.
async fn forget(inner: &Arc<Inner>, pod: &Arc<Pod>) -> Result<(), Failures> {
    let mut steps = Steps::of("remove_pod");
    let dir = inner.state_dir(&pod.id);
    steps.push_blocking("files", move || match std::fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    });
    let counted = std::mem::replace(&mut pod.parts().holds_parent, false);
    if counted {
        let (inner, parent) = (inner.clone(), pod.parts().cgroup_parent.clone());
        steps.push_blocking("parent cgroup", move || {
            inner.parents.release(&inner.deps.facts.cgroup, &parent);
            Ok::<(), String>(())
        });
    }
    // The record goes last: while it is there, a restarted daemon knows what to release.
    steps.run().await?;
    *pod.saving.lock().await = true;
    let (inner, id) = (inner.clone(), pod.id.clone());
    let mut steps = Steps::of("remove_pod");
    steps.push_blocking("record", move || {
        inner.records.remove(id.as_str()).map_err(|e| chain(&e))
    });
    steps.run().await
}

fn kill(pause: &Process) -> Result<(), String> {
    sys::process::kill_and_wait(pause.pid, pause.start_time)
        .map_err(|e| format!("pid {}: {e}", pause.pid))
}
