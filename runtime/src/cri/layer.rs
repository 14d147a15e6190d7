//! What happens around every RPC: its span with an id, its measurements, the wait for recovery, its
//! deadline, its panics, and the one record of how it ended.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::BodyExt as _;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::field::Empty;
use tracing::{Instrument, Span};

use super::method::{self, Class, Method};
use super::{Ready, status};
use crate::container::Held;
use crate::metrics::Metrics;
use crate::telemetry::panic_text;

/// An RPC that takes longer than this is worth a record while it still runs.
const SLOW: Duration = Duration::from_secs(10);

/// Puts [`RpcService`] around a service.
#[derive(Clone)]
pub(super) struct RpcLayer(Arc<Shared>);

struct Shared {
    ready: Arc<Ready>,
    metrics: Arc<Metrics>,
    last_id: AtomicU64,
    slow: Duration,
}

impl RpcLayer {
    pub(super) fn new(ready: Arc<Ready>, metrics: Arc<Metrics>) -> Self {
        Self::with_slow(ready, metrics, SLOW)
    }

    fn with_slow(ready: Arc<Ready>, metrics: Arc<Metrics>, slow: Duration) -> Self {
        Self(Arc::new(Shared {
            ready,
            metrics,
            last_id: AtomicU64::new(0),
            slow,
        }))
    }
}

impl<S> Layer<S> for RpcLayer {
    type Service = RpcService<S>;

    fn layer(&self, inner: S) -> RpcService<S> {
        RpcService {
            inner,
            shared: self.0.clone(),
        }
    }
}

/// A service with everything around it.
#[derive(Clone)]
pub(super) struct RpcService<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> fmt::Debug for RpcService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RpcService")
    }
}

impl<S> Service<Request<Body>> for RpcService<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that was polled ready is the one to call.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let method = method::of_path(request.uri().path());
        // Taken now, ahead of tonic's own timer for the same header, which would answer "cancelled"
        // where gRPC and critest want "deadline exceeded" (row R061).
        let deadline = timeout(request.headers()).map(|t| tokio::time::Instant::now() + t);
        let shared = self.shared.clone();
        // Of the highest level, so that no filter that lets a record through takes the id away from it.
        let span = tracing::error_span!(
            "rpc",
            rpc.id = shared.last_id.fetch_add(1, Ordering::Relaxed) + 1,
            rpc.method = method.name,
            pod.id = Empty,
            container.id = Empty,
            image.reference = Empty,
        );
        let handled = async move {
            let call = Call::new(shared.clone(), method);
            if !shared.ready.is_set() {
                return Ok(call.answer(Status::unavailable(
                    "berth is still recovering the state of this node; try again",
                )));
            }
            // Inside the guard, so that a panic while the future is made counts as well.
            let work = AssertUnwindSafe(async move { inner.call(request).await }).catch_unwind();
            let work = watched(method, shared.slow, work);
            match deadline {
                None => call.end(work.await),
                Some(at) => match tokio::time::timeout_at(at, work).await {
                    Ok(outcome) => call.end(outcome),
                    Err(_) => Ok(call.answer(Status::deadline_exceeded(
                        "the deadline of this call passed before it was done",
                    ))),
                },
            }
        };
        handled.instrument(span).boxed()
    }
}

/// Says while it still runs that a call takes long, unless it may.
async fn watched<T>(method: Method, slow: Duration, work: impl Future<Output = T>) -> T {
    if method.class == Class::Long {
        return work.await;
    }
    tokio::pin!(work);
    tokio::select! {
        biased;
        outcome = &mut work => outcome,
        () = tokio::time::sleep(slow) => {
            tracing::warn!("the call still runs after {} s", slow.as_secs_f32());
            work.await
        }
    }
}

/// A call under way. Dropped without an end, its caller has left.
struct Call {
    shared: Arc<Shared>,
    method: Method,
    started: Instant,
    ended: bool,
}

