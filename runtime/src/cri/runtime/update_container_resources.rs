//! UpdateContainerResources (rows R034, F168). Annotations are hints for other runtimes and mean nothing here.

use std::sync::Arc;

use berth_cri_api::v1::{UpdateContainerResourcesRequest, UpdateContainerResourcesResponse};
use tonic::Status;

use crate::cri::convert::{self, At};
use crate::cri::detach::detached;
use crate::cri::layer::about_container;
use crate::cri::{Deps, status};

pub(super) async fn handle(
    deps: &Arc<Deps>,
    request: UpdateContainerResourcesRequest,
) -> Result<UpdateContainerResourcesResponse, Status> {
    let id = convert::id("container_id", request.container_id).map_err(status::of)?;
    about_container(&id);
    // Nothing given changes nothing, but an unknown container is NotFound all the same.
    let given = request.linux.unwrap_or_default();
    let resources = convert::resources(&At::root("linux"), given).map_err(status::of)?;
    let containers = deps.containers.clone();
    detached(async move {
        let updated = containers.update(&id, resources).await;
        updated.map_err(status::of)?;
        Ok(UpdateContainerResourcesResponse {})
    })
    .await
}
