//! Framing: a header of eight bytes (length, then number of descriptors, both little endian `u32`),
//! then the message. The descriptors ride on the header.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Largest message in bytes: room for an argument vector and environment at the kernel's limit
/// (`ARG_MAX` is a quarter of an 8 MiB stack, execve(2)) and some more.
pub const MAX_MESSAGE: usize = 8 << 20;

/// Most descriptors one message may carry (the kernel's limit is 253, unix(7)).
pub const MAX_FDS: usize = 16;

const HEADER: usize = 8;

/// One received message.
#[derive(Debug)]
pub struct Frame {
    /// The encoded message.
    pub message: Vec<u8>,
    /// The descriptors that came with it, all close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// Takes one received descriptor of a role out of a message's list, by the roles it announced.
///
/// Returns `None` when the message carried no such descriptor.
pub fn take_fd(roles: &mut Vec<i32>, fds: &mut Vec<OwnedFd>, role: crate::Fd) -> Option<OwnedFd> {
    let at = roles.iter().position(|r| *r == role as i32)?;
    if at >= fds.len() {
        return None;
    }
    roles.remove(at);
    Some(fds.remove(at))
}

/// Builds the header of a message.
///
/// # Errors
/// `InvalidInput` when the message or the number of descriptors is over the limit.
pub fn header(message: &[u8], fds: usize) -> io::Result<[u8; HEADER]> {
    let length = u32::try_from(message.len())
        .ok()
        .filter(|l| *l as usize <= MAX_MESSAGE);
    let count = u32::try_from(fds).ok().filter(|c| *c as usize <= MAX_FDS);
    let (Some(length), Some(count)) = (length, count) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "message of {} bytes with {fds} descriptors is over the limit",
                message.len()
            ),
        ));
    };
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&length.to_le_bytes());
    header[4..].copy_from_slice(&count.to_le_bytes());
    Ok(header)
}

/// Sends one piece of a frame; the descriptors go with its first byte. Returns the bytes sent.
///
/// # Errors
/// As sendmsg(2); `WouldBlock` on a non-blocking socket that is full.
pub fn send_some(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    Ok(sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?)
}

/// Sends a whole frame on a blocking socket.
///
/// # Errors
/// `InvalidInput` over the limits of this module, else as sendmsg(2).
pub fn send(socket: impl AsFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let header = header(message, fds.len())?;
    let socket = socket.as_fd();
    let mut sent = retry(|| send_some(socket, &header, fds))?;
    while sent < HEADER {
        sent += retry(|| send_some(socket, &header[sent..], &[]))?;
    }
    let mut rest = message;
    while !rest.is_empty() {
        let n = retry(|| send_some(socket, rest, &[]))?;
        rest = &rest[n..];
    }
    Ok(())
}

/// Receives a whole frame from a blocking socket; `None` at a clean end of file.
///
/// # Errors
/// `InvalidData` for a frame over the limits, `UnexpectedEof` for one cut short, else as recvmsg(2).
pub fn recv(socket: impl AsFd) -> io::Result<Option<Frame>> {
    let mut decoder = Decoder::default();
    loop {
        if let Some(frame) = decoder.next_frame()? {
            return Ok(Some(frame));
        }
        // Exactly what is missing, so that nothing of a following frame is swallowed.
        let want = decoder.missing();
        if retry(|| decoder.read_some(socket.as_fd(), want))? == 0 {
            return if decoder.is_empty() {
                Ok(None)
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            };
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Puts frames together from what a non-blocking socket gives.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Decoder {
    /// Nothing is held back.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.fds.is_empty()
    }

    /// How many bytes are missing from the frame under way (at least 1).
    pub fn missing(&self) -> usize {
        if self.bytes.len() < HEADER {
            return HEADER - self.bytes.len();
        }
        (HEADER + self.announced().0)
            .saturating_sub(self.bytes.len())
            .max(1)
    }

    /// Reads up to `limit` bytes and the descriptors that come with them; 0 is end of file.
    ///
    /// # Errors
    /// As recvmsg(2); `WouldBlock` when there is nothing to read.
    pub fn read_some(&mut self, socket: BorrowedFd<'_>, limit: usize) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let old = self.bytes.len();
        self.bytes.resize(old + limit.min(64 << 10), 0);
        let got = recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut self.bytes[old..])],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        self.bytes
            .truncate(old + got.as_ref().map_or(0, |g| g.bytes));
        let got = got?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        Ok(got.bytes)
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// `InvalidData` when the peer announces more than the limits allow, or when descriptors are missing.
    pub fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        if self.bytes.len() < HEADER {
            return Ok(None);
        }
        let (length, count) = self.announced();
        if length > MAX_MESSAGE || count > MAX_FDS {
            return Err(invalid(format!(
                "frame of {length} bytes with {count} descriptors"
            )));
        }
        if self.bytes.len() < HEADER + length {
            return Ok(None);
        }
        if self.fds.len() < count {
            return Err(invalid(format!(
                "{} of {count} descriptors arrived",
                self.fds.len()
            )));
        }
        let rest = self.bytes.split_off(HEADER + length);
        let mut message = std::mem::replace(&mut self.bytes, rest);
        message.drain(..HEADER);
        let fds = self.fds.drain(..count).collect();
        Ok(Some(Frame { message, fds }))
    }

    fn announced(&self) -> (usize, usize) {
        let word = |at: usize| {
            let mut le = [0; 4];
            le.copy_from_slice(&self.bytes[at..at + 4]);
            u32::from_le_bytes(le) as usize
        };
        (word(0), word(4))
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn frames_and_descriptors_arrive_in_order() {
        let (a, b) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        send(&a, b"first", &[file.as_fd()]).unwrap();
        send(&a, b"", &[]).unwrap();
        send(&a, &vec![7; 100_000], &[file.as_fd(), file.as_fd()])
            .unwrap_or_else(|e| panic!("{e}"));
        let first = recv(&b).unwrap().unwrap();
        assert_eq!(
            (first.message.as_slice(), first.fds.len()),
            (&b"first"[..], 1)
        );
        let second = recv(&b).unwrap().unwrap();
        assert_eq!((second.message.len(), second.fds.len()), (0, 0));
        let third = recv(&b).unwrap().unwrap();
        assert_eq!((third.message.len(), third.fds.len()), (100_000, 2));
        drop(a);
        assert!(recv(&b).unwrap().is_none());
    }

    #[test]
    fn a_frame_cut_short_is_an_error() {
        let (a, b) = UnixStream::pair().unwrap();
        send_some(a.as_fd(), &[5, 0, 0, 0, 0, 0, 0, 0, 1], &[]).unwrap();
        drop(a);
        assert_eq!(recv(&b).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn an_oversized_frame_is_refused_before_it_is_read() {
        let (a, b) = UnixStream::pair().unwrap();
        send_some(a.as_fd(), &[255; 8], &[]).unwrap();
        assert_eq!(recv(&b).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
