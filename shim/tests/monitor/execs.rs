//! Processes beside the container's own.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use shim_protocol::monitor::{Call, Empty, Event, Exec, FailureKind, KillExec, Outcome};
use shim_protocol::{Fd, worker};

use crate::Test;
use crate::harness::{Cgroup, Shim, eventually, is_gone, kill, pid_in, script};

pub(crate) const TESTS: &[Test] = &[
    ("exec_codes_and_streams_pass_through", streams),
    ("exec_absent_streams_are_null", absent_streams),
    (
        "exec_a_command_that_cannot_be_executed_fails_the_call",
        start_error,
    ),
    ("exec_a_dead_or_failing_worker_fails_the_call", worker_fails),
    ("exec_needs_a_running_container", needs_running),
    ("exec_a_time_limit_kills_the_whole_tree", timeout_kills_tree),
    ("exec_a_time_limit_covers_the_worker", timeout_covers_worker),
    (
        "exec_one_that_does_not_die_is_given_up_after_its_limit",
        undying,
    ),
    (
        "exec_a_cgroup_that_is_busy_for_a_moment_is_removed",
        busy_cgroup,
    ),
    (
        "exec_a_worker_that_dies_takes_its_process_along",
        worker_dies_late,
    ),
    ("exec_a_request_that_cannot_be_handed_on_is_told", unsent),
    ("exec_kill_is_for_one", kill_one),
    (
        "exec_one_that_is_attended_ends_with_its_connection",
        attended,
    ),
    (
        "exec_one_that_is_still_being_made_ends_with_its_connection",
        attended_early,
    ),
    ("exec_what_a_command_leaves_running_goes_on", leftovers),
    ("exec_many_at_once", many),
    ("exec_places_are_kept_for_those_that_are_soon_over", places),
    ("exec_ends_with_the_container", ends_with_container),
    ("exec_a_terminal_comes_back", terminal),
    ("exec_a_daemon_that_does_not_read_harms_nobody", slow_reader),
];

const FOREVER: &str = "while :; do sleep 0.02; done";

fn streams() {
    let mut shim = Shim::running(script(FOREVER));
    let (in_read, mut in_write) = std::io::pipe().unwrap();
    let (mut out_read, out_write) = std::io::pipe().unwrap();
    let (mut err_read, err_write) = std::io::pipe().unwrap();
    let fds = [
        (Fd::Stdin, in_read.as_fd()),
        (Fd::Stdout, out_write.as_fd()),
        (Fd::Stderr, err_write.as_fd()),
    ];
    let (started, _) = shim
        .daemon
        .exec("a", "cat; echo err >&2; exit 5", Exec::default(), &fds)
        .unwrap();
    assert!(started.pid > 0);
    drop((in_read, out_write, err_write));
    in_write.write_all(b"hello").unwrap();
    drop(in_write);
    let (mut out, mut err) = (String::new(), String::new());
    out_read.read_to_string(&mut out).unwrap();
    err_read.read_to_string(&mut err).unwrap();
    assert_eq!((out.as_str(), err.as_str()), ("hello", "err\n"));
    let exit = shim.daemon.exec_exit();
    assert_eq!(
        (exit.exec_id.as_str(), exit.code, exit.timed_out),
        ("a", 5, false)
    );
    assert_eq!(shim.log(), "");
}

fn absent_streams() {
    let mut shim = Shim::running(script(FOREVER));
    let (mut out_read, out_write) = std::io::pipe().unwrap();
    let text = "readlink /proc/self/fd/0 /proc/self/fd/2; exec ls /proc/self/fd";
    shim.daemon
        .exec(
            "a",
            text,
            Exec::default(),
            &[(Fd::Stdout, out_write.as_fd())],
        )
        .unwrap();
    drop(out_write);
    let mut out = String::new();
    out_read.read_to_string(&mut out).unwrap();
    // `ls` itself opens descriptor 3.
    assert_eq!(out, "/dev/null\n/dev/null\n0\n1\n2\n3\n");
}

