//! A worker that makes processes without containers: it speaks the protocol and clones.
#![allow(unsafe_code)]

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, exit};

use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open, set_parent_process_death_signal,
};
use shim_protocol::frame::{self, take_fd};
use shim_protocol::monitor::Failure;
use shim_protocol::worker::{Call, Outcome, Process, Reply, Request, Started};
use shim_protocol::{Fd, Message};

/// Reads one request and does it.
pub(crate) fn main() {
    let socket = std::io::stdin();
    let frame = frame::recv(&socket).unwrap().unwrap();
    let request = Request::decode(&*frame.message).unwrap();
    let mut given = Given {
        roles: request.fds,
        fds: frame.fds,
    };
    let (process, cgroup) = match request.call.unwrap() {
        Call::Create(create) => {
            let cgroup = create.cgroup.unwrap_or_default().leaves;
            given.need(Fd::Rootfs);
            (create.process.unwrap(), cgroup)
        }
        Call::Exec(exec) => {
            assert!(exec.init > 0);
            given.need(Fd::Pidfd);
            (exec.process.unwrap(), exec.own_cgroup)
        }
        other => panic!("{other:?}"),
    };
    match process.args[0].as_slice() {
        b"@fail" => return reply(Outcome::Failure(failure("as asked".into())), &[]),
        b"@self" => return reply(Outcome::Failure(failure(describe())), &[]),
        b"@die" => exit(3),
        b"@hang" => loop {
            std::thread::park();
        },
        b"@orphans" => {
            // What a worker may leave behind when it fails half-way.
            for dir in &cgroup {
                fs::create_dir_all(dir).unwrap();
                fs::write(format!("{dir}/cgroup.procs"), "0").unwrap();
            }
            clone_as_sibling(|| {
                loop {
                    std::thread::park();
                }
            });
            exit(4);
        }
        _ => {}
    }
    make(&process, &cgroup, given);
}

struct Given {
    roles: Vec<i32>,
    fds: Vec<OwnedFd>,
}

impl Given {
    fn take(&mut self, role: Fd) -> Option<OwnedFd> {
        take_fd(&mut self.roles, &mut self.fds, role)
    }

    fn need(&mut self, role: Fd) -> OwnedFd {
        self.take(role).unwrap_or_else(|| panic!("no {role:?}"))
    }
}

fn failure(message: String) -> Failure {
    Failure { kind: 0, message }
}

fn reply(outcome: Outcome, fds: &[(Fd, BorrowedFd<'_>)]) {
    let (roles, fds): (Vec<i32>, Vec<_>) = fds.iter().map(|(r, f)| (*r as i32, *f)).unzip();
    let reply = Reply {
        outcome: Some(outcome),
        fds: roles,
    };
    frame::send(std::io::stdin(), &reply.encode_to_vec(), &fds).unwrap();
}

/// What this process has inherited.
fn describe() -> String {
    let fds: Vec<String> = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter_map(|p| Some((p.clone(), fs::read_link(&p).ok()?)))
        .map(|(p, to)| format!("{}={}", p.file_name().unwrap().display(), to.display()))
        .filter(|text| !text.contains("/proc/"))
        .collect();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let signals: Vec<&str> = status
        .lines()
        .filter(|l| l.starts_with("SigBlk") || l.starts_with("SigIgn"))
        .collect();
    let env: Vec<OsString> = std::env::vars_os().map(|v| v.0).collect();
    format!(
        "fds {fds:?} signals {signals:?} env {env:?} args {:?}",
        std::env::args()
    )
}

fn make(process: &Process, cgroup: &[String], mut given: Given) {
    let start = given.take(Fd::StartPipe);
    let errors = given.need(Fd::ErrorPipe);
    let mut stdio = [Fd::Stdin, Fd::Stdout, Fd::Stderr].map(|role| given.take(role));
    let mut master = None;
    if process.terminal {
        assert!(stdio.iter().all(Option::is_none));
        let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::CLOEXEC;
        let fd = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&fd).unwrap();
        let slave = rustix::pty::ioctl_tiocgptpeer(&fd, flags).unwrap();
        stdio = [(); 3].map(|()| Some(slave.try_clone().unwrap()));
        master = Some(fd);
    }
    assert!(stdio.iter().all(Option::is_some));
    for dir in cgroup {
        fs::create_dir_all(dir).unwrap();
    }
    let pid = clone_as_sibling(|| child(process, cgroup, start, errors, stdio));
    drop(given);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let start_time = stat
        .rsplit(") ")
        .next()
        .unwrap()
        .split(' ')
        .nth(19)
        .unwrap();
    let started = Started {
        pid,
        start_time: start_time.parse().unwrap(),
    };
    let pidfd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
    let mut fds = vec![(Fd::Pidfd, pidfd.as_fd())];
    fds.extend(master.as_ref().map(|fd| (Fd::Console, fd.as_fd())));
    reply(Outcome::Started(started), &fds);
}

/// A child of our parent that runs `main`.
fn clone_as_sibling(main: impl FnOnce()) -> i32 {
    let flags = i64::from(libc::CLONE_PARENT | libc::SIGCHLD);
    // SAFETY: like fork(2), in a process of one thread.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    if pid == 0 {
        main();
        exit(0);
    }
    i32::try_from(pid).unwrap()
}

fn child(
    process: &Process,
    cgroup: &[String],
    start: Option<OwnedFd>,
    errors: OwnedFd,
    stdio: [Option<OwnedFd>; 3],
) {
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    for dir in cgroup {
        fs::write(format!("{dir}/cgroup.procs"), "0").unwrap();
    }
    let [stdin, stdout, stderr] = stdio.map(Option::unwrap);
    rustix::stdio::dup2_stdin(&stdin).unwrap();
    rustix::stdio::dup2_stdout(&stdout).unwrap();
    rustix::stdio::dup2_stderr(&stderr).unwrap();
    drop((stdin, stdout, stderr));
    if let Some(start) = start
        && fs::File::from(start).read(&mut [0]).unwrap() == 0
    {
        exit(99);
    }
    match process.args[0].as_slice() {
        // As one that may neither execute nor tell.
        b"@vanish" => exit(5),
        b"@stop" => kill_process(getpid(), Signal::STOP).unwrap(),
        _ => {}
    }
    let args: Vec<OsString> = process
        .args
        .iter()
        .filter(|arg| *arg != b"@stop")
        .cloned()
        .map(OsString::from_vec)
        .collect();
    let error = Command::new(&args[0]).args(&args[1..]).exec();
    let text = format!("exec {:?}: {error}", args[0]);
    fs::File::from(errors).write_all(text.as_bytes()).unwrap();
    exit(1);
}
