//! Looks at everything in the store, repairs what can be, and tells what takes room.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError};

use super::catalog::{Catalog, Change, Entry};
use super::report::{
    CheckReport, DiskUse, Finding, ImageDetails, ImageSummary, LayerDetails, Pruned, Share, Thing,
};
use super::{Error, ImageManager, Inner, Lease, blocking};
use crate::model::{ChainId, Digest, ImageId};
use crate::storage::Verdict;

impl ImageManager {
    /// Looks at every image, layer and document: `quick` whether they are there, else at all of their bytes, which
    /// takes as long as reading them. With `repair` what is damaged is taken away, with the images that need it,
    /// so that the next pull fetches exactly that again; and what an index that was lost alone had named is given up.
    ///
    /// # Errors
    /// What kept it from looking or repairing.
    pub async fn check(&self, quick: bool, repair: bool) -> Result<CheckReport, Error> {
        let inner = Arc::clone(&self.inner);
        // A task of its own: a caller that goes away must not leave a repair half done.
        let work = blocking(move || Checker::new(&inner, quick).run(repair));
        tokio::spawn(work).await.map_err(|_| Error::Interrupted)??
    }

    /// All images, for an operator.
    pub fn summaries(&self) -> Vec<ImageSummary> {
        let catalog = self.inner.catalog();
        let used = self.inner.used();
        let entries = catalog.entries();
        entries
            .map(|entry| self.inner.summary(entry, &used))
            .collect()
    }

    /// All about an image; none if there is no such image.
    ///
    /// # Errors
    /// A malformed reference.
    pub fn inspect(&self, reference: &str) -> Result<Option<ImageDetails>, Error> {
        let catalog = self.inner.catalog();
        let Some(entry) = catalog.find(reference)? else {
            return Ok(None);
        };
        let layer = |chain: &ChainId| {
            let info = self.inner.shelf.storage.layer_info(chain)?;
            let images = catalog.entries().filter(|one| one.chain.contains(chain));
            Some(LayerDetails {
                chain: *chain,
                diff_id: info.diff_id,
                blob: info.blob,
                size: info.blob_size,
                disk: info.bytes,
                inodes: info.inodes,
                images: images.count() as u64,
                archive: info.archive.is_some(),
            })
        };
        Ok(Some(ImageDetails {
            summary: self.inner.summary(entry, &self.inner.used()),
            manifest: entry.manifest,
            documents: entry.documents.iter().copied().collect(),
            config: entry.config.clone(),
            layers: entry.chain.iter().filter_map(layer).collect(),
        }))
    }

    /// Removes images without a tag that no container uses, with `all` also those with one, and interrupted
    /// downloads; never a pinned image. Then everything that nobody needs.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn prune(&self, all: bool) -> Result<Pruned, Error> {
        let inner = Arc::clone(&self.inner);
        let work = blocking(move || {
            let taken = || -> Result<u64, Error> {
                let storage = &inner.shelf.storage;
                Ok(storage.usage().bytes + storage.partial_usage()?.bytes)
            };
            let before = taken()?;
            let mut images = Vec::new();
            let writer = inner.writer.lock().unwrap_or_else(PoisonError::into_inner);
            inner.change(|catalog| {
                let mut change = Change::default();
                for id in inner.unused(catalog, all) {
                    images.extend(catalog.get(&id).map(|entry| entry.best_name()));
                    change.remove.extend(catalog.remove(&id).remove);
                }
                change
            })?;
            drop(writer);
            if all {
                inner.shelf.storage.remove_partials()?;
            }
            inner.shelf.collect()?;
            Ok(Pruned {
                images,
                bytes: before.saturating_sub(taken()?),
            })
        });
        tokio::spawn(work).await.map_err(|_| Error::Interrupted)??
    }

    /// What takes room, and how much of it could be had back. Walks the containers' writable layers now and then.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn disk_use(&self) -> Result<DiskUse, Error> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.disk_use()).await?
    }
}

impl Entry {
    /// The first tag, else a name with a digest, else the id.
    pub(super) fn best_name(&self) -> String {
        let name = self.tags.first().or(self.digests.first());
        name.cloned().unwrap_or_else(|| self.id.to_string())
    }
}

impl Inner {
    /// The stacks of layers that containers stand on.
    fn used(&self) -> HashSet<Vec<ChainId>> {
        self.shelf.storage.used_chains().into_iter().collect()
    }

