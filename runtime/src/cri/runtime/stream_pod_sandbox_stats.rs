//! StreamPodSandboxStats (row R023).

use berth_cri_api::v1::{StreamPodSandboxStatsRequest, StreamPodSandboxStatsResponse};
use tonic::Status;

use super::list_pod_sandbox_stats::measure;
use crate::cri::Deps;
use crate::cri::fit::fitting_batches;

pub(super) async fn handle(
    deps: &Deps,
    request: StreamPodSandboxStatsRequest,
) -> Result<impl Iterator<Item = StreamPodSandboxStatsResponse> + Send + use<>, Status> {
    let stats = measure(deps, request.filter).await.into_iter();
    Ok(
        fitting_batches(stats, "StreamPodSandboxStats", deps.metrics.clone())
            .map(|pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }),
    )
}
