//! Token services: where a Bearer challenge sends its reader.

use std::time::{Duration, Instant};

use reqwest::header::CONTENT_TYPE;
use reqwest::{Client, RequestBuilder, Url};
use serde::Deserialize;

use super::Error;
use super::auth::{Asker, Bearer, Secret, canonical};
use super::client::{Clients, body, check_target, host_port, is_lasting, words};
use super::exchange::retry_after;
use super::hosts::Endpoint;
use crate::json;

/// Longest answer of a token service, bytes.
const MAX_ANSWER: usize = 1 << 20;
/// Longest token, bytes: it stays in memory, and no server takes a header of this length.
const MAX_TOKEN: usize = 64 << 10;
/// Life of a token that does not say, seconds (distribution, token specification).
const DEFAULT_LIFE: u64 = 60;
/// Longest life that is believed, seconds.
const MAX_LIFE: u64 = 86_400;

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

/// Fetches a token (distribution, token and OAuth2 specifications): the header's value, and how long it is good.
///
/// # Errors
/// [`Error::Denied`], or [`Error::Unavailable`] and [`Error::Status`] when the token service is away or busy.
pub(crate) async fn fetch(
    clients: &Clients,
    asker: &Asker<'_>,
    bearer: &Bearer,
    secret: Option<&Secret>,
    scope: &str,
) -> Result<(String, Duration), Error> {
    let endpoint = asker.endpoint;
    let denied = |reason: String| Error::Denied {
        host: endpoint.host.clone(),
        what: asker.what.to_owned(),
        reason,
    };
    let realm = realm(endpoint, &bearer.realm, secret.is_some()).map_err(&denied)?;
    let host = host_port(&realm);
    let unavailable = |reason, lasting| Error::Unavailable {
        host: host.clone(),
        reason,
        lasting,
    };
    let mut tls = endpoint.tls.clone();
    if realm.host_str() != endpoint.base.host_str() {
        tls.identities.clear();
    }
    let client = clients
        .get(&tls, &realm)
        .map_err(|why| unavailable(why, true))?;
    let (since, url) = (Instant::now(), realm.clone());
    let outcome = request(&client, realm, bearer, secret, scope).send().await;
    let outcome = outcome.map_err(|error| (is_lasting(&error), words(error)));
    let method = match secret {
        Some(Secret::Refresh(_)) => "POST",
        _ => "GET",
    };
    let answer = outcome.as_ref().map(|response| response.status().as_u16());
    let answer = answer.map_err(|(_, reason)| reason.as_str());
    asker.trace.exchange(method, &url, since, answer);
    let response = outcome.map_err(|(lasting, reason)| unavailable(reason, lasting))?;
    let status = response.status().as_u16();
    if super::passes(status) {
        return Err(Error::Status {
            host,
            what: format!("a token for {}", asker.what),
            status,
            detail: None,
            retry_after: retry_after(response.headers()),
        });
    }
    if !response.status().is_success() {
        let who = match secret {
            Some(_) => "the given credentials",
            None => "no credentials",
        };
        return Err(denied(format!(
            "the token service {host} answered {status} to {who}"
        )));
    }
    let bytes = body(response, clients.pace(), MAX_ANSWER).await;
    let bytes = bytes.map_err(|why| unavailable(why.to_string(), false))?;
    let (token, life) = parse(&bytes)
        .ok_or_else(|| denied(format!("the token service {host} answered no token")))?;
    if token.len() > MAX_TOKEN {
        let length = token.len();
        return Err(denied(format!(
            "the token service {host} answered a token of {length} bytes, and at most {MAX_TOKEN} are taken"
        )));
    }
    // A fifth less than it says: a token must outlive the request that it is for.
    Ok((format!("Bearer {token}"), Duration::from_secs(life / 5 * 4)))
}

