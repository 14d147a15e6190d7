//! Pods' namespaces and pause processes, and the launcher itself.

use super::*;

#[tokio::test]
async fn a_pod_has_namespaces_and_a_pause_process() {
    let bench = Bench::new();
    let dir = tempfile::tempdir().unwrap();
    rustix::mount::mount_bind(dir.path(), dir.path()).unwrap();
    rustix::mount::mount_change(dir.path(), MountPropagationFlags::PRIVATE).unwrap();
    let pin = |name: &str| dir.path().join(name).display().to_string();
    let pod = worker::Pod {
        id: "p".into(),
        net: pin("net"),
        ipc: pin("ipc"),
        uts: pin("uts"),
        hostname: "podhost".into(),
        sysctls: Vec::new(),
    };
    let worker = bench.runtime().pod(pod).await.unwrap();
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    let path = format!("/{}", unique("pause"));
    let leaves = everywhere(&path);
    let cgroup = worker::Cgroup {
        path,
        dirs: leaves.clone(),
        leaves: leaves.clone(),
        ..Default::default()
    };
    let pause = worker::Pause {
        pid: pin("pid"),
        cgroup: Some(cgroup),
        process: Some(process(&[])),
    };
    let pause = worker.pause(pause, None).await.unwrap();
    assert!(bench.runtime().is_alive(&pause).unwrap());
    let net = fs::read_link(format!("/proc/{}/ns/net", pause.pid)).unwrap();
    assert_ne!(net, own);
    let comm = fs::read_to_string(format!("/proc/{}/comm", pause.pid)).unwrap();
    assert_eq!(comm, "pause\n");
    let runtime = bench.runtime();
    let ended = runtime.ended(&pause);
    assert!(runtime.signal(&pause, libc::SIGKILL).unwrap());
    tokio::time::timeout(LIMIT, ended).await.unwrap().unwrap();
    assert!(!runtime.is_alive(&pause).unwrap());
    for name in ["net", "ipc", "uts", "pid"] {
        runtime.unpin(&dir.path().join(name)).unwrap();
    }
    rustix::mount::unmount(dir.path(), UnmountFlags::DETACH).unwrap();
    for leaf in &leaves {
        let give_up = Instant::now() + LIMIT;
        while fs::remove_dir(leaf).is_err() && Path::new(leaf).exists() {
            assert!(Instant::now() < give_up, "{leaf}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn a_pod_that_cannot_be_made_is_an_error() {
    let bench = Bench::new();
    let pod = worker::Pod {
        id: "p".into(),
        net: "/no/such/dir/net".into(),
        ..worker::Pod::default()
    };
    let error = bench.runtime().pod(pod).await.unwrap_err();
    assert!(error.to_string().starts_with("pod p: "), "{error}");
}

#[tokio::test]
async fn workers_and_monitors_are_in_their_own_control_groups() {
    let bench = Bench::new();
    let mut fixture = Fixture::script("exit 0");
    let (monitor, _) = fixture.create(&bench).await.unwrap();
    let (_, state) = bench
        .runtime()
        .connect(&fixture.id, fixture.dir.path())
        .await
        .unwrap();
    let name = bench.shims[0].file_name().unwrap().to_str().unwrap();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let theirs = fs::read_to_string(format!("/proc/{}/cgroup", state.monitor_pid)).unwrap();
    assert!(theirs.lines().all(|l| l.ends_with(name)), "{theirs}");
    assert!(!own.contains(name), "{own}");
    monitor.destroy().await.unwrap();
}

#[tokio::test]
async fn a_removed_control_group_of_v2_is_made_again() {
    let bench = Bench::new();
    let v2 = bench
        .shims
        .iter()
        .find(|dir| dir.join("cgroup.events").exists());
    let Some(v2) = v2 else {
        berth_skip::skip!("cgroup-v2", "no hierarchy of it is mounted");
    };
    for _ in 0..2 {
        fs::remove_dir(v2).unwrap();
        let mut fixture = Fixture::script("exit 0");
        let (monitor, _) = fixture.create(&bench).await.unwrap();
        assert!(
            !fs::read_to_string(v2.join("cgroup.procs"))
                .unwrap()
                .is_empty()
        );
        monitor.destroy().await.unwrap();
        fixture.is_clean(false).await;
        let give_up = Instant::now() + LIMIT;
        while !fs::read_to_string(v2.join("cgroup.procs"))
            .unwrap()
            .is_empty()
        {
            assert!(Instant::now() < give_up, "a monitor is left");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn missing_programs_and_control_groups_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (events, _) = mpsc::unbounded_channel();
    let config = |worker: PathBuf, dirs| LauncherConfig {
        shim: program("berth-shim", "BERTH_SHIM"),
        worker,
        state_dir: dir.path().to_owned(),
        shims: Shims::Directories(dirs),
        open_files: OpenFiles::current(),
        events: events.clone(),
        boot_id: String::new(),
        left_behind: crate::metrics::Gauge::default(),
    };
    let error = Launcher::open(config("/no/such/worker".into(), Vec::new())).unwrap_err();
    assert!(error.to_string().contains("/no/such/worker"), "{error}");
    let worker = program("berth-worker", "BERTH_WORKER");
    let missing = vec![PathBuf::from("/no/such/cgroup")];
    let error = Launcher::open(config(worker, missing)).unwrap_err();
    assert!(error.to_string().contains("/no/such/cgroup"), "{error}");
    // The pause program was written once, and can be executed.
    let names: Vec<_> = fs::read_dir(dir.path().join("bin")).unwrap().collect();
    assert_eq!(names.len(), 1);
    let program = names[0].as_ref().unwrap().path().join("pause");
    assert_eq!(fs::read(program).unwrap(), pause::PAUSE);
}