fn start_error() {
    let mut shim = Shim::running(script(FOREVER));
    let id = shim
        .daemon
        .send_exec("a", &["/no/such/file"], Exec::default(), &[]);
    match shim.daemon.answer(id).0 {
        Outcome::Failure(failure) => {
            assert_eq!(failure.kind(), FailureKind::Start);
            assert!(failure.message.contains("/no/such/file"), "{failure:?}");
        }
        other => panic!("{other:?}"),
    }
    // The id is free again, and nothing is told of the end of the one that failed.
    shim.daemon
        .exec("a", "exit 1", Exec::default(), &[])
        .unwrap();
    assert_eq!(shim.daemon.exec_exit().code, 1);
}

fn worker_fails() {
    let mut shim = Shim::running(script(FOREVER));
    for (command, text) in [("@fail", "as asked"), ("@die", "status 3")] {
        let id = shim.daemon.send_exec("a", &[command], Exec::default(), &[]);
        match shim.daemon.answer(id).0 {
            Outcome::Failure(failure) => assert!(failure.message.contains(text), "{failure:?}"),
            other => panic!("{other:?}"),
        }
    }
    shim.daemon
        .exec("a", "exit 1", Exec::default(), &[])
        .unwrap();
}

fn needs_running() {
    let mut shim = Shim::created(script("exit 0"));
    let failure = shim
        .daemon
        .exec("a", ":", Exec::default(), &[])
        .unwrap_err();
    assert_eq!(failure.kind(), FailureKind::State);
}

/// An exec with a cgroup of its own below one that stands for the container's.
fn in_cgroup(container: &Cgroup, timeout_ms: u64) -> (Exec, String) {
    let own = format!("{}/exec", container.path());
    let exec = worker::Exec {
        own_cgroup: vec![own.clone()],
        ..worker::Exec::default()
    };
    (
        Exec {
            exec: Some(exec),
            timeout_ms,
            ..Exec::default()
        },
        own,
    )
}

fn timeout_kills_tree() {
    let cgroup = Cgroup::new("pids");
    let mut shim = Shim::running(script(FOREVER));
    let (exec, own) = in_cgroup(&cgroup, 300);
    let pid_file = shim.dir.path().join("pid");
    let (mut out_read, out_write) = std::io::pipe().unwrap();
    let text = format!(
        "(setsid sh -c 'echo $$ > {0}.new; mv {0}.new {0}; trap \"\" TERM; sleep 1000; sleep 1000' &) ; \
         while :; do sleep 1; done",
        pid_file.display()
    );
    let began = Instant::now();
    shim.daemon
        .exec("a", &text, exec, &[(Fd::Stdout, out_write.as_fd())])
        .unwrap();
    drop(out_write);
    let orphan = pid_in(&pid_file);
    let exit = shim.daemon.exec_exit();
    assert_eq!((exit.code, exit.timed_out), (137, true));
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(300) && took < Duration::from_secs(3),
        "{took:?}"
    );
    assert_eq!(out_read.read(&mut [0]).unwrap(), 0);
    eventually("the orphan's end", || is_gone(orphan));
    assert!(!fs::exists(&own).unwrap());
}

fn timeout_covers_worker() {
    let mut shim = Shim::running(script(FOREVER));
    let exec = Exec {
        timeout_ms: 100,
        ..Exec::default()
    };
    let id = shim.daemon.send_exec("a", &["@hang"], exec, &[]);
    match shim.daemon.answer(id).0 {
        Outcome::Failure(failure) => assert_eq!(failure.kind(), FailureKind::Timeout),
        other => panic!("{other:?}"),
    }
}

/// A frozen process of a v1 hierarchy stands for one in an uninterruptible wait.
fn undying() {
    let cgroup = Cgroup::new("freezer");
    let mut shim = Shim::running(script(FOREVER));
    let (exec, own) = in_cgroup(&cgroup, 500);
    let began = Instant::now();
    let (started, _) = shim.daemon.exec("a", FOREVER, exec, &[]).unwrap();
    fs::write(format!("{own}/freezer.state"), "FROZEN").unwrap();
    let exit = shim.daemon.exec_exit();
    let took = began.elapsed();
    let pid = Pid::from_raw(started.pid).unwrap();
    assert!(!is_gone(pid), "it was not frozen");
    fs::write(format!("{own}/freezer.state"), "THAWED").unwrap();
    assert_eq!(
        (exit.exec_id.as_str(), exit.code, exit.timed_out),
        ("a", 137, true)
    );
    assert!(took < Duration::from_secs(12), "{took:?}");
    // Reaped and cleared away all the same, and nothing is told twice.
    eventually("its end", || is_gone(pid) && !fs::exists(&own).unwrap());
    shim.daemon
        .exec("a", "exit 1", Exec::default(), &[])
        .unwrap();
    assert_eq!(shim.daemon.exec_exit().code, 1);
}

