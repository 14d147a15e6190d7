//! Layers: from compressed bytes to a directory tree, with hostile input in mind.
//!
//! The way of a layer, all of it streaming and blocking:
//!
//! ```text
//! one thread:        bytes -> HashingReader (digest) -> Decoder (gzip, zstd, plain) -> Producer
//! another thread:    Ahead -> HashingReader (diff id) -> apply -> staged directory
//! staged directory + view of the layers below -> finish -> ready to publish
//! ```
//!
//! [`apply()`] knows nothing of the layers below, so that all layers of an image can be applied at once
//! while their bytes arrive. What depends on them is written down in [`Applied`] and done by [`finish()`]:
//!
//! * a directory that the archive only implies (`a/b` without `a`) gets mode, owner, extended attributes
//!   and time from the directory below, as it would if the archive were unpacked on top of it;
//! * a hard link to a file that only a lower layer has gets that file's content and attributes, and the
//!   file itself is carried along under its own name, as an overlay does when such a link is made.
//!
//! What comes out is what containerd's unpacking on an overlay leaves, with these deliberate differences:
//!
//! * a name that leads above the root is refused (containerd confines it), so is a hard link whose target goes up from a
//!   symbolic link, and what the tar parser finds ambiguous: see [`Error`] and the tests named after rows S1 to S25 of the
//!   threat list;
//! * an implied directory keeps the time that it has below (containerd: the time of unpacking);
//! * the holes of a sparse file are holes (containerd writes zeros);
//! * a hard link to a file of a lower layer works (containerd fails), and the entry of a hard link takes no capability
//!   away from the file when it says nothing new of owner and mode;
//! * of extended attributes only `security.capability`, access control lists and `user.*` are kept, and of those not
//!   `user.overlay.*`: an image cannot say `redirect` or `opaque` itself, nor speak to the host's security modules.
//!   The others are counted and dropped, and so are those that the file system does not know;
//! * a whiteout concerns lower layers only, in whatever order the entries come (OCI image-spec, layer.md; containerd
//!   fails when the name is there already); a character device 0/0 is one, because overlayfs takes it for one;
//! * what aufs kept for itself (`.wh..wh.plnk` and the like) is left out, as in Docker.
//!
//! The same as in containerd, and not what the archive says: the root directory belongs to root with mode 0755, and a time
//! before 1970 or after 2262 becomes 1970-01-01.

mod ahead;
mod apply;
mod decode;
mod finish;
mod hash;
mod tar;

use std::io;

pub(crate) use crate::tarball::Type;
pub use ahead::{Ahead, Producer, ahead};
pub use apply::apply;
pub use decode::{Compression, Decoder, MAX_WINDOW_LOG, UnsupportedLayer};
pub use finish::finish;
pub use hash::HashingReader;
pub(crate) use tar::Archive;

use crate::model::{Kind, Kinded};

/// How much one layer may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries and the directories that they imply, and with them inodes.
    pub entries: u64,
    /// Bytes of the whole uncompressed archive, padding and what follows its end included; and of what is unpacked
    /// together with what its hard links copy from lower layers.
    pub bytes: u64,
    /// Bytes of a name or link target.
    pub path: usize,
    /// Bytes of one extended header, long name or sparse map.
    pub header: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 4_000_000,
            bytes: 128 << 30,
            path: 4095,
            header: 1 << 20,
        }
    }
}

/// What was made of a layer's archive.
#[derive(Debug, Default)]
pub struct Applied {
    /// Entries of the archive.
    pub entries: u64,
    /// Allocated bytes, directories included.
    pub bytes: u64,
    /// Inodes, the root directory included.
    pub inodes: u64,
    /// Extended attributes that were not taken over.
    pub dropped_xattrs: u64,
    /// An entry took the place of an earlier one, whose content is gone.
    pub replaced: bool,
    /// Directories that no entry describes; each has the extended attribute [`IMPLIED`].
    pub implied: u64,
    /// Files that stand for a hard link to something in a lower layer: empty, with the extended attribute [`LINK`].
    pub deferred: u64,
    /// What it was applied with, for what [`finish()`] adds.
    limits: Limits,
}

impl Applied {
    /// Whether [`finish()`] has anything to do.
    pub fn needs_lower(&self) -> bool {
        self.implied > 0 || self.deferred > 0
    }
}

/// Marks a directory that gets its attributes from below. Marks are on the disk and not in memory, because there is
/// no end to what one archive may imply; in `trusted.`, which no archive can set.
pub const IMPLIED: &str = "trusted.berth.implied";

/// Marks a file that gets its content from below: the value is the name that the archive says it is a link to.
pub const LINK: &str = "trusted.berth.link";

/// Why a layer was not applied. What is in the directory by then is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes stopped coming, or do not decompress.
    #[error("cannot read the layer")]
    Read(#[source] io::Error),
    /// No tar archive, or one that readers disagree about.
    #[error("malformed layer archive at byte {offset}: {what}")]
    Malformed {
        /// Where the header starts.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// An entry that has no business in a layer.
    #[error("layer entry {name:?} refused: {why}")]
    Refused {
        /// Name, shortened.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// More than [`Limits`] allow.
    #[error("layer exceeds the limit of {limit} {what}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How much.
        limit: u64,
    },
    /// The file system said no.
    #[error("cannot {action} layer entry {name:?}")]
    Entry {
        /// What was being done.
        action: &'static str,
        /// Name, shortened.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::Entry { source, .. } | Self::Read(source)
                if matches!(
                    source.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                ) =>
            {
                Kind::ResourceExhausted
            }
            _ => Kind::Unknown,
        }
    }
}

impl Error {
    fn refused(name: &[u8], why: &'static str) -> Self {
        Self::Refused {
            name: shown(name),
            why,
        }
    }

    fn entry(action: &'static str, name: &[u8], source: impl Into<io::Error>) -> Self {
        Self::Entry {
            action,
            name: shown(name),
            source: source.into(),
        }
    }
}

/// A name from an archive for an error message: of bounded length.
fn shown(name: &[u8]) -> String {
    const LENGTH: usize = 200;
    let text = String::from_utf8_lossy(name.get(..LENGTH).unwrap_or(name));
    if name.len() > LENGTH {
        format!("{text}…")
    } else {
        text.into_owned()
    }
}

#[cfg(test)]
pub(crate) mod tests;
