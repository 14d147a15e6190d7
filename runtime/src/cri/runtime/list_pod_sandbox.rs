//! ListPodSandbox (row R017).

use berth_cri_api::v1::{ListPodSandboxRequest, ListPodSandboxResponse};
use tonic::Status;

use crate::cri::fit::fit;
use crate::cri::{Deps, convert, status};

pub(super) fn handle(
    deps: &Deps,
    request: ListPodSandboxRequest,
) -> Result<ListPodSandboxResponse, Status> {
    let filter = convert::pod::filter(request.filter).map_err(status::of)?;
    let pods = deps.pods.list(&filter);
    let mut items: Vec<_> = pods.iter().map(convert::pod::item).collect();
    fit(&mut items, "ListPodSandbox", &deps.metrics);
    Ok(ListPodSandboxResponse { items })
}
