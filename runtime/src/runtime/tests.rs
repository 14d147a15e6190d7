//! Real containers through the launcher, the real monitor and the real worker. Needs root, a static
//! busybox, and both programs beside the test's own directory (or in `BERTH_SHIM`, `BERTH_WORKER`).

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::{MountPropagationFlags, UnmountFlags};
use serde_json::{Value, json};
use shim_protocol::monitor::{Create, Exit, FailureKind, OomSource};
use shim_protocol::{monitor, worker};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::*;
use crate::id::ContainerId;
use crate::model::{Kind, Kinded, Process};
use crate::sys::{self, process::OpenFiles};

mod containers;
mod figures;
mod pods;

/// Nothing here takes longer.
const LIMIT: Duration = Duration::from_secs(30);

/// Capabilities that a test machine's root has.
const CAPABILITIES: u64 = 0xa804_25fb;

/// A launcher with its own control groups.
struct Bench {
    running: Option<Launcher>,
    events: mpsc::UnboundedReceiver<MonitorEvent>,
    _dir: tempfile::TempDir,
    shims: Vec<PathBuf>,
}

fn program(name: &str, variable: &str) -> PathBuf {
    let beside = || {
        let test = std::env::current_exe().unwrap();
        test.parent().unwrap().parent().unwrap().join(name)
    };
    let path = std::env::var_os(variable).map_or_else(beside, PathBuf::from);
    assert!(
        path.exists(),
        "{} is missing: cargo build -p {name}",
        path.display()
    );
    path
}

fn unique(what: &str) -> String {
    let id = ContainerId::generate().unwrap();
    format!("berth-{what}-{}", id.short())
}

