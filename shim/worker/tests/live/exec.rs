//! Processes in running containers.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::driver::*;

fn sleeping(fixture: &Fixture) -> Container {
    fixture.run(argv(&["cat"]))
}

#[test]
fn it_runs_in_all_namespaces_and_cgroups_of_the_container() {
    let fixture = Fixture::new();
    let container = sleeping(&fixture);
    let names = "mnt net ipc uts pid";
    let script =
        format!("for n in {names}; do readlink /proc/self/ns/$n; readlink /proc/1/ns/$n; done");
    let (text, code) = container.sh(&script);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines.len(), code), (10, 0), "{text}");
    assert!(lines.chunks(2).all(|pair| pair[0] == pair[1]), "{text}");
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    assert!(!text.contains(host.to_str().unwrap()));
    let (cgroups, _) = container.sh("cat /proc/self/cgroup");
    let (inits, _) = container.sh("cat /proc/1/cgroup");
    assert_eq!(cgroups, inits);
}

#[test]
fn its_parent_is_the_monitor_and_its_status_arrives() {
    let fixture = Fixture::new();
    let container = sleeping(&fixture);
    let exec = container.try_exec(container.exec_request(sh("read x; exit 7")), None);
    // No stdin came, so it is /dev/null and read ends at once.
    assert_eq!(exec.unwrap().finish(), (String::new(), 7));
    let exec = container
        .try_exec(container.exec_request(argv(&["sleep", "100"])), None)
        .unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", exec.started.pid)).unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    assert_eq!(fields[1], std::process::id().to_string());
    assert_eq!(fields[19], exec.started.start_time.to_string());
    kill(exec.started.pid);
    assert_eq!(exec.finish().1, 137);
}

#[test]
fn failures_are_told() {
    let fixture = Fixture::new();
    let mut container = sleeping(&fixture);
    let error = |process| {
        container
            .try_exec(container.exec_request(process), None)
            .err()
            .expect("it ran")
    };
    assert_eq!(
        error(argv(&["nosuch"])),
        "exec: \"nosuch\": executable file not found in $PATH"
    );
    assert!(error(argv(&[])).contains("empty args"));
    let mut lost = sh("true");
    lost.cwd = b"/nowhere".to_vec();
    assert_eq!(
        error(lost),
        "working directory \"/nowhere\": no such file or directory"
    );
    assert!(!fixture.tree("nowhere").exists());
    container.kill();
    until("the init is dead", || !alive(container.started.pid));
    let dead = container
        .try_exec(container.exec_request(sh("true")), None)
        .err()
        .unwrap();
    assert!(
        dead.contains("not running") || dead.contains("is gone"),
        "{dead}"
    );
    container.wait();
}

#[test]
fn a_paused_container_takes_no_exec() {
    let fixture = Fixture::new();
    let container = sleeping(&fixture);
    let v1 = fixture.leaf("freezer").join("freezer.state");
    let (file, frozen, thawed) = if v1.exists() {
        (v1, "FROZEN", "THAWED")
    } else {
        (fixture.leaf("").join("cgroup.freeze"), "1", "0")
    };
    fs::write(&file, frozen).unwrap();
    let error = container
        .try_exec(container.exec_request(sh("true")), None)
        .err();
    fs::write(&file, thawed).unwrap();
    assert!(error.unwrap().contains("paused"));
    assert_eq!(container.sh("true").1, 0);
}

#[test]
fn a_cgroup_of_its_own_is_made_and_on_failure_removed() {
    let fixture = Fixture::new();
    let container = sleeping(&fixture);
    let own = fixture.leaf("pids").join("exec-1");
    let mut request = container.exec_request(argv(&["sleep", "100"]));
    request.own_cgroup = vec![own.display().to_string()];
    let parent = own.parent().unwrap().display().to_string();
    request.join_cgroup.retain(|dir| *dir != parent);
    let exec = container.try_exec(request.clone(), None).unwrap();
    let inside = fs::read_to_string(own.join("cgroup.procs")).unwrap();
    assert_eq!(inside.trim(), exec.started.pid.to_string());
    for leaf in &request.join_cgroup {
        let inside = fs::read_to_string(Path::new(leaf).join("cgroup.procs")).unwrap();
        assert!(
            inside.lines().any(|l| l == exec.started.pid.to_string()),
            "{leaf}"
        );
    }
    kill(exec.started.pid);
    exec.finish();
    until("the exec's cgroup can be removed", || {
        fs::remove_dir(&own).is_ok()
    });
    request.join_cgroup.push("/sys/fs/cgroup/nosuch".into());
    assert!(container.try_exec(request, None).is_err());
    assert!(!own.exists());
}

