//! Plays the monitor: starts workers, hands them requests, reaps what they make.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use prost::Message;
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, UnmountFlags};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use serde_json::{Value, json};
use shim_protocol::worker::{
    Call, Capabilities, Cgroup, Create, Exec, Outcome, Process, Reply, Request, Started,
};
use shim_protocol::{Fd, frame};

/// The usual capabilities of a container: CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID
/// SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE.
pub(crate) const USUAL: u64 = 0xa804_25fb;

static NUMBER: AtomicU32 = AtomicU32::new(0);

pub(crate) fn unique(what: &str) -> String {
    let n = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("berth-{what}-{}-{n}", std::process::id())
}

/// A reply and the descriptors that came along.
pub(crate) struct Answer {
    pub(crate) outcome: Outcome,
    pub(crate) fds: Vec<(i32, OwnedFd)>,
}

impl Answer {
    pub(crate) fn started(mut self) -> (Started, OwnedFd, Option<OwnedFd>) {
        match &self.outcome {
            Outcome::Started(started) => {
                let started = *started_copy(started);
                let pidfd = self.take(Fd::Pidfd).expect("no pidfd");
                let console = self.take(Fd::Console);
                (started, pidfd, console)
            }
            other => panic!("not started: {other:?}"),
        }
    }

    pub(crate) fn failure(&self) -> String {
        match &self.outcome {
            Outcome::Failure(failure) => failure.message.clone(),
            other => panic!("no failure: {other:?}"),
        }
    }

    fn take(&mut self, role: Fd) -> Option<OwnedFd> {
        let at = self.fds.iter().position(|(r, _)| *r == role as i32)?;
        Some(self.fds.remove(at).1)
    }
}

fn started_copy(started: &Started) -> Box<Started> {
    Box::new(started.clone())
}

/// A worker with its socket.
pub(crate) struct Worker {
    pub(crate) child: Child,
    pub(crate) socket: UnixStream,
}

