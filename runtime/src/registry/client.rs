//! HTTP clients, one per way to connect, and redirects followed by hand.
//!
//! A redirect is followed here because a library cannot know what may travel: authorization and the
//! headers of `hosts.toml` stay with their origin, and once dropped they do not come back
//! (CVE-2023-45289, CVE-2024-45336). Client certificates are shown to the registry's host alone.

use std::collections::HashMap;
use std::error::Error as _;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Client, Method, Response, StatusCode, Url};

use super::hosts::Endpoint;
use super::pace::Pace;
use super::proxy::Proxies;
use super::trace::Trace;
use super::{DEFAULT_SILENCE, Error};

/// Redirects that are followed.
const MAX_HOPS: usize = 5;
/// Distinct ways to connect that are kept; more than any sane machine has.
const MAX_CLIENTS: usize = 64;
/// Receive window of an HTTP/2 stream, bytes: bounds what waits in memory for a slow disk.
const WINDOW: u32 = 1 << 20;

/// How to connect to a host. Its `Debug` shows nothing: keys and proxies' passwords are in it.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tls {
    /// Authorities beside the system's, PEM.
    pub(crate) ca: Vec<Vec<u8>>,
    /// Client certificates with their keys, PEM.
    pub(crate) identities: Vec<Vec<u8>>,
    /// Accept any certificate.
    pub(crate) skip_verify: bool,
    /// Limit of a connection attempt.
    pub(crate) dial_timeout: Option<Duration>,
    /// Proxy URL; none: the environment's.
    pub(crate) proxy: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    tls: Tls,
    https: bool,
    proxy: Option<String>,
}

/// The clients in use; a changed certificate makes another one.
#[derive(Debug)]
pub(crate) struct Clients {
    kept: Mutex<HashMap<Key, Client>>,
    silence: Option<Duration>,
    proxies: Proxies,
}

impl Default for Clients {
    fn default() -> Self {
        Self::new(Some(DEFAULT_SILENCE), Proxies::default())
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(***)")
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls(***)")
    }
}

/// What a request asks for, for every hop.
pub(crate) struct Ask<'a> {
    /// GET or HEAD.
    pub(crate) method: Method,
    /// First URL.
    pub(crate) url: Url,
    /// Accept, Range: may travel.
    pub(crate) headers: HeaderMap,
    /// Bound to the origin of `url`.
    pub(crate) authorization: Option<HeaderValue>,
    /// For messages.
    pub(crate) what: &'a str,
    /// For explanations.
    pub(crate) trace: &'a Trace,
}

/// An answer, and whether it still came from the first origin.
pub(crate) struct Answer {
    /// The response.
    pub(crate) response: Response,
    /// Host that gave it.
    pub(crate) host: String,
    /// A redirect led to another origin.
    pub(crate) away: bool,
}

impl Clients {
    /// That give a host up which sends nothing for this long (none: never), and go through these proxies.
    pub(crate) fn new(silence: Option<Duration>, proxies: Proxies) -> Self {
        Self {
            kept: Mutex::default(),
            silence,
            proxies,
        }
    }

    /// For what a host sends.
    pub(crate) fn pace(&self) -> Pace {
        Pace::new(self.silence)
    }

    /// The proxy on the way to a URL.
    ///
    /// # Errors
    /// The environment names one that cannot be used.
    pub(crate) fn proxy(&self, tls: &Tls, url: &Url) -> Result<Option<String>, String> {
        match &tls.proxy {
            Some(own) => Ok(Some(own.clone())),
            None => Ok(self.proxies.of(url)?.map(str::to_owned)),
        }
    }

