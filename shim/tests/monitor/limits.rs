//! Control groups, out of memory, and what a waiting monitor costs.

use std::fs;
use std::os::fd::AsFd;

use rustix::process::{Pid, Signal};
use shim_protocol::monitor::{Event, Exec, OomSource};
use shim_protocol::{Fd, worker};

use crate::Test;
use crate::harness::{Cgroup, Shim, eventually, is_gone, kill, pid_in, script};

pub(crate) const TESTS: &[Test] = &[
    ("limit_an_oom_kill_is_latched", oom),
    ("limit_an_oom_kill_of_an_exec_is_an_event", oom_exec),
    (
        "limit_leftovers_are_killed_before_the_exit_is_told",
        leftovers,
    ),
    ("limit_cgroups_are_removed", removed),
    ("limit_memory_of_thirty_monitors", memory),
];

/// Takes more memory than it may.
const GREEDY: &str = "x=$(head -c 60000000 /dev/zero | tr '\\0' x); echo ${#x}";

fn limited() -> (Cgroup, OomSource) {
    let cgroup = Cgroup::new("memory");
    cgroup.set("memory.limit_in_bytes", "20000000");
    let source = OomSource {
        v1_dir: cgroup.path(),
        ..OomSource::default()
    };
    (cgroup, source)
}

fn oom() {
    for _ in 0..5 {
        let (cgroup, source) = limited();
        let mut wish = script(&format!("exec sh -c \"{}\"", GREEDY.replace('$', "\\$")));
        wish.create.oom = Some(source);
        wish.create.leaves = vec![cgroup.path()];
        let mut shim = Shim::running(wish);
        let exit = loop {
            match shim.daemon.event() {
                Event::Exited(exit) => break exit,
                Event::Oom(oom) => assert!(oom.kills > 0),
                other @ Event::ExecExited(_) => panic!("{other:?}"),
            }
        };
        assert!(exit.oom, "{exit:?}");
        shim.ended();
        assert!(shim.record().unwrap().contains("\"oom\":true"));
    }
}

fn oom_exec() {
    let (cgroup, source) = limited();
    let mut wish = script("while :; do sleep 0.02; done");
    wish.create.oom = Some(source);
    let mut shim = Shim::running(wish);
    let own = vec![format!("{}/exec", cgroup.path())];
    // The hierarchy counts a kill where the victim is, so the exec goes straight into the container's.
    let exec = worker::Exec {
        own_cgroup: own.clone(),
        ..worker::Exec::default()
    };
    let exec = Exec {
        exec: Some(exec),
        ..Exec::default()
    };
    let text = format!("echo $$ > {}/cgroup.procs; {GREEDY}", cgroup.path());
    shim.daemon.exec("a", &text, exec, &[]).unwrap();
    let (mut kills, mut ended) = (0, false);
    while kills == 0 || !ended {
        match shim.daemon.event() {
            Event::Oom(oom) => kills = oom.kills,
            Event::ExecExited(_) => ended = true,
            other @ Event::Exited(_) => panic!("{other:?}"),
        }
    }
    assert!(kills >= 1);
    assert_eq!(shim.daemon.hello().oom_kills, kills);
    assert!(!fs::exists(&own[0]).unwrap());
}

fn leftovers() {
    let cgroup = Cgroup::new("pids");
    let pid_file = tempfile::NamedTempFile::new().unwrap();
    let text = format!(
        "trap '' TERM; setsid sleep 1000 & echo $! > {}; sleep 0.05; exit 2",
        pid_file.path().display()
    );
    let mut wish = script(&text);
    wish.create.leaves = vec![cgroup.path()];
    wish.create.kill_cgroup = vec![cgroup.path()];
    let mut shim = Shim::running(wish);
    let left = pid_in(pid_file.path());
    assert_eq!(shim.daemon.exit().code, 2);
    assert!(is_gone(left));
    shim.ended();
    assert!(!cgroup.0.exists());
}

fn removed() {
    let (pids, memory) = (Cgroup::new("pids"), Cgroup::new("memory"));
    fs::create_dir(pids.0.join("nested")).unwrap();
    let mut wish = script("exit 0");
    wish.create.leaves = vec![
        pids.path(),
        memory.path(),
        "/sys/fs/cgroup/pids/none".into(),
    ];
    let mut shim = Shim::running(wish);
    shim.daemon.exit();
    shim.ended();
    assert!(!pids.0.exists() && !memory.0.exists());
    // A failed create removes them too.
    let pids = Cgroup::new("pids");
    let mut wish = script("exit 0");
    wish.args = vec![b"@fail".to_vec()];
    wish.create.leaves = vec![pids.path()];
    let (mut shim, started) = Shim::try_create(wish);
    assert!(started.is_err());
    shim.ended();
    assert!(!pids.0.exists());
}

fn memory() {
    let mut shims: Vec<Shim> = (0..30)
        .map(|_| Shim::running(script("echo hello; exec sleep 1000")))
        .collect();
    for shim in &mut shims {
        eventually("output", || !shim.log().is_empty());
        let (_, out) = std::io::pipe().unwrap();
        shim.daemon
            .exec("a", "exit 0", Exec::default(), &[(Fd::Stdout, out.as_fd())])
            .unwrap();
        shim.daemon.exec_exit();
    }
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let field = |text: &str, name: &str| -> u64 {
        let line = text.lines().find(|l| l.starts_with(name)).unwrap();
        line.split_ascii_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    };
    let mut total = [0; 3];
    for shim in &shims {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", shim.pid())).unwrap();
        for (sum, name) in total.iter_mut().zip(["Rss:", "Pss:", "Private_Dirty:"]) {
            *sum += field(&text, name);
        }
    }
    let [rss, pss, dirty] = total.map(|sum| sum / 30);
    println!("    30 waiting monitors, each: Pss {pss} KiB, Rss {rss}, private dirty {dirty}");
    for shim in &mut shims {
        let init = shim.daemon.hello().init.unwrap().pid;
        kill(Pid::from_raw(init).unwrap(), Signal::KILL);
        shim.ended();
    }
}
