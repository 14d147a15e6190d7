//! The border to the kubelet: both CRI services on one socket.
//!
//! Each RPC has a file of its own in `runtime/` or `image/`: it converts the request (`convert`), calls a
//! manager and converts the answer. What surrounds all of them is in `layer`, errors become codes in
//! `status`, and protobuf types go no further than this module.
//!
//! Whatever changes something runs detached from its call (`detach`): a caller that gives up, and every
//! caller has a deadline, must not leave half-made things behind. A command of ExecSync alone ends with its caller.

mod batch;
mod convert;
mod detach;
mod fit;
mod image;
mod layer;
mod method;
mod node;
mod runtime;
mod status;
mod verbose;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use berth_cri_api::MAX_MESSAGE_BYTES;
use berth_cri_api::v1::image_service_server::{ImageService, ImageServiceServer};
use berth_cri_api::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use futures_util::Stream;
use tokio::net::{UnixListener, UnixStream};
use tonic::service::Routes;
use tonic::transport::Server;

pub use crate::events::Ready;
pub use convert::{Abilities, SelinuxOptions};
pub use node::{CgroupDriver, Condition, NetworkReport, Node};

use crate::container::ContainerManager;
use crate::image::ImageManager;
use crate::metrics::Metrics;
use crate::pod::PodManager;
use crate::stats::Stats;
use layer::RpcLayer;

/// How long calls under way may go on once the daemon is told to stop. What they started goes on
/// detached; only their answers are lost.
const DRAIN: Duration = Duration::from_secs(5);

/// How long to wait when the kernel has no descriptor for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The kubelet has one connection for everything, and a node that shuts down has a StopContainer under way
/// for each container: far more than the 200 that the HTTP/2 library allows by default.
const MAX_CALLS: u32 = 16 * 1024;

/// What the services work with.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Sandboxes.
    pub pods: Arc<PodManager>,
    /// Containers.
    pub containers: Arc<ContainerManager>,
    /// Images.
    pub images: Arc<ImageManager>,
    /// What pods and containers use.
    pub stats: Stats,
    /// The node itself.
    pub node: Arc<Node>,
    /// Measurements.
    pub metrics: Arc<Metrics>,
    /// Set once recovery is over.
    pub ready: Arc<Ready>,
}

/// Both services.
#[derive(Clone, Debug)]
pub struct Services {
    deps: Arc<Deps>,
}

/// Serves until `shutdown` is there, then lets calls under way end, for a while.
///
/// # Errors
/// When serving cannot go on.
pub async fn serve(
    listener: UnixListener,
    deps: Deps,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let layer = RpcLayer::new(deps.ready.clone(), deps.metrics.clone());
    let services = Services {
        deps: Arc::new(deps),
    };
    let routes = Routes::new(runtime_server(services.clone())).add_service(image_server(services));
    serve_routes(listener, routes, layer, shutdown).await
}

fn runtime_server<T: RuntimeService>(service: T) -> RuntimeServiceServer<T> {
    RuntimeServiceServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn image_server<T: ImageService>(service: T) -> ImageServiceServer<T> {
    ImageServiceServer::new(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

async fn serve_routes(
    listener: UnixListener,
    routes: Routes,
    layer: RpcLayer,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = Server::builder()
        .max_concurrent_streams(MAX_CALLS)
        // Each call that a client cancels early counts here until it is looked at.
        .http2_max_pending_accept_reset_streams(Some(1024))
        .layer(layer)
        .add_routes(routes.prepare())
        .serve_with_incoming_shutdown(connections(listener), async {
            // Ends either way: by word or because the sender is gone.
            let _ = stopped.await;
        });
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => return ended.map_err(io::Error::other),
        () = shutdown => {}
    }
    drop(stop);
    match tokio::time::timeout(DRAIN, server).await {
        Ok(ended) => ended.map_err(io::Error::other),
        Err(_) => {
            tracing::info!("calls that are still under way are left without an answer");
            Ok(())
        }
    }
}

/// Connections as they come. An accept that fails, for want of descriptors mostly, is tried again.
fn connections(listener: UnixListener) -> impl Stream<Item = io::Result<UnixStream>> {
    futures_util::stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok(stream), listener)),
                Err(error) => {
                    tracing::warn!("a connection cannot be accepted: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}