fn send(socket: &UnixStream, call: Call, fds: &[(Fd, BorrowedFd<'_>)]) {
    let request = Request {
        call: Some(call),
        fds: fds.iter().map(|(role, _)| *role as i32).collect(),
    };
    let raw: Vec<BorrowedFd<'_>> = fds.iter().map(|(_, fd)| *fd).collect();
    frame::send(socket, &request.encode_to_vec(), &raw).unwrap();
}

impl Worker {
    pub(crate) fn spawn() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests need root"
        );
        let (ours, theirs) = UnixStream::pair().unwrap();
        let exe =
            std::env::var("BERTH_WORKER").unwrap_or(env!("CARGO_BIN_EXE_berth-worker").into());
        let child = Command::new(exe)
            .arg0("berth-worker")
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()
            .unwrap();
        Self {
            child,
            socket: ours,
        }
    }

    pub(crate) fn call(&self, call: Call, fds: &[(Fd, BorrowedFd<'_>)]) -> Answer {
        send(&self.socket, call, fds);
        let reply = frame::recv(&self.socket)
            .unwrap()
            .expect("the worker ended without an answer");
        let decoded = Reply::decode(reply.message.as_slice()).unwrap();
        assert_eq!(decoded.fds.len(), reply.fds.len());
        Answer {
            outcome: decoded.outcome.unwrap(),
            fds: decoded.fds.into_iter().zip(reply.fds).collect(),
        }
    }

    /// Asks and is gone before it can be answered; waits for the worker's end.
    pub(crate) fn abandoned(mut self, call: Call, fds: &[(Fd, BorrowedFd<'_>)]) {
        use rustix::process::{Pid, Signal, kill_process};
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::STOP).unwrap();
        send(&self.socket, call, fds);
        drop(self.socket);
        kill_process(pid, Signal::CONT).unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn end(mut self) {
        drop(self.socket);
        assert!(self.child.wait().unwrap().success());
    }
}

/// Where a cgroup of a given name is in each hierarchy of this machine.
pub(crate) fn leaves(path: &str) -> Vec<String> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![format!("/sys/fs/cgroup{path}")];
    }
    let mut leaves: Vec<String> = fs::read_dir(root)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.join("cgroup.procs").exists())
        .map(|p| format!("{}{path}", p.display()))
        .collect();
    leaves.sort();
    leaves
}

pub(crate) fn cgroup(path: &str) -> Cgroup {
    let leaves = leaves(path);
    Cgroup {
        path: path.into(),
        dirs: leaves.clone(),
        leaves,
        ..Cgroup::default()
    }
}

pub(crate) fn remove_cgroup(leaves: &[String]) {
    let end = Instant::now() + Duration::from_secs(5);
    for leaf in leaves {
        while Path::new(leaf).exists() && Instant::now() < end {
            let _ = fs::remove_dir(leaf);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(
            !Path::new(leaf).exists() || std::thread::panicking(),
            "{leaf} cannot be removed"
        );
    }
}

/// A file system tree with busybox, a bundle, and the request to make a container of them.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) request: Create,
    pub(crate) config: Value,
    pub(crate) seccomp: Option<OwnedFd>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["tree/bin", "tree/tmp", "bundle", "engine", "root"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        busybox(&at("tree"));
        rustix::mount::mount_bind(at("root"), at("root")).unwrap();
        rustix::mount::mount_change(at("root"), MountPropagationFlags::PRIVATE).unwrap();
        let id = unique("live");
        let text = |p: PathBuf| p.display().to_string();
        let path = format!("/{id}");
        let request = Create {
            id,
            bundle: text(at("bundle")),
            engine_root: text(at("engine")),
            rootfs: text(at("root")),
            cgroup: Some(cgroup(&path)),
            process: None,
            ..Create::default()
        };
        let config = config(&request.rootfs, &path);
        Self {
            dir,
            request,
            config,
            seccomp: None,
        }
    }

    pub(crate) fn tree(&self, name: &str) -> PathBuf {
        self.dir.path().join("tree").join(name)
    }

    pub(crate) fn mount(&mut self, mount: Value) {
        self.config["mounts"].as_array_mut().unwrap().push(mount);
    }

    pub(crate) fn leaves(&self) -> Vec<String> {
        self.request.cgroup.as_ref().unwrap().leaves.clone()
    }

    /// The directory of the container in one v1 hierarchy, or the v2 directory.
    pub(crate) fn leaf(&self, controller: &str) -> PathBuf {
        let leaves = self.leaves();
        let part = format!("/{controller}/");
        PathBuf::from(
            leaves
                .iter()
                .find(|l| l.contains(&part))
                .unwrap_or(&leaves[0]),
        )
    }

    pub(crate) fn try_create(&self, process: Process) -> Result<Container, String> {
        let config = self.dir.path().join("bundle/config.json");
        fs::write(config, self.config.to_string()).unwrap();
        let rootfs = rustix::mount::open_tree(
            rustix::fs::CWD,
            self.tree(""),
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
        )
        .unwrap();
        let (start_read, start) = pipe();
        let (error, error_write) = pipe();
        let (stdin_read, stdin) = pipe();
        let (stdout, stdout_write) = pipe();
        let (stderr, stderr_write) = pipe();
        let mut fds = vec![
            (Fd::Rootfs, rootfs.as_fd()),
            (Fd::StartPipe, start_read.as_fd()),
            (Fd::ErrorPipe, error_write.as_fd()),
        ];
        if !process.terminal {
            fds.push((Fd::Stdin, stdin_read.as_fd()));
            fds.push((Fd::Stdout, stdout_write.as_fd()));
            fds.push((Fd::Stderr, stderr_write.as_fd()));
        }
        fds.extend(self.seccomp.as_ref().map(|s| (Fd::Seccomp, s.as_fd())));
        let worker = Worker::spawn();
        let request = Create {
            process: Some(process),
            ..self.request.clone()
        };
        let answer = worker.call(Call::Create(request), &fds);
        worker.end();
        let left: Vec<_> = fs::read_dir(self.dir.path().join("engine"))
            .unwrap()
            .collect();
        assert!(
            left.is_empty(),
            "the engine's directory is not empty: {left:?}"
        );
        if let Outcome::Failure(_) = answer.outcome {
            return Err(answer.failure());
        }
        let (started, pidfd, console) = answer.started();
        Ok(Container {
            started,
            pidfd,
            console,
            start: Some(start),
            error: Some(error),
            stdin: Some(stdin),
            stdout: Some(stdout),
            stderr: Some(stderr),
            leaves: self.leaves(),
            ended: false,
        })
    }

    pub(crate) fn create(&self, process: Process) -> Container {
        self.try_create(process)
            .unwrap_or_else(|e| panic!("create: {e}"))
    }

    /// Creates and starts.
    pub(crate) fn run(&self, process: Process) -> Container {
        let mut container = self.create(process);
        container.start().unwrap_or_else(|e| panic!("start: {e}"));
        container
    }

    /// Runs a shell script to its end: its output and exit status.
    pub(crate) fn sh(&self, script: &str) -> (String, i32) {
        self.run(sh(script)).finish()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&*self.request.rootfs, UnmountFlags::DETACH);
        remove_cgroup(&self.leaves());
    }
}

