//! Commands whose callers leave, commands that wait, and commands that write without end.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::cri::Cri;
use berth_tests::pods::{Ctr, Pod, script};
use berth_tests::runner::{Case, Test};
use berth_tests::{ensure_eq, process, test};
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
    test!(waiting_commands_take_no_room_from_probes)
        .berth_only("containerd has no limit, and starts a shim's worth of goroutines for each"),
    test!(a_command_abandoned_at_its_start_leaves_nothing),
    test!(noisy_commands_share_a_budget)
        .alone()
        .berth_only("the budget is Berth's"),
    test!(both_streams_of_noisy_commands_share_it)
        .alone()
        .berth_only("the budget is Berth's"),
];

/// Names the processes of these tests, and nothing else on the machine.
const FOREVER: &str = "98765";

/// A command with a child in another session, one of another process, and one that ignores signals.
const TREE: &str =
    "setsid sleep 98765 & (sleep 98765 &); trap '' TERM HUP; sleep 98765; sleep 98765";

/// A container that waits.
pub(crate) async fn sleeper(case: &mut Case) -> Result<(Pod, Ctr)> {
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
pub(crate) fn cgroups(id: &str) -> Vec<PathBuf> {
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

/// Their callers wait, too.
async fn waiting_commands_take_no_room_from_probes(case: &mut Case) -> Result<()> {
    let (pod, running) = sleeper(case).await?;
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..140 {
        // Without a limit, and with one that is as good as none.
        let limit = [0, 100_000][number % 2];
        let (cri, id) = (pod.cri.clone(), running.id.clone());
        calls.spawn(async move { cri.exec(&id, &["sleep", FOREVER], limit).await.map(drop) });
    }
    // Those that are too many are told so at once, in words.
    for _ in 0..44 {
        let told = calls.join_next().await.context("nobody is told")??;
        let told = told.err().context("a command came back")?;
        ensure_eq!(told.code(), Code::ResourceExhausted);
        let words = "commands without a time limit of at most 600 s";
        ensure!(told.message().contains(words), "{}", told.message());
    }
    begun(case, 96).await?;
    let mut probes = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (cri, id) = (pod.cri.clone(), running.id.clone());
        probes.spawn(async move { cri.exec(&id, &["true"], 30).await });
    }
    while let Some(probe) = probes.join_next().await {
        ensure_eq!(probe??.exit_code, 0);
    }
    calls.shutdown().await;
    over(case, &running).await
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
    let begun = Instant::now();
    let mut rest = process::pss_kib(daemon);
    while rest >= base + (8 << 10) {
        let took = begun.elapsed();
        ensure!(
            took < Duration::from_secs(2),
            "{rest} KiB stay, of {base} before"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
        rest = process::pss_kib(daemon);
    }
    println!("{rest} KiB afterwards, {base} before");
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
