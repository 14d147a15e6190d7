//! PullImage (rows R050, R061 to R063, F091 to F093).

use std::sync::Arc;

use berth_cri_api::v1::{PullImageRequest, PullImageResponse};
use tonic::Status;

use crate::cri::detach::detached;
use crate::cri::layer::about_image;
use crate::cri::{Deps, convert, status};

/// The pull goes on when its caller leaves: the next attempt joins it, or finds the image (row X065).
pub(super) async fn handle(
    deps: &Arc<Deps>,
    request: PullImageRequest,
) -> Result<PullImageResponse, Status> {
    let reference = convert::image::reference(request.image).map_err(status::of)?;
    about_image(&reference);
    let auth = convert::image::auth(request.auth);
    let images = deps.images.clone();
    detached(async move {
        let pulled = images.pull(&reference, auth).await;
        let id = pulled.map_err(status::of)?;
        Ok(PullImageResponse {
            image_ref: id.to_string(),
        })
    })
    .await
}
