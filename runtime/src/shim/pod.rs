//! The worker that makes a pod's namespaces and its pause process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use shim_protocol::frame::{Decoder, take_fd};
use shim_protocol::worker::{self, Outcome, Reply, Started};
use shim_protocol::{Fd, Message};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::Error;
use super::launcher::Launcher;
use super::link::{next_frame, pair, send_frame};
use crate::sys::process;

/// How long each half may take.
const LIMIT: Duration = Duration::from_secs(60);

/// How long a worker that nobody needs any more may take to end by itself.
const END: Duration = Duration::from_secs(5);

/// A worker that has made a pod's namespaces. Dropping it ends it and leaves what it has pinned.
#[derive(Debug)]
pub struct PodWorker {
    name: String,
    stream: UnixStream,
    decoder: Decoder,
    pause: Arc<OwnedFd>,
    pid: i32,
    /// Closed when this is dropped.
    unused: oneshot::Sender<()>,
    /// Ends when the worker is reaped. Waited for where the worker stands in the pod's scope.
    burial: Option<JoinHandle<()>>,
}

/// A pod's pause process.
#[derive(Debug)]
pub struct PauseHandle {
    /// Its pid.
    pub pid: i32,
    /// Its start time in clock ticks since boot.
    pub start_time: u64,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
}

impl PodWorker {
    /// Starts a worker and has it make the namespaces.
    pub(super) async fn start(launcher: &Launcher, pod: worker::Pod) -> Result<Self, Error> {
        let name = format!("pod {}", pod.id);
        let io = |what| {
            let name = name.clone();
            move |source| Error::Io { name, what, source }
        };
        let (stream, theirs) = pair().map_err(io("make a socket"))?;
        let (pid, pidfd) = launcher
            .spawn_worker(theirs)
            .await
            .map_err(io("start a worker"))?;
        crash_point!("run_pod.worker.after");
        let (unused, dropped) = oneshot::channel();
        let burial = tokio::spawn(bury(pidfd, dropped));
        let pause = launcher.pause_exe();
        let mut worker = Self {
            name,
            stream,
            decoder: Decoder::default(),
            pause,
            pid,
            unused,
            burial: launcher.has_scope().then_some(burial),
        };
        match worker
            .call(worker::Call::Pod(pod), Vec::new(), "make namespaces")
            .await?
        {
            (Outcome::Namespaces(_), _) => Ok(worker),
            _ => Err(worker.nonsense("make namespaces")),
        }
    }

    /// The worker's pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Has the worker start the pause process. `seccomp` is its system call filter. Under systemd the worker
    /// is gone when this returns: nothing but the pod's own cgroups is left in its scope.
    ///
    /// # Errors
    /// What the worker says; it has undone its part then.
    pub async fn pause(
        mut self,
        pause: worker::Pause,
        seccomp: Option<OwnedFd>,
    ) -> Result<PauseHandle, Error> {
        let what = "start pause";
        let exe = self.pause.try_clone();
        let exe = exe.map_err(|source| Error::Io {
            name: self.name.clone(),
            what,
            source,
        })?;
        let mut fds = vec![(Fd::PauseExe, exe)];
        fds.extend(seccomp.map(|fd| (Fd::Seccomp, fd)));
        let answer = self.call(worker::Call::Pause(pause), fds, what).await?;
        let (Outcome::Started(Started { pid, start_time }), Some(pidfd)) = answer else {
            return Err(self.nonsense(what));
        };
        drop((self.stream, self.unused));
        if let Some(burial) = self.burial {
            // It is killed when it does not end by itself; what cannot be killed is not waited for.
            let _ = tokio::time::timeout(2 * END, burial).await;
        }
        Ok(PauseHandle {
            pid,
            start_time,
            pidfd,
        })
    }

    async fn call(
        &mut self,
        call: worker::Call,
        fds: Vec<(Fd, OwnedFd)>,
        what: &'static str,
    ) -> Result<(Outcome, Option<OwnedFd>), Error> {
        let roles = fds.iter().map(|(role, _)| *role as i32).collect();
        let request = worker::Request {
            call: Some(call),
            fds: roles,
        }
        .encode_to_vec();
        let exchange = async {
            // A worker that cannot read has died; then there is no answer either.
            let _ = send_frame(&self.stream, &request, &fds).await;
            crash_point!("run_pod.worker_asked.after");
            next_frame(&self.stream, &mut self.decoder).await
        };
        let frame = match tokio::time::timeout(LIMIT, exchange).await {
            Ok(Ok(frame)) => frame,
            Ok(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(Error::Gone {
                    name: self.name.clone(),
                    what,
                });
            }
            Ok(Err(source)) => {
                return Err(Error::Io {
                    name: self.name.clone(),
                    what,
                    source,
                });
            }
            Err(_) => {
                return Err(Error::Silent {
                    name: self.name.clone(),
                    what,
                    limit: LIMIT,
                });
            }
        };
        let mut fds = frame.fds;
        let mut reply = Reply::decode(&*frame.message).map_err(|_| self.nonsense(what))?;
        match reply.outcome {
            Some(Outcome::Failure(failure)) => Err(Error::refused(&self.name, failure)),
            Some(outcome) => Ok((outcome, take_fd(&mut reply.fds, &mut fds, Fd::Pidfd))),
            None => Err(self.nonsense(what)),
        }
    }

    fn nonsense(&self, what: &'static str) -> Error {
        Error::Nonsense {
            name: self.name.clone(),
            what,
        }
    }
}

/// Reaps a worker; kills one that goes on although nobody needs it.
async fn bury(pidfd: OwnedFd, dropped: oneshot::Receiver<()>) {
    let (Ok(watched), Ok(kill)) = (pidfd.try_clone(), pidfd.try_clone()) else {
        return;
    };
    let ended = process::ended(watched);
    tokio::pin!(ended);
    tokio::select! {
        _ = &mut ended => {}
        _ = dropped => {
            if tokio::time::timeout(END, &mut ended).await.is_err() {
                let _ = process::send_signal(kill.as_fd(), libc::SIGKILL);
                let _ = ended.await;
            }
        }
    }
    process::reap(pidfd.as_fd());
}
