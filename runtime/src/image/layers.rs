//! The layers of an image: fetched, unpacked while their bytes arrive, verified, published.
//!
//! A layer in progress is a run of its own, shared by all pulls that need it. The layers of an image
//! are unpacked side by side and published from the lowest up: a layer waits for its parent, because
//! what its archive only implies comes from the layers below.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use oci_spec::image::Descriptor;
use tokio::sync::{Semaphore, mpsc};

use super::archive::Spool;
use super::download::{Download, Kept, PIECE, PIECES, Piece};
use super::flight::{Alone, Flights, Ticket};
use super::progress::{Counted, LayerBytes, Progress};
use super::shelf::{Shelf, Staged};
use super::unpack::{What, unpack, unpack_download};
use super::{Error, digest_of};
use crate::layer::Limits;
use crate::model::{ChainId, Digest};
use crate::registry::{self, Blob, Resume, Session};

/// Where blobs come from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A registry.
    Registry(Session),
    /// An archive.
    Archive(Arc<Spool>),
}

/// A layer on its way: what it is to be, the blob that it comes in, and the registry that is to send it. An image that
/// names another's layer, and has a registry of its own send it, must not hold that other one up.
type LayerKey = (ChainId, Digest, Option<String>);

/// Layers in progress.
pub(crate) type LayerFlights = Flights<LayerKey, Result<(), Error>, LayerBytes>;

/// A right to a layer in progress.
type LayerTicket = Ticket<Result<(), Error>, LayerBytes>;

/// What the runs of one pull share.
#[derive(Clone)]
pub(crate) struct Fetcher {
    pub(crate) shelf: Shelf,
    pub(crate) flights: Arc<LayerFlights>,
    pub(crate) source: Source,
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) room: Arc<Room>,
}

/// What the layers of one image may still unpack to, bytes. Those that are unpacked side by side may each take what is
/// left, and the last of them is refused.
#[derive(Debug)]
pub(crate) struct Room {
    limit: u64,
    left: AtomicU64,
}

impl Room {
    pub(crate) fn new(limit: u64) -> Self {
        let left = AtomicU64::new(limit);
        Self { limit, left }
    }

    fn limits(&self) -> Limits {
        Limits {
            bytes: self.left.load(Ordering::Relaxed),
            ..Limits::default()
        }
    }

    fn take(self: &Arc<Self>, bytes: u64) -> Result<Taken, Error> {
        let mut taken = Taken {
            room: Arc::clone(self),
            bytes: 0,
        };
        taken.more(bytes)?;
        Ok(taken)
    }
}

/// What a layer has of a room. It is given back unless the layer is published: it may be tried again, and is not to count
/// twice.
struct Taken {
    room: Arc<Room>,
    bytes: u64,
}

impl Taken {
    fn more(&mut self, bytes: u64) -> Result<(), Error> {
        let less = |left: u64| left.checked_sub(bytes);
        let Room { limit, left } = &*self.room;
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .map_err(|_| Error::TooLarge(*limit))?;
        self.bytes += bytes;
        Ok(())
    }

    fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.left.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

/// The layers of an image, lowest first, in three views of the same length.
pub(crate) struct Layers<'a> {
    pub(crate) descriptors: &'a [Descriptor],
    pub(crate) diff_ids: &'a [Digest],
    pub(crate) chain: &'a [ChainId],
}

/// One layer of an image.
struct Wanted {
    descriptor: Descriptor,
    diff_id: Digest,
    /// Its chain ids from the lowest layer to itself.
    chain: Vec<ChainId>,
    /// Bytes of the largest layer that comes with it.
    largest: u64,
}

impl Fetcher {
    /// Makes sure that all layers of an image are in the store.
    ///
    /// # Errors
    /// The first failure; what was published until then stays for the next try.
    pub(crate) async fn ensure(&self, image: &Layers<'_>) -> Result<(), Error> {
        loop {
            let (result, shared) = self.attempt(image).await;
            match result {
                // Another pull's run failed, perhaps for a reason of its own: its credentials, its host. That
                // run is over, so the next attempt starts one of ours in its place.
                Err(error) if shared => {
                    tracing::debug!(%error, "a shared layer failed, trying it alone");
                }
                result => return result,
            }
        }
    }