    fn summary(&self, entry: &Entry, used: &HashSet<Vec<ChainId>>) -> ImageSummary {
        let image = entry.image(&self.pinned);
        let layers = entry.chain.iter().collect::<BTreeSet<_>>();
        ImageSummary {
            id: image.id.to_string(),
            tags: image.repo_tags,
            digests: image.repo_digests,
            size: image.size,
            pinned: image.pinned,
            disk: layers
                .iter()
                .map(|layer| self.shelf.storage.layer_usage(layer))
                .sum(),
            pulled_at: entry.pulled_at,
            in_use: used.contains(&entry.chain),
        }
    }

    fn unused(&self, catalog: &Catalog, all: bool) -> Vec<ImageId> {
        let used = self.used();
        let entries = catalog.entries();
        let unused = entries.filter(|entry| {
            !used.contains(&entry.chain)
                && (all || entry.tags.is_empty())
                && !entry.image(&self.pinned).pinned
        });
        unused.map(|entry| entry.id).collect()
    }

    fn disk_use(&self) -> Result<DiskUse, Error> {
        let storage = &self.shelf.storage;
        let catalog = self.catalog();
        let used = self.used();
        let bytes = |layers: &BTreeSet<ChainId>| -> u64 {
            layers.iter().map(|layer| storage.layer_usage(layer)).sum()
        };
        let all: BTreeSet<ChainId> = storage.layers().into_iter().collect();
        let named: BTreeSet<ChainId> = catalog.entries().flat_map(|e| e.chain.clone()).collect();
        let below: BTreeSet<ChainId> = used.iter().flatten().copied().collect();
        let unused: HashSet<ImageId> = self.unused(&catalog, true).into_iter().collect();
        let needed: BTreeSet<ChainId> = catalog
            .entries()
            .filter(|entry| !unused.contains(&entry.id))
            .flat_map(|entry| entry.chain.clone())
            .chain(below.iter().copied())
            .collect();
        let orphans: BTreeSet<ChainId> = &(&all - &named) - &below;
        let whole = storage.usage().bytes;
        let layers = bytes(&all);
        let partial = storage.partial_usage()?;
        let containers = self.shelf.container_usage()?;
        let disk = rustix::fs::statvfs(storage.root()).map_err(|error| {
            Error::from(crate::storage::Error::Io {
                action: "look at",
                path: storage.root().to_owned(),
                source: error.into(),
            })
        })?;
        Ok(DiskUse {
            root: storage.root().to_owned(),
            images: Share {
                count: catalog.entries().count() as u64,
                bytes: bytes(&named),
                reclaimable: bytes(&(&named - &needed)),
            },
            layers: Share {
                count: all.len() as u64,
                bytes: layers,
                reclaimable: bytes(&orphans),
            },
            documents: Share {
                count: storage.blobs().len() as u64,
                bytes: whole.saturating_sub(layers),
                reclaimable: 0,
            },
            partial: Share {
                count: partial.inodes.saturating_sub(1),
                bytes: partial.bytes,
                reclaimable: partial.bytes,
            },
            containers: Share {
                count: storage.snapshots().len() as u64,
                bytes: containers.used_bytes,
                reclaimable: 0,
            },
            total: disk.f_blocks * disk.f_frsize,
            free: disk.f_bavail * disk.f_frsize,
            inodes: disk.f_files,
            inodes_free: disk.f_ffree,
        })
    }
}

/// One check.
struct Checker<'a> {
    inner: &'a Inner,
    quick: bool,
    catalog: Arc<Catalog>,
    /// Keeps what is looked at from being collected meanwhile.
    lease: Lease,
    report: CheckReport,
    layers: HashMap<ChainId, String>,
    documents: HashMap<Digest, String>,
}

impl<'a> Checker<'a> {
    fn new(inner: &'a Inner, quick: bool) -> Self {
        Self {
            inner,
            quick,
            catalog: inner.catalog(),
            lease: inner.shelf.lease(),
            report: CheckReport::default(),
            layers: HashMap::new(),
            documents: HashMap::new(),
        }
    }

    fn run(mut self, repair: bool) -> Result<CheckReport, Error> {
        self.look_at_layers()?;
        self.look_at_documents()?;
        self.look_at_images();
        self.look_at_index();
        if repair && !self.report.findings.is_empty() {
            self.repair()?;
        }
        Ok(self.report)
    }

    fn look_at_layers(&mut self) -> Result<(), Error> {
        let storage = &self.inner.shelf.storage;
        for chain in storage.layers() {
            self.lease.hold_layer(chain);
            self.report.layers += 1;
            match storage.verify_layer(&chain, self.quick)? {
                Verdict::Damaged(problem) => {
                    self.find(Thing::Layer, chain, &problem);
                    self.layers.insert(chain, problem);
                }
                Verdict::Unverifiable => self.report.unverifiable.push(chain),
                // Collected since it was listed.
                Verdict::Whole | Verdict::Absent => {}
            }
        }
        Ok(())
    }

