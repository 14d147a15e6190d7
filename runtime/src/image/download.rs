//! A blob on its way: kept on the disk while it comes, so that an interrupted download goes on where it ended,
//! also after a restart.

use std::io::{self, Read, Write as _};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use tokio::sync::mpsc;

use super::shelf::Shelf;
use crate::model::Digest;
use crate::storage::Partial;

/// Pieces that wait for the disk; with [`PIECE`] this bounds the memory of a pull.
pub(super) const PIECES: usize = 8;
/// Largest piece, bytes.
pub(super) const PIECE: usize = 256 << 10;
/// Blobs below this size, in bytes, come again from their start: that is no slower than to look for them.
const WORTH_KEEPING: u64 = 1 << 20;
/// On a disk whose free bytes are not this many times those of a blob no download is begun to be kept: unpacked, a blob
/// is two to five times as large.
const ROOM: u64 = 6;

/// Of a fast download nothing is kept: it would cost the machine more than to fetch it again. How fast one is, is seen
/// every so many bytes, and when a sixteenth has come: a line may be fast for a moment;
const LOOK: u64 = 4 << 20;
/// this is the time in which a blob that is not worth keeping comes as a whole.
const SOON: Duration = Duration::from_secs(5);

/// A piece, or the proof that there are no more: a sender that goes away is not an end of file.
pub(super) enum Piece {
    Bytes(Bytes),
    End,
}

/// What earlier tries have left of a blob.
#[derive(Debug, Default)]
pub(super) struct Kept {
    partial: Option<Partial>,
    /// Bytes that are there.
    pub(super) length: u64,
}

impl Kept {
    /// Opens it, blocking. A download that cannot be kept is none the worse for it.
    pub(super) fn open(shelf: &Shelf, digest: &Digest, size: u64) -> Self {
        if size < WORTH_KEEPING {
            return Self::default();
        }
        match shelf.storage.partial(digest) {
            Ok(partial) if fits(shelf, &partial, size) => Self {
                length: partial.length,
                partial: Some(partial),
            },
            Ok(unfit) => {
                forget(unfit);
                Self::default()
            }
            Err(error) => {
                tracing::debug!(blob.digest = %digest, %error, "this download is not kept");
                Self::default()
            }
        }
    }
}

/// A download that is kept must not take the room that its files need; what there is of one has its room already.
fn fits(shelf: &Shelf, partial: &Partial, size: u64) -> bool {
    if partial.length > 0 {
        return partial.length <= size;
    }
    let disk = rustix::fs::statvfs(shelf.storage.root());
    disk.is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) / ROOM >= size)
}

fn forget(partial: Partial) {
    if let Err(error) = partial.discard() {
        tracing::warn!(%error, "an interrupted download stays");
    }
}

/// Reads what was kept, then what comes, and keeps that.
pub(super) struct Download {
    partial: Option<Partial>,
    size: u64,
    started: Instant,
    /// Bytes that came since then.
    came: u64,
    /// Bytes that are still to be read from the disk.
    old: u64,
    pieces: Option<mpsc::Receiver<Piece>>,
    current: Bytes,
    begun: bool,
    broken: bool,
}

impl Download {
    /// Of a blob of `size` bytes. `start` is the first byte that comes as a piece: the length of what was kept, or 0
    /// from a server that starts over. Without pieces everything is there.
    pub(super) fn new(
        kept: Kept,
        size: u64,
        start: u64,
        pieces: Option<mpsc::Receiver<Piece>>,
    ) -> Self {
        let mut download = Self {
            partial: kept.partial,
            size,
            started: Instant::now(),
            came: 0,
            old: start,
            pieces,
            current: Bytes::new(),
            begun: false,
            broken: false,
        };
        if start < kept.length {
            download.keep(|partial| partial.file.set_len(start));
        }
        download
    }

    /// What came until the stream broke stays, and what nobody began to read; of a blob that was read to its end, or is not
    /// wanted, nothing does.
    pub(super) fn close(self) {
        if let Some(partial) = self.partial.filter(|_| self.begun && !self.broken) {
            forget(partial);
        }
    }

    /// A disk that takes no more has nothing to do with the download.
    fn keep(&mut self, work: impl FnOnce(&mut Partial) -> io::Result<()>) {
        let Some(partial) = &mut self.partial else {
            return;
        };
        if let Err(error) = work(partial) {
            tracing::debug!(%error, "this download is no longer kept");
            if let Some(partial) = self.partial.take() {
                forget(partial);
            }
        }
    }

    fn next(&mut self) -> io::Result<()> {
        let piece = self.pieces.as_mut().map(mpsc::Receiver::blocking_recv);
        match piece {
            None | Some(Some(Piece::End)) => self.pieces = None,
            Some(Some(Piece::Bytes(bytes))) => {
                self.keep(|partial| partial.file.write_all(&bytes));
                crash_point!("pull_image.bytes.after");
                let look = LOOK.max(self.size / 16);
                let before = self.came / look;
                self.came += bytes.len() as u64;
                if before < self.came / look
                    && self.comes_soon()
                    && let Some(partial) = self.partial.take()
                {
                    forget(partial);
                }
                self.current = bytes;
            }
            Some(None) => {
                self.broken = true;
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionAborted,
                    "the download was given up",
                ));
            }
        }
        Ok(())
    }

    /// At the rate until now, all of it would come again in no time.
    fn comes_soon(&self) -> bool {
        let came = u128::from(self.came.max(1));
        self.started.elapsed().as_millis() * u128::from(self.size) / came < SOON.as_millis()
    }

    fn read_old(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.old).unwrap_or(buffer.len());
        let part = buffer.len().min(most);
        let buffer = buffer.get_mut(..part).unwrap_or_default();
        let length = match &mut self.partial {
            Some(partial) => partial.file.read(buffer)?,
            None => 0,
        };
        if length == 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.old -= length as u64;
        Ok(length)
    }
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.begun = true;
        if self.old > 0 {
            return self.read_old(buffer);
        }
        while self.current.is_empty() {
            if self.pieces.is_none() {
                return Ok(0);
            }
            self.next()?;
        }
        let length = buffer.len().min(self.current.len());
        let buffer = buffer.get_mut(..length).unwrap_or_default();
        self.current.copy_to_slice(buffer);
        Ok(length)
    }
}
