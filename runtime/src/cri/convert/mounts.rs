//! Mounts and devices (rows F072 to F085, R101).

use berth_cri_api::v1;

use super::{Abilities, At, Error, security};
use crate::model::{DeviceRequest, MountPropagation, MountRequest};

/// The mount options that a request may add.
const OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];

/// The mounts of a request, in its order.
pub(super) fn mounts(
    at: &At<'_>,
    given: Vec<v1::Mount>,
    abilities: Abilities,
) -> Result<Vec<MountRequest>, Error> {
    let given = given.into_iter().enumerate();
    given
        .map(|(i, mount)| one(&at.index(i), mount, abilities))
        .collect()
}

fn one(at: &At<'_>, mount: v1::Mount, abilities: Abilities) -> Result<MountRequest, Error> {
    let container_path = at.field("container_path").filled(mount.container_path)?;
    let propagation_at = at.field("propagation");
    let propagation = match propagation_at.known(mount.propagation)? {
        v1::MountPropagation::PropagationPrivate => MountPropagation::Private,
        v1::MountPropagation::PropagationHostToContainer => MountPropagation::HostToContainer,
        v1::MountPropagation::PropagationBidirectional => MountPropagation::Bidirectional,
    };
    if mount.selinux_relabel {
        security::labelled(&at.field("selinux_relabel"), abilities)?;
    }
    if mount.image.is_some_and(|image| !image.image.is_empty()) {
        let at = at.field("image");
        return Err(at.not_built("image volumes are not built into this version of Berth"));
    }
    if !mount.image_sub_path.is_empty() {
        let at = at.field("image_sub_path");
        return Err(at.invalid("is given without an image"));
    }
    if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        let at = at.field("uidMappings");
        return Err(at.not_built("id-mapped mounts are not built into this version of Berth"));
    }
    if mount.recursive_read_only {
        let at = at.field("recursive_read_only");
        if !mount.readonly {
            return Err(at.invalid("wants readonly to be set too"));
        }
        if propagation != MountPropagation::Private {
            return Err(at.invalid("wants private propagation"));
        }
        return Err(
            at.not_built("recursive read-only mounts are not built into this version of Berth")
        );
    }
    Ok(MountRequest {
        container_path,
        host_path: at.field("host_path").filled(mount.host_path)?,
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
        propagation,
        options: options(&at.field("mount_options"), mount.mount_options, abilities)?,
    })
}

fn options(at: &At<'_>, given: Vec<String>, abilities: Abilities) -> Result<Vec<String>, Error> {
    if !given.is_empty() && !abilities.mount_options {
        return Err(at.not_built("mount options are not built into this version of Berth"));
    }
    at.each(given, |at, option| {
        if OPTIONS.contains(&option.as_str()) {
            return Ok(option);
        }
        let known = OPTIONS.join(", ");
        Err(at.invalid(format!(
            "{option:?} is not one of the known options {known}"
        )))
    })
}

/// A mount as it was asked for.
pub(super) fn to_proto(mount: &MountRequest) -> v1::Mount {
    v1::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
        propagation: match mount.propagation {
            MountPropagation::Private => v1::MountPropagation::PropagationPrivate,
            MountPropagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
            MountPropagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
        }
        .into(),
        mount_options: mount.options.clone(),
        ..v1::Mount::default()
    }
}

/// The devices of a request. No permission at all would make a device that cannot be opened, so it
/// stands for all three.
pub(super) fn devices(at: &At<'_>, given: Vec<v1::Device>) -> Result<Vec<DeviceRequest>, Error> {
    let given = given.into_iter().enumerate();
    given
        .map(|(i, device)| {
            let at = at.index(i);
            let permissions = match device.permissions.as_str() {
                "" => "rwm".to_owned(),
                some if some.chars().all(|c| matches!(c, 'r' | 'w' | 'm')) => device.permissions,
                other => {
                    let at = at.field("permissions");
                    return Err(at.invalid(format!("{other:?} is not made of r, w and m")));
                }
            };
            let host_path = at.field("host_path").filled(device.host_path)?;
            Ok(DeviceRequest {
                container_path: match device.container_path.as_str() {
                    "" => host_path.clone(),
                    _ => device.container_path,
                },
                host_path,
                permissions,
            })
        })
        .collect()
}
