//! The task that serves one monitor: requests out, answers and events in, and what a lost connection means.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use shim_protocol::frame::{self, Decoder, Frame};
use shim_protocol::monitor::{
    Call, Event, ExecExit, FromMonitor, Hello, Message as Body, Outcome, Request,
};
use shim_protocol::{Fd, Message, OLDEST, SOCKET_NAME, VERSION};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::hung;
use super::monitor::{MonitorEvent, MonitorEventKind, Shared};
use super::record::read_exit;
use crate::blocking;
use crate::sys::process;

/// How long the end of a container may go untold. A monitor takes 12 s where everything is as slow as may be, and the
/// disk of its log may be slower.
const SILENCE: Duration = Duration::from_secs(30);

/// How long a monitor may take to end after its last word.
const FAREWELL: Duration = Duration::from_secs(10);

/// How long a handshake may take, and between attempts to reach a monitor again.
const END: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_secs(1);

/// An answer with its descriptors.
pub(super) type Answer = (Outcome, Vec<(Fd, OwnedFd)>);

/// Ends when a container's first process has been dead for long.
pub(super) type Silence = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

/// A request on its way to the monitor. The answer's sender is dropped when there will be none.
pub(super) struct Ask {
    pub(super) call: Call,
    pub(super) fds: Vec<(Fd, OwnedFd)>,
    /// `None`: nobody waits for it, and yet it is to be asked.
    pub(super) answer: Option<oneshot::Sender<Answer>>,
    /// For an exec: who waits for its end.
    pub(super) exit: Option<oneshot::Sender<ExecExit>>,
}

/// Who waits for an answer.
pub(super) struct Pending {
    answer: Option<oneshot::Sender<Answer>>,
    /// For an exec: its id.
    exec: Option<String>,
}

/// What the task works with. It lives until the monitor is dead, whoever else still holds a handle.
pub(super) struct Link {
    pub(super) shared: Arc<Shared>,
    pub(super) asks: mpsc::UnboundedReceiver<Box<Ask>>,
    pub(super) events: mpsc::UnboundedSender<MonitorEvent>,
    pub(super) stream: UnixStream,
    pub(super) dir: PathBuf,
    /// Events are told: the container exists.
    pub(super) armed: bool,
    /// Ends when the container's first process has been dead for long.
    pub(super) silence: Option<Silence>,
    pub(super) pending: HashMap<u64, Pending>,
    pub(super) execs: HashMap<String, oneshot::Sender<ExecExit>>,
    pub(super) next: u64,
    pub(super) over: bool,
}

impl Link {
    /// Serves until the monitor is gone.
    pub(super) async fn run(mut self) {
        loop {
            // Only its end matters: how a connection broke says nothing about the container.
            let _ = self.serve().await;
            self.pending.clear();
            if self.over || !Box::pin(self.reach_again()).await {
                break;
            }
        }
        self.execs.clear();
        self.asks.close();
        self.bury().await;
    }

    /// Watches the container's first process: its monitor may hang and never tell of its end.
    pub(super) fn watch(&mut self, init: OwnedFd) {
        let silence = async {
            match process::ended(init).await {
                Ok(_) => tokio::time::sleep(SILENCE).await,
                // Then only those who stop the container find out.
                Err(_) => std::future::pending().await,
            }
        };
        self.silence = Some(Box::pin(silence));
    }

    async fn serve(&mut self) -> io::Result<()> {
        let mut decoder = Decoder::default();
        loop {
            tokio::select! {
                biased;
                ready = self.stream.readable() => {
                    ready?;
                    while let Some(frame) = receive(&self.stream, &mut decoder)? {
                        self.on_frame(frame)?;
                    }
                }
                () = quiet(&mut self.silence) => {
                    self.silence = None;
                    if !self.over {
                        self.tell(MonitorEventKind::Silent);
                    }
                }
                // It has said its last word, and ends or hangs.
                () = tokio::time::sleep(FAREWELL), if self.over => return Ok(()),
                Some(ask) = self.asks.recv() => {
                    // A monitor that has hung up may have said why: that is read before it counts.
                    if self.send(*ask).await.is_err() {
                        self.pending.remove(&self.next);
                    }
                }
            }
        }
    }

