//! Documents of images, and downloads that were interrupted.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::{Error, MAX_DOCUMENT, Shared, Storage, Thing, failed};
use crate::model::Digest;
use crate::sys::fs::{names, read_limited, write_atomic};

/// An interrupted download that nobody came back for is deleted after this long.
const PARTIAL_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

fn digest_named(name: &OsStr) -> Option<Digest> {
    format!("sha256:{}", name.to_str()?).parse().ok()
}

/// A download that is or was under way. Nobody else has it open; dropped, it stays for the next try.
#[derive(Debug)]
pub struct Partial {
    /// Opened for reading and writing, positioned at its start.
    pub file: File,
    /// Bytes that are there. They may be wrong, for they were not synced: hash them again.
    pub length: u64,
    shared: Arc<Shared>,
    digest: Digest,
}

impl Partial {
    /// Deletes it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn discard(self) -> Result<(), Error> {
        let name = self.digest.hex();
        match rustix::fs::unlinkat(&self.shared.dirs.partial, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => {
                let path = self.shared.root.join("partial").join(name);
                Err(failed("remove", path)(error))
            }
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        self.shared.state().partials.remove(&self.digest);
    }
}

impl Storage {
    /// Keeps a document, durably. One that is there already is written again if it is damaged.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the bytes are not those of the digest, [`Error::TooLarge`], or what the file system says.
    pub fn put_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        let size = bytes.len() as u64;
        if size > MAX_DOCUMENT {
            return Err(Error::TooLarge(*digest));
        }
        if digest_of(bytes) != *digest {
            return Err(Error::Damaged(*digest));
        }
        let name = digest.hex();
        let mode = Mode::RUSR | Mode::WUSR;
        let claim = self.shared.claim(Thing::Blob(*digest));
        // Reading it is a good deal cheaper than two syncs.
        if self.has_blob(digest) && matches!(self.get_blob(digest), Ok(Some(_))) {
            return Ok(());
        }
        write_atomic(self.shared.dirs.blobs.as_fd(), &name, bytes, mode, true)
            .map_err(failed("write", self.path("blobs/sha256").join(&name)))?;
        self.shared.state().blobs.insert(*digest, size);
        drop(claim);
        Ok(())
    }

    /// Whether a document is there.
    pub fn has_blob(&self, digest: &Digest) -> bool {
        self.shared.state().blobs.contains_key(digest)
    }

    /// A document, its digest checked again; none if it is not there.
    ///
    /// # Errors
    /// [`Error::Damaged`], or what the file system says.
    pub fn get_blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>, Error> {
        let name = digest.hex();
        let read = read_limited(
            self.shared.dirs.blobs.as_fd(),
            OsStr::new(&name),
            MAX_DOCUMENT,
        );
        let bytes = match read {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(failed("read", self.path("blobs/sha256").join(&name)))?,
        };
        if digest_of(&bytes) != *digest {
            return Err(Error::Damaged(*digest));
        }
        Ok(Some(bytes))
    }

    /// All documents.
    pub fn blobs(&self) -> Vec<Digest> {
        self.shared.state().blobs.keys().copied().collect()
    }

    /// Removes a document; an absent one is fine.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove_blob(&self, digest: &Digest) -> Result<(), Error> {
        let claim = self.shared.claim(Thing::Blob(*digest));
        self.shared.state().blobs.remove(digest);
        let removed = self.remove_blob_file(digest);
        drop(claim);
        removed
    }

    /// For a document that is claimed and no longer in the state.
    pub(super) fn remove_blob_file(&self, digest: &Digest) -> Result<(), Error> {
        let name = digest.hex();
        match rustix::fs::unlinkat(&self.shared.dirs.blobs, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed("remove", self.path("blobs/sha256").join(name))(
                error,
            )),
        }
    }

    /// Opens or begins the download of a blob.
    ///
    /// # Errors
    /// [`Error::PartialInUse`] while somebody else has it open, or what the file system says.
    pub fn partial(&self, digest: &Digest) -> Result<Partial, Error> {
        if !self.shared.state().partials.insert(*digest) {
            return Err(Error::PartialInUse(*digest));
        }
        let name = digest.hex();
        let open = || -> std::io::Result<(File, u64)> {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mode = Mode::RUSR | Mode::WUSR;
            let file = File::from(rustix::fs::openat(
                &self.shared.dirs.partial,
                &name,
                flags,
                mode,
            )?);
            crash_point!("pull_image.partial.after");
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        match open() {
            Ok((file, length)) => Ok(Partial {
                file,
                length,
                shared: Arc::clone(&self.shared),
                digest: *digest,
            }),
            Err(error) => {
                self.shared.state().partials.remove(digest);
                Err(failed("open", self.path("partial").join(name))(error))
            }
        }
    }

    pub(super) fn load_blobs(&self) -> Result<HashMap<Digest, u64>, Error> {
        let path = self.path("blobs/sha256");
        let dir = &self.shared.dirs.blobs;
        let mut blobs = HashMap::new();
        for name in names(dir.as_fd()).map_err(failed("list", &path))? {
            let Ok(stat) = rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) else {
                tracing::warn!(
                    ?name,
                    "a document cannot be looked at and is taken for absent"
                );
                continue;
            };
            if let Some(digest) = digest_named(&name) {
                blobs.insert(digest, u64::try_from(stat.st_size).unwrap_or(0));
                continue;
            }
            // The file beside one that was being written when we were killed.
            tracing::info!(?name, "removing an unfinished document");
            if let Err(error) = crate::sys::fs::remove_tree(dir.as_fd(), &name) {
                tracing::warn!(?name, %error, "an unfinished document stays");
            }
        }
        Ok(blobs)
    }

    /// Removes interrupted downloads, except those that somebody has open.
    ///
    /// # Errors
    /// The first failure, after everything has been tried.
    pub fn remove_partials(&self) -> Result<(), Error> {
        self.remove_partials_after(Duration::ZERO)
    }

    /// Those that nobody came back for. One that cannot be removed is nobody's reason to fail.
    pub(super) fn sweep_partials(&self) {
        if let Err(error) = self.remove_partials_after(PARTIAL_AGE) {
            tracing::warn!(%error, "an old download stays");
        }
    }

    fn remove_partials_after(&self, age: Duration) -> Result<(), Error> {
        let path = self.path("partial");
        let dir = &self.shared.dirs.partial;
        let mut outcome = Ok(());
        for name in names(dir.as_fd()).map_err(failed("list", &path))? {
            let Ok(stat) = rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let digest = digest_named(&name);
            if digest.is_some() && !age.is_zero() && !is_older(stat.st_mtime, age) {
                continue;
            }
            // As if it were downloaded: nobody opens it meanwhile.
            if digest.is_some_and(|digest| !self.shared.state().partials.insert(digest)) {
                continue;
            }
            let removed = crate::sys::fs::remove_tree(dir.as_fd(), &name);
            if let Some(digest) = digest {
                self.shared.state().partials.remove(&digest);
            }
            outcome = outcome.and(removed.map_err(failed("remove", path.join(&name))));
        }
        outcome
    }
}

/// Whether a time of change, in seconds since the Unix epoch, lies that far back.
fn is_older(seconds: i64, age: Duration) -> bool {
    let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    let passed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + since);
    passed.is_ok_and(|passed| passed > age)
}
