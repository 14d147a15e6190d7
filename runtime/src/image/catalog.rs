//! The images by all their names, in memory.
//!
//! A catalog is a value: a change makes a new one, which is shown to readers only after the index on
//! disk has it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::document;
use super::{Error, Reference};
use crate::model::{ChainId, Digest, Image, ImageConfig, ImageId, ResolvedImage};

/// One image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: ImageId,
    /// `registry/repository:tag`.
    pub(crate) tags: BTreeSet<String>,
    /// `registry/repository@digest`, as pulled.
    pub(crate) digests: BTreeSet<String>,
    /// The manifest of the last pull.
    pub(crate) manifest: Digest,
    /// Its configuration, and all manifests and indexes that led to it.
    pub(crate) documents: BTreeSet<Digest>,
    pub(crate) chain: Vec<ChainId>,
    pub(crate) size: u64,
    pub(crate) config: ImageConfig,
    /// Never collected, whatever its names are.
    pub(crate) pinned: bool,
    /// First pull, nanoseconds since the Unix epoch.
    pub(crate) pulled_at: i64,
    /// `os/architecture[/variant]` that its configuration names.
    pub(crate) platform: String,
}

/// All images.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalog {
    images: BTreeMap<ImageId, Arc<Entry>>,
    tags: HashMap<String, ImageId>,
    digests: HashMap<String, ImageId>,
}

/// What a change does to the index.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// Written as they are in the new catalog.
    pub(crate) put: BTreeSet<ImageId>,
    /// Taken out.
    pub(crate) remove: BTreeSet<ImageId>,
}

impl Catalog {
    pub(crate) fn new(entries: impl IntoIterator<Item = Entry>) -> Self {
        let mut catalog = Self::default();
        for entry in entries {
            catalog.insert(entry);
        }
        catalog
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.images.values()
    }

    pub(crate) fn get(&self, id: &ImageId) -> Option<&Arc<Entry>> {
        self.images.get(id)
    }

    /// The image that has a digest in a repository: of a manifest or of the index that was pulled.
    pub(crate) fn by_digest(&self, name: &str, digest: Digest) -> Option<&Arc<Entry>> {
        if let Some(id) = self.digests.get(&format!("{name}@{digest}")) {
            return self.images.get(id);
        }
        // The manifest inside a pulled index has a digest as well, which users see in manifests and tools.
        self.entries()
            .find(|entry| entry.documents.contains(&digest) && entry.is_in(name))
    }

