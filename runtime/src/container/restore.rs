//! The containers that an earlier daemon left.

use std::sync::Arc;
use std::time::Duration;

use super::exit::{monitor_is_gone, outcome, over, unknown};
use super::record::ContainerRecord;
use super::state::Stage;
use super::{Change, Container, ContainerManager, Inner, create, remove, start, stop};
use crate::id::ContainerId;
use crate::model::chain;
use crate::shim::ConnectError;
use crate::store::Loaded;

/// How long a monitor that does not answer is left alone before it is asked again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl ContainerManager {
    /// Takes up every container on disk as its monitor or its exit record shows it, undoes half-made ones,
    /// and removes what belongs to nobody. A container whose record cannot be read is shown as its identity tells.
    ///
    /// # Errors
    /// When the records cannot be listed at all.
    pub async fn restore(&self) -> Result<(), crate::store::Error> {
        let inner = &self.0;
        let mut tasks = tokio::task::JoinSet::new();
        for found in inner.records.load_all()? {
            let Ok(id) = found.id.parse::<ContainerId>() else {
                tracing::error!(container.id = %found.id, "no container has such an id: its directory is left alone");
                continue;
            };
            let inner = inner.clone();
            match found.object {
                Loaded::Whole(record) => {
                    tasks.spawn(async move { adopt(&inner, id, record).await });
                }
                Loaded::Shown(record, error) => {
                    let problem = chain(&error);
                    tracing::error!(container.id = %id, problem, "the container's record cannot be read: its state is unknown until it is stopped and removed");
                    let container = Container::shown(id, record, problem);
                    tasks.spawn(async move { take_up(&inner, container).await });
                }
                Loaded::Lost { record, identity } => {
                    tracing::error!(container.id = %id, record = %chain(&record), identity = %chain(&identity), "nothing of the container can be read: its processes are ended, and it is removed");
                    tasks.spawn(async move { drop_lost(&inner, &id).await });
                }
            }
        }
        while let Some(result) = tasks.join_next().await {
            if let Err(error) = result {
                tracing::error!(%error, "a container could not be taken up");
            }
        }
        sweep(inner).await;
        Ok(())
    }
}

async fn adopt(inner: &Arc<Inner>, id: ContainerId, record: ContainerRecord) {
    if record.status.stage == Stage::Making {
        inner.deps.programs.restore(&record.parts.seccomp);
        let same_boot = record.parts.boot_id == inner.deps.facts.boot_id;
        tracing::info!(container.id = %id, "undoing a container that was being made when the daemon ended");
        let container = Container::new(id, record);
        if same_boot
            && let Ok((monitor, _)) = inner
                .deps
                .launcher
                .connect(&container.id, &inner.state_dir(&container.id))
                .await
        {
            container.attach(&inner.deps.events, monitor);
        }
        remove::undo(inner, &container, None).await;
        return;
    }
    take_up(inner, Container::new(id, record)).await;
}

async fn take_up(inner: &Arc<Inner>, container: Arc<Container>) {
    let same_boot = {
        let parts = container.parts();
        inner.deps.programs.restore(&parts.seccomp);
        parts.boot_id == inner.deps.facts.boot_id
    };
    inner.names.restore(
        container.name(),
        Arc::new(create::request(&container.spec)),
        container.id.clone(),
    );
    inner.containers.insert(&container.id, &container);
    if container.status().is_over() {
        if same_boot {
            let inner = inner.clone();
            // One that hung when its container ended may still do so.
            tokio::spawn(async move { super::exit::end_monitor(&inner, &container).await });
        }
        return;
    }
    if !same_boot {
        return over(
            inner,
            &container,
            unknown("the machine was restarted while the container ran"),
            0,
        )
        .await;
    }
    if let Err(error) = reach(inner, &container).await {
        tracing::error!(container.id = %container.id, error = %chain(&error), "the container's monitor does not answer; it is asked again");
        container.change(&inner.deps.events, Change::Silent);
        let inner = inner.clone();
        tokio::spawn(async move { persist(&inner, &container).await });
    }
}