/// A process further down stands for one on its way out: neither is seen, and both keep the cgroup busy.
fn busy_cgroup() {
    let cgroup = Cgroup::new("pids");
    let mut shim = Shim::running(script(FOREVER));
    let (exec, own) = in_cgroup(&cgroup, 0);
    let text = format!("mkdir -p {own}/a/b; sleep 0.3 & echo $! > {own}/a/b/cgroup.procs; exit 6");
    shim.daemon.exec("a", &text, exec, &[]).unwrap();
    assert_eq!(shim.daemon.exec_exit().code, 6);
    assert!(!fs::exists(&own).unwrap());
}

fn worker_dies_late() {
    let cgroup = Cgroup::new("pids");
    let mut shim = Shim::running(script(FOREVER));
    let (exec, own) = in_cgroup(&cgroup, 0);
    let id = shim.daemon.send_exec("a", &["@orphans"], exec, &[]);
    match shim.daemon.answer(id).0 {
        Outcome::Failure(failure) => assert!(failure.message.contains("status 4"), "{failure:?}"),
        other => panic!("{other:?}"),
    }
    let children = format!("/proc/{0}/task/{0}/children", shim.pid());
    eventually("only the init", || {
        let children = fs::read_to_string(&children).unwrap();
        children.split_ascii_whitespace().count() == 1
    });
    eventually("the cgroup's end", || !fs::exists(&own).unwrap());
}

/// More than a socket holds, for a worker that ends without reading it.
fn unsent() {
    let mut shim = Shim::running(script(FOREVER));
    let process = worker::Process {
        args: vec![vec![b'x'; 2 << 20]],
        ..worker::Process::default()
    };
    let exec = worker::Exec {
        process: Some(process),
        ..worker::Exec::default()
    };
    let call = Call::Exec(Exec {
        exec_id: "a".into(),
        exec: Some(exec),
        ..Exec::default()
    });
    let exe = fs::File::open("/bin/true").unwrap();
    match shim.daemon.call(call, &[(Fd::WorkerExe, exe.as_fd())]).0 {
        Outcome::Failure(failure) => {
            assert!(failure.message.contains("could not be sent"), "{failure:?}");
        }
        other => panic!("{other:?}"),
    }
}

fn kill_one() {
    let mut shim = Shim::running(script(FOREVER));
    shim.daemon
        .exec("a", FOREVER, Exec::default(), &[])
        .unwrap();
    shim.daemon
        .exec("b", FOREVER, Exec::default(), &[])
        .unwrap();
    let failure = shim
        .daemon
        .exec("b", ":", Exec::default(), &[])
        .unwrap_err();
    assert_eq!(failure.kind(), FailureKind::State);
    shim.daemon.done(Call::KillExec(KillExec {
        exec_id: "b".into(),
    }));
    let exit = shim.daemon.exec_exit();
    assert_eq!(
        (exit.exec_id.as_str(), exit.code, exit.timed_out),
        ("b", 137, false)
    );
    shim.daemon.done(Call::KillExec(KillExec {
        exec_id: "nobody".into(),
    }));
    shim.daemon.done(Call::KillExec(KillExec {
        exec_id: "a".into(),
    }));
    assert_eq!(shim.daemon.exec_exit().exec_id, "a");
}

