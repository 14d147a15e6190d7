//! Making and starting a container's init.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use shim_protocol::worker::{CgroupWrite, Rlimit};

use crate::driver::*;

#[test]
fn create_start_output_and_status() {
    let fixture = Fixture::new();
    let mut container = fixture.create(sh("echo out; echo err >&2; exit 3"));
    let comm = fs::read_to_string(format!("/proc/{}/comm", container.started.pid)).unwrap();
    assert!(comm.contains("INIT"), "{comm}");
    container.start().unwrap();
    let (text, code) = container.finish();
    assert_eq!((text.as_str(), code), ("out\nerr\n", 3));
}

#[test]
fn start_time_is_the_kernels() {
    let fixture = Fixture::new();
    let container = fixture.create(sh("true"));
    let stat = fs::read_to_string(format!("/proc/{}/stat", container.started.pid)).unwrap();
    let field = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .nth(19)
        .unwrap();
    assert_eq!(container.started.start_time.to_string(), field);
}

#[test]
fn a_created_container_keeps_nothing_of_the_host_open() {
    let fixture = Fixture::new();
    let container = fixture.create(sh("true"));
    until("only the streams and two pipes are open", || {
        let fds = fs::read_dir(format!("/proc/{}/fd", container.started.pid)).unwrap();
        let targets: Vec<String> = fds
            .map(|f| {
                fs::read_link(f.unwrap().path())
                    .unwrap()
                    .display()
                    .to_string()
            })
            .collect();
        targets.len() == 5 && targets.iter().all(|t| t.starts_with("pipe:"))
    });
}

#[test]
fn a_running_container_has_three_descriptors() {
    let (text, code) = Fixture::new().sh("ls /proc/self/fd | grep -v 3 | tr '\\n' ' '");
    // The fourth is the directory that ls reads.
    assert_eq!((text.as_str(), code), ("0 1 2 ", 0));
}

#[test]
fn end_of_the_start_pipe_ends_a_created_container() {
    let fixture = Fixture::new();
    let mut container = fixture.create(sh("echo never"));
    container.start = None;
    assert_eq!(container.wait(), 128);
    assert_eq!(read(container.stdout.take().unwrap()), "");
    assert_eq!(read(container.error.take().unwrap()), "");
}

