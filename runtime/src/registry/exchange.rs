//! One question to one host: with its headers, with a token when it asks for one, and its refusal in words.

use std::time::{Duration, SystemTime};

use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, IF_RANGE, RANGE, RETRY_AFTER};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;

use super::Error;
use super::auth::{Asker, Elsewhere, TokenKey};
use super::client::{Answer, Ask, body};
use super::hosts::Endpoint;
use super::login::Login;
use super::manifest;
use super::pace::Pace;
use super::session::{Host, Session};
use crate::json;

/// Most of an error body that is read, bytes.
const MAX_ERROR: usize = 64 << 10;

/// Hosts behind redirects that are answered when they want a token of their own.
const MAX_ELSEWHERE: usize = 3;

/// What is asked for.
pub(crate) struct Wanted<'a> {
    pub(crate) method: Method,
    /// Below the repository.
    pub(crate) path: String,
    /// A manifest or an index, of the types that we know.
    pub(crate) manifest: bool,
    /// First byte.
    pub(crate) offset: u64,
    /// The rest is good only for this version.
    pub(crate) version: Option<&'a HeaderValue>,
    /// For messages.
    pub(crate) what: &'a str,
}

impl Session {
    /// One successful answer of a host, after authentication. A host that wants to be left alone is not asked.
    pub(crate) async fn ask(&self, index: usize, wanted: &Wanted<'_>) -> Result<Answer, Error> {
        if let Some(error) = self.rests(index, wanted.what) {
            return Err(error);
        }
        let outcome = self.successful(index, wanted).await;
        if let Err(error) = &outcome
            && let Error::Status { status, .. } = error
            && let Some(time) = error.passing()
        {
            self.leave_alone(index, *status, time);
        }
        outcome
    }

    async fn successful(&self, index: usize, wanted: &Wanted<'_>) -> Result<Answer, Error> {
        let answer = self.authorized(index, wanted).await?;
        if answer.response.status().is_success() {
            return Ok(answer);
        }
        Err(refusal(answer, self.registry.clients.pace(), wanted.what).await)
    }

    /// One answer that is not a 401 to which there is more to say.
    async fn authorized(&self, index: usize, wanted: &Wanted<'_>) -> Result<Answer, Error> {
        let (clients, tokens) = (&self.registry.clients, &self.registry.tokens);
        let host = &self.repository.hosts[index];
        let repository = self.repository.reference.repository();
        let key = TokenKey {
            origin: host.endpoint.base.origin().ascii_serialization(),
            scope: format!("repository:{repository}:pull"),
            owner: host.login.owner(),
        };
        let scope = key.scope.clone();
        let elsewhere = Elsewhere {
            tokens,
            scope: &scope,
        };
        let own = Asker {
            endpoint: &host.endpoint,
            at: &host.endpoint.base,
            login: &host.login,
            what: wanted.what,
            trace: &self.trace,
        };
        let mut authorization = tokens.get(&key);
        let mut stale = authorization.is_some();
        let (mut answered, mut others) = (false, Vec::new());
        loop {
            let ask = self.request(host, wanted, authorization.clone(), elsewhere);
            let answer = clients.send(&host.endpoint, ask).await?;
            if answer.response.status() != StatusCode::UNAUTHORIZED {
                return Ok(answer);
            }
            let headers = answer.response.headers();
            if answer.away {
                let origin = answer.url.origin();
                if others.len() >= MAX_ELSEWHERE || others.contains(&origin) {
                    return Ok(answer);
                }
                others.push(origin);
                let asker = Asker {
                    at: &answer.url,
                    login: &Login::None,
                    ..own
                };
                if !elsewhere.answer(clients, &asker, headers).await? {
                    return Ok(answer);
                }
                continue;
            }
            tokens.forget(&key);
            if std::mem::replace(&mut answered, true) {
                return Err(denied(answer, host, wanted.what));
            }
            tracing::debug!(registry.host = %answer.host, stale, "registry asks for authentication");
            stale = false;
            let value = tokens.answer(clients, &own, key.clone(), headers).await?;
            authorization = Some(value);
        }
    }

