//! StreamImages (row R048).

use berth_cri_api::v1::{StreamImagesRequest, StreamImagesResponse};
use tonic::Status;

use super::list_images::matching;
use crate::cri::batch::{BATCH_BYTES, batches};
use crate::cri::{Deps, convert};

pub(super) fn handle(
    deps: &Deps,
    request: StreamImagesRequest,
) -> Result<impl Iterator<Item = StreamImagesResponse> + Send + use<>, Status> {
    let images = matching(deps, request.filter)?.into_iter();
    let items = images.map(|image| convert::image::to_proto(&image));
    Ok(batches(items, BATCH_BYTES).map(|images| StreamImagesResponse { images }))
}