/// The directory of a name in every hierarchy of this machine.
fn everywhere(path: &str) -> Vec<String> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![format!("/sys/fs/cgroup{path}")];
    }
    let entries = fs::read_dir(root).unwrap().map(|e| e.unwrap().path());
    let hierarchies = entries.filter(|p| p.join("cgroup.procs").exists());
    hierarchies
        .map(|p| format!("{}{path}", p.display()))
        .collect()
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (events, told) = mpsc::unbounded_channel();
        let name = format!("/{}", unique("shims"));
        let shims: Vec<PathBuf> = everywhere(&name).into_iter().map(PathBuf::from).collect();
        let launcher = Launcher::open(LauncherConfig {
            shim: program("berth-shim", "BERTH_SHIM"),
            worker: program("berth-worker", "BERTH_WORKER"),
            state_dir: dir.path().to_owned(),
            shims: Shims::Directories(shims.clone()),
            open_files: OpenFiles::current(),
            events,
            boot_id: "this boot".into(),
            left_behind: crate::metrics::Gauge::default(),
        });
        Self {
            running: Some(launcher.unwrap()),
            events: told,
            _dir: dir,
            shims,
        }
    }

    /// As the domain knows it.
    fn runtime(&self) -> &dyn Runtime {
        self.running.as_ref().unwrap()
    }

    async fn event(&mut self) -> MonitorEventKind {
        let event = tokio::time::timeout(LIMIT, self.events.recv()).await;
        event.expect("no event").unwrap().kind
    }

    async fn exit(&mut self) -> Exit {
        match self.event().await {
            MonitorEventKind::Exited(exit) => exit,
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // The spawner's thread and the last monitors leave them a moment later.
        drop(self.running.take());
        let give_up = Instant::now() + Duration::from_secs(2);
        while self.shims.iter().any(|dir| dir.exists()) && Instant::now() < give_up {
            self.shims.iter().for_each(|dir| drop(fs::remove_dir(dir)));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A container to be made.
struct Fixture {
    id: ContainerId,
    dir: tempfile::TempDir,
    create: Create,
    config: Value,
    seccomp: Option<OwnedFd>,
}

fn process(args: &[&str]) -> worker::Process {
    worker::Process {
        args: args.iter().map(|a| a.as_bytes().to_vec()).collect(),
        env: vec![b"PATH=/sbin:/bin".to_vec(), b"HOME=/".to_vec()],
        cwd: b"/".to_vec(),
        capabilities: Some(worker::Capabilities {
            bounding: CAPABILITIES,
            effective: CAPABILITIES,
            permitted: CAPABILITIES,
            ..worker::Capabilities::default()
        }),
        ..worker::Process::default()
    }
}

impl Fixture {
    fn script(text: &str) -> Self {
        Self::command(&["sh", "-c", text])
    }

    fn command(args: &[&str]) -> Self {
        let id = ContainerId::generate().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["tree/bin", "engine", "root", "log"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        busybox(&at("tree"));
        rustix::mount::mount_bind(at("root"), at("root")).unwrap();
        rustix::mount::mount_change(at("root"), MountPropagationFlags::PRIVATE).unwrap();
        let path = format!("/{}", unique("test"));
        let leaves = everywhere(&path);
        let cgroup = worker::Cgroup {
            path: path.clone(),
            dirs: leaves.clone(),
            leaves: leaves.clone(),
            ..worker::Cgroup::default()
        };
        let text = |path: PathBuf| path.display().to_string();
        let container = worker::Create {
            id: id.to_string(),
            bundle: text(dir.path().to_owned()),
            engine_root: text(at("engine")),
            rootfs: text(at("root")),
            cgroup: Some(cgroup),
            process: Some(process(args)),
            ..worker::Create::default()
        };
        let config = config(&container.rootfs, &path);
        let create = Create {
            container: Some(container),
            log_name: "0.log".into(),
            leaves,
            ..Create::default()
        };
        Self {
            id,
            dir,
            create,
            config,
            seccomp: None,
        }
    }

    fn process(&mut self) -> &mut worker::Process {
        self.create
            .container
            .as_mut()
            .unwrap()
            .process
            .as_mut()
            .unwrap()
    }

    fn launch(&mut self) -> ContainerLaunch {
        fs::write(self.dir.path().join("config.json"), self.config.to_string()).unwrap();
        ContainerLaunch {
            id: self.id.clone(),
            dir: self.dir.path().to_owned(),
            create: self.create.clone(),
            rootfs: sys::mount::detached_bind(&self.dir.path().join("tree"), false).unwrap(),
            seccomp: self.seccomp.take(),
            log_dir: Some(fs::File::open(self.dir.path().join("log")).unwrap().into()),
        }
    }

    async fn create(&mut self, bench: &Bench) -> Result<(Arc<dyn Monitor>, Process), Error> {
        bench.runtime().create(self.launch()).await
    }

    async fn run(&mut self, bench: &Bench) -> (Arc<dyn Monitor>, Process) {
        let (monitor, started) = self.create(bench).await.unwrap();
        monitor.start().await.unwrap();
        (monitor, started)
    }

    fn lines(&self) -> Vec<String> {
        let log = fs::read_to_string(self.dir.path().join("log/0.log")).unwrap();
        log.lines()
            .map(|l| l.split_once(' ').unwrap().1.to_owned())
            .collect()
    }

    /// The container's directory in one hierarchy of v1, or in v2.
    fn leaf(&self, controller: &str) -> String {
        let part = format!("/{controller}/");
        let leaves = &self.create.leaves;
        leaves
            .iter()
            .find(|l| l.contains(&part))
            .unwrap_or(&leaves[0])
            .clone()
    }

    /// An exec with a control group of its own.
    fn exec(&self, id: &str, args: &[&str]) -> monitor::Exec {
        let own = self.leaf("pids");
        let join = self
            .create
            .leaves
            .iter()
            .filter(|leaf| **leaf != own)
            .cloned()
            .collect();
        let exec = worker::Exec {
            container: self.id.to_string(),
            process: Some(process(args)),
            own_cgroup: vec![format!("{own}/{id}")],
            join_cgroup: join,
            ..worker::Exec::default()
        };
        monitor::Exec {
            exec_id: id.into(),
            exec: Some(exec),
            timeout_ms: 0,
            attended: false,
        }
    }

    /// Nothing is left but what the test itself made, the log and the exit record.
    async fn is_clean(&self, record: bool) {
        let give_up = Instant::now() + LIMIT;
        // The monitor ends after its last word.
        while self.dir.path().join("shim.sock").exists() {
            assert!(Instant::now() < give_up, "the monitor is still there");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(read_exit(self.dir.path()).unwrap().is_some(), record);
        assert_eq!(
            fs::read_dir(self.dir.path().join("engine"))
                .unwrap()
                .count(),
            0
        );
        for leaf in &self.create.leaves {
            assert!(!Path::new(leaf).exists(), "{leaf}");
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let root = self.dir.path().join("root").display().to_string();
        assert_eq!(
            mounts.lines().filter(|l| l.contains(&root)).count(),
            1,
            "{mounts}"
        );
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // A test that failed half-way leaves a container, whose monitor ends with it.
        let procs = fs::read_to_string(format!("{}/cgroup.procs", self.leaf("pids")));
        for pid in procs
            .unwrap_or_default()
            .lines()
            .filter_map(|pid| pid.parse().ok())
        {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let _ = rustix::mount::unmount(self.dir.path().join("root"), UnmountFlags::DETACH);
        for leaf in &self.create.leaves {
            let _ = fs::remove_dir(leaf);
        }
    }
}

/// A file system with a static busybox.
fn busybox(tree: &Path) {
    let candidates = ["/bin/busybox", "/usr/bin/busybox"];
    let busybox = candidates.into_iter().find(|p| Path::new(p).exists());
    let busybox = busybox.expect("a static busybox is needed (package busybox-static)");
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

fn config(rootfs: &str, cgroup: &str) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    json!({
        "ociVersion": "1.2.0",
        "root": { "path": rootfs, "readonly": false },
        "process": { "user": { "uid": 0, "gid": 0 }, "args": ["x"], "cwd": "/" },
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "rootfsPropagation": "private",
            "namespaces": [
                { "type": "mount" }, { "type": "pid" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "network" },
            ],
        },
    })
}

/// A pipe: our end for tokio, theirs for a process.
fn pipe() -> (tokio::net::unix::pipe::Receiver, OwnedFd) {
    let (read, write) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&read, true).unwrap();
    (
        tokio::net::unix::pipe::Receiver::from_owned_fd(read.into()).unwrap(),
        write.into(),
    )
}

/// Runs a command in the container: its output and how it ended.
async fn run(monitor: &Arc<dyn Monitor>, exec: monitor::Exec) -> (String, monitor::ExecExit) {
    let (mut read, write) = pipe();
    let stderr = write.try_clone().unwrap();
    let stdio = ExecStdio {
        stdin: None,
        stdout: Some(write),
        stderr: Some(stderr),
    };
    let handle = monitor.exec(exec, stdio, None).await.unwrap();
    let mut text = String::new();
    let read = tokio::time::timeout(LIMIT, read.read_to_string(&mut text));
    let (_, exit) = tokio::join!(async { read.await.unwrap().unwrap() }, handle.wait());
    (text, exit.unwrap())
}

/// The kernel knows the process no more, or as a zombie.
async fn dies(bench: &Bench, process: &Process) {
    let give_up = Instant::now() + LIMIT;
    while bench.runtime().is_alive(process).unwrap() {
        assert!(Instant::now() < give_up, "{process:?} is alive");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
