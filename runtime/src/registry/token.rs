//! Token services: where a Bearer challenge sends its reader.

use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::Deserialize;
use serde_json::Value;

use super::Error;
use super::auth::{Asker, Secret, canonical};
use super::challenge::Bearer;
use super::client::{Clients, body, host_port};
use super::exchange::retry_after;
use super::hosts::Endpoint;
use super::redirect::{self, MAX_HOPS, Refused, check_target};
use crate::json;

/// Longest answer of a token service, bytes.
const MAX_ANSWER: usize = 1 << 20;
/// Longest token, bytes: it stays in memory, and no server takes a header of this length.
const MAX_TOKEN: usize = 64 << 10;
/// Life of a token that does not say, seconds (distribution, token specification).
const DEFAULT_LIFE: u64 = 60;
/// Longest life that is believed, seconds.
const MAX_LIFE: u64 = 86_400;
/// Scopes of a challenge that are asked for.
const MAX_SCOPES: usize = 64;

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
    let denied = |reason: String| Error::Denied {
        host: host_port(asker.at),
        what: asker.what.to_owned(),
        reason,
    };
    let realm = realm(asker.endpoint, asker.at, &bearer.realm, secret.is_some());
    let realm = realm.map_err(&denied)?;
    let question = Question::new(&realm, bearer, secret, scope);
    let Replied {
        response,
        url,
        shown,
    } = question.ask(clients, asker).await?;
    let host = host_port(&url);
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
        let who = match (shown, secret) {
            (true, _) => "the given credentials",
            (false, None) => "no credentials",
            (false, Some(_)) => "no credentials, which are not shown to where it redirects",
        };
        return Err(denied(format!(
            "the token service {host} answered {status} to {who}"
        )));
    }
    let bytes = body(response, clients.pace(), MAX_ANSWER).await;
    let bytes = bytes.map_err(|why| Error::Unavailable {
        host: host.clone(),
        reason: why.to_string(),
        lasting: false,
    })?;
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

/// What a token service answers.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    token: String,
    access_token: String,
    expires_in: Option<Value>,
}

fn parse(bytes: &[u8]) -> Option<(String, u64)> {
    // What stands behind the answer is nobody's.
    let answer: Answer = json::first_of(bytes).ok()?;
    let tokens = [answer.token, answer.access_token];
    let token = tokens.into_iter().find(|token| !token.is_empty())?;
    Some((token, life(answer.expires_in.as_ref())))
}

/// Seconds. What is no time, or less than any token is good for, is the shortest life that there is.
fn life(said: Option<&Value>) -> u64 {
    let seconds = match said {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse::<f64>().ok(),
        _ => None,
    };
    let seconds = seconds.filter(|seconds| seconds.is_finite());
    let whole = Duration::try_from_secs_f64(seconds.unwrap_or_default().clamp(0.0, 1e9));
    let whole = whole.unwrap_or_default().as_secs();
    whole.clamp(DEFAULT_LIFE, MAX_LIFE)
}

/// A request to a token service, which may lead to another one.
struct Question<'a> {
    realm: Url,
    method: Method,
    /// With the refresh token.
    form: Option<String>,
    basic: Option<(&'a str, &'a str)>,
}

struct Replied {
    response: Response,
    url: Url,
    /// It saw the credentials.
    shown: bool,
}

impl<'a> Question<'a> {
    /// A refresh token is spent by POST, everything else asks by GET, which all token services know.
    fn new(realm: &Url, bearer: &Bearer, secret: Option<&'a Secret>, scope: &str) -> Self {
        let mut realm = realm.clone();
        let mut fields = vec![("service", bearer.service.as_str())];
        // A registry may want more than the repository (public.ecr.aws does).
        let more = bearer.scope.split_ascii_whitespace();
        let more = more.filter(|more| *more != scope).take(MAX_SCOPES);
        let own = Some(scope).filter(|scope| !scope.is_empty());
        fields.extend(own.into_iter().chain(more).map(|scope| ("scope", scope)));
        if let Some(Secret::Refresh(token)) = secret {
            fields.extend([
                ("grant_type", "refresh_token"),
                ("refresh_token", token.as_str()),
                ("client_id", "berth"),
            ]);
            let form = Some(form(&realm, &fields));
            return Self {
                realm,
                method: Method::POST,
                form,
                basic: None,
            };
        }
        realm.query_pairs_mut().extend_pairs(fields);
        let basic = match secret {
            Some(Secret::Basic(user, password)) => Some((user.as_str(), password.as_str())),
            _ => None,
        };
        Self {
            realm,
            method: Method::GET,
            form: None,
            basic,
        }
    }

    /// Follows redirects. The credentials stay with the origin that they were decided for.
    async fn ask(mut self, clients: &Clients, asker: &Asker<'_>) -> Result<Replied, Error> {
        let what = format!("a token for {}", asker.what);
        let origin = self.realm.origin();
        let (first, mut url) = (&asker.endpoint.base, self.realm.clone());
        for _ in 0..=MAX_HOPS {
            let mut tls = asker.endpoint.tls.clone();
            if url.host_str() != first.host_str() || asker.at.origin() != first.origin() {
                tls.identities.clear();
            }
            let dress = |request: RequestBuilder| match (&self.form, self.basic) {
                (Some(form), _) => {
                    let kind = "application/x-www-form-urlencoded";
                    request.header(CONTENT_TYPE, kind).body(form.clone())
                }
                (None, Some((user, password))) => request.basic_auth(user, Some(password)),
                (None, None) => request,
            };
            let sent = clients.once(&tls, &self.method, &url, asker.trace, dress);
            let response = sent.await?;
            let next = redirect::next(first, &url, &response);
            let Some(next) = next.map_err(|refused| refused.error(&url, &what))? else {
                let shown = self.form.is_some() || self.basic.is_some();
                return Ok(Replied {
                    response,
                    url,
                    shown,
                });
            };
            // As browsers and Go do: these ask for what is there, without what was sent.
            if matches!(response.status().as_u16(), 301..=303) {
                self.method = Method::GET;
                self.form = None;
            }
            if next.origin() != origin {
                self.basic = None;
                if self.form.is_some() {
                    let reason = "it would show the credentials to another host";
                    return Err(Refused::new(&next, reason).error(&url, &what));
                }
            }
            url = next;
        }
        Err(redirect::endless(&url).error(&self.realm, &what))
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
fn realm(endpoint: &Endpoint, at: &Url, text: &str, with_secret: bool) -> Result<Url, String> {
    let mut url = Url::parse(text).map_err(|_| "its token service has no usable URL".to_owned())?;
    let host = host_port(&url);
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!(
            "the URL of its token service {host} holds user information"
        ));
    }
    check_target(&endpoint.base, at, &url)
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
    url.set_fragment(None);
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
        let realm = |r: &Endpoint, text: &str, secret| realm(r, &r.base, text, secret);
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
