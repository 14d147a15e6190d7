//! StartContainer (row R028).

use std::sync::Arc;

use berth_cri_api::v1::{StartContainerRequest, StartContainerResponse};
use tonic::Status;

use crate::cri::detach::detached;
use crate::cri::layer::about_container;
use crate::cri::{Deps, convert, status};

pub(super) async fn handle(
    deps: &Arc<Deps>,
    request: StartContainerRequest,
) -> Result<StartContainerResponse, Status> {
    let id = convert::id("container_id", request.container_id).map_err(status::of)?;
    about_container(&id);
    let containers = deps.containers.clone();
    detached(async move {
        containers.start(&id).await.map_err(status::of)?;
        Ok(StartContainerResponse {})
    })
    .await
}
