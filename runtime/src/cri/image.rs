//! The ImageService: each RPC goes to the file of its name.

mod image_fs_info;
mod image_status;
mod list_images;
mod pull_image;
mod remove_image;
mod stream_images;

use berth_cri_api::v1;
use berth_cri_api::v1::image_service_server::ImageService;
use tonic::{Request, Response, Status};

use super::Services;
use super::batch::{Messages, messages};

#[tonic::async_trait]
impl ImageService for Services {
    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        list_images::handle(&self.deps, request.into_inner()).map(Response::new)
    }

    type StreamImagesStream = Messages<v1::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        stream_images::handle(&self.deps, request.into_inner()).map(messages)
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        image_status::handle(&self.deps, request.into_inner()).map(Response::new)
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        pull_image::handle(&self.deps, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        remove_image::handle(&self.deps, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn image_fs_info(
        &self,
        _request: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        image_fs_info::handle(&self.deps).await.map(Response::new)
    }
}
