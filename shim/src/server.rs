//! The loop: waits for everything at once, and never for one thing alone.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, sockopt};
use rustix::process::{PidfdFlags, geteuid, getpid, pidfd_open};
use shim_protocol::frame::{Frame, take_fd};
use shim_protocol::monitor::{
    Call, Event, EventMessage, FailureKind, Hello, Message, Outcome, Reply, Request, State,
};
use shim_protocol::{Fd, Message as _, OLDEST, VERSION};

use crate::conn::Conn;
use crate::container::{Container, Ready, create, done, fail, refusal};
use crate::sys;
use crate::worker::failure;

/// Daemons at once; more than one only while a new one takes over.
const MAX_CONNS: usize = 16;

/// Requests taken from one connection before others get their turn.
const TURN: usize = 16;

/// How long the last words may take to be read.
const FAREWELL: Duration = Duration::from_secs(1);

/// Memory that work has used goes back to the kernel this long after the first of it.
const SETTLE: Duration = Duration::from_secs(1);

/// Who asked.
#[derive(Clone, Copy)]
pub(crate) struct Caller {
    conn: u32,
    request: u64,
}

impl Caller {
    /// The connection on which it was asked.
    pub(crate) fn conn(self) -> u32 {
        self.conn
    }
}

/// Something to be told.
pub(crate) enum Letter {
    /// To the one who asked.
    Reply(Caller, Outcome, Vec<(Fd, OwnedFd)>),
    /// To everybody.
    Event(Event),
}

/// What is to be told after a step.
pub(crate) type Outbox = Vec<Letter>;

/// What became ready.
#[derive(Clone, Copy)]
enum Token {
    Container(Ready),
    Conn(u32),
    Listener,
    Children,
}

/// The monitor.
pub(crate) struct Server {
    conns: Vec<Conn>,
    next_conn: u32,
    listener: Option<OwnedFd>,
    /// Readable when a child has ended.
    children: OwnedFd,
    container: Option<Container>,
    /// Nothing was made, and nothing will be.
    failed: bool,
    /// When to give memory back.
    settle_at: Option<Instant>,
}

impl Server {
    /// A monitor with its first connection.
    pub(crate) fn new(children: OwnedFd, bootstrap: OwnedFd) -> Self {
        Self {
            conns: vec![Conn::new(0, bootstrap)],
            next_conn: 1,
            listener: None,
            children,
            container: None,
            failed: false,
            settle_at: None,
        }
    }

    /// Works until the container is over.
    pub(crate) fn run(&mut self) {
        let mut out = Outbox::new();
        while !self.is_over() {
            let ready = self.wait();
            if !ready.is_empty() {
                self.settle_at
                    .get_or_insert_with(|| Instant::now() + SETTLE);
            }
            for (token, flags) in ready {
                self.on_ready(token, flags, &mut out);
            }
            if let Some(container) = &mut self.container {
                container.on_time(&mut out);
            }
            self.deliver(&mut out);
            self.settle();
        }
        if let Some(container) = &self.container {
            container.remove_socket();
        }
        self.farewell();
    }

    /// A monitor spends its life waiting: what it does not need for that it gives back.
    fn settle(&mut self) {
        if self.settle_at.is_some_and(|at| Instant::now() >= at) {
            self.settle_at = None;
            if let Some(container) = &mut self.container {
                container.release();
            }
            sys::release_stack();
        }
    }

    fn is_over(&self) -> bool {
        match &self.container {
            Some(container) => container.is_over(),
            None => self.failed || self.conns.is_empty(),
        }
    }

