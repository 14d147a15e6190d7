//! StreamContainers (row R032).

use berth_cri_api::v1::{StreamContainersRequest, StreamContainersResponse};
use tonic::Status;

use crate::cri::fit::fitting_batches;
use crate::cri::{Deps, convert, status};

pub(super) fn handle(
    deps: &Deps,
    request: StreamContainersRequest,
) -> Result<impl Iterator<Item = StreamContainersResponse> + Send + use<>, Status> {
    let filter = convert::container::filter(request.filter).map_err(status::of)?;
    let containers = deps.containers.list(&filter).into_iter();
    let items = containers.map(|container| convert::container_item(&container));
    Ok(
        fitting_batches(items, "StreamContainers", deps.metrics.clone())
            .map(|containers| StreamContainersResponse { containers }),
    )
}
