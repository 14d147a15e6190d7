//! Commands whose callers leave, commands that write without end, and monitors that hang.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::cri::Cri;
use berth_tests::pods::{Ctr, Pod, script};
use berth_tests::runner::{Case, Test};
use berth_tests::{ensure_eq, process, test};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{Code, Request};

pub(crate) const TESTS: &[Test] = &[
    test!(an_abandoned_command_dies_with_all_that_it_started)
        .berth_only("containerd leaves what has left its process"),
    test!(the_deadline_of_a_caller_ends_its_command)
        .berth_only("containerd leaves what has left its process"),
    test!(the_death_of_a_client_ends_its_command)
        .berth_only("containerd leaves what has left its process"),
    test!(the_end_of_the_daemon_ends_commands)
        .berth_only("the promise is Berth's: containerd's commands go on"),
    test!(abandoned_commands_take_no_room_from_probes),
    test!(a_command_abandoned_at_its_start_leaves_nothing),
    test!(noisy_commands_share_a_budget)
        .alone()
        .berth_only("the budget is Berth's"),
    test!(both_streams_of_noisy_commands_share_it)
        .alone()
        .berth_only("the budget is Berth's"),
    test!(stop_and_remove_pass_a_hung_monitor).berth_only("containerd's shims are not these"),
    test!(an_end_is_seen_past_a_hung_monitor).berth_only("containerd's shims are not these"),
    test!(pods_pass_a_hung_monitor).berth_only("containerd's shims are not these"),
    test!(calls_to_a_hung_monitor_are_bounded).berth_only("containerd's shims are not these"),
    test!(a_restart_passes_a_hung_monitor).berth_only("containerd's shims are not these"),
    test!(a_monitor_that_does_not_die_is_left_behind)
        .berth_only("containerd's shims are not these")
        .unless(no_freezer),
];

/// Names the processes of these tests, and nothing else on the machine.
const FOREVER: &str = "98765";

/// A command with a child in another session, one of another process, and one that ignores signals.
const TREE: &str =
    "setsid sleep 98765 & (sleep 98765 &); trap '' TERM HUP; sleep 98765; sleep 98765";

fn no_freezer() -> Option<&'static str> {
    let there = Path::new("/sys/fs/cgroup/freezer").exists();
    (!there).then_some("no cgroup v1 freezer, which stands for a wait in the kernel")
}

async fn sleeper(case: &mut Case) -> Result<(Pod, Ctr)> {
    let pod = case.pod().await?;
    let running = pod.start(&script("exec sleep 4321")).await?;
    Ok((pod, running))
}

fn exec_request(id: &str, text: &str, timeout: i64) -> ExecSyncRequest {
    ExecSyncRequest {
        container_id: id.into(),
        cmd: vec!["sh".into(), "-c".into(), text.into()],
        timeout,
    }
}

/// The processes of commands.
fn commands(case: &mut Case) -> Result<Vec<process::Process>> {
    let name = case.instance()?.name.clone();
    let mut all = process::marked(&[&name]);
    all.retain(|one| one.command.contains(FOREVER) && one.name == "sleep");
    Ok(all)
}

/// The cgroups of commands of a container.
fn cgroups(id: &str) -> Vec<PathBuf> {
    let (mut found, mut stack) = (Vec::new(), vec![PathBuf::from("/sys/fs/cgroup")]);
    while let Some(dir) = stack.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = entry.path();
                if dir.ends_with(id) {
                    found.push(path);
                } else {
                    stack.push(path);
                }
            }
        }
    }
    found
}

