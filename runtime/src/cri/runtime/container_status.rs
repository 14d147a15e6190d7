//! ContainerStatus (rows R033, F106 to F120).

use berth_cri_api::v1::{ContainerStatusRequest, ContainerStatusResponse};
use tonic::Status;

use crate::cri::layer::about_container;
use crate::cri::{Deps, convert, status, verbose};

pub(super) async fn handle(
    deps: &Deps,
    request: ContainerStatusRequest,
) -> Result<ContainerStatusResponse, Status> {
    let id = convert::id("container_id", request.container_id).map_err(status::of)?;
    about_container(&id);
    let container = deps.containers.status(&id).map_err(status::of)?;
    let info = if request.verbose {
        let spec = deps.containers.oci_spec(&container.id).await;
        verbose::container(&container, spec)
    } else {
        Default::default()
    };
    Ok(ContainerStatusResponse {
        status: Some(convert::container_status(&container)),
        info,
    })
}
