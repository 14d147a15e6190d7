//! The body of a request as a file to read from, for code that reads on a blocking thread.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;

/// Pieces of a body under way between the socket and the reader.
const PIECES: usize = 8;

/// A piece of a body, or how it ended.
enum Piece {
    Data(Bytes),
    End,
    Broken(io::Error),
}

/// The reading end. Only for threads that may block.
pub(super) struct BodyReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

/// The end that takes the pieces off the socket.
pub(super) struct BodyPump {
    pieces: mpsc::Sender<Piece>,
    body: Incoming,
}

/// Both ends.
pub(super) fn pipe(body: Incoming) -> (BodyPump, BodyReader) {
    let (sender, receiver) = mpsc::channel(PIECES);
    let pump = BodyPump {
        pieces: sender,
        body,
    };
    (pump, BodyReader::new(receiver))
}

impl BodyPump {
    /// Takes the whole body, also what nobody wants to read any more: a client that is still writing would
    /// not read the answer.
    pub(super) async fn run(mut self) {
        loop {
            let piece = match self.body.frame().await {
                None => Piece::End,
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => Piece::Data(data),
                    Err(_) => continue, // Trailers.
                },
                Some(Err(error)) => Piece::Broken(io::Error::other(error)),
            };
            let last = !matches!(piece, Piece::Data(_));
            // Fails when the reader has gone, which only means that the rest is thrown away.
            let _ = self.pieces.send(piece).await;
            if last {
                return;
            }
        }
    }
}

impl BodyReader {
    fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self {
            pieces,
            current: Bytes::new(),
            ended: false,
        }
    }
}

impl Read for BodyReader {
    /// A client that leaves half-way is an error, never an end of file. So is a pump that was dropped,
    /// which is what happens to it when the connection breaks.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.pieces.blocking_recv() {
                Some(Piece::Data(piece)) => self.current = piece,
                Some(Piece::End) => self.ended = true,
                Some(Piece::Broken(error)) => return Err(error),
                None => {
                    let why = "the client left before the archive was whole";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
                }
            }
        }
        let count = buffer.len().min(self.current.len());
        buffer[..count].copy_from_slice(&self.current[..count]);
        self.current.advance(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: Vec<Piece>) -> io::Result<Vec<u8>> {
        let (sender, receiver) = mpsc::channel(PIECES);
        for piece in pieces {
            assert!(sender.try_send(piece).is_ok());
        }
        drop(sender);
        let mut whole = Vec::new();
        BodyReader::new(receiver).read_to_end(&mut whole)?;
        Ok(whole)
    }

    #[test]
    fn only_an_end_that_was_told_is_an_end() {
        let data = |text: &'static [u8]| Piece::Data(Bytes::from_static(text));
        let whole = read(vec![data(b"ab"), data(b""), data(b"c"), Piece::End]);
        assert_eq!(whole.unwrap(), b"abc");
        assert!(read(vec![data(b"ab")]).is_err());
        let broken = Piece::Broken(io::Error::other("x"));
        assert!(read(vec![data(b"ab"), broken]).is_err());
    }
}
