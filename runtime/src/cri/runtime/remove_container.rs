//! RemoveContainer (row R030): kills it first when it runs.

use std::sync::Arc;

use berth_cri_api::v1::{RemoveContainerRequest, RemoveContainerResponse};
use tonic::Status;

use crate::cri::detach::detached;
use crate::cri::layer::about_container;
use crate::cri::{Deps, convert, status};

pub(super) async fn handle(
    deps: &Arc<Deps>,
    request: RemoveContainerRequest,
) -> Result<RemoveContainerResponse, Status> {
    let id = convert::id("container_id", request.container_id).map_err(status::of)?;
    about_container(&id);
    let containers = deps.containers.clone();
    detached(async move {
        containers.remove(&id).await.map_err(status::of)?;
        Ok(RemoveContainerResponse {})
    })
    .await
}
