//! Containers: created, started, stopped, removed; their commands and their logs.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::cri::image_spec;
use berth_tests::leak::Snapshot;
use berth_tests::pods::{Ctr, Pod, unique};
use berth_tests::runner::Case;
use berth_tests::runtime::Net;
use berth_tests::{ensure_eq, process};
use rustix::process::{Pid, Signal, kill_process};

use super::{
    At, again, anew, arm, die_at, dies, each, freeze, full_container, full_pod, images, options,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A daemon, a pod, and what there is then.
async fn start(case: &mut Case) -> Result<(Pod, Snapshot)> {
    let options = options(case, Net::Builtin)?;
    case.start_with(options).await?;
    let config = full_pod(case, "pod")?;
    let pod = Pod::run(case.cri()?, config).await?;
    Ok((pod, case.instance()?.snapshot()))
}

/// The containers of the pod are gone, and all that was theirs.
async fn clean(case: &mut Case, before: &Snapshot) -> Result<()> {
    let left = case.cri()?.list_containers(None).await?;
    ensure!(left.is_empty(), "containers are left: {left:?}");
    case.instance()?.expect_clean(before, PATIENCE).await
}

pub(super) async fn create_container(case: &mut Case) -> Result<()> {
    let (pod, before) = start(case).await?;
    let image = images::layered(case).await?;
    case.cri()?.pull(&image).await?;
    each!("create_container", at => {
        let mut config = full_container("cat /vol/file; echo two; exit 7");
        config.image = Some(image_spec(&image));
        create_at(case, at, &pod, &config).await?;
        clean(case, &before).await
    });
    Ok(())
}

async fn create_at(case: &mut Case, at: At, pod: &Pod, config: &ContainerConfig) -> Result<()> {
    let (made, wanted) = (pod.clone(), config.clone());
    die_at(case, at, |cri| async move {
        cri.create(&made.id, &wanted, &made.config).await
    })
    .await?;
    let pod = again(case, pod)?;
    let mut taken = None;
    for there in pod.cri.list_containers(None).await? {
        ensure_eq!(there.metadata, config.metadata);
        if there.state() == ContainerState::ContainerCreated {
            ensure!(taken.is_none(), "there are two of that name");
            taken = Some(there.id);
        } else {
            pod.cri.stop(&there.id, 0).await?;
            pod.cri.remove(&there.id).await?;
        }
    }
    let container = match taken {
        Some(id) => handle(&pod, config, id),
        None => pod.create(config).await?,
    };
    ensure_eq!(pod.cri.list_containers(None).await?.len(), 1);
    container.cri.start(&container.id).await?;
    ended_well(&container).await?;
    container.cri.remove(&container.id).await?;
    Ok(())
}

/// The monitor makes what it was asked for by a daemon that is dead by then, after the next one has come.
pub(super) async fn late_monitor(case: &mut Case) -> Result<()> {
    let (pod, before) = start(case).await?;
    let config = full_container("echo one; echo two; exit 7");
    let points = "create_container.hello.after=sleep(3000);monitor.asked.after=return";
    let cri = arm(case, points.to_owned()).await?;
    let (made, wanted) = (pod.clone(), config.clone());
    let call = tokio::spawn(async move { cri.create(&made.id, &wanted, &made.config).await });
    let monitor = freeze(case, "berth-shim").await?;
    dies(case, call).await?;
    case.instance()?.launch().await?;
    let container = again(case, &pod)?.create(&config).await?;
    kill_process(monitor, Signal::CONT)?;
    container.cri.start(&container.id).await?;
    ended_well(&container).await?;
    container.cri.remove(&container.id).await?;
    clean(case, &before).await
}

fn handle(pod: &Pod, config: &ContainerConfig, id: String) -> Ctr {
    let log = std::path::Path::new(&pod.config.log_directory).join(&config.log_path);
    let cri = pod.cri.clone();
    Ctr { cri, id, log }
}

async fn ended_well(container: &Ctr) -> Result<()> {
    ensure_eq!(container.wait().await?.exit_code, 7);
    ensure_eq!(container.stdout()?, "one\ntwo\n");
    Ok(())
}

pub(super) async fn start_container(case: &mut Case) -> Result<()> {
    let (pod, before) = start(case).await?;
    each!("start_container", at => {
        let created = again(case, &pod)?
            .create(&full_container("echo one; sleep 0.3; echo two; exit 7"))
            .await?;
        start_at(case, at, &created).await?;
        clean(case, &before).await
    });
    Ok(())
}

async fn start_at(case: &mut Case, at: At, created: &Ctr) -> Result<()> {
    let id = created.id.clone();
    die_at(case, at, |cri| async move { cri.start(&id).await }).await?;
    let container = anew(case, created)?;
    if container.status().await?.state() == ContainerState::ContainerCreated
        && let Err(error) = container.cri.start(&container.id).await
    {
        // It was on its way.
        let state = container.status().await?.state();
        ensure!(
            state != ContainerState::ContainerCreated,
            "it cannot be started: {error}"
        );
    }
    ended_well(&container).await?;
    Ok(container.cri.remove(&container.id).await?)
}

pub(super) async fn stop_container(case: &mut Case) -> Result<()> {
    let (pod, before) = start(case).await?;
    each!("stop_container", at => {
        let running = again(case, &pod)?
            .start(&full_container(
                "trap 'echo bye; exit 6' TERM; echo up; while :; do sleep 0.05; done",
            ))
            .await?;
        running.wait_for_log("up").await?;
        match at.0 {
            "stop_container.kill.after" => stop_at(case, at, &running, 0, 137).await?,
            "stop_container.cgroup.after" => stop_silent_at(case, at, &running).await?,
            _ => stop_at(case, at, &running, 10, 6).await?,
        }
        clean(case, &before).await
    });
    Ok(())
}

async fn stop_at(case: &mut Case, at: At, running: &Ctr, grace: i64, code: i32) -> Result<()> {
    let id = running.id.clone();
    die_at(case, at, |cri| async move { cri.stop(&id, grace).await }).await?;
    stopped(case, running, grace, code).await
}

async fn stopped(case: &mut Case, running: &Ctr, grace: i64, code: i32) -> Result<()> {
    let container = anew(case, running)?;
    container.cri.stop(&container.id, grace).await?;
    let status = container.status().await?;
    ensure_eq!(status.state(), ContainerState::ContainerExited);
    ensure_eq!(status.exit_code, code);
    let said = if code == 6 { "up\nbye\n" } else { "up\n" };
    ensure_eq!(container.stdout()?, said);
    Ok(container.cri.remove(&container.id).await?)
}

/// Its monitor hangs, so that it is ended past it; in the end that says what it knows.
async fn stop_silent_at(case: &mut Case, at: At, running: &Ctr) -> Result<()> {
    let init = process::process(running.pid().await?).context("no process")?;
    let monitor = Pid::from_raw(i32::try_from(init.parent)?).context("pid")?;
    kill_process(monitor, Signal::STOP)?;
    let id = running.id.clone();
    let died = die_at(case, at, |cri| async move { cri.stop(&id, 0).await }).await;
    kill_process(monitor, Signal::CONT)?;
    died?;
    stopped(case, running, 0, 137).await
}

pub(super) async fn remove_container(case: &mut Case) -> Result<()> {
    let (pod, before) = start(case).await?;
    each!("remove_container", at => {
        let pod = again(case, &pod)?;
        match at.0 {
            "monitor.asked.after" => remove_created_at(case, at, &pod).await?,
            _ => remove_at(case, at, &pod).await?,
        }
        clean(case, &before).await
    });
    Ok(())
}

async fn remove_at(case: &mut Case, at: At, pod: &Pod) -> Result<()> {
    let ended = pod
        .start(&full_container("echo one; echo two; exit 7"))
        .await?;
    ended_well(&ended).await?;
    let id = ended.id.clone();
    die_at(case, at, |cri| async move { cri.remove(&id).await }).await?;
    let container = anew(case, &ended)?;
    for left in container.cri.list_containers(None).await? {
        ensure_eq!(left.id, container.id);
        ended_well(&container).await?;
    }
    container.cri.remove(&container.id).await?;
    ensure_eq!(container.stdout()?, "one\ntwo\n");
    Ok(())
}

async fn remove_created_at(case: &mut Case, at: At, pod: &Pod) -> Result<()> {
    let created = pod.create(&full_container("exec sleep 4321")).await?;
    let id = created.id.clone();
    die_at(case, at, |cri| async move { cri.remove(&id).await }).await?;
    let container = anew(case, &created)?;
    Ok(container.cri.remove(&container.id).await?)
}

pub(super) async fn exec_sync(case: &mut Case) -> Result<()> {
    let (pod, before) = start(case).await?;
    each!("exec_sync", at => {
        let running = again(case, &pod)?.start(&full_container("exec sleep 4321")).await?;
        exec_at(case, at, &running).await?;
        clean(case, &before).await
    });
    Ok(())
}

async fn exec_at(case: &mut Case, at: At, running: &Ctr) -> Result<()> {
    let pid = running.pid().await?;
    let marker = format!("43210{:05}", unique());
    let command = match at.0 {
        "exec_sync.end.after" => "true".to_owned(),
        // Out of its session, where only its cgroup holds it.
        _ => format!("setsid sleep {marker} & sleep {marker}"),
    };
    let id = running.id.clone();
    die_at(case, at, |cri| async move {
        cri.exec(&id, &["sh", "-c", &command], 0).await
    })
    .await?;
    let container = anew(case, running)?;
    let left = || {
        process::all()
            .into_iter()
            .filter(|one| one.command.contains(&marker))
    };
    for attempt in 0..100 {
        if left().next().is_none() {
            break;
        }
        ensure!(attempt < 99, "the command outlives its caller");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure_eq!(container.sh("echo again").await?, "again\n");
    ensure_eq!(container.pid().await?, pid);
    Ok(container.cri.remove(&container.id).await?)
}

pub(super) async fn reopen_log(case: &mut Case) -> Result<()> {
    let (pod, before) = start(case).await?;
    each!("reopen_log", at => {
        let running = again(case, &pod)?
            .start(&full_container(
                "i=0; trap 'echo $i; exit 0' TERM; while :; do echo $i; i=$((i+1)); sleep 0.01; done",
            ))
            .await?;
        running.wait_for_log("10").await?;
        reopen_at(case, at, &running).await?;
        clean(case, &before).await
    });
    Ok(())
}

async fn reopen_at(case: &mut Case, at: At, running: &Ctr) -> Result<()> {
    let old = running.log.with_extension("old");
    std::fs::rename(&running.log, &old)?;
    let id = running.id.clone();
    die_at(case, at, |cri| async move { cri.reopen_log(&id).await }).await?;
    let container = anew(case, running)?;
    container.cri.reopen_log(&container.id).await?;
    ensure!(container.log.exists(), "the new file is not there");
    container.wait_for_log(" stdout F ").await?;
    container.cri.stop(&container.id, 10).await?;
    ensure_eq!(container.status().await?.exit_code, 0);
    let rotated = Ctr {
        log: old,
        ..container.clone()
    };
    let text = rotated.stdout()? + &container.stdout()?;
    let numbers: Vec<usize> = text
        .lines()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| format!("no numbers: {text}"))?;
    // The last one may be said twice: by the loop, and by the trap that comes between it and the next.
    let expected: Vec<usize> = (0..numbers.len()).collect();
    let last = numbers.len().saturating_sub(1);
    let whole = numbers == expected || numbers[..last] == expected[..last];
    ensure!(whole, "lines are lost, or there twice: {numbers:?}");
    Ok(container.cri.remove(&container.id).await?)
}
