//! ListImages (rows R047, F142).

use berth_cri_api::v1::{Image, ImageFilter, ListImagesRequest, ListImagesResponse};
use tonic::Status;

use crate::cri::{Deps, convert, status};
use crate::model::{self, Kind, Kinded};

pub(super) fn handle(
    deps: &Deps,
    request: ListImagesRequest,
) -> Result<ListImagesResponse, Status> {
    let images = matching(deps, request.filter)?;
    let images: Vec<Image> = images.iter().map(convert::image::to_proto).collect();
    Ok(ListImagesResponse { images })
}

/// The images that a filter lets through; a name that no image has, or could have, matches none.
pub(super) fn matching(
    deps: &Deps,
    filter: Option<ImageFilter>,
) -> Result<Vec<model::Image>, Status> {
    let name = filter.and_then(|f| f.image).unwrap_or_default().image;
    if name.is_empty() {
        return Ok(deps.images.list());
    }
    match deps.images.find(&name) {
        Ok(found) => Ok(found.into_iter().collect()),
        Err(error) if error.kind() == Kind::InvalidArgument => Ok(Vec::new()),
        Err(error) => Err(status::of(error)),
    }
}
