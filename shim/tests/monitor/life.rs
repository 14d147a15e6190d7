//! Create, start, exit, destroy, and a daemon that comes and goes.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::process::{Pid, Signal};
use shim_protocol::frame;
use shim_protocol::monitor::{Call, Create, Empty, Exec, FailureKind, Hello, OomSource, Outcome};

use crate::Test;
use crate::harness::{Shim, command, eventually, is_gone, kill, pid_in, script};

pub(crate) const TESTS: &[Test] = &[
    ("life_a_container_runs_and_its_end_is_recorded", runs),
    (
        "life_a_command_that_cannot_be_executed_is_a_start_error",
        start_error,
    ),
    ("life_a_killed_init_is_128_plus_the_signal", killed),
    (
        "life_an_init_that_dies_before_start_is_reported",
        dies_created,
    ),
    (
        "life_a_start_that_meets_the_end_is_told_why",
        start_meets_end,
    ),
    (
        "life_destroy_before_start_leaves_no_record",
        destroy_created,
    ),
    ("life_destroy_ends_a_running_container", destroy_running),
    ("life_destroy_ends_a_worker_that_hangs", destroy_creating),
    ("life_a_failed_worker_leaves_nothing", worker_fails),
    ("life_the_worker_inherits_nothing", worker_inherits_nothing),
    ("life_the_daemon_may_die_and_come_back", daemon_returns),
    ("life_the_monitor_s_death_is_the_container_s", monitor_dies),
    ("life_signals_do_not_end_the_monitor", signals),
    (
        "life_a_monitor_whose_directory_is_gone_ends",
        directory_is_gone,
    ),
    (
        "life_a_monitor_without_a_daemon_or_container_ends",
        abandoned,
    ),
    ("life_strangers_and_nonsense_are_refused", nonsense),
    ("life_a_terminal_s_output_is_logged", terminal),
    ("life_standard_input_stays_open_only_when_asked", stdin),
    ("life_silence_of_a_process_that_dies_is_no_start", vanishes),
    ("life_a_second_start_joins_the_first", joined_start),
    ("life_destroy_does_not_wait_for_a_start", destroy_starting),
    ("life_a_kill_for_memory_is_why_nothing_was_made", starved),
];

fn vanishes() {
    let mut shim = Shim::created(command(&["@vanish"]));
    let failure = shim.daemon.start().unwrap_err();
    assert_eq!(failure.kind(), FailureKind::State);
    assert!(failure.message.contains("status 5"), "{failure:?}");
    let exit = shim.daemon.exit();
    assert_eq!((exit.code, exit.started_at), (5, 0));
    shim.ended();
    let mut shim = Shim::running(script("sleep 100"));
    let id = shim
        .daemon
        .send_exec("e", &["@vanish"], Exec::default(), &[]);
    match shim.daemon.answer(id).0 {
        Outcome::Failure(failure) => {
            assert_eq!(failure.kind(), FailureKind::State);
            assert!(
                failure.message.contains("before it was executed"),
                "{failure:?}"
            );
        }
        other => panic!("{other:?}"),
    }
    shim.daemon.done(Call::Destroy(Empty {}));
}

fn joined_start() {
    let mut shim = Shim::created(command(&["@stop", "/bin/sh", "-c", "exit 3"]));
    let pid = Pid::from_raw(shim.daemon.hello().init.unwrap().pid).unwrap();
    let first = shim.daemon.send(Call::Start(Empty {}), &[]);
    let mut other = shim.connect();
    eventually("a start under way", || other.hello().starting);
    let second = other.send(Call::Start(Empty {}), &[]);
    // Requests of one connection come in order.
    assert!(other.hello().starting);
    eventually("a stopped process", || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.contains(") T ")
    });
    kill(pid, Signal::CONT);
    for (daemon, id) in [(&mut shim.daemon, first), (&mut other, second)] {
        let answer = daemon.answer(id).0;
        assert!(matches!(answer, Outcome::Running(_)), "{answer:?}");
    }
    assert_eq!(shim.daemon.exit().code, 3);
}

fn destroy_starting() {
    let mut shim = Shim::created(command(&["@stop", "/bin/true"]));
    let start = shim.daemon.send(Call::Start(Empty {}), &[]);
    let mut other = shim.connect();
    eventually("a start under way", || other.hello().starting);
    let begun = Instant::now();
    other.done(Call::Destroy(Empty {}));
    assert!(begun.elapsed().as_secs() < 3);
    match shim.daemon.answer(start).0 {
        Outcome::Failure(failure) => assert_eq!(failure.kind(), FailureKind::State),
        other => panic!("{other:?}"),
    }
    shim.ended();
}