/// Waits until all processes of commands have begun.
async fn begun(case: &mut Case, count: usize) -> Result<()> {
    for _ in 0..200 {
        if commands(case)?.len() >= count {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("the command does not run: {:?}", commands(case)?)
}

/// Nothing of any command is left in a container, which itself goes on.
async fn over(case: &mut Case, container: &Ctr) -> Result<()> {
    let start = Instant::now();
    loop {
        let (left, groups) = (commands(case)?, cgroups(&container.id));
        if left.is_empty() && groups.is_empty() {
            break;
        }
        ensure!(
            start.elapsed() < Duration::from_secs(5),
            "left: {left:?} {groups:?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure_eq!(container.exec(&["true"]).await?.code, 0);
    Ok(())
}

async fn an_abandoned_command_dies_with_all_that_it_started(case: &mut Case) -> Result<()> {
    let (pod, running) = sleeper(case).await?;
    // Without a time limit, and with one that is far away.
    for timeout in [0, 1000] {
        let cri = pod.cri.clone();
        let id = running.id.clone();
        let call = tokio::spawn(async move { cri.exec(&id, &["sh", "-c", TREE], timeout).await });
        begun(case, 3).await?;
        call.abort();
        over(case, &running).await?;
    }
    // One that ends by itself leaves what it started to the container.
    running.sh("sleep 98765 > /dev/null 2>&1 &").await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure_eq!(commands(case)?.len(), 1);
    ensure_eq!(cgroups(&running.id), Vec::<PathBuf>::new());
    Ok(())
}

async fn the_deadline_of_a_caller_ends_its_command(case: &mut Case) -> Result<()> {
    let (pod, running) = sleeper(case).await?;
    let mut request = Request::new(exec_request(&running.id, TREE, 0));
    request.set_timeout(Duration::from_millis(1500));
    let answer = pod.cri.runtime.clone().exec_sync(request).await;
    let code = answer.err().context("it came back")?.code();
    ensure!(
        matches!(code, Code::DeadlineExceeded | Code::Cancelled),
        "{code:?}"
    );
    over(case, &running).await
}

async fn the_death_of_a_client_ends_its_command(case: &mut Case) -> Result<()> {
    let (_, running) = sleeper(case).await?;
    let socket = case.instance()?.socket();
    // A connection of its own, which is closed without a word.
    let request = exec_request(&running.id, TREE, 0);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.spawn(async move {
        let client = Cri::connect(&socket).await?;
        client.runtime.clone().exec_sync(request).await?;
        anyhow::Ok(())
    });
    begun(case, 3).await?;
    runtime.shutdown_background();
    over(case, &running).await
}

async fn the_end_of_the_daemon_ends_commands(case: &mut Case) -> Result<()> {
    let (pod, mut running) = sleeper(case).await?;
    let pid = running.pid().await?;
    let mut cri = pod.cri.clone();
    for kill in [true, false] {
        let (caller, id) = (cri.clone(), running.id.clone());
        let call = tokio::spawn(async move { caller.exec(&id, &["sh", "-c", TREE], 0).await });
        begun(case, 3).await?;
        let instance = case.instance()?;
        if kill {
            instance.kill().await?;
        } else {
            instance.terminate().await?;
        }
        ensure!(call.await?.is_err(), "the command came back");
        // Before there is a daemon again: the monitor does it.
        let start = Instant::now();
        while !commands(case)?.is_empty() || !cgroups(&running.id).is_empty() {
            let left = commands(case)?;
            ensure!(start.elapsed() < Duration::from_secs(5), "left: {left:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ensure!(process::alive(pid), "the container died with the daemon");
        case.instance()?.launch().await?;
        cri = case.instance()?.cri()?.clone();
        running.cri = cri.clone();
        over(case, &running).await?;
    }
    Ok(())
}

async fn abandoned_commands_take_no_room_from_probes(case: &mut Case) -> Result<()> {
    let (pod, running) = sleeper(case).await?;
    // More in all than a container may have at once.
    for _ in 0..4 {
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..40 {
            let (cri, id) = (pod.cri.clone(), running.id.clone());
            calls.spawn(async move { cri.exec(&id, &["sleep", FOREVER], 0).await.map(drop) });
        }
        begun(case, 40).await?;
        calls.shutdown().await;
        let start = Instant::now();
        while !commands(case)?.is_empty() {
            ensure!(start.elapsed() < Duration::from_secs(10), "they live on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ensure_eq!(running.exec(&["true"]).await?.code, 0);
    }
    Ok(())
}

async fn a_command_abandoned_at_its_start_leaves_nothing(case: &mut Case) -> Result<()> {
    let (pod, running) = sleeper(case).await?;
    for step in 0..60_u64 {
        let request = Request::new(exec_request(&running.id, TREE, 0));
        let mut runtime = pod.cri.runtime.clone();
        let call = runtime.exec_sync(request);
        // From before the request is sent to some time after the command has begun.
        let limit = Duration::from_micros(100 * step);
        let gone = tokio::time::timeout(limit, call).await;
        ensure!(gone.is_err(), "the command came back");
    }
    over(case, &running).await
}

/// The most that the daemon had above what it has now, while this is looked at.
struct Watch {
    base: u64,
    most: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Watch {
    fn new(pid: u32) -> Self {
        let watch = Self {
            base: process::pss_kib(pid),
            most: Arc::default(),
            over: Arc::default(),
        };
        let (most, over) = (watch.most.clone(), watch.over.clone());
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(process::pss_kib(pid), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        watch
    }

    fn growth(&self) -> u64 {
        self.most.load(Ordering::Relaxed).saturating_sub(self.base)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

const MARK: &str = "\nberth: output cut here, ";

/// What is told of a stream: bytes of output, and whether they are all.
fn told(stream: &[u8]) -> (usize, bool) {
    let tail = String::from_utf8_lossy(&stream[stream.len().saturating_sub(96)..]).into_owned();
    match tail.find(MARK) {
        Some(at) => (stream.len() - (tail.len() - at), false),
        None => (stream.len(), true),
    }
}

async fn flood(case: &mut Case, text: &'static str, streams: usize) -> Result<()> {
    let (pod, running) = sleeper(case).await?;
    let daemon = case.instance()?.pid().context("no daemon")?;
    ensure_eq!(running.exec(&["true"]).await?.code, 0);
    let watch = Watch::new(daemon);
    for round in 0..2 {
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..40 {
            let (mut runtime, id) = (pod.cri.runtime.clone(), running.id.clone());
            calls.spawn(async move {
                let answer = runtime.exec_sync(exec_request(&id, text, 0)).await?;
                let answer = answer.into_inner();
                Ok::<_, tonic::Status>((answer.exit_code, answer.stdout, answer.stderr))
            });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        // A probe among them.
        let start = Instant::now();
        let probe = running
            .sh("i=0; while [ $i -lt 1000 ]; do echo 0123456789012345678901234567890; i=$((i+1)); done")
            .await?;
        let took = start.elapsed();
        ensure_eq!(probe.len(), 32_000);
        ensure!(took < Duration::from_secs(10), "a probe took {took:?}");
        let (mut kept, mut cut) = (0, 0);
        while let Some(answer) = calls.join_next().await {
            let (code, stdout, stderr) = answer??;
            ensure_eq!(code, 0);
            for stream in [stdout, stderr].iter().take(streams) {
                let (bytes, whole) = told(stream);
                ensure!(bytes >= 64 << 10, "{bytes} bytes of a stream");
                ensure!(
                    whole == (bytes == 32 << 20),
                    "{bytes} bytes, whole: {whole}"
                );
                kept += bytes;
                cut += usize::from(!whole);
            }
        }
        let growth = watch.growth();
        println!(
            "40 noisy commands, round {round}: {kept} bytes kept, {cut} streams cut, {growth} KiB above the base, a probe in {took:?}"
        );
        ensure!(growth < 64 << 10, "the daemon grew by {growth} KiB");
    }
    let base = watch.base;
    drop(watch);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let rest = process::pss_kib(daemon);
    println!("{rest} KiB afterwards, {base} before");
    ensure!(rest < base + (8 << 10), "{rest} KiB stay, of {base} before");
    // What one command may have is there again.
    let answer = pod
        .cri
        .exec(
            &running.id,
            &["dd", "if=/dev/zero", "bs=1M", "count=12"],
            60,
        )
        .await?;
    ensure_eq!(told(&answer.stdout), (12 << 20, true));
    Ok(())
}

async fn noisy_commands_share_a_budget(case: &mut Case) -> Result<()> {
    flood(case, "dd if=/dev/zero bs=1M count=32 2>/dev/null", 1).await
}

async fn both_streams_of_noisy_commands_share_it(case: &mut Case) -> Result<()> {
    let text = "dd if=/dev/zero bs=1M count=32 >&2 2>/dev/null & dd if=/dev/zero bs=1M count=32 2>/dev/null; wait";
    flood(case, text, 2).await
}

/// The monitor of a container.
async fn monitor_of(container: &Ctr) -> Result<u32> {
    let pid = container.pid().await?;
    let monitor = process::process(pid).context("no process")?.parent;
    let name = process::process(monitor).context("no monitor")?.name;
    ensure_eq!(name, "berth-shim");
    Ok(monitor)
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("pid")?;
    Ok(kill_process(pid, signal)?)
}

/// The monitor is no more, but for a zombie.
async fn gone(pid: u32) -> Result<()> {
    for _ in 0..500 {
        if !process::alive(pid) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("the monitor {pid} is still there")
}

async fn stop_and_remove_pass_a_hung_monitor(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let dies = pod
        .start(&script("trap 'exit 0' TERM; while :; do sleep 0.1; done"))
        .await?;
    let deaf = pod
        .start(&script("trap '' TERM; while :; do sleep 1; done"))
        .await?;
    let created = pod.create(&script("exec sleep 4321")).await?;
    let at_once = pod.start(&script("exec sleep 4321")).await?;
    let mut monitors = Vec::new();
    for container in [&dies, &deaf, &created, &at_once] {
        let monitor = monitor_of(container).await?;
        signal(monitor, Signal::STOP)?;
        monitors.push(monitor);
    }
    let stop = async |container: &Ctr, grace| {
        let start = Instant::now();
        pod.cri.stop(&container.id, grace).await?;
        let took = start.elapsed();
        ensure!(took < Duration::from_secs(20), "the stop took {took:?}");
        let status = container.status().await?;
        ensure_eq!(status.state(), ContainerState::ContainerExited);
        ensure_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
        ensure!(status.message.contains("monitor"), "{}", status.message);
        pod.cri.remove(&container.id).await?;
        anyhow::Ok(())
    };
    // One that heeds the signal is not waited for longer than it lives.
    let remove = async {
        let start = Instant::now();
        pod.cri.remove(&created.id).await?;
        pod.cri.remove(&at_once.id).await?;
        let took = start.elapsed();
        ensure!(took < Duration::from_secs(40), "the removals took {took:?}");
        anyhow::Ok(())
    };
    let (first, second, third) = tokio::join!(stop(&dies, 60), stop(&deaf, 2), remove);
    first.and(second).and(third)?;
    for monitor in monitors {
        gone(monitor).await?;
    }
    ensure_eq!(pod.cri.list_containers(None).await?.len(), 0);
    Ok(())
}

/// Nobody stops it: it ends by itself.
async fn an_end_is_seen_past_a_hung_monitor(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod.start(&script("exec sleep 4321")).await?;
    let (pid, monitor) = (running.pid().await?, monitor_of(&running).await?);
    signal(monitor, Signal::STOP)?;
    signal(pid, Signal::KILL)?;
    let status = running.wait().await?;
    ensure_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    gone(monitor).await
}

async fn pods_pass_a_hung_monitor(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut monitors = Vec::new();
    for _ in 0..3 {
        let running = pod.start(&script("exec sleep 4321")).await?;
        monitors.push(monitor_of(&running).await?);
    }
    for monitor in &monitors {
        signal(*monitor, Signal::STOP)?;
    }
    let start = Instant::now();
    pod.remove().await?;
    let took = start.elapsed();
    ensure!(took < Duration::from_secs(25), "it took {took:?}");
    for monitor in monitors {
        gone(monitor).await?;
    }
    Ok(())
}

async fn calls_to_a_hung_monitor_are_bounded(case: &mut Case) -> Result<()> {
    let (pod, running) = sleeper(case).await?;
    let monitor = monitor_of(&running).await?;
    // A command that has begun, is over in time and is not told of.
    let (cri, id) = (pod.cri.clone(), running.id.clone());
    let begun = tokio::spawn(async move { cri.exec(&id, &["sleep", "2"], 60).await });
    tokio::time::sleep(Duration::from_millis(700)).await;
    signal(monitor, Signal::STOP)?;
    let start = Instant::now();
    let failed = pod.cri.exec(&running.id, &["true"], 1).await.err();
    // Not the code that counts as a failed probe.
    ensure_eq!(failed.context("a probe")?.code(), Code::Unavailable);
    ensure!(
        start.elapsed() < Duration::from_secs(15),
        "{:?}",
        start.elapsed()
    );
    let start = Instant::now();
    let failed = pod.cri.exec(&running.id, &["true"], 1).await.err();
    ensure_eq!(failed.context("a probe")?.code(), Code::Unavailable);
    let failed = pod.cri.reopen_log(&running.id).await.err();
    ensure_eq!(failed.context("a log")?.code(), Code::Unavailable);
    ensure!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    let failed = begun
        .await?
        .err()
        .context("a command that is not told of")?;
    ensure_eq!(failed.code(), Code::Unavailable);
    // What only looks never waits.
    let start = Instant::now();
    ensure_eq!(
        running.status().await?.state(),
        ContainerState::ContainerRunning
    );
    pod.cri.list_containers(None).await?;
    pod.cri.container_stats(&running.id).await?;
    ensure!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    // It comes back, and so does everything.
    signal(monitor, Signal::CONT)?;
    let start = Instant::now();
    while running.exec(&["true"]).await.is_err() {
        ensure!(
            start.elapsed() < Duration::from_secs(10),
            "it is not asked again"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    pod.cri.reopen_log(&running.id).await?;
    ensure_eq!(cgroups(&running.id), Vec::<PathBuf>::new());
    Ok(())
}

async fn a_restart_passes_a_hung_monitor(case: &mut Case) -> Result<()> {
    let (pod, running) = sleeper(case).await?;
    let other = pod.start(&script("exec sleep 4321")).await?;
    let monitor = monitor_of(&running).await?;
    signal(monitor, Signal::STOP)?;
    case.instance()?.kill().await?;
    let took = case.instance()?.launch().await?;
    ensure!(took < Duration::from_secs(6), "the start took {took:?}");
    let cri = case.instance()?.cri()?.clone();
    let state = cri.container_status(&running.id).await?.state();
    ensure_eq!(state, ContainerState::ContainerUnknown);
    let other = Ctr {
        cri: cri.clone(),
        ..other
    };
    ensure_eq!(other.exec(&["true"]).await?.code, 0);
    let start = Instant::now();
    cri.stop(&running.id, 1).await?;
    cri.remove(&running.id).await?;
    let took = start.elapsed();
    ensure!(took < Duration::from_secs(20), "it took {took:?}");
    // Although there was no connection to it.
    gone(monitor).await
}

/// What an operator's Prometheus reads.
async fn left_behind(case: &mut Case) -> Result<u64> {
    let socket = case.instance()?.folder().join("state/admin.sock");
    let mut stream = tokio::net::UnixStream::connect(&socket).await?;
    let request = "GET /metrics HTTP/1.1\r\nHost: berth\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("berth_monitors_left_behind "));
    Ok(line.context("no such metric")?.trim().parse()?)
}

/// A group of the v1 freezer, thawed and removed at the end.
struct Freezer(PathBuf);

impl Freezer {
    fn state(&self, state: &str) -> Result<()> {
        Ok(std::fs::write(self.0.join("freezer.state"), state)?)
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = self.state("THAWED");
        for _ in 0..200 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

async fn a_monitor_that_does_not_die_is_left_behind(case: &mut Case) -> Result<()> {
    let (pod, running) = sleeper(case).await?;
    let monitor = monitor_of(&running).await?;
    let name = format!("frozen-{}", case.instance()?.name);
    let freezer = Freezer(Path::new("/sys/fs/cgroup/freezer").join(name));
    std::fs::create_dir(&freezer.0)?;
    std::fs::write(freezer.0.join("cgroup.procs"), monitor.to_string())?;
    // Frozen, it takes no signal before it is thawed: as in a wait for a disk.
    freezer.state("FROZEN")?;
    let start = Instant::now();
    pod.cri.stop(&running.id, 1).await?;
    pod.cri.remove(&running.id).await?;
    let took = start.elapsed();
    ensure!(took < Duration::from_secs(25), "it took {took:?}");
    ensure!(process::alive(monitor), "it was not frozen");
    ensure_eq!(left_behind(case).await?, 1);
    let info = pod.cri.status(true).await?.info;
    let notices = info.get("notices").context("no notices")?;
    ensure!(notices.contains("1 monitors of containers"), "{notices}");
    // The pod is not held up by it either.
    pod.remove().await?;
    freezer.state("THAWED")?;
    gone(monitor).await?;
    for _ in 0..100 {
        if left_behind(case).await? == 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("it is still counted")
}
