//! From a request to its answer.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::State;
use super::api::{
    ExplainRequest, ImageSummary, LoadRequest, Problem, RemoveRequest, Setting, Settings,
};
use super::archive;
use super::shelf::Failure;
use crate::config;
use crate::metrics;
use crate::model::{Image, Kind};

/// Longest body of a request that is not an archive, bytes.
const MAX_SMALL_BODY: usize = 16 * 1024;

const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

type Answer = Response<Full<Bytes>>;

/// Answers one request.
pub(super) async fn answer(state: &Arc<State>, request: Request<Incoming>) -> Answer {
    let path = request.uri().path().to_owned();
    let outcome = match (path.as_str(), request.method().clone()) {
        ("/healthz", Method::GET) => Ok(text("ok\n")),
        ("/readyz", Method::GET) => ready(state).map(|()| text("ready\n")),
        ("/metrics", Method::GET) => measurements(state),
        ("/log-level", Method::GET) => Ok(text(format!("{}\n", state.log.current()))),
        ("/log-level", Method::PUT) => set_log_level(state, request).await,
        ("/config", Method::GET) => json(&settings(&state.config)),
        ("/images", Method::GET) => images(state),
        ("/images/load", Method::POST) => load(state, request).await,
        ("/images/remove", Method::POST) => remove(state, request).await,
        ("/images/explain", Method::POST) => explain(state, request).await,
        ("/log-level", _) => return not_allowed("GET, PUT"),
        ("/images/load" | "/images/remove" | "/images/explain", _) => return not_allowed("POST"),
        ("/healthz" | "/readyz" | "/metrics" | "/config" | "/images", _) => {
            return not_allowed("GET");
        }
        _ => Err((Kind::NotFound, format!("there is nothing at {path}"))),
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

fn ready(state: &State) -> Result<(), Failure> {
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

fn images(state: &State) -> Result<Answer, Failure> {
    ready(state)?;
    json(&summaries(&state.images.list()))
}

fn summaries(images: &[Image]) -> Vec<ImageSummary> {
    let images = images.iter();
    images
        .map(|image| ImageSummary {
            id: image.id.to_string(),
            tags: image.repo_tags.clone(),
            digests: image.repo_digests.clone(),
            size: image.size,
            pinned: image.pinned,
        })
        .collect()
}

async fn load(state: &State, request: Request<Incoming>) -> Result<Answer, Failure> {
    ready(state)?;
    let by_path = request.headers().get(CONTENT_TYPE) == Some(&HeaderValue::from_static(JSON));
    let loaded = if by_path {
        let LoadRequest { path } = small_json(request).await?;
        if !path.is_absolute() {
            let why = format!("{} is not an absolute path", path.display());
            return Err((Kind::InvalidArgument, why));
        }
        detached(state.images.clone().load_file(path)).await
    } else {
        let (pump, reader) = archive::pipe(request.into_body());
        let load = state.images.clone().load(Box::new(reader));
        tokio::join!(detached(load), pump.run()).0
    };
    json(&summaries(&loaded?))
}

async fn remove(state: &State, request: Request<Incoming>) -> Result<Answer, Failure> {
    ready(state)?;
    let RemoveRequest { reference } = small_json(request).await?;
    // Through the CRI this succeeds, but an operator wants to know of a misspelt name.
    if state.images.find(&reference)?.is_none() {
        let why = format!("there is no image {reference:?} on this node");
        return Err((Kind::NotFound, why));
    }
    detached(state.images.clone().remove(reference)).await?;
    json(&serde_json::json!({}))
}

/// Asks registries and changes nothing, so it ends with its client.
async fn explain(state: &State, request: Request<Incoming>) -> Result<Answer, Failure> {
    let ExplainRequest { reference, auth } = small_json(request).await?;
    json(&state.images.clone().explain(reference, auth).await?)
}

/// Runs `work` to its end also when the client leaves and this future is dropped.
async fn detached<T: Send + 'static>(
    work: BoxFuture<'static, Result<T, Failure>>,
) -> Result<T, Failure> {
    let bug = |error| (Kind::Unknown, format!("berth has a bug: {error}"));
    tokio::spawn(work).await.map_err(bug)?
}

async fn small_json<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, Failure> {
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

fn json<T: Serialize>(value: &T) -> Result<Answer, Failure> {
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
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}
