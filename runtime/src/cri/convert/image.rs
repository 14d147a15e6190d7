//! Images (rows F086 to F099, F156, F157).

use berth_cri_api::v1;

use super::{At, Error};
use crate::model::{FsUsage, Image, ImageUser, RegistryAuth};

/// The name in the image of a request.
pub(in crate::cri) fn reference(given: Option<v1::ImageSpec>) -> Result<String, Error> {
    let at = At::root("image");
    at.field("image").filled(at.required(given)?.image)
}

/// Credentials; `None` also when nothing is in them.
pub(in crate::cri) fn auth(given: Option<v1::AuthConfig>) -> Option<RegistryAuth> {
    let given = given.filter(|auth| *auth != v1::AuthConfig::default())?;
    Some(RegistryAuth {
        username: given.username,
        password: given.password,
        auth: given.auth,
        server_address: given.server_address,
        identity_token: given.identity_token,
        registry_token: given.registry_token,
    })
}

/// An image in an answer. A number and a name of a user are never there together (row F097).
pub(in crate::cri) fn to_proto(image: &Image) -> v1::Image {
    let (uid, username) = match &image.user {
        ImageUser::Unset => (None, String::new()),
        ImageUser::Uid(uid) => (Some(i64::from(*uid)), String::new()),
        ImageUser::Name(name) => (None, name.clone()),
    };
    v1::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: uid.map(|value| v1::Int64Value { value }),
        username,
        spec: Some(v1::ImageSpec {
            image: image.id.to_string(),
            ..v1::ImageSpec::default()
        }),
        pinned: image.pinned,
    }
}

/// Use of a file system.
pub(in crate::cri) fn usage(usage: &FsUsage) -> v1::FilesystemUsage {
    let number = |value| Some(v1::UInt64Value { value });
    v1::FilesystemUsage {
        timestamp: usage.timestamp,
        fs_id: Some(v1::FilesystemIdentifier {
            mountpoint: usage.mountpoint.to_string_lossy().into_owned(),
        }),
        used_bytes: number(usage.used_bytes),
        inodes_used: number(usage.inodes_used),
    }
}
