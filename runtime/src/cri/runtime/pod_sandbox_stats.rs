//! PodSandboxStats (row R021).

use berth_cri_api::v1::{PodSandboxStatsRequest, PodSandboxStatsResponse};
use tonic::Status;

use crate::cri::fit::fit;
use crate::cri::layer::about_pod;
use crate::cri::{Deps, convert, status};
use crate::model::{ContainerFilter, ContainerState};

pub(super) async fn handle(
    deps: &Deps,
    request: PodSandboxStatsRequest,
) -> Result<PodSandboxStatsResponse, Status> {
    let id = convert::id("pod_sandbox_id", request.pod_sandbox_id).map_err(status::of)?;
    about_pod(&id);
    let pod = deps.pods.measurable(&id).map_err(status::of)?;
    let containers = deps.containers.all_measurable(&ContainerFilter {
        pod: pod.id.to_string(),
        state: Some(ContainerState::Running),
        ..ContainerFilter::default()
    });
    let stats = deps.stats.pod(pod, containers).await.map_err(status::of)?;
    let mut stats = convert::stats::pod(&stats);
    // The annotations of all of its containers are in it.
    fit(
        std::slice::from_mut(&mut stats),
        "PodSandboxStats",
        &deps.metrics,
    );
    Ok(PodSandboxStatsResponse { stats: Some(stats) })
}