impl Call {
    fn new(shared: Arc<Shared>, method: Method) -> Self {
        shared.metrics.rpc_in_flight.inc();
        Self {
            shared,
            method,
            started: Instant::now(),
            ended: false,
        }
    }

    /// The answer of the handler, or that it panicked.
    fn end<E>(
        self,
        outcome: Result<Result<Response<Body>, E>, Box<dyn std::any::Any + Send>>,
    ) -> Result<Response<Body>, E> {
        match outcome {
            Ok(Ok(response)) => {
                // Without a message an error is in the headers; that of a stream comes in its trailers,
                // but ours fail before their first item if at all.
                match Status::from_header_map(response.headers()) {
                    Some(status) => self.record(status.code(), status.message()),
                    None => self.record(Code::Ok, ""),
                }
                Ok(counted(response))
            }
            Ok(Err(error)) => {
                self.record(Code::Unknown, "the service failed");
                Err(error)
            }
            Err(panic) => {
                self.shared.metrics.rpc_panics.inc();
                Ok(self.answer(status::panicked(panic_text(&*panic))))
            }
        }
    }

    /// An answer of our own.
    fn answer(self, status: Status) -> Response<Body> {
        self.record(status.code(), status.message());
        status.into_http()
    }

    fn record(mut self, code: Code, text: &str) {
        self.ended = true;
        let took = self.started.elapsed();
        let name = status::name(code);
        self.shared
            .metrics
            .rpc_finished(self.method.name, name, took);
        let ms = took.as_secs_f64() * 1e3;
        match code {
            Code::Ok if self.method.class == Class::Read => {
                tracing::debug!(rpc.ms = ms, "the call is done");
            }
            Code::Ok => tracing::info!(rpc.ms = ms, "the call is done"),
            // What the kubelet asks for all the time and handles by itself.
            Code::NotFound | Code::Unimplemented | Code::Unavailable => {
                tracing::debug!(rpc.ms = ms, rpc.code = name, "the call failed: {text}");
            }
            Code::Internal => {
                tracing::error!(rpc.ms = ms, rpc.code = name, "the call failed: {text}");
            }
            _ => tracing::warn!(rpc.ms = ms, rpc.code = name, "the call failed: {text}"),
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.shared.metrics.rpc_in_flight.dec();
        if !self.ended {
            let took = self.started.elapsed();
            let code = status::name(Code::Cancelled);
            self.shared
                .metrics
                .rpc_finished(self.method.name, code, took);
            tracing::info!("the caller left before the call was done");
        }
    }
}

/// An answer whose memory is counted: what counts it goes with the last of its bytes, which a slow client may leave
/// unread for long.
fn counted(mut response: Response<Body>) -> Response<Body> {
    let Some(held) = response.extensions_mut().remove::<Held>() else {
        return response;
    };
    response.map(|body| {
        let body = body.map_frame(move |frame| {
            let held = held.clone();
            frame.map_data(|bytes| Bytes::from_owner(Counted { bytes, _held: held }))
        });
        Body::new(body)
    })
}

/// Bytes of an answer with what counts them.
struct Counted {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The time that a caller gives, from the header `grpc-timeout`: up to eight digits and a unit (gRPC over
/// HTTP/2, section "Requests"). A malformed one counts as none, as in other servers.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(number * 3600)),
        'M' => Some(Duration::from_secs(number * 60)),
        'S' => Some(Duration::from_secs(number)),
        'm' => Some(Duration::from_millis(number)),
        'u' => Some(Duration::from_micros(number)),
        'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Notes in the span of the call which pod it is about.
pub(super) fn about_pod(id: &str) {
    Span::current().record("pod.id", id);
}

/// Notes in the span of the call which container it is about.
pub(super) fn about_container(id: &str) {
    Span::current().record("container.id", id);
}

/// Notes in the span of the call which image it is about.
pub(super) fn about_image(reference: &str) {
    Span::current().record("image.reference", reference);
}

#[cfg(test)]
mod tests;
