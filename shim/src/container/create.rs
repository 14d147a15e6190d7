//! Making the container: its pipes, its log, and the worker that makes its init.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use shim_protocol::frame::take_fd;
use shim_protocol::monitor::{self, Failure, FailureKind, OomSource, Outcome};
use shim_protocol::{Fd, memory, worker};

use super::{Container, Phase, fail};
use crate::cgroup;
use crate::exit;
use crate::log::{Log, Source, Stream, Target};
use crate::oom::{self, Oom};
use crate::pipes::{self, ErrorPipe};
use crate::server::{Caller, Letter, Outbox};
use crate::sys;
use crate::worker::{Job, Made, failure, reap};

/// How long a worker may take.
const WORKER_LIMIT: Duration = Duration::from_secs(90);

/// How long what a failed worker left behind may take to die.
const UNDO_LIMIT: Duration = Duration::from_secs(2);

/// What is kept of the request.
pub(super) struct Plan {
    pub(super) boot_id: String,
    pub(super) log_name: String,
    pub(super) kill_cgroup: Vec<String>,
    pub(super) leaves: Vec<String>,
    pub(super) state_dir: OwnedFd,
    pub(super) oom: OomSource,
    /// The memory limit in bytes that was asked for.
    pub(super) memory: Option<u64>,
    /// It has a seccomp filter.
    pub(super) filtered: bool,
}

impl Plan {
    /// That `what` could not start for want of memory.
    pub(super) fn too_low(&self, what: &str) -> Failure {
        oom::too_low(&self.oom, self.memory, what)
    }

    /// Removes the container's cgroups; the daemon repeats what does not work here. False if a moment later
    /// it may work.
    pub(super) fn remove_leaves(&self) -> bool {
        let emptying = |leaf: &&String| cgroup::remove(leaf).is_err() && cgroup::is_emptying(leaf);
        self.leaves.iter().filter(emptying).count() == 0
    }
}

/// The descriptors that came with the request.
struct Given {
    roles: Vec<i32>,
    fds: Vec<OwnedFd>,
}

impl Given {
    fn take(&mut self, role: Fd) -> Option<OwnedFd> {
        take_fd(&mut self.roles, &mut self.fds, role)
    }

    fn need(&mut self, role: Fd) -> Result<OwnedFd, Failure> {
        let missing = || {
            failure(
                FailureKind::Invalid,
                format!("no {role:?} came with the request"),
            )
        };
        self.take(role).ok_or_else(missing)
    }
}

/// Begins to make a container. Gives it and the listener for further daemons.
pub(crate) fn create(
    caller: Caller,
    request: monitor::Create,
    roles: Vec<i32>,
    fds: Vec<OwnedFd>,
) -> Result<(Container, OwnedFd), Failure> {
    let mut given = Given { roles, fds };
    let state_dir = given.need(Fd::StateDir)?;
    let dir = state_dir.try_clone();
    begin(caller, request, given, state_dir).inspect_err(|_| {
        if let Ok(dir) = dir {
            exit::remove_socket(dir.as_fd());
        }
    })
}

/// Opens the container's log, if it is to have one.
fn open_log(request: &monitor::Create, given: &mut Given) -> Result<Log, Failure> {
    let target = match request.log_name.is_empty() {
        true => None,
        false => Some(Target {
            dir: given.need(Fd::LogDir)?,
            name: request.log_name.clone(),
        }),
    };
    Log::open(target, request.log_line).map_err(|e| {
        let text = format!("the log {:?} cannot be opened: {e}", request.log_name);
        failure(FailureKind::Internal, text)
    })
}

fn failed(what: &str) -> impl Fn(io::Error) -> Failure {
    move |e| failure(FailureKind::Internal, format!("{what}: {e}"))
}

fn begin(
    caller: Caller,
    mut request: monitor::Create,
    mut given: Given,
    state_dir: OwnedFd,
) -> Result<(Container, OwnedFd), Failure> {
    let Some(container) = request.container.take() else {
        return Err(failure(
            FailureKind::Invalid,
            "the request has no container",
        ));
    };
    let exe = given.need(Fd::WorkerExe)?;
    let listener = given.need(Fd::Listener)?;
    let rootfs = given.need(Fd::Rootfs)?;
    let log = open_log(&request, &mut given)?;
    let seccomp = given.take(Fd::Seccomp);
    let plan = Plan {
        boot_id: request.boot_id,
        log_name: request.log_name,
        kill_cgroup: request.kill_cgroup,
        leaves: request.leaves,
        state_dir,
        oom: request.oom.unwrap_or_default(),
        memory: container.cgroup.as_ref().and_then(memory::asked),
        filtered: seccomp.is_some(),
    };
    let wiring = Wiring::new(&container, request.stdin).map_err(failed("pipes cannot be made"))?;
    let mut send = wiring.fds();
    send.push((Fd::Rootfs, rootfs.as_fd()));
    send.extend(seccomp.as_ref().map(|fd| (Fd::Seccomp, fd.as_fd())));
    let job = Job::start(
        exe.as_fd(),
        worker::Call::Create(container),
        &send,
        WORKER_LIMIT,
    )
    .map_err(failed("no worker could be started"))?;
    let container = Container {
        phase: Phase::Creating(job, caller),
        maker: None,
        init: None,
        log,
        streams: wiring.streams,
        stdin: wiring.stdin,
        start_pipe: Some(wiring.start),
        errors: Some(wiring.errors),
        start_error: String::new(),
        started_at: 0,
        kill_at: None,
        oom: Oom::default(),
        execs: Vec::new(),
        next_exec: 0,
        destroyers: Vec::new(),
        plan,
        exit: None,
    };
    Ok((container, listener))
}

