//! How far every pull is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::metrics::{Counter, Metrics};

/// A pull in progress, as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullStatus {
    /// What is pulled.
    pub reference: String,
    /// How long it runs.
    pub elapsed: Duration,
    /// Host that the manifest came from; empty before it came.
    pub source: String,
    /// Layers of the image, and those that are in the store.
    pub layers: (u64, u64),
    /// Compressed bytes of the layers to fetch, and those that came.
    pub bytes: (u64, u64),
}

/// Counters of one pull. Cheap enough for every chunk.
#[derive(Debug)]
pub(crate) struct Progress {
    counters: Counters,
    reference: String,
    started: Instant,
    source: Mutex<String>,
    pub(crate) layers: AtomicU64,
    pub(crate) layers_done: AtomicU64,
    pub(crate) bytes: AtomicU64,
    bytes_done: AtomicU64,
}

impl Progress {
    /// Bytes that came.
    pub(crate) fn received(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
        self.counters.registry.inc_by(bytes);
    }

    /// Bytes that were there from an earlier try.
    pub(crate) fn found(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
        self.counters.kept.inc_by(bytes);
    }

    /// Bytes that have to come again.
    pub(crate) fn lost(&self, bytes: u64) {
        self.bytes_done.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn set_source(&self, host: &str) {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        host.clone_into(&mut source);
    }

    fn status(&self) -> PullStatus {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        PullStatus {
            reference: self.reference.clone(),
            elapsed: self.started.elapsed(),
            source: source.clone(),
            layers: (read(&self.layers), read(&self.layers_done)),
            bytes: (read(&self.bytes), read(&self.bytes_done)),
        }
    }
}

/// Bytes of all pulls, by origin.
#[derive(Clone, Debug)]
struct Counters {
    registry: Counter,
    kept: Counter,
}

/// The pulls in progress.
#[derive(Debug)]
pub(crate) struct Board {
    counters: Counters,
    next: AtomicU64,
    rows: Mutex<BTreeMap<u64, Arc<Progress>>>,
}

/// Keeps a pull on the board.
#[derive(Debug)]
pub(crate) struct Row {
    board: Arc<Board>,
    id: u64,
    /// Its counters.
    pub(crate) progress: Arc<Progress>,
}

impl Drop for Row {
    fn drop(&mut self) {
        let mut rows = self
            .board
            .rows
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        rows.remove(&self.id);
    }
}

impl Board {
    pub(crate) fn new(metrics: &Metrics) -> Self {
        Self {
            counters: Counters {
                registry: metrics.layer_bytes("registry"),
                kept: metrics.layer_bytes("kept"),
            },
            next: AtomicU64::new(0),
            rows: Mutex::default(),
        }
    }

    pub(crate) fn enter(self: &Arc<Self>, reference: String) -> Row {
        let progress = Arc::new(Progress {
            counters: self.counters.clone(),
            reference,
            started: Instant::now(),
            source: Mutex::default(),
            layers: AtomicU64::new(0),
            layers_done: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            bytes_done: AtomicU64::new(0),
        });
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.insert(id, Arc::clone(&progress));
        Row {
            board: Arc::clone(self),
            id,
            progress,
        }
    }

    pub(crate) fn statuses(&self) -> Vec<PullStatus> {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.values().map(|progress| progress.status()).collect()
    }
}
