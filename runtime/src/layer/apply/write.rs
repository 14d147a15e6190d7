//! Regular files.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::direct::Direct;
use super::{Applier, Archive, Entry, Error, Made};
use crate::sys::fs::{start_writeback, write_all};

/// Bytes of a file after which the disk begins to write them, while the next ones are unpacked: the sync that
/// publishes a layer then has less to wait for. Smaller files are written faster together.
const EARLY: u64 = 1 << 20;

impl Applier<'_> {
    pub(super) fn file<R: Read>(
        &mut self,
        dir: &[u8],
        base: &[u8],
        name: &[u8],
        entry: &Entry,
        archive: &mut Archive<'_, R>,
    ) -> Result<(), Error> {
        let (mode, mode_again) = self.attributes.file_mode(entry);
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.make(dir, base, |_, parent| {
            match rustix::fs::openat(parent, base, flags, mode) {
                Ok(file) => Ok(Made::Yes(file)),
                Err(Errno::EXIST) => Ok(Made::Exists),
                Err(error) => Err(Error::entry("create", name, error)),
            }
        })?;
        self.applied.inodes += 1;
        match &entry.sparse {
            None => {
                self.applied.bytes += archive.content_left().next_multiple_of(self.block);
                write_content(file.as_fd(), name, &mut self.direct, archive)?;
            }
            Some(map) => {
                write_sparse(file.as_fd(), name, entry, map, archive)?;
                let stat = rustix::fs::fstat(&file)
                    .map_err(|error| Error::entry("look at", name, error))?;
                self.applied.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            }
        }
        let setgid = self.dirs.setgid();
        let dropped = self
            .attributes
            .file(file.as_fd(), entry, setgid, mode_again)
            .map_err(|error| Error::entry("set the attributes of", name, error))?;
        self.applied.dropped_xattrs += dropped;
        Ok(())
    }
}

fn write_content<R: Read>(
    file: BorrowedFd<'_>,
    name: &[u8],
    direct: &mut Direct,
    archive: &mut Archive<'_, R>,
) -> Result<(), Error> {
    let failed = |error| Error::entry("write", name, error);
    let mut past_cache = direct.begin(file, archive.content_left());
    let mut waiting = 0;
    while archive.content_left() > 0 {
        let piece = archive.content()?;
        if past_cache {
            past_cache = direct.write(file, piece).map_err(failed)?;
            continue;
        }
        write_all(file, piece).map_err(failed)?;
        waiting += piece.len() as u64;
        if waiting >= EARLY {
            start_writeback(file);
            waiting = 0;
        }
    }
    if past_cache {
        direct.end(file).map_err(failed)?;
    }
    Ok(())
}

/// The parts are known to be in order, within the file, and as long together as the content.
fn write_sparse<R: Read>(
    file: BorrowedFd<'_>,
    name: &[u8],
    entry: &Entry,
    map: &[(u64, u64)],
    archive: &mut Archive<'_, R>,
) -> Result<(), Error> {
    let failed = |error: io::Error| Error::entry("write", name, error);
    rustix::fs::ftruncate(file, entry.size).map_err(|error| failed(error.into()))?;
    let mut parts = map.iter().copied().filter(|(_, length)| *length > 0);
    let mut part = parts.next();
    while archive.content_left() > 0 {
        let mut piece = archive.content()?;
        while let (Some((offset, length)), false) = (part, piece.is_empty()) {
            let now = usize::try_from(length)
                .unwrap_or(usize::MAX)
                .min(piece.len());
            let (bytes, rest) = piece.split_at_checked(now).unwrap_or((piece, &[]));
            rustix::fs::seek(file, rustix::fs::SeekFrom::Start(offset))
                .map_err(|error| failed(error.into()))?;
            write_all(file, bytes).map_err(failed)?;
            piece = rest;
            let left = length - now as u64;
            part = if left == 0 {
                parts.next()
            } else {
                Some((offset + now as u64, left))
            };
        }
    }
    Ok(())
}
