//! `config.json` as libcontainer 0.7 takes it.
//!
//! Built as JSON and not with oci-spec's builders, which put in what nobody asked for (capabilities,
//! rlimits, `noNewPrivileges`, a host name). Left out on purpose, because somebody else does it better or
//! libcontainer does it wrong: resources (the worker makes the cgroup), seccomp and capabilities (our
//! executor), rlimits (the worker), `noNewPrivileges` (present, it changes the order in which libcontainer
//! drops privileges), the host name (the pod's UTS namespace has it).

use std::path::Path;

use serde_json::{Value, json};
use shim_protocol::worker::Process;

use super::mounts::Mounts;
use super::{ContainerInput, Error};
use crate::model::NamespaceMode;

/// The version of the OCI runtime specification that is written.
const OCI_VERSION: &str = "1.2.0";

pub(super) fn config(
    input: &ContainerInput<'_>,
    process: &Process,
    mounts: &Mounts,
    nodes: Vec<Value>,
) -> Result<Value, Error> {
    let spec = input.spec;
    // Privileged containers see everything, also where the request lists paths (row F064).
    let (masked, read_only) = if spec.privileged {
        (Vec::new(), mounts.read_only.clone())
    } else {
        (
            spec.masked_paths.clone(),
            [spec.readonly_paths.clone(), mounts.read_only.clone()].concat(),
        )
    };
    let mut shown = json!({
        "terminal": process.terminal,
        "user": { "uid": process.uid, "gid": process.gid, "additionalGids": process.groups },
        "args": lossy(&process.args),
        "env": lossy(&process.env),
        // The worker enters the real one: it may have to make it, perhaps inside a volume.
        "cwd": "/",
        "oomScoreAdj": process.oom_score_adj,
    });
    if !process.apparmor.is_empty() {
        shown["apparmorProfile"] = json!(process.apparmor);
    }
    Ok(json!({
        "ociVersion": OCI_VERSION,
        "root": { "path": input.rootfs, "readonly": spec.read_only_root },
        "process": shown,
        "mounts": mounts.oci,
        "linux": {
            "namespaces": namespaces(input)?,
            "cgroupsPath": input.cgroup_path(),
            "rootfsPropagation": "private",
            "devices": nodes,
            "maskedPaths": masked,
            "readonlyPaths": read_only,
        },
    }))
}

fn lossy(words: &[Vec<u8>]) -> Vec<String> {
    words
        .iter()
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

/// A namespace that is not listed is the host's.
fn namespaces(input: &ContainerInput<'_>) -> Result<Vec<Value>, Error> {
    let mut list = vec![json!({ "type": "mount" })];
    let pod = [
        ("network", &input.pod.netns),
        ("ipc", &input.pod.ipcns),
        ("uts", &input.pod.utsns),
    ];
    for (kind, path) in pod {
        list.extend(path.as_deref().map(|path| joined(kind, path)));
    }
    match (
        input.spec.namespaces.pid,
        input.pod.pidns.as_deref(),
        input.target_pidns,
    ) {
        (NamespaceMode::Container, ..) => list.push(json!({ "type": "pid" })),
        (NamespaceMode::Node, ..) => {}
        (NamespaceMode::Pod, Some(path), _) | (NamespaceMode::Target, _, Some(path)) => {
            list.push(joined("pid", path))
        }
        (NamespaceMode::Pod, None, _) => {
            return Err(Error::Namespace(
                "the container is to share the pod's PID namespace, but the pod uses the host's",
            ));
        }
        (NamespaceMode::Target, _, None) => {
            return Err(Error::Namespace(
                "the container is to share another one's PID namespace, but that one is not known",
            ));
        }
    }
    if input.cgroup_namespace() {
        list.push(json!({ "type": "cgroup" }));
    }
    Ok(list)
}

fn joined(kind: &str, path: &Path) -> Value {
    json!({ "type": kind, "path": path })
}
