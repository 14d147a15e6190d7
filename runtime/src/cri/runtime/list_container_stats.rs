//! ListContainerStats (row R040).

use berth_cri_api::v1;
use tonic::Status;

use crate::cri::fit::fit;
use crate::cri::{Deps, convert};

pub(super) async fn handle(
    deps: &Deps,
    request: v1::ListContainerStatsRequest,
) -> Result<v1::ListContainerStatsResponse, Status> {
    let mut stats = measure(deps, request.filter).await;
    fit(&mut stats, "ListContainerStats", &deps.metrics);
    Ok(v1::ListContainerStatsResponse { stats })
}

/// Those that are over are among them, with what they wrote and nothing else, as in containerd: until it is
/// removed, that takes space.
pub(super) async fn measure(
    deps: &Deps,
    filter: Option<v1::ContainerStatsFilter>,
) -> Vec<v1::ContainerStats> {
    let filter = convert::stats::container_filter(filter);
    let subjects = deps.containers.all_measurable(&filter);
    let stats = deps.stats.containers(subjects).await;
    stats.iter().map(convert::stats::container).collect()
}