fn parse(bytes: &[u8]) -> Option<(String, u64)> {
    let answer: Answer = json::from_slice(bytes).ok()?;
    let tokens = [answer.token, answer.access_token];
    let token = tokens
        .into_iter()
        .flatten()
        .find(|token| !token.is_empty())?;
    let life = answer.expires_in.unwrap_or(DEFAULT_LIFE);
    Some((token, life.clamp(DEFAULT_LIFE, MAX_LIFE)))
}

/// A refresh token is spent by POST, everything else asks by GET, which all token services know.
fn request(
    client: &Client,
    mut realm: Url,
    bearer: &Bearer,
    secret: Option<&Secret>,
    scope: &str,
) -> RequestBuilder {
    let mut fields = vec![("service", bearer.service.as_str()), ("scope", scope)];
    // A registry may want more than the repository (public.ecr.aws does).
    if !bearer.scope.is_empty() && bearer.scope != scope {
        fields.push(("scope", bearer.scope.as_str()));
    }
    if let Some(Secret::Refresh(token)) = secret {
        fields.extend([
            ("grant_type", "refresh_token"),
            ("refresh_token", token.as_str()),
            ("client_id", "berth"),
        ]);
        let form = form(&realm, &fields);
        let kind = "application/x-www-form-urlencoded";
        return client.post(realm).header(CONTENT_TYPE, kind).body(form);
    }
    realm.query_pairs_mut().extend_pairs(fields);
    match secret {
        Some(Secret::Basic(user, password)) => client.get(realm).basic_auth(user, Some(password)),
        _ => client.get(realm),
    }
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
    let named = endpoint
        .token_services
        .iter()
        .any(|one| canonical(one) == canonical(&host));
    if with_secret && !named && !same_site(&name(&endpoint.base), &name(&url)) {
        return Err(format!(
            "its token service {host} is of another domain, which is not shown the credentials unless \
             images.token_services has \"{}={host}\"",
            endpoint.registry
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
        host.starts_with('[')
            || host
                .rsplit('.')
                .next()
                .is_some_and(|l| l.parse::<u32>().is_ok())
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
mod tests {
    use super::*;

    #[test]
    fn secrets_go_to_token_services_of_the_same_owner_only() {
        for (a, b) in [
            ("registry-1.docker.io", "auth.docker.io"),
            ("registry.gitlab.com", "gitlab.com"),
            ("r.example.co.uk", "auth.example.co.uk"),
            ("127.0.0.1", "127.0.0.1"),
        ] {
            assert!(same_site(a, b), "{a} {b}");
        }
        for (a, b) in [
            ("r.io", "evil.io"),
            ("a.co.uk", "b.co.uk"),
            ("10.0.0.1", "11.0.0.1"),
            ("10.9.0.1", "10.8.0.1"),
            ("[::1]", "[::2]"),
            ("localhost", "example.localhost"),
            ("r.io", "r.io.evil.com"),
            ("com", "a.com"),
        ] {
            assert!(!same_site(a, b), "{a} {b}");
        }
        let nowhere = std::path::Path::new("/nonexistent");
        let r = crate::registry::hosts::load(nowhere, "r.io")
            .unwrap()
            .remove(0);
        assert!(realm(&r, "https://evil.com/token", false).is_ok());
        for bad in [
            "https://evil.com/token",
            "http://r.io/token",
            "file:///etc/passwd",
            "unix:/x",
            "https://u:p@r.io/",
            "https://169.254.169.254/",
            "",
            "https://localhost/",
        ] {
            assert!(realm(&r, bad, true).is_err(), "{bad}");
        }
        let mut r = r;
        r.token_services = vec!["auth.elsewhere.net".into()];
        assert!(realm(&r, "https://auth.elsewhere.net/t", true).is_ok());
        assert!(realm(&r, "http://auth.elsewhere.net/t", true).is_err());
        let said = realm(&r, "https://evil.com/t", true).unwrap_err();
        assert!(said.contains("\"r.io=evil.com\""), "{said}");
    }
}
