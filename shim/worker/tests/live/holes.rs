//! What libcontainer gets wrong on this kind of machine, and older runtimes got wrong everywhere: each
//! with the way around it.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use serde_json::json;

use crate::driver::*;

/// libcontainer's exec runs without the container's filter.
#[test]
fn seccomp_holds_for_init_and_for_exec() {
    for no_new_privs in [false, true] {
        let mut fixture = Fixture::new();
        fixture.seccomp = Some(forbid(libc::SYS_mkdir));
        let script = "grep Seccomp: /proc/self/status; mkdir /tmp/x && echo made";
        let mut process = sh(&format!("{script}; exec cat"));
        process.no_new_privs = no_new_privs;
        let mut container = fixture.run(process);
        let mut exec = sh(script);
        exec.no_new_privs = no_new_privs;
        let filter = fixture.seccomp.as_ref().unwrap().as_fd();
        let (text, code) = container
            .try_exec(container.exec_request(exec), Some(filter))
            .unwrap()
            .finish();
        container.stdin = None;
        let init = read(container.stdout.take().unwrap());
        container.wait();
        assert_ne!(code, 0);
        for text in [init, text] {
            assert!(
                text.starts_with("Seccomp:\t2\n") && !text.contains("made"),
                "{text}"
            );
        }
        assert!(!fixture.tree("tmp/x").exists());
    }
}

/// A user that is not root loses its capabilities before a filter without no_new_privs is loaded, if
/// done in the wrong order.
#[test]
fn seccomp_without_no_new_privs_for_an_ordinary_user() {
    let mut fixture = Fixture::new();
    fixture.seccomp = Some(forbid(libc::SYS_mkdir));
    let mut process = sh("id -u; grep -E 'Seccomp:|NoNewPrivs|CapEff' /proc/self/status");
    process.uid = 1000;
    let (text, code) = fixture.run(process).finish();
    assert_eq!(code, 0);
    let expected = "1000\nCapEff:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t2\n";
    assert_eq!(text, expected);
}

#[test]
fn capability_sets_are_exactly_as_given() {
    let fixture = Fixture::new();
    let mut process = sh("grep Cap /proc/self/status | cut -f2 | tr '\\n' ' '");
    process.uid = 1000;
    let net_bind = 1 << 10;
    let chown = 1;
    let sets = process.capabilities.as_mut().unwrap();
    sets.inheritable = net_bind;
    sets.ambient = net_bind;
    sets.permitted = net_bind | chown;
    sets.effective = chown;
    sets.bounding = net_bind | chown;
    let (text, _) = fixture.run(process).finish();
    // execve of an ordinary program by an ordinary user leaves the ambient set (capabilities(7)).
    let set = |n: u64| format!("{n:016x} ");
    let ambient = set(net_bind);
    let expected = [
        &*ambient,
        &*ambient,
        &*ambient,
        &*set(net_bind | chown),
        &*ambient,
    ]
    .concat();
    assert_eq!(text, expected);
    remove_cgroup(&fixture.leaves());
    let mut greedy = sh("true");
    let all = (1u64 << 41) - 1;
    let sets = greedy.capabilities.as_mut().unwrap();
    (sets.bounding, sets.permitted) = (all, all);
    let missing = all & !bounding();
    match fixture.try_create(greedy) {
        Ok(mut container) => assert_eq!((missing, container.start()), (0, Ok(()))),
        Err(error) => assert!(missing != 0 && error.contains("CAP_"), "{error}"),
    }
}

/// libcontainer mounts cgroup v1 hierarchies writable even when asked for read-only.
#[test]
fn cgroup_v1_cannot_be_written_from_inside() {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        berth_skip::skip!("cgroup-v1", "this machine has cgroup v2 alone");
    }
    let mut fixture = Fixture::new();
    let cgroup = fixture.config["mounts"].as_array().unwrap().clone();
    fixture.mount(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] }));
    let error = fixture.try_create(sh("true")).err().unwrap();
    assert!(error.contains("type cgroup"), "{error}");
    fixture.config["mounts"] = cgroup.into();
    fixture.mount(json!({ "destination": "/sys/fs/cgroup", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "noexec", "nodev", "mode=755"] }));
    let memory = fixture.leaf("memory").display().to_string();
    fixture.mount(json!({ "destination": "/sys/fs/cgroup/memory", "type": "bind", "source": memory, "options": ["bind", "ro", "nosuid", "noexec", "nodev"] }));
    let file = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
    let (text, code) = fixture.sh(&format!(
        "test -e {file} || exit 9; echo 209715200 > {file}"
    ));
    assert!(
        text.contains("Read-only file system") && code == 1,
        "{code} {text}"
    );
}

