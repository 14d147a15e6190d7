//! RPCs that are not built yet. `Unimplemented` is an answer that the kubelet works with (row R057).

use tonic::Status;

fn not_built<T>(sentence: &str) -> Result<T, Status> {
    Err(Status::unimplemented(sentence))
}

pub(super) fn streaming<T>(name: &str) -> Result<T, Status> {
    not_built(&format!(
        "{name} is not built into this version of Berth: it has no streaming server yet; ExecSync works"
    ))
}

pub(super) fn metrics<T>() -> Result<T, Status> {
    not_built(
        "metrics of pods and containers are not built into this version of Berth; those of the daemon are \
         on the admin socket",
    )
}

pub(super) fn checkpoint<T>() -> Result<T, Status> {
    not_built("checkpoint and restore are not built into this version of Berth")
}

pub(super) fn events<T>() -> Result<T, Status> {
    not_built("a stream of container events is not built into this version of Berth; lists work")
}

pub(super) fn pod_resources<T>() -> Result<T, Status> {
    not_built(
        "updates of pod resources are not built into this version of Berth; those of containers work",
    )
}
