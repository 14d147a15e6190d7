//! The way from a document through indexes to an image for this machine.
//!
//! An entry that says for which machine it is, is believed, whatever the image's configuration says. Of those that do not
//! say, each is looked at until one turns out to be an image that runs here: an odd one spoils nothing.

use std::collections::BTreeSet;

use super::manifest::{Content, Manifest};
use super::platform::Platform;
use crate::model::Digest;

/// Indexes within indexes that are followed (CVE-2026-53493).
const MAX_DEPTH: usize = 8;
/// Documents that are looked at in all.
const MAX_DOCUMENTS: usize = 64;
/// Bytes of the documents on the way to an image, which are kept with it.
const MAX_WAY: usize = 16 << 20;
/// Entries that do not say for which machine they are, and are looked at nevertheless.
const MAX_GUESSES: usize = 16;

/// Where a search is. `E` is what went wrong on the way.
#[derive(Debug)]
pub struct Search<E> {
    /// The documents up to here.
    way: Vec<(Digest, Vec<u8>)>,
    /// Entries that may be tried, with the length of the way to their index; the next one last.
    open: Vec<(usize, Digest)>,
    /// What was tried or may be, so that nothing is tried twice.
    known: BTreeSet<Digest>,
    guesses: usize,
    /// Documents that were looked at.
    looked_at: usize,
    told_by: ToldBy,
    /// Why the first guess was wrong.
    failed: Option<E>,
}

/// Who says that an image is for this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToldBy {
    /// Nobody but whoever asked for it: no index led to it.
    #[default]
    Name,
    /// The entry of an index.
    Index,
    /// Its configuration, or nobody: the entry of the index does not say.
    Configuration,
}

/// What a document leads to.
#[derive(Debug)]
pub enum Step {
    /// Another document.
    Document(Digest),
    /// An image that is for this machine.
    Image(Box<Manifest>),
    /// An image that is, if its configuration says so.
    Perhaps(Box<Manifest>),
}

impl<E> Default for Search<E> {
    fn default() -> Self {
        Self {
            way: Vec::new(),
            open: Vec::new(),
            known: BTreeSet::new(),
            guesses: 0,
            looked_at: 0,
            told_by: ToldBy::default(),
            failed: None,
        }
    }
}

impl<E> Search<E> {
    /// That begins at what the entry of a list names: one that says for which machine it is, or that does not.
    pub fn from_entry(told_by: ToldBy) -> Self {
        Self {
            told_by,
            ..Self::default()
        }
    }

    /// Who says that the image is for this machine that the search came to.
    pub fn told_by(&self) -> ToldBy {
        self.told_by
    }

    /// Goes on with a document.
    ///
    /// # Errors
    /// A sentence for the user: the way ends here.
    pub fn enter(
        &mut self,
        digest: Digest,
        bytes: Vec<u8>,
        content: Content,
    ) -> Result<Step, String> {
        self.way.push((digest, bytes));
        self.looked_at += 1;
        let length = self.way.iter().map(|(_, bytes)| bytes.len());
        if length.sum::<usize>() > MAX_WAY {
            return Err(format!(
                "the documents that lead to it have more than {MAX_WAY} bytes"
            ));
        }
        let index = match content {
            // Where there is no other way, whoever reads the configuration will tell.
            Content::Manifest(manifest)
                if self.told_by == ToldBy::Configuration
                    && !(self.open.is_empty() && self.failed.is_none()) =>
            {
                return Ok(Step::Perhaps(manifest));
            }
            Content::Manifest(manifest) => return Ok(Step::Image(manifest)),
            Content::Artifact(what) => return Err(what),
            Content::Index(index) => index,
        };
        if self.way.len() > MAX_DEPTH {
            return Err(format!("indexes are nested more than {MAX_DEPTH} deep"));
        }
        let candidates = index.candidates()?;
        let (first, others) = candidates.split_first().ok_or("it is empty")?;
        self.told_by = match first.platform() {
            Some(_) => ToldBy::Index,
            None => {
                self.guesses = self.guesses.max(1);
                ToldBy::Configuration
            }
        };
        let next = first.digest().parse();
        self.known.extend(next.as_ref().ok());
        let others = others
            .iter()
            .filter_map(|entry| entry.digest().parse().ok());
        let others = others.filter(|digest| self.known.insert(*digest));
        let others: Vec<Digest> = others.take(MAX_GUESSES).collect();
        let depth = self.way.len();
        let others = others.into_iter().rev().map(|digest| (depth, digest));
        self.open.extend(others);
        next.map(Step::Document)
            .map_err(|error: crate::model::NotADigest| error.to_string())
    }

    /// Whether the image of [`Step::Perhaps`] is for this machine.
    ///
    /// # Errors
    /// A sentence for the user.
    pub fn confirm(&self, config: &[u8]) -> Result<(), String> {
        let platform = Platform::of_configuration(config)?;
        match platform.runs_here() {
            true => Ok(()),
            false => Err(format!(
                "the image is for {platform}, which does not run on this machine"
            )),
        }
    }

    /// Goes back to the next entry that may be tried, because this way ended.
    ///
    /// # Errors
    /// There is none: why the first way ended.
    pub fn retreat(&mut self, error: E) -> Result<Digest, E> {
        let error = match self.failed.take() {
            Some(first) => first,
            None => error,
        };
        match self.open.pop() {
            Some((depth, digest))
                if self.guesses < MAX_GUESSES && self.looked_at < MAX_DOCUMENTS =>
            {
                self.guesses += 1;
                // Only those stand open that do not say.
                self.told_by = ToldBy::Configuration;
                self.way.truncate(depth);
                self.failed = Some(error);
                Ok(digest)
            }
            _ => Err(error),
        }
    }

    /// The documents that led here.
    pub fn into_way(self) -> Vec<(Digest, Vec<u8>)> {
        self.way
    }
}