    fn look_at_documents(&mut self) -> Result<(), Error> {
        let storage = &self.inner.shelf.storage;
        for digest in storage.blobs() {
            self.lease.hold_blob(digest);
            self.report.documents += 1;
            let verdict = storage.verify_blob(&digest)?;
            let problem = match verdict {
                Verdict::Damaged(problem) => problem,
                // It was listed: somebody deleted the file.
                Verdict::Absent if storage.has_blob(&digest) => "it is gone".to_owned(),
                _ => continue,
            };
            self.find(Thing::Document, digest, &problem);
            self.documents.insert(digest, problem);
        }
        Ok(())
    }

    /// What an image names and the store does not have.
    fn look_at_images(&mut self) {
        let storage = &self.inner.shelf.storage;
        let catalog = Arc::clone(&self.catalog);
        let (mut layers, mut documents) = (HashSet::new(), HashSet::new());
        for entry in catalog.entries() {
            self.report.images += 1;
            let layer = entry.chain.iter().find(|layer| !storage.has_layer(layer));
            let document = entry.documents.iter().find(|doc| !storage.has_blob(doc));
            let lacks = layer.map(|layer| format!("it lacks layer {layer}"));
            let lacks = lacks.or(document.map(|doc| format!("it lacks document {doc}")));
            if let Some(problem) = lacks {
                self.report.findings.push(Finding {
                    thing: Thing::Image,
                    what: entry.id.to_string(),
                    problem,
                    images: vec![entry.best_name()],
                });
            }
            layers.extend(entry.chain.iter().copied());
            documents.extend(entry.documents.iter().copied());
        }
        layers.extend(storage.used_chains().into_iter().flatten());
        let orphans = storage
            .layers()
            .iter()
            .filter(|layer| !layers.contains(*layer))
            .count();
        let documents = storage
            .blobs()
            .iter()
            .filter(|digest| !documents.contains(*digest))
            .count();
        self.report.orphans = (orphans + documents) as u64;
    }

    fn look_at_index(&mut self) {
        if self.inner.shelf.storage.index().lost_at().is_some() {
            let path = self.inner.shelf.storage.root().join("index.redb");
            self.report.findings.push(Finding {
                thing: Thing::Index,
                what: path.display().to_string(),
                problem: "it was damaged, and images may be missing that it had; what only they need is kept".to_owned(),
                images: Vec::new(),
            });
        }
    }

    fn find(&mut self, thing: Thing, digest: Digest, problem: &str) {
        let needs = |entry: &&Arc<Entry>| match thing {
            Thing::Layer => entry.chain.contains(&digest),
            _ => entry.documents.contains(&digest),
        };
        let images = self.catalog.entries().filter(needs);
        let images = images.map(|entry| entry.best_name()).collect();
        tracing::warn!(?thing, %digest, problem, ?images, "a check found damage");
        self.report.findings.push(Finding {
            thing,
            what: digest.to_string(),
            problem: problem.to_owned(),
            images,
        });
    }

    fn repair(&mut self) -> Result<(), Error> {
        let storage = &self.inner.shelf.storage;
        // Whoever adds an image meanwhile comes before, and is looked at, or after, and finds its layers gone.
        let writer = self.inner.writer.lock();
        let writer = writer.unwrap_or_else(PoisonError::into_inner);
        let layers = self.layers.keys().map(|chain| storage.discard_layer(chain));
        let documents = self.documents.keys();
        let documents = documents.map(|digest| storage.remove_blob(digest));
        // What a disk can neither read nor delete is out of use nevertheless, and keeps nobody else from being repaired.
        for error in layers.chain(documents).filter_map(Result::err) {
            let text = crate::model::chain(&error);
            tracing::warn!(error = text, "what is damaged cannot be deleted");
            self.report.stays.push(text);
        }
        let mut dropped = Vec::new();
        self.inner.change(|catalog| {
            let broken = catalog.entries().filter(|entry| {
                let layers = entry.chain.iter().all(|layer| storage.has_layer(layer));
                !layers || !entry.documents.iter().all(|doc| storage.has_blob(doc))
            });
            let broken: Vec<ImageId> = broken.map(|entry| entry.id).collect();
            let mut change = Change::default();
            for id in broken {
                dropped.extend(catalog.get(&id).map(|entry| entry.best_name()));
                change.remove.extend(catalog.remove(&id).remove);
            }
            change
        })?;
        storage.index().forget_loss()?;
        drop(writer);
        self.report.dropped = dropped;
        self.report.repaired = true;
        // What only the damaged images needed stays for the next pull of them.
        Ok(())
    }
}