fn attended() {
    let cgroup = Cgroup::new("pids");
    let mut shim = Shim::running(script(FOREVER));
    let mut other = shim.connect();
    other.hello();
    let (mut exec, own) = in_cgroup(&cgroup, 0);
    exec.attended = true;
    let file = |name: &str| shim.dir.path().join(name);
    let (gone, stays) = (file("gone"), file("stays"));
    let write = |to: &std::path::Path| format!("echo $$ > {0}.new; mv {0}.new {0}", to.display());
    let tree = format!(
        "(setsid sh -c '{}; trap \"\" TERM HUP; {FOREVER}' &); {FOREVER}",
        write(&gone)
    );
    shim.daemon.exec("a", &tree, exec, &[]).unwrap();
    // Neither one that nobody attends nor one that another daemon does.
    let text = format!("{}; {FOREVER}", write(&stays));
    shim.daemon.exec("b", &text, Exec::default(), &[]).unwrap();
    let theirs = Exec {
        attended: true,
        ..Exec::default()
    };
    let (started, _) = other.exec("c", FOREVER, theirs, &[]).unwrap();
    let (gone, stays) = (pid_in(&gone), pid_in(&stays));
    shim.daemon.hang_up();
    let exit = other.exec_exit();
    assert_eq!((exit.exec_id.as_str(), exit.code), ("a", 137));
    eventually("the orphan's end", || is_gone(gone));
    assert!(!fs::exists(&own).unwrap());
    let started = Pid::from_raw(started.pid).unwrap();
    assert!(!is_gone(stays) && !is_gone(started));
    drop(other);
    eventually("the other's end", || is_gone(started));
    assert!(!is_gone(stays));
    let mut last = shim.connect();
    last.hello();
    last.done(Call::Destroy(Empty {}));
    shim.ended();
}

fn attended_early() {
    let mut shim = Shim::running(script(FOREVER));
    let exec = Exec {
        attended: true,
        ..Exec::default()
    };
    shim.daemon.send_exec("a", &["@hang"], exec, &[]);
    let children = format!("/proc/{0}/task/{0}/children", shim.pid());
    let count = || {
        let children = fs::read_to_string(&children).unwrap();
        children.split_ascii_whitespace().count()
    };
    eventually("the worker", || count() == 2);
    shim.daemon.hang_up();
    eventually("the worker's end", || count() == 1);
    let mut next = shim.connect();
    next.hello();
    next.exec("a", "exit 3", Exec::default(), &[]).unwrap();
    assert_eq!(next.exec_exit().code, 3);
}

fn leftovers() {
    let cgroup = Cgroup::new("pids");
    let mut shim = Shim::running(script(FOREVER));
    let (exec, own) = in_cgroup(&cgroup, 0);
    let pid_file = shim.dir.path().join("pid");
    let text = format!("sleep 1000 & echo $! > {}", pid_file.display());
    shim.daemon.exec("a", &text, exec, &[]).unwrap();
    assert_eq!(shim.daemon.exec_exit().code, 0);
    let left = pid_in(&pid_file);
    assert!(!is_gone(left) && !fs::exists(&own).unwrap());
    let procs = fs::read_to_string(cgroup.0.join("cgroup.procs")).unwrap();
    assert_eq!(procs.trim(), left.to_string());
    kill(left, Signal::KILL);
    // The monitor reaps it: it is the subreaper.
    eventually("the end of what was left", || is_gone(left));
}

