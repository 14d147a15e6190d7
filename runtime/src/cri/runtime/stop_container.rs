//! StopContainer (rows R029, F123).

use std::time::Duration;

use berth_cri_api::v1::{StopContainerRequest, StopContainerResponse};
use tonic::Status;

use crate::cri::layer::about_container;
use crate::cri::{Deps, convert, status};

/// The only change that is not detached: a caller that gives up before the grace time is over must not have
/// the container killed by a task that it has left behind. The manager stops in a way that can be dropped,
/// and another call takes it up.
pub(super) async fn handle(
    deps: &Deps,
    request: StopContainerRequest,
) -> Result<StopContainerResponse, Status> {
    let id = convert::id("container_id", request.container_id).map_err(status::of)?;
    about_container(&id);
    let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
    let stopped = deps.containers.stop(&id, grace).await;
    stopped.map_err(status::of)?;
    Ok(StopContainerResponse {})
}
