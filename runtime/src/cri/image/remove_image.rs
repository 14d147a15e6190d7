//! RemoveImage (row R051).

use std::sync::Arc;

use berth_cri_api::v1::{RemoveImageRequest, RemoveImageResponse};
use tonic::Status;

use crate::cri::detach::detached;
use crate::cri::layer::about_image;
use crate::cri::{Deps, convert, status};

pub(super) async fn handle(
    deps: &Arc<Deps>,
    request: RemoveImageRequest,
) -> Result<RemoveImageResponse, Status> {
    let reference = convert::image::reference(request.image).map_err(status::of)?;
    about_image(&reference);
    let images = deps.images.clone();
    detached(async move {
        images.remove(&reference).await.map_err(status::of)?;
        Ok(RemoveImageResponse {})
    })
    .await
}
