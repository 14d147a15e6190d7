//! CreateContainer (rows R027, F041 to F085).

use std::sync::Arc;

use berth_cri_api::v1::{CreateContainerRequest, CreateContainerResponse};
use tonic::Status;

use crate::cri::convert::{self, At};
use crate::cri::layer::{about_container, about_pod};
use crate::cri::{Deps, status};

pub(super) async fn handle(
    deps: &Arc<Deps>,
    request: CreateContainerRequest,
) -> Result<CreateContainerResponse, Status> {
    let pod_id = convert::id("pod_sandbox_id", request.pod_sandbox_id).map_err(status::of)?;
    about_pod(&pod_id);
    let (pod, entry) = deps.pods.enter(&pod_id).map_err(status::of)?;
    let abilities = (deps.node.abilities)();
    let at = At::root("config");
    let config = at.required(request.config).map_err(status::of)?;
    let spec = convert::container::spec(&at, config, &pod.spec, abilities).map_err(status::of)?;
    let at = At::root("sandbox_config");
    let handler = pod.spec.runtime_handler.clone();
    let request_pod = request
        .sandbox_config
        .map(|config| convert::pod::spec(&at, config, handler, abilities))
        .transpose()
        .map_err(status::of)?;
    let (image, lease) = deps.images.acquire(&spec.image).map_err(status::of)?;
    let held = (lease, entry);
    let create = deps.containers.create(pod, request_pod, image, held, spec);
    // Not detached here: the manager goes on by itself, and has to know whether anybody was told of the result.
    let id = create.await.map_err(status::of)?;
    about_container(id.as_str());
    Ok(CreateContainerResponse {
        container_id: id.to_string(),
    })
}
