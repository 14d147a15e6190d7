//! Whether what is kept is what it should be.
//!
//! The quick look costs two system calls a layer and finds what is not there. The thorough one reads every byte: a
//! layer's archive is made again and its digest compared with the one that the image's configuration names, and its files
//! are counted. It finds content, types, modes and owners that changed, files that are missing and files that are too many;
//! extended attributes and times it does not look at.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType};
use sha2::{Digest as _, Sha256};

use super::recipe::{Compare, Replay, is_fault};
use super::{Error, Storage, Usage, failed, is_unreadable, open};
use crate::model::{ChainId, Digest};
use crate::sys::fs::open_dir;

/// Read and hashed at a time, bytes.
const PIECE: usize = 256 << 10;

/// What a look at a layer or document came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is as it was.
    Whole,
    /// What could be looked at is; its content cannot be compared with anything.
    Unverifiable,
    /// It is not there.
    Absent,
    /// It is not what it should be.
    Damaged(String),
}

impl Storage {
    /// Looks at a layer. `quick`: only whether it is there. The caller has to hold the layer by a lease, or to
    /// bear with a collection that comes between.
    ///
    /// # Errors
    /// What kept it from looking; a layer that cannot be read is damaged.
    pub fn verify_layer(&self, chain: &ChainId, quick: bool) -> Result<Verdict, Error> {
        match self.look_at_layer(chain, quick) {
            Err(Error::Io { source, .. }) if is_unreadable(&source) => Ok(unreadable(&source)),
            verdict => verdict,
        }
    }

    fn look_at_layer(&self, chain: &ChainId, quick: bool) -> Result<Verdict, Error> {
        let Some(info) = self.layer_info(chain) else {
            return Ok(Verdict::Absent);
        };
        let path = self.path("layers").join(chain.hex());
        let dir = match open(&self.shared.dirs.layers, &format!("{}/fs", chain.hex())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Verdict::Damaged("its files are gone".to_owned()));
            }
            dir => dir.map_err(failed("open", &path))?,
        };
        let name = chain.hex();
        if super::layers::read_meta(&self.shared.dirs.layers, name.as_ref()).is_none() {
            let text = "its meta.json is gone or damaged";
            return Ok(Verdict::Damaged(text.to_owned()));
        }
        if quick {
            return Ok(Verdict::Whole);
        }
        let found = count(dir).map_err(failed("look at", &path))?;
        if found.inodes != info.inodes {
            let text = format!("it has {} files, not {}", found.inodes, info.inodes);
            return Ok(Verdict::Damaged(text));
        }
        if info.archive.is_none() {
            return Ok(Verdict::Unverifiable);
        }
        let read = match self.replay(chain, Compare::Entries) {
            Ok(replay) => digest_of(replay),
            Err(Error::Io { source, .. }) => Err(source),
            Err(error) => return Err(error),
        };
        match read {
            Ok(digest) if digest == info.diff_id => Ok(Verdict::Whole),
            Ok(_) => Ok(Verdict::Damaged("the content of a file changed".to_owned())),
            Err(error) if is_fault(&error) => Ok(Verdict::Damaged(error.to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(Verdict::Damaged("its recipe is gone".to_owned()))
            }
            Err(error) => Err(failed("read", path)(error)),
        }
    }

    /// Reads a document and compares its digest.
    ///
    /// # Errors
    /// What kept it from looking.
    pub fn verify_blob(&self, digest: &Digest) -> Result<Verdict, Error> {
        match self.get_blob(digest) {
            Ok(Some(_)) => Ok(Verdict::Whole),
            Ok(None) => Ok(Verdict::Absent),
            Err(Error::Damaged(_)) => Ok(Verdict::Damaged("its content changed".to_owned())),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::InvalidData => {
                Ok(Verdict::Damaged(source.to_string()))
            }
            Err(Error::Io { source, .. }) if is_unreadable(&source) => Ok(unreadable(&source)),
            Err(error) => Err(error),
        }
    }
}

fn unreadable(error: &io::Error) -> Verdict {
    Verdict::Damaged(format!("it cannot be read: {error}"))
}

fn digest_of(mut replay: Replay) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut piece = vec![0; PIECE];
    loop {
        let length = io::Read::read(&mut replay, &mut piece)?;
        if length == 0 {
            return Ok(Digest::from_bytes(hash.finalize().into()));
        }
        hash.update(piece.get(..length).unwrap_or_default());
    }
}

/// Allocated bytes and inodes of a tree, each file once whatever its names, as du counts.
pub(super) fn count(root: OwnedFd) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    let own = rustix::fs::fstat(&root)?;
    let mut add = |stat: &rustix::fs::Stat| {
        let is_dir = FileType::from_raw_mode(stat.st_mode).is_dir();
        if is_dir || stat.st_nlink == 1 || linked.insert(stat.st_ino) {
            usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            usage.inodes += 1;
        }
    };
    add(&own);
    let mut stack = vec![Dir::new(root)?];
    while let Some(top) = stack.last_mut() {
        let Some(entry) = top.read() else {
            stack.pop();
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(top.fd()?, name, AtFlags::SYMLINK_NOFOLLOW)?;
        add(&stat);
        if FileType::from_raw_mode(stat.st_mode).is_dir() && stat.st_dev == own.st_dev {
            let name = std::os::unix::ffi::OsStrExt::from_bytes(name.to_bytes());
            let child = open_dir(top.fd()?.as_fd(), name)?;
            stack.push(Dir::new(child)?);
        }
    }
    Ok(usage)
}
