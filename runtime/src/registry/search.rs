//! The way from a document through indexes to an image for this machine.
//!
//! An entry that says for which machine it is, is believed. Of those that do not say, each is looked at until one turns
//! out to be an image that runs here: an odd one spoils nothing.

use std::collections::BTreeSet;

use super::manifest::{Content, Manifest};
use super::platform::Platform;
use crate::model::Digest;

/// Indexes within indexes that are followed (CVE-2026-53493).
const MAX_DEPTH: usize = 2;
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
    /// Why the first guess was wrong.
    failed: Option<E>,
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
            failed: None,
        }
    }
}

impl<E> Search<E> {
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
        let index = match content {
            // Where there is no other way, whoever reads the configuration will tell.
            Content::Manifest(manifest)
                if self.guesses > 0 && !(self.open.is_empty() && self.failed.is_none()) =>
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
        if first.platform().is_none() {
            self.guesses = self.guesses.max(1);
        }
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
            Some((depth, digest)) if self.guesses < MAX_GUESSES => {
                self.guesses += 1;
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
