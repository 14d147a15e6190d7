//! The log file under load, rotation and trouble.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal};
use shim_protocol::Fd;
use shim_protocol::monitor::{Call, Empty, Outcome};

use crate::Test;
use crate::harness::{Shim, command, eventually, kill, script};

pub(crate) const TESTS: &[Test] = &[
    ("log_every_line_arrives_in_order", in_order),
    ("log_rotation_loses_and_doubles_nothing", rotation),
    ("log_reopen_fails_cleanly", reopen_fails),
    ("log_a_full_disk_drops_and_tells", full_disk),
    ("log_a_container_without_a_log_runs", no_log),
    ("log_a_symlink_is_not_followed", symlink),
    (
        "log_a_foreign_holder_of_the_pipe_delays_the_end_only_briefly",
        foreign_holder,
    ),
    (
        "log_a_terminal_that_nobody_has_open_for_a_moment_goes_on",
        terminal_reopened,
    ),
    ("log_throughput", throughput),
];

fn in_order() {
    let mut shim = Shim::running(script(
        "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done",
    ));
    assert_eq!(shim.daemon.exit().code, 0);
    let log = shim.log();
    let mut count = 0;
    for (i, line) in log.lines().enumerate() {
        assert!(line.ends_with(&format!(" stdout F line {i}")), "{line}");
        count += 1;
    }
    assert_eq!(count, 20_000);
}

fn rotation() {
    let flags = tempfile::tempdir().unwrap();
    let stop = flags.path().join("stop");
    let text = format!(
        "i=0; while [ ! -e {} ]; do echo line $i; i=$((i+1)); done",
        stop.display()
    );
    let mut shim = Shim::running(script(&text));
    let path = shim.dir.path().join("log");
    let old = shim.dir.path().join("log.old");
    let mut whole = String::new();
    for _ in 0..30 {
        eventually("output", || path.metadata().unwrap().len() > 0);
        fs::rename(&path, &old).unwrap();
        shim.daemon.done(Call::ReopenLog(Empty {}));
        assert!(path.exists());
        let size = old.metadata().unwrap().len();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(old.metadata().unwrap().len(), size);
        whole.push_str(&fs::read_to_string(&old).unwrap());
    }
    fs::write(stop, "").unwrap();
    assert_eq!(shim.daemon.exit().code, 0);
    whole.push_str(&shim.log());
    for (i, line) in whole.lines().enumerate() {
        assert!(
            line.ends_with(&format!(" stdout F line {i}")),
            "{i}: {line}"
        );
    }
    assert!(whole.lines().count() > 30);
}

fn reopen_fails() {
    let logs = tempfile::tempdir().unwrap();
    let mut wish = script("while :; do echo x; sleep 0.01; done");
    wish.log_dir = Some(logs.path().into());
    let mut shim = Shim::running(wish);
    let path = logs.path().join("log");
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/tmp/elsewhere", &path).unwrap();
    match shim.daemon.call(Call::ReopenLog(Empty {}), &[]).0 {
        Outcome::Failure(failure) => {
            assert!(
                failure.message.contains("\"log\" cannot be opened anew"),
                "{failure:?}"
            );
        }
        other => panic!("{other:?}"),
    }
    fs::remove_file(&path).unwrap();
    shim.daemon.done(Call::ReopenLog(Empty {}));
    eventually("output", || !fs::read(&path).unwrap().is_empty());
    let dir = logs.path().to_path_buf();
    logs.close().unwrap();
    match shim.daemon.call(Call::ReopenLog(Empty {}), &[]).0 {
        Outcome::Failure(_) => {}
        other => panic!("{other:?}"),
    }
    // Made again, it is another directory of the same name: the daemon hands it over.
    fs::create_dir(&dir).unwrap();
    let again = fs::File::open(&dir).unwrap();
    let fds = [(Fd::LogDir, again.as_fd())];
    match shim.daemon.call(Call::ReopenLog(Empty {}), &fds).0 {
        Outcome::Done(_) => {}
        other => panic!("{other:?}"),
    }
    eventually("output", || !fs::read(&path).unwrap().is_empty());
    shim.daemon.done(Call::ReopenLog(Empty {}));
    fs::remove_dir_all(&dir).unwrap();
    shim.daemon.done(Call::Destroy(Empty {}));
    assert_eq!(shim.daemon.exit().code, 137);
}

/// A small file system that is gone with the test.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        mount(
            "tmpfs",
            dir.path(),
            "tmpfs",
            MountFlags::empty(),
            Some(c"size=256k"),
        )
        .unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

