//! A registry that does what it is told not to, and remembers what it was asked.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::header::{AUTHORIZATION, HeaderMap};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::oci::Image;

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Another status, and what `Retry-After` says with it.
    Status(u16, Option<String>),
    /// The body is cut off after so many bytes.
    Cut(usize),
    /// The body stops after so many bytes, and nothing more comes.
    Stall(usize),
    /// There is no answer at all.
    Silence,
    /// A byte in the middle is another one.
    WrongBytes,
    /// The body is half as long, and says so.
    Short,
    /// Redirected to this origin.
    Redirect(String),
    /// So many bytes at a time, with a pause between.
    Drip(usize, Duration),
    /// Wants a user and a password, as `Basic`.
    Basic(&'static str, &'static str),
    /// Wants a token, which the service at this URL gives to these users (none: to everybody).
    Bearer(String),
}

/// Requests whose path holds a text meet a fault, so many times.
#[derive(Clone, Debug)]
struct Rule {
    part: String,
    fault: Fault,
    times: usize,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    /// GET, HEAD or POST
    pub method: String,
    /// with the query; whole, when it came as to a proxy
    pub path: String,
    /// its headers
    pub headers: HeaderMap,
}

#[derive(Debug, Default)]
struct State {
    /// media type and bytes, by `repository/name`
    manifests: HashMap<String, (String, Bytes)>,
    blobs: HashMap<String, Bytes>,
    rules: Vec<Rule>,
    seen: Vec<Seen>,
}

/// A running one. It ends when this is dropped.
#[derive(Debug)]
pub struct Faulty {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Faulty {
    /// Starts one on the loopback, without content and without faults.
    ///
    /// # Errors
    /// When there is no port for it.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let server = tokio::spawn(async move {
            // The connections end with their task, and that with this one.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let state = Arc::clone(&state);
                        async move {
                            let mut response = answer(&request, &state).await?;
                            // A canary: nobody brings it back.
                            let cookie = "canary-cookie=1; Path=/".parse()?;
                            response.headers_mut().insert("set-cookie", cookie);
                            anyhow::Ok(response)
                        }
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Self {
            address,
            state,
            server,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://` and its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Serves an image under a tag.
    pub fn add(&self, repository: &str, tag: &str, image: &Image) {
        let mut state = locked(&self.state);
        for blob in &image.blobs {
            let bytes = Bytes::from(blob.bytes.clone());
            state.blobs.insert(blob.digest.clone(), bytes);
        }
        for manifest in &image.manifests {
            let value = (
                manifest.media_type.clone(),
                Bytes::from(manifest.bytes.clone()),
            );
            let name = format!("{repository}/{}", manifest.digest);
            state.manifests.insert(name, value);
        }
        let top = (
            image.top.media_type.clone(),
            Bytes::from(image.top.bytes.clone()),
        );
        state.manifests.insert(format!("{repository}/{tag}"), top);
    }

    /// Serves any bytes as a manifest under a tag.
    pub fn add_manifest(&self, repository: &str, tag: &str, kind: &str, bytes: &[u8]) {
        let value = (kind.to_owned(), Bytes::copy_from_slice(bytes));
        let name = format!("{repository}/{tag}");
        locked(&self.state).manifests.insert(name, value);
    }

    /// The next so many requests whose path holds the text meet the fault.
    pub fn fault(&self, part: &str, fault: Fault, times: usize) {
        let part = part.to_owned();
        locked(&self.state).rules.push(Rule { part, fault, times });
    }

    /// No more faults.
    pub fn heal(&self) {
        locked(&self.state).rules.clear();
    }

    /// What it was asked until now.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        locked(&self.state).seen.clone()
    }

    /// Writes a `hosts.toml` for a registry's name: its server, then mirrors in order.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_hosts(folder: &Path, name: &str, server: &str, mirrors: &[&str]) -> Result<()> {
        let mut text = format!("server = \"{server}\"\n");
        for mirror in mirrors {
            text.push_str(&format!(
                "[host.\"{mirror}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
            ));
        }
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(std::fs::write(folder.join("hosts.toml"), text)?)
    }
}

type Answer = Response<BoxBody<Bytes, std::io::Error>>;

fn full(status: u16, bytes: impl Into<Bytes>) -> Result<Answer> {
    let body = Full::new(bytes.into()).map_err(|never| match never {});
    Ok(Response::builder().status(status).body(body.boxed())?)
}

