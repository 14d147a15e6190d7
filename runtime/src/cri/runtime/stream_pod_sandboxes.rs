//! StreamPodSandboxes (row R018).

use berth_cri_api::v1::{StreamPodSandboxesRequest, StreamPodSandboxesResponse};
use tonic::Status;

use crate::cri::fit::fitting_batches;
use crate::cri::{Deps, convert, status};

pub(super) fn handle(
    deps: &Deps,
    request: StreamPodSandboxesRequest,
) -> Result<impl Iterator<Item = StreamPodSandboxesResponse> + Send + use<>, Status> {
    let filter = convert::pod::filter(request.filter).map_err(status::of)?;
    let pods = deps.pods.list(&filter).into_iter();
    let items = pods.map(|pod| convert::pod::item(&pod));
    Ok(
        fitting_batches(items, "StreamPodSandboxes", deps.metrics.clone())
            .map(|pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }),
    )
}
