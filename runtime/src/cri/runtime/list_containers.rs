//! ListContainers (row R031).

use berth_cri_api::v1::{ListContainersRequest, ListContainersResponse};
use tonic::Status;

use crate::cri::fit::fit;
use crate::cri::{Deps, convert, status};

pub(super) fn handle(
    deps: &Deps,
    request: ListContainersRequest,
) -> Result<ListContainersResponse, Status> {
    let filter = convert::container::filter(request.filter).map_err(status::of)?;
    let containers = deps.containers.list(&filter);
    let mut containers: Vec<_> = containers.iter().map(convert::container_item).collect();
    fit(&mut containers, "ListContainers", &deps.metrics);
    Ok(ListContainersResponse { containers })
}
