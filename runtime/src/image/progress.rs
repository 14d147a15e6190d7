//! How far every pull is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    bytes: AtomicU64,
    runs: Mutex<Vec<Arc<LayerBytes>>>,
}

/// Bytes that there are of a layer on its way, for every pull that waits for it.
#[derive(Debug, Default)]
pub(crate) struct LayerBytes(AtomicU64);

/// The bytes that one try has of a layer; they come off again if it fails.
#[derive(Debug)]
pub(crate) struct Counted<'a> {
    counters: &'a Counters,
    layer: &'a LayerBytes,
    /// Those of them that an earlier try has left.
    pub(crate) old: u64,
    sum: u64,
}

impl<'a> Counted<'a> {
    /// Bytes that came.
    pub(crate) fn add(&mut self, bytes: u64) {
        self.counters.registry.inc_by(bytes);
        self.count(bytes);
    }

    /// Bytes that were there from an earlier try.
    pub(crate) fn add_old(&mut self, bytes: u64) {
        self.counters.kept.inc_by(bytes);
        self.old = bytes;
        self.count(bytes);
    }

    /// The try was the last one.
    pub(crate) fn stay(mut self) {
        self.sum = 0;
    }

    fn count(&mut self, bytes: u64) {
        self.sum += bytes;
        self.layer.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.layer.0.fetch_sub(self.sum, Ordering::Relaxed);
    }
}

impl Progress {
    /// What is to come: bytes, and the runs that fetch them.
    pub(crate) fn wait_for(&self, bytes: u64, runs: Vec<Arc<LayerBytes>>) {
        *self.runs() = runs;
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// Counts the bytes of one try to get a layer.
    pub(crate) fn count<'a>(&'a self, layer: &'a LayerBytes) -> Counted<'a> {
        Counted {
            counters: &self.counters,
            layer,
            old: 0,
            sum: 0,
        }
    }

    fn runs(&self) -> MutexGuard<'_, Vec<Arc<LayerBytes>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_source(&self, host: &str) {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        host.clone_into(&mut source);
    }

    fn status(&self) -> PullStatus {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let came = self.runs().iter().map(|run| read(&run.0)).sum();
        PullStatus {
            reference: self.reference.clone(),
            elapsed: self.started.elapsed(),
            source: source.clone(),
            layers: (read(&self.layers), read(&self.layers_done)),
            bytes: (read(&self.bytes), came),
        }
    }
}

/// Bytes of all pulls, by origin.
#[derive(Clone, Debug)]
pub(crate) struct Counters {
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
            runs: Mutex::default(),
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
