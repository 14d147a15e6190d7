//! A registry in this process that does what it is told, and remembers what it was asked.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;

use crate::model::Digest;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

type Body = BoxBody<Bytes, io::Error>;

/// What it is told to do.
#[derive(Default)]
pub(crate) struct Plan {
    /// Wants this user and password, as Basic.
    pub(crate) basic: Option<(String, String)>,
    /// Wants a token, given to this user (none: to anybody).
    pub(crate) bearer: Option<Option<(String, String)>>,
    /// Token service, if not itself.
    pub(crate) realm: Option<String>,
    /// Refresh token that the token service takes by POST.
    pub(crate) refresh: Option<String>,
    /// Blobs are at this base URL.
    pub(crate) redirect: Option<String>,
    /// Blob answers end after so many bytes, so many times.
    pub(crate) cut: Option<(usize, u32)>,
    /// Ignores ranges.
    pub(crate) no_ranges: bool,
    /// Blobs come in pieces of so many bytes, with a pause between.
    pub(crate) drip: Option<(usize, Duration)>,
    /// Requests whose path holds the text get this status and `Retry-After`, so many times.
    pub(crate) fail: Option<(String, u16, u32)>,
    /// What `Retry-After` says; 0 when it is not told.
    pub(crate) retry_after: Option<String>,
    /// Blobs come with another byte in the middle.
    pub(crate) damage: bool,
    /// Manifests are said to have another digest than they have.
    pub(crate) lie: bool,
    /// Blobs come without their length.
    pub(crate) unsized_blobs: bool,
    /// Tag of the version of all blobs.
    pub(crate) etag: Option<String>,
    /// A range is refused with 416.
    pub(crate) refuse_ranges: bool,
    /// The token that is given and taken now; none: the first.
    pub(crate) token: Option<String>,
    /// What the token service answers instead.
    pub(crate) token_answer: Option<Vec<u8>>,
    /// The challenge of a registry with tokens; `{realm}` is its token service.
    pub(crate) challenge: Option<Vec<u8>>,
    /// Requests whose path holds the text are redirected; `{}` is the path.
    pub(crate) moved: Option<(String, u16, String)>,
}

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

#[derive(Default)]
struct State {
    plan: Plan,
    manifests: HashMap<String, (String, Bytes)>,
    blobs: HashMap<String, Bytes>,
    log: Vec<Seen>,
}

/// A running registry; it ends with the test's runtime.
pub(crate) struct Fake {
    pub(crate) addr: SocketAddr,
    /// PEM of its own authority, when it speaks TLS.
    pub(crate) ca: Option<String>,
    state: Arc<Mutex<State>>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let cookie = |seen: &Seen| seen.headers.contains_key("cookie");
            assert!(!self.log().iter().any(cookie), "a cookie came back");
        }
    }
}

impl Fake {
    pub(crate) async fn http() -> Self {
        Self::start(None).await
    }

    pub(crate) async fn https() -> Self {
        Self::tls(None).await
    }

    /// Speaks TLS with those who show a certificate: the client's, with its key, is in the answer (PEM).
    pub(crate) async fn mutual() -> (Self, String) {
        let (der, pem) = client_certificate("client");
        (Self::tls(Some(der)).await, pem)
    }

    /// Speaks TLS with those who show this certificate; none: with everybody.
    pub(crate) async fn tls(client: Option<rustls::pki_types::CertificateDer<'static>>) -> Self {
        let names = ["localhost", "127.0.0.1", "registry.test"].map(str::to_owned);
        let names = names.to_vec();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let key = made.signing_key.serialize_der();
        let chain = vec![made.cert.der().clone()];
        Self::showing(chain, key, made.cert.pem(), client).await
    }

