//! ImageFsInfo (rows R052, F156, F157).

use berth_cri_api::v1::ImageFsInfoResponse;
use tonic::Status;

use crate::cri::{Deps, convert, status};

pub(super) async fn handle(deps: &Deps) -> Result<ImageFsInfoResponse, Status> {
    let images = deps.images.fs_usage().await.map_err(status::of)?;
    let containers = deps.images.container_fs_usage().await;
    let containers = containers.map_err(status::of)?;
    Ok(ImageFsInfoResponse {
        image_filesystems: vec![convert::image::usage(&images)],
        container_filesystems: vec![convert::image::usage(&containers)],
    })
}
