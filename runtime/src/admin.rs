//! The border to the operator: HTTP/1.1 on a unix socket that only root can open.
//!
//! | Request | Answer |
//! |---|---|
//! | `GET /healthz`, `GET /readyz` | 200 once the daemon serves, 503 before (`readyz`) |
//! | `GET /metrics` | OpenMetrics text |
//! | `GET /log-level`, `PUT /log-level` | the log filter; a new one in the body |
//! | `GET /config` | every key with its value and where it came from |
//! | `GET /images` | the images in the store |
//! | `POST /images/inspect` | all about `{"reference": …}` |
//! | `POST /images/pull` | pulls `{"reference": …, "username": …, "password": …}` |
//! | `GET /pulls` | how far the pulls under way are |
//! | `POST /images/save` | an archive of `{"references": […]}` |
//! | `POST /images/prune` | removes what no container uses: `{"all": …}` |
//! | `POST /images/check` | checks the store: `{"quick": …, "repair": …}` |
//! | `GET /df` | what takes room |
//! | `POST /images/load` | loads an archive: the body itself, or `{"path": …}` as `application/json` |
//! | `POST /images/explain` | what a pull of `{"reference": …}` would do |
//! | `POST /images/remove` | removes `{"reference": …}` with all its names |
//!
//! [`api`] has the JSON, [`client`] the other side for `berth images`.

pub mod api;
pub mod client;

mod archive;
mod images;
mod routes;
mod shelf;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::Live;
use crate::events::Ready;
use crate::image::ImageManager;
use crate::metrics::Metrics;
use crate::telemetry::LogFilter;
use shelf::Shelf;

/// How long a client may take to send the head of its request.
const HEAD_TIME: Duration = Duration::from_secs(10);

/// How long requests under way may go on once the daemon is told to stop.
const DRAIN: Duration = Duration::from_secs(2);

/// How long to wait when the kernel has no descriptor for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the admin socket works with.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Images.
    pub images: Arc<ImageManager>,
    /// Measurements.
    pub metrics: Arc<Metrics>,
    /// The log's filter.
    pub log: LogFilter,
    /// The configuration.
    pub config: Arc<Live>,
    /// Set once recovery is over.
    pub ready: Arc<Ready>,
}

/// The same, with the images behind a trait.
struct State {
    images: Arc<dyn Shelf>,
    metrics: Arc<Metrics>,
    log: LogFilter,
    config: Arc<Live>,
    ready: Arc<Ready>,
}

/// Serves until `stopping` becomes true, then lets requests under way end, for a while.
pub async fn serve(listener: UnixListener, deps: Deps, stopping: watch::Receiver<bool>) {
    let state = Arc::new(State {
        images: deps.images,
        metrics: deps.metrics,
        log: deps.log,
        config: deps.config,
        ready: deps.ready,
    });
    serve_state(listener, state, stopping).await;
}

async fn serve_state(
    listener: UnixListener,
    state: Arc<State>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped(&mut stopping) => break,
            // Only to keep the set small.
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(connection(stream, state.clone(), stopping.clone()));
            }
            Err(error) => {
                tracing::warn!("a connection to the admin socket cannot be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // What is left is dropped with the set, which ends it.
    let _ = tokio::time::timeout(DRAIN, async {
        while connections.join_next().await.is_some() {}
    })
    .await;
}

/// Ends when the daemon is told to stop.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone, and that the daemon is ending.
    let _ = stopping.wait_for(|stop| *stop).await;
}

async fn connection(stream: UnixStream, state: Arc<State>, mut stopping: watch::Receiver<bool>) {
    let service = service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(routes::answer(&state, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!("a connection to the admin socket broke: {error}");
    }
}
