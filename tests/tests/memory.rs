//! What pods cost in memory, printed and held against the promises.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_tests::pods::{Pod, pid_of, pod_config, script, use_host_network};
use berth_tests::runner::{Case, Test};
use berth_tests::{process, test};

pub(crate) const TESTS: &[Test] = &[
    test!(thirty_pods)
        .alone()
        .berth_only("the limits are Berth's"),
    test!(memory_of_large_annotations_is_given_back).berth_only("the limits are Berth's"),
];

const PODS: u64 = 30;

async fn thirty_pods(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let cri = instance.cri()?.clone();
    let daemon = instance.pid().context("no daemon")?;
    let name = instance.name.clone();
    let at_rest = process::pss_kib(daemon);
    let mut pauses = Vec::new();
    for number in 0..PODS {
        let pod = Pod::run(&cri, pod_config(instance, &format!("m{number}"))).await?;
        pod.start(&script("exec sleep 4321")).await?;
        pauses.push(pid_of(&cri.pod_status_verbose(&pod.id).await?.info)?);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let growth = process::pss_kib(daemon).saturating_sub(at_rest);
    let monitors: Vec<u64> = process::marked(&[&name])
        .iter()
        .filter(|one| one.parent == daemon)
        .map(|one| process::pss_kib(one.pid))
        .collect();
    let pauses: u64 = pauses.into_iter().map(process::pss_kib).sum();
    let sum: u64 = monitors.iter().sum();
    let largest = monitors.iter().max().copied().unwrap_or(0);
    let pod = (growth + sum + pauses) / PODS;
    println!(
        "memory at {PODS} pods: daemon at rest {at_rest} KiB, its growth {growth} KiB, {} monitors {sum} KiB \
         (largest {largest}), pause {pauses} KiB; {pod} KiB for each pod",
        monitors.len()
    );
    ensure!(monitors.len() as u64 == PODS, "{} monitors", monitors.len());
    ensure!(
        largest <= 64,
        "a waiting monitor takes {largest} KiB: more than 64"
    );
    ensure!(pod <= 150, "a pod takes {pod} KiB: more than 150");
    ensure!(
        at_rest <= 15 * 1024,
        "the daemon at rest takes {at_rest} KiB: more than 15 MiB"
    );
    Ok(())
}

/// Below what the C library gives back by itself.
const NOTE: usize = 60 << 10;

async fn memory_of_large_annotations_is_given_back(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let cri = instance.cri()?.clone();
    let daemon = instance.pid().context("no daemon")?;
    let notes: BTreeMap<String, String> = (0..4)
        .map(|number| (format!("note-{number}"), "x".repeat(NOTE)))
        .collect();
    let mut tasks = tokio::task::JoinSet::new();
    let before = process::pss_kib(daemon);
    for number in 0..40 {
        let mut config = pod_config(instance, &format!("large-{number}"));
        use_host_network(&mut config);
        config.annotations.extend(notes.clone());
        let (cri, notes) = (cri.clone(), notes.clone());
        tasks.spawn(async move {
            let pod = Pod::run(&cri, config).await?;
            let mut config = script("exec sleep 4321");
            config.annotations = notes;
            pod.start(&config).await?;
            anyhow::Ok(pod)
        });
    }
    let mut pods = Vec::new();
    while let Some(pod) = tasks.join_next().await {
        pods.push(pod??);
        cri.list_pods(None).await?;
        cri.list_containers(None).await?;
    }
    let most = process::pss_kib(daemon);
    for pod in pods {
        pod.remove().await?;
    }
    let at_once = process::pss_kib(daemon);
    let begun = Instant::now();
    loop {
        let now = process::pss_kib(daemon);
        if now < before + (12 << 10) || begun.elapsed() > Duration::from_secs(20) {
            println!(
                "{before} KiB before, {most} with 40 pods of large annotations, {at_once} after the last was removed, \
                 {now} {:?} later",
                begun.elapsed()
            );
            ensure!(now < before + (12 << 10), "{} KiB stay", now - before);
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
