//! ContainerStats (row R039).

use berth_cri_api::v1::{ContainerStatsRequest, ContainerStatsResponse};
use tonic::Status;

use crate::cri::layer::about_container;
use crate::cri::{Deps, convert, status};

pub(super) async fn handle(
    deps: &Deps,
    request: ContainerStatsRequest,
) -> Result<ContainerStatsResponse, Status> {
    let id = convert::id("container_id", request.container_id).map_err(status::of)?;
    about_container(&id);
    let subject = deps.containers.measurable(&id).map_err(status::of)?;
    let stats = deps.stats.container(subject).await.map_err(status::of)?;
    Ok(ContainerStatsResponse {
        stats: Some(convert::stats::container(&stats)),
    })
}
