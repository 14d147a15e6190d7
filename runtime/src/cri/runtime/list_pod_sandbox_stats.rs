//! ListPodSandboxStats (row R022).

use berth_cri_api::v1;
use tonic::Status;

use crate::cri::fit::fit;
use crate::cri::{Deps, convert};
use crate::model::{ContainerFilter, ContainerState};

pub(super) async fn handle(
    deps: &Deps,
    request: v1::ListPodSandboxStatsRequest,
) -> Result<v1::ListPodSandboxStatsResponse, Status> {
    let mut stats = measure(deps, request.filter).await;
    fit(&mut stats, "ListPodSandboxStats", &deps.metrics);
    Ok(v1::ListPodSandboxStatsResponse { stats })
}

/// Pods that are not ready are not among them.
pub(super) async fn measure(
    deps: &Deps,
    filter: Option<v1::PodSandboxStatsFilter>,
) -> Vec<v1::PodSandboxStats> {
    let pods = deps
        .pods
        .all_measurable(&convert::stats::pod_filter(filter));
    let wanted: std::collections::BTreeSet<_> = pods.iter().map(|pod| pod.id.clone()).collect();
    let mut containers = deps.containers.all_measurable(&ContainerFilter {
        state: Some(ContainerState::Running),
        ..ContainerFilter::default()
    });
    containers.retain(|container| wanted.contains(&container.pod));
    let stats = deps.stats.pods(pods, containers).await;
    stats.iter().map(convert::stats::pod).collect()
}