fn full_disk() {
    let disk = SmallDisk::new();
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![0; 128 << 10]).unwrap();
    let flags = tempfile::tempdir().unwrap();
    let text = format!(
        "cd {}; i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; touch written; \
         while [ ! -e go ]; do sleep 0.01; done; echo after; exit 6",
        flags.path().display()
    );
    let mut wish = script(&text);
    wish.log_dir = Some(disk.path().into());
    let began = Instant::now();
    let mut shim = Shim::running(wish);
    let log = disk.path().join("log");
    eventually("the last line", || flags.path().join("written").exists());
    eventually("the losses", || shim.daemon.hello().log_dropped > 10_000);
    fs::remove_file(&ballast).unwrap();
    fs::write(flags.path().join("go"), "").unwrap();
    let exit = shim.daemon.exit();
    assert_eq!(exit.code, 6);
    assert!(began.elapsed() < Duration::from_secs(15));
    let log = fs::read_to_string(log).unwrap();
    let mut told = 0;
    let mut next = 0;
    for line in log.lines() {
        let payload = line.split_once(" F ").unwrap().1;
        if let Some(rest) = payload.strip_prefix("berth: ") {
            assert!(line.contains(" stderr F "));
            assert!(rest.contains("No space left on device"), "{rest}");
            told += rest.split(' ').next().unwrap().parse::<u64>().unwrap();
        } else if let Some(number) = payload.strip_prefix("line ") {
            let number: u64 = number.parse().unwrap();
            let lost: u64 = (next..number).map(|n| 5 + n.to_string().len() as u64).sum();
            assert!(lost <= told, "{line}");
            next = number + 1;
        }
    }
    assert!(
        log.ends_with(" stdout F after\n"),
        "{}",
        &log[log.len() - 500..]
    );
    assert_eq!(told, exit.log_dropped);
    assert!(
        shim.record()
            .unwrap()
            .contains(&format!("\"log_dropped\":{told},"))
    );
}

fn no_log() {
    let mut wish = script("yes | head -c 300000; echo err >&2; exit 2");
    wish.create.log_name = String::new();
    let mut shim = Shim::running(wish);
    assert_eq!(shim.daemon.exit().code, 2);
    assert!(!shim.dir.path().join("log").exists());
}

fn symlink() {
    let logs = tempfile::tempdir().unwrap();
    let victim = logs.path().join("victim");
    fs::write(&victim, "").unwrap();
    std::os::unix::fs::symlink(&victim, logs.path().join("log")).unwrap();
    let mut wish = script("echo x");
    wish.log_dir = Some(logs.path().into());
    let (mut shim, started) = Shim::try_create(wish);
    let failure = started.unwrap_err();
    assert!(
        failure.message.contains("the log \"log\" cannot be opened"),
        "{failure:?}"
    );
    shim.ended();
    assert_eq!(fs::read(&victim).unwrap(), b"");
}

fn foreign_holder() {
    // A process outside the container's cgroup inherits its standard output and lives on.
    let mut shim = Shim::running(script("echo first; setsid sleep 1000 & echo $!; exit 1"));
    let began = Instant::now();
    let exit = shim.daemon.exit();
    let took = began.elapsed();
    assert_eq!(exit.code, 1);
    assert!(
        took > Duration::from_secs(1) && took < Duration::from_secs(5),
        "{took:?}"
    );
    let lines = shim.lines();
    let holder = lines[1].strip_prefix("stdout F ").unwrap().parse().unwrap();
    kill(Pid::from_raw(holder).unwrap(), Signal::KILL);
    assert_eq!((lines.len(), lines[0].as_str()), (2, "stdout F first"));
    shim.ended();
}

fn terminal_reopened() {
    let mut wish = script(
        "echo one; tty=$(tty); exec < /dev/null > /dev/null 2>&1; sleep 0.5; echo two > $tty; \
         sleep 0.5; echo three > $tty; sleep 0.5; exit 3",
    );
    wish.terminal = true;
    let mut shim = Shim::running(wish);
    let began = Instant::now();
    assert_eq!(shim.daemon.exit().code, 3);
    // Nothing was left to wait for.
    let took = began.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(
        shim.lines(),
        ["stdout F one", "stdout F two", "stdout F three"]
    );
    shim.ended();
}

fn throughput() {
    let disk = tempfile::tempdir().unwrap();
    let memory = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    let lines = [b"0123456789abcdef".repeat(4)[1..].to_vec(), b"\n".to_vec()].concat();
    fs::write(memory.path(), lines.repeat((256 << 20) / 64)).unwrap();
    let mut wish = command(&["/bin/cat", memory.path().to_str().unwrap()]);
    wish.log_dir = Some(disk.path().into());
    let mut shim = Shim::created(wish);
    let began = Instant::now();
    shim.daemon.start().unwrap();
    let cpu = |pid| -> u64 {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields
            .get(11..13)
            .map_or(0, |t| t.iter().map(|t| t.parse::<u64>().unwrap()).sum())
    };
    let pid = shim.pid().to_string();
    let mut ticks = 0;
    let log = disk.path().join("log");
    eventually("all lines", || {
        ticks = cpu(&pid).max(ticks);
        log.metadata()
            .is_ok_and(|m| m.len() >= (256 << 20) / 64 * 104)
    });
    let took = began.elapsed().as_secs_f64();
    assert_eq!(shim.daemon.exit().code, 0);
    assert_eq!(log.metadata().unwrap().len(), (256 << 20) / 64 * 104);
    let mib = 256.0 / took;
    let seconds = f64::from(u32::try_from(ticks).unwrap()) / 100.0 * 4.0;
    println!("    64-byte lines: {mib:.0} MiB/s, {seconds:.2} CPU s/GiB");
}