/// As the daemon and the monitor run the worker: from a detached read-only mount of its own file.
fn sealed(path: &str) -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, path, flags).unwrap();
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    use std::os::fd::AsRawFd;
    // SAFETY: the structure lives through the call and its size is given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            std::ptr::from_ref(&attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    assert_eq!(result, 0);
    tree
}

/// CVE-2019-5736.
#[test]
fn the_workers_file_cannot_be_overwritten_from_a_container() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("worker");
    fs::copy(env!("CARGO_BIN_EXE_berth-worker"), &copy).unwrap();
    let before = fs::read(&copy).unwrap();
    let sealed = sealed(copy.to_str().unwrap());
    let fixture = Fixture::new();
    // While a worker's process is in the container, before its execve, /proc/self/exe is the worker's file;
    // a program whose interpreter that is gets to be it.
    let script = fixture.tree("bin/evil");
    fs::write(&script, "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let container = fixture.run(argv(&["cat"]));
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    use std::os::fd::AsRawFd;
    let fd = sealed.as_raw_fd();
    // SAFETY: only async-signal-safe calls happen before execve.
    let child = unsafe {
        Command::new(format!("/proc/self/fd/{fd}"))
            .arg0("berth-worker")
            .stdin(OwnedFd::from(theirs))
            .pre_exec(move || {
                // Kept open across execve so that the path by number still resolves.
                if libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                    Err(std::io::Error::last_os_error())
                } else {
                    Ok(())
                }
            })
            .spawn()
            .unwrap()
    };
    let worker = Worker {
        child,
        socket: ours,
    };
    let (error, error_write) = pipe();
    let request = container.exec_request(argv(&["evil"]));
    let fds = [
        (shim_protocol::Fd::Pidfd, container.pidfd.as_fd()),
        (shim_protocol::Fd::ErrorPipe, error_write.as_fd()),
    ];
    let (started, pidfd, _) = worker
        .call(shim_protocol::worker::Call::Exec(request), &fds)
        .started();
    drop(error_write);
    let _ = read(error);
    // Whatever runs now: the file behind it does not open for writing, not even for the host's root.
    let exe = fs::OpenOptions::new()
        .write(true)
        .open(format!("/proc/{}/exe", started.pid));
    wait(&pidfd);
    assert!(exe.is_err());
    // While a worker runs it is ETXTBSY that answers first.
    worker.end();
    let held = fs::OpenOptions::new()
        .write(true)
        .open(format!("/proc/self/fd/{fd}"));
    assert_eq!(held.unwrap_err().raw_os_error(), Some(libc::EROFS));
    assert!(fs::read(&copy).unwrap() == before);
    // Without the seal the same opening works: the test can fail.
    assert!(fs::OpenOptions::new().write(true).open(&copy).is_ok());
    let _ = MoveMountFlags::empty();
}