/// Takes up a container as its monitor shows it, or as it left it.
///
/// # Errors
/// There is a monitor, and it does not answer.
pub(super) async fn reach(
    inner: &Arc<Inner>,
    container: &Arc<Container>,
) -> Result<(), ConnectError> {
    let launcher = &inner.deps.launcher;
    let dir = inner.state_dir(&container.id);
    let (monitor, state) = match launcher.connect(&container.id, &dir).await {
        Err(ConnectError::Gone) => {
            monitor_is_gone(inner, container).await;
            return Ok(());
        }
        reached => reached?,
    };
    if let Some(exit) = &state.exit {
        over(inner, container, outcome(exit), exit.started_at).await;
        return Ok(());
    }
    container.attach(&inner.deps.events, monitor);
    // Of one that is only shown too little is known to say more.
    if container.problem.is_none() {
        let told = Change::Told {
            started_at: state.started_at,
            starting: state.starting,
        };
        container.change(&inner.deps.events, told);
    }
    if container.status().stage == Stage::Starting {
        start::resume(inner, container);
    }
    Ok(())
}

/// Asks a monitor that did not answer until it does, or is gone, or the container is.
async fn persist(inner: &Arc<Inner>, container: &Arc<Container>) {
    let (mut pause, mut dead) = (FIRST_PAUSE, false);
    while !container.status().is_over() && inner.containers.get(&container.id).is_some() {
        tokio::time::sleep(pause).await;
        if reach(inner, container).await.is_ok() {
            tracing::info!(container.id = %container.id, "the container's monitor answered");
            return;
        }
        // It had time to tell since it was seen dead first.
        if dead && let Err(error) = stop::past_monitor(inner, container).await {
            tracing::error!(container.id = %container.id, error = %chain(&error), "the container is dead but not over: its monitor hangs");
        }
        dead = stop::is_dead(container);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Without record and identity nobody could ever name it, nor end it.
async fn drop_lost(inner: &Arc<Inner>, id: &ContainerId) {
    if let Ok((monitor, _)) = inner.deps.launcher.connect(id, &inner.state_dir(id)).await {
        // What is left of it dies with the cgroup.
        let _ = monitor.destroy().await;
    }
    let (inner, id) = (inner.clone(), id.clone());
    crate::blocking::run("end what is left of a lost container", move || {
        if let Err(error) = crate::cgroup::end_named(&inner.deps.facts.cgroup, &[id.to_string()]) {
            tracing::error!(container.id = %id, error = %chain(&error), "cannot end its processes");
        }
        if let Err(error) = inner.records.remove(id.as_str()) {
            tracing::error!(container.id = %id, error = %chain(&error), "cannot remove its directory");
        }
    })
    .await;
}

/// Writable layers, bundles and system call filters without a record.
async fn sweep(inner: &Arc<Inner>) {
    let inner = inner.clone();
    crate::blocking::run("sweep what earlier containers left", move || {
        // The filter of a container whose record cannot be read is named there only.
        let all_read = inner.containers.all().iter().all(|c| c.problem.is_none());
        if all_read && let Err(error) = inner.deps.programs.sweep() {
            tracing::warn!(error = %chain(&error), "cannot remove a system call filter that belongs to nobody");
        }
        let known: std::collections::BTreeSet<ContainerId> = inner.containers.all().iter().map(|c| c.id.clone()).collect();
        for id in inner.deps.storage.snapshots() {
            if !known.contains(&id)
                && let Err(error) = inner.deps.storage.remove_snapshot(&id)
            {
                tracing::warn!(container.id = %id, error = %chain(&error), "cannot remove a writable layer that belongs to nobody");
            }
        }
        let dir = inner.deps.config.state.join("containers");
        let Ok(entries) = std::fs::read_dir(&dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let id = name.to_str().and_then(|n| n.parse::<ContainerId>().ok());
            if id.is_some_and(|id| !known.contains(&id))
                && let Err(error) = std::fs::remove_dir_all(entry.path())
            {
                tracing::warn!(bundle = %entry.path().display(), %error, "cannot remove a bundle that belongs to nobody");
            }
        }
    })
    .await;
}
