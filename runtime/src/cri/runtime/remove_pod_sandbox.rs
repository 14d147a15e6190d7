//! RemovePodSandbox (row R015): stop if need be, then everything of the pod goes.

use std::sync::Arc;

use berth_cri_api::v1::{RemovePodSandboxRequest, RemovePodSandboxResponse};
use tonic::Status;

use super::stop_pod_sandbox;
use crate::cri::detach::detached;
use crate::cri::layer::about_pod;
use crate::cri::{Deps, convert, status};

pub(super) async fn handle(
    deps: &Arc<Deps>,
    request: RemovePodSandboxRequest,
) -> Result<RemovePodSandboxResponse, Status> {
    let id = convert::id("pod_sandbox_id", request.pod_sandbox_id).map_err(status::of)?;
    about_pod(&id);
    if let Some(pod) = stop_pod_sandbox::find(deps, &id)? {
        let deps = deps.clone();
        detached(async move {
            stop_pod_sandbox::stop(&deps, &pod).await?;
            deps.containers.remove_pod(&pod).await.map_err(status::of)?;
            crash_point!("remove_pod.containers.after");
            deps.pods.remove(&pod).await.map_err(status::of)
        })
        .await?;
    }
    Ok(RemovePodSandboxResponse {})
}
