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
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::Error;
use super::client::{Clients, check_target, host_port, words};
use super::hosts::Endpoint;
use crate::model::RegistryAuth;

/// Tokens that are kept.
const MAX_TOKENS: usize = 1024;
/// Longest answer of a token service, bytes.
const MAX_ANSWER: usize = 1 << 20;
/// Life of a token that does not say (distribution, token specification).
const DEFAULT_LIFE: u64 = 60;

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

/// The secret to use at an endpoint. Precedence as in containerd (row F091).
///
/// # Errors
/// `auth` that is not base64 of `user:password`.
pub(crate) fn secret_for(
    auth: Option<&RegistryAuth>,
    endpoint: &Endpoint,
    registry: &str,
) -> Result<Option<Secret>, Error> {
    let Some(auth) = auth else { return Ok(None) };
    let bound = if auth.server_address.is_empty() {
        // The registry's own server, wherever the operator says that it is; a mirror only under the same name.
        endpoint.upstream || canonical(&endpoint.host) == canonical(registry)
    } else {
        canonical(&auth.server_address) == canonical(&endpoint.host)
    };
    if bound { secret(auth) } else { Ok(None) }
}

fn secret(auth: &RegistryAuth) -> Result<Option<Secret>, Error> {
    if !auth.username.is_empty() {
        let (user, password) = (auth.username.clone(), auth.password.clone());
        return Ok(Some(Secret::Basic(user, password)));
    }
    if !auth.auth.is_empty() {
        let bad = Error::Credentials("\"auth\" is not the base64 of user:password");
        let plain = STANDARD
            .decode(auth.auth.trim())
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
fn canonical(address: &str) -> String {
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

/// A fingerprint of credentials, to tell callers apart without keeping what they brought.
pub(crate) fn fingerprint(secret: Option<&Secret>) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut field = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    match secret {
        None => field("none"),
        Some(Secret::Basic(user, password)) => [user, password].into_iter().for_each(|t| field(t)),
        Some(Secret::Refresh(token)) => ["refresh", token].into_iter().for_each(field),
        Some(Secret::Bearer(token)) => ["bearer", token].into_iter().for_each(field),
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
        if kept.len() < MAX_TOKENS {
            let until = now + life;
            kept.insert(key, Token { value, until });
        }
    }

    /// Answers a 401: the header to try again with, or why there is none.
    ///
    /// # Errors
    /// [`Error::Denied`] when nothing we have fits, [`Error::Unavailable`] when the token service is away.
    pub(crate) async fn answer(
        &self,
        clients: &Clients,
        endpoint: &Endpoint,
        secret: Option<&Secret>,
        key: TokenKey,
        headers: &HeaderMap,
        what: &str,
    ) -> Result<HeaderValue, Error> {
        let denied = |reason: &str| Error::Denied {
            host: endpoint.host.clone(),
            what: what.to_owned(),
            reason: reason.to_owned(),
        };
        let challenge = challenge(headers)
            .ok_or_else(|| denied("it asks for an authentication that Berth does not know"))?;
        let (value, life) = match (challenge, secret) {
            (_, Some(Secret::Bearer(token))) => (format!("Bearer {token}"), Duration::MAX / 4),
            (Challenge::Basic, Some(Secret::Basic(user, password))) => {
                (basic(user, password), Duration::from_secs(3600))
            }
            (Challenge::Basic, _) => {
                return Err(denied("it wants a user and a password, and none was given"));
            }
            (Challenge::Bearer(bearer), secret) => {
                fetch(clients, endpoint, &bearer, secret, &key.scope, what).await?
            }
        };
        let mut value = HeaderValue::from_str(&value)
            .map_err(|_| denied("the token is not a header value"))?;
        value.set_sensitive(true);
        let life = life.min(Duration::from_secs(24 * 3600));
        self.put(key, value.clone(), life);
        Ok(value)
    }
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

#[derive(Debug, PartialEq, Eq)]
struct Bearer {
    realm: String,
    service: String,
    scope: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer(Bearer),
}

/// The first challenge that we can answer; Bearer before Basic.
fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE).iter().take(8) {
        let Ok(text) = value.to_str() else { continue };
        let Ok(list) = http_auth::parse_challenges(text) else {
            continue;
        };
        for one in list {
            let param = |name: &str| {
                let found = one
                    .params
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name));
                found
                    .map(|(_, value)| value.to_unescaped())
                    .unwrap_or_default()
            };
            if one.scheme.eq_ignore_ascii_case("bearer") {
                return Some(Challenge::Bearer(Bearer {
                    realm: param("realm"),
                    service: param("service"),
                    scope: param("scope"),
                }));
            }
            if one.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

/// Fetches a token (distribution, token and OAuth2 specifications).
async fn fetch(
    clients: &Clients,
    endpoint: &Endpoint,
    bearer: &Bearer,
    secret: Option<&Secret>,
    scope: &str,
    what: &str,
) -> Result<(String, Duration), Error> {
    let denied = |reason: String| Error::Denied {
        host: endpoint.host.clone(),
        what: what.to_owned(),
        reason,
    };
    let mut realm = realm(endpoint, &bearer.realm, secret.is_some()).map_err(&denied)?;
    let host = host_port(&realm);
    let unavailable = |reason| Error::Unavailable {
        host: host.clone(),
        reason,
    };
    let mut tls = endpoint.tls.clone();
    if realm.host_str() != endpoint.base.host_str() {
        tls.identities.clear();
    }
    let client = clients.get(&tls, &realm).map_err(unavailable)?;
    let mut fields = vec![("service", bearer.service.as_str()), ("scope", scope)];
    // A registry may want more than the repository (public.ecr.aws does).
    if !bearer.scope.is_empty() && bearer.scope != scope {
        fields.push(("scope", bearer.scope.as_str()));
    }
    let request = if let Some(Secret::Refresh(token)) = secret {
        fields.extend([
            ("grant_type", "refresh_token"),
            ("refresh_token", token.as_str()),
            ("client_id", "berth"),
        ]);
        let form = form(&realm, &fields);
        let kind = "application/x-www-form-urlencoded";
        client.post(realm).header(CONTENT_TYPE, kind).body(form)
    } else {
        realm.query_pairs_mut().extend_pairs(fields);
        match secret {
            Some(Secret::Basic(user, password)) => {
                client.get(realm).basic_auth(user, Some(password))
            }
            _ => client.get(realm),
        }
    };
    let response = request
        .send()
        .await
        .map_err(|error| unavailable(words(error)))?;
    let status = response.status();
    if !status.is_success() {
        let who = if secret.is_some() {
            "the given credentials"
        } else {
            "no credentials"
        };
        return Err(denied(format!(
            "the token service {host} answered {} to {who}",
            status.as_u16()
        )));
    }
    let body = super::client::body(response, MAX_ANSWER)
        .await
        .map_err(unavailable)?;
    let answer: TokenAnswer = serde_json::from_slice(&body)
        .map_err(|_| denied(format!("the token service {host} answered no token")))?;
    let token = answer.token.filter(|token| !token.is_empty());
    let token = token
        .or(answer.access_token)
        .filter(|token| !token.is_empty())
        .ok_or_else(|| denied(format!("the token service {host} answered no token")))?;
    let life = answer.expires_in.unwrap_or(DEFAULT_LIFE).max(DEFAULT_LIFE);
    // A fifth less than it says: a token must outlive the request that it is for.
    Ok((
        format!("Bearer {token}"),
        Duration::from_secs(life.min(86400) / 5 * 4),
    ))
}

/// URL-encoded form fields, by the encoder of queries.
fn form(base: &Url, fields: &[(&str, &str)]) -> String {
    let mut url = base.clone();
    url.set_query(None);
    url.query_pairs_mut().extend_pairs(fields);
    url.query().unwrap_or_default().to_owned()
}

/// The token service, if it is one that a secret may be shown to (CVE-2026-48978 and its kind).
fn realm(endpoint: &Endpoint, text: &str, with_secret: bool) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|_| "its token service has no usable URL".to_owned())?;
    let host = host_port(&url);
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!(
            "the URL of its token service {host} holds user information"
        ));
    }
    check_target(&endpoint.base, &endpoint.base, &url)
        .map_err(|why| format!("its token service {host} is not asked: {why}"))?;
    let name = |url: &Url| url.host_str().unwrap_or_default().to_ascii_lowercase();
    if with_secret && !same_site(&name(&endpoint.base), &name(&url)) {
        return Err(format!(
            "its token service {host} is of another domain, which is not shown the credentials"
        ));
    }
    Ok(url)
}

/// Two hosts of one owner, as far as names tell: equal, or with a common registrable domain.
fn same_site(a: &str, b: &str) -> bool {
    if a == b {
        return true;
    }
    // An IP literal has no domain; its last part is a number, or it is in brackets.
    let numeric = |host: &str| {
        host.starts_with('[') || host.rsplit('.').next().is_some_and(|l| l.parse::<u32>().is_ok())
    };
    if numeric(a) || numeric(b) {
        return false;
    }
    let (mut left, mut right) = (a.rsplit('.'), b.rsplit('.'));
    let common: Vec<&str> = left
        .by_ref()
        .zip(right.by_ref())
        .take_while(|(x, y)| x == y)
        .map(|(x, _)| x)
        .collect();
    // Below a country's domain the second label is often a category (co.uk, com.au): three must agree.
    let category = matches!(common[..], [top, second, ..] if top.len() == 2 && second.len() <= 3);
    common.len() >= if category { 3 } else { 2 }
}

#[cfg(test)]
mod tests;