    /// The client for a URL.
    ///
    /// # Errors
    /// A certificate or a proxy that cannot be used.
    pub(crate) fn get(&self, tls: &Tls, url: &Url) -> Result<Client, String> {
        let key = Key {
            tls: tls.clone(),
            https: url.scheme() == "https",
            proxy: self.proxy(tls, url)?,
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = kept.get(&key) {
            return Ok(client.clone());
        }
        let client = build(&key, self.silence)?;
        if kept.len() >= MAX_CLIENTS {
            kept.clear();
        }
        kept.insert(key, client.clone());
        Ok(client)
    }

    /// Asks, and follows redirects.
    ///
    /// # Errors
    /// No answer, or a redirect that must not be followed. Any status is an answer.
    pub(crate) async fn send(&self, endpoint: &Endpoint, ask: Ask<'_>) -> Result<Answer, Error> {
        let first = ask.url.clone();
        let (mut url, mut method) = (ask.url.clone(), ask.method.clone());
        let mut away = false;
        for _ in 0..=MAX_HOPS {
            let response = self.hop(endpoint, &ask, &url, &method, away).await?;
            let host = host_port(&url);
            let Some(next) = redirect(&url, &response, ask.what)? else {
                return Ok(Answer {
                    response,
                    host,
                    away,
                });
            };
            if response.status() == StatusCode::SEE_OTHER && method != Method::HEAD {
                method = Method::GET;
            }
            check_target(&first, &url, &next).map_err(|reason| Error::Redirect {
                host,
                what: ask.what.to_owned(),
                to: host_port(&next),
                reason,
            })?;
            away |= next.origin() != first.origin();
            url = next;
        }
        Err(Error::Redirect {
            host: host_port(&first),
            what: ask.what.to_owned(),
            to: host_port(&url),
            reason: "too many redirects",
        })
    }

    /// One request. `away`: another origin was asked before, so nothing that is bound to the first may go along.
    async fn hop(
        &self,
        endpoint: &Endpoint,
        ask: &Ask<'_>,
        url: &Url,
        method: &Method,
        away: bool,
    ) -> Result<Response, Error> {
        let host = host_port(url);
        let mut tls = endpoint.tls.clone();
        if away {
            tls.identities.clear();
        }
        let client = self.get(&tls, url).map_err(|reason| Error::Unavailable {
            host: host.clone(),
            reason,
            lasting: true,
        })?;
        let mut request = client
            .request(method.clone(), url.clone())
            .headers(ask.headers.clone());
        if !away {
            request = request.headers(endpoint.headers.clone());
            if let Some(value) = &ask.authorization {
                request = request.header(AUTHORIZATION, value.clone());
            }
        }
        let since = Instant::now();
        let outcome = request.send().await;
        let outcome = outcome.map_err(|error| (is_lasting(&error), words(error)));
        let answer = outcome.as_ref().map(|response| response.status().as_u16());
        let answer = answer.map_err(|(_, reason)| reason.as_str());
        ask.trace.exchange(method.as_str(), url, since, answer);
        outcome.map_err(|(lasting, reason)| Error::Unavailable {
            host,
            reason,
            lasting,
        })
    }
}

fn redirect(url: &Url, response: &Response, what: &str) -> Result<Option<Url>, Error> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION);
    let next = location.and_then(|value| url.join(value.to_str().ok()?).ok());
    match next {
        Some(mut next) => {
            // User information in a redirect would become credentials that nobody gave us.
            let _ = next.set_username("");
            let _ = next.set_password(None);
            Ok(Some(next))
        }
        None => Err(Error::Redirect {
            host: host_port(url),
            what: what.to_owned(),
            to: "nowhere".to_owned(),
            reason: "the Location header is missing or not a URL",
        }),
    }
}

/// Whether bytes may come from `next` when `from` points there.
pub(crate) fn check_target(first: &Url, from: &Url, next: &Url) -> Result<(), &'static str> {
    if !matches!(next.scheme(), "http" | "https") {
        return Err("only http and https are spoken");
    }
    if from.scheme() == "https" && next.scheme() == "http" {
        return Err("it would leave TLS");
    }
    let host = |url: &Url| url.host_str().unwrap_or_default().to_owned();
    if is_link_local(&host(next)) {
        return Err("link-local addresses serve no images");
    }
    if is_loopback(&host(next)) && !is_loopback(&host(first)) {
        return Err("it points into this machine");
    }
    Ok(())
}