    async fn send(&mut self, ask: Ask) -> io::Result<()> {
        // Asked and given up before it was its turn.
        if ask.answer.as_ref().is_some_and(oneshot::Sender::is_closed) {
            return Ok(());
        }
        self.next += 1;
        let mut pending = Pending {
            answer: ask.answer,
            exec: None,
        };
        if let (Call::Exec(exec), Some(exit)) = (&ask.call, ask.exit) {
            pending.exec = Some(exec.exec_id.clone());
            self.execs.insert(exec.exec_id.clone(), exit);
        }
        self.pending.insert(self.next, pending);
        let sent = send_request(&self.stream, self.next, ask.call, &ask.fds).await;
        crash_point!("monitor.asked.after");
        sent
    }

    fn on_frame(&mut self, frame: Frame) -> io::Result<()> {
        self.shared.heard();
        let message = FromMonitor::decode(&*frame.message).map_err(io::Error::other)?;
        let roles = message
            .fds
            .into_iter()
            .filter_map(|role| Fd::try_from(role).ok());
        let fds: Vec<_> = roles.zip(frame.fds).collect();
        match message.message {
            Some(Body::Reply(reply)) => {
                if let (Some(outcome), Some(waiting)) =
                    (reply.outcome, self.pending.remove(&reply.id))
                {
                    if let Outcome::Created(_) = outcome {
                        self.armed = true;
                        let init = fds.iter().find(|(role, _)| *role == Fd::Pidfd);
                        if let Some(Ok(init)) = init.map(|(_, fd)| fd.try_clone()) {
                            self.watch(init);
                        }
                    }
                    if let (Outcome::Failure(_), Some(exec)) = (&outcome, waiting.exec) {
                        self.execs.remove(&exec);
                    }
                    // When time was up nobody waits any more; the descriptors are closed then.
                    if let Some(answer) = waiting.answer {
                        let _ = answer.send((outcome, fds));
                    }
                }
            }
            Some(Body::Event(event)) => self.on_event(event.event),
            None => {}
        }
        Ok(())
    }

    fn on_event(&mut self, event: Option<Event>) {
        match event {
            Some(Event::Exited(exit)) => {
                self.over = true;
                self.tell(MonitorEventKind::Exited(exit));
            }
            Some(Event::ExecExited(exit)) => {
                if let Some(waiting) = self.execs.remove(&exit.exec_id) {
                    let _ = waiting.send(exit);
                }
            }
            Some(Event::Oom(oom)) => self.tell(MonitorEventKind::Oom(oom.kills)),
            None => {}
        }
    }

    fn tell(&self, kind: MonitorEventKind) {
        if self.armed {
            // Without a receiver the daemon is ending; the exit record tells the next one.
            let _ = self.events.send(MonitorEvent {
                id: self.shared.id.clone(),
                kind,
            });
        }
    }

    /// The connection broke although no end was told. True when there is a new one.
    async fn reach_again(&mut self) -> bool {
        loop {
            if self.is_dead(AGAIN).await {
                let dir = self.dir.clone();
                let record = blocking::run("read an exit record", move || read_exit(&dir)).await;
                match record {
                    Ok(Some(record)) => self.tell(MonitorEventKind::Exited(record.exit)),
                    _ => self.tell(MonitorEventKind::Lost),
                }
                return false;
            }
            // It hung up on us and lives: we had not read for too long.
            if let Ok(stream) = dial(&self.dir).await
                && let Ok(Some((state, _))) = tokio::time::timeout(END, greet(&stream)).await
            {
                if let Some(exit) = state.exit {
                    self.tell(MonitorEventKind::Exited(exit));
                    return false;
                }
                // Ends of execs meanwhile were missed; whoever waits for one is told that it is gone.
                self.execs.clear();
                self.stream = stream;
                self.shared.heard();
                return true;
            }
        }
    }

    async fn is_dead(&self, limit: Duration) -> bool {
        match self.shared.pidfd.as_ref().map(OwnedFd::try_clone) {
            Some(Ok(pidfd)) => tokio::time::timeout(limit, process::ended(pidfd))
                .await
                .is_ok(),
            // Without a pidfd the closed connection is all there is.
            _ => true,
        }
    }

