//! What an earlier daemon left is taken up before the first call is answered.
//!
//! It assumes: the locks are held, so nobody else changes anything; records were written before resources
//! were acquired; exit records of monitors are final. Containers come before pods, because undoing a pod
//! that was being made must find its containers; what the pods that are left need of the network comes after
//! them, and images last, because containers keep layers in use.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::container::ContainerManager;
use crate::id::PodId;
use crate::image::ImageManager;
use crate::model::{ContainerFilter, ContainerState, PodFilter, chain};
use crate::network::Network;
use crate::pod::PodManager;

/// Takes up everything.
///
/// # Errors
/// When the records cannot be listed at all; a single one that cannot be read is shown as what it is.
pub async fn all(
    containers: &ContainerManager,
    pods: &PodManager,
    images: &ImageManager,
    network: &Network,
) -> Result<(), String> {
    let begin = Instant::now();
    containers.restore().await.map_err(|e| chain(&e))?;
    pods.restore().await.map_err(|e| chain(&e))?;
    end_orphans(containers, pods);
    network.restore().await;
    if let Err(error) = images.collect().await {
        tracing::warn!(error = %chain(&error), "cannot collect what no image needs");
    }
    tracing::info!(
        containers = containers.list(&ContainerFilter::default()).len(),
        pods = pods.list(&PodFilter::default()).len(),
        milliseconds = begin.elapsed().as_millis(),
        "took up what was there"
    );
    Ok(())
}

/// Containers run in what their pod has: where nothing of that is left, they are ended, and stay to be removed.
fn end_orphans(containers: &ContainerManager, pods: &PodManager) {
    let known: BTreeSet<PodId> = pods
        .list(&PodFilter::default())
        .into_iter()
        .map(|p| p.id)
        .collect();
    let all = containers.list(&ContainerFilter::default());
    let orphaned = all
        .into_iter()
        .filter(|c| c.state != ContainerState::Exited && !known.contains(&c.pod));
    let lost: BTreeSet<PodId> = orphaned.map(|container| container.pod).collect();
    for pod in lost {
        tracing::error!(pod.id = %pod, "nothing is left of the pod: its containers are ended");
        let containers = containers.clone();
        tokio::spawn(async move {
            if let Err(error) = containers.kill_pod(&pod).await {
                tracing::error!(pod.id = %pod, error = %chain(&error), "cannot end a container of a pod that is not there");
            }
        });
    }
}
