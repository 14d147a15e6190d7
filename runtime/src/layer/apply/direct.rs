//! Large files past the page cache.
//!
//! What is written with `O_DIRECT` is neither copied into the page cache nor written back from it, which is most of what a
//! file costs the processor, and it takes no memory from what runs on the machine. Whoever reads the file later reads it from
//! the disk, so this is for disks from which that takes no time to speak of: a slow one shows itself with the first bytes.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::sys::fs::write_all;

/// Smaller files, in bytes, are written faster together, by the page cache.
const LARGE: u64 = 1 << 20;

/// Bytes of one write.
const PIECE: usize = 1 << 20;

/// Where writes and their memory begin and end is a multiple of this many bytes: few disks want more.
const ALIGN: usize = 4096;

/// A disk that takes fewer bytes in a second from one layer is slow. Several are unpacked at a time, so it may do four times
/// this.
const SLOW: u64 = 128 << 20;

/// So many bytes are looked at together for that.
const LOOK: u64 = 8 << 20;

/// What statfs(2) calls btrfs. It compresses, and keeps checksums of, what goes through the page cache.
const BTRFS: u64 = 0x9123_683e;

/// What a layer writes past the page cache.
pub(super) struct Direct {
    /// One piece, once there is a large file.
    buffer: Vec<u8>,
    /// Where in `buffer` the piece begins, so that it is aligned.
    start: usize,
    filled: usize,
    /// Since the last look.
    written: u64,
    took: Duration,
    slow: u64,
    off: bool,
    put: Put,
}