    /// Whether an image of this repository is there.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.entries().any(|entry| entry.is_in(name))
    }

    /// Any form of row X058.
    pub(crate) fn find(&self, text: &str) -> Result<Option<&Arc<Entry>>, Error> {
        let bare = text.strip_prefix("sha256:").unwrap_or(text);
        let hex = !bare.is_empty()
            && bare.len() <= 64
            && bare
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hex && bare.len() == 64 {
            let id: Option<ImageId> = format!("sha256:{bare}").parse().ok();
            return Ok(id.and_then(|id| self.images.get(&id)));
        }
        let named = match text.parse::<Reference>() {
            Ok(reference) => self.by_reference(&reference),
            Err(_) if hex => None,
            Err(error) => return Err(error.into()),
        };
        match named {
            // A name that is there wins over an id that begins like it.
            Some(entry) => Ok(Some(entry)),
            None if hex => self.by_prefix(bare),
            None => Ok(None),
        }
    }

    fn by_reference(&self, reference: &Reference) -> Option<&Arc<Entry>> {
        if let Some(digest) = reference.digest() {
            return self.by_digest(&reference.name(), digest);
        }
        self.images.get(self.tags.get(&reference.tagged()?)?)
    }

    fn by_prefix(&self, prefix: &str) -> Result<Option<&Arc<Entry>>, Error> {
        let fits = |entry: &&Arc<Entry>| entry.id.hex().starts_with(prefix);
        let mut found = self.entries().filter(fits);
        match (found.next(), found.next()) {
            (first, None) => Ok(first),
            (_, Some(_)) => Err(Error::Ambiguous(prefix.to_owned())),
        }
    }

    fn insert(&mut self, entry: Entry) {
        for tag in &entry.tags {
            self.tags.insert(tag.clone(), entry.id);
        }
        for digest in &entry.digests {
            self.digests.insert(digest.clone(), entry.id);
        }
        self.images.insert(entry.id, Arc::new(entry));
    }

    /// Adds an image, or names to one; a name that another image has moves here.
    pub(crate) fn add(&mut self, mut entry: Entry) -> Change {
        let mut change = Change::default();
        let elsewhere = |map: &HashMap<String, ImageId>, names: &BTreeSet<String>| {
            let ids = names.iter().filter_map(|name| map.get(name).copied());
            ids.filter(|id| *id != entry.id).collect::<BTreeSet<_>>()
        };
        let mut losers = elsewhere(&self.tags, &entry.tags);
        losers.extend(elsewhere(&self.digests, &entry.digests));
        for id in losers {
            if let Some(old) = self.images.get(&id) {
                let mut old = Entry::clone(old);
                old.tags.retain(|tag| !entry.tags.contains(tag));
                old.digests.retain(|digest| !entry.digests.contains(digest));
                self.images.insert(id, Arc::new(old));
                change.put.insert(id);
            }
        }
        if let Some(old) = self.images.get(&entry.id) {
            entry.tags.extend(old.tags.iter().cloned());
            entry.digests.extend(old.digests.iter().cloned());
            entry.documents.extend(old.documents.iter().copied());
            entry.pinned |= old.pinned;
            entry.pulled_at = old.pulled_at;
            if **old == entry && change.put.is_empty() {
                return change;
            }
        }
        change.put.insert(entry.id);
        self.insert(entry);
        change
    }

    /// Takes an image out, with all its names.
    pub(crate) fn remove(&mut self, id: &ImageId) -> Change {
        let mut change = Change::default();
        if let Some(entry) = self.images.remove(id) {
            for tag in &entry.tags {
                self.tags.remove(tag);
            }
            for digest in &entry.digests {
                self.digests.remove(digest);
            }
            change.remove.insert(*id);
        }
        change
    }
}

