//! The container's log: reads its output, frames it and appends it to the log file.
//!
//! One writer for both streams. Each read makes one batch of whole records with one time stamp,
//! appended by one write(2). A slow disk slows this loop, and so the container; a disk that refuses
//! loses output, which is counted and told in the log once it takes records again.

mod file;
mod format;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::sys::Buffer;
use file::Output;
pub(crate) use file::Target;
pub(crate) use format::Source;
use format::{OVERHEAD, Sink};

/// Payload bytes of a record where the request does not say.
const DEFAULT_LINE: usize = 16 << 10;

/// Longest payload that may be asked for.
const MAX_LINE: usize = 1 << 20;

/// Bytes read at once.
const BATCH: usize = 128 << 10;

/// Bytes of framed records kept before a write.
const FRAMED: usize = 256 << 10;

/// What a pipe holds when nobody asks for another size (pipe(7)).
const DEFAULT_PIPE: usize = 64 << 10;

/// What the pipe of a busy stream is asked to hold: fewer switches between writer and reader.
const BUSY_PIPE: usize = 1 << 20;

/// Memory goes back to the kernel after this long without output.
const KEEP: Duration = Duration::from_secs(1);

/// One source of output.
pub(crate) struct Stream {
    fd: OwnedFd,
    source: Source,
    /// The beginning of a line whose end has not been read yet.
    rest: Vec<u8>,
    enlarged: bool,
}

impl Stream {
    /// Wraps the non-blocking read end of a pipe or the master of a terminal.
    pub(crate) fn new(fd: OwnedFd, source: Source) -> Self {
        Self {
            fd,
            source,
            rest: Vec::new(),
            enlarged: false,
        }
    }

    /// To be polled for input.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Output.
    Some,
    /// Nothing just now.
    Empty,
    /// The stream has ended, and its last bytes are written.
    End,
}

/// The log of one container.
pub(crate) struct Log {
    input: Buffer,
    output: Output,
    line: usize,
    used_at: Option<Instant>,
}

impl Log {
    /// Opens the log; without a target output is read and thrown away. `line` is the largest
    /// payload of a record, 0 for the default.
    pub(crate) fn open(target: Option<Target>, line: u32) -> io::Result<Self> {
        let line = match usize::try_from(line).unwrap_or(MAX_LINE) {
            0 => DEFAULT_LINE,
            line => line.min(MAX_LINE),
        };
        Ok(Self {
            input: Buffer::reserve(line + 1 + BATCH)?,
            output: Output::open(target, FRAMED.max(line + OVERHEAD))?,
            line,
            used_at: None,
        })
    }

    /// Reads once from a stream and writes what came.
    pub(crate) fn pump(&mut self, stream: &mut Stream) -> Progress {
        let kept = stream.rest.len();
        let got = match rustix::io::read(&stream.fd, &mut self.input[kept..kept + BATCH]) {
            Ok(0) => return self.end(stream),
            Ok(got) => got,
            Err(Errno::AGAIN | Errno::INTR) => return Progress::Empty,
            // EIO is a terminal whose last user has gone (pty(7)); nothing else can be read from either.
            Err(_) => return self.end(stream),
        };
        self.used_at = Some(Instant::now());
        if got >= DEFAULT_PIPE && !stream.enlarged {
            stream.enlarged = true;
            let _ = rustix::pipe::fcntl_setpipe_size(&stream.fd, BUSY_PIPE);
        }
        if !self.output.wanted() {
            return Progress::Some;
        }
        self.input[..kept].copy_from_slice(&stream.rest);
        let data = &self.input[..kept + got];
        let prefix = format::prefix(stream.source, crate::time::now());
        let used = format::frame(data, self.line, &prefix, &mut self.output);
        stream.rest.clear();
        stream.rest.extend_from_slice(&data[used..]);
        self.output.flush();
        Progress::Some
    }

    /// Writes what a stream ended with.
    pub(crate) fn end(&mut self, stream: &mut Stream) -> Progress {
        let prefix = format::prefix(stream.source, crate::time::now());
        format::finish(&stream.rest, self.line, &prefix, &mut self.output);
        stream.rest = Vec::new();
        self.output.flush();
        Progress::End
    }

    /// Opens the log file anew; nothing goes to the old one afterwards.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.output.reopen()
    }

    /// When [`Log::rest`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let release = self.used_at.map(|at| at + KEEP);
        match (release, self.output.retry_at()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Gives memory back after a time without output, and tells of losses once the disk works again.
    pub(crate) fn rest<'a>(&mut self, now: Instant, streams: impl Iterator<Item = &'a mut Stream>) {
        if self.used_at.is_some_and(|at| now >= at + KEEP) {
            self.used_at = None;
            self.input.release();
            self.output.release();
            streams.for_each(|s| s.rest.shrink_to_fit());
        }
        if self.output.retry_at().is_some_and(|at| now >= at) {
            self.output.tell();
        }
    }

    /// Last attempt to tell of losses.
    pub(crate) fn close(&mut self) {
        self.output.tell();
    }

    /// Payload bytes lost so far.
    pub(crate) fn dropped(&self) -> u64 {
        self.output.dropped()
    }
}

impl Sink for Output {
    fn record(&mut self, prefix: &format::Prefix, tag: format::Tag, payload: &[u8]) {
        let room = self.room(payload.len() + OVERHEAD);
        let used = format::put(room, prefix, tag, payload);
        self.filled(used);
    }
}
