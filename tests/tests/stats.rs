//! Statistics: figures that move as the kernel's own do, filters, and lists that nothing makes fail.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::pods::{Ctr, Pod, pod_config, resources, script, use_host_network};
use berth_tests::runner::{Case, Test};
use berth_tests::{ensure_eq, process, test};
use tonic::Code;

pub(crate) const TESTS: &[Test] = &[
    test!(figures_of_a_container_are_the_kernels)
        .berth_only("containerd gives no rate for a single container"),
    test!(filters_choose),
    test!(created_and_exited_containers)
        .berth_only("containerd does not measure created containers"),
    test!(a_pod_is_measured_whole).berth_only("containerd lists the pod's exited containers too"),
    test!(pods_that_share_a_cgroup_are_apart)
        .berth_only("containerd counts all of a shared parent for each"),
    test!(traffic_of_a_pod).berth_only("containerd leaves a pod's parent cgroup behind"),
    test!(streams_are_lists),
    test!(lists_never_fail_while_containers_come_and_go)
        .berth_only("containerd refuses to remove a running container"),
    test!(figures_go_on_after_a_restart),
];

const MIB: u64 = 1 << 20;

fn value(number: &Option<UInt64Value>) -> Result<u64> {
    Ok(number.as_ref().context("a figure is missing")?.value)
}