/// When it fails, the worker is in the new cgroup already, and in the container's mount namespace.
#[test]
fn a_late_failure_removes_the_execs_cgroup_too() {
    let mut fixture = Fixture::new();
    let mounts = fixture.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|m| m["destination"] != "/dev/pts");
    let container = sleeping(&fixture);
    let own = fixture.leaf("pids").join("exec-3");
    let mut process = sh("true");
    process.terminal = true;
    let mut request = container.exec_request(process);
    request.own_cgroup = vec![own.display().to_string()];
    let error = container.try_exec(request, None).err().unwrap();
    assert!(error.contains("/dev/pts/ptmx"), "{error}");
    assert!(!own.exists());
}

/// The unified hierarchy takes the process by `CLONE_INTO_CGROUP`; here it has no controllers, but the
/// same call.
#[test]
fn it_is_cloned_into_a_unified_cgroup() {
    let fixture = Fixture::new();
    let container = sleeping(&fixture);
    let leaf = fixture
        .leaves()
        .into_iter()
        .map(PathBuf::from)
        .find(|l| l.join("cgroup.controllers").exists())
        .expect("no cgroup v2 hierarchy on this machine");
    let own = leaf.join("exec-2");
    let mut request = container.exec_request(sh("cat /proc/self/cgroup"));
    request.join_cgroup = Vec::new();
    request.own_cgroup = vec![own.display().to_string()];
    let (text, code) = container.try_exec(request, None).unwrap().finish();
    assert_eq!(code, 0);
    assert!(
        text.lines()
            .any(|l| l.starts_with("0::") && l.ends_with("/exec-2")),
        "{text}"
    );
    fs::remove_dir(&own).unwrap();
}

/// A privileged container may do that; what it gets for it is a reason.
#[test]
fn a_threaded_cgroup_of_the_container_is_told_as_the_reason() {
    let fixture = Fixture::new();
    let container = sleeping(&fixture);
    let leaf = fixture
        .leaves()
        .into_iter()
        .map(PathBuf::from)
        .find(|l| l.join("cgroup.controllers").exists())
        .expect("no cgroup v2 hierarchy on this machine");
    let (threads, own) = (leaf.join("threads"), leaf.join("exec-4"));
    fs::create_dir(&threads).unwrap();
    fs::write(threads.join("cgroup.type"), "threaded").unwrap();
    let mut request = container.exec_request(sh("true"));
    request.join_cgroup = Vec::new();
    request.own_cgroup = vec![own.display().to_string()];
    let error = container.try_exec(request, None).err().unwrap();
    assert!(
        error.contains("exec-4 takes no process") && error.contains("threaded"),
        "{error}"
    );
    assert!(!own.exists());
    fs::remove_dir(&threads).unwrap();
}

#[test]
fn a_terminal_comes_from_the_containers_devpts() {
    let fixture = Fixture::new();
    let container = sleeping(&fixture);
    let mut process = sh("tty; stty size; echo x > /dev/tty; test -e /dev/console || echo none");
    process.terminal = true;
    (process.rows, process.columns) = (11, 22);
    process.uid = 7;
    let mut exec = container
        .try_exec(container.exec_request(process), None)
        .unwrap();
    let text = read(exec.console.take().unwrap()).replace('\r', "");
    assert_eq!(wait(&exec.pidfd), 0);
    assert_eq!(text, "/dev/pts/0\n11 22\nx\nnone\n");
}