pub(crate) struct Container {
    pub(crate) started: Started,
    pub(crate) pidfd: OwnedFd,
    pub(crate) console: Option<OwnedFd>,
    pub(crate) start: Option<OwnedFd>,
    pub(crate) error: Option<OwnedFd>,
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) leaves: Vec<String>,
    ended: bool,
}

impl Container {
    /// Gives the start byte and waits for execve.
    pub(crate) fn start(&mut self) -> Result<(), String> {
        rustix::io::write(self.start.as_ref().unwrap(), b"x").unwrap();
        let text = read(self.error.take().unwrap());
        if text.is_empty() { Ok(()) } else { Err(text) }
    }

    pub(crate) fn wait(&mut self) -> i32 {
        self.ended = true;
        wait(&self.pidfd)
    }

    pub(crate) fn finish(mut self) -> (String, i32) {
        self.stdin = None;
        let mut text = read(self.stdout.take().unwrap());
        text.push_str(&read(self.stderr.take().unwrap()));
        let code = self.wait();
        (text, code)
    }

    pub(crate) fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    pub(crate) fn exec_request(&self, process: Process) -> Exec {
        Exec {
            container: "c".into(),
            init: self.started.pid,
            process: Some(process),
            join_cgroup: self.leaves.clone(),
            ..Exec::default()
        }
    }

    pub(crate) fn try_exec(
        &self,
        request: Exec,
        seccomp: Option<BorrowedFd<'_>>,
    ) -> Result<Execed, String> {
        let (error, error_write) = pipe();
        let (stdout, stdout_write) = pipe();
        let terminal = request.process.as_ref().unwrap().terminal;
        let mut fds = vec![
            (Fd::Pidfd, self.pidfd.as_fd()),
            (Fd::ErrorPipe, error_write.as_fd()),
        ];
        if !terminal {
            fds.push((Fd::Stdout, stdout_write.as_fd()));
            fds.push((Fd::Stderr, stdout_write.as_fd()));
        }
        fds.extend(seccomp.map(|s| (Fd::Seccomp, s)));
        let worker = Worker::spawn();
        let answer = worker.call(Call::Exec(request), &fds);
        worker.end();
        drop((error_write, stdout_write));
        if let Outcome::Failure(_) = answer.outcome {
            return Err(answer.failure());
        }
        let (started, pidfd, console) = answer.started();
        let text = read(error);
        if !text.is_empty() {
            wait(&pidfd);
            return Err(text);
        }
        Ok(Execed {
            started,
            pidfd,
            console,
            stdout,
        })
    }

    /// Runs a shell script in the container to its end.
    pub(crate) fn sh(&self, script: &str) -> (String, i32) {
        let exec = self.try_exec(self.exec_request(sh(script)), None);
        exec.unwrap_or_else(|e| panic!("exec: {e}")).finish()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if !self.ended {
            self.kill();
            wait(&self.pidfd);
        }
    }
}

pub(crate) struct Execed {
    pub(crate) started: Started,
    pub(crate) pidfd: OwnedFd,
    pub(crate) console: Option<OwnedFd>,
    pub(crate) stdout: OwnedFd,
}

impl Execed {
    pub(crate) fn finish(self) -> (String, i32) {
        let text = read(self.stdout);
        (text, wait(&self.pidfd))
    }
}

pub(crate) fn wait(pidfd: &OwnedFd) -> i32 {
    let status = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
        .unwrap()
        .unwrap();
    status
        .exit_status()
        .unwrap_or_else(|| 128 + status.terminating_signal().unwrap())
}

