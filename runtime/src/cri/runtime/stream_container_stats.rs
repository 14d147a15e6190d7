//! StreamContainerStats (row R041).

use berth_cri_api::v1::{StreamContainerStatsRequest, StreamContainerStatsResponse};
use tonic::Status;

use super::list_container_stats::measure;
use crate::cri::Deps;
use crate::cri::fit::fitting_batches;

pub(super) async fn handle(
    deps: &Deps,
    request: StreamContainerStatsRequest,
) -> Result<impl Iterator<Item = StreamContainerStatsResponse> + Send + use<>, Status> {
    let stats = measure(deps, request.filter).await.into_iter();
    Ok(
        fitting_batches(stats, "StreamContainerStats", deps.metrics.clone())
            .map(|container_stats| StreamContainerStatsResponse { container_stats }),
    )
}
