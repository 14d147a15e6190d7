//! A CRI client over a unix socket, with one short method for each call that tests make often.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use berth_cri_api::v1::image_service_client::ImageServiceClient;
use berth_cri_api::v1::runtime_service_client::RuntimeServiceClient;
use berth_cri_api::v1::*;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// What a kubelet accepts in one message.
const MESSAGE_LIMIT: usize = 16 * 1024 * 1024;
/// Longer than any call may take, so that a hang is a failure with a name.
const DEADLINE: Duration = Duration::from_secs(180);

/// Both services of one socket.
#[derive(Clone, Debug)]
pub struct Cri {
    /// the runtime service
    pub runtime: RuntimeServiceClient<Channel>,
    /// the image service
    pub image: ImageServiceClient<Channel>,
}

type Answer<T> = Result<T, Status>;

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

impl Cri {
    /// Connects to a socket.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let path = socket.to_path_buf();
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }))
            .await
            .with_context(|| format!("connecting to {}", socket.display()))?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT),
            image: ImageServiceClient::new(channel)
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT),
        })
    }

    /// Version
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn version(&self) -> Answer<VersionResponse> {
        let request = timed(VersionRequest {
            version: "0.1.0".into(),
        });
        Ok(self.runtime.clone().version(request).await?.into_inner())
    }

    /// Status
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn status(&self, verbose: bool) -> Answer<StatusResponse> {
        let request = timed(StatusRequest { verbose });
        Ok(self.runtime.clone().status(request).await?.into_inner())
    }

    /// RunPodSandbox; gives the id.
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn run_pod(&self, config: &PodSandboxConfig) -> Answer<String> {
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        Ok(self
            .runtime
            .clone()
            .run_pod_sandbox(timed(request))
            .await?
            .into_inner()
            .pod_sandbox_id)
    }

    /// StopPodSandbox
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn stop_pod(&self, id: &str) -> Answer<()> {
        let request = timed(StopPodSandboxRequest {
            pod_sandbox_id: id.into(),
        });
        self.runtime
            .clone()
            .stop_pod_sandbox(request)
            .await
            .map(drop)
    }

    /// RemovePodSandbox
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn remove_pod(&self, id: &str) -> Answer<()> {
        let request = timed(RemovePodSandboxRequest {
            pod_sandbox_id: id.into(),
        });
        self.runtime
            .clone()
            .remove_pod_sandbox(request)
            .await
            .map(drop)
    }

    /// PodSandboxStatus with the verbose part
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn pod_status_verbose(&self, id: &str) -> Answer<PodSandboxStatusResponse> {
        let request = timed(PodSandboxStatusRequest {
            pod_sandbox_id: id.into(),
            verbose: true,
        });
        Ok(self
            .runtime
            .clone()
            .pod_sandbox_status(request)
            .await?
            .into_inner())
    }

    /// PodSandboxStatus
    ///
    /// # Errors
    /// As the runtime answers, or when the answer has no status.
    pub async fn pod_status(&self, id: &str) -> Answer<PodSandboxStatus> {
        let request = timed(PodSandboxStatusRequest {
            pod_sandbox_id: id.into(),
            verbose: false,
        });
        let answer = self
            .runtime
            .clone()
            .pod_sandbox_status(request)
            .await?
            .into_inner();
        answer
            .status
            .ok_or_else(|| Status::internal("an answer without a status"))
    }

    /// ListPodSandbox
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn list_pods(&self, filter: Option<PodSandboxFilter>) -> Answer<Vec<PodSandbox>> {
        let request = timed(ListPodSandboxRequest { filter });
        Ok(self
            .runtime
            .clone()
            .list_pod_sandbox(request)
            .await?
            .into_inner()
            .items)
    }

    /// CreateContainer; gives the id.
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn create(
        &self,
        pod: &str,
        config: &ContainerConfig,
        pod_config: &PodSandboxConfig,
    ) -> Answer<String> {
        let request = timed(CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config.clone()),
            sandbox_config: Some(pod_config.clone()),
        });
        Ok(self
            .runtime
            .clone()
            .create_container(request)
            .await?
            .into_inner()
            .container_id)
    }

    /// StartContainer
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn start(&self, id: &str) -> Answer<()> {
        let request = timed(StartContainerRequest {
            container_id: id.into(),
        });
        self.runtime
            .clone()
            .start_container(request)
            .await
            .map(drop)
    }

    /// StopContainer with a grace time in seconds
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn stop(&self, id: &str, seconds: i64) -> Answer<()> {
        let request = timed(StopContainerRequest {
            container_id: id.into(),
            timeout: seconds,
        });
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    /// RemoveContainer
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn remove(&self, id: &str) -> Answer<()> {
        let request = timed(RemoveContainerRequest {
            container_id: id.into(),
        });
        self.runtime
            .clone()
            .remove_container(request)
            .await
            .map(drop)
    }

    /// ContainerStatus
    ///
    /// # Errors
    /// As the runtime answers, or when the answer has no status.
    pub async fn container_status(&self, id: &str) -> Answer<ContainerStatus> {
        let request = timed(ContainerStatusRequest {
            container_id: id.into(),
            verbose: false,
        });
        let answer = self
            .runtime
            .clone()
            .container_status(request)
            .await?
            .into_inner();
        answer
            .status
            .ok_or_else(|| Status::internal("an answer without a status"))
    }

    /// ContainerStatus with the verbose part
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn container_status_verbose(&self, id: &str) -> Answer<ContainerStatusResponse> {
        let request = timed(ContainerStatusRequest {
            container_id: id.into(),
            verbose: true,
        });
        Ok(self
            .runtime
            .clone()
            .container_status(request)
            .await?
            .into_inner())
    }

    /// ListContainers
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn list_containers(&self, filter: Option<ContainerFilter>) -> Answer<Vec<Container>> {
        let request = timed(ListContainersRequest { filter });
        Ok(self
            .runtime
            .clone()
            .list_containers(request)
            .await?
            .into_inner()
            .containers)
    }

    /// ContainerStats
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn container_stats(&self, id: &str) -> Answer<ContainerStats> {
        let request = timed(ContainerStatsRequest {
            container_id: id.into(),
        });
        let answer = self.runtime.clone().container_stats(request).await?;
        let stats = answer.into_inner().stats;
        stats.ok_or_else(|| Status::unknown("no stats in the answer"))
    }

    /// ListContainerStats
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn list_container_stats(
        &self,
        filter: Option<ContainerStatsFilter>,
    ) -> Answer<Vec<ContainerStats>> {
        let request = timed(ListContainerStatsRequest { filter });
        let answer = self.runtime.clone().list_container_stats(request).await?;
        Ok(answer.into_inner().stats)
    }

    /// PodSandboxStats
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn pod_stats(&self, id: &str) -> Answer<PodSandboxStats> {
        let request = timed(PodSandboxStatsRequest {
            pod_sandbox_id: id.into(),
        });
        let answer = self.runtime.clone().pod_sandbox_stats(request).await?;
        let stats = answer.into_inner().stats;
        stats.ok_or_else(|| Status::unknown("no stats in the answer"))
    }

    /// ListPodSandboxStats
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn list_pod_stats(
        &self,
        filter: Option<PodSandboxStatsFilter>,
    ) -> Answer<Vec<PodSandboxStats>> {
        let request = timed(ListPodSandboxStatsRequest { filter });
        let answer = self.runtime.clone().list_pod_sandbox_stats(request).await?;
        Ok(answer.into_inner().stats)
    }

    /// ExecSync with a time limit in seconds (0: none)
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn exec(&self, id: &str, cmd: &[&str], seconds: i64) -> Answer<ExecSyncResponse> {
        let request = timed(ExecSyncRequest {
            container_id: id.into(),
            cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
            timeout: seconds,
        });
        Ok(self.runtime.clone().exec_sync(request).await?.into_inner())
    }

    /// UpdateContainerResources
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn update(&self, id: &str, linux: LinuxContainerResources) -> Answer<()> {
        let request = timed(UpdateContainerResourcesRequest {
            container_id: id.into(),
            linux: Some(linux),
            ..UpdateContainerResourcesRequest::default()
        });
        self.runtime
            .clone()
            .update_container_resources(request)
            .await
            .map(drop)
    }

    /// ReopenContainerLog
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn reopen_log(&self, id: &str) -> Answer<()> {
        let request = timed(ReopenContainerLogRequest {
            container_id: id.into(),
        });
        self.runtime
            .clone()
            .reopen_container_log(request)
            .await
            .map(drop)
    }

    /// PullImage; gives the reference that the runtime answers.
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn pull(&self, image: &str) -> Answer<String> {
        self.pull_as(image, None).await
    }

    /// PullImage with a user name and a password.
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn pull_as(&self, image: &str, user: Option<(&str, &str)>) -> Answer<String> {
        let request = timed(PullImageRequest {
            image: Some(image_spec(image)),
            auth: user.map(|(name, password)| AuthConfig {
                username: name.to_owned(),
                password: password.to_owned(),
                ..AuthConfig::default()
            }),
            sandbox_config: None,
        });
        Ok(self
            .image
            .clone()
            .pull_image(request)
            .await?
            .into_inner()
            .image_ref)
    }

    /// ImageStatus
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn image_status(&self, image: &str) -> Answer<Option<Image>> {
        Ok(self.ask_image(image, false).await?.image)
    }

    /// The verbose part of ImageStatus
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn image_info(&self, image: &str) -> Answer<BTreeMap<String, String>> {
        Ok(self.ask_image(image, true).await?.info)
    }

    async fn ask_image(&self, image: &str, verbose: bool) -> Answer<ImageStatusResponse> {
        let request = timed(ImageStatusRequest {
            image: Some(image_spec(image)),
            verbose,
        });
        let answer = self.image.clone().image_status(request).await?;
        Ok(answer.into_inner())
    }

    /// ListImages without a filter
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn list_images(&self) -> Answer<Vec<Image>> {
        let request = timed(ListImagesRequest { filter: None });
        Ok(self
            .image
            .clone()
            .list_images(request)
            .await?
            .into_inner()
            .images)
    }

    /// RemoveImage
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn remove_image(&self, image: &str) -> Answer<()> {
        let request = timed(RemoveImageRequest {
            image: Some(image_spec(image)),
        });
        self.image.clone().remove_image(request).await.map(drop)
    }
}

/// An image by name.
#[must_use]
pub fn image_spec(image: &str) -> ImageSpec {
    ImageSpec {
        image: image.into(),
        user_specified_image: image.into(),
        ..ImageSpec::default()
    }
}
