//! Requests in, replies out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message;
use shim_protocol::worker::{Call, Outcome, Reply, Request, Started};
use shim_protocol::{Fd, frame};

use crate::error::{Context, Error, Result};

/// Descriptors that came with a request.
#[derive(Debug, Default)]
pub(crate) struct Fds {
    roles: Vec<i32>,
    fds: Vec<OwnedFd>,
}

impl Fds {
    /// The descriptor for a role, if one came.
    pub(crate) fn take(&mut self, role: Fd) -> Option<OwnedFd> {
        frame::take_fd(&mut self.roles, &mut self.fds, role)
    }

    /// The descriptor for a role that has to be there.
    pub(crate) fn require(&mut self, role: Fd) -> Result<OwnedFd> {
        self.take(role)
            .ok_or_else(|| Error::invalid(format!("descriptor {role:?} is missing")))
    }
}

/// A process that was made, and what goes with the answer.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) started: Started,
    pub(crate) fds: Vec<(Fd, OwnedFd)>,
}

/// The next request; `None` when there is none any more.
pub(crate) fn receive(socket: BorrowedFd<'_>) -> Result<Option<(Call, Fds)>> {
    let Some(received) = frame::recv(socket).context(|| "read the request".to_owned())? else {
        return Ok(None);
    };
    let request = Request::decode(received.message.as_slice())
        .map_err(|e| Error::invalid(format!("request: {e}")))?;
    let call = request
        .call
        .ok_or_else(|| Error::invalid("request without a call"))?;
    if request.fds.len() != received.fds.len() {
        return Err(Error::invalid(format!(
            "request announces {} descriptors and brings {}",
            request.fds.len(),
            received.fds.len()
        )));
    }
    Ok(Some((
        call,
        Fds {
            roles: request.fds,
            fds: received.fds,
        },
    )))
}

/// Answers a request.
pub(crate) fn answer(
    socket: BorrowedFd<'_>,
    outcome: Result<Outcome>,
    fds: &[(Fd, OwnedFd)],
) -> Result<()> {
    let reply = Reply {
        outcome: Some(outcome.unwrap_or_else(|e| Outcome::Failure(e.into_failure()))),
        fds: fds.iter().map(|(role, _)| *role as i32).collect(),
    };
    let raw: Vec<BorrowedFd<'_>> = fds.iter().map(|(_, fd)| fd.as_fd()).collect();
    frame::send(socket, &reply.encode_to_vec(), &raw).context(|| "send the reply".to_owned())
}

/// Answers with a process that was made, or with why there is none.
pub(crate) fn answer_made(socket: BorrowedFd<'_>, made: Result<Made>) -> Result<()> {
    match made {
        Ok(made) => answer(socket, Ok(Outcome::Started(made.started)), &made.fds),
        Err(e) => answer(socket, Err(e), &[]),
    }
}
