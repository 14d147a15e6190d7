//! Having a disposable worker make a process.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use shim_protocol::frame::{self, Decoder, take_fd};
use shim_protocol::monitor::{Failure, FailureKind};
use shim_protocol::worker::{self, Started};
use shim_protocol::{Fd, Message as _};

use crate::sys;

/// How long a worker may take to read its request.
const SEND_LIMIT: Duration = Duration::from_secs(10);

/// A failure in words.
pub(crate) fn failure(kind: FailureKind, message: impl Into<String>) -> Failure {
    Failure {
        kind: kind as i32,
        message: message.into(),
    }
}

/// A process that a worker made. It is a child of this monitor.
pub(crate) struct Made {
    pub(crate) pid: Pid,
    pub(crate) started: Started,
    pub(crate) pidfd: OwnedFd,
    /// Master of its terminal.
    pub(crate) console: Option<OwnedFd>,
}

/// A worker under way.
pub(crate) struct Job {
    pid: Pid,
    socket: Option<OwnedFd>,
    decoder: Decoder,
    /// Why its request did not reach it.
    unsent: Option<String>,
    /// Its pid may be somebody else's.
    reaped: bool,
    /// It is killed at this time.
    pub(crate) deadline: Instant,
}

impl Job {
    /// Starts a worker and hands it its request.
    pub(crate) fn start(
        exe: BorrowedFd<'_>,
        call: worker::Call,
        fds: &[(Fd, BorrowedFd<'_>)],
        limit: Duration,
    ) -> io::Result<Self> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        sockopt::set_socket_timeout(&ours, sockopt::Timeout::Send, Some(SEND_LIMIT))?;
        let pid = sys::spawn(exe, c"berth-worker", theirs.as_fd(), |error| {
            let text = format!("the worker's program could not be executed: {error}");
            let outcome = worker::Outcome::Failure(failure(FailureKind::Internal, text));
            let reply = worker::Reply {
                outcome: Some(outcome),
                fds: Vec::new(),
            };
            let _ = frame::send(&theirs, &reply.encode_to_vec(), &[]);
        })?;
        drop(theirs);
        let (roles, fds): (Vec<i32>, Vec<_>) = fds.iter().map(|(r, f)| (*r as i32, *f)).unzip();
        let request = worker::Request {
            call: Some(call),
            fds: roles,
        };
        let sent = frame::send(&ours, &request.encode_to_vec(), &fds);
        rustix::io::ioctl_fionbio(&ours, true)?;
        let job = Self {
            pid,
            socket: Some(ours),
            decoder: Decoder::default(),
            unsent: sent.err().map(|e| e.to_string()),
            reaped: false,
            deadline: Instant::now() + limit,
        };
        if job.unsent.is_some() {
            // Else it waits for the rest of its request. Its end tells, if it has not died by itself.
            job.kill();
        }
        Ok(job)
    }

    /// The worker's pid.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// To be polled for the answer.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Kills the worker; [`Job::on_end`] follows.
    pub(crate) fn kill(&self) {
        if !self.reaped {
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }

    /// The answer, if it has arrived. The worker has nothing to do after it, and is killed, because it stands
    /// in the process's cgroups.
    pub(crate) fn on_readable(&mut self) -> Option<Result<Made, Failure>> {
        let answer = self.receive()?;
        self.kill();
        Some(answer)
    }

    fn receive(&mut self) -> Option<Result<Made, Failure>> {
        let socket = self.socket.as_ref()?;
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Some(answer(frame)),
                Ok(None) => {}
                Err(e) => return Some(Err(nonsense(&e.to_string()))),
            }
            let want = self.decoder.missing();
            match self.decoder.read_some(socket.as_fd(), want) {
                Ok(n) if n > 0 => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                // It has closed its end: its death, which follows, says more.
                _ => {
                    self.socket = None;
                    return None;
                }
            }
        }
    }

    /// The worker has ended with this status and is reaped: its answer, or why there is none.
    pub(crate) fn on_end(&mut self, code: i32) -> Result<Made, Failure> {
        self.reaped = true;
        self.receive().unwrap_or_else(|| {
            let unsent = self.unsent.as_ref();
            let unsent = unsent.map_or_else(String::new, |why| {
                format!(" (its request could not be sent: {why})")
            });
            let text = format!("the worker ended with status {code} and gave no answer{unsent}");
            Err(failure(FailureKind::Internal, text))
        })
    }
}

fn nonsense(why: &str) -> Failure {
    failure(
        FailureKind::Internal,
        format!("the worker's answer cannot be read: {why}"),
    )
}

fn answer(frame: frame::Frame) -> Result<Made, Failure> {
    let reply = worker::Reply::decode(&*frame.message).map_err(|e| nonsense(&e.to_string()))?;
    let started = match reply.outcome {
        Some(worker::Outcome::Started(started)) => started,
        Some(worker::Outcome::Failure(failure)) => return Err(failure),
        _ => return Err(nonsense("it is not an answer to this request")),
    };
    let (mut roles, mut fds) = (reply.fds, frame.fds);
    let console = take_fd(&mut roles, &mut fds, Fd::Console);
    let pidfd = take_fd(&mut roles, &mut fds, Fd::Pidfd);
    let pid = Some(started.pid)
        .filter(|pid| *pid > 0)
        .and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| nonsense("no pid"))?;
    if let Err(Errno::CHILD) = peek(pid) {
        return Err(nonsense("the process is not a child of the monitor"));
    }
    // The pid is our own child's and cannot be another's before it is reaped.
    let pidfd = match pidfd {
        Some(pidfd) => pidfd,
        None => pidfd_open(pid, PidfdFlags::empty()).map_err(|e| nonsense(&e.to_string()))?,
    };
    Ok(Made {
        pid,
        started,
        pidfd,
        console,
    })
}

/// Whether a child has ended, without reaping it.
pub(crate) fn peek(pid: Pid) -> Result<bool, Errno> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(waitid(WaitId::Pid(pid), options)?.is_some())
}

/// Reaps a child that has ended: its exit status, or 128 + the signal that killed it.
pub(crate) fn reap(pid: Pid) -> Option<i32> {
    use rustix::process::{WaitOptions, waitpid};
    let (_, status) = waitpid(Some(pid), WaitOptions::NOHANG).ok()??;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => Some(code),
        (None, Some(signal)) => Some(128 + signal),
        (None, None) => None,
    }
}
