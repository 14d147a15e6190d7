//! The daemon dies or is restarted; pods do not notice, and nothing about them is forgotten.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::cri::Cri;
use berth_tests::pods::{Ctr, Pod, pod_config, script};
use berth_tests::runner::{Case, Test};
use berth_tests::{ensure_eq, machine, process, test};
use rustix::process::{Pid, Signal, kill_process};

pub(crate) const TESTS: &[Test] = &[
    test!(kill_nine_keeps_everything),
    test!(graceful_stop_keeps_everything),
    test!(exit_while_the_daemon_is_dead).berth_only("containerd 2.4 reports 255 here"),
    test!(log_goes_on_without_the_daemon),
    test!(out_of_memory_while_the_daemon_is_dead)
        .berth_only("containerd's shim reports it to nobody"),
    test!(pause_dies_while_the_daemon_is_dead),
    test!(exec_and_update_after_a_restart),
    test!(monitor_dies).berth_only("containerd's shims are not these"),
    test!(kill_in_the_middle_of_creates).berth_only("containerd leaves half of them broken"),
    test!(fifty_pods_in_a_second)
        .alone()
        .berth_only("the limit is Berth's"),
];

/// Everything that is reported about a machine's pods and containers.
async fn picture(cri: &Cri) -> Result<(Vec<PodSandboxStatus>, Vec<ContainerStatus>)> {
    let mut pods = Vec::new();
    for pod in cri.list_pods(None).await? {
        pods.push(cri.pod_status(&pod.id).await?);
    }
    let mut containers = Vec::new();
    for container in cri.list_containers(None).await? {
        containers.push(cri.container_status(&container.id).await?);
    }
    pods.sort_by(|a, b| a.id.cmp(&b.id));
    containers.sort_by(|a, b| a.id.cmp(&b.id));
    Ok((pods, containers))
}

async fn some_of_everything(case: &mut Case) -> Result<Vec<Ctr>> {
    let pod = case.pod().await?;
    let running = pod.start(&script("exec sleep 4321")).await?;
    let created = pod.create(&script("echo late")).await?;
    let exited = pod.start(&script("exit 3")).await?;
    exited.wait().await?;
    let stopped = Pod::run(&pod.cri, pod_config(case.instance()?, "stopped")).await?;
    stopped.start(&script("exec sleep 4321")).await?;
    stopped.cri.stop_pod(&stopped.id).await?;
    Ok(vec![running, created, exited])
}

async fn reopened(case: &mut Case, mut container: Ctr) -> Result<Ctr> {
    container.cri = case.instance()?.cri()?.clone();
    Ok(container)
}

async fn same_after(case: &mut Case, kill: bool) -> Result<()> {
    let containers = some_of_everything(case).await?;
    let pid = containers[0].pid().await?;
    let before = picture(case.cri()?).await?;
    let instance = case.instance()?;
    if kill {
        instance.kill().await?;
    } else {
        instance.terminate().await?;
    }
    ensure!(process::alive(pid), "the container died with the daemon");
    instance.launch().await?;
    let after = picture(case.cri()?).await?;
    ensure_eq!(after.0, before.0);
    ensure_eq!(after.1, before.1);
    ensure!(
        process::alive(pid),
        "the container died when the daemon came back"
    );
    let created = reopened(case, containers[1].clone()).await?;
    created.cri.start(&created.id).await?;
    created.wait().await?;
    ensure_eq!(created.stdout()?, "late\n");
    Ok(())
}

async fn kill_nine_keeps_everything(case: &mut Case) -> Result<()> {
    same_after(case, true).await
}

async fn graceful_stop_keeps_everything(case: &mut Case) -> Result<()> {
    same_after(case, false).await
}

async fn exit_while_the_daemon_is_dead(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod.start(&script("sleep 1; exit 23")).await?;
    case.instance()?.kill().await?;
    let dead = Instant::now();
    // So long that its end cannot be taken for the daemon's return.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    case.instance()?.launch().await?;
    let status = reopened(case, running).await?.wait().await?;
    ensure_eq!((status.exit_code, status.reason.as_str()), (23, "Error"));
    let lived = status.finished_at - status.started_at;
    ensure!(
        lived < 2_000_000_000,
        "its end is dated {lived} ns late (dead for {:?})",
        dead.elapsed()
    );
    Ok(())
}

async fn log_goes_on_without_the_daemon(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod
        .start(&script(
            "i=0; while [ $i -lt 150 ]; do echo $i; i=$((i+1)); sleep 0.01; done",
        ))
        .await?;
    running.wait_for_log("10").await?;
    case.instance()?.kill().await?;
    running.wait_for_log("100").await?;
    case.instance()?.launch().await?;
    let running = reopened(case, running).await?;
    running.wait().await?;
    let expected: String = (0..150).map(|number| format!("{number}\n")).collect();
    ensure_eq!(running.stdout()?, expected);
    Ok(())
}

