//! Monitors that hang.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::pods::{Ctr, script};
use berth_tests::runner::{Case, Test};
use berth_tests::{ensure_eq, process, test};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;

use crate::commands::{cgroups, sleeper};

pub(crate) const TESTS: &[Test] = &[
    test!(stop_and_remove_pass_a_hung_monitor).berth_only("containerd's shims are not these"),
    test!(an_end_is_seen_past_a_hung_monitor).berth_only("containerd's shims are not these"),
    test!(pods_pass_a_hung_monitor).berth_only("containerd's shims are not these"),
    test!(calls_to_a_hung_monitor_are_bounded).berth_only("containerd's shims are not these"),
    test!(a_start_by_a_hung_monitor_is_bounded).berth_only("containerd's shims are not these"),
    test!(a_restart_passes_a_hung_monitor).berth_only("containerd's shims are not these"),
    test!(a_monitor_that_does_not_die_is_left_behind)
        .berth_only("containerd's shims are not these")
        .unless(no_freezer),
];

fn no_freezer() -> Option<&'static str> {
    let there = Path::new("/sys/fs/cgroup/freezer").exists();
    (!there).then_some("no cgroup v1 freezer, which stands for a wait in the kernel")
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

async fn a_start_by_a_hung_monitor_is_bounded(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let created = pod.create(&script("exec sleep 4321")).await?;
    let monitor = monitor_of(&created).await?;
    signal(monitor, Signal::STOP)?;
    let start = Instant::now();
    let failed = pod.cri.start(&created.id).await.err();
    let took = start.elapsed();
    ensure_eq!(failed.context("it was started")?.code(), Code::Unavailable);
    ensure!(took < Duration::from_secs(20), "{took:?}");
    pod.cri.stop(&created.id, 0).await?;
    Ok(pod.cri.remove(&created.id).await?)
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