fn build(key: &Key, silence: Option<Duration>) -> Result<Client, String> {
    install_provider();
    let tls = &key.tls;
    let mut builder = Client::builder()
        .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .http2_initial_stream_window_size(WINDOW)
        .tcp_keepalive(Duration::from_secs(30))
        .pool_idle_timeout(Duration::from_secs(30))
        // The environment's are in the key.
        .no_proxy();
    if let Some(silence) = silence {
        builder = builder.read_timeout(silence);
    }
    if let Some(limit) = tls.dial_timeout {
        builder = builder.connect_timeout(limit);
    }
    if let Some(proxy) = &key.proxy {
        let proxy = reqwest::Proxy::all(proxy).map_err(|_| "the proxy URL is not usable")?;
        builder = builder.proxy(proxy);
    }
    let secret_proxy = key
        .proxy
        .as_deref()
        .is_some_and(|p| p.starts_with("https:"));
    if !key.https && !secret_proxy {
        // A plain connection needs no roots, and a machine without CA certificates has none to load.
        builder = builder.tls_certs_only(Vec::new());
        return builder.build().map_err(words);
    }
    if tls.identities.len() > 1 {
        builder = builder.tls_backend_preconfigured(super::tls::configuration(tls)?);
        return builder.build().map_err(words);
    }
    let mut roots = Vec::new();
    for pem in &tls.ca {
        let certs = reqwest::Certificate::from_pem_bundle(pem)
            .map_err(|error| format!("ca: {}", words(error)))?;
        if certs.is_empty() {
            return Err("ca: a file holds no PEM certificate".to_owned());
        }
        roots.extend(certs);
    }
    if !roots.is_empty() {
        builder = builder.tls_certs_merge(roots);
    }
    if let Some(pem) = tls.identities.first() {
        let identity = reqwest::Identity::from_pem(pem)
            .map_err(|error| format!("client certificate: {}", words(error)))?;
        builder = builder.identity(identity);
    }
    if tls.skip_verify {
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    builder.build().map_err(words)
}

/// rustls wants one provider for the process; a second installation is refused and harmless.
fn install_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// Whether the same request would fail in the same way: what TLS refused stays refused.
pub(crate) fn is_lasting(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if inner.is::<rustls::Error>() {
            return true;
        }
        cause = match inner.downcast_ref::<std::io::Error>() {
            // An I/O error leaves what it was made of out of the chain.
            Some(io) => io
                .get_ref()
                .map(|made_of| -> &dyn std::error::Error { made_of }),
            None => inner.source(),
        };
    }
    error.is_builder()
}

/// An error with its causes and without its URL, which may hold a signature.
pub(crate) fn words(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let _ = write!(text, ": {inner}");
        cause = inner.source();
    }
    text
}

/// Why a body is not there.
#[derive(Debug)]
pub(crate) enum BadBody {
    /// Longer than allowed.
    TooLong(usize),
    /// It broke.
    Cut(String),
}

impl std::fmt::Display for BadBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLong(limit) => write!(f, "it is longer than {limit} bytes"),
            Self::Cut(reason) => f.write_str(reason),
        }
    }
}

/// The whole body of a document, if it is not longer than `limit` bytes.
pub(crate) async fn body(
    mut response: Response,
    mut pace: Pace,
    limit: usize,
) -> Result<Vec<u8>, BadBody> {
    let mut bytes = Vec::new();
    while let Some(chunk) = pace.chunk(&mut response).await.map_err(BadBody::Cut)? {
        if bytes.len() + chunk.len() > limit {
            return Err(BadBody::TooLong(limit));
        }
        bytes.extend_from_slice(&chunk);
        if let Some(reason) = pace.too_slow() {
            return Err(BadBody::Cut(reason));
        }
    }
    Ok(bytes)
}

/// `host[:port]` of a URL, without anything secret.
pub(crate) fn host_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or("unknown host");
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// The address, when a host (with or without port and brackets) is written as one.
fn address(host: &str) -> Option<IpAddr> {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']')?.0.parse().ok();
    }
    let bare = host.split_once(':').map_or(host, |(bare, _)| bare);
    bare.parse().ok()
}

/// The host is *written* as this machine: `localhost` or a loopback address.
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host.split_once(':').map_or(host, |(bare, _)| bare);
    let plain = |ip: IpAddr| match ip {
        IpAddr::V6(v6) => v6.to_canonical().is_loopback(),
        v4 => v4.is_loopback(),
    };
    bare == "localhost" || address(host).is_some_and(plain)
}

fn is_link_local(host: &str) -> bool {
    match address(host).map(|ip| ip.to_canonical()) {
        Some(IpAddr::V4(v4)) => v4.is_link_local() || v4.is_unspecified(),
        Some(IpAddr::V6(v6)) => v6.is_unicast_link_local() || v6.is_unspecified(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn redirects_go_where_images_can_be() {
        let check = |a: &str, b: &str| check_target(&url(a), &url(a), &url(b));
        check("https://r.io/v2", "https://cdn.net/x").unwrap();
        check("http://r.io/v2", "http://cdn.net/x").unwrap();
        check("http://127.0.0.1:1/v2", "http://127.0.0.1:2/x").unwrap();
        for bad in [
            "http://r.io/x",
            "https://169.254.169.254/x",
            "https://[fe80::1]/x",
            "https://[::ffff:169.254.1.1]/",
            "https://localhost/x",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://0.0.0.0/",
            "ftp://r.io/",
        ] {
            assert!(check("https://r.io/v2", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn messages_hold_no_user_information() {
        assert_eq!(host_port(&url("https://u:p@r.io:5/x?sig=1")), "r.io:5");
        assert_eq!(host_port(&url("https://[::1]:5/")), "[::1]:5");
    }
}
