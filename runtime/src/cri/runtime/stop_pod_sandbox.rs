//! StopPodSandbox (row R014): no grace for what still runs, then the network goes.

use std::sync::Arc;

use berth_cri_api::v1::{StopPodSandboxRequest, StopPodSandboxResponse};
use tonic::Status;

use crate::cri::detach::detached;
use crate::cri::layer::about_pod;
use crate::cri::{Deps, convert, status};
use crate::id::PodId;
use crate::model::{Kind, Kinded};

pub(super) async fn handle(
    deps: &Arc<Deps>,
    request: StopPodSandboxRequest,
) -> Result<StopPodSandboxResponse, Status> {
    let id = convert::id("pod_sandbox_id", request.pod_sandbox_id).map_err(status::of)?;
    about_pod(&id);
    if let Some(pod) = find(deps, &id)? {
        let deps = deps.clone();
        detached(async move { stop(&deps, &pod).await }).await?;
    }
    Ok(StopPodSandboxResponse {})
}

/// The pod with that id; `None` when there is none, which is as good as stopped and removed (row R054).
pub(super) fn find(deps: &Deps, id: &str) -> Result<Option<PodId>, Status> {
    match deps.pods.find(id) {
        Ok(pod) => Ok(Some(pod)),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(status::of(error)),
    }
}

/// Lets no more containers into a pod, kills those that are in it, then stops the pod.
pub(super) async fn stop(deps: &Deps, pod: &PodId) -> Result<(), Status> {
    deps.pods.close(pod).await;
    deps.containers.kill_pod(pod).await.map_err(status::of)?;
    crash_point!("stop_pod.containers.after");
    deps.pods.stop(pod).await.map_err(status::of)
}