/// CVE-2024-21626: the path of the program leads through a directory of the host that the process which is to
/// become it has open, or stands in.
#[test]
fn no_path_of_the_image_leads_to_the_host() {
    let fixture = Fixture::new();
    let host = fixture.dir.path().join("host");
    fs::create_dir(&host).unwrap();
    fs::copy(fixture.tree("bin/busybox"), host.join("true")).unwrap();
    let up = format!("{}{}", "/..".repeat(30), host.display());
    fs::create_dir(fixture.tree("holes")).unwrap();
    let mut path = String::from("PATH=/holes/cwd");
    std::os::unix::fs::symlink(format!("/proc/self/cwd{up}"), fixture.tree("holes/cwd")).unwrap();
    for fd in 0..64 {
        let link = fixture.tree(&format!("holes/{fd}"));
        std::os::unix::fs::symlink(format!("/proc/self/fd/{fd}{up}"), link).unwrap();
        path.push_str(&format!(":/holes/{fd}"));
    }
    let mut process = argv(&["true"]);
    process.env = vec![path.into_bytes()];
    let mut init = fixture.create(process.clone());
    let missing = "exec: \"true\": executable file not found in $PATH";
    assert_eq!(init.start().unwrap_err(), missing);
    init.wait();
    remove_cgroup(&fixture.leaves());

    let container = fixture.run(argv(&["cat"]));
    let mut request = container.exec_request(process.clone());
    // With a cgroup of its own the worker holds its parents open.
    let own = |leaf: &String| format!("{leaf}/exec-1");
    request.own_cgroup = request.join_cgroup.iter().map(own).collect();
    let escaped = container.try_exec(request.clone(), None);
    let escaped = escaped.map(Execed::finish);
    for dir in &request.own_cgroup {
        until("the exec's cgroup can be removed", || {
            fs::remove_dir(dir).is_ok()
        });
    }
    assert_eq!(escaped, Err(missing.to_owned()));
    // The links are right: it is only that nothing is open.
    let copy = fixture.tree("holes/true");
    fs::copy(fixture.tree("bin/busybox"), &copy).unwrap();
    let env = process.env[0].clone();
    process.env = vec![[env.as_slice(), b":/holes"].concat()];
    let exec = container.try_exec(container.exec_request(process), None);
    assert_eq!(exec.unwrap().finish().1, 0);
}

/// libcontainer leaves the streams to root.
#[test]
fn an_ordinary_user_opens_its_standard_streams() {
    let fixture = Fixture::new();
    let mut process = sh("echo a > /dev/stdout; echo b > /dev/stderr; cat < /dev/stdin");
    process.uid = 1000;
    process.gid = 1000;
    let mut container = fixture.run(process.clone());
    rustix::io::write(container.stdin.as_ref().unwrap(), b"c\n").unwrap();
    container.stdin = None;
    let out = read(container.stdout.take().unwrap());
    let err = read(container.stderr.take().unwrap());
    assert_eq!(
        (out.as_str(), err.as_str(), container.wait()),
        ("a\nc\n", "b\n", 0)
    );
    remove_cgroup(&fixture.leaves());
    let holder = fixture.run(argv(&["cat"]));
    let (text, code) = holder
        .try_exec(holder.exec_request(process), None)
        .unwrap()
        .finish();
    assert_eq!((text.as_str(), code), ("a\nb\n", 0));
}

/// libcontainer hands on blocked and ignored signals, supplementary groups and the umask.
#[test]
fn what_the_monitor_inherited_is_not_handed_on() {
    let fixture = Fixture::new();
    let container = {
        // SAFETY: sets of signals of this thread only; children of it inherit them.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut set);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            // Rust's own start-up has SIGPIPE ignored already; Command resets it, so again in pre_exec.
        }
        fixture.run(sh(
            "grep -E 'Sig(Blk|Ign)|Groups' /proc/self/status; umask; yes | head -1; exec cat",
        ))
    };
    let (exec, code) = container.sh("grep -E 'Sig(Blk|Ign)|Groups' /proc/self/status; umask");
    assert_eq!(code, 0);
    let expected = "Groups:\t \nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n0022\n";
    assert_eq!(exec, expected);
    let mut container = container;
    container.stdin = None;
    let init = read(container.stdout.take().unwrap());
    container.wait();
    assert_eq!(init, format!("{expected}y\n"));
}

