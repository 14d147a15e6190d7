//! Gzip with any number of members (RFC 1952), over raw inflate.
//!
//! flate2's own multi-member reader takes any number of empty members within one call; here they are
//! counted, and the decompressed bytes go straight into the caller's buffer, whatever its size.

use std::io::{self, BufRead, Read};

use crc32fast::Hasher;
use flate2::{Decompress, FlushDecompress, Status};

/// Nobody means more than this many members without content in a row.
const EMPTY_MEMBERS: u32 = 1000;

/// File name and comment of a member may be this long together.
const HEADER_TEXT: usize = 64 * 1024;

pub(super) struct GzipReader<R> {
    input: R,
    inflate: Decompress,
    /// flate2 has one, too: with zlib-rs it is several times slower.
    crc: Hasher,
    state: State,
    members: u64,
    empty_members: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    BetweenMembers,
    InMember,
    End,
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "gzip stream ends too early")
}

impl<R: BufRead> GzipReader<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            inflate: Decompress::new(false),
            crc: Hasher::new(),
            state: State::BetweenMembers,
            members: 0,
            empty_members: 0,
        }
    }

    /// Starts the next member; false at the end of the input.
    fn start_member(&mut self) -> io::Result<bool> {
        if fill(&mut self.input)?.is_empty() {
            return if self.members == 0 {
                Err(truncated())
            } else {
                Ok(false)
            };
        }
        let mut header = [0; 10];
        self.exact(&mut header)?;
        let [0x1f, 0x8b, method, flags, ..] = header else {
            return Err(invalid(if self.members == 0 {
                "not a gzip stream"
            } else {
                "there is something after the end of the gzip stream"
            }));
        };
        if method != 8 || flags & 0xe0 != 0 {
            return Err(invalid("gzip member has an unknown method or flag"));
        }
        if flags & 4 != 0 {
            let mut length = [0; 2];
            self.exact(&mut length)?;
            for _ in 0..u16::from_le_bytes(length) {
                self.exact(&mut [0])?;
            }
        }
        let texts = u32::from(flags & 8 != 0) + u32::from(flags & 16 != 0);
        self.skip_texts(texts)?;
        if flags & 2 != 0 {
            self.exact(&mut [0; 2])?;
        }
        self.inflate.reset(false);
        self.crc.reset();
        self.members += 1;
        Ok(true)
    }

    fn skip_texts(&mut self, mut texts: u32) -> io::Result<()> {
        let mut byte = [0];
        let mut length = 0;
        while texts > 0 {
            self.exact(&mut byte)?;
            length += 1;
            if length > HEADER_TEXT {
                return Err(invalid("gzip member has too long a file name"));
            }
            texts -= u32::from(byte == [0]);
        }
        Ok(())
    }

    fn end_member(&mut self) -> io::Result<()> {
        let mut trailer = [0; 8];
        self.exact(&mut trailer)?;
        let (crc, size) = trailer.split_at(4);
        let sum = std::mem::take(&mut self.crc).finalize();
        // RFC 1952: the size modulo 2^32.
        let amount = self.inflate.total_out().to_le_bytes();
        if crc != sum.to_le_bytes() || !amount.starts_with(size) {
            return Err(invalid("gzip checksum does not match"));
        }
        if self.inflate.total_out() > 0 {
            self.empty_members = 0;
            return Ok(());
        }
        self.empty_members += 1;
        if self.empty_members > EMPTY_MEMBERS {
            return Err(invalid("gzip stream has too many empty members"));
        }
        Ok(())
    }

    fn exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.input.read_exact(bytes).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                truncated()
            } else {
                error
            }
        })
    }

    /// Inflates some; `true` when the member's end was reached.
    fn inflate(&mut self, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
        let input = fill(&mut self.input)?;
        let at_end = input.is_empty();
        let (before_in, before_out) = (self.inflate.total_in(), self.inflate.total_out());
        let status = self
            .inflate
            .decompress(input, buffer, FlushDecompress::None)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let count = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(0);
        let consumed = count(self.inflate.total_in(), before_in);
        let produced = count(self.inflate.total_out(), before_out);
        self.input.consume(consumed);
        self.crc.update(buffer.get(..produced).unwrap_or_default());
        if status == Status::StreamEnd {
            return Ok((produced, true));
        }
        if consumed == 0 && produced == 0 {
            return Err(if at_end {
                truncated()
            } else {
                invalid("gzip stream makes no progress")
            });
        }
        Ok((produced, false))
    }
}

fn fill<R: BufRead>(input: &mut R) -> io::Result<&[u8]> {
    // The borrow checker wants the second call; it returns what the first one buffered.
    while let Err(error) = input.fill_buf() {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    input.fill_buf()
}

impl<R: BufRead> Read for GzipReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match self.state {
                State::End => return Ok(0),
                State::BetweenMembers => {
                    self.state = if self.start_member()? {
                        State::InMember
                    } else {
                        State::End
                    };
                }
                State::InMember => {
                    let (produced, ended) = self.inflate(buffer)?;
                    if ended {
                        self.end_member()?;
                        self.state = State::BetweenMembers;
                    }
                    if produced > 0 {
                        return Ok(produced);
                    }
                }
            }
        }
    }
}
