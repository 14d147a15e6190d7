//! A pod's namespaces and its pause.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;
use shim_protocol::Fd;
use shim_protocol::worker::{Call, Outcome, Pause, Pod, Process, Started, Sysctl};

use crate::driver::*;

include!("../../../pause/compile.rs");

struct Place {
    dir: tempfile::TempDir,
    name: String,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            name: unique("pod"),
        }
    }

    fn path(&self, kind: &str) -> String {
        self.dir.path().join(kind).display().to_string()
    }

    fn pod(&self) -> Pod {
        Pod {
            id: self.name.clone(),
            net: self.path("net"),
            ipc: self.path("ipc"),
            uts: self.path("uts"),
            hostname: "berth-test".into(),
            sysctls: vec![Sysctl {
                name: "kernel.shmmni".into(),
                value: "123".into(),
            }],
        }
    }

    fn exe(&self) -> OwnedFd {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../pause/pause.rs");
        let output = self.dir.path().join("pause");
        let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
        compile_pause(&rustc, None, &source, &output).unwrap();
        fs::File::open(output).unwrap().into()
    }

    fn request(&self, pid: bool) -> Pause {
        Pause {
            pid: if pid { self.path("pid") } else { String::new() },
            cgroup: Some(cgroup(&format!("/{}", self.name))),
            process: Some(Process {
                uid: 65535,
                gid: 65535,
                oom_score_adj: Some(-998),
                ..Process::default()
            }),
        }
    }

    /// Makes the pod and its pause; the worker has ended afterwards.
    fn run(&self, pid: bool) -> (Started, OwnedFd) {
        let worker = Worker::spawn();
        let made = worker.call(Call::Pod(self.pod()), &[]);
        assert!(
            matches!(made.outcome, Outcome::Namespaces(_)),
            "{:?}",
            made.outcome
        );
        let exe = self.exe();
        let answer = worker.call(
            Call::Pause(self.request(pid)),
            &[(Fd::PauseExe, exe.as_fd())],
        );
        let (started, pidfd, _) = answer.started();
        worker.end();
        (started, pidfd)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for kind in ["net", "ipc", "uts", "pid"] {
            let _ = rustix::mount::unmount(self.path(kind), UnmountFlags::DETACH);
        }
        for leaf in leaves(&format!("/{}", self.name)) {
            let procs =
                fs::read_to_string(Path::new(&leaf).join("cgroup.procs")).unwrap_or_default();
            procs.lines().for_each(|p| kill(p.parse().unwrap()));
        }
        remove_cgroup(&leaves(&format!("/{}", self.name)));
    }
}

fn inode(path: impl AsRef<Path>) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).unwrap().ino()
}