pub(crate) fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

pub(crate) fn read(fd: OwnedFd) -> String {
    let mut bytes = Vec::new();
    match fs::File::from(fd).read_to_end(&mut bytes) {
        // The end of a terminal.
        Err(e) if e.raw_os_error() == Some(libc::EIO) => {}
        other => drop(other.unwrap()),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(crate) fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn argv(args: &[&str]) -> Process {
    let caps = USUAL & bounding();
    Process {
        args: args.iter().map(|a| a.as_bytes().to_vec()).collect(),
        env: vec![b"PATH=/sbin:/bin".to_vec(), b"HOME=/".to_vec()],
        capabilities: Some(Capabilities {
            bounding: caps,
            effective: caps,
            permitted: caps,
            ..Capabilities::default()
        }),
        ..Process::default()
    }
}

pub(crate) fn sh(script: &str) -> Process {
    argv(&["sh", "-c", script])
}

/// What this machine's root may have at most.
pub(crate) fn bounding() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("CapBnd:"))
        .unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap()
}

fn busybox(tree: &Path) {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|p| Path::new(p).exists())
        .expect("a static busybox is needed (apt-get install busybox-static)");
    fs::copy(busybox, tree.join("bin/busybox")).unwrap();
    let list = Command::new(busybox).arg("--list").output().unwrap().stdout;
    for applet in String::from_utf8(list)
        .unwrap()
        .lines()
        .filter(|a| *a != "busybox")
    {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
}

/// A memory file with these filter instructions.
pub(crate) fn seccomp(filters: &[libc::sock_filter]) -> OwnedFd {
    let fd = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = fs::File::from(fd);
    for f in filters {
        let mut bytes = f.code.to_ne_bytes().to_vec();
        bytes.extend([f.jt, f.jf]);
        bytes.extend(f.k.to_ne_bytes());
        file.write_all(&bytes).unwrap();
    }
    file.into()
}

/// Answers one system call with EPERM and allows all others.
pub(crate) fn forbid(call: libc::c_long) -> OwnedFd {
    forbid_all(&[call])
}

/// Answers some system calls with EPERM and allows all others.
pub(crate) fn forbid_all(calls: &[libc::c_long]) -> OwnedFd {
    answer(calls, libc::SECCOMP_RET_ERRNO | 1, libc::SECCOMP_RET_ALLOW)
}

/// Answers some system calls in one way (`SECCOMP_RET_*`), all others in another.
pub(crate) fn answer(calls: &[libc::c_long], those: u32, others: u32) -> OwnedFd {
    let mut program = vec![load(0)];
    for call in calls {
        program.push(unless(u32::try_from(*call).unwrap(), 1));
        program.push(give(those));
    }
    program.push(give(others));
    seccomp(&program)
}

/// Answers a system call whose first argument is this in one way, and allows all others.
pub(crate) fn answer_about(call: libc::c_long, first: u32, answer: u32) -> OwnedFd {
    seccomp(&[
        load(0),
        unless(u32::try_from(call).unwrap(), 3),
        // struct seccomp_data: args[0] after nr, arch and instruction_pointer.
        load(16),
        unless(first, 1),
        give(answer),
        give(libc::SECCOMP_RET_ALLOW),
    ])
}

fn load(offset: u32) -> libc::sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, offset)
}

/// Passes over instructions unless what is loaded is this.
fn unless(value: u32, over: u8) -> libc::sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, over, value)
}

fn give(answer: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, answer)
}

fn instruction(code: u32, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: 0,
        jf,
        k,
    }
}

pub(crate) fn kill(pid: i32) {
    let _ = rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
}

fn config(rootfs: &str, cgroup: &str) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    json!({
        "ociVersion": "1.2.0",
        "root": { "path": rootfs, "readonly": false },
        "process": { "user": { "uid": 0, "gid": 0 }, "args": ["x"], "cwd": "/" },
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "rootfsPropagation": "private",
            "namespaces": [
                { "type": "mount" }, { "type": "pid" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "network" },
            ],
            "maskedPaths": ["/proc/kcore", "/proc/acpi"],
            "readonlyPaths": ["/proc/sys", "/proc/bus"],
        },
    })
}
