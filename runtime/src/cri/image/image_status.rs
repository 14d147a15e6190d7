//! ImageStatus (rows R049, R055). An absent image is an answer, not an error: the kubelet pulls then.

use berth_cri_api::v1::{ImageStatusRequest, ImageStatusResponse};
use tonic::Status;

use crate::cri::layer::about_image;
use crate::cri::{Deps, convert, status, verbose};

pub(super) fn handle(
    deps: &Deps,
    request: ImageStatusRequest,
) -> Result<ImageStatusResponse, Status> {
    let reference = convert::image::reference(request.image).map_err(status::of)?;
    about_image(&reference);
    let Some(image) = deps.images.find(&reference).map_err(status::of)? else {
        return Ok(ImageStatusResponse::default());
    };
    Ok(ImageStatusResponse {
        image: Some(convert::image::to_proto(&image)),
        info: if request.verbose {
            verbose::image(&image)
        } else {
            Default::default()
        },
    })
}