    /// Shows this chain; `ca` is what its users are to trust.
    pub(crate) async fn showing(
        chain: Vec<rustls::pki_types::CertificateDer<'static>>,
        key: Vec<u8>,
        ca: String,
        client: Option<rustls::pki_types::CertificateDer<'static>>,
    ) -> Self {
        let key = rustls::pki_types::PrivateKeyDer::try_from(key);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = match client {
            None => config.with_no_client_auth(),
            Some(certificate) => {
                let mut roots = rustls::RootCertStore::empty();
                roots.add(certificate).unwrap();
                let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
                    Arc::new(roots),
                    provider,
                );
                config.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        // Whether they belong together is the client's question.
        let loader = rustls::crypto::ring::default_provider().key_provider;
        let key = loader.load_private_key(key.unwrap()).unwrap();
        let shown = rustls::sign::CertifiedKey::new(chain, key);
        let config =
            config.with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(shown)));
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        Self::start(Some((acceptor, ca))).await
    }

    async fn start(tls: Option<(tokio_rustls::TlsAcceptor, String)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let (acceptor, ca) = tls.unzip();
        let serve = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, acceptor) = (Arc::clone(&serve), acceptor.clone());
                tokio::spawn(async move {
                    match acceptor {
                        None => connection(TokioIo::new(stream), addr, state).await,
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                connection(TokioIo::new(stream), addr, state).await;
                            }
                        }
                    }
                });
            }
        });
        Self { addr, ca, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn plan(&self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.state().plan);
    }

    pub(crate) fn log(&self) -> Vec<Seen> {
        self.state().log.clone()
    }

    /// Requests with this method whose path holds the text.
    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        let log = self.log();
        let hit = |seen: &&Seen| seen.method == method && seen.path.contains(part);
        log.iter().filter(hit).count()
    }

    /// Serves bytes as a manifest under a name, and under their digest.
    pub(crate) fn put_manifest(&self, repo: &str, tag: &str, kind: &str, bytes: &[u8]) -> Digest {
        let digest = digest(bytes);
        let mut state = self.state();
        for name in [tag.to_owned(), digest.to_string()] {
            let value = (kind.to_owned(), Bytes::copy_from_slice(bytes));
            state.manifests.insert(format!("{repo}/{name}"), value);
        }
        digest
    }

    /// Serves bytes as the blob with a digest, whether or not they have it.
    pub(crate) fn put_blob(&self, digest: &Digest, bytes: &[u8]) {
        let bytes = Bytes::copy_from_slice(bytes);
        self.state().blobs.insert(digest.to_string(), bytes);
    }

    /// Serves an image under a tag.
    pub(crate) fn put_image(&self, repo: &str, tag: &str, made: &Made) -> Digest {
        for (digest, bytes) in &made.blobs {
            self.put_blob(digest, bytes);
        }
        self.put_manifest(repo, tag, MANIFEST, &made.manifest)
    }

    /// `127.0.0.1:port/rest`.
    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.addr)
    }
}

/// A certificate that issued itself, and the same with its key in PEM.
pub(crate) fn client_certificate(
    name: &str,
) -> (rustls::pki_types::CertificateDer<'static>, String) {
    let mut wanted = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let common = rcgen::DnType::CommonName;
    wanted.distinguished_name.push(common, name);
    let key = rcgen::KeyPair::generate().unwrap();
    let made = wanted.self_signed(&key).unwrap();
    let pem = format!("{}{}", made.pem(), key.serialize_pem());
    (made.der().clone(), pem)
}

/// An image made on the spot.
#[derive(Clone)]
pub(crate) struct Made {
    pub(crate) id: Digest,
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    /// Configuration and layers, by the digest that the manifest gives them.
    pub(crate) blobs: Vec<(Digest, Vec<u8>)>,
    pub(crate) diff_ids: Vec<Digest>,
}

/// How a layer is packed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pack {
    Gzip,
    Zstd,
    Plain,
}

/// A tar of regular files.
pub(crate) fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn packed(tar: &[u8], pack: Pack) -> Vec<u8> {
    match pack {
        Pack::Plain => tar.to_vec(),
        Pack::Zstd => zstd::encode_all(tar, 1).unwrap(),
        Pack::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            out.write_all(tar).unwrap();
            out.finish().unwrap()
        }
    }
}

/// An image of these layers; `config` is what stands under `config` of its configuration.
pub(crate) fn image(layers: &[(Vec<u8>, Pack)], config: &serde_json::Value) -> Made {
    let mut blobs = Vec::new();
    let mut descriptors = Vec::new();
    let mut diff_ids = Vec::new();
    for (tar, pack) in layers {
        diff_ids.push(digest(tar));
        let bytes = packed(tar, *pack);
        let kind = match pack {
            Pack::Gzip => GZIP,
            Pack::Zstd => ZSTD,
            Pack::Plain => PLAIN,
        };
        descriptors.push(descriptor(kind, &bytes));
        blobs.push((digest(&bytes), bytes));
    }
    let arch = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    let config = serde_json::to_vec(&serde_json::json!({
        "architecture": arch, "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
    .unwrap();
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": descriptors,
    }))
    .unwrap();
    let id = digest(&config);
    blobs.push((id, config.clone()));
    Made {
        id,
        manifest,
        config,
        blobs,
        diff_ids,
    }
}