    /// Reaps the monitor, if it is our child. One that hangs after its last word has nothing more to do.
    async fn bury(self) {
        drop(self.stream);
        let pidfd = || self.shared.pidfd.as_ref()?.try_clone().ok();
        let Some(watched) = pidfd() else { return };
        match tokio::time::timeout(FAREWELL, process::ended(watched)).await {
            Ok(Ok(pidfd)) => drop(process::reap(pidfd.as_fd())),
            Ok(Err(_)) => {}
            Err(_) => {
                if let Some(pidfd) = pidfd() {
                    hung::kill(pidfd, &self.shared.id, &self.shared.left_behind).await;
                }
            }
        }
    }
}

/// Waits for what may be there.
async fn quiet(silence: &mut Option<Silence>) {
    match silence {
        Some(silence) => silence.await,
        None => std::future::pending().await,
    }
}

/// Sends one request.
pub(super) async fn send_request(
    stream: &UnixStream,
    id: u64,
    call: Call,
    fds: &[(Fd, OwnedFd)],
) -> io::Result<()> {
    let roles = fds.iter().map(|(role, _)| *role as i32).collect();
    let message = Request {
        id,
        call: Some(call),
        fds: roles,
    }
    .encode_to_vec();
    send_frame(stream, &message, fds).await
}

/// Sends a whole frame.
pub(super) async fn send_frame(
    stream: &UnixStream,
    message: &[u8],
    fds: &[(Fd, OwnedFd)],
) -> io::Result<()> {
    let bytes = [&frame::header(message, fds.len())?[..], message].concat();
    let mut sent = 0;
    while sent < bytes.len() {
        stream.writable().await?;
        let piece = stream.try_io(Interest::WRITABLE, || {
            let fds: Vec<BorrowedFd<'_>> = match sent {
                0 => fds.iter().map(|(_, fd)| fd.as_fd()).collect(),
                _ => Vec::new(),
            };
            frame::send_some(stream.as_fd(), &bytes[sent..], &fds)
        });
        match piece {
            Ok(n) => sent += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The next whole frame, if it has arrived.
pub(super) fn receive(stream: &UnixStream, decoder: &mut Decoder) -> io::Result<Option<Frame>> {
    loop {
        if let Some(frame) = decoder.next_frame()? {
            return Ok(Some(frame));
        }
        // No more than is missing, so that nothing is kept between frames.
        let want = decoder.missing();
        match stream.try_io(Interest::READABLE, || {
            decoder.read_some(stream.as_fd(), want)
        }) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(e),
        }
    }
}

/// The next whole frame.
pub(super) async fn next_frame(stream: &UnixStream, decoder: &mut Decoder) -> io::Result<Frame> {
    loop {
        if let Some(frame) = receive(stream, decoder)? {
            return Ok(frame);
        }
        stream.readable().await?;
    }
}

/// Connects to the monitor that works in a directory.
pub(super) async fn dial(dir: &Path) -> io::Result<UnixStream> {
    let dir = dir.to_owned();
    let dir = blocking::run("open a container's directory", move || {
        std::fs::File::open(dir)
    })
    .await?;
    UnixStream::connect(short_path(&dir)).await
}

/// A path of the monitor's socket that fits into the 108 bytes that a socket's address has (unix(7)).
pub(super) fn short_path(dir: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}/{SOCKET_NAME}", dir.as_raw_fd()).into()
}

/// The handshake on a new connection; `None` when it is refused or breaks.
pub(super) async fn greet(
    stream: &UnixStream,
) -> Option<(shim_protocol::monitor::State, Vec<(Fd, OwnedFd)>)> {
    let hello = Call::Hello(Hello {
        version: VERSION,
        oldest: OLDEST,
    });
    send_request(stream, 0, hello, &[]).await.ok()?;
    let frame = next_frame(stream, &mut Decoder::default()).await.ok()?;
    let message = FromMonitor::decode(&*frame.message).ok()?;
    let roles = message
        .fds
        .into_iter()
        .filter_map(|role| Fd::try_from(role).ok());
    let fds = roles.zip(frame.fds).collect();
    match message.message? {
        Body::Reply(reply) => match reply.outcome? {
            Outcome::Hello(state) => Some((state, fds)),
            _ => None,
        },
        Body::Event(_) => None,
    }
}

/// A socket pair: ours for tokio, theirs to be inherited.
pub(super) fn pair() -> io::Result<(UnixStream, OwnedFd)> {
    let (ours, theirs) = StdStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((UnixStream::from_std(ours)?, theirs.into()))
}