    /// The outcome, and whether a run of somebody else had a part in it.
    async fn attempt(&self, image: &Layers<'_>) -> (Result<(), Error>, bool) {
        let chain = image.chain.iter().enumerate();
        let missing: BTreeSet<usize> = chain
            .filter(|(_, layer)| !self.shelf.has_layer(layer))
            .map(|(index, _)| index)
            .collect();
        let sizes = missing.iter().filter_map(|n| image.descriptors.get(*n));
        let largest = sizes.map(Descriptor::size).max().unwrap_or(0);
        let mut below: Option<LayerTicket> = None;
        let mut tickets = Vec::with_capacity(missing.len());
        let layers = image.descriptors.iter().zip(image.diff_ids).enumerate();
        for (index, (descriptor, diff_id)) in layers.filter(|(n, _)| missing.contains(n)) {
            let wanted = Wanted {
                descriptor: descriptor.clone(),
                diff_id: *diff_id,
                chain: image.chain[..=index].to_vec(),
                largest,
            };
            let ticket = match self.start(wanted, below) {
                Ok(ticket) => ticket,
                Err(error) => return (Err(error), false),
            };
            below = Some(ticket.clone());
            tickets.push(ticket);
        }
        self.announce(image, &missing, &tickets);
        let shared = tickets.iter().any(|ticket| !ticket.owner);
        for mut ticket in tickets {
            let result = ticket.wait().await.unwrap_or(Err(Error::Interrupted));
            if result.is_err() {
                return (result, shared);
            }
            self.progress.layers_done.fetch_add(1, Ordering::Relaxed);
        }
        (Ok(()), shared)
    }

    fn announce(&self, image: &Layers<'_>, missing: &BTreeSet<usize>, runs: &[LayerTicket]) {
        let there = image.chain.len() - missing.len();
        let sizes = missing.iter().filter_map(|n| image.descriptors.get(*n));
        let bytes = sizes.fold(0, |sum: u64, layer| sum.saturating_add(layer.size()));
        let Progress {
            layers,
            layers_done,
            ..
        } = &*self.progress;
        layers.store(image.chain.len() as u64, Ordering::Relaxed);
        layers_done.store(there as u64, Ordering::Relaxed);
        let runs = runs.iter().map(|run| Arc::clone(&run.progress));
        self.progress.wait_for(bytes, runs.collect());
    }

    fn start(&self, wanted: Wanted, below: Option<LayerTicket>) -> Result<LayerTicket, Error> {
        let fetcher = self.clone();
        let id = wanted.chain.last().copied().unwrap_or(wanted.diff_id);
        let registry = match &self.source {
            Source::Registry(session) => Some(session.repository.reference.registry().to_owned()),
            Source::Archive(_) => None,
        };
        let key = (id, digest_of(&wanted.descriptor)?, registry);
        let work =
            move |bytes: Arc<LayerBytes>| async move { fetcher.layer(wanted, below, &bytes).await };
        Ok(self.flights.join(key, Alone::Cancel, work))
    }

    /// One layer, from the first byte to the store.
    async fn layer(
        self,
        wanted: Wanted,
        below: Option<LayerTicket>,
        bytes: &LayerBytes,
    ) -> Result<(), Error> {
        let permit = self.permits.acquire().await;
        let permit = permit.map_err(|_| Error::Interrupted)?;
        let limits = self.room.limits();
        let mut staged = match self.unpacked(&wanted, &limits, bytes).await {
            Err(Error::Layer { source, .. }) if is_limit(&source, limits.bytes) => {
                return Err(Error::TooLarge(self.room.limit));
            }
            staged => staged?,
        };
        let mut taken = self.room.take(staged.recorded.archive)?;
        drop(permit);
        if let Some(mut below) = below {
            if !below.is_over() {
                // The disk may write meanwhile what would have to be written then.
                let sync = move || staged.layer.sync().map(|()| staged);
                staged = super::on_own_thread(sync).await??;
            }
            below.wait().await.unwrap_or(Err(Error::Interrupted))?;
        }
        super::blocking(move || {
            let room = |bytes| taken.more(bytes);
            self.shelf.publish(staged, &wanted.chain, room)?;
            taken.keep();
            Ok(())
        })
        .await?
    }

    async fn unpacked(
        &self,
        wanted: &Wanted,
        limits: &Limits,
        bytes: &LayerBytes,
    ) -> Result<Staged, Error> {
        let what = What {
            digest: digest_of(&wanted.descriptor)?,
            media_type: wanted.descriptor.media_type().to_string(),
            size: wanted.descriptor.size(),
            diff_id: wanted.diff_id,
            limits: limits.clone(),
            nice: nice(wanted.descriptor.size(), wanted.largest),
        };
        let shelf = self.shelf.clone();
        match &self.source {
            Source::Archive(spool) => {
                let spool = Arc::clone(spool);
                super::on_own_thread(move || {
                    let file = spool.open(&what.digest)?;
                    unpack(&shelf, file, &what)
                })
                .await?
            }
            Source::Registry(session) => self.fetch(session, wanted, &what, bytes).await,
        }
    }

