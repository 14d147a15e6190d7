//! An engine that works in the container's cgroup (v2), so that init is born there. Moving init there would wait for
//! an RCU grace period, 7-15 ms on an idle machine.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use prost::Message;
use rustix::event::{PollFd, PollFlags};
use shim_protocol::frame;
use shim_protocol::worker::{Outcome, Reply, Started};

use crate::engine::{Engine, Job};
use crate::error::{Context, Error, Result};
use crate::message;
use crate::sys::{self, Cloned};

/// What [`Engine::create`] does, in a process that is cloned into `leaf`. That process has ended afterwards.
pub(crate) fn create(
    engine: &impl Engine,
    job: Job<'_>,
    leaf: BorrowedFd<'_>,
    refused: impl FnOnce(&io::Error) -> Error,
) -> Result<i32> {
    let (ours, theirs) = UnixStream::pair().context(|| "make a socket pair".to_owned())?;
    // A sibling: init's parent is the parent of the process that makes it.
    let sibling = u64::from(libc::CLONE_PARENT.cast_unsigned());
    let pidfd = match sys::clone_process(sibling, Some(leaf)).map_err(|e| refused(&e))? {
        Cloned::Parent(_, pidfd) => pidfd,
        Cloned::Child => {
            let made = engine.create(job).map(|pid| Started { pid, start_time: 0 });
            let told = message::answer(theirs.as_fd(), made.map(Outcome::Started), &[]);
            // What the caller holds is not this copy's to undo.
            sys::exit_now(i32::from(told.is_err()));
        }
    };
    drop((job, theirs));
    let answer = frame::recv(&ours).context(|| "read the answer of the engine".to_owned())?;
    let mut end = [PollFd::new(&pidfd, PollFlags::IN)];
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut end, None))
        .context(|| "wait for the engine".to_owned())?;
    let lost = || Error::internal("the engine was killed in the container's cgroup");
    let answer = answer.ok_or_else(lost)?;
    let reply = Reply::decode(answer.message.as_slice())
        .map_err(|e| Error::internal(format!("answer of the engine: {e}")))?;
    match reply.outcome {
        Some(Outcome::Started(started)) => Ok(started.pid),
        Some(Outcome::Failure(failure)) => Err(Error::from_failure(failure)),
        _ => Err(Error::internal("the engine gave no answer")),
    }
}