async fn out_of_memory_while_the_daemon_is_dead(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("sleep 1; exec dd if=/dev/zero of=/dev/null bs=64M count=9");
    berth_tests::pods::resources(&mut config).memory_limit_in_bytes = 16 << 20;
    let running = pod.start(&config).await?;
    let pid = running.pid().await?;
    case.instance()?.kill().await?;
    process::gone(pid).await?;
    case.instance()?.launch().await?;
    let status = reopened(case, running).await?.wait().await?;
    ensure_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    Ok(())
}

async fn pause_dies_while_the_daemon_is_dead(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let pause = berth_tests::pods::pid_of(&pod.cri.pod_status_verbose(&pod.id).await?.info)?;
    case.instance()?.kill().await?;
    kill_process(
        Pid::from_raw(i32::try_from(pause)?).context("pid")?,
        Signal::KILL,
    )?;
    process::gone(pause).await?;
    case.instance()?.launch().await?;
    let cri = case.cri()?;
    ensure_eq!(
        cri.pod_status(&pod.id).await?.state(),
        PodSandboxState::SandboxNotready
    );
    cri.stop_pod(&pod.id).await?;
    cri.remove_pod(&pod.id).await?;
    Ok(())
}

async fn exec_and_update_after_a_restart(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod
        .start(&script("trap 'exit 6' TERM; while :; do sleep 0.05; done"))
        .await?;
    case.instance()?.kill().await?;
    case.instance()?.launch().await?;
    let running = reopened(case, running).await?;
    ensure_eq!(running.sh("echo hello").await?, "hello\n");
    let limits = LinuxContainerResources {
        cpu_shares: 300,
        ..LinuxContainerResources::default()
    };
    running.cri.update(&running.id, limits).await?;
    running.cri.stop(&running.id, 10).await?;
    ensure_eq!(running.status().await?.exit_code, 6);
    Ok(())
}

async fn monitor_dies(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod
        .start(&script("trap '' TERM; while :; do sleep 1; done"))
        .await?;
    let pid = running.pid().await?;
    let monitor = process::process(pid).context("no process")?.parent;
    ensure!(
        Some(monitor) != case.instance()?.pid(),
        "the daemon is the container's parent"
    );
    kill_process(
        Pid::from_raw(i32::try_from(monitor)?).context("pid")?,
        Signal::KILL,
    )?;
    let status = running.wait().await?;
    ensure_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    ensure!(!status.message.is_empty(), "no message");
    ensure!(
        !process::alive(pid),
        "the container lives on without its monitor"
    );
    Ok(())
}

/// Killed again and again under a client that repeats its calls: in the end there is one pod of each name, and it works.
async fn kill_in_the_middle_of_creates(case: &mut Case) -> Result<()> {
    case.start().await?;
    for round in 0_u64..10 {
        let config = pod_config(case.instance()?, &format!("round{round}"));
        let cri = case.cri()?.clone();
        let call = tokio::spawn({
            let config = config.clone();
            async move { cri.run_pod(&config).await }
        });
        tokio::time::sleep(Duration::from_millis(2 + 7 * round)).await;
        case.instance()?.kill().await?;
        let _ = call.await;
        case.instance()?.launch().await?;
        let cri = case.cri()?.clone();
        // A kubelet lists first: a ready pod of that name is taken, anything else is stopped and removed.
        let mut id = None;
        for pod in cri.list_pods(None).await? {
            if pod.state() == PodSandboxState::SandboxReady {
                id = Some(pod.id);
            } else {
                cri.stop_pod(&pod.id).await?;
                cri.remove_pod(&pod.id).await?;
            }
        }
        let id = match id {
            Some(id) => id,
            None => cri
                .run_pod(&config)
                .await
                .with_context(|| format!("round {round}"))?,
        };
        ensure_eq!(cri.list_pods(None).await?.len(), 1);
        let pod = Pod { cri, id, config };
        ensure_eq!(pod.output_of(&script("echo works")).await?, "works\n");
        pod.remove().await?;
    }
    Ok(())
}

async fn fifty_pods_in_a_second(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let cri = instance.cri()?.clone();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..50 {
        let (cri, config) = (cri.clone(), pod_config(instance, &format!("p{number}")));
        tasks.spawn(async move {
            let pod = Pod::run(&cri, config).await?;
            pod.start(&script("exec sleep 4321")).await
        });
    }
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    let before = picture(&cri).await?;
    let instance = case.instance()?;
    instance.kill().await?;
    let took = instance.launch().await?;
    println!("restart: ready after {took:?} at 50 pods");
    ensure_eq!(picture(case.cri()?).await?, before);
    let limit = Duration::from_secs(1) * machine::slowness();
    ensure!(took < limit, "ready after {took:?}: more than {limit:?}");
    Ok(())
}