/// Device rules default to deny only if somebody says so; on v1 that is the worker's writes.
#[test]
fn devices_are_denied_but_for_those_allowed() {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        println!("the v2 program is tested in the unit tests of devices.rs");
    }
    let mut fixture = Fixture::new();
    let leaf = fixture.leaf("devices");
    let cgroup = fixture.request.cgroup.as_mut().unwrap();
    let v1 = leaf.join("devices.deny");
    if v1
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .join("devices.deny")
        .exists()
    {
        for (file, value) in [
            ("devices.deny", "a"),
            ("devices.allow", "c 1:3 rwm"),
            ("devices.allow", "c *:* m"),
        ] {
            cgroup.writes.push(shim_protocol::worker::CgroupWrite {
                file: leaf.join(file).display().to_string(),
                value: value.into(),
                optional: false,
            });
        }
    } else {
        let rule =
            |allow, kind: &str, major, minor, access: &str| shim_protocol::worker::DeviceRule {
                allow,
                kind: kind.into(),
                major,
                minor,
                access: access.into(),
            };
        cgroup.device_dir = leaf.display().to_string();
        cgroup.devices = vec![
            rule(false, "a", None, None, "rwm"),
            rule(true, "c", Some(1), Some(3), "rwm"),
            rule(true, "c", None, None, "m"),
        ];
    }
    let (text, code) = fixture.sh(
        "echo x > /dev/null && echo null; cat /dev/zero | head -c 1 | wc -c; mknod /tmp/mem c 1 1 && echo made; cat /tmp/mem | head -c 1 | wc -c",
    );
    assert!(
        text.contains("null\n") && text.contains("made\n"),
        "{code} {text}"
    );
    assert_eq!(text.matches("Operation not permitted").count(), 2, "{text}");
}

/// The unified hierarchy enforces our program on this machine too, whatever the v1 files say.
#[test]
fn the_v2_device_program_is_enforced() {
    let mut fixture = Fixture::new();
    let unified = fixture
        .leaves()
        .into_iter()
        .find(|l| {
            Path::new(l)
                .parent()
                .unwrap()
                .join("cgroup.controllers")
                .exists()
        })
        .expect("no cgroup v2 hierarchy on this machine");
    let cgroup = fixture.request.cgroup.as_mut().unwrap();
    cgroup.device_dir = unified;
    let rule = |allow, major: Option<i64>, minor, access: &str| shim_protocol::worker::DeviceRule {
        allow,
        kind: if major.is_some() {
            "c".into()
        } else {
            "a".into()
        },
        major,
        minor,
        access: access.into(),
    };
    cgroup.devices = vec![
        rule(false, None, None, "rwm"),
        rule(true, Some(1), Some(3), "rwm"),
        rule(true, Some(1), Some(5), "r"),
    ];
    let script = "exec cat";
    let container = fixture.run(sh(script));
    let (text, _) = container.sh(
        "echo x > /dev/null && echo null; head -c 1 /dev/zero | wc -c; echo x > /dev/zero; head -c 1 /dev/urandom; mknod /tmp/z c 1 5; true",
    );
    assert!(text.contains("null\n1\n"), "{text}");
    assert_eq!(text.matches("Operation not permitted").count(), 3, "{text}");
}

/// PDEATHSIG: it dies with the thread that started the worker, as with a monitor.
#[test]
fn a_running_container_and_its_exec_die_with_the_monitor() {
    for uid in [0, 1000] {
        let fixture = Fixture::new();
        let pids = std::thread::scope(|scope| {
            let monitor = scope.spawn(|| {
                let mut process = argv(&["cat"]);
                process.uid = uid;
                let container = fixture.run(process);
                let mut process = argv(&["sleep", "1000"]);
                process.uid = uid;
                let exec = container
                    .try_exec(container.exec_request(process), None)
                    .unwrap();
                let pids = [container.started.pid, exec.started.pid];
                assert!(pids.iter().all(|p| alive(*p)));
                // The pipes stay open: only the thread's end can be the reason.
                std::mem::forget((container, exec));
                pids
            });
            monitor.join().unwrap()
        });
        // pid 1 of the namespace ends only once all others in it have been reaped: the exec first.
        for pid in [pids[1], pids[0]] {
            use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
            let ended = waitid(
                WaitId::Pid(Pid::from_raw(pid).unwrap()),
                WaitIdOptions::EXITED,
            );
            assert_eq!(
                ended.unwrap().unwrap().terminating_signal(),
                Some(libc::SIGKILL),
                "uid {uid}"
            );
        }
    }
}

/// A monitor that died before the death signal was set is noticed by its pipe.
#[test]
fn a_container_is_not_started_for_a_dead_monitor() {
    let fixture = Fixture::new();
    let mut container = fixture.create(sh("touch /tmp/ran"));
    container.error = None;
    rustix::io::write(container.start.as_ref().unwrap(), b"x").unwrap();
    assert_eq!(container.wait(), 255);
    assert!(!fixture.tree("tmp/ran").exists());
}
