//! Pods: run, stopped, removed.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::ensure_eq;
use berth_tests::leak::Snapshot;
use berth_tests::pods::{Ctr, Pod, namespaces, script};
use berth_tests::runner::Case;
use berth_tests::runtime::Net;
use rustix::process::{Signal, kill_process};

use super::{
    At, again, anew, arm, die_at, dies, each, freeze, full_container, full_pod, options, take_pod,
};

const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn run_pod(case: &mut Case) -> Result<()> {
    let options = options(case, Net::Builtin)?;
    case.start_with(options).await?;
    each!("run_pod", at => run_at(case, at).await);
    Ok(())
}

/// The worker does what it was asked for by a daemon that is dead by then, after the next one has undone the pod.
pub(super) async fn late_worker(case: &mut Case) -> Result<()> {
    let options = options(case, Net::Builtin)?;
    case.start_with(options).await?;
    for points in [
        "run_pod.worker.after=sleep(3000);run_pod.worker_asked.after=return",
        "run_pod.filter.after=sleep(3000);run_pod.worker_asked.after=1*off->return",
    ] {
        let before = case.instance()?.snapshot();
        let mut config = full_pod(case, "pod")?;
        let context = config
            .linux
            .as_mut()
            .and_then(|linux| linux.security_context.as_mut());
        // Its pause needs nothing that the next daemon takes away.
        context.context("no security context")?.namespace_options =
            Some(namespaces(NamespaceMode::Pod, NamespaceMode::Node));
        let wanted = config.clone();
        let cri = arm(case, points.to_owned()).await?;
        let call = tokio::spawn(async move { cri.run_pod(&wanted).await });
        let worker = freeze(case, "berth-worker").await?;
        dies(case, call).await?;
        case.instance()?.launch().await?;
        let pod = take_pod(case, &config).await?;
        kill_process(worker, Signal::CONT)?;
        ensure_eq!(pod.output_of(&script("echo works")).await?, "works\n");
        pod.remove().await?;
        clean(case, &before).await.context(points)?;
    }
    Ok(())
}

/// With plugins, both when a pod is run and when it is stopped.
pub(super) async fn cni(case: &mut Case) -> Result<()> {
    let options = options(case, Net::Cni)?;
    case.start_with(options).await?;
    each!("cni", at => match at.0 {
        "cni.delete.after" => stop_at(case, at).await,
        _ => run_at(case, at).await,
    });
    Ok(())
}

/// What all pods share is made for the first one, and goes with a daemon that ends while there is none.
pub(super) async fn first_pod(case: &mut Case) -> Result<()> {
    let options = options(case, Net::Builtin)?;
    case.start_with(options).await?;
    each!("first_pod", at => {
        let instance = case.instance()?;
        instance.terminate().await?;
        instance.launch().await?;
        run_at(case, at).await
    });
    Ok(())
}

async fn run_at(case: &mut Case, at: At) -> Result<()> {
    let before = case.instance()?.snapshot();
    let config = full_pod(case, "pod")?;
    let wanted = config.clone();
    die_at(case, at, |cri| async move { cri.run_pod(&wanted).await }).await?;
    let pod = take_pod(case, &config).await?;
    ensure_eq!(case.cri()?.list_pods(None).await?.len(), 1);
    ensure_eq!(pod.output_of(&script("echo works")).await?, "works\n");
    pod.remove().await?;
    // Of the network what is shared stays, and it was there or not.
    let shared = case.instance()?.snapshot();
    let before = if at.0.starts_with("first_pod") {
        shared
    } else {
        before
    };
    clean(case, &before).await
}

async fn clean(case: &mut Case, before: &Snapshot) -> Result<()> {
    case.instance()?.expect_clean(before, PATIENCE).await
}

/// A pod with a container that runs and one that has ended.
async fn inhabited(case: &mut Case) -> Result<(Pod, Ctr, Ctr)> {
    let config = full_pod(case, "pod")?;
    let pod = Pod::run(case.cri()?, config).await?;
    let ended = pod.start(&full_container("echo gone; exit 5")).await?;
    ended.wait().await?;
    let running = pod
        .start(&full_container("echo up; exec sleep 4321"))
        .await?;
    running.wait_for_log("up").await?;
    Ok((pod, running, ended))
}

/// Their exit codes and logs, where they are still there.
async fn remembered(case: &Case, running: &Ctr, ended: &Ctr) -> Result<()> {
    for container in case.cri()?.list_containers(None).await? {
        let of_ended = container.id == ended.id;
        let (one, code) = if of_ended { (ended, 5) } else { (running, 137) };
        ensure_eq!(container.id, one.id);
        let status = anew(case, one)?.wait().await?;
        ensure_eq!(status.exit_code, code);
    }
    ensure_eq!(ended.stdout()?, "gone\n");
    ensure_eq!(running.stdout()?, "up\n");
    Ok(())
}

pub(super) async fn stop_pod(case: &mut Case) -> Result<()> {
    let options = options(case, Net::Builtin)?;
    case.start_with(options).await?;
    each!("stop_pod", at => stop_at(case, at).await);
    Ok(())
}

async fn stop_at(case: &mut Case, at: At) -> Result<()> {
    let before = case.instance()?.snapshot();
    let (pod, running, ended) = inhabited(case).await?;
    let id = pod.id.clone();
    die_at(case, at, |cri| async move { cri.stop_pod(&id).await }).await?;
    let pod = again(case, &pod)?;
    ensure_eq!(pod.cri.list_pods(None).await?.len(), 1);
    pod.cri.stop_pod(&pod.id).await?;
    let state = pod.cri.pod_status(&pod.id).await?.state();
    ensure_eq!(state, PodSandboxState::SandboxNotready);
    ensure_eq!(pod.cri.list_containers(None).await?.len(), 2);
    remembered(case, &running, &ended).await?;
    pod.cri.remove_pod(&pod.id).await?;
    clean(case, &before).await
}

pub(super) async fn remove_pod(case: &mut Case) -> Result<()> {
    let options = options(case, Net::Builtin)?;
    case.start_with(options).await?;
    each!("remove_pod", at => remove_at(case, at).await);
    Ok(())
}

async fn remove_at(case: &mut Case, at: At) -> Result<()> {
    let before = case.instance()?.snapshot();
    let (pod, running, ended) = inhabited(case).await?;
    pod.cri.stop_pod(&pod.id).await?;
    let id = pod.id.clone();
    die_at(case, at, |cri| async move { cri.remove_pod(&id).await }).await?;
    let pod = again(case, &pod)?;
    let left = pod.cri.list_pods(None).await?;
    ensure!(left.iter().all(|one| one.id == pod.id), "{left:?}");
    remembered(case, &running, &ended).await?;
    pod.cri.remove_pod(&pod.id).await?;
    ensure!(pod.cri.list_pods(None).await?.is_empty(), "it is listed");
    let containers = pod.cri.list_containers(None).await?;
    ensure!(containers.is_empty(), "they are listed: {containers:?}");
    clean(case, &before).await
}
