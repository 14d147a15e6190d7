//! RemoveContainer, and the undoing of a create that failed.

use std::sync::Arc;

use super::log::Fresh;
use super::{Change, Container, Error, Inner, stop};
use crate::model::chain;
use crate::undo::{Failures, Steps};

pub(super) async fn remove(inner: &Arc<Inner>, container: &Arc<Container>) -> Result<(), Error> {
    stop::end_start(inner, container).await?;
    let _turn = container.turn.lock().await;
    if inner.containers.get(&container.id).is_none() {
        return Ok(());
    }
    if !container.status().is_over() {
        stop::kill(inner, container).await?;
    }
    crash_point!("remove_container.end.after");
    release(inner, container)
        .await
        .map_err(|failures| Error::Release {
            id: container.id.clone(),
            failures,
        })?;
    inner.containers.remove(&container.id);
    inner.names.free(&container.name(), &container.id);
    container.change(&inner.deps.events, Change::Removed);
    Ok(())
}

/// Undoes a create. What cannot be undone is named in the log; the record stays for the next start.
pub(super) async fn undo(inner: &Arc<Inner>, container: &Arc<Container>, fresh: Option<Fresh>) {
    inner.containers.remove(&container.id);
    if let Some(monitor) = container.monitor() {
        // Gone already when the create failed in it; what it leaves is killed by cgroup below.
        let _ = monitor.destroy().await;
    }
    container.change(&inner.deps.events, Change::Removed);
    if let Some(fresh) = fresh {
        crate::blocking::run("remove the log of a failed container", || fresh.remove()).await;
    }
    if let Err(failures) = release(inner, container).await {
        tracing::error!(container.id = %container.id, %failures, "a failed container could not be undone: its record stays");
    }
}

/// Gives back cgroup, writable layer, bundle and, last, the record.
async fn release(inner: &Arc<Inner>, container: &Arc<Container>) -> Result<(), Failures> {
    let mut steps = Steps::of("remove_container");
    if container.parts().boot_id == inner.deps.facts.boot_id {
        let leaves = container.parts().leaves.clone();
        steps.push_blocking("cgroup", move || {
            crate::cgroup::kill(&leaves)
                .and_then(|()| crate::cgroup::remove(&leaves))
                .map_err(|e| chain(&e))
        });
    }
    let (storage, id) = (inner.deps.storage.clone(), container.id.clone());
    steps.push_blocking("writable layer", move || {
        storage.remove_snapshot(&id).map_err(|e| chain(&e))
    });
    let (programs, filter) = (
        inner.deps.programs.clone(),
        container.parts().seccomp.clone(),
    );
    container.parts().seccomp.clear();
    steps.push_blocking("system call filter", move || {
        programs.release(&filter).map_err(|e| chain(&e))
    });
    let dir = inner.state_dir(&container.id);
    steps.push_blocking("bundle", move || match std::fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    });
    steps.run().await?;
    *container.saving.lock().await = true;
    let (inner, id) = (inner.clone(), container.id.clone());
    let mut steps = Steps::of("remove_container");
    steps.push_blocking("record", move || {
        inner.records.remove(id.as_str()).map_err(|e| chain(&e))
    });
    steps.run().await
}
