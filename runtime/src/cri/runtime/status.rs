//! Status (rows R043, F158 to F165).

use berth_cri_api::v1::{
    RuntimeCondition, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus,
    StatusRequest, StatusResponse,
};

use crate::cri::node::{Condition, Node};
use crate::cri::verbose;
use crate::model::one_line;

pub(super) fn handle(node: &Node, request: &StatusRequest) -> StatusResponse {
    let network = (node.network)();
    let conditions = vec![
        condition("RuntimeReady", "RuntimeNotReady", (node.runtime)()),
        condition(
            "NetworkReady",
            "NetworkPluginNotReady",
            network.condition.clone(),
        ),
    ];
    StatusResponse {
        status: Some(RuntimeStatus { conditions }),
        info: if request.verbose {
            verbose::node(node, &network)
        } else {
            Default::default()
        },
        runtime_handlers: handlers(node),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
            mount_options: (node.abilities)().mount_options,
        }),
    }
}

fn condition(name: &str, usual_reason: &str, condition: Condition) -> RuntimeCondition {
    let reason = match (condition.ready, condition.reason.as_str()) {
        (true, _) => String::new(),
        (false, "") => usual_reason.to_owned(),
        (false, _) => condition.reason,
    };
    RuntimeCondition {
        r#type: name.to_owned(),
        status: condition.ready,
        reason,
        message: one_line(&condition.message).into_owned(),
    }
}

/// The default handler goes by the empty name; without that entry the kubelet and critest take every
/// feature for absent (row G002).
fn handlers(node: &Node) -> Vec<RuntimeHandler> {
    std::iter::once("")
        .chain(node.handlers.iter().map(String::as_str))
        .map(|name| RuntimeHandler {
            name: name.to_owned(),
            features: Some(RuntimeHandlerFeatures {
                recursive_read_only_mounts: false,
                user_namespaces: false,
            }),
        })
        .collect()
}