fn starved() {
    let counters = tempfile::tempdir().unwrap();
    fs::write(counters.path().join("memory.oom_control"), "oom_kill 1\n").unwrap();
    fs::write(counters.path().join("memory.limit_in_bytes"), "65536\n").unwrap();
    let mut wish = command(&["@die"]);
    wish.create.oom = Some(OomSource {
        v1_dir: counters.path().to_str().unwrap().to_owned(),
        ..OomSource::default()
    });
    let (_shim, started) = Shim::try_create(wish);
    let failure = started.unwrap_err();
    assert_eq!(failure.kind(), FailureKind::Memory);
    assert!(
        failure.message.contains("memory limit of 65536 bytes"),
        "{failure:?}"
    );
}

fn runs() {
    let mut shim = Shim::created(script("echo out; echo err >&2; printf tail; exit 7"));
    assert_eq!(shim.log(), "");
    let started = shim.daemon.start().unwrap().started_at;
    let exit = shim.daemon.exit();
    assert_eq!((exit.code, exit.oom, exit.log_dropped), (7, false, 0));
    assert_eq!((exit.started_at, exit.start_error.as_str()), (started, ""));
    assert!(exit.finished_at >= started);
    assert!(shim.daemon.hung_up());
    shim.ended();
    let mut lines = shim.lines();
    lines.sort();
    assert_eq!(lines, ["stderr F err", "stdout F out", "stdout P tail"]);
    let expected = format!(
        "{{\"version\":1,\"boot_id\":\"boot\",\"code\":7,\"started_at\":{started},\"finished_at\":{},\
         \"oom\":false,\"log_dropped\":0,\"start_error\":\"\"}}",
        exit.finished_at
    );
    assert_eq!(shim.record().unwrap(), expected);
}

fn start_error() {
    let mut shim = Shim::created(command(&["/no/such/file"]));
    let failure = shim.daemon.start().unwrap_err();
    assert_eq!(failure.kind(), FailureKind::Start);
    assert!(failure.message.contains("/no/such/file"), "{failure:?}");
    // The failed call is answered after the exit is recorded.
    let record = shim.record().unwrap();
    assert!(
        record.contains("\"code\":128,\"started_at\":0,"),
        "{record}"
    );
    assert!(record.contains("/no/such/file"), "{record}");
    let exit = shim.daemon.exit();
    assert_eq!((exit.code, exit.started_at), (128, 0));
    assert_eq!(exit.start_error, failure.message);
    shim.ended();
}

fn killed() {
    let mut shim = Shim::running(script("echo $$ > $0.pid; exec sleep 100"));
    let pid = shim.daemon.hello().init.unwrap().pid;
    kill(Pid::from_raw(pid).unwrap(), Signal::TERM);
    assert_eq!(shim.daemon.exit().code, 128 + 15);
    shim.ended();
}

fn dies_created() {
    let mut shim = Shim::created(script("exit 0"));
    let pid = shim.daemon.hello().init.unwrap().pid;
    kill(Pid::from_raw(pid).unwrap(), Signal::KILL);
    let exit = shim.daemon.exit();
    assert_eq!((exit.code, exit.started_at), (137, 0));
    assert!(shim.record().unwrap().contains("\"code\":137"));
    shim.ended();
}

