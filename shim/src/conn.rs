//! One daemon's connection. Nothing here ever waits: a peer that does not read is cut off.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use shim_protocol::frame::{self, Decoder, Frame};
use shim_protocol::monitor::{FromMonitor, Message as Body};
use shim_protocol::{Fd, Message as _};

/// Bytes that may wait for a peer to read.
const MAX_QUEUE: usize = 1 << 20;

/// A frame on its way out.
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    fds: Vec<OwnedFd>,
}

/// A connection.
pub(crate) struct Conn {
    /// Distinguishes it while the monitor lives.
    pub(crate) key: u32,
    socket: OwnedFd,
    decoder: Decoder,
    queue: VecDeque<Outgoing>,
    queued: usize,
    /// The handshake is done.
    pub(crate) greeted: bool,
    /// Nothing more is read; it is closed once the queue is empty.
    pub(crate) closing: bool,
    broken: bool,
}

impl Conn {
    /// Takes a non-blocking stream socket.
    pub(crate) fn new(key: u32, socket: OwnedFd) -> Self {
        Self {
            key,
            socket,
            decoder: Decoder::default(),
            queue: VecDeque::new(),
            queued: 0,
            greeted: false,
            closing: false,
            broken: false,
        }
    }

    /// What to poll.
    pub(crate) fn poll(&self) -> (BorrowedFd<'_>, PollFlags) {
        let read = if self.closing {
            PollFlags::empty()
        } else {
            PollFlags::IN
        };
        let write = if self.queue.is_empty() {
            PollFlags::empty()
        } else {
            PollFlags::OUT
        };
        (self.socket.as_fd(), read | write)
    }

    /// It is of no more use.
    pub(crate) fn is_dead(&self) -> bool {
        self.broken || (self.closing && self.queue.is_empty())
    }

    /// Frames still wait for the peer.
    pub(crate) fn is_sending(&self) -> bool {
        !self.broken && !self.queue.is_empty()
    }

    /// The next whole frame, if it has arrived.
    pub(crate) fn receive(&mut self) -> Option<Frame> {
        if self.closing || self.broken {
            return None;
        }
        match self.try_receive() {
            Ok(frame) => frame,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
            Err(_) => {
                self.broken = true;
                None
            }
        }
    }

    fn try_receive(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            // No more than is missing, so that nothing is kept between frames.
            let want = self.decoder.missing();
            if self.decoder.read_some(self.socket.as_fd(), want)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Queues a message and sends what the socket takes.
    pub(crate) fn send(&mut self, body: Body, fds: Vec<(Fd, OwnedFd)>) {
        let (roles, fds): (Vec<i32>, Vec<OwnedFd>) =
            fds.into_iter().map(|(role, fd)| (role as i32, fd)).unzip();
        let message = FromMonitor {
            message: Some(body),
            fds: roles,
        }
        .encode_to_vec();
        let Ok(header) = frame::header(&message, fds.len()) else {
            self.broken = true;
            return;
        };
        let bytes = [&header[..], &message].concat();
        self.queued += bytes.len();
        self.queue.push_back(Outgoing {
            bytes,
            sent: 0,
            fds,
        });
        self.flush();
        self.broken |= self.queued > MAX_QUEUE;
    }

    /// Sends what the socket takes.
    pub(crate) fn flush(&mut self) {
        while let Some(out) = self.queue.front_mut() {
            let fds: Vec<BorrowedFd<'_>> = out.fds.iter().map(AsFd::as_fd).collect();
            match frame::send_some(self.socket.as_fd(), &out.bytes[out.sent..], &fds) {
                Ok(sent) => {
                    out.fds.clear();
                    out.sent += sent;
                    self.queued -= sent;
                    if out.sent == out.bytes.len() {
                        self.queue.pop_front();
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.broken = true;
                    return;
                }
            }
        }
        self.queue = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use shim_protocol::monitor::{Empty, Outcome, Reply};

    fn pair() -> (Conn, OwnedFd) {
        let (a, b) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        (Conn::new(1, a), b)
    }

    fn done() -> Body {
        Body::Reply(Reply {
            id: 7,
            outcome: Some(Outcome::Done(Empty {})),
        })
    }

    #[test]
    fn a_peer_that_does_not_read_is_cut_off() {
        let (mut conn, peer) = pair();
        let mut sent = 0;
        while !conn.is_dead() {
            conn.send(done(), Vec::new());
            sent += 1;
            assert!(sent < 1_000_000);
        }
        drop(peer);
    }

    #[test]
    fn frames_go_out_whole_however_slowly_they_are_read() {
        let (mut conn, peer) = pair();
        let null = || std::fs::File::open("/dev/null").unwrap().into();
        for _ in 0..2000 {
            conn.send(done(), vec![(Fd::Pidfd, null())]);
        }
        assert!(conn.is_sending());
        let (mut decoder, mut got) = (Decoder::default(), 0);
        while got < 2000 {
            conn.flush();
            while let Ok(n) = decoder.read_some(peer.as_fd(), 7) {
                assert!(n > 0);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    assert_eq!(frame.fds.len(), 1);
                    got += 1;
                }
            }
        }
        assert!(!conn.is_sending() && !conn.is_dead());
    }

    #[test]
    fn nonsense_and_end_of_file_break_it() {
        let (mut conn, peer) = pair();
        assert!(conn.receive().is_none() && !conn.is_dead());
        rustix::io::write(&peer, &[255; 16]).unwrap();
        assert!(conn.receive().is_none() && conn.is_dead());
        let (mut conn, peer) = pair();
        drop(peer);
        assert!(conn.receive().is_none() && conn.is_dead());
    }
}
