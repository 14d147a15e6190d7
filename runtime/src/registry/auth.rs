//! Credentials, challenges and tokens.
//!
//! A secret belongs to one host: it is used there and at that registry's token service, and nowhere
//! else: not at a mirror, not behind a redirect, not at a realm of another domain.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderValue};
use sha2::{Digest as _, Sha256};

use super::challenge::{Challenge, challenge};
use super::client::{Clients, host_port};
use super::hosts::Endpoint;
use super::login::{Login, Node};
use super::trace::Trace;
use super::{Error, token};
use crate::model::RegistryAuth;

/// Tokens that are kept.
const MAX_TOKENS: usize = 1024;

/// What a host accepts in place of a person.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Secret {
    /// User and password.
    Basic(String, String),
    /// OAuth2 refresh token.
    Refresh(String),
    /// Sent as it is.
    Bearer(String),
}

/// What to use at an endpoint: the request's credentials before those of the node (precedence of row F091).
///
/// # Errors
/// Credentials that contradict themselves.
pub(crate) fn login_for(
    auth: Option<&RegistryAuth>,
    node: &Node,
    endpoint: &Endpoint,
    repository: &str,
) -> Result<Login, Error> {
    let registry = &endpoint.registry;
    if let Some(auth) = auth
        && is_bound(auth, endpoint)
        && let Some(secret) = secret(auth)?
    {
        return Ok(Login::Request(secret));
    }
    node.login(endpoint, registry, repository)
}

fn is_bound(auth: &RegistryAuth, endpoint: &Endpoint) -> bool {
    let (host, registry) = (canonical(&endpoint.host), canonical(&endpoint.registry));
    if auth.server_address.is_empty() {
        // The registry's own server, wherever the operator says that it is; a mirror only under the same name.
        return endpoint.upstream || host == registry;
    }
    let named = canonical(&auth.server_address);
    named == host || (endpoint.upstream && named == registry)
}

/// The secret that credentials are.
///
/// # Errors
/// `auth` that is not base64 of `user:password`.
pub(crate) fn secret(auth: &RegistryAuth) -> Result<Option<Secret>, Error> {
    if !auth.username.is_empty() {
        let (user, password) = (auth.username.clone(), auth.password.clone());
        return Ok(Some(Secret::Basic(user, password)));
    }
    if !auth.auth.is_empty() {
        let bad = Error::Credentials("\"auth\" is not the base64 of user:password");
        // `base64` breaks its lines.
        let text: String = auth.auth.split_ascii_whitespace().collect();
        let plain = STANDARD
            .decode(text)
            .ok()
            .and_then(|b| String::from_utf8(b).ok());
        return match plain.as_deref().and_then(|text| text.split_once(':')) {
            Some((user, password)) => {
                // Docker pads what it writes with zero bytes.
                let password = password.trim_end_matches('\0').to_owned();
                Ok(Some(Secret::Basic(user.to_owned(), password)))
            }
            None => Err(bad),
        };
    }
    if !auth.identity_token.is_empty() {
        return Ok(Some(Secret::Refresh(auth.identity_token.clone())));
    }
    if !auth.registry_token.is_empty() {
        return Ok(Some(Secret::Bearer(auth.registry_token.clone())));
    }
    Ok(None)
}

/// A host as credentials name it: no scheme, no path, Docker Hub's many names as one.
pub(crate) fn canonical(address: &str) -> String {
    let (scheme, rest) = match address.split_once("://") {
        Some((scheme, rest)) => (scheme, rest),
        None => ("", address),
    };
    let host = rest
        .split('/')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let host = match scheme {
        "http" => host.strip_suffix(":80").unwrap_or(&host).to_owned(),
        _ => host.strip_suffix(":443").unwrap_or(&host).to_owned(),
    };
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" | "registry.docker.io" => "docker.io".to_owned(),
        _ => host,
    }
}

impl Secret {
    /// Tells callers apart without keeping what they brought.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        match self {
            Self::Basic(user, password) => fingerprint(&["basic", user, password]),
            Self::Refresh(token) => fingerprint(&["refresh", token]),
            Self::Bearer(token) => fingerprint(&["bearer", token]),
        }
    }
}

/// The hash of some texts.
pub(crate) fn fingerprint(texts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hash.finalize().into()
}

/// Which token is meant: origin of the registry, scope, and whose.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct TokenKey {
    pub(crate) origin: String,
    pub(crate) scope: String,
    pub(crate) owner: [u8; 32],
}

/// Who asks a token service, and for what.
#[derive(Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub(crate) endpoint: &'a Endpoint,
    /// The URL that wants a token: the endpoint's own, or where a redirect led.
    pub(crate) at: &'a Url,
    pub(crate) login: &'a Login,
    /// For messages.
    pub(crate) what: &'a str,
    /// For explanations.
    pub(crate) trace: &'a Trace,
}

