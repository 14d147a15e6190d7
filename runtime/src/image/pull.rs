//! One pull, from a reference to an image in the index.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Semaphore;

use super::catalog::Entry;
use super::document::{self, Configuration};
use super::layers::{Fetcher, Layers, Room, Source};
use super::progress::{Progress, Row};
use super::shelf::now;
use super::{Error, Inner, Reference, digest_of};
use crate::model::{ChainId, ImageId, RegistryAuth};
pub(crate) use crate::registry::Resolved;
use crate::registry::{MAX_CONFIG, Session};

/// The whole way, measured. Runs in a task of its own.
pub(crate) async fn run(
    inner: Arc<Inner>,
    reference: Reference,
    auth: Option<RegistryAuth>,
) -> Result<ImageId, Error> {
    let metrics = Arc::clone(&inner.metrics);
    let started = Instant::now();
    let pulled = whole_way(inner, reference, auth).await;
    let outcome = match &pulled {
        Ok((_, Was::Fetched)) => "pulled",
        Ok((_, Was::There)) => "unchanged",
        Err(_) => "failed",
    };
    metrics.pull_finished(outcome, started.elapsed());
    pulled.map(|(id, _)| id)
}

/// Where an image was that is in the store after a pull.
enum Was {
    There,
    Fetched,
}

async fn whole_way(
    inner: Arc<Inner>,
    reference: Reference,
    auth: Option<RegistryAuth>,
) -> Result<(ImageId, Was), Error> {
    let row = inner.board.enter(reference.to_string());
    let session = inner.registry.open(&reference, auth.as_ref()).await?;
    if let Some(id) = unchanged(&inner, &session, &reference).await? {
        return Ok((id, Was::There));
    }
    let resolved = session.resolve(&reference.target()).await?;
    row.progress.set_source(&resolved.host);
    let config_descriptor = resolved.manifest.config();
    let config_digest = digest_of(config_descriptor)?;
    let config = match inner.shelf.document(config_digest).await? {
        Some(bytes) => bytes,
        None => session.document(config_descriptor, MAX_CONFIG).await?,
    };
    let first = resolved.documents.first().map(|(digest, _)| *digest);
    let names = Names {
        tags: reference.tagged().into_iter().collect(),
        digests: first
            .map(|digest| reference.with_digest(digest))
            .into_iter()
            .collect(),
    };
    let source = Source::Registry(session);
    let id = import(&inner, source, resolved, config, names, &row).await?;
    Ok((id, Was::Fetched))
}

/// Names that an image gets.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// `registry/repository:tag`.
    pub(crate) tags: BTreeSet<String>,
    /// `registry/repository@digest`.
    pub(crate) digests: BTreeSet<String>,
}

impl Names {
    pub(crate) fn all(&self) -> Vec<&str> {
        self.tags.union(&self.digests).map(String::as_str).collect()
    }
}

/// From verified documents to an image in the index.
pub(crate) async fn import(
    inner: &Arc<Inner>,
    source: Source,
    mut resolved: Resolved,
    config: Vec<u8>,
    names: Names,
    row: &Row,
) -> Result<ImageId, Error> {
    let id = digest_of(resolved.manifest.config())?;
    let malformed = |reason| Error::Configuration { id, reason };
    let parsed = document::parse(&config).map_err(malformed)?;
    if let Some(warning) = resolved.fits(&parsed.platform).map_err(malformed)? {
        tracing::warn!(image.id = %id, image.names = ?names.all(), "{warning}");
    }
    resolved.manifest.count_layers(parsed.diff_ids.len());
    let layers = resolved.manifest.layers();
    if layers.len() != parsed.diff_ids.len() {
        let beside = resolved.manifest.beside().map_or_else(String::new, |kind| {
            let kind: String = kind.chars().take(100).collect();
            format!(", and beside them what is none ({kind:?})")
        });
        return Err(malformed(format!(
            "it names {} layers, and the manifest has {}{beside}",
            parsed.diff_ids.len(),
            layers.len()
        )));
    }
    let chain = document::chain_ids(&parsed.diff_ids);
    // Until the index has the image, nothing else keeps its parts from the collector.
    let mut lease = inner.shelf.lease();
    for layer in &chain {
        lease.hold_layer(*layer);
    }
    for digest in resolved
        .documents
        .iter()
        .map(|(digest, _)| digest)
        .chain([&id])
    {
        lease.hold_blob(*digest);
    }
    let fetcher = fetcher(inner, source, &row.progress);
    let wanted = Layers {
        descriptors: layers,
        diff_ids: &parsed.diff_ids,
        chain: &chain,
    };
    fetcher.ensure(&wanted).await?;
    let entry = entry(id, &resolved, &config, parsed, chain, names);
    let mut documents = resolved.documents;
    documents.push((id, config));
    inner
        .commit(documents, move |catalog| catalog.add(entry))
        .await?;
    Ok(id)
}

