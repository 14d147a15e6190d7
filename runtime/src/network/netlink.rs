//! A small blocking netlink client: several requests in one write, one answer for each.
//!
//! The kernel works a request off inside `send`, so every answer is waiting when `send` returns and
//! nothing here waits for the network. A socket belongs to the namespace it was opened in.

use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt;

use crate::sys::netns;

pub(super) use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL};

/// The kernel did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}{}", hint.as_deref().map(|h| format!(" ({h})")).unwrap_or_default())]
pub struct NetlinkError {
    /// What was asked for, in words.
    what: String,
    /// The kernel's own explanation (extended acknowledgement), where there is one.
    hint: Option<String>,
    /// The error number.
    #[source]
    source: io::Error,
}

impl NetlinkError {
    /// An error of the transport.
    pub(super) fn new(what: impl Into<String>, source: io::Error) -> Self {
        Self {
            what: what.into(),
            hint: None,
            source,
        }
    }

    /// The error number.
    pub(super) fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// One request of a batch.
#[derive(Debug)]
pub(super) struct Step {
    what: String,
    message: RouteNetlinkMessage,
    flags: u16,
}

impl Step {
    /// A request, with what it does in words for the error.
    pub(super) fn new(what: impl Into<String>, message: RouteNetlinkMessage, flags: u16) -> Self {
        Self {
            what: what.into(),
            message,
            flags,
        }
    }
}

/// An answer to one message, as it came.
#[derive(Debug)]
pub(super) struct Answer<'a> {
    /// Sequence number of the request.
    pub(super) sequence: u32,
    /// Message type.
    pub(super) kind: u16,
    /// All of it, with its header.
    pub(super) bytes: &'a [u8],
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// The kernel fills at most 32 KiB of an answer at once.
const DATAGRAM: usize = 64 << 10;
/// What a socket should hold of answers that were not read yet: some thousand acknowledgements.
const RECEIVE_BUFFER: usize = 2 << 20;
/// Questions asked at once: their answers have to find room in the socket, whatever its size.
const QUESTIONS: usize = 64;
/// How often a list is asked for again that changed while the kernel wrote it.
const DUMP_ATTEMPTS: u32 = 64;
/// Far more than any request takes; a kernel that does not answer must not hold a thread for ever.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// A netlink socket.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl Netlink {
    /// rtnetlink in the calling thread's namespace.
    pub(super) fn route() -> Result<Self, NetlinkError> {
        Self::open(NETLINK_ROUTE).map_err(|e| NetlinkError::new("open an rtnetlink socket", e))
    }

    /// rtnetlink in another namespace: the socket stays there, the caller does not go.
    pub(super) fn route_in(path: &Path) -> Result<Self, NetlinkError> {
        netns::run_in(path, || Self::open(NETLINK_ROUTE))
            .and_then(|opened| opened)
            .map_err(|e| NetlinkError::new(format!("enter network namespace {path:?}"), e))
    }

    /// nfnetlink in the calling thread's namespace.
    fn netfilter() -> Result<Self, NetlinkError> {
        Self::open(NETLINK_NETFILTER)
            .map_err(|e| NetlinkError::new("open a netfilter netlink socket", e))
    }

    fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // The explanation is a convenience; and an answer need not repeat the request.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        // Answers wait in the socket until the request is worked off; without room they are lost, and with them
        // whether it was. Without the privilege the limit of the machine counts, which small requests stay below.
        let forced = sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER);
        forced.or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Takes the next sequence number.
    pub(super) fn next_sequence(&mut self) -> u32 {
        self.sequence += 1;
        self.sequence
    }

    /// Sends all steps at once and returns the first refusal. Later steps are done nevertheless:
    /// rtnetlink knows no transactions, the caller undoes.
    pub(super) fn run(&mut self, steps: Vec<Step>) -> Result<(), NetlinkError> {
        let mut bytes = Vec::new();
        let mut names = Vec::new();
        for step in steps {
            let sequence = self.next_sequence();
            names.push((sequence, step.what));
            bytes.extend(encode(
                step.message,
                NLM_F_REQUEST | NLM_F_ACK | step.flags,
                sequence,
            ));
        }
        self.exchange(&bytes, &names)
    }

    /// Sends messages that ask for an acknowledgement each, and waits for all of these.
    pub(super) fn exchange(
        &mut self,
        bytes: &[u8],
        names: &[(u32, String)],
    ) -> Result<(), NetlinkError> {
        let Some((last, what)) = names.last() else {
            return Ok(());
        };
        let transport = |e| NetlinkError::new(what.clone(), e);
        self.socket.send(bytes, 0).map_err(transport)?;
        let mut first_error = None;
        loop {
            let datagram = self.receive().map_err(transport)?;
            for answer in answers(&datagram) {
                if answer.kind != NLMSG_ERROR {
                    continue;
                }
                let name = names
                    .iter()
                    .find(|(sequence, _)| *sequence == answer.sequence);
                if let Err(error) = acknowledged(&answer, name.map_or(what, |(_, what)| what)) {
                    // An error for what is not in the list is one for the whole batch.
                    if name.is_none() {
                        return Err(error);
                    }
                    first_error.get_or_insert(error);
                }
                if answer.sequence == *last {
                    return first_error.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Asks one question and gives what `each` makes of the parts of the answer. A list that changed while it
    /// was written is asked for again: things that stayed may be missing in it.
    pub(super) fn ask<T>(
        &mut self,
        what: &str,
        request: impl Fn(u32) -> Vec<u8>,
        mut each: impl FnMut(&Answer<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = Vec::new();
            let part = |answer: &Answer<'_>| found.extend(each(answer));
            let whole = self.ask_once(what, &request, part)?;
            if whole {
                return Ok(found);
            }
        }
        let source = io::Error::from_raw_os_error(libc::EINTR);
        Err(NetlinkError::new(what, source))
    }

    /// Says whether the answer is of one moment.
    fn ask_once(
        &mut self,
        what: &str,
        request: impl Fn(u32) -> Vec<u8>,
        mut each: impl FnMut(&Answer<'_>),
    ) -> Result<bool, NetlinkError> {
        let sequence = self.next_sequence();
        let transport = |e| NetlinkError::new(what, e);
        self.socket.send(&request(sequence), 0).map_err(transport)?;
        let mut whole = true;
        loop {
            let datagram = self.receive().map_err(transport)?;
            for answer in answers(&datagram) {
                if answer.sequence != sequence {
                    continue;
                }
                whole &= u16_at(answer.bytes, 6).is_none_or(|f| f & NLM_F_DUMP_INTR == 0);
                match answer.kind {
                    // A list that broke off says why in the place of an acknowledgement's code.
                    NLMSG_DONE if answer.bytes.len() >= HEADER + 4 => {
                        return acknowledged(&answer, what).map(|()| whole);
                    }
                    NLMSG_DONE => return Ok(whole),
                    NLMSG_ERROR => return acknowledged(&answer, what).map(|()| whole),
                    _ => each(&answer),
                }
            }
        }
    }

    /// Asks questions that have one answer each, or none (`ENOENT`), and gives what `each` makes of the answers.
    pub(super) fn ask_each<T>(
        &mut self,
        what: &str,
        questions: &[Vec<u8>],
        request: impl Fn(u32, &[u8]) -> Vec<u8>,
        mut each: impl FnMut(&Answer<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let transport = |e| NetlinkError::new(what, e);
        let mut found = Vec::new();
        for some in questions.chunks(QUESTIONS) {
            let mut bytes = Vec::new();
            for question in some {
                let sequence = self.next_sequence();
                bytes.extend(request(sequence, question));
            }
            self.socket.send(&bytes, 0).map_err(transport)?;
            let mut open = some.len();
            while open > 0 {
                let datagram = self.receive().map_err(transport)?;
                for answer in answers(&datagram) {
                    if answer.kind != NLMSG_ERROR {
                        found.extend(each(&answer));
                        continue;
                    }
                    open = open.saturating_sub(1);
                    match acknowledged(&answer, what) {
                        Err(error) if error.errno() == Some(libc::ENOENT) => {}
                        other => other?,
                    }
                }
            }
        }
        Ok(found)
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut datagram = Vec::with_capacity(DATAGRAM);
        let length = self.socket.recv(&mut datagram, libc::MSG_TRUNC)?;
        if length > datagram.len() {
            return Err(io::Error::other("netlink answer is too long"));
        }
        Ok(datagram)
    }

    /// All objects of a kind.
    pub(super) fn dump(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.query(what, message, NLM_F_REQUEST | NLM_F_DUMP)
    }

    /// One object.
    pub(super) fn get(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, NetlinkError> {
        self.query(what, message, NLM_F_REQUEST | NLM_F_ACK)
            .map(|found| found.into_iter().next())
    }

    fn query(
        &mut self,
        what: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let request = |sequence| encode(message.clone(), flags, sequence);
        self.ask(what, request, |answer| {
            // A message of a kind that the decoder does not know is not one we asked for.
            let decoded = NetlinkMessage::<RouteNetlinkMessage>::deserialize(answer.bytes).ok()?;
            match decoded.payload {
                NetlinkPayload::InnerMessage(message) => Some(message),
                _ => None,
            }
        })
    }
}

/// Netfilter sockets that are kept open between uses.
///
/// When one is closed while nf_tables still frees what was deleted, the kernel waits for that: two
/// RCU grace periods, 15 ms on an idle machine, on the path of every pod that goes.
#[derive(Debug, Default)]
pub(super) struct NetfilterPool(Mutex<Vec<Netlink>>);

/// More than ever work at the same time.
const POOL_LIMIT: usize = 64;

impl NetfilterPool {
    /// Lends a socket to `work`. After a failure it is closed: answers may be left in it.
    pub(super) fn with<T, E: From<NetlinkError>>(
        &self,
        work: impl FnOnce(&mut Netlink) -> Result<T, E>,
    ) -> Result<T, E> {
        let idle = self.idle().pop();
        let mut netlink = idle.map_or_else(Netlink::netfilter, Ok)?;
        let done = work(&mut netlink)?;
        let mut idle = self.idle();
        if idle.len() < POOL_LIMIT {
            idle.push(netlink);
        }
        Ok(done)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Netlink>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn encode(message: RouteNetlinkMessage, flags: u16, sequence: u32) -> Vec<u8> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn answers(mut rest: &[u8]) -> impl Iterator<Item = Answer<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(rest, 0)?).ok()?;
        let bytes = rest.get(..length).filter(|_| length >= HEADER)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Answer {
            sequence: u32_at(bytes, 8)?,
            kind: u16_at(bytes, 4)?,
            bytes,
        })
    })
}

fn acknowledged(answer: &Answer<'_>, what: &str) -> Result<(), NetlinkError> {
    let code = u32_at(answer.bytes, HEADER).map_or(-libc::EPROTO, u32::cast_signed);
    if code == 0 {
        return Ok(());
    }
    let explained = u16_at(answer.bytes, 6).is_some_and(|flags| flags & NLM_F_ACK_TLVS != 0);
    // The request's header (16 bytes) is repeated between the code and the attributes.
    let hint = explained
        .then(|| answer.bytes.get(HEADER + 4 + HEADER..))
        .flatten()
        .and_then(|rest| attributes(rest).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG))
        .map(|(_, text)| {
            String::from_utf8_lossy(text)
                .trim_end_matches('\0')
                .to_owned()
        });
    Err(NetlinkError {
        what: what.to_owned(),
        hint,
        source: io::Error::from_raw_os_error(-code),
    })
}

/// The attributes of a message body: type without its flag bits, value.
pub(super) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_answers_end_the_iteration() {
        for bytes in [&[][..], &[4, 0, 0, 0], &[0; 16], &[255; 40]] {
            assert_eq!(answers(bytes).count(), 0);
        }
        for bytes in [&[][..], &[0, 0, 0, 0], &[3, 0, 1, 0], &[255; 7]] {
            assert_eq!(attributes(bytes).count(), 0);
        }
    }
}