    fn request<'a>(
        &'a self,
        host: &Host,
        wanted: &Wanted<'a>,
        authorization: Option<HeaderValue>,
        elsewhere: Elsewhere<'a>,
    ) -> Ask<'a> {
        let mut headers = HeaderMap::new();
        if wanted.manifest {
            headers.insert(ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
        }
        if wanted.offset > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={}-", wanted.offset))
        {
            headers.insert(RANGE, range);
            if let Some(version) = wanted.version {
                headers.insert(IF_RANGE, version.clone());
            }
        }
        Ask {
            method: wanted.method.clone(),
            url: self.url(&host.endpoint, &wanted.path),
            headers,
            authorization,
            elsewhere,
            what: wanted.what,
            trace: &self.trace,
        }
    }

    fn url(&self, endpoint: &Endpoint, path: &str) -> Url {
        let mut url = endpoint.base.clone();
        let repository = self.repository.reference.repository();
        url.set_path(&format!(
            "{}/{repository}/{path}",
            endpoint.base.path().trim_end_matches('/')
        ));
        if let Some(namespace) = &endpoint.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }
}

fn denied(answer: Answer, host: &Host, what: &str) -> Error {
    let reason = match host.login.is_none() {
        true => "it wants credentials, and none were given for this host".to_owned(),
        false => format!("the credentials ({}) are not accepted", host.login.source()),
    };
    Error::Denied {
        host: answer.host,
        what: what.to_owned(),
        reason,
    }
}

/// When a registry wants to be asked again: seconds, or a date (RFC 9110, 10.2.3).
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More seconds than can be counted are still a time.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    // A date that has passed: at once.
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ErrorBody {
    errors: Vec<ErrorDetail>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ErrorDetail {
    code: Option<String>,
    message: Option<String>,
}

/// The error that an answer without success is.
async fn refusal(answer: Answer, pace: Pace, what: &str) -> Error {
    let Answer {
        response,
        host,
        away,
        ..
    } = answer;
    let status = response.status();
    let what = what.to_owned();
    if status == StatusCode::NOT_FOUND {
        return Error::NotFound { host, what };
    }
    let retry_after = retry_after(response.headers());
    // Only the registry's own words are repeated: a storage service repeats the signed URL in its errors.
    let detail = match away {
        true => None,
        false => detail(&body(response, pace, MAX_ERROR).await.unwrap_or_default()),
    };
    if matches!(status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) {
        let own = match away {
            true => ", and what is for the registry is not shown to where it redirects",
            false => "",
        };
        let reason = detail.unwrap_or_else(|| format!("it answered {}{own}", status.as_u16()));
        return Error::Denied { host, what, reason };
    }
    Error::Status {
        host,
        what,
        status: status.as_u16(),
        detail,
        retry_after,
    }
}

/// The first error of the distribution specification's error body, made fit for a log line.
fn detail(bytes: &[u8]) -> Option<String> {
    let first = json::from_slice::<ErrorBody>(bytes)
        .ok()?
        .errors
        .into_iter()
        .next()?;
    let (code, message) = (
        first.code.unwrap_or_default(),
        first.message.unwrap_or_default(),
    );
    let text = format!("{code} {message}");
    // Anything that looks like a URL with a query is cut off there.
    let text = text.split('?').next().unwrap_or_default().trim().to_owned();
    let clean: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    (!clean.is_empty()).then_some(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let after = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("0"), Some(Duration::ZERO));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        let found = after(&date).unwrap().as_secs();
        assert!((97..=100).contains(&found), "{found}");
        assert_eq!(after("Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(after("soon"), None);
        assert_eq!(after("-1"), None);
        assert_eq!(after(""), None);
        for most in ["18446744073709551615", "99999999999999999999"] {
            assert_eq!(after(most), Some(Duration::from_secs(u64::MAX)));
        }
    }
}