/// An index of one manifest for this machine, after one for another.
pub(crate) fn index_of(manifest: &[u8]) -> Vec<u8> {
    let arch = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    let mut other = descriptor(MANIFEST, b"other");
    other["platform"] = serde_json::json!({"os": "linux", "architecture": "s390x"});
    let mut ours = descriptor(MANIFEST, manifest);
    ours["platform"] = serde_json::json!({"os": "linux", "architecture": arch});
    serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": INDEX, "manifests": [other, ours],
    }))
    .unwrap()
}

pub(crate) fn descriptor(kind: &str, bytes: &[u8]) -> serde_json::Value {
    serde_json::json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()})
}

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

async fn connection<S>(stream: S, addr: SocketAddr, state: Arc<Mutex<State>>)
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let service = service_fn(|request| {
        let state = Arc::clone(&state);
        async move {
            let mut response = answer(request, addr, &state).await;
            // For everything below, and for everybody; nobody brings it back.
            let cookie = "canary=1; Path=/".parse().unwrap();
            response.headers_mut().insert("set-cookie", cookie);
            Ok::<_, Infallible>(response)
        }
    });
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(stream, service)
        .await;
}

fn full(status: u16, bytes: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(bytes.into()).map_err(|e| match e {}).boxed();
    Response::builder().status(status).body(body).unwrap()
}

async fn answer(
    request: Request<Incoming>,
    addr: SocketAddr,
    state: &Mutex<State>,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let whole = parts.uri.path_and_query().unwrap().to_string();
    let mut state = state.lock().unwrap();
    state.log.push(Seen {
        method: parts.method.to_string(),
        path: whole.clone(),
        headers: parts.headers.clone(),
        body: String::from_utf8_lossy(&body).into_owned(),
    });
    let path = parts.uri.path();
    if let Some((part, status, times)) = &mut state.plan.fail
        && *times > 0
        && whole.contains(part.as_str())
    {
        *times -= 1;
        let mut response = full(
            *status,
            "{\"errors\":[{\"code\":\"X\",\"message\":\"told to\"}]}",
        );
        let after = state.plan.retry_after.as_deref().unwrap_or("0");
        let headers = response.headers_mut();
        headers.insert("retry-after", after.parse().unwrap());
        return response;
    }
    if let Some((part, status, to)) = &state.plan.moved
        && whole.contains(part.as_str())
    {
        let mut response = full(*status, "");
        let to = to.replace("{}", &whole).parse().unwrap();
        response.headers_mut().insert("location", to);
        return response;
    }
    if path == "/token" {
        return token(&state.plan, &parts.headers, &body);
    }
    if path.starts_with("/v2/")
        && let Some(refused) = refused(&state.plan, &parts.headers, addr)
    {
        return refused;
    }
    if let Some((repo, name)) = path
        .strip_prefix("/v2/")
        .and_then(|rest| rest.split_once("/manifests/"))
    {
        return match state.manifests.get(&format!("{repo}/{name}")) {
            None => full(404, ""),
            Some((kind, bytes)) => {
                let mut response = full(200, bytes.clone());
                let headers = response.headers_mut();
                headers.insert("content-type", kind.parse().unwrap());
                let said = match state.plan.lie {
                    true => digest(b"another"),
                    false => digest(bytes),
                };
                let said = said.to_string().parse().unwrap();
                headers.insert("docker-content-digest", said);
                response
            }
        };
    }
    if path.contains("/blobs/") {
        return blob(&mut state, path, &parts.headers);
    }
    full(404, "")
}

fn token(plan: &Plan, headers: &HeaderMap, body: &[u8]) -> Response<Body> {
    if let Some(answer) = &plan.token_answer {
        return full(200, answer.clone());
    }
    let given = headers.get("authorization").and_then(|v| v.to_str().ok());
    let body = String::from_utf8_lossy(body);
    let allowed = match (&plan.refresh, &plan.bearer) {
        (Some(refresh), _) => body.contains(&format!("refresh_token={refresh}")),
        (None, Some(Some(user))) => given == Some(basic(user).as_str()),
        _ => true,
    };
    if allowed {
        let token = plan.token.as_deref().unwrap_or("t0ken");
        full(200, format!("{{\"token\":\"{token}\",\"expires_in\":300}}"))
    } else {
        full(401, "{}")
    }
}

