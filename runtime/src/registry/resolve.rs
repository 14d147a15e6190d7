//! From a tag or a digest to a manifest for this machine.

use oci_spec::image::ImageManifest;

use super::{Content, Document, Error, Session, Target, choose};
use crate::model::Digest;

/// Indexes within indexes that are followed (CVE-2026-53493).
const MAX_DEPTH: usize = 2;

/// The documents that lead to an image: indexes first, the manifest last.
#[derive(Debug)]
pub struct Resolved {
    /// Digest and bytes of each.
    pub documents: Vec<(Digest, Vec<u8>)>,
    /// The last of them.
    pub manifest: ImageManifest,
    /// Where the first came from.
    pub host: String,
}

impl Session {
    /// Follows a target to the manifest for this machine.
    ///
    /// # Errors
    /// What the hosts said, and what the documents are not; see [`Error`].
    pub async fn resolve(&self, target: &Target<'_>) -> Result<Resolved, Error> {
        let mut document = self.manifest(target).await?;
        let host = document.host.clone();
        let mut documents = Vec::new();
        for _ in 0..=MAX_DEPTH {
            let Document {
                bytes,
                digest,
                content,
                ..
            } = document;
            documents.push((digest, bytes));
            let index = match content {
                Content::Manifest(manifest) => {
                    return Ok(Resolved {
                        documents,
                        manifest: *manifest,
                        host,
                    });
                }
                Content::Index(index) => index,
            };
            let bad = |reason| Error::Document {
                what: format!("image index {digest}"),
                reason,
            };
            let child = choose(&index).map_err(bad)?.digest().to_string();
            let child = child.parse::<Digest>().map_err(|e| bad(e.to_string()))?;
            document = self.manifest(&Target::Digest(child)).await?;
        }
        Err(Error::Document {
            what: format!("image index {}", document.digest),
            reason: format!("indexes are nested more than {MAX_DEPTH} deep"),
        })
    }
}
