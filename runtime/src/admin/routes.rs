//! From a request to its answer.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::State;
use super::api::{Problem, Setting, Settings};
use super::images;
use super::shelf::Failure;
use crate::config;
use crate::metrics;
use crate::model::Kind;

/// Longest body of a request that is not an archive, bytes.
const MAX_SMALL_BODY: usize = 16 * 1024;

pub(super) const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

pub(super) type Answer = Response<BoxBody<Bytes, io::Error>>;

/// Answers one request.
pub(super) async fn answer(state: &Arc<State>, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let outcome = match (path.as_str(), request.method().clone()) {
        ("/healthz", Method::GET) => Ok(text("ok\n")),
        ("/readyz", Method::GET) => ready(state).map(|()| text("ready\n")),
        ("/metrics", Method::GET) => measurements(state),
        ("/log-level", Method::GET) => Ok(text(format!("{}\n", state.log.current()))),
        ("/log-level", Method::PUT) => set_log_level(state, request).await,
        ("/config", Method::GET) => json(&settings(&state.config.get())),
        ("/log-level", _) => return not_allowed("GET, PUT"),
        ("/healthz" | "/readyz" | "/metrics" | "/config", _) => return not_allowed("GET"),
        _ => match images::answer(state, &path, request).await {
            images::Outcome::Answer(answer) => answer,
            images::Outcome::NotAllowed(allowed) => return not_allowed(allowed),
            images::Outcome::Unknown => {
                Err((Kind::NotFound, format!("there is nothing at {path}")))
            }
        },
    };
    outcome.unwrap_or_else(|(kind, error)| problem(status(kind), error))
}

fn status(kind: Kind) -> StatusCode {
    match kind {
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::InvalidArgument => StatusCode::BAD_REQUEST,
        Kind::AlreadyExists | Kind::FailedPrecondition => StatusCode::CONFLICT,
        Kind::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Kind::ResourceExhausted => StatusCode::INSUFFICIENT_STORAGE,
        Kind::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

pub(super) fn ready(state: &State) -> Result<(), Failure> {
    if state.ready.is_set() {
        return Ok(());
    }
    let why = "berth is still recovering the state of this node; try again";
    Err((Kind::Unavailable, why.to_owned()))
}

fn measurements(state: &State) -> Result<Answer, Failure> {
    let encoded = state.metrics.encode();
    let body = encoded.map_err(|_| (Kind::Unknown, "a metric cannot be written".to_owned()))?;
    Ok(body_of(StatusCode::OK, metrics::CONTENT_TYPE, body))
}

async fn set_log_level(state: &State, request: Request<Incoming>) -> Result<Answer, Failure> {
    let body = small_body(request).await?;
    let filter = String::from_utf8_lossy(&body);
    let set = state.log.set(&filter);
    set.map_err(|error| (Kind::InvalidArgument, error.to_string()))?;
    let filter = state.log.current();
    tracing::info!("the log filter is now {filter:?}");
    Ok(text(format!("{filter}\n")))
}

fn settings(config: &config::Config) -> Settings {
    let origins = config.origins.iter();
    origins
        .map(|(key, value, origin)| {
            let value = match value {
                config::Value::Text(text) => text.as_str().into(),
                config::Value::Number(number) => (*number).into(),
                config::Value::List(list) => list.clone().into(),
            };
            let origin = origin.to_string();
            ((*key).to_owned(), Setting { value, origin })
        })
        .collect()
}

/// Runs `work` to its end also when the client leaves and this future is dropped.
pub(super) async fn detached<T: Send + 'static>(
    work: BoxFuture<'static, Result<T, Failure>>,
) -> Result<T, Failure> {
    let bug = |error| (Kind::Unknown, format!("berth has a bug: {error}"));
    tokio::spawn(work).await.map_err(bug)?
}

pub(super) async fn small_json<T: DeserializeOwned>(
    request: Request<Incoming>,
) -> Result<T, Failure> {
    let body = small_body(request).await?;
    serde_json::from_slice(&body).map_err(|error| {
        (
            Kind::InvalidArgument,
            format!("the body is not right: {error}"),
        )
    })
}

async fn small_body(request: Request<Incoming>) -> Result<Bytes, Failure> {
    let body = Limited::new(request.into_body(), MAX_SMALL_BODY);
    let whole = body.collect().await;
    let whole = whole.map_err(|error| (Kind::InvalidArgument, format!("the body: {error}")))?;
    Ok(whole.to_bytes())
}

pub(super) fn json<T: Serialize>(value: &T) -> Result<Answer, Failure> {
    let body = serde_json::to_vec(value).map_err(|error| (Kind::Unknown, error.to_string()))?;
    Ok(body_of(StatusCode::OK, JSON, body))
}

fn text(body: impl Into<Bytes>) -> Answer {
    body_of(StatusCode::OK, TEXT, body)
}

fn problem(status: StatusCode, error: String) -> Answer {
    let body = serde_json::json!(Problem { error }).to_string();
    body_of(status, JSON, body)
}

fn not_allowed(allowed: &'static str) -> Answer {
    let why = format!("only {allowed} is allowed here");
    let mut answer = problem(StatusCode::METHOD_NOT_ALLOWED, why);
    let allowed = HeaderValue::from_static(allowed);
    answer.headers_mut().insert(ALLOW, allowed);
    answer
}

fn body_of(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let body = Full::new(body.into()).map_err(|never| match never {});
    let mut answer = Response::new(body.boxed());
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}
