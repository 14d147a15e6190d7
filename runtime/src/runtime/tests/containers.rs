//! Containers.

use super::*;

#[tokio::test]
async fn a_container_runs_from_create_to_exit() {
    let mut bench = Bench::new();
    let mut fixture = Fixture::script("echo out; echo err >&2; readlink /proc/self; exit 7");
    let (monitor, started) = fixture.create(&bench).await.unwrap();
    let start_time = sys::process::start_time(started.pid).unwrap();
    assert_eq!(start_time, started.start_time);
    let started_at = monitor.start().await.unwrap();
    let exit = bench.exit().await;
    assert_eq!(
        (exit.code, exit.started_at, exit.oom),
        (7, started_at, false)
    );
    let mut lines = fixture.lines();
    lines.sort();
    assert_eq!(lines[0], "stderr F err");
    assert!(lines.contains(&"stdout F out".to_owned()), "{lines:?}");
    fixture.is_clean(true).await;
    let record = read_exit(fixture.dir.path()).unwrap().unwrap();
    assert_eq!((record.boot_id.as_str(), record.exit), ("this boot", exit));
    // All calls say that it is over; destroying it is fine.
    assert!(monitor.start().await.is_err() && monitor.reopen_log(None).await.is_err());
    assert!(!bench.runtime().signal(&started, libc::SIGKILL).unwrap());
    monitor.destroy().await.unwrap();
}

#[tokio::test]
async fn a_missing_command_is_a_start_error() {
    let mut bench = Bench::new();
    let mut fixture = Fixture::command(&["nonesuch"]);
    let (monitor, _) = match fixture.create(&bench).await {
        Ok(created) => created,
        Err(error) => panic!("{error}"),
    };
    let error = monitor.start().await.unwrap_err();
    assert!(
        matches!(
            &error,
            Error::Refused {
                kind: FailureKind::Start,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.to_string().contains("nonesuch"), "{error}");
    let exit = bench.exit().await;
    assert_eq!((exit.code, exit.started_at), (128, 0));
    assert!(exit.start_error.contains("nonesuch"), "{exit:?}");
    fixture.is_clean(true).await;
}

#[tokio::test]
async fn a_container_that_cannot_be_made_leaves_nothing() {
    let bench = Bench::new();
    let mut fixture = Fixture::script("exit 0");
    fixture.config["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/x", "type": "bind", "source": "/no/such/directory", "options": ["bind"],
    }));
    let error = fixture.create(&bench).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/directory"), "{error}");
    assert!(error.to_string().contains(fixture.id.as_str()), "{error}");
    fixture.is_clean(false).await;
    let gone = bench
        .runtime()
        .connect(&fixture.id, fixture.dir.path())
        .await;
    assert!(matches!(gone, Err(ConnectError::Gone)), "{gone:?}");
}

#[tokio::test]
async fn a_created_container_is_destroyed_without_a_trace() {
    let bench = Bench::new();
    let mut fixture = Fixture::script("exit 0");
    let (monitor, started) = fixture.create(&bench).await.unwrap();
    monitor.destroy().await.unwrap();
    assert!(!bench.runtime().is_alive(&started).unwrap());
    fixture.is_clean(false).await;
}

#[tokio::test]
async fn commands_run_in_the_container() {
    let mut bench = Bench::new();
    let mut fixture = Fixture::script("trap 'exit 3' TERM; while :; do sleep 0.05; done");
    let (monitor, started) = fixture.run(&bench).await;
    let (text, exit) = run(
        &monitor,
        fixture.exec("a", &["sh", "-c", "pwd; ls -d /bin; exit 5"]),
    )
    .await;
    assert_eq!(
        (text.as_str(), exit.code, exit.timed_out),
        ("/\n/bin\n", 5, false)
    );
    let (text, exit) = run(&monitor, fixture.exec("b", &["cat", "/proc/self/cgroup"])).await;
    assert_eq!(exit.code, 0);
    assert!(text.lines().any(|l| l.ends_with("/b")), "{text}");
    assert!(!Path::new(&format!("{}/b", fixture.leaf("pids"))).exists());
    let missing = monitor
        .exec(fixture.exec("c", &["nonesuch"]), ExecStdio::default(), None)
        .await;
    assert!(
        matches!(
            missing,
            Err(Error::Refused {
                kind: FailureKind::Start,
                ..
            })
        ),
        "{missing:?}"
    );
    assert!(bench.runtime().signal(&started, libc::SIGTERM).unwrap());
    assert_eq!(bench.exit().await.code, 3);
    fixture.is_clean(true).await;
    let late = monitor
        .exec(fixture.exec("d", &["true"]), ExecStdio::default(), None)
        .await;
    assert!(late.is_err());
}

