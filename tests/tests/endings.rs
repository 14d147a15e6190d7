//! Calls about a container that meet its end, or come after it.

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::pods::{container, script};
use berth_tests::runner::{Case, Test};
use berth_tests::{ensure_eq, test};
use tonic::{Code, Status};

pub(crate) const TESTS: &[Test] = &[
    test!(calls_that_meet_the_end).berth_only("containerd answers Unknown"),
    test!(calls_after_a_lost_monitor).berth_only("it kills Berth's monitor"),
];

fn is_end(what: &str, answer: Result<(), Status>) -> Result<bool> {
    match answer {
        Ok(()) => Ok(false),
        Err(error) if error.code() == Code::FailedPrecondition => Ok(true),
        Err(error) => anyhow::bail!("{what}: {error}"),
    }
}

async fn calls_that_meet_the_end(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    for what in ["exec", "update", "reopen", "start"] {
        for round in 0..8 {
            let config = script(&format!("sleep 0.{}", 10 + round));
            let created = pod.create(&config).await?;
            if what == "start" {
                let pid = i32::try_from(created.pid().await?)?;
                let pid = rustix::process::Pid::from_raw(pid).context("no pid")?;
                rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
                is_end(what, pod.cri.start(&created.id).await)?;
                let status = created.wait().await?;
                ensure_eq!(status.exit_code, 137);
                continue;
            }
            pod.cri.start(&created.id).await?;
            loop {
                let answer = match what {
                    "exec" => pod.cri.exec(&created.id, &["true"], 10).await.map(drop),
                    "update" => {
                        let limits = LinuxContainerResources {
                            cpu_shares: 100 + round,
                            ..LinuxContainerResources::default()
                        };
                        pod.cri.update(&created.id, limits).await
                    }
                    _ => pod.cri.reopen_log(&created.id).await,
                };
                if is_end(what, answer)? {
                    break;
                }
            }
        }
    }
    Ok(())
}

async fn calls_after_a_lost_monitor(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    for what in ["exec", "update", "reopen", "start"] {
        let created = pod.create(&container(&["sleep", "4321"])).await?;
        if what != "start" {
            pod.cri.start(&created.id).await?;
        }
        let pid = created.pid().await?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        let parent = parent.and_then(rustix::process::Pid::from_raw);
        let parent = parent.context("no monitor")?;
        rustix::process::kill_process(parent, rustix::process::Signal::KILL)?;
        let answer = match what {
            "exec" => pod.cri.exec(&created.id, &["true"], 10).await.map(drop),
            "update" => {
                let limits = LinuxContainerResources {
                    cpu_shares: 100,
                    ..LinuxContainerResources::default()
                };
                // It needs no monitor.
                let updated = pod.cri.update(&created.id, limits).await;
                updated.or_else(|e| {
                    if e.code() == Code::FailedPrecondition {
                        Ok(())
                    } else {
                        Err(e)
                    }
                })?;
                continue;
            }
            "reopen" => pod.cri.reopen_log(&created.id).await,
            _ => pod.cri.start(&created.id).await,
        };
        ensure!(is_end(what, answer)?, "{what} worked without a monitor");
    }
    Ok(())
}
