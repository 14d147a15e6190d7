//! What an earlier daemon left is taken up before the first call is answered.
//!
//! It assumes: the locks are held, so nobody else changes anything; records were written before resources
//! were acquired; exit records of monitors are final. Containers come before pods, because undoing a pod
//! that was being made must find its containers; what the pods that are left need of the network comes after
//! them, and images last, because containers keep layers in use.

use std::time::Instant;

use crate::container::ContainerManager;
use crate::image::ImageManager;
use crate::model::{ContainerFilter, PodFilter, chain};
use crate::network::Network;
use crate::pod::PodManager;

/// Takes up everything.
///
/// # Errors
/// When the records cannot be read at all; a single damaged one is logged and dropped.
pub async fn all(
    containers: &ContainerManager,
    pods: &PodManager,
    images: &ImageManager,
    network: &Network,
) -> Result<(), String> {
    let begin = Instant::now();
    containers.restore().await.map_err(|e| chain(&e))?;
    pods.restore().await.map_err(|e| chain(&e))?;
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