#[tokio::test]
async fn a_time_limit_kills_all_that_a_command_started() {
    let bench = Bench::new();
    let mut fixture = Fixture::script("while :; do sleep 0.05; done");
    let (monitor, _) = fixture.run(&bench).await;
    let script = "(setsid sleep 1000 &); setsid sh -c 'trap \"\" TERM; sleep 1000' & sleep 1000";
    let mut exec = fixture.exec("slow", &["sh", "-c", script]);
    exec.timeout_ms = 200;
    let began = Instant::now();
    // The output ends, so nobody holds the pipe any more.
    let (_, exit) = run(&monitor, exec).await;
    assert_eq!((exit.code, exit.timed_out), (137, true));
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    let (text, _) = run(&monitor, fixture.exec("ps", &["ps"])).await;
    assert!(!text.contains("sleep 1000"), "{text}");
    monitor.destroy().await.unwrap();
}

#[tokio::test]
async fn a_command_may_have_a_terminal() {
    let bench = Bench::new();
    let mut fixture = Fixture::script("while :; do sleep 0.05; done");
    let (monitor, _) = fixture.run(&bench).await;
    let mut exec = fixture.exec("tty", &["sh", "-c", "tty; stty size; exit 4"]);
    let process = exec.exec.as_mut().unwrap().process.as_mut().unwrap();
    (process.terminal, process.rows, process.columns) = (true, 33, 99);
    let mut handle = monitor
        .exec(exec, ExecStdio::default(), None)
        .await
        .unwrap();
    let console = fs::File::from(handle.console.take().unwrap());
    let text = tokio::task::spawn_blocking(move || {
        let (mut text, mut piece) = (Vec::new(), [0; 256]);
        while let Ok(n @ 1..) = std::io::Read::read(&mut &console, &mut piece) {
            text.extend_from_slice(&piece[..n]);
        }
        String::from_utf8(text).unwrap()
    });
    assert_eq!(handle.wait().await.unwrap().code, 4);
    assert_eq!(text.await.unwrap(), "/dev/pts/0\r\n33 99\r\n");
    monitor.destroy().await.unwrap();
}

#[tokio::test]
async fn a_terminal_s_output_is_logged() {
    let mut bench = Bench::new();
    let mut fixture = Fixture::script("tty; echo err >&2");
    fixture.process().terminal = true;
    fixture.run(&bench).await;
    assert_eq!(bench.exit().await.code, 0);
    assert_eq!(fixture.lines(), ["stdout F /dev/pts/0", "stdout F err"]);
    fixture.is_clean(true).await;
}

