//! The same images behind HTTPS and Bearer tokens: a second registry on the store of the first, and the token
//! service that it trusts (distribution's token authentication, `docs/spec/auth` there).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::AUTHORIZATION;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::Registry;

const SERVICE: &str = "berth-test";
/// The user who may pull everything, and the password.
pub const USER: (&str, &str) = ("berth", "s3cret");

/// A registry over HTTPS with a token service. Both end when this is dropped.
#[derive(Debug)]
pub struct Secure {
    registry: Registry,
    service: JoinHandle<()>,
    certificate: PathBuf,
}

impl Drop for Secure {
    fn drop(&mut self) {
        self.service.abort();
    }
}

impl Secure {
    /// Starts both. Without credentials there are tokens for one repository only, the given one.
    ///
    /// # Errors
    /// When the registry is missing or does not answer.
    pub async fn start(store: &Path, work: &Path, open: &str) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        let (certificate, key) = (work.join("certificate.pem"), work.join("key.pem"));
        std::fs::write(&certificate, made.cert.pem())?;
        std::fs::write(&key, made.signing_key.serialize_pem())?;
        let signer = Signer::new(made.cert.der(), &made.signing_key.serialize_der())?;
        let acceptor = acceptor(made.cert.der().clone(), made.signing_key.serialize_der())?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let realm = listener.local_addr()?;
        let issuer = Arc::new(Issuer {
            signer,
            open: open.to_owned(),
        });
        let service = tokio::spawn(serve(listener, acceptor, issuer));
        let (cert, key) = (certificate.display(), key.display());
        let more = format!(
            "  tls:\n    certificate: {cert}\n    key: {key}\nauth:\n  token:\n    realm: https://{realm}/token\n    \
             service: {SERVICE}\n    issuer: {SERVICE}\n    rootcertbundle: {cert}\n"
        );
        let registry = Registry::serve(store, work, &more).await?;
        Ok(Self {
            registry,
            service,
            certificate,
        })
    }

    /// Where the registry listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.registry.address()
    }

    /// Writes a `hosts.toml` for a registry's name; `trusted`: it names the certificate.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_hosts(&self, folder: &Path, name: &str, trusted: bool) -> Result<()> {
        let url = format!("https://{}", self.address());
        let ca = if trusted {
            format!("  ca = \"{}\"\n", self.certificate.display())
        } else {
            String::new()
        };
        let text = format!(
            "server = \"{url}\"\n\n[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n{ca}"
        );
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder)?;
        Ok(std::fs::write(folder.join("hosts.toml"), text)?)
    }
}

fn acceptor(certificate: CertificateDer<'static>, key: Vec<u8>) -> Result<TlsAcceptor> {
    let key = PrivateKeyDer::try_from(key).map_err(|why| anyhow!("{why}"))?;
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, issuer: Arc<Issuer>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, issuer) = (acceptor.clone(), issuer.clone());
        tokio::spawn(async move {
            // A client that does not trust us ends the handshake, as one of the tests wants.
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let answer = service_fn(move |request| {
                let response = issuer.answer(&request);
                async move { response }
            });
            let connection = hyper::server::conn::http1::Builder::new();
            let _ = connection
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

struct Issuer {
    signer: Signer,
    open: String,
}

impl Issuer {
    fn answer(&self, request: &Request<Incoming>) -> Result<Response<Full<Bytes>>> {
        let known = match request.headers().get(AUTHORIZATION) {
            None => false,
            Some(given) => {
                let wanted = format!(
                    "Basic {}",
                    STANDARD.encode(format!("{}:{}", USER.0, USER.1))
                );
                if given.as_bytes() != wanted.as_bytes() {
                    let refused = Response::builder().status(StatusCode::UNAUTHORIZED);
                    return Ok(refused.body(Full::default())?);
                }
                true
            }
        };
        let query = request.uri().query().unwrap_or_default();
        let scopes =
            url::form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == "scope");
        let access: Vec<_> = scopes
            .filter_map(|(_, scope)| {
                let name = scope.strip_prefix("repository:")?.strip_suffix(":pull")?;
                let shown = known || name == self.open;
                shown.then(|| json!({ "type": "repository", "name": name, "actions": ["pull"] }))
            })
            .collect();
        let token = self.signer.token(&json!(access))?;
        let body = json!({ "token": token, "expires_in": 300 }).to_string();
        Ok(Response::new(Full::from(body)))
    }
}

/// Signs tokens (RFC 7519) with ES256.
struct Signer {
    header: String,
    key: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    fn new(certificate: &CertificateDer<'_>, key: &[u8]) -> Result<Self> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key, &random)
            .map_err(|why| anyhow!("the key cannot sign: {why}"))?;
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(certificate)] });
        Ok(Self {
            header: URL_SAFE_NO_PAD.encode(header.to_string()),
            key,
            random,
        })
    }

    fn token(&self, access: &serde_json::Value) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let claims = json!({
            "iss": SERVICE, "aud": SERVICE, "sub": "", "jti": now.to_string(),
            "iat": now, "nbf": now - 60, "exp": now + 300, "access": access,
        });
        let claims = URL_SAFE_NO_PAD.encode(claims.to_string());
        let signed = format!("{}.{claims}", self.header);
        let signature = self.key.sign(&self.random, signed.as_bytes());
        let signature = signature.ok().context("signing a token")?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}
