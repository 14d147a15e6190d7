//! The requests that are about images.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response};
use tokio::sync::mpsc;

use super::State;
use super::api::{
    CheckRequest, ExplainRequest, ImageRequest, LoadRequest, Loaded, PruneRequest, PullProgress,
    PullRequest, SaveRequest,
};
use super::archive;
use super::routes::{Answer, JSON, detached, json, ready, small_json};
use super::shelf::Failure;
use crate::image::PullStatus;
use crate::model::{Image, Kind, RegistryAuth};

/// Bytes of an archive that are sent at a time, and how many of those may wait.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;

/// What became of a request.
pub(super) enum Outcome {
    Answer(Result<Answer, Failure>),
    /// Only this method is there.
    NotAllowed(&'static str),
    /// There is no such path.
    Unknown,
}

pub(super) async fn answer(state: &Arc<State>, path: &str, request: Request<Incoming>) -> Outcome {
    let wanted = match path {
        "/images" | "/pulls" | "/df" => Method::GET,
        "/images/load" | "/images/remove" | "/images/inspect" | "/images/pull" | "/images/save"
        | "/images/prune" | "/images/check" | "/images/explain" => Method::POST,
        _ => return Outcome::Unknown,
    };
    if *request.method() != wanted {
        return Outcome::NotAllowed(if wanted == Method::GET { "GET" } else { "POST" });
    }
    if let Err(failure) = ready(state) {
        return Outcome::Answer(Err(failure));
    }
    Outcome::Answer(match path {
        "/images" => json(&state.images.list()),
        "/pulls" => json(
            &state
                .images
                .pulls()
                .iter()
                .map(progress)
                .collect::<Vec<_>>(),
        ),
        "/df" => disk_use(state).await,
        "/images/load" => load(state, request).await,
        "/images/remove" => remove(state, request).await,
        "/images/inspect" => inspect(state, request).await,
        "/images/pull" => pull(state, request).await,
        "/images/save" => save(state, request).await,
        "/images/prune" => prune(state, request).await,
        "/images/explain" => explain(state, request).await,
        _ => check(state, request).await,
    })
}

/// Images that were just added, with their names; one that is gone already is left out.
fn told(state: &State, images: Vec<Image>) -> Result<Answer, Failure> {
    let all = state.images.list();
    let find = |image: Image| {
        let id = image.id.to_string();
        let summary = all.iter().find(|summary| summary.id == id)?.clone();
        let names = match image.repo_tags.is_empty() {
            true => image.repo_digests,
            false => image.repo_tags,
        };
        Some(Loaded { summary, names })
    };
    json(&images.into_iter().filter_map(find).collect::<Vec<_>>())
}

fn progress(pull: &PullStatus) -> PullProgress {
    PullProgress {
        reference: pull.reference.clone(),
        milliseconds: u64::try_from(pull.elapsed.as_millis()).unwrap_or(u64::MAX),
        source: pull.source.clone(),
        layers: pull.layers.0,
        layers_done: pull.layers.1,
        bytes: pull.bytes.0,
        bytes_done: pull.bytes.1,
    }
}

/// Asks registries and changes nothing, so it ends with its client.
async fn explain(state: &State, request: Request<Incoming>) -> Result<Answer, Failure> {
    let ExplainRequest { reference, auth } = small_json(request).await?;
    json(&state.images.clone().explain(reference, auth).await?)
}

fn absent(reference: &str) -> Failure {
    let why = format!("there is no image {reference:?} on this node");
    (Kind::NotFound, why)
}

async fn load(state: &State, request: Request<Incoming>) -> Result<Answer, Failure> {
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
    told(state, loaded?)
}

async fn remove(state: &State, request: Request<Incoming>) -> Result<Answer, Failure> {
    let ImageRequest { reference } = small_json(request).await?;
    // Through the CRI this succeeds, but an operator wants to know of a misspelt name.
    if state.images.find(&reference)?.is_none() {
        return Err(absent(&reference));
    }
    detached(state.images.clone().remove(reference)).await?;
    json(&serde_json::json!({}))
}

async fn inspect(state: &State, request: Request<Incoming>) -> Result<Answer, Failure> {
    let ImageRequest { reference } = small_json(request).await?;
    let details = state.images.inspect(&reference)?;
    json(&details.ok_or_else(|| absent(&reference))?)
}

async fn pull(state: &State, request: Request<Incoming>) -> Result<Answer, Failure> {
    let PullRequest {
        reference,
        username,
        password,
    } = small_json(request).await?;
    let auth = (!username.is_empty()).then(|| RegistryAuth {
        username,
        password,
        ..RegistryAuth::default()
    });
    let pulled = detached(state.images.clone().pull(reference.clone(), auth)).await?;
    let image = state.images.find(&pulled)?;
    told(state, vec![image.ok_or_else(|| absent(&reference))?])
}

async fn prune(state: &State, request: Request<Incoming>) -> Result<Answer, Failure> {
    let PruneRequest { all } = small_json(request).await?;
    json(&detached(state.images.clone().prune(all)).await?)
}

async fn check(state: &State, request: Request<Incoming>) -> Result<Answer, Failure> {
    let CheckRequest { quick, repair } = small_json(request).await?;
    json(&detached(state.images.clone().check(quick, repair)).await?)
}

async fn disk_use(state: &State) -> Result<Answer, Failure> {
    json(&detached(state.images.clone().disk_use()).await?)
}

/// The archive is sent while it is made. Should that fail half-way the connection breaks, so that nobody takes
/// what came for an archive.
async fn save(state: &State, request: Request<Incoming>) -> Result<Answer, Failure> {
    let SaveRequest { references } = small_json(request).await?;
    if references.is_empty() {
        return Err((Kind::InvalidArgument, "no image was named".to_owned()));
    }
    let write = state.images.clone().export(references).await?;
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES);
    tokio::task::spawn_blocking(move || {
        let mut out = io::BufWriter::with_capacity(PIECE, Pieces(sender.clone()));
        let written = write(&mut out).and_then(|()| io::Write::flush(&mut out));
        // What is buffered belongs to a broken archive.
        let _ = out.into_parts();
        if let Err(error) = written
            && !sender.is_closed()
        {
            tracing::warn!(%error, "an image cannot be saved");
            let _ = sender.blocking_send(Err(error));
            // The reader is to have the error and not just the end of the connection.
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async {
        let piece = receiver.recv().await?;
        Some((piece.map(Frame::data), receiver))
    });
    let mut answer = Response::new(BodyExt::boxed(StreamBody::new(pieces)));
    let kind = HeaderValue::from_static("application/x-tar");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    Ok(answer)
}

/// The writing end of a body.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(bytes);
        match self.0.blocking_send(Ok(piece)) {
            Ok(()) => Ok(bytes.len()),
            Err(_) => Err(io::Error::new(io::ErrorKind::BrokenPipe, "the client left")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
