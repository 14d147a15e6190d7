//! Containers as they are (rows F106 to F120).

use berth_cri_api::v1;

use super::{mounts, resources, signals};
use crate::model::{ContainerMetadata, ContainerState, ContainerStatus, ContainerUser, one_line};

/// The reason of a container of which too little can be read.
const UNREADABLE: &str = "RecordUnreadable";

fn state(state: ContainerState) -> i32 {
    match state {
        ContainerState::Created => v1::ContainerState::ContainerCreated,
        ContainerState::Running => v1::ContainerState::ContainerRunning,
        ContainerState::Exited => v1::ContainerState::ContainerExited,
        ContainerState::Unknown => v1::ContainerState::ContainerUnknown,
    }
    .into()
}

pub(super) fn metadata(metadata: &ContainerMetadata) -> v1::ContainerMetadata {
    v1::ContainerMetadata {
        name: metadata.name.clone(),
        attempt: metadata.attempt,
    }
}

/// A container in a list. Its reference is the image's id, as in containerd: the kubelet compares the
/// texts to see which images are in use (row X057).
pub(in crate::cri) fn container_item(container: &ContainerStatus) -> v1::Container {
    let spec = &container.spec;
    let image_id = container.image_id.to_string();
    v1::Container {
        id: container.id.to_string(),
        pod_sandbox_id: container.pod.to_string(),
        metadata: Some(metadata(&spec.metadata)),
        image: Some(v1::ImageSpec {
            image: spec.image.clone(),
            user_specified_image: spec.user_specified_image.clone(),
            ..v1::ImageSpec::default()
        }),
        image_ref: image_id.clone(),
        state: state(container.state),
        created_at: container.created_at,
        labels: spec.labels.clone(),
        annotations: spec.annotations.clone(),
        image_id,
    }
}

/// A container as it is now.
pub(in crate::cri) fn container_status(container: &ContainerStatus) -> v1::ContainerStatus {
    let spec = &container.spec;
    let exit = container.exit.as_ref();
    v1::ContainerStatus {
        id: container.id.to_string(),
        metadata: Some(metadata(&spec.metadata)),
        state: state(container.state),
        created_at: container.created_at,
        started_at: container.started_at,
        finished_at: exit.map_or(0, |e| e.finished_at),
        exit_code: exit.map_or(0, |e| e.code),
        image: Some(v1::ImageSpec {
            image: container.image_name.clone(),
            user_specified_image: spec.user_specified_image.clone(),
            ..v1::ImageSpec::default()
        }),
        image_ref: container.image_ref.clone(),
        reason: match (exit, &container.problem) {
            (Some(exit), _) => exit.reason.as_str().to_owned(),
            (None, Some(_)) => UNREADABLE.to_owned(),
            (None, None) => String::new(),
        },
        message: match (exit, &container.problem) {
            (Some(exit), _) => one_line(&exit.message).into_owned(),
            (None, Some(problem)) => one_line(problem).into_owned(),
            (None, None) => String::new(),
        },
        labels: spec.labels.clone(),
        annotations: spec.annotations.clone(),
        mounts: spec.mounts.iter().map(mounts::to_proto).collect(),
        log_path: container.log_path.clone(),
        resources: Some(v1::ContainerResources {
            linux: Some(resources::to_proto(&container.resources)),
            windows: None,
        }),
        image_id: container.image_id.to_string(),
        user: Some(v1::ContainerUser {
            linux: Some(user(&container.user)),
        }),
        stop_signal: signals::to_proto(&container.stop_signal).into(),
    }
}

fn user(user: &ContainerUser) -> v1::LinuxContainerUser {
    v1::LinuxContainerUser {
        uid: user.uid.into(),
        gid: user.gid.into(),
        supplemental_groups: user.groups.iter().map(|g| i64::from(*g)).collect(),
    }
}
