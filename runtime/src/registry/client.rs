//! HTTP clients, one per way to connect, and redirects followed by hand.
//!
//! A redirect is followed here because a library cannot know what may travel: authorization and the
//! headers of `hosts.toml` stay with their origin, and once dropped they do not come back
//! (CVE-2023-45289, CVE-2024-45336). Client certificates are shown to the registry's host alone.

use std::collections::HashMap;
use std::io::Read as _;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{AUTHORIZATION, CONTENT_ENCODING, HeaderMap, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};

use super::auth::Elsewhere;
use super::hosts::Endpoint;
use super::pace::Pace;
use super::proxy::Proxies;
use super::redirect::{self, MAX_HOPS};
use super::tls::Authorities;
use super::trace::{Trace, shown};
use super::words::{is_lasting, is_of_proxy, words};
use super::{DEFAULT_SILENCE, Error};

/// Distinct ways to connect that are kept; more than any sane machine has.
const MAX_CLIENTS: usize = 64;
/// Receive window of an HTTP/2 stream, bytes: bounds what waits in memory for a slow disk.
const WINDOW: u32 = 1 << 20;
/// Header lines of an answer; a proxy or two on the way may add some dozens.
pub(crate) const MAX_HEADERS: usize = 2048;
/// Bytes of an answer's head, which is what the HTTP/1 library reads.
pub(crate) const PERMITTED_HEADERS: u32 = 400 << 10;

/// How to connect to a host. Its `Debug` shows nothing: keys and proxies' passwords are in it.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tls {
    /// Authorities beside the system's.
    pub(crate) ca: Vec<Authorities>,
    /// Client certificates with their keys, PEM.
    pub(crate) identities: Vec<Vec<u8>>,
    /// Accept any certificate.
    pub(crate) skip_verify: bool,
    /// Limit of a connection attempt; 0: none but the kernel's.
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
    /// What the hosts gave to anybody that redirects led to before.
    pub(crate) elsewhere: Elsewhere<'a>,
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
    /// Where it was asked.
    pub(crate) url: Url,
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

    /// Those that come are made anew; requests under way go on.
    pub(crate) fn forget(&self) {
        self.kept().clear();
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

    /// The client for a URL. Making one reads the node's certificates.
    ///
    /// # Errors
    /// A certificate or a proxy that cannot be used.
    pub(crate) async fn get(&self, tls: &Tls, url: &Url) -> Result<Client, String> {
        let key = Key {
            tls: tls.clone(),
            https: url.scheme() == "https",
            proxy: self.proxy(tls, url)?,
        };
        if let Some(client) = self.kept().get(&key) {
            return Ok(client.clone());
        }
        let silence = self.silence;
        let built = tokio::task::spawn_blocking(move || Ok((build(&key, silence)?, key)));
        let built: Result<_, String> = built.await.map_err(|error| error.to_string())?;
        let (client, key) = built?;
        let mut kept = self.kept();
        if kept.len() >= MAX_CLIENTS {
            kept.clear();
        }
        // Another request may have made one meanwhile, and have connections.
        Ok(kept.entry(key).or_insert(client).clone())
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<Key, Client>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
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
            let next = redirect::next(&first, &url, &response);
            let Some(next) = next.map_err(|refused| refused.error(&url, ask.what))? else {
                return Ok(Answer {
                    response,
                    host: host_port(&url),
                    url,
                    away,
                });
            };
            if response.status() == StatusCode::SEE_OTHER && method != Method::HEAD {
                method = Method::GET;
            }
            away |= next.origin() != first.origin();
            url = next;
        }
        Err(redirect::endless(&url).error(&first, ask.what))
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
        let mut tls = endpoint.tls.clone();
        let mut authorization = ask.authorization.clone();
        if away {
            tls.identities.clear();
            authorization = ask.elsewhere.get(url);
        }
        let dress = |request: RequestBuilder| {
            let mut request = request.headers(ask.headers.clone());
            if !away {
                request = request.headers(endpoint.headers.clone());
            }
            match &authorization {
                Some(value) => request.header(AUTHORIZATION, value.clone()),
                None => request,
            }
        };
        self.once(&tls, method, url, ask.trace, dress).await
    }

    /// One request and its answer, or why there is none.
    ///
    /// # Errors
    /// [`Error::Unavailable`]
    pub(crate) async fn once(
        &self,
        tls: &Tls,
        method: &Method,
        url: &Url,
        trace: &Trace,
        dress: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, Error> {
        let unavailable = |reason, lasting| Error::Unavailable {
            host: host_port(url),
            reason,
            lasting,
        };
        let client = self.get(tls, url).await;
        let client = client.map_err(|reason| unavailable(reason, true))?;
        let since = Instant::now();
        let sent = dress(client.request(method.clone(), url.clone()))
            .send()
            .await;
        let outcome = sent.map_err(|error| {
            let mut reason = words(&error);
            // Whoever reads it looks for the fault at the registry.
            if is_of_proxy(&error)
                && let Ok(Some(proxy)) = self.proxy(tls, url)
            {
                let proxy = Url::parse(&proxy).map(|proxy| shown(&proxy));
                let proxy = proxy.unwrap_or_default();
                reason = format!("at the proxy {}: {reason}", proxy.trim_end_matches('/'));
            }
            (is_lasting(&error), reason)
        });
        let answer = outcome.as_ref().map(|response| response.status().as_u16());
        let answer = answer.map_err(|(_, reason)| reason.as_str());
        trace.exchange(method.as_str(), url, since, answer);
        outcome.map_err(|(lasting, reason)| unavailable(reason, lasting))
    }
}

