//! Namespace choices (rows F016 to F023, F065, F136).

use berth_cri_api::v1;

use super::{At, Error};
use crate::model::{NamespaceMode, NamespaceModes};

/// Those of a sandbox; nothing said means one of each for the pod.
pub(super) fn of_pod(
    at: &At<'_>,
    options: Option<v1::NamespaceOption>,
) -> Result<NamespaceModes, Error> {
    let options = options.unwrap_or_default();
    let names_host_users = options.userns_options.is_some();
    user_namespace(&at.field("userns_options"), options.userns_options)?;
    let pid_at = at.field("pid");
    let pid = mode(&pid_at, options.pid)?;
    if pid == NamespaceMode::Target {
        return Err(pid_at.invalid("a sandbox cannot share the processes of a container"));
    }
    if !options.target_id.is_empty() {
        return Err(at.field("target_id").invalid("is for a container only"));
    }
    Ok(NamespaceModes {
        network: pod_or_node(&at.field("network"), options.network)?,
        pid,
        ipc: pod_or_node(&at.field("ipc"), options.ipc)?,
        target: String::new(),
        names_host_users,
    })
}

/// Those of a container. Only its processes may differ from the pod's choices; where it says nothing it
/// follows the pod.
pub(super) fn of_container(
    at: &At<'_>,
    options: Option<v1::NamespaceOption>,
    pod: &NamespaceModes,
) -> Result<NamespaceModes, Error> {
    let Some(options) = options else {
        return Ok(pod.clone());
    };
    let names_host_users = options.userns_options.is_some();
    user_namespace(&at.field("userns_options"), options.userns_options)?;
    follows_pod(&at.field("network"), options.network, pod.network)?;
    follows_pod(&at.field("ipc"), options.ipc, pod.ipc)?;
    let pid = mode(&at.field("pid"), options.pid)?;
    let target_at = at.field("target_id");
    let target = if pid == NamespaceMode::Target {
        target_at.filled(options.target_id)?
    } else if options.target_id.is_empty() {
        String::new()
    } else {
        return Err(target_at.invalid("is given, but pid is not TARGET"));
    };
    Ok(NamespaceModes {
        network: pod.network,
        pid,
        ipc: pod.ipc,
        target,
        names_host_users,
    })
}

/// As they were asked for.
pub(super) fn to_proto(modes: &NamespaceModes) -> v1::NamespaceOption {
    v1::NamespaceOption {
        network: number(modes.network),
        pid: number(modes.pid),
        ipc: number(modes.ipc),
        target_id: modes.target.clone(),
        userns_options: modes.names_host_users.then(|| v1::UserNamespace {
            mode: v1::NamespaceMode::Node.into(),
            ..v1::UserNamespace::default()
        }),
    }
}

fn number(mode: NamespaceMode) -> i32 {
    match mode {
        NamespaceMode::Pod => v1::NamespaceMode::Pod,
        NamespaceMode::Container => v1::NamespaceMode::Container,
        NamespaceMode::Node => v1::NamespaceMode::Node,
        NamespaceMode::Target => v1::NamespaceMode::Target,
    }
    .into()
}

fn mode(at: &At<'_>, number: i32) -> Result<NamespaceMode, Error> {
    Ok(match at.known(number)? {
        v1::NamespaceMode::Pod => NamespaceMode::Pod,
        v1::NamespaceMode::Container => NamespaceMode::Container,
        v1::NamespaceMode::Node => NamespaceMode::Node,
        v1::NamespaceMode::Target => NamespaceMode::Target,
    })
}

fn pod_or_node(at: &At<'_>, number: i32) -> Result<NamespaceMode, Error> {
    match mode(at, number)? {
        mode @ (NamespaceMode::Pod | NamespaceMode::Node) => Ok(mode),
        other => Err(at.invalid(format!("is {other:?}, but only POD and NODE are possible"))),
    }
}

/// POD is also what a client sends that says nothing, so it contradicts no choice of the pod.
fn follows_pod(at: &At<'_>, number: i32, pod: NamespaceMode) -> Result<(), Error> {
    let wanted = pod_or_node(at, number)?;
    if wanted == NamespaceMode::Node && pod != NamespaceMode::Node {
        return Err(at.invalid("is NODE, but the sandbox has a namespace of its own"));
    }
    Ok(())
}

/// Every ordinary pod has NODE here. One of its own is not built, and a wrong one is wrong all the same.
fn user_namespace(at: &At<'_>, wanted: Option<v1::UserNamespace>) -> Result<(), Error> {
    let Some(wanted) = wanted else {
        return Ok(());
    };
    match mode(&at.field("mode"), wanted.mode)? {
        NamespaceMode::Node if wanted.uids.is_empty() && wanted.gids.is_empty() => Ok(()),
        NamespaceMode::Node => Err(at.invalid("has mappings, but mode is NODE")),
        NamespaceMode::Pod => {
            mapping(&at.field("uids"), &wanted.uids)?;
            mapping(&at.field("gids"), &wanted.gids)?;
            Err(at.not_built(
                "user namespaces are not built into this version of Berth (hostUsers: false)",
            ))
        }
        other => Err(at
            .field("mode")
            .invalid(format!("is {other:?}, but only POD and NODE are possible"))),
    }
}

fn mapping(at: &At<'_>, mappings: &[v1::IdMapping]) -> Result<(), Error> {
    match mappings {
        [one] if one.length == 0 => Err(at.invalid("is a mapping of length 0")),
        [one] if one.container_id != 0 => Err(at.invalid("does not map id 0 of the container")),
        [_] => Ok(()),
        many => Err(at.invalid(format!("has {} mappings instead of one", many.len()))),
    }
}
