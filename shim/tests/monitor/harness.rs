//! A daemon's side of the conversation, one call after the other.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use shim_protocol::monitor::{
    Call, Create, Empty, Event, Exec, ExecExit, ExecStarted, Exit, Failure, FromMonitor, Hello,
    Message as Body, Outcome, Request, Running, State,
};
use shim_protocol::worker::{self, Started};
use shim_protocol::{EXIT_RECORD_NAME, Fd, Message, SOCKET_NAME, frame, record};

/// No call of these tests takes longer.
const LIMIT: Duration = Duration::from_secs(20);

/// A monitor and the directory it works in.
pub(crate) struct Shim {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) daemon: Daemon,
    process: Child,
}

/// A connection to a monitor.
pub(crate) struct Daemon {
    socket: UnixStream,
    next: u64,
    events: VecDeque<Event>,
}

/// What a test asks for.
pub(crate) struct Wish {
    pub(crate) args: Vec<Vec<u8>>,
    pub(crate) create: Create,
    pub(crate) terminal: bool,
    pub(crate) log_dir: Option<PathBuf>,
}

/// A container that runs a shell script.
pub(crate) fn script(text: &str) -> Wish {
    command(&["/bin/sh", "-c", text])
}

/// A container that runs a command.
pub(crate) fn command(args: &[&str]) -> Wish {
    Wish {
        args: args.iter().map(|a| a.as_bytes().to_vec()).collect(),
        create: Create {
            boot_id: "boot".into(),
            log_name: "log".into(),
            ..Create::default()
        },
        terminal: false,
        log_dir: None,
    }
}

/// A process of a request.
pub(crate) fn process(args: Vec<Vec<u8>>) -> worker::Process {
    worker::Process {
        args,
        ..worker::Process::default()
    }
}