#[test]
fn a_command_that_is_not_there_is_told_through_the_error_pipe() {
    let fixture = Fixture::new();
    let told = |args: &[&str]| fixture.create(argv(args)).start().unwrap_err();
    assert_eq!(
        told(&["nosuch"]),
        "exec: \"nosuch\": executable file not found in $PATH"
    );
    remove_cgroup(&fixture.leaves());
    assert_eq!(
        told(&["/bin/nosuch"]),
        "exec: \"/bin/nosuch\": no such file or directory"
    );
    remove_cgroup(&fixture.leaves());
    assert_eq!(told(&["/tmp"]), "exec: \"/tmp\": permission denied");
    remove_cgroup(&fixture.leaves());
    fs::write(fixture.tree("bin/odd"), "not a program").unwrap();
    fs::set_permissions(fixture.tree("bin/odd"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(told(&["odd"]), "exec: \"odd\": exec format error");
}

#[test]
fn an_entrypoint_of_root_alone_runs() {
    let fixture = Fixture::new();
    fs::copy(fixture.tree("bin/busybox"), fixture.tree("run")).unwrap();
    fs::set_permissions(fixture.tree("run"), fs::Permissions::from_mode(0o700)).unwrap();
    let mut process = argv(&["/run", "true"]);
    process.args[0] = b"/run".to_vec();
    fs::rename(fixture.tree("run"), fixture.tree("true")).unwrap();
    process.args = vec![b"/true".to_vec()];
    assert_eq!(fixture.run(process).finish().1, 0);
}

#[test]
fn empty_args_are_refused_and_nothing_is_left() {
    let fixture = Fixture::new();
    let error = fixture.try_create(argv(&[])).err().unwrap();
    assert!(error.contains("empty args"), "{error}");
    assert!(fixture.leaves().iter().all(|l| !Path::new(l).exists()));
}

#[test]
fn environment_keeps_order_duplicates_and_bytes() {
    let fixture = Fixture::new();
    let mut process = argv(&["cat", "/proc/self/environ"]);
    process.env = vec![
        b"Z=1".to_vec(),
        b"PATH=/bin".to_vec(),
        b"A=2".to_vec(),
        b"Z=3".to_vec(),
        b"NOEQ".to_vec(),
        b"B=\xff\xfe".to_vec(),
    ];
    let mut container = fixture.create(process.clone());
    container.start().unwrap();
    let mut bytes = Vec::new();
    let stdout = fs::File::from(container.stdout.take().unwrap());
    std::io::Read::read_to_end(&mut &stdout, &mut bytes).unwrap();
    let mut expected = process.env.join(&b'\0');
    expected.push(0);
    assert_eq!(bytes, expected);
    container.wait();
}

#[test]
fn the_working_directory_is_made_and_stays_in_the_container() {
    let outside = tempfile::tempdir().unwrap();
    let fixture = Fixture::new();
    symlink(outside.path(), fixture.tree("out")).unwrap();
    let in_dir = |cwd: &[u8], read_only: bool| {
        let mut process = sh("pwd");
        process.cwd = cwd.to_vec();
        let mut fixture_config = fixture.config.clone();
        fixture_config["root"]["readonly"] = read_only.into();
        remove_cgroup(&fixture.leaves());
        (process, fixture_config)
    };
    let (process, _) = in_dir(b"/srv/deep", false);
    assert_eq!(fixture.run(process).finish(), ("/srv/deep\n".into(), 0));
    assert_eq!(
        fs::metadata(fixture.tree("srv/deep"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o755
    );
    let (mut process, _) = in_dir(b"/out/x", false);
    let error = fixture.try_create(process.clone()).err().unwrap();
    assert!(error.contains("working directory \"/out/x\""), "{error}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    process.cwd = std::ffi::OsStr::new("/bin/busybox").as_bytes().to_vec();
    let error = fixture.try_create(process).err().unwrap();
    assert!(error.contains("not a directory"), "{error}");
}

#[test]
fn the_working_directory_is_made_under_a_read_only_root() {
    let mut fixture = Fixture::new();
    fixture.config["root"]["readonly"] = true.into();
    let mut process = sh("pwd; touch /x");
    process.cwd = b"/srv/app".to_vec();
    let (text, code) = fixture.run(process).finish();
    assert!(
        text.starts_with("/srv/app\n") && text.contains("Read-only file system"),
        "{text}"
    );
    assert_ne!(code, 0);
}

#[test]
fn device_proc_and_sys_of_the_image_must_be_directories() {
    for name in ["dev", "proc", "sys"] {
        let canary = tempfile::tempdir().unwrap();
        fs::write(canary.path().join("ptmx"), "keep").unwrap();
        let fixture = Fixture::new();
        symlink(canary.path(), fixture.tree(name)).unwrap();
        let error = fixture.try_create(sh("true")).err().unwrap();
        assert_eq!(
            error,
            format!("/{name} of the image must be an ordinary directory")
        );
        assert_eq!(fs::read_dir(canary.path()).unwrap().count(), 1);
        assert_eq!(
            fs::read_to_string(canary.path().join("ptmx")).unwrap(),
            "keep"
        );
        assert!(fixture.leaves().iter().all(|l| !Path::new(l).exists()));
    }
}

#[test]
fn directories_are_made_inside_the_root() {
    let outside = tempfile::tempdir().unwrap();
    let fixture = Fixture::new();
    symlink(outside.path(), fixture.tree("link")).unwrap();
    let within = |cwd: &str| shim_protocol::worker::Process {
        cwd: cwd.into(),
        ..sh("pwd")
    };
    assert_eq!(fixture.run(within("/a/b")).finish().0, "/a/b\n");
    remove_cgroup(&fixture.leaves());
    assert!(fixture.try_create(within("/link/b")).is_err());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn a_failing_mount_is_named_and_nothing_is_left() {
    let mut fixture = Fixture::new();
    fixture.mount(serde_json::json!({
        "destination": "/data", "type": "bind", "source": "/no/such/volume", "options": ["rbind"],
    }));
    let error = fixture.try_create(sh("true")).err().unwrap();
    assert!(
        error.contains("/no/such/volume")
            && error.contains("/data")
            && error.contains("no such file or directory"),
        "{error}"
    );
    assert!(
        fixture.leaves().iter().all(|l| !Path::new(l).exists()),
        "{error}"
    );
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let staging = mounts
        .lines()
        .filter(|l| l.contains(&fixture.request.rootfs))
        .count();
    assert_eq!(staging, 1, "{mounts}");
}

#[test]
fn nothing_is_mounted_on_the_host() {
    let fixture = Fixture::new();
    let mut container = fixture.run(sh("cat"));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert_eq!(
        mounts
            .lines()
            .filter(|l| l.contains(&fixture.request.rootfs))
            .count(),
        1
    );
    assert_eq!(fs::read_dir(&fixture.request.rootfs).unwrap().count(), 0);
    container.stdin = None;
    container.wait();
}

#[test]
fn every_cgroup_is_joined_and_written() {
    let mut fixture = Fixture::new();
    let file = fixture.leaf("pids").join("pids.max").display().to_string();
    let cgroup = fixture.request.cgroup.as_mut().unwrap();
    cgroup.writes.push(CgroupWrite {
        file,
        value: "77".into(),
        optional: false,
    });
    cgroup.writes.push(CgroupWrite {
        file: "/sys/fs/cgroup/pids/nosuch".into(),
        value: "1".into(),
        optional: true,
    });
    let container = fixture.create(sh("true"));
    let pid = container.started.pid.to_string();
    for leaf in fixture.leaves() {
        let inside = fs::read_to_string(format!("{leaf}/cgroup.procs")).unwrap();
        assert_eq!(inside.trim(), pid, "{leaf}");
    }
    assert_eq!(
        fs::read_to_string(fixture.leaf("pids").join("pids.max"))
            .unwrap()
            .trim(),
        "77"
    );
    drop(container);
    let cgroup = fixture.request.cgroup.as_mut().unwrap();
    cgroup.writes[1].optional = false;
    remove_cgroup(&fixture.leaves());
    let error = fixture.try_create(sh("true")).err().unwrap();
    assert!(error.contains("/sys/fs/cgroup/pids/nosuch"), "{error}");
    assert!(fixture.leaves().iter().all(|l| !Path::new(l).exists()));
}

#[test]
fn resource_limits_are_exact_and_do_not_hinder_the_worker() {
    let mut fixture = Fixture::new();
    fixture.request.rlimits = vec![
        Rlimit {
            resource: libc::RLIMIT_NOFILE,
            soft: 9,
            hard: 11,
        },
        Rlimit {
            resource: libc::RLIMIT_FSIZE,
            soft: 0,
            hard: 512,
        },
    ];
    assert_eq!(
        fixture.sh("ulimit -Sn; ulimit -Hn; ulimit -Sf; ulimit -Hf"),
        ("9\n11\n0\n1\n".into(), 0)
    );
}

#[test]
fn oom_score_is_inherited_from_the_worker() {
    let fixture = Fixture::new();
    let mut process = sh("cat /proc/self/oom_score_adj");
    process.oom_score_adj = Some(777);
    assert_eq!(fixture.run(process).finish(), ("777\n".into(), 0));
}

#[test]
fn a_terminal_is_the_containers_own() {
    let fixture = Fixture::new();
    let mut process = sh(
        "tty; stty size; stat -c %u:%t:%T /dev/pts/0; ls -l /dev/console | cut -c1; echo x > /dev/console; echo y > /dev/tty",
    );
    process.terminal = true;
    (process.rows, process.columns) = (33, 77);
    process.uid = 1000;
    process.gid = 1000;
    let mut container = fixture.create(process);
    let console = container.console.take().unwrap();
    container.start().unwrap();
    let text = read(console).replace('\r', "");
    container.wait();
    assert_eq!(text, "/dev/pts/0\n33 77\n1000:88:0\nc\nx\ny\n");
}

#[test]
fn a_config_that_does_not_fit_is_refused() {
    let mut fixture = Fixture::new();
    fixture.config["linux"]["resources"] = serde_json::json!({ "pids": { "limit": 1 } });
    assert!(
        fixture
            .try_create(sh("true"))
            .err()
            .unwrap()
            .contains("/linux/resources")
    );
}

#[test]
fn a_worker_without_a_request_ends() {
    let worker = Worker::spawn();
    worker.end();
    let worker = Worker::spawn();
    let missing = worker.call(
        shim_protocol::worker::Call::Exec(shim_protocol::worker::Exec {
            process: Some(sh("true")),
            ..Default::default()
        }),
        &[(shim_protocol::Fd::Stdin, std::io::stdin().as_fd())],
    );
    assert!(missing.failure().contains("Pidfd"), "{}", missing.failure());
    worker.end();
}