/// A cgroup that is not empty yet keeps the end from being told.
fn start_meets_end() {
    let busy = tempfile::tempdir().unwrap();
    let procs = busy.path().join("cgroup.procs");
    let mut wish = script("exit 0");
    wish.create.kill_cgroup = vec![busy.path().to_str().unwrap().to_owned()];
    let mut shim = Shim::created(wish);
    // The one process that it spares.
    fs::write(&procs, shim.pid().as_raw_nonzero().to_string()).unwrap();
    let pid = Pid::from_raw(shim.daemon.hello().init.unwrap().pid).unwrap();
    kill(pid, Signal::KILL);
    eventually("the end of the init", || is_gone(pid));
    let start = shim.daemon.send(Call::Start(Empty {}), &[]);
    fs::write(&procs, "").unwrap();
    match shim.daemon.answer(start).0 {
        Outcome::Failure(failure) => {
            assert_eq!(failure.kind(), FailureKind::State);
            assert!(failure.message.contains("status 137"), "{failure:?}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(shim.daemon.exit().code, 137);
    shim.ended();
}

fn destroy_created() {
    let mut shim = Shim::created(script("exit 0"));
    let pid = shim.daemon.hello().init.unwrap().pid;
    shim.daemon.done(Call::Destroy(Empty {}));
    assert!(is_gone(Pid::from_raw(pid).unwrap()));
    assert!(shim.daemon.hung_up());
    shim.ended();
    assert_eq!(shim.record(), None);
}

fn destroy_running() {
    let mut shim = Shim::running(script(
        "trap '' TERM; echo ready; while :; do sleep 1; done",
    ));
    eventually("output", || !shim.log().is_empty());
    shim.daemon.done(Call::Destroy(Empty {}));
    assert_eq!(shim.daemon.exit().code, 137);
    shim.ended();
    assert!(shim.record().unwrap().contains("\"code\":137"));
}

fn destroy_creating() {
    let (shim, started) = Shim::try_create(command(&["@fail"]));
    assert!(started.is_err());
    drop(shim);
    // One that hangs: the create is answered by the destroy of a second request.
    let mut wish = command(&["@hang"]);
    wish.create = Create {
        boot_id: "boot".into(),
        ..Create::default()
    };
    let began = Instant::now();
    let handle = std::thread::spawn(move || Shim::try_create(wish));
    // Only the monitor of that thread has a worker with this name for a child.
    let mut worker = None;
    eventually("the worker", || {
        worker = find_hanging_worker();
        worker.is_some()
    });
    kill(worker.unwrap(), Signal::KILL);
    let (mut shim, started) = handle.join().unwrap();
    let failure = started.unwrap_err();
    assert!(failure.message.contains("status 137"), "{failure:?}");
    assert!(began.elapsed().as_secs() < 10);
    shim.ended();
}

/// A grandchild of this process that runs this very program.
fn find_hanging_worker() -> Option<Pid> {
    let me = std::process::id();
    let children = |pid: u32| -> Vec<u32> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .flatten();
        tasks
            .filter_map(|t| fs::read_to_string(t.path().join("children")).ok())
            .flat_map(|c| {
                c.split(' ')
                    .filter_map(|p| p.parse().ok())
                    .collect::<Vec<_>>()
            })
            .collect()
    };
    let name = |pid: u32| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let monitors = children(me)
        .into_iter()
        .filter(|p| name(*p).starts_with(b"berth-shim"));
    let mut workers = monitors
        .flat_map(children)
        .filter(|p| name(*p).starts_with(b"berth-worker"));
    workers
        .next()
        .and_then(|p| Pid::from_raw(p.try_into().ok()?))
}

fn worker_fails() {
    for (args, text) in [
        (vec!["@fail"], "as asked"),
        (vec!["@die"], "status 3"),
        (vec!["@orphans"], "status 4"),
    ] {
        let (mut shim, started) = Shim::try_create(command(&args));
        let failure = started.unwrap_err();
        assert!(failure.message.contains(text), "{failure:?}");
        let pid = shim.pid();
        shim.ended();
        assert_eq!(shim.record(), None);
        let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        assert!(list.is_err(), "{list:?}");
    }
}

fn worker_inherits_nothing() {
    let (_shim, started) = Shim::try_create(command(&["@self"]));
    let text = started.unwrap_err().message;
    assert!(
        text.contains("args Args { inner: [\"berth-worker\"] }"),
        "{text}"
    );
    assert!(text.contains("env []"), "{text}");
    assert!(text.contains("0=socket:"), "{text}");
    assert!(
        text.contains("1=/dev/null") && text.contains("2=/dev/null"),
        "{text}"
    );
    assert!(text.contains("SigBlk:\\t0000000000000000"), "{text}");
    // The standard library of the fake worker ignores SIGPIPE itself (bit 12).
    assert!(text.contains("SigIgn:\\t0000000000001000"), "{text}");
    // The rest came with the request: two pipes, stdin, stdout, stderr. The root is closed by then.
    let fds = text.split("signals").next().unwrap().matches('=').count();
    assert_eq!(fds, 3 + 5, "{text}");
}

fn daemon_returns() {
    let mut shim = Shim::running(script("while :; do sleep 0.01; done"));
    let first = shim.daemon.hello();
    shim.daemon.hang_up();
    let mut second = shim.connect();
    let state = second.hello();
    assert_eq!(
        (&state.init, state.started_at),
        (&first.init, first.started_at)
    );
    assert!(state.started_at > 0 && state.exit.is_none());
    drop(second);
    kill(
        Pid::from_raw(state.init.unwrap().pid).unwrap(),
        Signal::KILL,
    );
    // Nobody is there; the record tells.
    shim.ended();
    assert!(shim.record().is_some());
    assert!(UnixStream::connect(shim.dir.path().join("shim.sock")).is_err());
}

fn monitor_dies() {
    let shim = Shim::running(script("while :; do sleep 1; done"));
    let mut second = shim.connect();
    let init = Pid::from_raw(second.hello().init.unwrap().pid).unwrap();
    kill(shim.pid(), Signal::KILL);
    assert!(second.hung_up());
    drop(shim);
    eventually("the init's end", || is_gone(init));
}

/// It hung while its container was killed and removed, past it.
fn directory_is_gone() {
    let mut shim = Shim::running(script("while :; do echo x; sleep 0.01; done"));
    let init = shim.daemon.hello().init.unwrap();
    shim.daemon.hang_up();
    kill(shim.pid(), Signal::STOP);
    kill(Pid::from_raw(init.pid).unwrap(), Signal::KILL);
    fs::remove_dir_all(shim.dir.path()).unwrap();
    kill(shim.pid(), Signal::CONT);
    let resumed = Instant::now();
    shim.ended();
    assert!(resumed.elapsed().as_secs() < 5, "{:?}", resumed.elapsed());
}

fn signals() {
    let mut shim = Shim::running(script("read x < /dev/null; while :; do sleep 0.01; done"));
    for signal in [
        Signal::TERM,
        Signal::HUP,
        Signal::INT,
        Signal::QUIT,
        Signal::USR1,
        Signal::PIPE,
    ] {
        kill(shim.pid(), signal);
    }
    shim.daemon.hello();
    shim.daemon.done(Call::Destroy(Empty {}));
    shim.ended();
}

fn abandoned() {
    let (mut shim, _) = Shim::try_create(command(&["@die"]));
    shim.ended();
    let mut shim = Shim::bare();
    shim.daemon.hang_up();
    shim.ended();
}

fn nonsense() {
    let mut shim = Shim::running(script("while :; do sleep 0.01; done"));
    let mut stranger = shim.connect();
    match stranger.call(Call::Start(Empty {}), &[]).0 {
        Outcome::Failure(failure) => assert_eq!(failure.kind(), FailureKind::State),
        other => panic!("{other:?}"),
    }
    assert!(stranger.hung_up());
    let mut old = shim.connect();
    match old
        .call(
            Call::Hello(Hello {
                version: 9,
                oldest: 8,
            }),
            &[],
        )
        .0
    {
        Outcome::Failure(failure) => assert_eq!(failure.kind(), FailureKind::Version),
        other => panic!("{other:?}"),
    }
    assert!(old.hung_up());
    let garbage = UnixStream::connect(shim.dir.path().join("shim.sock")).unwrap();
    let null = fs::File::open("/dev/null").unwrap();
    frame::send(&garbage, &[255; 100], &[null.as_fd()]).unwrap();
    assert!(frame::recv(&garbage).unwrap().is_none());
    let failure = shim.daemon.start().unwrap_err();
    assert_eq!(failure.kind(), FailureKind::State);
    // Too many, and those that never read, harm nobody.
    let many: Vec<_> = (0..40).map(|_| shim.connect()).collect();
    shim.daemon.hello();
    drop(many);
    let mut late = None;
    eventually("room for a new daemon", || {
        let mut daemon = shim.connect();
        let ok = daemon.try_hello();
        late = ok.then_some(daemon);
        ok
    });
    late.unwrap().done(Call::Destroy(Empty {}));
    shim.ended();
}

fn terminal() {
    let mut wish = script("test -t 0 && test -t 1 && test -t 2 && echo yes; echo err >&2");
    wish.terminal = true;
    let mut shim = Shim::running(wish);
    assert_eq!(shim.daemon.exit().code, 0);
    assert_eq!(shim.lines(), ["stdout F yes", "stdout F err"]);
    shim.ended();
}

fn stdin() {
    let mut shim = Shim::running(script("cat; echo end"));
    assert_eq!(shim.daemon.exit().code, 0);
    assert_eq!(shim.lines(), ["stdout F end"]);
    shim.ended();
    let mut wish = script("echo $$ > \"$0\"; cat; echo end");
    wish.create.stdin = true;
    let pid_file = tempfile::NamedTempFile::new().unwrap();
    wish.args.push(pid_file.path().to_str().unwrap().into());
    let mut shim = Shim::running(wish);
    pid_in(pid_file.path());
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!(shim.lines(), [""; 0]);
    shim.daemon.done(Call::Destroy(Empty {}));
    shim.ended();
}
