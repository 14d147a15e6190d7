//! What pods cost in memory, printed and held against the promises.

use anyhow::{Context as _, Result, ensure};
use berth_tests::pods::{Pod, pid_of, pod_config, script};
use berth_tests::runner::{Case, Test};
use berth_tests::{process, test};

pub(crate) const TESTS: &[Test] = &[test!(thirty_pods)
    .alone()
    .berth_only("the limits are Berth's")];

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
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
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
