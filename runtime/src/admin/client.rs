//! The command line's side of the admin socket.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::api::{
    CheckReport, CheckRequest, DiskUse, ExplainRequest, ImageDetails, ImageRequest, ImageSummary,
    LoadRequest, Loaded, Problem, PruneRequest, Pruned, PullProgress, PullRequest, SaveRequest,
    Settings,
};
use crate::model::{Explanation, RegistryAuth};

/// Bytes that are read from an archive at a time.
const PIECE: usize = 256 * 1024;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody is there.
    #[error("cannot reach the daemon at {}: is `berth serve` running, and are you root?", .socket.display())]
    Connect {
        /// Where.
        socket: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the daemon broke")]
    Broken(#[source] hyper::Error),
    /// The daemon said no.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// In the daemon's words.
        message: String,
    },
    /// Another version?
    #[error("the daemon's answer cannot be understood: is it of another version?")]
    Malformed(#[source] serde_json::Error),
    /// What came cannot be written.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    /// The request cannot be made.
    #[error("the request cannot be made")]
    Request(#[source] hyper::http::Error),
}

type Body = BoxBody<Bytes, io::Error>;

/// A daemon, by its admin socket. Each request makes a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The daemon behind `socket`. Nothing is connected yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// The images in the store.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn images(&self) -> Result<Vec<ImageSummary>, Error> {
        parse(&self.send(Method::GET, "/images", None, empty()).await?)
    }

    /// Loads an archive that the daemon opens by its absolute path: the quickest way.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn load_file(&self, path: &Path) -> Result<Vec<Loaded>, Error> {
        let path = path.to_owned();
        let body = to_json(&LoadRequest { path })?;
        let answer = self.send(Method::POST, "/images/load", Some("application/json"), body);
        parse(&answer.await?)
    }

    /// Loads an archive that only this process can read, such as its standard input. Reads on a thread of
    /// its own.
    ///
    /// # Errors
    /// See [`Error`]; an archive that cannot be read breaks the connection.
    pub async fn load_stream(
        &self,
        archive: impl Read + Send + 'static,
    ) -> Result<Vec<Loaded>, Error> {
        let answer = self.send(
            Method::POST,
            "/images/load",
            Some("application/x-tar"),
            streamed(archive),
        );
        parse(&answer.await?)
    }

    /// Removes an image with all its names.
    ///
    /// # Errors
    /// See [`Error`]; status 404 when there is none.
    pub async fn remove(&self, reference: &str) -> Result<(), Error> {
        let reference = reference.to_owned();
        let body = to_json(&ImageRequest { reference })?;
        let json = Some("application/json");
        self.send(Method::POST, "/images/remove", json, body)
            .await?;
        Ok(())
    }

    /// What a pull of a reference with these credentials would do.
    ///
    /// # Errors
    /// See [`Error`]; status 400 when it is not a reference.
    pub async fn explain(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
    ) -> Result<Explanation, Error> {
        let reference = reference.to_owned();
        self.ask("/images/explain", &ExplainRequest { reference, auth })
            .await
    }

    /// All about an image.
    ///
    /// # Errors
    /// See [`Error`]; status 404 when there is none.
    pub async fn inspect(&self, reference: &str) -> Result<ImageDetails, Error> {
        let reference = reference.to_owned();
        self.ask("/images/inspect", &ImageRequest { reference })
            .await
    }

    /// Pulls an image; an identical pull under way is joined.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn pull(&self, request: &PullRequest) -> Result<Vec<ImageSummary>, Error> {
        self.ask("/images/pull", request).await
    }

    /// How far the pulls under way are.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn pulls(&self) -> Result<Vec<PullProgress>, Error> {
        parse(&self.send(Method::GET, "/pulls", None, empty()).await?)
    }

    /// Removes images that no container uses.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn prune(&self, all: bool) -> Result<Pruned, Error> {
        self.ask("/images/prune", &PruneRequest { all }).await
    }

    /// Checks the store.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn check(&self, quick: bool, repair: bool) -> Result<CheckReport, Error> {
        self.ask("/images/check", &CheckRequest { quick, repair })
            .await
    }

    /// What takes room.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn disk_use(&self) -> Result<DiskUse, Error> {
        parse(&self.send(Method::GET, "/df", None, empty()).await?)
    }

    /// Saves images; the pieces of the archive go to `take`, which may block for a moment.
    ///
    /// # Errors
    /// See [`Error`]; what `take` says. What was taken until then is no whole archive.
    pub async fn save(
        &self,
        references: &[String],
        mut take: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), Error> {
        let references = references.to_vec();
        let body = to_json(&SaveRequest { references })?;
        let exchange = self
            .exchange(Method::POST, "/images/save", Some("application/json"), body)
            .await?;
        let mut body = exchange.response.into_body();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.map_err(Error::Broken)?.into_data() {
                take(&data).map_err(Error::Write)?;
            }
        }
        Ok(())
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl serde::Serialize,
    ) -> Result<T, Error> {
        let json = Some("application/json");
        parse(
            &self
                .send(Method::POST, path, json, to_json(request)?)
                .await?,
        )
    }

    /// The settings of the running daemon.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn config(&self) -> Result<Settings, Error> {
        parse(&self.send(Method::GET, "/config", None, empty()).await?)
    }

    /// The measurements, as OpenMetrics text.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn metrics(&self) -> Result<String, Error> {
        self.send(Method::GET, "/metrics", None, empty())
            .await
            .map(text)
    }

    /// The log filter in force.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn log_level(&self) -> Result<String, Error> {
        let answer = self.send(Method::GET, "/log-level", None, empty()).await;
        answer.map(|body| text(body).trim_end().to_owned())
    }

    /// Puts another log filter in force.
    ///
    /// # Errors
    /// See [`Error`]; status 400 when it is not a filter.
    pub async fn set_log_level(&self, filter: &str) -> Result<(), Error> {
        let body = full(filter.to_owned());
        self.send(Method::PUT, "/log-level", None, body).await?;
        Ok(())
    }

    /// Whether the daemon serves RPCs.
    ///
    /// # Errors
    /// See [`Error`]; a daemon that recovers is no error.
    pub async fn ready(&self) -> Result<bool, Error> {
        match self.send(Method::GET, "/readyz", None, empty()).await {
            Ok(_) => Ok(true),
            Err(Error::Refused { status, .. })
                if status == StatusCode::SERVICE_UNAVAILABLE.as_u16() =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        kind: Option<&str>,
        body: Body,
    ) -> Result<Bytes, Error> {
        let exchange = self.exchange(method, path, kind, body).await?;
        let body = exchange.response.into_body().collect().await;
        Ok(body.map_err(Error::Broken)?.to_bytes())
    }

    /// Sends a request and waits for the head of a good answer.
    async fn exchange(
        &self,
        method: Method,
        path: &str,
        kind: Option<&str>,
        body: Body,
    ) -> Result<Exchange, Error> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|source| Error::Connect {
            socket: self.socket.clone(),
            source,
        })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(Error::Broken)?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost");
        if let Some(kind) = kind {
            request = request.header(CONTENT_TYPE, kind);
        }
        let request = request.body(body).map_err(Error::Request)?;
        // The connection makes the exchange go on; it ends with it, or breaks, which the exchange sees.
        let driver = Driver(tokio::spawn(connection).abort_handle());
        let response = sender.send_request(request).await.map_err(Error::Broken)?;
        let status = response.status();
        if status.is_success() {
            return Ok(Exchange {
                response,
                _driver: driver,
            });
        }
        let body = response.into_body().collect().await;
        let body = body.map_err(Error::Broken)?.to_bytes();
        let message = match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => problem.error,
            Err(_) => format!("the daemon answered {status}"),
        };
        let status = status.as_u16();
        Err(Error::Refused { status, message })
    }
}

/// An answer under way.
struct Exchange {
    response: Response<Incoming>,
    _driver: Driver,
}

struct Driver(tokio::task::AbortHandle);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(Error::Malformed)
}

fn text(body: Bytes) -> String {
    String::from_utf8_lossy(&body).into_owned()
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into())
        .map_err(|never| match never {})
        .boxed()
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<Body, Error> {
    Ok(full(serde_json::to_vec(value).map_err(Error::Malformed)?))
}

/// A body that is read on a blocking thread while it is sent.
fn streamed(mut archive: impl Read + Send + 'static) -> Body {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(4);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut piece = vec![0; PIECE];
            let read = match archive.read(&mut piece) {
                Ok(0) => return,
                Ok(count) => {
                    piece.truncate(count);
                    Ok(Bytes::from(piece))
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = read.is_err();
            if sender.blocking_send(read).is_err() || failed {
                return;
            }
        }
    });
    let pieces = stream::unfold(receiver, |mut receiver| async {
        let piece = receiver.recv().await?;
        Some((piece.map(Frame::data), receiver))
    });
    BodyExt::boxed(StreamBody::new(pieces))
}