impl Entry {
    fn is_in(&self, name: &str) -> bool {
        let of = |full: &String, mark: char| {
            let rest = full.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(mark))
        };
        self.digests.iter().any(|full| of(full, '@')) || self.tags.iter().any(|full| of(full, ':'))
    }

    /// As the border tells it. `pinned` are references that are never collected.
    pub(crate) fn image(&self, pinned: &[Reference]) -> Image {
        let named = |reference: &Reference| match reference.digest() {
            Some(digest) => self.documents.contains(&digest) && self.is_in(&reference.name()),
            None => reference
                .tagged()
                .is_some_and(|tag| self.tags.contains(&tag)),
        };
        Image {
            id: self.id,
            repo_tags: self.tags.iter().cloned().collect(),
            repo_digests: self.digests.iter().cloned().collect(),
            size: self.size,
            user: document::user(&self.config.user),
            pinned: self.pinned || pinned.iter().any(named),
            config: self.config.clone(),
            chain: self.chain.clone(),
            platform: self.platform.clone(),
        }
    }

    pub(crate) fn resolved(&self) -> ResolvedImage {
        let id = || self.id.to_string();
        let digest = self.digests.first().cloned();
        ResolvedImage {
            id: self.id,
            name: self
                .tags
                .first()
                .or(self.digests.first())
                .cloned()
                .unwrap_or_else(id),
            reference: digest.unwrap_or_else(id),
            config: self.config.clone(),
            chain: self.chain.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(n: u8) -> Digest {
        Digest::from_bytes([n; 32])
    }

    fn entry(id: u8, tags: &[&str], digests: &[(&str, u8)]) -> Entry {
        Entry {
            id: digest(id),
            tags: tags.iter().map(|t| (*t).to_owned()).collect(),
            digests: digests
                .iter()
                .map(|(r, d)| format!("{r}@{}", digest(*d)))
                .collect(),
            documents: digests
                .iter()
                .map(|(_, d)| digest(*d))
                .chain([digest(id ^ 0x80)])
                .collect(),
            chain: vec![digest(id)],
            size: 1,
            config: ImageConfig::default(),
            manifest: digest(id ^ 0x80),
            pinned: false,
            pulled_at: 1,
            platform: String::new(),
        }
    }

    fn hit(catalog: &Catalog, text: &str) -> Option<u8> {
        catalog
            .find(text)
            .unwrap()
            .map(|entry| entry.id.as_bytes()[0])
    }

    const BUSY: &str = "docker.io/library/busybox";

    #[test]
    fn every_form_of_a_name_finds_the_image() {
        let tag = format!("{BUSY}:latest");
        let catalog = Catalog::new([
            entry(0xab, &[&tag], &[(BUSY, 7)]),
            entry(0xac, &["r.io/cafe:1"], &[]),
            entry(0x12, &["docker.io/library/ab:latest"], &[]),
        ]);
        let index = digest(7);
        let manifest = digest(0xab ^ 0x80);
        for form in [
            "busybox".to_owned(),
            "busybox:latest".to_owned(),
            "docker.io/busybox".to_owned(),
            tag,
            format!("busybox@{index}"),
            format!("busybox:other@{index}"),
            format!("{BUSY}@{manifest}"),
            digest(0xab).to_string(),
            digest(0xab).hex(),
            "abab".to_owned(),
            "sha256:abab".to_owned(),
        ] {
            assert_eq!(hit(&catalog, &form), Some(0xab), "{form}");
        }
        for form in [
            "busybox:1",
            "r.io/busybox",
            "cafe",
            "aba0",
            &format!("r.io/x@{index}"),
        ] {
            assert_eq!(hit(&catalog, form), None, "{form}");
        }
        assert_eq!(hit(&catalog, "ab"), Some(0x12), "a name wins over an id");
        assert!(matches!(catalog.find("a"), Err(Error::Ambiguous(_))));
        for bad in ["", "A", "a b", "sha256:"] {
            assert!(catalog.find(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_retag_moves_the_tag_and_leaves_the_digests() {
        let mut catalog = Catalog::new([entry(1, &["r.io/a:1"], &[("r.io/a", 7)])]);
        let change = catalog.add(entry(2, &["r.io/a:1"], &[("r.io/a", 8)]));
        assert_eq!(change.put, BTreeSet::from([digest(1), digest(2)]));
        let old = catalog.get(&digest(1)).unwrap().image(&[]);
        assert!(old.repo_tags.is_empty());
        assert_eq!(old.repo_digests, [format!("r.io/a@{}", digest(7))]);
        assert_eq!(hit(&catalog, "r.io/a:1"), Some(2));
        let again = catalog.add(entry(2, &["r.io/a:1"], &[("r.io/a", 8)]));
        assert!(again.put.is_empty(), "nothing changed, nothing to write");
        catalog.add(entry(2, &["r.io/a:2", "r.io/b:1"], &[("r.io/b", 8)]));
        let both = catalog
            .get(&digest(2))
            .unwrap()
            .image(&["r.io/b:1".parse().unwrap()]);
        assert_eq!((both.repo_tags.len(), both.repo_digests.len()), (3, 2));
        assert!(both.pinned);
        catalog.remove(&digest(2));
        assert_eq!(hit(&catalog, "r.io/b:1"), None);
        assert_eq!(hit(&catalog, &format!("r.io/b@{}", digest(8))), None);
    }

    proptest! {
        /// However images come and go, every name is found under the image that carries it.
        #[test]
        fn names_and_images_agree(steps in proptest::collection::vec((0_u8..4, 0_u8..4, 0_u8..4, any::<bool>()), 0..20)) {
            let mut catalog = Catalog::default();
            for (id, tag, document, add) in steps {
                if add {
                    let tag = format!("r.io/a:{tag}");
                    catalog.add(entry(id, &[&tag], &[("r.io/a", document)]));
                } else {
                    catalog.remove(&digest(id));
                }
                let mut names = 0;
                for entry in catalog.entries() {
                    for name in &entry.tags {
                        prop_assert_eq!(catalog.tags.get(name), Some(&entry.id));
                    }
                    for name in &entry.digests {
                        prop_assert_eq!(catalog.digests.get(name), Some(&entry.id));
                    }
                    names += entry.tags.len() + entry.digests.len();
                }
                prop_assert_eq!(names, catalog.tags.len() + catalog.digests.len());
            }
        }
    }
}
