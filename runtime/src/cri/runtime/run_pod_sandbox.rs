//! RunPodSandbox (rows R013, F121, X054).

use std::sync::Arc;

use berth_cri_api::v1::{RunPodSandboxRequest, RunPodSandboxResponse};
use tonic::Status;

use crate::cri::convert::{self, At};
use crate::cri::layer::about_pod;
use crate::cri::node::Node;
use crate::cri::{Deps, status};

pub(super) async fn handle(
    deps: &Arc<Deps>,
    request: RunPodSandboxRequest,
) -> Result<RunPodSandboxResponse, Status> {
    let at = At::root("config");
    let config = at.required(request.config).map_err(status::of)?;
    let handler = known_handler(&deps.node, request.runtime_handler)?;
    let abilities = (deps.node.abilities)();
    let spec = convert::pod::spec(&at, config, handler, abilities).map_err(status::of)?;
    // Not detached here: the manager goes on by itself, and has to know whether anybody was told of the result.
    let id = deps.pods.run(spec).await.map_err(status::of)?;
    about_pod(id.as_str());
    Ok(RunPodSandboxResponse {
        pod_sandbox_id: id.to_string(),
    })
}

fn known_handler(node: &Node, name: String) -> Result<String, Status> {
    if name.is_empty() || node.handlers.contains(&name) {
        return Ok(name);
    }
    let known = match node.handlers.join(", ") {
        none if none.is_empty() => "there is only the default one".to_owned(),
        some => format!("known are {some}"),
    };
    let problem = format!("{name:?} is not a runtime handler of this node; {known}");
    Err(status::of(At::root("runtime_handler").invalid(problem)))
}