/// Tokens that hosts give to anybody who asks, where a registry's redirects lead. They are of that host, for nobody in
/// particular, and tell nothing of what the registry itself was shown.
#[derive(Clone, Copy)]
pub(crate) struct Elsewhere<'a> {
    pub(crate) tokens: &'a Tokens,
    /// What the registry was asked for.
    pub(crate) scope: &'a str,
}

impl Elsewhere<'_> {
    fn key(&self, url: &Url) -> TokenKey {
        TokenKey {
            origin: url.origin().ascii_serialization(),
            scope: self.scope.to_owned(),
            owner: fingerprint(&["elsewhere"]),
        }
    }

    /// One that is still good.
    pub(crate) fn get(&self, url: &Url) -> Option<HeaderValue> {
        self.tokens.get(&self.key(url))
    }

    /// Answers a 401 of such a host. Without a token to be had there is nothing to show it.
    ///
    /// # Errors
    /// Of its token service.
    pub(crate) async fn answer(
        &self,
        clients: &Clients,
        asker: &Asker<'_>,
        headers: &HeaderMap,
    ) -> Result<bool, Error> {
        let key = self.key(asker.at);
        self.tokens.forget(&key);
        let Some(Challenge::Bearer(bearer)) = challenge(headers) else {
            return Ok(false);
        };
        let fetched = token::fetch(clients, asker, &bearer, None, "").await?;
        self.tokens
            .keep(key, fetched, &host_port(asker.at), asker)?;
        Ok(true)
    }
}

struct Token {
    value: HeaderValue,
    until: Instant,
}

/// Authorization headers by what they are for.
#[derive(Default)]
pub(crate) struct Tokens {
    kept: Mutex<HashMap<TokenKey, Token>>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens(***)")
    }
}

impl Tokens {
    /// One that is still good.
    pub(crate) fn get(&self, key: &TokenKey) -> Option<HeaderValue> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let token = kept.get(key).filter(|token| token.until > Instant::now())?;
        Some(token.value.clone())
    }

    /// Forgets one that was refused.
    pub(crate) fn forget(&self, key: &TokenKey) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.remove(key);
    }

    fn put(&self, key: TokenKey, value: HeaderValue, life: Duration) {
        let now = Instant::now();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_TOKENS {
            kept.retain(|_, token| token.until > now);
        }
        if kept.len() >= MAX_TOKENS {
            let ends = kept.iter().min_by_key(|(_, token)| token.until);
            let ends = ends.map(|(key, _)| key.clone());
            ends.and_then(|key| kept.remove(&key));
        }
        let until = now + life;
        kept.insert(key, Token { value, until });
    }

    /// Answers a 401: the header to try again with, or why there is none.
    ///
    /// # Errors
    /// [`Error::Denied`] when nothing we have fits, [`Error::Unavailable`] when the token service is away.
    pub(crate) async fn answer(
        &self,
        clients: &Clients,
        asker: &Asker<'_>,
        key: TokenKey,
        headers: &HeaderMap,
    ) -> Result<HeaderValue, Error> {
        let Asker { endpoint, what, .. } = *asker;
        let denied = |reason: &str| Error::Denied {
            host: endpoint.host.clone(),
            what: what.to_owned(),
            reason: reason.to_owned(),
        };
        let challenge = challenge(headers)
            .ok_or_else(|| denied("it asks for an authentication that Berth does not know"))?;
        let secret = asker.login.secret(&endpoint.host).await?;
        let (value, life) = match (challenge, secret.as_ref()) {
            (_, Some(Secret::Bearer(token))) => (format!("Bearer {token}"), Duration::MAX / 4),
            (Challenge::Basic, Some(Secret::Basic(user, password))) => {
                (basic(user, password), Duration::from_secs(3600))
            }
            (Challenge::Basic, _) => {
                return Err(denied("it wants a user and a password, and none was given"));
            }
            (Challenge::Bearer(bearer), secret) => {
                token::fetch(clients, asker, &bearer, secret, &key.scope).await?
            }
        };
        self.keep(key, (value, life), &endpoint.host, asker)
    }

    fn keep(
        &self,
        key: TokenKey,
        (value, life): (String, Duration),
        host: &str,
        asker: &Asker<'_>,
    ) -> Result<HeaderValue, Error> {
        let mut value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| Error::Denied {
            host: host.to_owned(),
            what: asker.what.to_owned(),
            reason: "the token is not a header value".to_owned(),
        })?;
        value.set_sensitive(true);
        let life = life.min(Duration::from_secs(24 * 3600));
        self.put(key, value.clone(), life);
        Ok(value)
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

#[cfg(test)]
mod tests;
