//! Limits, as the kernel's cgroup files show them, at creation and after an update.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::pods::{Ctr, resources, script};
use berth_tests::runner::{Case, Test};
use berth_tests::{ensure_eq, process, test};

pub(crate) const TESTS: &[Test] = &[
    test!(limits_at_creation),
    test!(update_is_in_the_cgroup_files),
    test!(update_of_a_created_container),
    test!(update_that_the_kernel_refuses_changes_nothing),
    test!(cpusets_that_cannot_be).berth_only("the words are Berth's"),
    test!(oom_score),
    test!(status_shows_the_limits),
];

const MIB: i64 = 1024 * 1024;

/// Reads a cgroup file of a container: the v1 name, or the v2 name on a unified machine.
fn read(pid: u32, controller: &str, v1: &str, v2: &str) -> Result<String> {
    let (folder, file) = match process::cgroup_of(pid, controller) {
        Some(path) => (format!("/sys/fs/cgroup/{controller}{path}"), v1),
        None => {
            let path = process::cgroup_of(pid, "").context("no cgroup")?;
            (format!("/sys/fs/cgroup{path}"), v2)
        }
    };
    let file = PathBuf::from(folder).join(file);
    let text = std::fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
    Ok(text.trim().to_owned())
}

fn limited() -> ContainerConfig {
    let mut config = script("exec sleep 4321");
    *resources(&mut config) = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 * MIB,
        memory_swap_limit_in_bytes: 64 * MIB,
        cpuset_cpus: "0".into(),
        ..LinuxContainerResources::default()
    };
    config
}

fn v1() -> bool {
    std::path::Path::new("/sys/fs/cgroup/memory").exists()
}

async fn limits_at_creation(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let pid = pod.start(&limited()).await?.pid().await?;
    ensure_eq!(
        read(pid, "memory", "memory.limit_in_bytes", "memory.max")?,
        (64 * MIB).to_string()
    );
    ensure_eq!(read(pid, "cpuset", "cpuset.cpus", "cpuset.cpus")?, "0");
    if v1() {
        ensure_eq!(read(pid, "cpu", "cpu.cfs_quota_us", "")?, "50000");
        ensure_eq!(read(pid, "cpu", "cpu.shares", "")?, "512");
    } else {
        ensure_eq!(read(pid, "cpu", "", "cpu.max")?, "50000 100000");
        ensure_eq!(read(pid, "memory", "", "memory.swap.max")?, "0");
    }
    Ok(())
}

async fn check_update(pid: u32) -> Result<()> {
    ensure_eq!(
        read(pid, "memory", "memory.limit_in_bytes", "memory.max")?,
        (96 * MIB).to_string()
    );
    let quota = read(pid, "cpu", "cpu.cfs_quota_us", "cpu.max")?;
    ensure!(quota.starts_with("75000"), "the quota is {quota}");
    ensure_eq!(read(pid, "cpuset", "cpuset.cpus", "cpuset.cpus")?, "0");
    Ok(())
}

fn update() -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 75_000,
        memory_limit_in_bytes: 96 * MIB,
        memory_swap_limit_in_bytes: 96 * MIB,
        ..LinuxContainerResources::default()
    }
}

async fn limits(container: &Ctr) -> Result<LinuxContainerResources> {
    let resources = container
        .status()
        .await?
        .resources
        .context("no resources in the status")?;
    resources.linux.context("no linux resources in the status")
}

async fn update_is_in_the_cgroup_files(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod.start(&limited()).await?;
    pod.cri.update(&running.id, update()).await?;
    check_update(running.pid().await?).await?;
    let shown = limits(&running).await?;
    ensure_eq!(
        (shown.cpu_quota, shown.memory_limit_in_bytes),
        (75_000, 96 * MIB)
    );
    ensure_eq!(shown.cpu_shares, 512);
    Ok(())
}

async fn update_of_a_created_container(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let created = pod.create(&limited()).await?;
    pod.cri.update(&created.id, update()).await?;
    pod.cri.start(&created.id).await?;
    check_update(created.pid().await?).await
}

async fn update_that_the_kernel_refuses_changes_nothing(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod.start(&limited()).await?;
    let wrong = LinuxContainerResources {
        cpu_quota: 80_000,
        cpuset_cpus: "4000-4001".into(),
        ..LinuxContainerResources::default()
    };
    ensure!(
        pod.cri.update(&running.id, wrong).await.is_err(),
        "CPUs that are not there were taken"
    );
    let quota = read(running.pid().await?, "cpu", "cpu.cfs_quota_us", "cpu.max")?;
    ensure!(quota.starts_with("50000"), "the quota is {quota}");
    ensure_eq!(limits(&running).await?.cpu_quota, 50_000);
    Ok(())
}

/// At creation and for a living container: the request is to blame, and what there is is said.
async fn cpusets_that_cannot_be(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod.start(&limited()).await?;
    for (cpus, mems, said) in [
        ("99", "", "this machine has CPUs 0"),
        ("0-", "", "this machine has CPUs 0"),
        ("", "9", "this machine has memory nodes 0"),
        ("", "0-", "this machine has memory nodes 0"),
    ] {
        let wrong = LinuxContainerResources {
            cpuset_cpus: cpus.into(),
            cpuset_mems: mems.into(),
            ..LinuxContainerResources::default()
        };
        let mut config = script("true");
        config.metadata.get_or_insert_default().name = "wrong".into();
        *resources(&mut config) = wrong.clone();
        let created = pod.cri.create(&pod.id, &config, &pod.config).await;
        let updated = pod.cri.update(&running.id, wrong).await;
        for error in [created.err(), updated.err()] {
            let error = error.with_context(|| format!("{cpus:?} {mems:?} was taken"))?;
            ensure_eq!(error.code(), tonic::Code::InvalidArgument);
            ensure!(error.message().contains(said), "{error}");
        }
    }
    Ok(())
}

async fn oom_score(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("cat /proc/self/oom_score_adj");
    resources(&mut config).oom_score_adj = 777;
    ensure_eq!(pod.output_of(&config).await?, "777\n");
    Ok(())
}

async fn status_shows_the_limits(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let shown = limits(&pod.start(&limited()).await?).await?;
    ensure_eq!(
        (shown.cpu_period, shown.cpu_quota, shown.cpu_shares),
        (100_000, 50_000, 512)
    );
    ensure_eq!(
        (shown.memory_limit_in_bytes, shown.cpuset_cpus.as_str()),
        (64 * MIB, "0")
    );
    Ok(())
}
