//! The border on a real socket, with an image service of the test's making behind it.

use std::path::{Path, PathBuf};

use berth_cri_api::v1;
use berth_cri_api::v1::image_service_client::ImageServiceClient;
use tokio::sync::Semaphore;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::batch::{Messages, batches, messages};
use super::detach::detached;
use super::*;

/// Answers with as many bytes as the name of the image says, and pulls until it may end.
#[derive(Clone)]
struct Fake {
    may_end: Arc<Semaphore>,
    pulled: Arc<Semaphore>,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            may_end: Arc::new(Semaphore::new(0)),
            pulled: Arc::new(Semaphore::new(0)),
        }
    }
}

fn named(text: String) -> v1::Image {
    v1::Image {
        username: text,
        ..v1::Image::default()
    }
}

#[tonic::async_trait]
impl ImageService for Fake {
    async fn list_images(
        &self,
        _: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        Err(Status::unknown("not asked for"))
    }

    type StreamImagesStream = Messages<v1::StreamImagesResponse>;

    async fn stream_images(
        &self,
        _: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = (0..100).map(|i| named(format!("{i}")));
        let answers = batches(images, 200).map(|images| v1::StreamImagesResponse { images });
        Ok(messages(answers))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        let name = request.into_inner().image.unwrap_or_default().image;
        let bytes = name.trim().parse().unwrap_or(0);
        Ok(Response::new(v1::ImageStatusResponse {
            image: Some(named("x".repeat(bytes))),
            ..v1::ImageStatusResponse::default()
        }))
    }

    async fn pull_image(
        &self,
        _: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        let (may_end, pulled) = (self.may_end.clone(), self.pulled.clone());
        detached(async move {
            may_end.acquire().await.unwrap().forget();
            pulled.add_permits(1);
            Ok(Response::new(v1::PullImageResponse::default()))
        })
        .await
    }

    async fn remove_image(
        &self,
        _: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        panic!("a bug")
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        std::future::pending().await
    }
}

struct Rig {
    fake: Fake,
    client: ImageServiceClient<Channel>,
    stop: tokio::sync::oneshot::Sender<()>,
    server: tokio::task::JoinHandle<io::Result<()>>,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Rig {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cri.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (ready, fake) = (Arc::new(Ready::default()), Fake::default());
        ready.set();
        ready.wait().await;
        let layer = RpcLayer::new(ready, Arc::new(Metrics::new()));
        let routes = Routes::new(image_server(fake.clone()));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let server = tokio::spawn(serve_routes(listener, routes, layer, async {
            stopped.await.unwrap();
        }));
        let client = ImageServiceClient::connect(format!("unix:{}", path.display()));
        let client = client.await.unwrap();
        let client = client
            .max_decoding_message_size(2 * MAX_MESSAGE_BYTES)
            .max_encoding_message_size(2 * MAX_MESSAGE_BYTES);
        Self {
            fake,
            client,
            stop,
            server,
            path,
            _directory: directory,
        }
    }
}

fn status_request(name: String) -> v1::ImageStatusRequest {
    v1::ImageStatusRequest {
        image: Some(v1::ImageSpec {
            image: name,
            ..v1::ImageSpec::default()
        }),
        verbose: false,
    }
}

#[tokio::test]
async fn messages_of_up_to_sixteen_mebibytes_pass_both_ways() {
    let mut rig = Rig::start().await;
    let large = MAX_MESSAGE_BYTES - 1024;
    let answer = rig.client.image_status(status_request(large.to_string()));
    let image = answer.await.unwrap().into_inner().image.unwrap();
    assert_eq!(image.username.len(), large);

    let padded = " ".repeat(large) + "3";
    let answer = rig.client.image_status(status_request(padded)).await;
    assert_eq!(answer.unwrap().into_inner().image.unwrap().username, "xxx");

    let too_large = " ".repeat(MAX_MESSAGE_BYTES);
    let refused = rig.client.image_status(status_request(too_large)).await;
    assert_eq!(refused.unwrap_err().code(), Code::OutOfRange);
}

/// The gRPC code of a pull with that deadline, from a client without a clock of its own: the answer is the
/// server's.
async fn pull_code(socket: &Path, timeout: &str) -> String {
    let stream = UnixStream::connect(socket).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .unwrap();
    let connection = tokio::spawn(connection);
    let request = hyper::Request::post("http://localhost/runtime.v1.ImageService/PullImage")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout)
        // An uncompressed message of no bytes.
        .body(http_body_util::Full::new(bytes::Bytes::from_static(
            &[0; 5],
        )))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    connection.abort();
    response.headers()["grpc-status"]
        .to_str()
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn a_pull_goes_on_after_its_deadline() {
    let rig = Rig::start().await;
    let timeouts = ["1m", "2m", "3m", "5m", "7m", "900u", "1n"];
    for timeout in timeouts {
        let code = pull_code(&rig.path, timeout).await;
        assert_eq!(code, "4", "{timeout}: DEADLINE_EXCEEDED is wanted");
    }
    assert_eq!(rig.fake.pulled.available_permits(), 0);
    rig.fake.may_end.add_permits(timeouts.len());
    // A pull whose handler was dropped before it was polled was never started, so not all need to end.
    let ended = rig.fake.pulled.acquire();
    let ended = tokio::time::timeout(Duration::from_secs(30), ended).await;
    assert!(ended.is_ok(), "all pulls were dropped with their callers");
}

#[tokio::test]
async fn a_panic_leaves_the_connection_and_the_daemon_alone() {
    let mut rig = Rig::start().await;
    let request = v1::RemoveImageRequest::default();
    let refused = rig.client.remove_image(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    let answer = rig.client.image_status(status_request("1".into())).await;
    assert!(answer.is_ok());
}

#[tokio::test]
async fn a_streamed_list_is_whole_and_in_pieces() {
    let mut rig = Rig::start().await;
    let request = v1::StreamImagesRequest::default();
    let mut stream = rig
        .client
        .stream_images(request)
        .await
        .unwrap()
        .into_inner();
    let (mut pieces, mut images) = (0, Vec::new());
    while let Some(piece) = stream.message().await.unwrap() {
        pieces += 1;
        images.extend(piece.images.into_iter().map(|i| i.username));
    }
    assert!(pieces > 1);
    assert_eq!(images, (0..100).map(|i| i.to_string()).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_stop_waits_for_calls_under_way_but_not_for_ever() {
    let mut rig = Rig::start().await;
    let mut other = rig.client.clone();
    let hanging = tokio::spawn(async move {
        let request = v1::ImageFsInfoRequest {};
        other.image_fs_info(request).await
    });
    // The call has arrived once another one on the same connection is answered.
    rig.client
        .image_status(status_request("1".into()))
        .await
        .unwrap();
    let asked = tokio::time::Instant::now();
    rig.stop.send(()).unwrap();
    rig.server.await.unwrap().unwrap();
    assert!(asked.elapsed() >= DRAIN && asked.elapsed() < 2 * DRAIN);
    hanging.abort();
}