fn status(pid: i32, key: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap();
    line.trim_start_matches(':')
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn namespaces_are_pinned_and_pause_lives_in_them() {
    let place = Place::new();
    let (started, pidfd) = place.run(true);
    let pid = started.pid;
    for kind in ["net", "ipc", "uts", "pid"] {
        assert_eq!(
            inode(place.path(kind)),
            inode(format!("/proc/{pid}/ns/{kind}")),
            "{kind}"
        );
        assert_ne!(
            inode(place.path(kind)),
            inode(format!("/proc/self/ns/{kind}")),
            "{kind}"
        );
    }
    assert_eq!(
        fs::read_to_string(format!("/proc/{pid}/comm")).unwrap(),
        "pause\n"
    );
    assert_eq!(
        fs::read(format!("/proc/{pid}/cmdline")).unwrap(),
        b"pause\0"
    );
    assert_eq!(status(pid, "NSpid"), format!("{pid} 1"));
    assert_eq!(status(pid, "Uid"), "65535 65535 65535 65535");
    assert_eq!(status(pid, "Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(pid, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_ne!(status(pid, "PPid"), std::process::id().to_string());
    // Nothing of the host: an empty root that cannot be written, and /dev/null three times.
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    assert!(fs::write(root.join("x"), "").is_err());
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let fds: Vec<PathBuf> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    assert_eq!(fds.len(), 3);
    assert!(
        fds.iter()
            .all(|f| fs::read_link(f).unwrap() == Path::new("/dev/null"))
    );
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    // Session of its own, no terminal.
    assert_eq!((fields[3], fields[4]), (pid.to_string().as_str(), "0"));
    for leaf in leaves(&format!("/{}", place.name)) {
        let inside = fs::read_to_string(format!("{leaf}/cgroup.procs")).unwrap();
        assert_eq!(inside.trim(), pid.to_string(), "{leaf}");
    }
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::TERM).unwrap();
    until("pause has ended", || !alive(pid));
}

/// The daemon has died when the worker answers: the next one may have undone the pod already, and would not find it again.
#[test]
fn what_nobody_hears_of_is_taken_back() {
    let place = Place::new();
    let nothing = |when: &str| {
        for kind in ["net", "ipc", "uts", "pid"] {
            assert!(!Path::new(&place.path(kind)).exists(), "{when}: {kind}");
        }
        for leaf in leaves(&format!("/{}", place.name)) {
            assert!(!Path::new(&leaf).exists(), "{when}: {leaf}");
        }
    };
    Worker::spawn().abandoned(Call::Pod(place.pod()), &[]);
    nothing("namespaces");
    let worker = Worker::spawn();
    let mut pod = place.pod();
    (pod.net, pod.ipc, pod.uts) = Default::default();
    (pod.hostname, pod.sysctls) = Default::default();
    let made = worker.call(Call::Pod(pod), &[]);
    assert!(matches!(made.outcome, Outcome::Namespaces(_)));
    let exe = place.exe();
    let fds = [(Fd::PauseExe, exe.as_fd())];
    worker.abandoned(Call::Pause(place.request(true)), &fds);
    nothing("pause");
}

#[test]
fn the_new_namespaces_are_set_up() {
    let place = Place::new();
    let (_, pidfd) = place.run(true);
    std::thread::scope(|scope| {
        let seen = scope.spawn(|| {
            for kind in ["net", "ipc", "uts"] {
                let ns = fs::File::open(place.path(kind)).unwrap();
                rustix::thread::move_into_link_name_space(ns.as_fd(), None).unwrap();
            }
            let host = rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned();
            let lo = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.send_to(b"x", socket.local_addr().unwrap()).unwrap();
            (
                host,
                fs::read_to_string("/proc/sys/kernel/shmmni").unwrap(),
                lo,
            )
        });
        let (host, shm, _) = seen.join().unwrap();
        assert_eq!((host.as_str(), shm.as_str()), ("berth-test", "123\n"));
    });
    assert_ne!(
        fs::read_to_string("/proc/sys/kernel/shmmni").unwrap(),
        "123\n"
    );
    let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
}

#[test]
fn pause_reaps_orphans_of_its_pid_namespace() {
    let place = Place::new();
    let (started, _pidfd) = place.run(true);
    let mut fixture = Fixture::new();
    for ns in fixture.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
    {
        if ns["type"] == "pid" {
            ns["path"] = place.path("pid").into();
        }
    }
    let script = "(sh -c 'sleep 0.05' &) ; sleep 0.3; ps -o stat | grep -c Z; cat /proc/1/comm";
    let (text, _) = fixture.sh(script);
    assert_eq!(text, "0\npause\n");
    kill(started.pid);
}

#[test]
fn pause_in_the_hosts_pid_namespace() {
    let place = Place::new();
    let (started, _pidfd) = place.run(false);
    assert_eq!(status(started.pid, "NSpid"), started.pid.to_string());
    assert!(!Path::new(&place.path("pid")).exists());
    kill(started.pid);
}

#[test]
fn a_failing_pod_leaves_nothing() {
    let place = Place::new();
    let mut pod = place.pod();
    pod.uts = place.path("no/such/dir");
    let worker = Worker::spawn();
    let failure = worker.call(Call::Pod(pod), &[]).failure();
    worker.end();
    assert!(failure.contains("no/such/dir"), "{failure}");
    assert!(!Path::new(&place.path("net")).exists());
    let mut pod = place.pod();
    pod.sysctls[0].name = "kernel.core_pattern".into();
    let worker = Worker::spawn();
    assert!(
        worker
            .call(Call::Pod(pod), &[])
            .failure()
            .contains("kernel.core_pattern")
    );
    worker.end();
}

#[test]
fn a_failing_pause_leaves_nothing() {
    let place = Place::new();
    let worker = Worker::spawn();
    worker.call(Call::Pod(place.pod()), &[]);
    let file = fs::File::open("/dev/null").unwrap();
    let answer = worker.call(
        Call::Pause(place.request(true)),
        &[(Fd::PauseExe, file.as_fd())],
    );
    assert!(
        answer.failure().contains("exec: permission denied"),
        "{}",
        answer.failure()
    );
    worker.end();
    assert!(!Path::new(&place.path("pid")).exists());
    assert!(
        leaves(&format!("/{}", place.name))
            .iter()
            .all(|l| !Path::new(l).exists())
    );
    let worker = Worker::spawn();
    let answer = worker.call(
        Call::Pause(place.request(true)),
        &[(Fd::PauseExe, file.as_fd())],
    );
    assert!(
        answer.failure().contains("before it"),
        "{}",
        answer.failure()
    );
    worker.end();
}

#[test]
fn pause_runs_under_its_filter() {
    let place = Place::new();
    let worker = Worker::spawn();
    worker.call(Call::Pod(place.pod()), &[]);
    let (exe, filter) = (place.exe(), forbid(libc::SYS_mkdir));
    let answer = worker.call(
        Call::Pause(place.request(true)),
        &[(Fd::Seccomp, filter.as_fd()), (Fd::PauseExe, exe.as_fd())],
    );
    let (started, _, _) = answer.started();
    worker.end();
    assert_eq!(status(started.pid, "Seccomp"), "2");
    kill(started.pid);
}

#[test]
fn a_filter_that_ends_pause_says_so() {
    let place = Place::new();
    let exe = place.exe();
    let pause = |filter: OwnedFd| {
        let worker = Worker::spawn();
        worker.call(Call::Pod(place.pod()), &[]);
        let answer = worker.call(
            Call::Pause(place.request(true)),
            &[(Fd::Seccomp, filter.as_fd()), (Fd::PauseExe, exe.as_fd())],
        );
        worker.end();
        for kind in ["net", "ipc", "uts"] {
            rustix::mount::unmount(place.path(kind), UnmountFlags::DETACH).unwrap();
        }
        answer
    };
    let allow = libc::SECCOMP_RET_ALLOW;
    for refusal in [libc::SECCOMP_RET_KILL_PROCESS, libc::SECCOMP_RET_TRAP] {
        let error = pause(answer(&[libc::SYS_execveat], refusal, allow)).failure();
        assert!(error.contains("seccomp profile"), "{error}");
        assert!(!Path::new(&place.path("pid")).exists());
    }
    // One that lets it begin and not wait: it ends, where it would ask for ever.
    for errno in [1, 4] {
        let refusal = libc::SECCOMP_RET_ERRNO | errno;
        let calls = [libc::SYS_rt_sigtimedwait, libc::SYS_exit_group];
        let (started, pidfd, _) = pause(answer(&calls, refusal, allow)).started();
        until("pause has ended", || !alive(started.pid));
        drop(pidfd);
        rustix::mount::unmount(place.path("pid"), UnmountFlags::DETACH).unwrap();
    }
}