    /// Tries again what may have been spoilt here or at one host.
    async fn fetch(
        &self,
        session: &Session,
        wanted: &Wanted,
        what: &What,
        bytes: &LayerBytes,
    ) -> Result<Staged, Error> {
        loop {
            let mut counted = self.progress.count(bytes);
            let fetched = self.fetched(session, wanted, what, &mut counted).await;
            match fetched {
                Err(error @ Error::Content { .. }) if counted.old > 0 => {
                    tracing::warn!(%error, "what was left of an earlier download is damaged: starting over");
                }
                Err(error @ Error::Content { .. }) if session.distrust(&what.digest) => {
                    tracing::warn!(%error, "asking the next host");
                }
                Ok(staged) => {
                    counted.stay();
                    return Ok(staged);
                }
                failed => return failed,
            }
        }
    }

    /// A layer of a registry, unpacked while it comes.
    async fn fetched(
        &self,
        session: &Session,
        wanted: &Wanted,
        what: &What,
        counted: &mut Counted<'_>,
    ) -> Result<Staged, Error> {
        let (shelf, digest, size) = (self.shelf.clone(), what.digest, what.size);
        let kept = super::blocking(move || Kept::open(&shelf, &digest, size)).await?;
        let (shelf, what) = (self.shelf.clone(), what.clone());
        if size > 0 && kept.length == size {
            counted.add_old(size);
            let download = Download::new(kept, size, size, None);
            return super::on_own_thread(move || unpack_download(&shelf, download, &what)).await?;
        }
        let from = (kept.length > 0).then_some(Resume {
            offset: kept.length,
            version: None,
        });
        let blob = session.resume(&wanted.descriptor, from).await?;
        counted.add_old(blob.start());
        let (sender, receiver) = mpsc::channel(PIECES);
        let download = Download::new(kept, size, blob.start(), Some(receiver));
        let host = blob.host().to_owned();
        let unpacking = super::on_own_thread(move || unpack_download(&shelf, download, &what));
        let (pumped, unpacked) = tokio::join!(pump(blob, sender, counted), unpacking);
        // A stream that broke is the cause of whatever the unpacking says about it.
        pumped?;
        unpacked?.map_err(|error| error.at_host(&host))
    }
}

/// The layers of an image are to be there at the same time, so the processors are shared among them in proportion to their
/// sizes: a step of niceness is a factor of 1.25 (sched(7)). None gets less than a tenth of what the largest gets.
fn nice(size: u64, largest: u64) -> i32 {
    let mut nice = 0;
    let mut share = largest;
    while share > size && nice < 10 {
        share = share / 5 * 4;
        nice += 1;
    }
    nice
}

fn is_limit(error: &crate::layer::Error, bytes: u64) -> bool {
    matches!(error, crate::layer::Error::Limit { limit, .. } if *limit == bytes)
}

/// Moves a body to the thread that unpacks it. Ends early without an error when that thread gave up.
async fn pump(
    mut blob: Blob,
    sender: mpsc::Sender<Piece>,
    counted: &mut Counted<'_>,
) -> Result<(), registry::Error> {
    while let Some(mut bytes) = blob.chunk().await? {
        counted.add(bytes.len() as u64);
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            if sender.send(Piece::Bytes(piece)).await.is_err() {
                return Ok(());
            }
        }
    }
    let _ = sender.send(Piece::End).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_shared_by_size() {
        let mib = |n: u64| n << 20;
        assert_eq!(nice(mib(300), mib(300)), 0);
        assert_eq!(nice(mib(100), mib(300)), 5);
        assert_eq!(nice(mib(30), mib(300)), 10);
        assert_eq!(nice(0, mib(300)), 10);
        assert_eq!(nice(0, 0), 0);
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let room = Arc::new(Room::new(10));
        for _ in 0..3 {
            let mut taken = room.take(5).unwrap();
            taken.more(3).unwrap();
            assert!(matches!(taken.more(3), Err(Error::TooLarge(10))));
            assert!(matches!(room.take(3), Err(Error::TooLarge(10))));
            assert_eq!(room.limits().bytes, 2);
        }
        room.take(8).unwrap().keep();
        assert_eq!(room.limits().bytes, 2);
    }
}
