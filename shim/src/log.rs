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

/// How often a terminal that no process has open is looked at: nothing tells when one opens it.
const OPENED_AGAIN: Duration = Duration::from_millis(200);

/// One source of output.
pub(crate) struct Stream {
    fd: OwnedFd,
    source: Source,
    /// The only master of the container's terminal. Closed, it would hang up the terminal for good.
    terminal: bool,
    /// When to look again whether somebody has opened the terminal.
    again: Option<Instant>,
    /// The beginning of a line whose end has not been read yet.
    rest: Vec<u8>,
    enlarged: bool,
}

impl Stream {
    /// Wraps the non-blocking read end of a pipe.
    pub(crate) fn new(fd: OwnedFd, source: Source) -> Self {
        Self {
            fd,
            source,
            terminal: false,
            again: None,
            rest: Vec::new(),
            enlarged: false,
        }
    }

    /// Wraps the non-blocking master of a terminal.
    pub(crate) fn terminal(fd: OwnedFd) -> Self {
        Self {
            terminal: true,
            ..Self::new(fd, Source::Stdout)
        }
    }

    /// To be polled for input; nothing while a terminal that nobody has open would only say so.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.again.is_none().then(|| self.fd.as_fd())
    }

    /// When [`Stream::fd`] is to be polled again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.again
    }

    /// Leaves it out for a moment.
    pub(crate) fn pause(&mut self) {
        self.again = Some(Instant::now() + OPENED_AGAIN);
    }

    /// Ends a pause.
    pub(crate) fn resume(&mut self) {
        self.again = None;
    }
}

/// What a read gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Output.
    Some,
    /// Nothing just now.
    Empty,
    /// Nothing, from a terminal that no process has open; one may open it again.
    Closed,
    /// The stream has ended, and its last bytes are written.
    End,
}

/// The log of one container.
pub(crate) struct Log {
    input: Buffer,
    output: Output,
    line: usize,
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
        })
    }

    /// Reads once from a stream and writes what came.
    pub(crate) fn pump(&mut self, stream: &mut Stream) -> Progress {
        let kept = stream.rest.len();
        let got = match rustix::io::read(&stream.fd, &mut self.input[kept..kept + BATCH]) {
            Ok(0) => return self.end(stream),
            Ok(got) => got,
            Err(Errno::AGAIN | Errno::INTR) => return Progress::Empty,
            Err(Errno::IO) if stream.terminal => return Progress::Closed,
            Err(_) => return self.end(stream),
        };
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

    /// Opens the log file anew, in another directory if one is given; nothing goes to the old one afterwards.
    pub(crate) fn reopen(&mut self, dir: Option<OwnedFd>) -> io::Result<()> {
        self.output.reopen(dir)
    }

    /// When [`Log::tell`] has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.output.retry_at()
    }

    /// Tells of losses once the disk works again.
    pub(crate) fn tell(&mut self) {
        self.output.tell();
    }

    /// Gives the memory of the buffers back to the kernel until they are used again.
    pub(crate) fn release<'a>(&mut self, streams: impl Iterator<Item = &'a mut Stream>) {
        self.input.release();
        self.output.release();
        streams.for_each(|stream| stream.rest.shrink_to_fit());
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
