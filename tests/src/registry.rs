//! A local OCI registry (the distribution's `docker-registry`), and a small client that fills it.

pub mod faulty;
pub mod secure;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::oci::{Blob, Image};
use crate::paths;

/// The registries that critest's and our images name; each becomes a `hosts.toml` that points here.
const HOSTS: [&str; 6] = [
    "registry.k8s.io",
    "gcr.io",
    "k8s.gcr.io",
    "docker.io",
    "public.ecr.aws",
    "berth.test",
];

/// A running registry. It ends when this is dropped; its store is left where it is.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    address: SocketAddr,
    store: PathBuf,
}

impl Registry {
    /// Starts a registry on a free port of the loopback with its store in the folder.
    ///
    /// # Errors
    /// When the program is missing or does not answer within ten seconds.
    pub async fn start(store: &Path) -> Result<Self> {
        Self::serve(store, store, "").await
    }

    /// The same with more lines for the `http` section of its configuration, and after that; they and its log go
    /// to the folder `work`.
    async fn serve(store: &Path, work: &Path, more: &str) -> Result<Self> {
        let program = paths::system_tool("docker-registry")?;
        std::fs::create_dir_all(store)?;
        let address = free_address()?;
        let config = work.join("config.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: true\nstorage:\n  \
                 filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n{more}",
                store.display()
            ),
        )?;
        let log = std::fs::File::create(work.join("registry.log"))?;
        let child = Command::new(program)
            .args(["serve".as_ref(), config.as_os_str()])
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("starting docker-registry")?;
        for _ in 0..200 {
            if TcpStream::connect(address).await.is_ok() {
                return Ok(Self {
                    child,
                    address,
                    store: store.to_owned(),
                });
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!(
            "docker-registry does not answer on {address}; see {}/registry.log",
            work.display()
        )
    }

    /// The folder with its content.
    #[must_use]
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A client for it.
    #[must_use]
    pub fn client(&self) -> Client {
        Client {
            address: self.address,
        }
    }

    /// Its process id, so that a benchmark can leave its CPU time out of the account.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Writes a `hosts.toml` for every registry that the images name. The upstream is this registry too, so that a
    /// missing image is an answer and never a call to the outside.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_hosts(&self, folder: &Path) -> Result<PathBuf> {
        for host in HOSTS {
            let folder = folder.join(host);
            std::fs::create_dir_all(&folder)?;
            let url = format!("http://{}", self.address);
            std::fs::write(
                folder.join("hosts.toml"),
                format!(
                    "server = \"{url}\"\n\n[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
                ),
            )?;
        }
        Ok(folder.to_path_buf())
    }
}

fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?)
}

/// Speaks the registry's push API.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    address: SocketAddr,
}

impl Client {
    /// A client for the registry at the address.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self { address }
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<Response<Bytes>> {
        let stream = TcpStream::connect(self.address).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path.parse::<Uri>()?)
            .header("host", self.address.to_string())
            // Without it a registry denies that it has what is newer than Docker's own types.
            .header("accept", "application/vnd.oci.image.manifest.v1+json, */*");
        let (kind, bytes) = body.unwrap_or(("", Bytes::new()));
        if !kind.is_empty() {
            request = request.header("content-type", kind);
        }
        let response = sender.send_request(request.body(Full::new(bytes))?).await?;
        let (head, body) = response.into_parts();
        let bytes = body.collect().await?.to_bytes();
        drop(sender);
        driver.abort();
        Ok(Response::from_parts(head, bytes))
    }

    /// Pushes an image under a repository with tags.
    ///
    /// # Errors
    /// When the registry refuses something.
    pub async fn push(&self, repository: &str, tags: &[&str], image: &Image) -> Result<()> {
        for blob in &image.blobs {
            self.push_blob(repository, blob).await?;
        }
        for manifest in &image.manifests {
            self.push_manifest(repository, &manifest.digest, manifest)
                .await?;
        }
        for tag in tags {
            self.push_manifest(repository, tag, &image.top).await?;
        }
        Ok(())
    }

    /// Whether the registry has a tag.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn has(&self, repository: &str, tag: &str) -> Result<bool> {
        let path = format!("/v2/{repository}/manifests/{tag}");
        Ok(self.request(Method::HEAD, &path, None).await?.status() != StatusCode::NOT_FOUND)
    }

    async fn push_blob(&self, repository: &str, blob: &Blob) -> Result<()> {
        let known = format!("/v2/{repository}/blobs/{}", blob.digest);
        if self.request(Method::HEAD, &known, None).await?.status() == StatusCode::OK {
            return Ok(());
        }
        let session = self
            .request(
                Method::POST,
                &format!("/v2/{repository}/blobs/uploads/"),
                None,
            )
            .await?;
        ensure!(
            session.status() == StatusCode::ACCEPTED,
            "upload of a blob: {}",
            session.status()
        );
        let location = session
            .headers()
            .get("location")
            .context("an upload without a location")?
            .to_str()?;
        let location: Uri = location.parse()?;
        let path = location
            .path_and_query()
            .context("an upload without a path")?
            .as_str();
        let separator = if path.contains('?') { '&' } else { '?' };
        let answer = self
            .request(
                Method::PUT,
                &format!("{path}{separator}digest={}", blob.digest),
                Some(("application/octet-stream", Bytes::from(blob.bytes.clone()))),
            )
            .await?;
        ensure!(
            answer.status() == StatusCode::CREATED,
            "push of {} to {repository}: {} {}",
            blob.digest,
            answer.status(),
            String::from_utf8_lossy(answer.body())
        );
        Ok(())
    }

    /// Pushes a manifest under a tag or its own digest.
    ///
    /// # Errors
    /// When the registry refuses it.
    pub async fn push_manifest(&self, repository: &str, name: &str, blob: &Blob) -> Result<()> {
        let answer = self
            .request(
                Method::PUT,
                &format!("/v2/{repository}/manifests/{name}"),
                Some((&blob.media_type, Bytes::from(blob.bytes.clone()))),
            )
            .await?;
        ensure!(
            answer.status() == StatusCode::CREATED,
            "push of {repository}:{name}: {} {}",
            answer.status(),
            String::from_utf8_lossy(answer.body())
        );
        Ok(())
    }
}
