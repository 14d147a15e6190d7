//! Reading ahead: bytes are decompressed on one thread while those before them are hashed and written on another.
//!
//! A layer is as fast as the slower of the two then, and one large layer keeps two processors busy.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Bytes that are passed on at a time.
const BLOCK: usize = 256 << 10;

/// Blocks that wait; one more is being filled and one is being read.
const WAITING: usize = 2;

enum Message {
    Block(Vec<u8>),
    Failed(io::Error),
    /// That nobody sends any more is no proof of an end.
    End,
}

/// The end at which bytes go in.
#[derive(Debug)]
pub struct Producer {
    full: SyncSender<Message>,
    used: Receiver<Vec<u8>>,
}

/// The end at which they come out, in order, then the error of the reader they came from, if it had one.
#[derive(Debug)]
pub struct Ahead {
    full: Receiver<Message>,
    used: SyncSender<Vec<u8>>,
    block: Vec<u8>,
    position: usize,
    ended: bool,
}

/// A pipe of about a mebibyte between two threads.
pub fn ahead() -> (Producer, Ahead) {
    let (full, full_here) = sync_channel(WAITING);
    let (used_there, used) = sync_channel(WAITING + 2);
    let ahead = Ahead {
        full: full_here,
        used: used_there,
        block: Vec::new(),
        position: 0,
        ended: false,
    };
    (Producer { full, used }, ahead)
}

impl Producer {
    /// Passes on all that `reader` gives, or what it gives until it fails; ends early when nobody wants it any more.
    pub fn pass(self, reader: &mut impl Read) {
        loop {
            let mut block = self.used.try_recv().unwrap_or_default();
            block.resize(BLOCK, 0);
            let (length, failed) = fill(reader, &mut block);
            let at_end = length < BLOCK;
            block.truncate(length);
            if self.full.send(Message::Block(block)).is_err() {
                return;
            }
            if at_end {
                let last = failed.map_or(Message::End, Message::Failed);
                let _ = self.full.send(last);
                return;
            }
        }
    }

    /// Says that there is nothing to pass on.
    pub fn fail(self, error: io::Error) {
        let _ = self.full.send(Message::Failed(error));
    }
}

/// Reads until the block is full, or there is no more, or an error. A reader is not asked for nothing: zstd's says that
/// it makes no progress.
fn fill(reader: &mut impl Read, block: &mut [u8]) -> (usize, Option<io::Error>) {
    let mut length = 0;
    while length < block.len() {
        match reader.read(block.get_mut(length..).unwrap_or_default()) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (length, Some(error)),
        }
    }
    (length, None)
}

impl Ahead {
    fn next(&mut self) -> io::Result<()> {
        match self.full.recv() {
            Ok(Message::Block(block)) => {
                let used = std::mem::replace(&mut self.block, block);
                self.position = 0;
                // The other end may be gone, or have enough.
                let _ = self.used.try_send(used);
                Ok(())
            }
            Ok(Message::End) => {
                self.ended = true;
                Ok(())
            }
            Ok(Message::Failed(error)) => Err(error),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the bytes stopped coming",
            )),
        }
    }
}

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.position == self.block.len() && !self.ended && !buffer.is_empty() {
            self.next()?;
        }
        let here = self.block.get(self.position..).unwrap_or_default();
        let length = here.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..length), here.get(..length)) {
            to.copy_from_slice(from);
        }
        self.position += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Breaks;

    impl Read for Breaks {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::ConnectionReset.into())
        }
    }

    /// Wants to be asked for something, as zstd's decoder does.
    struct Picky<R>(R);

    impl<R: Read> Read for Picky<R> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            assert!(!buffer.is_empty());
            self.0.read(buffer)
        }
    }

    fn through<R: Read + Send>(mut reader: R) -> (Vec<u8>, io::Result<usize>) {
        std::thread::scope(|scope| {
            let (producer, mut ahead) = ahead();
            scope.spawn(move || producer.pass(&mut reader));
            let mut bytes = Vec::new();
            let result = ahead.read_to_end(&mut bytes);
            (bytes, result)
        })
    }

    #[test]
    fn all_bytes_come_out_in_order() {
        for size in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 9 * BLOCK, 9 * BLOCK + 7] {
            let bytes: Vec<u8> = (0..=250).cycle().take(size).collect();
            let (came, result) = through(Picky(bytes.as_slice()));
            assert_eq!(result.unwrap(), size);
            assert!(came == bytes, "{size} bytes");
        }
    }

    #[test]
    fn an_error_comes_behind_the_bytes_before_it() {
        for size in [0, 5, BLOCK, 3 * BLOCK + 1] {
            let (came, result) = through(vec![7; size].as_slice().chain(Breaks));
            assert_eq!(came.len(), size);
            let error = result.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }

    #[test]
    fn whoever_wants_no_more_stops_it() {
        std::thread::scope(|scope| {
            let (producer, mut ahead) = ahead();
            let passing = scope.spawn(move || producer.pass(&mut io::repeat(1)));
            ahead.read_exact(&mut [0; 10]).unwrap();
            drop(ahead);
            passing.join().unwrap();
        });
    }

    #[test]
    fn a_sender_that_goes_away_is_no_end() {
        let (producer, mut ahead) = ahead();
        drop(producer);
        let error = ahead.read(&mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