impl Shim {
    /// Starts a monitor and asks for nothing.
    pub(crate) fn bare() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_berth-shim"))
            .arg0("berth-shim")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut shim = Self {
            daemon: Daemon::new(ours),
            dir,
            process,
        };
        let state = shim.daemon.hello();
        assert_eq!(state.monitor_pid, i32::try_from(shim.process.id()).unwrap());
        shim
    }

    /// Starts a monitor, says hello, asks for the container.
    pub(crate) fn try_create(wish: Wish) -> (Self, Result<Started, Failure>) {
        let mut shim = Self::bare();
        let started = shim.create(wish);
        (shim, started)
    }

    /// As above, and it must work.
    pub(crate) fn created(wish: Wish) -> Self {
        let (shim, started) = Self::try_create(wish);
        started.unwrap();
        shim
    }

    /// As above, and started.
    pub(crate) fn running(wish: Wish) -> Self {
        let mut shim = Self::created(wish);
        shim.daemon.start().unwrap();
        shim
    }

    fn create(&mut self, wish: Wish) -> Result<Started, Failure> {
        let process = worker::Process {
            terminal: wish.terminal,
            ..process(wish.args)
        };
        let mut create = wish.create;
        let cgroup = worker::Cgroup {
            leaves: create.leaves.clone(),
            ..Default::default()
        };
        create.container = Some(worker::Create {
            process: Some(process),
            cgroup: Some(cgroup),
            ..worker::Create::default()
        });
        let listener = UnixListener::bind(self.dir.path().join(SOCKET_NAME)).unwrap();
        let exe = File::open(std::env::current_exe().unwrap()).unwrap();
        let dir = File::open(self.dir.path()).unwrap();
        let log_dir = wish.log_dir.as_deref().unwrap_or(self.dir.path());
        let log_dir = File::open(log_dir).unwrap();
        let fds = [
            (Fd::WorkerExe, exe.as_fd()),
            (Fd::Listener, listener.as_fd()),
            (Fd::StateDir, dir.as_fd()),
            (Fd::Rootfs, dir.as_fd()),
            (Fd::LogDir, log_dir.as_fd()),
        ];
        match self.daemon.call(Call::Create(create), &fds).0 {
            Outcome::Created(started) => Ok(started),
            Outcome::Failure(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    /// A further daemon.
    pub(crate) fn connect(&self) -> Daemon {
        Daemon::new(UnixStream::connect(self.dir.path().join(SOCKET_NAME)).unwrap())
    }

    /// The monitor's pid.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    /// The whole log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// Payloads of the log's records with stream and tag.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.log()
            .lines()
            .map(|l| l.split_once(' ').unwrap().1.to_owned())
            .collect()
    }

    /// The exit record's body.
    pub(crate) fn record(&self) -> Option<String> {
        let text = fs::read_to_string(self.dir.path().join(EXIT_RECORD_NAME)).ok()?;
        Some(record::body(&text).unwrap().to_owned())
    }

    /// Waits until the monitor has ended by itself, and checks what it leaves.
    pub(crate) fn ended(&mut self) {
        let process = &mut self.process;
        eventually("the monitor's end", || {
            process.try_wait().unwrap().is_some()
        });
        assert!(process.wait().unwrap().success());
        assert!(!self.dir.path().join(SOCKET_NAME).exists());
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Daemon {
    fn new(socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self {
            socket,
            next: 1,
            events: VecDeque::new(),
        }
    }

    /// Closes the connection.
    pub(crate) fn hang_up(&mut self) {
        self.socket = UnixStream::pair().unwrap().0;
    }

    /// Sends a request; false when it cannot be sent any more.
    pub(crate) fn try_send(&mut self, call: Call) -> bool {
        self.socket.set_write_timeout(Some(LIMIT)).unwrap();
        let request = Request {
            id: 1,
            call: Some(call),
            fds: Vec::new(),
        };
        frame::send(&self.socket, &request.encode_to_vec(), &[]).is_ok()
    }

    /// The next answer or event.
    pub(crate) fn any(&mut self) -> Result<(u64, Outcome), Event> {
        if let Some(event) = self.events.pop_front() {
            return Err(event);
        }
        match self.receive().expect("the monitor hung up").0 {
            Body::Reply(reply) => Ok((reply.id, reply.outcome.unwrap())),
            Body::Event(event) => Err(event.event.unwrap()),
        }
    }

    /// Handshake; false when it is refused.
    pub(crate) fn try_hello(&mut self) -> bool {
        self.try_send(Call::Hello(Hello {
            version: 1,
            oldest: 1,
        })) && matches!(frame::recv(&self.socket), Ok(Some(_)))
    }

    /// Sends a request without waiting; gives its id.
    pub(crate) fn send(&mut self, call: Call, fds: &[(Fd, BorrowedFd<'_>)]) -> u64 {
        let (roles, fds): (Vec<i32>, Vec<_>) = fds.iter().map(|(r, f)| (*r as i32, *f)).unzip();
        self.next += 1;
        let request = Request {
            id: self.next,
            call: Some(call),
            fds: roles,
        };
        frame::send(&self.socket, &request.encode_to_vec(), &fds).unwrap();
        self.next
    }

    fn receive(&mut self) -> Option<(Body, Vec<i32>, Vec<OwnedFd>)> {
        let frame = frame::recv(&self.socket).unwrap()?;
        let message = FromMonitor::decode(&*frame.message).unwrap();
        Some((message.message.unwrap(), message.fds, frame.fds))
    }

    /// Waits for the answer to a request.
    pub(crate) fn answer(&mut self, id: u64) -> (Outcome, Vec<i32>, Vec<OwnedFd>) {
        loop {
            let (body, roles, fds) = self.receive().expect("the monitor hung up");
            match body {
                Body::Reply(reply) if reply.id == id => {
                    return (reply.outcome.unwrap(), roles, fds);
                }
                Body::Reply(reply) => panic!("unexpected {reply:?}"),
                Body::Event(event) => self.events.push_back(event.event.unwrap()),
            }
        }
    }

    /// Sends a request and waits for the answer.
    pub(crate) fn call(
        &mut self,
        call: Call,
        fds: &[(Fd, BorrowedFd<'_>)],
    ) -> (Outcome, Vec<i32>, Vec<OwnedFd>) {
        let id = self.send(call, fds);
        self.answer(id)
    }

    /// The next event.
    pub(crate) fn event(&mut self) -> Event {
        if let Some(event) = self.events.pop_front() {
            return event;
        }
        match self.receive().expect("the monitor hung up").0 {
            Body::Event(event) => event.event.unwrap(),
            Body::Reply(reply) => panic!("unexpected {reply:?}"),
        }
    }

    /// The monitor has closed the connection.
    pub(crate) fn hung_up(&mut self) -> bool {
        self.events.is_empty() && self.receive().is_none()
    }

    /// Handshake.
    pub(crate) fn hello(&mut self) -> State {
        match self.call(
            Call::Hello(Hello {
                version: 1,
                oldest: 1,
            }),
            &[],
        ) {
            (Outcome::Hello(state), ..) => state,
            other => panic!("{other:?}"),
        }
    }

    /// Starts the container.
    pub(crate) fn start(&mut self) -> Result<Running, Failure> {
        match self.call(Call::Start(Empty {}), &[]).0 {
            Outcome::Running(running) => Ok(running),
            Outcome::Failure(failure) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    /// Answered with "done".
    pub(crate) fn done(&mut self, call: Call) {
        match self.call(call, &[]).0 {
            Outcome::Done(_) => {}
            other => panic!("{other:?}"),
        }
    }

    /// The container's end.
    pub(crate) fn exit(&mut self) -> Exit {
        match self.event() {
            Event::Exited(exit) => exit,
            other => panic!("{other:?}"),
        }
    }

    /// Runs a shell script in the container.
    pub(crate) fn exec(
        &mut self,
        id: &str,
        text: &str,
        exec: Exec,
        fds: &[(Fd, BorrowedFd<'_>)],
    ) -> Result<(ExecStarted, Vec<OwnedFd>), Failure> {
        let id = self.send_exec(id, &["/bin/sh", "-c", text], exec, fds);
        match self.answer(id) {
            (Outcome::ExecStarted(started), _, fds) => Ok((started, fds)),
            (Outcome::Failure(failure), ..) => Err(failure),
            other => panic!("{other:?}"),
        }
    }

    /// Asks for a command to be run in the container.
    pub(crate) fn send_exec(
        &mut self,
        id: &str,
        args: &[&str],
        mut exec: Exec,
        fds: &[(Fd, BorrowedFd<'_>)],
    ) -> u64 {
        exec.exec_id = id.into();
        let inner = exec.exec.get_or_insert_default();
        inner.process.get_or_insert_default().args =
            args.iter().map(|a| a.as_bytes().to_vec()).collect();
        let exe = File::open(std::env::current_exe().unwrap()).unwrap();
        let fds = [&[(Fd::WorkerExe, exe.as_fd())], fds].concat();
        self.send(Call::Exec(exec), &fds)
    }

    /// The end of an exec'd process.
    pub(crate) fn exec_exit(&mut self) -> ExecExit {
        match self.event() {
            Event::ExecExited(exit) => exit,
            other => panic!("{other:?}"),
        }
    }
}

/// Waits until something is true.
pub(crate) fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let give_up = Instant::now() + LIMIT;
    while !test() {
        assert!(Instant::now() < give_up, "{what} did not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A process that is not there any more, zombies included.
pub(crate) fn is_gone(pid: Pid) -> bool {
    test_kill_process(pid).is_err()
}

/// Sends a signal.
pub(crate) fn kill(pid: Pid, signal: Signal) {
    kill_process(pid, signal).unwrap();
}

/// The pid that a script wrote to a file.
pub(crate) fn pid_in(file: &Path) -> Pid {
    let mut found = None;
    eventually("a pid", || {
        found = fs::read_to_string(file)
            .ok()
            .and_then(|t| t.trim().parse().ok());
        found.is_some()
    });
    found.and_then(Pid::from_raw).unwrap()
}

/// A cgroup of a v1 hierarchy for one test.
pub(crate) struct Cgroup(pub(crate) PathBuf);

impl Cgroup {
    /// Makes one.
    pub(crate) fn new(controller: &str) -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let name = format!("berth-shim-test-{}-{number}", std::process::id());
        let dir = Path::new("/sys/fs/cgroup").join(controller).join(name);
        fs::create_dir(&dir).unwrap();
        Self(dir)
    }

    /// Its path.
    pub(crate) fn path(&self) -> String {
        self.0.to_str().unwrap().to_owned()
    }

    /// Sets a value.
    pub(crate) fn set(&self, file: &str, value: &str) {
        fs::write(self.0.join(file), value).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