/// write(2).
type Put = fn(BorrowedFd<'_>, &[u8]) -> Result<usize, Errno>;

impl Direct {
    /// For files of a file system of that kind, in the words of statfs(2).
    pub(super) fn new(kind: u64) -> Self {
        Self {
            off: kind == BTRFS,
            ..Self::with(SLOW, |file, bytes| rustix::io::write(file, bytes))
        }
    }

    fn with(slow: u64, put: Put) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            filled: 0,
            written: 0,
            took: Duration::ZERO,
            slow,
            off: false,
            put,
        }
    }

    /// Whether the content of `file`, which is empty and is to have `size` bytes, is to come here.
    pub(super) fn begin(&mut self, file: BorrowedFd<'_>, size: u64) -> bool {
        if self.off || size < LARGE {
            return false;
        }
        if self.buffer.is_empty() {
            self.buffer = vec![0; PIECE + ALIGN];
            self.start = self.buffer.as_ptr().align_offset(ALIGN).min(ALIGN);
        }
        self.filled = 0;
        // Not every file system knows how.
        self.off = set_direct(file, true).is_err();
        !self.off
    }

    /// Takes the next bytes of the file; false when all that follow are to be written as usual.
    pub(super) fn write(&mut self, file: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<bool> {
        while !bytes.is_empty() {
            let now = bytes.len().min(PIECE - self.filled);
            let (head, rest) = bytes.split_at_checked(now).unwrap_or((bytes, &[]));
            let from = self.start + self.filled;
            if let Some(room) = self.buffer.get_mut(from..from + head.len()) {
                room.copy_from_slice(head);
            }
            self.filled += head.len();
            bytes = rest;
            if self.filled == PIECE {
                self.flush(file)?;
            }
            if self.off {
                self.end(file)?;
                write_all(file, bytes)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes what is left, the last bytes as usual: they are no whole block.
    pub(super) fn end(&mut self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.flush(file)?;
        set_direct(file, false)?;
        write_all(file, self.piece())?;
        self.filled = 0;
        Ok(())
    }

    fn piece(&self) -> &[u8] {
        let end = self.start + self.filled;
        self.buffer.get(self.start..end).unwrap_or_default()
    }

    /// Writes the whole blocks of the piece, and keeps the rest for the end of the file.
    fn flush(&mut self, file: BorrowedFd<'_>) -> io::Result<()> {
        let mut done = 0;
        let started = Instant::now();
        while !self.off && self.filled - done >= ALIGN {
            let whole = self.filled - self.filled % ALIGN;
            match (self.put)(file, self.piece().get(done..whole).unwrap_or_default()) {
                // Part of a block was written: what follows is not aligned any more.
                Ok(length) if length % ALIGN != 0 => {
                    self.off = true;
                    done += length;
                }
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => done += length,
                Err(Errno::INTR) => {}
                // A disk with larger blocks, or a file system that says so only now.
                Err(Errno::INVAL) => self.off = true,
                Err(error) => return Err(error.into()),
            }
        }
        self.took += started.elapsed();
        self.written += done as u64;
        if self.written >= LOOK {
            self.off |= self.is_slow();
            self.written = 0;
            self.took = Duration::ZERO;
        }
        let from = self.start + done..self.start + self.filled;
        self.buffer.copy_within(from, self.start);
        self.filled -= done;
        Ok(())
    }

    fn is_slow(&self) -> bool {
        let second = Duration::from_secs(1).as_nanos();
        u128::from(self.written) * second < u128::from(self.slow) * self.took.as_nanos()
    }
}

fn set_direct(file: BorrowedFd<'_>, direct: bool) -> io::Result<()> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    Ok(fcntl_setfl(file, flags)?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::IoSliceMut;
    use std::os::fd::AsFd as _;
    use std::path::Path;

    use rustix::io::ReadWriteFlags;

    use super::*;

    const WRITE: Put = |file, bytes| rustix::io::write(file, bytes);

    fn content(size: usize) -> Vec<u8> {
        let words = (0..size as u64 / 8 + 1).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut bytes: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        bytes.truncate(size);
        bytes
    }

    /// Writes a file as the applier does; the answer is whether it went past the page cache to its end.
    fn written(direct: &mut Direct, path: &Path, bytes: &[u8]) -> bool {
        let file = File::create(path).unwrap();
        let file = file.as_fd();
        let mut past = direct.begin(file, bytes.len() as u64);
        for piece in bytes.chunks(200_000) {
            if past {
                past = direct.write(file, piece).unwrap();
            } else {
                write_all(file, piece).unwrap();
            }
        }
        if past {
            direct.end(file).unwrap();
        }
        past
    }

    /// Whether the first byte of a file is in the page cache.
    fn is_cached(path: &Path) -> bool {
        let file = File::open(path).unwrap();
        let mut byte = [0];
        let mut buffers = [IoSliceMut::new(&mut byte)];
        rustix::io::preadv2(file, &mut buffers, 0, ReadWriteFlags::NOWAIT).is_ok()
    }

    /// As a disk may take them: a part that is whole blocks, one that is not, and none.
    const ODD: [Put; 3] = [
        |file, bytes| WRITE(file, bytes.get(..3 * ALIGN).unwrap_or(bytes)),
        |file, bytes| {
            set_direct(file, false).unwrap();
            WRITE(file, bytes.get(..3 * ALIGN + 1000).unwrap_or(bytes))
        },
        |_, _| Err(Errno::INVAL),
    ];

    #[test]
    fn files_of_all_sizes_have_their_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for (slow, put) in [(0, WRITE), (u64::MAX, WRITE)]
            .into_iter()
            .chain(ODD.map(|odd| (0, odd)))
        {
            for size in [
                0,
                1,
                PIECE - 1,
                PIECE,
                PIECE + 1,
                PIECE + ALIGN,
                2 * PIECE - 1,
                2 * PIECE + ALIGN + 1,
                12 * PIECE + 77,
            ] {
                let bytes = content(size);
                written(&mut Direct::with(slow, put), &path, &bytes);
                assert!(std::fs::read(&path).unwrap() == bytes, "{size} bytes");
            }
        }
    }

    #[test]
    fn a_full_disk_is_told() {
        let file = tempfile::tempfile().unwrap();
        let mut direct = Direct::with(0, |_, _| Err(Errno::NOSPC));
        if !direct.begin(file.as_fd(), LARGE) {
            berth_skip::skip!(
                "direct-io",
                "the file system of the temporary directory knows no O_DIRECT"
            );
        }
        let error = direct.write(file.as_fd(), &content(PIECE)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn a_large_file_stays_out_of_the_page_cache() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes = content(3 * PIECE + 5);
        if !written(&mut Direct::with(0, WRITE), &path, &bytes) || is_cached(&path) {
            // tmpfs and its like have nothing but the page cache.
            let kind = rustix::fs::statfs(dir.path()).unwrap().f_type;
            assert_ne!(kind, 0xef53, "ext4 writes past the page cache");
            berth_skip::skip!(
                "direct-io",
                "the file system of {dir:?} writes through the page cache"
            );
        }
        let small = dir.path().join("small");
        assert!(!written(
            &mut Direct::with(0, WRITE),
            &small,
            &content(PIECE - 1)
        ));
        assert!(is_cached(&small));
    }

    #[test]
    fn a_slow_disk_is_written_as_usual() {
        let dir = tempfile::tempdir().unwrap();
        let mut direct = Direct::with(u64::MAX, WRITE);
        let path = dir.path().join("file");
        let bytes = content(10 * PIECE + 9);
        assert!(!written(&mut direct, &path, &bytes));
        assert!(std::fs::read(&path).unwrap() == bytes);
        let file = File::create(&path).unwrap();
        assert!(!direct.begin(file.as_fd(), LARGE));
    }
}
