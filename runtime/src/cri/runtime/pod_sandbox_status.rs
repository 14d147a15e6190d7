//! PodSandboxStatus (rows R016, F100 to F105).

use berth_cri_api::v1::{PodSandboxStatusRequest, PodSandboxStatusResponse};
use tonic::Status;

use crate::cri::layer::about_pod;
use crate::cri::{Deps, convert, status, verbose};

/// The statuses of the containers and their time stay out: both are for evented PLEG only, and one without
/// the other is worse than neither (row F104).
pub(super) fn handle(
    deps: &Deps,
    request: PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse, Status> {
    let id = convert::id("pod_sandbox_id", request.pod_sandbox_id).map_err(status::of)?;
    about_pod(&id);
    let pod = deps.pods.status(&id).map_err(status::of)?;
    Ok(PodSandboxStatusResponse {
        status: Some(convert::pod::status(&pod)),
        info: if request.verbose {
            verbose::pod(&pod)
        } else {
            Default::default()
        },
        ..PodSandboxStatusResponse::default()
    })
}