fn build(key: &Key, silence: Option<Duration>) -> Result<Client, String> {
    install_provider();
    let tls = &key.tls;
    let mut builder = Client::builder()
        .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .http1_max_headers(MAX_HEADERS)
        .http1_allow_obsolete_multiline_headers_in_responses(true)
        .http2_max_header_list_size(PERMITTED_HEADERS)
        .http2_initial_stream_window_size(WINDOW)
        .tcp_keepalive(Duration::from_secs(30))
        .pool_idle_timeout(Duration::from_secs(30))
        // The environment's are in the key.
        .no_proxy();
    if let Some(silence) = silence {
        builder = builder.read_timeout(silence);
    }
    if let Some(limit) = tls.dial_timeout.filter(|limit| !limit.is_zero()) {
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
    builder = match key.https || secret_proxy {
        true => builder.tls_backend_preconfigured(super::tls::configuration(tls)?),
        // A plain connection needs no roots, and a machine without CA certificates has none to load.
        false => builder.tls_certs_only(Vec::new()),
    };
    builder.build().map_err(|error| words(&error))
}

/// rustls wants one provider for the process; a second installation is refused and harmless.
fn install_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
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
    let coding = response.headers().get(CONTENT_ENCODING);
    let packed = coding.is_some_and(|value| {
        let value = value.as_bytes().trim_ascii();
        value.eq_ignore_ascii_case(b"gzip") || value.eq_ignore_ascii_case(b"x-gzip")
    });
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
    // Nobody has asked for it, but some send it all the same.
    match packed && bytes.starts_with(&[0x1f, 0x8b]) {
        true => unpacked(&bytes, limit),
        false => Ok(bytes),
    }
}

fn unpacked(bytes: &[u8], limit: usize) -> Result<Vec<u8>, BadBody> {
    let mut whole = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let mut decoder = flate2::read::MultiGzDecoder::new(bytes).take(most);
    decoder
        .read_to_end(&mut whole)
        .map_err(|error| BadBody::Cut(format!("its compression is broken: {error}")))?;
    match whole.len() > limit {
        true => Err(BadBody::TooLong(limit)),
        false => Ok(whole),
    }
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

pub(crate) fn is_link_local(host: &str) -> bool {
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
    fn messages_hold_no_user_information() {
        assert_eq!(host_port(&url("https://u:p@r.io:5/x?sig=1")), "r.io:5");
        assert_eq!(host_port(&url("https://[::1]:5/")), "[::1]:5");
    }
}