fn fetcher(inner: &Arc<Inner>, source: Source, progress: &Arc<Progress>) -> Fetcher {
    Fetcher {
        shelf: inner.shelf.clone(),
        flights: Arc::clone(&inner.layers),
        source,
        // Of each pull its own: one that stalls must not hold up the others.
        permits: Arc::new(Semaphore::new(inner.parallel_layers)),
        progress: Arc::clone(progress),
        room: Arc::new(Room::new(inner.unpacked_limit)),
    }
}

fn entry(
    id: ImageId,
    resolved: &Resolved,
    config: &[u8],
    parsed: Configuration,
    chain: Vec<ChainId>,
    names: Names,
) -> Entry {
    let (manifest, length) = match resolved.documents.last() {
        Some((digest, bytes)) => (*digest, bytes.len()),
        None => (id, 0),
    };
    let layers = resolved.manifest.layers().iter();
    let layers = layers.fold(0, |sum: u64, layer| sum.saturating_add(layer.size()));
    let documents = resolved.documents.iter().map(|(digest, _)| *digest);
    Entry {
        id,
        tags: names.tags,
        digests: names.digests,
        manifest,
        documents: documents.chain([id]).collect(),
        chain,
        size: layers.saturating_add((length + config.len()) as u64),
        config: parsed.config,
        platform: parsed.platform.plain(),
        pinned: false,
        pulled_at: now(),
    }
}

/// An image that is in the store already and still is what the reference means: one request, and no
/// manifest counts against a registry's rate limit.
///
/// The digest of the answer is a claim. It is believed only for an image that was pulled from this very
/// repository: a registry must not hand out another one's private image by naming its digest.
async fn unchanged(
    inner: &Arc<Inner>,
    session: &Session,
    reference: &Reference,
) -> Result<Option<ImageId>, Error> {
    let name = reference.name();
    if !inner.catalog().knows(&name) {
        return Ok(None);
    }
    let Some(digest) = session.peek(&reference.target()).await else {
        return Ok(None);
    };
    let claimed = reference.digest().is_none_or(|want| want == digest);
    let Some(entry) = inner.catalog().by_digest(&name, digest).cloned() else {
        return Ok(None);
    };
    let mut lease = inner.shelf.lease();
    let mut whole = claimed;
    for layer in &entry.chain {
        whole &= lease.hold_layer(*layer);
    }
    // Documents are small: one that is lost or was found damaged is fetched again with all the others.
    for document in &entry.documents {
        whole &= lease.hold_blob(*document);
    }
    if !whole {
        return Ok(None);
    }
    let mut names = Entry::clone(&entry);
    names.tags = reference.tagged().into_iter().collect();
    names.digests = BTreeSet::from([reference.with_digest(digest)]);
    // It may have been removed since; then it is pulled like any other.
    let id = entry.id;
    let there = inner
        .commit(Vec::new(), move |catalog| match catalog.get(&id) {
            Some(_) => catalog.add(names),
            None => super::catalog::Change::default(),
        })
        .await?;
    Ok(there.get(&id).is_some().then_some(id))
}