/// Pipes of a new container: our ends, and theirs.
struct Wiring {
    start: OwnedFd,
    errors: ErrorPipe,
    streams: Vec<Stream>,
    stdin: Option<OwnedFd>,
    theirs: Vec<(Fd, OwnedFd)>,
}

impl Wiring {
    fn new(container: &worker::Create, keep_stdin: bool) -> io::Result<Self> {
        let (start_read, start) = pipes::pipe()?;
        pipes::non_blocking(&start)?;
        let (errors, errors_write) = ErrorPipe::new()?;
        let mut wiring = Self {
            start,
            errors,
            streams: Vec::new(),
            stdin: None,
            theirs: vec![(Fd::StartPipe, start_read), (Fd::ErrorPipe, errors_write)],
        };
        if !container.process.as_ref().is_some_and(|p| p.terminal) {
            wiring.add_stdio(keep_stdin)?;
        }
        Ok(wiring)
    }

    fn add_stdio(&mut self, keep_stdin: bool) -> io::Result<()> {
        if keep_stdin {
            let (read, write) = pipes::pipe()?;
            self.stdin = Some(write);
            self.theirs.push((Fd::Stdin, read));
        } else {
            self.theirs.push((Fd::Stdin, pipes::null()?));
        }
        for (role, source) in [(Fd::Stdout, Source::Stdout), (Fd::Stderr, Source::Stderr)] {
            let (read, write) = pipes::pipe()?;
            pipes::non_blocking(&read)?;
            self.streams.push(Stream::new(read, source));
            self.theirs.push((role, write));
        }
        Ok(())
    }

    fn fds(&self) -> Vec<(Fd, BorrowedFd<'_>)> {
        self.theirs
            .iter()
            .map(|(role, fd)| (*role, fd.as_fd()))
            .collect()
    }
}

impl Container {
    /// The worker has answered.
    pub(super) fn on_created(&mut self, answer: Result<Made, Failure>, out: &mut Outbox) {
        let Phase::Creating(job, caller) = &self.phase else {
            return;
        };
        let (caller, maker) = (*caller, job.pid());
        let made = match answer {
            Ok(made) if self.destroyers.is_empty() => made,
            Ok(_) => {
                return self.on_failed(
                    caller,
                    failure(FailureKind::State, "it was destroyed"),
                    out,
                );
            }
            Err(failure) => return self.on_failed(caller, failure, out),
        };
        self.oom = Oom::watch(&self.plan.oom);
        let started = made.started.clone();
        let init = self.init.insert(made);
        if let Some(console) = init.console.take() {
            if let Err(e) = pipes::non_blocking(&console) {
                let text = format!("the terminal cannot be read: {e}");
                return self.on_failed(caller, failure(FailureKind::Internal, text), out);
            }
            self.streams.push(Stream::terminal(console));
        }
        let pidfd = init.pidfd.try_clone().ok().map(|fd| (Fd::Pidfd, fd));
        let fds = pidfd.into_iter().collect();
        self.maker = Some(maker);
        self.phase = Phase::Created;
        out.push(Letter::Reply(caller, Outcome::Created(started), fds));
    }

    /// Nothing may be left of a container that could not be made.
    fn on_failed(&mut self, caller: Caller, mut failure: Failure, out: &mut Outbox) {
        // Whoever was killed, and however the worker has put it: in a new cgroup that is the reason.
        if oom::has_killed(&self.plan.oom) {
            failure = self.plan.too_low("the container");
        }
        self.start_pipe = None;
        self.streams.clear();
        if let Phase::Creating(job, _) = &self.phase {
            job.kill();
        }
        self.phase = Phase::Over;
        let give_up = Instant::now() + UNDO_LIMIT;
        while !kill_children() && Instant::now() < give_up {
            cgroup::kill(&self.plan.leaves);
            std::thread::sleep(Duration::from_millis(2));
        }
        self.plan.remove_leaves();
        out.push(fail(caller, failure));
        out.extend(self.destroyers.drain(..).map(super::done));
    }
}

/// Kills all children and reaps those that are dead. True when there are none left.
fn kill_children() -> bool {
    use rustix::process::{Pid, Signal, getpid, kill_process};
    let me = getpid().as_raw_nonzero();
    let list = std::fs::read_to_string(format!("/proc/{me}/task/{me}/children"));
    let children = list.unwrap_or_default();
    let children = children
        .split_ascii_whitespace()
        .filter_map(|pid| pid.parse().ok());
    for pid in children.filter_map(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
    while let Some(pid) = sys::ended_child() {
        reap(pid);
    }
    !sys::has_children()
}