/// CPU time in nanoseconds, as the kernel shows it now.
fn cpu_time(pid: u32) -> Result<u64> {
    let text = |path: String| std::fs::read_to_string(&path).with_context(|| path);
    if let Some(path) = process::cgroup_of(pid, "cpuacct") {
        let text = text(format!("/sys/fs/cgroup/cpuacct{path}/cpuacct.usage"))?;
        return Ok(text.trim().parse()?);
    }
    let path = process::cgroup_of(pid, "").context("no cgroup")?;
    let text = text(format!("/sys/fs/cgroup{path}/cpu.stat"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("usage_usec "));
    Ok(line.context("no usage_usec")?.parse::<u64>()? * 1000)
}

fn has_pressure() -> bool {
    !Path::new("/sys/fs/cgroup/memory").exists() && Path::new("/proc/pressure/cpu").exists()
}

fn ids(stats: &[ContainerStats]) -> Vec<String> {
    let ids = stats.iter().map(|one| {
        let attributes = one.attributes.clone().unwrap_or_default();
        attributes.id
    });
    let mut ids: Vec<String> = ids.collect();
    ids.sort();
    ids
}

/// A container that spins, holds some memory and has written 3 MiB.
fn busy() -> ContainerConfig {
    let mut config = script(
        "head -c 3145728 /dev/urandom > /written; x=$(head -c 4000000 /dev/zero | tr '\\0' x); \
         echo busy; while :; do :; done",
    );
    resources(&mut config).memory_limit_in_bytes = 64 << 20;
    resources(&mut config).cpu_period = 100_000;
    resources(&mut config).cpu_quota = 50_000;
    config.labels = [("kind".to_owned(), "busy".to_owned())].into();
    config.annotations = [("note".to_owned(), "n".to_owned())].into();
    config
}

/// Asks until the answer has what is wanted, for a machine on which everything takes long.
async fn until(
    container: &Ctr,
    what: &str,
    wanted: impl Fn(&ContainerStats) -> bool,
) -> Result<ContainerStats> {
    let start = Instant::now();
    loop {
        let stats = container.cri.container_stats(&container.id).await?;
        if wanted(&stats) {
            return Ok(stats);
        }
        ensure!(
            start.elapsed() < Duration::from_secs(60),
            "never {what}: {stats:?}"
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

async fn figures_of_a_container_are_the_kernels(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let config = busy();
    let container = pod.start(&config).await?;
    container.wait_for_log("busy").await?;
    let pid = container.pid().await?;
    let before = cpu_time(pid)?;
    let stats = pod.cri.container_stats(&container.id).await?;
    let after = cpu_time(pid)?;

    let attributes = stats.attributes.context("no attributes")?;
    ensure_eq!(attributes.id, container.id);
    ensure_eq!(attributes.metadata, config.metadata);
    ensure_eq!(attributes.labels, config.labels);
    ensure_eq!(attributes.annotations, config.annotations);

    let cpu = stats.cpu.context("no cpu")?;
    let spent = value(&cpu.usage_core_nano_seconds)?;
    ensure!(
        (before..=after).contains(&spent),
        "{spent} ns of CPU time is not between {before} and {after}"
    );
    ensure!(cpu.timestamp > 1_600_000_000_000_000_000, "{cpu:?}");

    let memory = stats.memory.context("no memory")?;
    let usage = value(&memory.usage_bytes)?;
    let working_set = value(&memory.working_set_bytes)?;
    ensure!((3 * MIB..=64 * MIB).contains(&usage), "{memory:?}");
    ensure!(working_set <= usage && working_set >= 3 * MIB, "{memory:?}");
    ensure_eq!(value(&memory.available_bytes)?, 64 * MIB - working_set);
    let rss = value(&memory.rss_bytes)?;
    ensure!((3 * MIB..=usage).contains(&rss), "{memory:?}");
    ensure!(value(&memory.page_faults)? > 100, "{memory:?}");
    ensure!(memory.major_page_faults.is_some(), "{memory:?}");
    ensure_eq!(cpu.psi.is_some(), has_pressure());
    ensure_eq!(memory.psi.is_some(), has_pressure());
    ensure_eq!(stats.io.is_some_and(|io| io.psi.is_some()), has_pressure());
    if let Some(psi) = cpu.psi {
        ensure!(psi.full.is_some() && psi.some.is_some(), "{psi:?}");
    }

    // Half a CPU is what it may have; a loaded machine gives less.
    let moved = until(&container, "a rate", |stats| {
        let cpu = stats.cpu.as_ref().and_then(|cpu| cpu.usage_nano_cores);
        cpu.is_some_and(|rate| rate.value > 10_000_000)
    })
    .await?;
    let cpu = moved.cpu.context("no cpu")?;
    ensure!(value(&cpu.usage_core_nano_seconds)? > spent);
    ensure!(value(&cpu.usage_nano_cores)? < 1_000_000_000, "{cpu:?}");

    let written = until(&container, "3 MiB written", |stats| {
        let layer = stats.writable_layer.clone().unwrap_or_default();
        layer.used_bytes.is_some_and(|used| used.value >= 3 * MIB)
    })
    .await?;
    let layer = written.writable_layer.context("no writable layer")?;
    ensure!(value(&layer.used_bytes)? < 8 * MIB, "{layer:?}");
    ensure!((2..50).contains(&value(&layer.inodes_used)?), "{layer:?}");
    let mountpoint = layer.fs_id.context("no file system")?.mountpoint;
    ensure!(Path::new(&mountpoint).is_dir(), "{mountpoint}");
    Ok(())
}

async fn filters_choose(case: &mut Case) -> Result<()> {
    let first = case.pod().await?;
    let instance = case.instance()?;
    let second = Pod::run(instance.cri()?, pod_config(instance, "second")).await?;
    let cri = first.cri.clone();
    let mut config = script("exec sleep 4321");
    config.labels = [("a".to_owned(), "1".to_owned())].into();
    let one = first.start(&config).await?;
    let two = first.start(&script("exec sleep 4321")).await?;
    let three = second.start(&config_again(config)).await?;
    let mut all = vec![one.id.clone(), two.id.clone(), three.id.clone()];
    all.sort();
    let labels = |value: &str| [("a".to_owned(), value.to_owned())].into();
    let filter = |id: &str, pod: &str, value: Option<&str>| ContainerStatsFilter {
        id: id.to_owned(),
        pod_sandbox_id: pod.to_owned(),
        label_selector: value.map(labels).unwrap_or_default(),
    };
    let mut of_first = vec![one.id.clone(), two.id.clone()];
    of_first.sort();
    for (filter, expected) in [
        (None, all.clone()),
        (Some(filter("", "", None)), all),
        (Some(filter(&one.id, "", None)), vec![one.id.clone()]),
        (Some(filter(&one.id[..20], "", None)), vec![one.id.clone()]),
        (Some(filter("", &first.id, None)), of_first),
        (
            Some(filter("", &second.id[..20], None)),
            vec![three.id.clone()],
        ),
        (Some(filter("", &first.id, Some("1"))), vec![one.id.clone()]),
        (Some(filter("", "", Some("2"))), vec![]),
        (Some(filter(&one.id, &second.id, None)), vec![]),
        (Some(filter("no-such", "", None)), vec![]),
    ] {
        let stats = cri.list_container_stats(filter.clone()).await?;
        ensure!(ids(&stats) == expected, "{filter:?} gave {:?}", ids(&stats));
    }
    let pods = |id: &str, value: Option<&str>| PodSandboxStatsFilter {
        id: id.to_owned(),
        label_selector: value
            .map(|v| [("app".to_owned(), v.to_owned())].into())
            .unwrap_or_default(),
    };
    for (filter, expected) in [
        (pods("", None), 2),
        (pods(&first.id[..20], None), 1),
        (pods("", Some("second")), 1),
        (pods(&first.id, Some("second")), 0),
        (pods("no-such", None), 0),
    ] {
        ensure_eq!(cri.list_pod_stats(Some(filter)).await?.len(), expected);
    }
    let unknown = "f".repeat(64);
    let error = cri.container_stats(&unknown).await.err();
    ensure_eq!(error.context("an answer")?.code(), Code::NotFound);
    let error = cri.pod_stats(&unknown).await.err();
    ensure_eq!(error.context("an answer")?.code(), Code::NotFound);
    Ok(())
}

/// The same container under another name.
fn config_again(config: ContainerConfig) -> ContainerConfig {
    let other = script("");
    ContainerConfig {
        metadata: other.metadata,
        log_path: other.log_path,
        labels: Default::default(),
        ..config
    }
}

async fn created_and_exited_containers(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let created = pod.create(&script("exec sleep 4321")).await?;
    let ended = pod
        .start(&script("head -c 2097152 /dev/zero > /left"))
        .await?;
    ended.wait().await?;
    let stats = pod.cri.list_container_stats(None).await?;
    let find = |container: &Ctr| {
        let mut found = stats.iter().filter(|one| {
            let attributes = one.attributes.as_ref();
            attributes.is_some_and(|a| a.id == container.id)
        });
        found.next().cloned().context("it is not listed")
    };
    let waiting = find(&created)?;
    ensure!(
        waiting.cpu.is_some() && waiting.memory.is_some(),
        "{waiting:?}"
    );
    let over = find(&ended)?;
    ensure!(over.cpu.is_none() && over.memory.is_none(), "{over:?}");
    ensure!(pod.cri.container_stats(&created.id).await.is_ok());
    let error = pod.cri.container_stats(&ended.id).await.err();
    let error = error.context("a container that is over has statistics")?;
    ensure!(error.code() != Code::NotFound, "{error}");
    let over = pod.cri.list_container_stats(None).await?;
    let layers = over.iter().filter_map(|one| one.writable_layer.as_ref());
    let largest = layers.filter_map(|layer| layer.used_bytes).map(|b| b.value);
    ensure!(largest.max() >= Some(2 * MIB), "{over:?}");
    Ok(())
}

/// A pod with a cgroup of its own, as a kubelet makes it.
async fn pod_of_its_own(case: &mut Case, name: &str) -> Result<Pod> {
    let instance = case.instance()?;
    let mut config = pod_config(instance, name);
    // A slice holds a scope for each pod anyway.
    if let Some(linux) = &mut config.linux
        && !linux.cgroup_parent.ends_with(".slice")
    {
        linux.cgroup_parent = format!("{}/{name}", linux.cgroup_parent);
    }
    Pod::run(instance.cri()?, config).await
}

fn linux(stats: &PodSandboxStats) -> Result<&LinuxPodSandboxStats> {
    stats.linux.as_ref().context("no linux part")
}

async fn a_pod_is_measured_whole(case: &mut Case) -> Result<()> {
    case.start().await?;
    let pod = pod_of_its_own(case, "whole").await?;
    let cri = pod.cri.clone();
    let running = pod.start(&busy()).await?;
    running.wait_for_log("busy").await?;
    let ended = pod.start(&script("true")).await?;
    ended.wait().await?;
    let alone = cri.container_stats(&running.id).await?;
    let stats = cri.pod_stats(&pod.id).await?;
    let attributes = stats.attributes.clone().context("no attributes")?;
    ensure_eq!(attributes.metadata, pod.config.metadata);
    ensure_eq!(attributes.labels, pod.config.labels);
    ensure_eq!(attributes.annotations, pod.config.annotations);
    ensure!(stats.windows.is_none());
    let whole = linux(&stats)?;
    ensure_eq!(ids(&whole.containers), vec![running.id.clone()]);
    let spent =
        |cpu: &Option<CpuUsage>| value(&cpu.as_ref().context("no cpu")?.usage_core_nano_seconds);
    ensure!(spent(&whole.cpu)? >= spent(&alone.cpu)?, "{whole:?}");
    let memory = whole.memory.context("no memory")?;
    ensure!(value(&memory.usage_bytes)? > 3 * MIB, "{memory:?}");
    ensure!(value(&memory.rss_bytes)? > 3 * MIB, "{memory:?}");
    let processes = whole.process.context("no process count")?;
    // pause and the shell.
    ensure!(
        (2..10).contains(&value(&processes.process_count)?),
        "{processes:?}"
    );
    ensure_eq!(whole.io.is_some(), has_pressure());
    let start = Instant::now();
    loop {
        let stats = cri.list_pod_stats(None).await?;
        ensure_eq!(stats.len(), 1);
        let cpu = linux(&stats[0])?.cpu.context("no cpu")?;
        if cpu.usage_nano_cores.is_some_and(|rate| rate.value > 0) {
            break;
        }
        ensure!(start.elapsed() < Duration::from_secs(60), "{cpu:?}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    cri.stop_pod(&pod.id).await?;
    ensure!(cri.list_pod_stats(None).await?.is_empty());
    ensure!(cri.pod_stats(&pod.id).await.is_err(), "it is stopped");
    Ok(())
}

async fn pods_that_share_a_cgroup_are_apart(case: &mut Case) -> Result<()> {
    let idle = case.pod().await?;
    let instance = case.instance()?;
    let other = Pod::run(instance.cri()?, pod_config(instance, "other")).await?;
    idle.start(&script("exec sleep 4321")).await?;
    let spinning = other.start(&busy()).await?;
    spinning.wait_for_log("busy").await?;
    let stats = idle.cri.pod_stats(&idle.id).await?;
    let memory = linux(&stats)?.memory.context("no memory")?;
    ensure!(value(&memory.rss_bytes)? < 3 * MIB, "{memory:?}");
    let stats = idle.cri.pod_stats(&other.id).await?;
    let memory = linux(&stats)?.memory.context("no memory")?;
    ensure!(value(&memory.rss_bytes)? > 3 * MIB, "{memory:?}");
    let processes = linux(&stats)?.process.context("no process count")?;
    ensure_eq!(value(&processes.process_count)?, 2);
    Ok(())
}

async fn traffic_of_a_pod(case: &mut Case) -> Result<()> {
    case.start().await?;
    let pod = pod_of_its_own(case, "traffic").await?;
    let serving = pod
        .start(&script(
            "head -c 1000000 /dev/zero > /f; cd /; httpd -f -p 80 -h / & echo up; wait",
        ))
        .await?;
    serving.wait_for_log("up").await?;
    let peer = pod_of_its_own(case, "peer").await?;
    let client = peer.start(&script("exec sleep 4321")).await?;
    let fetch = format!(
        "for i in 1 2 3 4 5 6 7 8 9; do wget -q -O /dev/null http://{}/f && exit 0; sleep 1; done; exit 1",
        pod.ip().await?
    );
    client.sh(&fetch).await?;
    let stats = pod.cri.pod_stats(&pod.id).await?;
    let network = linux(&stats)?.network.clone().context("no network")?;
    let eth0 = network.default_interface.context("no default interface")?;
    ensure_eq!(eth0.name, "eth0");
    let (sent, received) = (value(&eth0.tx_bytes)?, value(&eth0.rx_bytes)?);
    // What was fetched went out, and its acknowledgements came in.
    ensure!(sent >= 1_000_000, "{eth0:?}");
    ensure!((100..sent).contains(&received), "{eth0:?}");
    ensure!(eth0.rx_errors.is_some() && eth0.tx_errors.is_some());
    ensure!(network.interfaces.iter().all(|one| one.name != "lo"));

    let instance = case.instance()?;
    let mut config = pod_config(instance, "host");
    use_host_network(&mut config);
    let host = Pod::run(instance.cri()?, config).await?;
    let stats = host.cri.pod_stats(&host.id).await?;
    ensure!(linux(&stats)?.network.is_none(), "{stats:?}");
    Ok(())
}

async fn streams_are_lists(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let container = pod.start(&script("exec sleep 4321")).await?;
    let mut runtime = pod.cri.runtime.clone();
    let request = StreamContainerStatsRequest::default();
    let mut stream = runtime.stream_container_stats(request).await?.into_inner();
    let mut found = Vec::new();
    while let Some(message) = stream.message().await? {
        found.extend(ids(&message.container_stats));
    }
    ensure_eq!(found, vec![container.id]);
    let request = StreamPodSandboxStatsRequest::default();
    let mut stream = runtime
        .stream_pod_sandbox_stats(request)
        .await?
        .into_inner();
    let mut found = Vec::new();
    while let Some(message) = stream.message().await? {
        let pods = message.pod_sandbox_stats.into_iter();
        found.extend(pods.filter_map(|one| one.attributes).map(|a| a.id));
    }
    ensure_eq!(found, vec![pod.id]);
    Ok(())
}

async fn lists_never_fail_while_containers_come_and_go(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let steady = pod.start(&script("exec sleep 4321")).await?;
    let churn = tokio::spawn({
        let pod = pod.clone();
        async move {
            for _ in 0..25 {
                let container = pod.start(&script("true")).await?;
                pod.cri.remove(&container.id).await?;
            }
            anyhow::Ok(())
        }
    });
    let mut rounds = 0;
    while !churn.is_finished() || rounds < 50 {
        let stats = pod.cri.list_container_stats(None).await?;
        ensure!(ids(&stats).contains(&steady.id), "{stats:?}");
        ensure!(stats.iter().all(|one| one.attributes.is_some()));
        let pods = pod.cri.list_pod_stats(None).await?;
        ensure_eq!(pods.len(), 1);
        rounds += 1;
    }
    churn.await?
}

async fn figures_go_on_after_a_restart(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let container = pod.start(&busy()).await?;
    container.wait_for_log("busy").await?;
    let spent = |stats: &ContainerStats| {
        value(
            &stats
                .cpu
                .as_ref()
                .context("no cpu")?
                .usage_core_nano_seconds,
        )
    };
    let before = pod.cri.container_stats(&container.id).await?;
    let instance = case.instance()?;
    instance.kill().await?;
    instance.launch().await?;
    let cri = instance.cri()?.clone();
    let after = cri.container_stats(&container.id).await?;
    ensure!(spent(&after)? >= spent(&before)?, "{before:?} {after:?}");
    ensure!(after.writable_layer.is_some(), "{after:?}");
    let stats = cri.pod_stats(&pod.id).await?;
    ensure!(linux(&stats)?.network.is_some(), "{stats:?}");
    Ok(())
}