async fn answer(request: &Request<Incoming>, state: &Mutex<State>) -> Result<Answer> {
    let whole = request.uri().to_string();
    let path = request.uri().path().to_owned();
    let fault = {
        let mut state = locked(state);
        state.seen.push(Seen {
            method: request.method().to_string(),
            path: whole.clone(),
            headers: request.headers().clone(),
        });
        let met = |rule: &&mut Rule| rule.times > 0 && whole.contains(&rule.part);
        let rule = state.rules.iter_mut().find(met);
        rule.map(|rule| {
            rule.times -= 1;
            rule.fault.clone()
        })
    };
    let given = request.headers().get(AUTHORIZATION);
    let given = given.and_then(|value| value.to_str().ok()).unwrap_or("");
    match &fault {
        Some(Fault::Status(status, after)) => {
            let text = "{\"errors\":[{\"code\":\"TEST\",\"message\":\"told to\"}]}";
            let mut response = full(*status, text)?;
            if let Some(after) = after {
                response.headers_mut().insert("retry-after", after.parse()?);
            }
            return Ok(response);
        }
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Redirect(origin)) => {
            let mut response = full(307, "")?;
            let to = format!("{origin}{path}?signature=canary-query");
            response.headers_mut().insert("location", to.parse()?);
            return Ok(response);
        }
        Some(Fault::Basic(user, password)) => {
            let want = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
            if given != want {
                return challenge("Basic realm=\"test\"");
            }
        }
        Some(Fault::Bearer(realm)) if given != "Bearer t0ken" => {
            return challenge(&format!("Bearer realm=\"{realm}\",service=\"test\""));
        }
        _ => {}
    }
    if path.ends_with("/token") {
        return full(200, "{\"token\":\"t0ken\",\"expires_in\":300}");
    }
    let Some((kind, bytes)) = content(state, &path) else {
        return full(404, "");
    };
    served(request, kind, bytes, fault)
}

fn challenge(text: &str) -> Result<Answer> {
    let mut response = full(401, "")?;
    let headers = response.headers_mut();
    headers.insert("www-authenticate", text.parse()?);
    Ok(response)
}

fn content(state: &Mutex<State>, path: &str) -> Option<(String, Bytes)> {
    let state = locked(state);
    let path = path.strip_prefix("/v2/")?;
    if let Some((repository, name)) = path.split_once("/manifests/") {
        let found = state.manifests.get(&format!("{repository}/{name}"));
        return found.cloned();
    }
    let digest = path.split_once("/blobs/")?.1;
    let bytes = state.blobs.get(digest)?.clone();
    Some(("application/octet-stream".to_owned(), bytes))
}

fn served(
    request: &Request<Incoming>,
    kind: String,
    bytes: Bytes,
    fault: Option<Fault>,
) -> Result<Answer> {
    // Of what it should send, as real ones have it.
    let digest = crate::oci::digest(&bytes);
    let bytes = match &fault {
        Some(Fault::WrongBytes) => {
            let mut bytes = bytes.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            Bytes::from(bytes)
        }
        Some(Fault::Short) => bytes.slice(..bytes.len() / 2),
        _ => bytes,
    };
    let whole = bytes.len();
    let range = request.headers().get("range");
    let start = range.and_then(|range| {
        let text = range.to_str().ok()?.strip_prefix("bytes=")?;
        text.strip_suffix('-')?.parse::<usize>().ok()
    });
    let start = start.filter(|start| *start < whole).unwrap_or(0);
    let rest = bytes.slice(start..);
    let status = if start > 0 { 206 } else { 200 };
    let mut response = Response::builder()
        .status(status)
        .header("content-type", kind)
        .header("docker-content-digest", digest)
        .header("content-length", rest.len());
    if start > 0 {
        let range = format!("bytes {start}-{}/{whole}", whole - 1);
        response = response.header("content-range", range);
    }
    if request.method() == Method::HEAD {
        return Ok(response.body(BoxBody::default())?);
    }
    Ok(response.body(Script::body(rest, fault))?)
}

/// A body that misbehaves.
struct Script {
    pieces: mpsc::Receiver<std::io::Result<Bytes>>,
    length: u64,
}

impl Script {
    fn body(bytes: Bytes, fault: Option<Fault>) -> BoxBody<Bytes, std::io::Error> {
        let length = bytes.len() as u64;
        let (sender, pieces) = mpsc::channel(1);
        tokio::spawn(async move {
            let (piece, pause, end) = match fault {
                Some(Fault::Drip(piece, pause)) => (piece, pause, bytes.len()),
                Some(Fault::Cut(end) | Fault::Stall(end)) => {
                    (64 << 10, Duration::ZERO, end.min(bytes.len()))
                }
                _ => (64 << 10, Duration::ZERO, bytes.len()),
            };
            let mut at = 0;
            while at < end {
                let next = end.min(at + piece);
                if sender.send(Ok(bytes.slice(at..next))).await.is_err() {
                    return;
                }
                at = next;
                tokio::time::sleep(pause).await;
            }
            match fault {
                Some(Fault::Cut(_)) => {
                    let _ = sender.send(Err(std::io::Error::other("cut"))).await;
                }
                // Until the other side gives up.
                Some(Fault::Stall(_)) => sender.closed().await,
                _ => {}
            }
        });
        Self { pieces, length }.boxed()
    }
}

impl Body for Script {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        let piece = self.pieces.poll_recv(context);
        piece.map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}
