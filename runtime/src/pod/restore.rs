//! The pods that an earlier daemon left.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::record::Parts;
use super::run::watch;
use super::state::{Change, Stage};
use super::{Inner, Pod, PodManager, release};
use crate::id::PodId;
use crate::model::{Process, chain};
use crate::store::Loaded;

impl PodManager {
    /// Takes up every pod on disk as the kernel shows it, undoes half-made ones, and releases what
    /// belongs to nobody. A pod whose record cannot be read is shown as its identity tells, not ready.
    ///
    /// # Errors
    /// When the records cannot be listed at all.
    pub async fn restore(&self) -> Result<(), crate::store::Error> {
        let inner = &self.0;
        let mut half_made = Vec::new();
        for found in inner.records.load_all()? {
            let Ok(id) = found.id.parse::<PodId>() else {
                tracing::error!(pod.id = %found.id, "no pod has such an id: its directory is left alone");
                continue;
            };
            match found.object {
                Loaded::Whole(record) => {
                    let pod = Pod::new(id, record);
                    self.hold_parent(&pod);
                    if pod.stage() == Stage::Making {
                        half_made.push(pod);
                    } else {
                        adopt(inner, &pod);
                    }
                }
                Loaded::Shown(record, error) => {
                    let problem = chain(&error);
                    tracing::error!(pod.id = %id, problem, "the pod's record cannot be read: it is not ready until it is stopped and removed");
                    let pod = Pod::shown(id, record, problem);
                    self.hold_parent(&pod);
                    adopt(inner, &pod);
                }
                Loaded::Lost { record, identity } => {
                    tracing::error!(pod.id = %id, record = %chain(&record), identity = %chain(&identity), "nothing of the pod can be read: its processes are ended, and it is removed");
                    drop_lost(inner, &id).await;
                }
            }
        }
        let mut undoing = tokio::task::JoinSet::new();
        for pod in half_made {
            tracing::info!(pod.id = %pod.id, "undoing a pod that was being made when the daemon ended");
            let inner = inner.clone();
            undoing.spawn(async move {
                if !release::undo(&inner, &pod).await {
                    inner.names.restore(
                        pod.spec.metadata.clone(),
                        pod.spec.clone(),
                        pod.id.clone(),
                    );
                    inner.pods.insert(&pod.id, &pod);
                }
            });
        }
        while let Some(result) = undoing.join_next().await {
            if let Err(error) = result {
                tracing::error!(%error, "a half-made pod could not be undone");
            }
        }
        self.sweep().await;
        Ok(())
    }

    fn hold_parent(&self, pod: &Pod) {
        let parts = pod.parts();
        if parts.holds_parent {
            self.0
                .parents
                .restore(&parts.cgroup_parent, &parts.made_parents);
        }
    }

    /// Network attachments, pins and directories without a record.
    async fn sweep(&self) {
        let inner = self.0.clone();
        let mut kept: BTreeSet<PodId> = inner.pods.all().iter().map(|pod| pod.id.clone()).collect();
        let attached = inner.deps.ground.connected().unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "cannot tell which pods are attached to the network");
            Vec::new()
        });
        for id in attached {
            if !kept.contains(&id) {
                tracing::info!(pod.id = %id, "releasing the network of a pod that is not there any more");
                if let Err(error) = inner.deps.ground.disconnect(&id).await {
                    tracing::warn!(pod.id = %id, error = %chain(&error), "cannot release it: the next start tries again");
                    // With the namespace, which the plugins need.
                    kept.insert(id);
                }
            }
        }
        crate::blocking::run("sweep what earlier pods left", move || {
            let dir = inner.deps.config.state.join("pods");
            for name in names_in(&dir) {
                let Ok(id) = name.parse::<PodId>() else {
                    continue;
                };
                if kept.contains(&id) {
                    continue;
                }
                let dir = dir.join(&name);
                for mount in ["ns/ipc", "ns/uts", "ns/pid"] {
                    report(&id, inner.deps.runtime.unpin(&dir.join(mount)));
                }
                let netns = super::run::netns_path(&inner, &id);
                report(&id, inner.deps.runtime.unpin(&netns));
                report(&id, inner.deps.ground.unmount_files(&dir));
                report(&id, std::fs::remove_dir_all(&dir));
            }
        })
        .await;
    }
}

/// The pause process and cgroup of a pod that nobody could ever name; the rest is swept.
async fn drop_lost(inner: &Arc<Inner>, id: &PodId) {
    let (inner, id) = (inner.clone(), id.clone());
    crate::blocking::run("end what is left of a lost pod", move || {
        let names = [id.to_string(), super::cgroups::scope_name(&id)];
        if let Err(error) = crate::cgroup::end_named(&inner.deps.facts.cgroup, &names) {
            tracing::error!(pod.id = %id, error = %chain(&error), "cannot end its processes");
        }
        if let Err(error) = inner.records.remove(id.as_str()) {
            tracing::error!(pod.id = %id, error = %chain(&error), "cannot remove its directory");
        }
    })
    .await;
}

fn names_in(dir: &std::path::Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .collect()
}

fn report(id: &PodId, outcome: std::io::Result<()>) {
    if let Err(error) = outcome {
        tracing::warn!(pod.id = %id, %error, "cannot release what an earlier pod left");
    }
}

fn adopt(inner: &Arc<Inner>, pod: &Arc<Pod>) {
    if pod.is_ready() {
        let pause = alive(inner, &pod.parts());
        match pause {
            Some(pause) => {
                watch(inner, pod, &pause);
                keep_files(inner, pod);
            }
            None => {
                pod.change(&inner.deps.events, Change::Lost);
            }
        }
    }
    inner
        .names
        .restore(pod.spec.metadata.clone(), pod.spec.clone(), pod.id.clone());
    inner.pods.insert(&pod.id, pod);
}

/// A pod that an earlier version made has its files elsewhere, and somebody may have unmounted them.
fn keep_files(inner: &Inner, pod: &Pod) {
    let hostname = pod.parts().hostname.clone();
    let dir = inner.state_dir(&pod.id);
    if let Err(problem) = inner.deps.ground.make_files(&dir, &hostname, &pod.spec) {
        tracing::error!(pod.id = %pod.id, problem, "the pod's files are not there: no container can be put into it");
    }
}

fn alive(inner: &Inner, parts: &Parts) -> Option<Process> {
    let same_boot = parts.boot_id == inner.deps.facts.boot_id;
    let pause = parts.pause.clone().filter(|_| same_boot)?;
    let alive = inner.deps.runtime.is_alive(&pause);
    alive.is_ok_and(|alive| alive).then_some(pause)
}