fn many() {
    let mut shim = Shim::running(script(FOREVER));
    let mut open = Vec::new();
    for code in 0..60 {
        let command = format!("sleep 0.0{}; exit {code}", code % 7);
        let id = code.to_string();
        open.push(
            shim.daemon
                .send_exec(&id, &["/bin/sh", "-c", &command], Exec::default(), &[]),
        );
    }
    let (mut started, mut exits) = (0, 0);
    while started + exits < 120 {
        match shim.daemon.any() {
            Ok((id, outcome)) => {
                assert!(
                    open.contains(&id) && matches!(outcome, Outcome::ExecStarted(_)),
                    "{outcome:?}"
                );
                started += 1;
            }
            Err(Event::ExecExited(exit)) => {
                assert_eq!(exit.exec_id, exit.code.to_string());
                exits += 1;
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    let children = format!("/proc/{0}/task/{0}/children", shim.pid());
    eventually("only the init", || {
        fs::read_to_string(&children)
            .unwrap()
            .split_ascii_whitespace()
            .count()
            == 1
    });
}

fn places() {
    let mut shim = Shim::running(script(FOREVER));
    let limited = |timeout_ms| Exec {
        timeout_ms,
        ..Exec::default()
    };
    let sleeper = &["/bin/sh", "-c", "exec sleep 1000"];
    let mut begin = |id: String, timeout_ms| {
        let call = shim
            .daemon
            .send_exec(&id, sleeper, limited(timeout_ms), &[]);
        match shim.daemon.answer(call).0 {
            Outcome::ExecStarted(_) => None,
            Outcome::Failure(failure) => Some((failure.kind(), failure.message)),
            other => panic!("{other:?}"),
        }
    };
    let busy = |told: Option<(FailureKind, String)>, part: &str| {
        let (kind, text) = told.expect("it was taken");
        assert_eq!(kind, FailureKind::Busy);
        assert!(text.contains(part), "{text}");
    };
    // Without a limit, and with one that is as good as none.
    for number in 0..96 {
        let limit = [0, 600_001][number % 2];
        assert_eq!(begin(format!("long-{number}"), limit), None);
    }
    busy(begin("long".into(), 0), "96 commands without a time limit");
    busy(begin("long".into(), u64::MAX), "of at most 600 s");
    for number in 0..32 {
        assert_eq!(begin(format!("short-{number}"), 600_000), None);
    }
    busy(begin("short".into(), 1000), "128 commands");
    // A place is free as soon as one is over.
    for (over, timeout_ms) in [("short-0", 1000), ("long-0", 0)] {
        let exec_id = over.to_owned();
        shim.daemon.done(Call::KillExec(KillExec { exec_id }));
        assert_eq!(shim.daemon.exec_exit().exec_id, over);
        let id = format!("after-{over}");
        let call = shim
            .daemon
            .send_exec(&id, sleeper, limited(timeout_ms), &[]);
        let answer = shim.daemon.answer(call).0;
        assert!(matches!(answer, Outcome::ExecStarted(_)), "{answer:?}");
    }
}

fn ends_with_container() {
    let mut shim = Shim::running(script(FOREVER));
    let init = Pid::from_raw(shim.daemon.hello().init.unwrap().pid).unwrap();
    let (started, _) = shim
        .daemon
        .exec("a", FOREVER, Exec::default(), &[])
        .unwrap();
    let waiting = shim.daemon.send_exec("b", &["@hang"], Exec::default(), &[]);
    kill(init, Signal::KILL);
    match shim.daemon.answer(waiting).0 {
        Outcome::Failure(_) => {}
        other => panic!("{other:?}"),
    }
    let exit = shim.daemon.exec_exit();
    assert_eq!((exit.exec_id.as_str(), exit.code), ("a", 137));
    assert_eq!(shim.daemon.exit().code, 137);
    assert!(is_gone(Pid::from_raw(started.pid).unwrap()));
    shim.ended();
}

fn terminal() {
    let mut shim = Shim::running(script(FOREVER));
    let mut exec = Exec::default();
    let inner = exec.exec.get_or_insert_default();
    inner.process.get_or_insert_default().terminal = true;
    let (_, fds) = shim
        .daemon
        .exec("a", "read x; echo got $x", exec, &[])
        .unwrap();
    // The terminal, and the pidfd as always.
    assert_eq!(fds.len(), 2);
    let mut console = fs::File::from(fds.into_iter().next().unwrap());
    console.write_all(b"you\n").unwrap();
    let mut text = Vec::new();
    let mut piece = [0; 100];
    while let Ok(n) = console.read(&mut piece) {
        text.extend_from_slice(&piece[..n]);
    }
    assert_eq!(String::from_utf8(text).unwrap(), "you\r\ngot you\r\n");
    assert_eq!(shim.daemon.exec_exit().code, 0);
}

fn slow_reader() {
    let mut shim = Shim::running(script(FOREVER));
    let mut deaf = shim.connect();
    deaf.hello();
    // It asks and asks, and never reads an answer, until it is cut off.
    let asked = Instant::now();
    while deaf.try_send(Call::KillExec(KillExec {
        exec_id: "x".into(),
    })) {
        assert!(asked.elapsed() < Duration::from_secs(10));
    }
    shim.daemon
        .exec("a", "exit 4", Exec::default(), &[])
        .unwrap();
    assert_eq!(shim.daemon.exec_exit().code, 4);
    shim.daemon.done(Call::Destroy(Empty {}));
    shim.ended();
}