#[test]
fn user_groups_umask_and_environment_are_as_asked() {
    let fixture = Fixture::new();
    let container = sleeping(&fixture);
    let mut process = sh(
        "id; umask; pwd; echo $A; grep -E 'Cap(Inh|Amb)|NoNewPrivs|SigBlk|SigIgn' /proc/self/status; true",
    );
    process.uid = 1000;
    process.gid = 2000;
    process.groups = vec![3000, 4000];
    process.cwd = b"/tmp".to_vec();
    process.env.push(b"A=b c".to_vec());
    process.no_new_privs = true;
    let (text, code) = container
        .try_exec(container.exec_request(process), None)
        .unwrap()
        .finish();
    assert_eq!(code, 0, "{text}");
    for expected in [
        "uid=1000 gid=2000 groups=2000,3000,4000\n",
        "0022\n/tmp\nb c\n",
        "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n",
        "CapInh:\t0000000000000000\n",
        "CapAmb:\t0000000000000000\n",
        "NoNewPrivs:\t1\n",
    ] {
        // busybox prints "groups=" only with more than the primary group.
        let plain = expected.replace("2000,", "");
        assert!(
            text.contains(expected) || text.contains(&plain),
            "{expected:?} in {text}"
        );
    }
}

/// Runs a process in a user namespace that has the host's files: its output, and its `/proc/PID/status` at the
/// end of the output.
fn in_a_user_namespace(process: shim_protocol::worker::Process) -> (String, String) {
    // A container's init in a user namespace, made by hand: the daemon pins such a namespace.
    let mut holder = std::process::Command::new("/usr/bin/unshare")
        .args(["-U", "-n", "-u", "-i", "-m", "sleep", "100"])
        .spawn()
        .unwrap();
    let pid = holder.id();
    until("the holder is in its user namespace", || {
        fs::read_link(format!("/proc/{pid}/ns/mnt")).ok() != fs::read_link("/proc/self/ns/mnt").ok()
    });
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{pid}/{map}"), "0 100000 65536").unwrap();
    }
    let raw = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()).unwrap();
    let (error, error_write) = pipe();
    let (stdout, stdout_write) = pipe();
    let request = shim_protocol::worker::Exec {
        init: i32::try_from(pid).unwrap(),
        process: Some(process),
        user_namespace: true,
        ..Default::default()
    };
    let worker = Worker::spawn();
    let fds = [
        (shim_protocol::Fd::Pidfd, pidfd.as_fd()),
        (shim_protocol::Fd::ErrorPipe, error_write.as_fd()),
        (shim_protocol::Fd::Stdout, stdout_write.as_fd()),
    ];
    let answer = worker.call(shim_protocol::worker::Call::Exec(request), &fds);
    worker.end();
    let (started, exec, _) = answer.started();
    drop((error_write, stdout_write));
    assert_eq!(read(error), "");
    let text = read(stdout);
    let status = fs::read_to_string(format!("/proc/{}/status", started.pid)).unwrap();
    kill(started.pid);
    wait(&exec);
    holder.kill().unwrap();
    holder.wait().unwrap();
    (text, status)
}

#[test]
fn a_user_namespace_is_joined_and_its_root_is_not_the_hosts() {
    let mut process = argv(&[
        "/bin/sh",
        "-c",
        "id -u > /dev/stdout; cat /proc/self/uid_map; exec sleep 100 >&2",
    ]);
    process.cwd = b"/".to_vec();
    let (text, status) = in_a_user_namespace(process);
    assert!(
        status.contains("Uid:\t100000\t100000\t100000\t100000"),
        "{status}"
    );
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "65536"]);
}

/// As on a network file system that refuses root.
#[test]
fn a_working_directory_that_only_the_user_may_enter_is_entered() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let inner = dir.path().join("closed/inner");
    fs::create_dir_all(&inner).unwrap();
    let closed = inner.parent().unwrap();
    fs::set_permissions(closed, fs::Permissions::from_mode(0o700)).unwrap();
    // A group that the namespace does not know takes its root's rights away.
    chown(closed, Some(100_007), Some(0)).unwrap();
    let mut process = argv(&["/bin/sh", "-c", "pwd; exec sleep 100 >&2"]);
    process.cwd = inner.display().to_string().into_bytes();
    process.uid = 7;
    process.gid = 7;
    let (text, _) = in_a_user_namespace(process);
    assert_eq!(text.trim(), inner.display().to_string());
}

#[test]
fn resource_limits_are_the_containers() {
    let fixture = Fixture::new();
    let container = sleeping(&fixture);
    let mut request = container.exec_request(sh("ulimit -Sn; ulimit -Hn"));
    request.rlimits = vec![shim_protocol::worker::Rlimit {
        resource: libc::RLIMIT_NOFILE,
        soft: 20,
        hard: 30,
    }];
    assert_eq!(
        container.try_exec(request, None).unwrap().finish(),
        ("20\n30\n".into(), 0)
    );
}