fn basic((user, password): &(String, String)) -> String {
    let engine = base64::engine::general_purpose::STANDARD;
    format!("Basic {}", engine.encode(format!("{user}:{password}")))
}

fn refused(plan: &Plan, headers: &HeaderMap, addr: SocketAddr) -> Option<Response<Body>> {
    let given = headers.get("authorization").and_then(|v| v.to_str().ok());
    let (want, challenge) = match (&plan.basic, &plan.bearer) {
        (Some(user), _) => (basic(user), "Basic realm=\"x\"".to_owned()),
        (None, Some(_)) => {
            let own = format!("http://{addr}/token");
            let realm = plan.realm.as_ref().unwrap_or(&own);
            let text = format!("Bearer realm=\"{realm}\",service=\"fake\"");
            let token = plan.token.as_deref().unwrap_or("t0ken");
            (format!("Bearer {token}"), text)
        }
        (None, None) => return None,
    };
    if given == Some(want.as_str()) {
        return None;
    }
    let mut response = full(401, "");
    let own = format!("http://{addr}/token");
    let realm = plan.realm.as_ref().unwrap_or(&own).as_bytes();
    let value = match &plan.challenge {
        None => challenge.into_bytes(),
        Some(said) => match said.windows(7).position(|part| part == b"{realm}") {
            Some(at) => [&said[..at], realm, &said[at + 7..]].concat(),
            None => said.clone(),
        },
    };
    let value = hyper::header::HeaderValue::from_bytes(&value).unwrap();
    response.headers_mut().insert("www-authenticate", value);
    Some(response)
}

fn blob(state: &mut State, path: &str, headers: &HeaderMap) -> Response<Body> {
    if let Some(base) = &state.plan.redirect
        && !path.starts_with("/back/")
    {
        let mut response = full(307, "");
        let to = format!("{base}{path}?sig=canary").parse().unwrap();
        response.headers_mut().insert("location", to);
        return response;
    }
    let digest = path.rsplit('/').next().unwrap();
    let Some(bytes) = state.blobs.get(digest).cloned() else {
        return full(404, "");
    };
    let range = headers.get("range").and_then(|v| v.to_str().ok());
    let version = headers.get("if-range").and_then(|v| v.to_str().ok());
    let same = version.is_none_or(|version| state.plan.etag.as_deref() == Some(version));
    if range.is_some() && state.plan.refuse_ranges {
        return full(416, "");
    }
    let start: usize = match range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')) {
        Some(start) if !state.plan.no_ranges && same => start.parse().unwrap(),
        _ => 0,
    };
    let bytes = match state.plan.damage {
        true => {
            let mut bytes = bytes.to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            Bytes::from(bytes)
        }
        false => bytes,
    };
    let rest = bytes.slice(start..);
    let mut sent = rest.len();
    if let Some((after, times)) = &mut state.plan.cut
        && *times > 0
    {
        *times -= 1;
        sent = sent.min(*after);
    }
    let (piece, pause) = state.plan.drip.unwrap_or((64 << 10, Duration::ZERO));
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let (length, cut) = (rest.len(), sent < rest.len());
    tokio::spawn(async move {
        let mut at = 0;
        while at < sent {
            let end = sent.min(at + piece);
            if sender
                .send(Ok(Frame::data(rest.slice(at..end))))
                .await
                .is_err()
            {
                return;
            }
            at = end;
            tokio::time::sleep(pause).await;
        }
        if cut {
            let _ = sender.send(Err(io::Error::other("cut"))).await;
        }
    });
    let body = StreamBody::new(ReceiverStream::new(receiver));
    let mut builder = Response::builder().status(if start > 0 { 206 } else { 200 });
    if !state.plan.unsized_blobs {
        builder = builder.header("content-length", length);
    }
    if let Some(etag) = &state.plan.etag {
        builder = builder.header("etag", etag);
    }
    if start > 0 {
        let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
        builder = builder.header("content-range", range);
    }
    builder.body(body.boxed()).unwrap()
}