    /// Waits for the next thing to happen. Children come last: what they left in pipes comes first.
    fn wait(&self) -> Vec<(Token, PollFlags)> {
        let mut tokens = Vec::with_capacity(8);
        let mut fds = Vec::with_capacity(8);
        let mut add = |token, fd, flags| {
            tokens.push(token);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        if let Some(container) = &self.container {
            container.poll(|ready, fd, flags| add(Token::Container(ready), fd, flags));
        }
        // Indices of outputs stay right when the last is handled first.
        let outputs = tokens.len();
        let mut add = |token, fd, flags| {
            tokens.push(token);
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        };
        for conn in &self.conns {
            let (fd, flags) = conn.poll();
            add(Token::Conn(conn.key), fd, flags);
        }
        if let Some(listener) = &self.listener {
            add(Token::Listener, listener.as_fd(), PollFlags::IN);
        }
        add(Token::Children, self.children.as_fd(), PollFlags::IN);
        let deadline = self.container.as_ref().and_then(Container::deadline);
        let deadline = deadline.into_iter().chain(self.settle_at).min();
        match poll(&mut fds, deadline.map(until).as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
        let order = (0..outputs).rev().chain(outputs..tokens.len());
        order
            .filter(|i| !fds[*i].revents().is_empty())
            .map(|i| (tokens[i], fds[i].revents()))
            .collect()
    }

    fn on_ready(&mut self, token: Token, flags: PollFlags, out: &mut Outbox) {
        match token {
            Token::Container(ready) => {
                if let Some(container) = &mut self.container {
                    container.on_ready(ready, out);
                }
            }
            Token::Conn(key) => self.on_conn(key, flags, out),
            Token::Listener => self.accept(),
            Token::Children => {
                let _ = rustix::io::read(&self.children, &mut [0; 128]);
                if let Some(container) = &mut self.container {
                    container.on_child(out);
                }
            }
        }
    }

    fn on_conn(&mut self, key: u32, flags: PollFlags, out: &mut Outbox) {
        for turn in 0..TURN {
            let Some(conn) = self.conns.iter_mut().find(|c| c.key == key) else {
                return;
            };
            if turn == 0 && flags.contains(PollFlags::OUT) {
                conn.flush();
            }
            let Some(frame) = conn.receive() else { return };
            match decode(frame) {
                Some((request, fds)) => self.on_request(key, request, fds, out),
                None => conn.closing = true,
            }
        }
    }

    fn on_request(&mut self, key: u32, request: Request, fds: Vec<OwnedFd>, out: &mut Outbox) {
        let caller = Caller {
            conn: key,
            request: request.id,
        };
        let conn = self.conns.iter_mut().find(|c| c.key == key);
        let greeted = conn.is_some_and(|c| c.greeted);
        let call = match request.call {
            Some(Call::Hello(hello)) => return self.hello(caller, hello, out),
            Some(call) if greeted => call,
            _ => return self.refuse(caller, "no operation, or no hello before it", out),
        };
        let container = match (call, &mut self.container) {
            (Call::Create(request_body), None) => {
                match create(caller, request_body, request.fds, fds) {
                    Ok((container, listener)) => {
                        self.container = Some(container);
                        self.listen(listener);
                    }
                    Err(failure) => {
                        self.failed = true;
                        out.push(fail(caller, failure));
                    }
                }
                return;
            }
            (Call::Create(_), Some(_)) => {
                return out.push(refusal(caller, "the container exists already"));
            }
            (Call::Destroy(_), None) => {
                self.failed = true;
                return out.push(done(caller));
            }
            (call, Some(container)) => (call, container),
            (_, None) => return out.push(refusal(caller, "there is no container yet")),
        };
        match container {
            (Call::Start(_), container) => container.start(caller, out),
            (Call::Exec(exec), container) => container.exec(caller, exec, request.fds, fds, out),
            (Call::ReopenLog(_), container) => {
                let (mut roles, mut fds) = (request.fds, fds);
                let dir = take_fd(&mut roles, &mut fds, Fd::LogDir);
                container.reopen_log(caller, dir, out);
            }
            (Call::Destroy(_), container) => container.destroy(caller, out),
            (Call::KillExec(kill), container) => container.kill_exec(caller, &kill.exec_id, out),
            (Call::Hello(_) | Call::Create(_), _) => {}
        }
    }

    fn hello(&mut self, caller: Caller, hello: Hello, out: &mut Outbox) {
        let version = hello.version.min(VERSION);
        if version < hello.oldest.max(OLDEST) {
            let text = format!(
                "this monitor speaks protocol {OLDEST} to {VERSION}, not {} to {}",
                hello.oldest, hello.version
            );
            out.push(fail(caller, failure(FailureKind::Version, text)));
            return self.close(caller);
        }
        let container = self.container.as_ref();
        let state = State {
            version,
            monitor_pid: getpid().as_raw_nonzero().get(),
            ..container.map(Container::state).unwrap_or_default()
        };
        let pidfd = container.and_then(Container::pidfd);
        let pidfd = pidfd
            .and_then(|fd| fd.try_clone_to_owned().ok())
            .map(|fd| (Fd::Pidfd, fd));
        let own = pidfd_open(getpid(), PidfdFlags::empty())
            .ok()
            .map(|fd| (Fd::MonitorPidfd, fd));
        let fds = own.into_iter().chain(pidfd).collect();
        if let Some(conn) = self.conns.iter_mut().find(|c| c.key == caller.conn) {
            conn.greeted = true;
        }
        out.push(Letter::Reply(caller, Outcome::Hello(state), fds));
    }

    fn refuse(&mut self, caller: Caller, why: &str, out: &mut Outbox) {
        out.push(refusal(caller, why));
        self.close(caller);
    }

    fn close(&mut self, caller: Caller) {
        if let Some(conn) = self.conns.iter_mut().find(|c| c.key == caller.conn) {
            conn.closing = true;
        }
    }

    fn listen(&mut self, listener: OwnedFd) {
        if rustix::io::ioctl_fionbio(&listener, true).is_ok() {
            self.listener = Some(listener);
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = match accept_with(listener, flags) {
            Ok(socket) => socket,
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
            // Out of descriptors or memory: the listener stays ready, and the loop must not spin.
            Err(_) => return std::thread::sleep(Duration::from_millis(10)),
        };
        let peer = sockopt::socket_peercred(&socket);
        let ours = peer.is_ok_and(|p| p.uid.is_root() || p.uid == geteuid());
        if ours && self.conns.len() < MAX_CONNS {
            self.conns.push(Conn::new(self.next_conn, socket));
            self.next_conn += 1;
        }
    }

    /// Sends what is to be told, and forgets dead connections.
    fn deliver(&mut self, out: &mut Outbox) {
        for letter in out.drain(..) {
            match letter {
                Letter::Reply(caller, outcome, fds) => {
                    let told = matches!(&outcome, Outcome::Hello(State { exit: Some(_), .. }));
                    let body = Message::Reply(Reply {
                        id: caller.request,
                        outcome: Some(outcome),
                    });
                    if let Some(conn) = self.conns.iter_mut().find(|c| c.key == caller.conn) {
                        conn.send(body, fds);
                        told_of_exit(&mut self.container, conn, told);
                    }
                }
                Letter::Event(event) => {
                    let told = matches!(&event, Event::Exited(_));
                    let body = Message::Event(EventMessage { event: Some(event) });
                    for conn in self.conns.iter_mut().filter(|c| c.greeted) {
                        conn.send(body.clone(), Vec::new());
                        told_of_exit(&mut self.container, conn, told);
                    }
                }
            }
        }
        let container = &mut self.container;
        self.conns.retain(|conn| {
            let dead = conn.is_dead();
            if let (true, Some(container)) = (dead, &mut *container) {
                container.hung_up(conn.key);
            }
            !dead
        });
    }

    /// Waits a moment for the last messages to be read.
    fn farewell(&mut self) {
        let give_up = Instant::now() + FAREWELL;
        while self.conns.iter().any(Conn::is_sending) && Instant::now() < give_up {
            let mut fds: Vec<PollFd<'_>> = self
                .conns
                .iter()
                .filter(|conn| conn.is_sending())
                .map(|conn| PollFd::from_borrowed_fd(conn.poll().0, PollFlags::OUT))
                .collect();
            let _ = poll(&mut fds, Some(&until(give_up)));
            self.conns.iter_mut().for_each(Conn::flush);
        }
    }
}

/// Notes that a daemon knows of the exit.
fn told_of_exit(container: &mut Option<Container>, conn: &Conn, told: bool) {
    if told
        && !conn.is_dead()
        && let Some(container) = container
    {
        container.told();
    }
}

fn decode(frame: Frame) -> Option<(Request, Vec<OwnedFd>)> {
    Some((Request::decode(&*frame.message).ok()?, frame.fds))
}

/// The time until then, for poll(2).
fn until(deadline: Instant) -> Timespec {
    let left = deadline.saturating_duration_since(Instant::now());
    Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    }
}
