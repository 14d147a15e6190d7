//! From a tag or a digest to a manifest for this machine.

use super::search::{Search, Step, ToldBy};
use super::{Document, Error, MAX_CONFIG, Manifest, Platform, Session, Target};
use crate::model::Digest;

/// The documents that lead to an image: indexes first, the manifest last.
#[derive(Debug)]
pub struct Resolved {
    /// Digest and bytes of each.
    pub documents: Vec<(Digest, Vec<u8>)>,
    /// The last of them.
    pub manifest: Manifest,
    /// Where the first came from.
    pub host: String,
    /// Who says that the image is for this machine.
    pub told_by: ToldBy,
}

impl Resolved {
    /// Whether an image may be kept whose configuration says that it is for this machine or another one, and what is to be
    /// said about it. Programs of another architecture may run through an emulator (binfmt_misc), those of another system
    /// never do.
    ///
    /// # Errors
    /// A sentence for the user.
    pub fn fits(&self, platform: &Platform) -> Result<Option<String>, String> {
        let why = match self.told_by {
            _ if platform.runs_here() => return Ok(None),
            ToldBy::Index => "the index that names it says that it is for this machine",
            ToldBy::Name if platform.is_some_linux() => "it was asked for by its own name",
            ToldBy::Name | ToldBy::Configuration => {
                return Err(format!(
                    "the image is for {platform}, which does not run on this machine"
                ));
            }
        };
        Ok(Some(format!(
            "the image says that it is for {platform}, and is taken because {why}: its programs may not run here"
        )))
    }
}

impl Session {
    /// Follows a target to the manifest for this machine.
    ///
    /// # Errors
    /// What the hosts said, and what the documents are not; see [`Error`].
    pub async fn resolve(&self, target: &Target<'_>) -> Result<Resolved, Error> {
        let first = self.manifest(target).await?;
        let host = first.host.clone();
        let mut search = Search::default();
        let mut outcome = self.step(&mut search, first).await;
        loop {
            let next = match outcome {
                Ok(Found::Image(manifest)) => {
                    return Ok(Resolved {
                        told_by: search.told_by(),
                        documents: search.into_way(),
                        manifest: *manifest,
                        host,
                    });
                }
                Ok(Found::Document(next)) => next,
                Err(error) if is_of_the_image(&error) => search.retreat(error)?,
                Err(error) => return Err(error),
            };
            outcome = match self.manifest(&Target::Digest(next)).await {
                Ok(document) => self.step(&mut search, document).await,
                Err(error) => Err(error),
            };
        }
    }

    async fn step(&self, search: &mut Search<Error>, document: Document) -> Result<Found, Error> {
        let Document {
            digest,
            bytes,
            content,
            ..
        } = document;
        let kind = content.kind();
        let bad = |reason| Error::Document {
            what: format!("{kind} {digest}"),
            reason,
        };
        let manifest = match search.enter(digest, bytes, content).map_err(bad)? {
            Step::Document(next) => return Ok(Found::Document(next)),
            Step::Image(manifest) => return Ok(Found::Image(manifest)),
            Step::Perhaps(manifest) => manifest,
        };
        let config = self.document(manifest.config(), MAX_CONFIG).await?;
        search.confirm(&config).map_err(|reason| Error::Document {
            what: format!("image configuration {}", manifest.config().digest()),
            reason,
        })?;
        Ok(Found::Image(manifest))
    }
}

enum Found {
    Document(Digest),
    Image(Box<Manifest>),
}

/// Whether an error tells of what was asked for, and not of who was asked.
fn is_of_the_image(error: &Error) -> bool {
    match error {
        Error::Document { .. } | Error::NotFound { .. } => true,
        Error::Everywhere { counts, errors } => errors.get(*counts).is_some_and(is_of_the_image),
        _ => false,
    }
}