#[tokio::test]
async fn a_monitor_is_found_again() {
    let mut bench = Bench::new();
    let mut fixture = Fixture::script("while :; do sleep 0.05; done");
    let (first, started) = fixture.run(&bench).await;
    let connect = bench
        .runtime()
        .connect(&fixture.id, fixture.dir.path())
        .await;
    let (second, state) = connect.unwrap();
    let init = state.init.unwrap();
    assert_eq!(
        (init.pid, init.start_time),
        (started.pid, started.start_time)
    );
    assert!(state.started_at > 0 && state.exit.is_none());
    drop(first);
    let (text, _) = run(&second, fixture.exec("a", &["echo", "there"])).await;
    assert_eq!(text, "there\n");
    fs::rename(
        fixture.dir.path().join("log/0.log"),
        fixture.dir.path().join("log/1.log"),
    )
    .unwrap();
    second.reopen_log(None).await.unwrap();
    assert!(fixture.lines().is_empty());
    // One that is stopped is there but does not answer.
    let pid = rustix::process::Pid::from_raw(state.monitor_pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let connect = bench.runtime().connect(&fixture.id, fixture.dir.path());
    let hung = tokio::time::timeout(LIMIT, connect).await;
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
    let hung = hung.unwrap();
    assert!(matches!(hung, Err(ConnectError::Hung(_))), "{hung:?}");
    assert!(bench.runtime().signal(&started, libc::SIGKILL).unwrap());
    // Both connections tell.
    assert_eq!(bench.exit().await.code, 137);
    assert_eq!(bench.exit().await.code, 137);
    fixture.is_clean(true).await;
}

#[tokio::test]
async fn a_monitor_that_hangs_is_asked_little_and_killed_in_the_end() {
    let mut bench = Bench::new();
    let mut fixture = Fixture::script("while :; do sleep 0.05; done");
    let (monitor, started) = fixture.run(&bench).await;
    let process = monitor.process().unwrap();
    assert!(bench.runtime().is_alive(&process).unwrap());
    let exec = |id| {
        let mut exec = fixture.exec(id, &["true"]);
        exec.timeout_ms = 100;
        monitor.exec(exec, ExecStdio::default(), None)
    };
    assert!(bench.runtime().signal(&process, libc::SIGSTOP).unwrap());
    let began = Instant::now();
    let silent = exec("a").await.unwrap_err();
    assert!(matches!(silent, Error::Silent { .. }), "{silent:?}");
    assert_eq!(silent.kind(), Kind::Unavailable);
    assert!(began.elapsed() < Duration::from_secs(15));
    // From now on nobody waits for it, and it is killed when it has to go.
    let began = Instant::now();
    let hung = exec("b").await.unwrap_err();
    assert!(matches!(hung, Error::Hung { .. }), "{hung:?}");
    assert_eq!(hung.kind(), Kind::Unavailable);
    assert!(monitor.reopen_log(None).await.is_err() && monitor.kill_exec("a").await.is_err());
    monitor.destroy().await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    assert!(matches!(bench.event().await, MonitorEventKind::Lost));
    dies(&bench, &process).await;
    dies(&bench, &started).await;
    let gone = bench.runtime().kill_monitor(&fixture.id, &process);
    assert!(gone.await.unwrap());
    remove_leaves(&fixture);
}

#[tokio::test]
async fn a_monitor_that_resumes_is_asked_again() {
    let bench = Bench::new();
    let mut fixture = Fixture::script("while :; do sleep 0.05; done");
    let (monitor, _) = fixture.run(&bench).await;
    let process = monitor.process().unwrap();
    assert!(bench.runtime().signal(&process, libc::SIGSTOP).unwrap());
    let mut exec = fixture.exec("a", &["true"]);
    exec.timeout_ms = 1;
    let silent = monitor.exec(exec, ExecStdio::default(), None).await;
    assert!(matches!(silent, Err(Error::Silent { .. })), "{silent:?}");
    assert!(bench.runtime().signal(&process, libc::SIGCONT).unwrap());
    let give_up = Instant::now() + LIMIT;
    // What it was asked before it answers now, and with that it is heard of.
    while monitor.kill_exec("a").await.is_err() {
        assert!(Instant::now() < give_up, "it is not asked again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (text, _) = run(&monitor, fixture.exec("b", &["echo", "there"])).await;
    assert_eq!(text, "there\n");
    monitor.destroy().await.unwrap();
}

/// The daemon's part, where there is none.
fn remove_leaves(fixture: &Fixture) {
    for leaf in &fixture.create.leaves {
        let give_up = Instant::now() + LIMIT;
        let exec = format!("{leaf}/a");
        while Path::new(leaf).exists() && Instant::now() < give_up {
            let _ = fs::remove_dir(&exec);
            let _ = fs::remove_dir(leaf);
        }
    }
}

#[tokio::test]
async fn a_monitor_that_dies_takes_its_container_along() {
    let mut bench = Bench::new();
    let mut fixture = Fixture::script("while :; do sleep 0.05; done");
    let (monitor, started) = fixture.run(&bench).await;
    let exec = monitor.exec(
        fixture.exec("a", &["sleep", "1000"]),
        ExecStdio::default(),
        None,
    );
    let exec = exec.await.unwrap();
    monitor.kill().await;
    assert!(matches!(bench.event().await, MonitorEventKind::Lost));
    let gone = exec.wait().await;
    assert!(matches!(gone, Err(Error::Gone { .. })), "{gone:?}");
    dies(&bench, &started).await;
    assert!(read_exit(fixture.dir.path()).unwrap().is_none());
    let gone = bench
        .runtime()
        .connect(&fixture.id, fixture.dir.path())
        .await;
    assert!(matches!(gone, Err(ConnectError::Gone)), "{gone:?}");
    assert!(
        monitor
            .start()
            .await
            .is_err_and(|e| e.kind() == Kind::Unknown)
    );
    remove_leaves(&fixture);
}

#[tokio::test]
async fn an_oom_kill_is_told() {
    let mut bench = Bench::new();
    let mut fixture = Fixture::script("x=$(head -c 60000000 /dev/zero | tr '\\0' x); echo ${#x}");
    let leaf = fixture.leaf("memory");
    let v1 = !Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let (file, oom) = if v1 {
        (
            "memory.limit_in_bytes",
            OomSource {
                v1_dir: leaf.clone(),
                ..OomSource::default()
            },
        )
    } else {
        (
            "memory.max",
            OomSource {
                v2_dir: leaf.clone(),
                ..OomSource::default()
            },
        )
    };
    fixture.create.oom = Some(oom);
    let limit = worker::CgroupWrite {
        file: format!("{leaf}/{file}"),
        value: "20000000".into(),
        ..Default::default()
    };
    fixture
        .create
        .container
        .as_mut()
        .unwrap()
        .cgroup
        .as_mut()
        .unwrap()
        .writes
        .push(limit);
    fixture.run(&bench).await;
    let exit = loop {
        match bench.event().await {
            MonitorEventKind::Oom(kills) => assert!(kills > 0),
            MonitorEventKind::Exited(exit) => break exit,
            other => panic!("{other:?}"),
        }
    };
    assert!(exit.oom, "{exit:?}");
    fixture.is_clean(true).await;
}

#[tokio::test]
async fn without_a_pid_namespace_leftovers_are_killed_first() {
    let mut bench = Bench::new();
    let mut fixture = Fixture::script("trap '' TERM; (setsid sleep 1000 &); echo $$; exit 2");
    fixture.config["linux"]["namespaces"] = json!([{ "type": "mount" }, { "type": "ipc" }]);
    fixture.create.kill_cgroup = vec![fixture.leaf("pids")];
    fixture.run(&bench).await;
    assert_eq!(bench.exit().await.code, 2);
    fixture.is_clean(true).await;
}

#[tokio::test]
async fn many_containers_at_once() {
    let mut bench = Bench::new();
    let mut fixtures: Vec<Fixture> = (0..12)
        .map(|n| Fixture::script(&format!("echo number {n}; exit {n}")))
        .collect();
    let began = Instant::now();
    let runs = fixtures.iter_mut().map(|fixture| fixture.run(&bench));
    let mut runs: Vec<_> = runs.map(Box::pin).collect();
    for run in &mut runs {
        run.await;
    }
    drop(runs);
    let mut codes = Vec::new();
    for _ in 0..12 {
        codes.push(bench.exit().await.code);
    }
    codes.sort_unstable();
    assert_eq!(codes, (0..12).collect::<Vec<i32>>());
    println!(
        "12 containers made and started, one after the other: {:?}",
        began.elapsed()
    );
    for (n, fixture) in fixtures.iter().enumerate() {
        assert_eq!(fixture.lines(), [format!("stdout F number {n}")]);
        fixture.is_clean(true).await;
    }
}
