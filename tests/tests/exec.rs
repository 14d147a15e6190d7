//! ExecSync.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_tests::pods::{Pod, script};
use berth_tests::runner::{Case, Test};
use berth_tests::runtime::Kind;
use berth_tests::{ensure_eq, process, test};
use tonic::Code;

pub(crate) const TESTS: &[Test] = &[
    test!(code_and_both_streams),
    test!(command_not_found),
    test!(time_limit_kills_the_whole_tree)
        .berth_only("containerd waits for an orphan that holds the output"),
    test!(output_is_capped),
    test!(a_child_that_keeps_stdout_does_not_hang_it)
        .berth_only("containerd waits for the last writer unless it is told not to"),
    test!(sees_what_the_container_sees),
    test!(not_running_is_an_error),
    test!(many_at_once),
    test!(the_container_lives_on_when_the_client_goes),
];

async fn sleeper(case: &mut Case) -> Result<(Pod, berth_tests::pods::Ctr)> {
    let pod = case.pod().await?;
    let running = pod.start(&script("export A=main; exec sleep 4321")).await?;
    Ok((pod, running))
}

async fn code_and_both_streams(case: &mut Case) -> Result<()> {
    let (_, running) = sleeper(case).await?;
    let output = running
        .exec(&["sh", "-c", "printf out; printf err >&2; exit 9"])
        .await?;
    ensure_eq!(
        (output.code, output.stdout.as_str(), output.stderr.as_str()),
        (9, "out", "err")
    );
    let output = running.exec(&["sh", "-c", "kill -9 $$"]).await?;
    ensure_eq!(output.code, 137);
    Ok(())
}

async fn command_not_found(case: &mut Case) -> Result<()> {
    let (pod, running) = sleeper(case).await?;
    let error = pod
        .cri
        .exec(&running.id, &["no-such-program"], 5)
        .await
        .err();
    let error = error.context("it ran")?;
    ensure!(error.message().contains("no-such-program"), "{error}");
    Ok(())
}

async fn time_limit_kills_the_whole_tree(case: &mut Case) -> Result<()> {
    let (pod, running) = sleeper(case).await?;
    let tree = "setsid sleep 98765 & (sleep 98765 &) ; trap '' TERM; sleep 98765";
    let start = Instant::now();
    let error = pod
        .cri
        .exec(&running.id, &["sh", "-c", tree], 1)
        .await
        .err()
        .context("no error")?;
    ensure_eq!(error.code(), Code::DeadlineExceeded);
    let took = start.elapsed();
    ensure!(
        took > Duration::from_millis(900) && took < Duration::from_secs(4),
        "{took:?}"
    );
    let mut left = Vec::new();
    for _ in 0..20 {
        let name = case.instance()?.name.clone();
        left = process::marked(&[&name]);
        left.retain(|one| one.command.contains("98765"));
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure_eq!(left, vec![]);
    ensure_eq!(running.exec(&["true"]).await?.code, 0);
    Ok(())
}

async fn output_is_capped(case: &mut Case) -> Result<()> {
    let (pod, running) = sleeper(case).await?;
    let flood = ["dd", "if=/dev/zero", "bs=1M", "count=24"];
    let answer = pod.cri.exec(&running.id, &flood, 60).await;
    if case.instance()?.options.kind == Kind::Berth {
        let stdout = answer?.stdout;
        let kept = stdout.iter().take_while(|byte| **byte == 0).count();
        ensure!((15 << 20..16 << 20).contains(&kept), "{kept} bytes");
        let dropped = (24 << 20) - kept;
        let mark = format!("\nberth: output cut here, {dropped} bytes dropped\n");
        ensure_eq!(std::str::from_utf8(&stdout[kept..])?, mark);
    } else {
        // What containerd keeps does not fit into a message, which is an error.
        let error = answer.err().context("24 MiB came")?;
        ensure!(
            matches!(error.code(), Code::ResourceExhausted | Code::OutOfRange),
            "{error}"
        );
    }
    let fits = ["dd", "if=/dev/zero", "bs=1M", "count=15"];
    let answer = pod.cri.exec(&running.id, &fits, 60).await?;
    ensure_eq!(answer.stdout.len(), 15 << 20);
    Ok(())
}

async fn a_child_that_keeps_stdout_does_not_hang_it(case: &mut Case) -> Result<()> {
    let (pod, running) = sleeper(case).await?;
    let start = Instant::now();
    let command = ["sh", "-c", "sleep 30 & echo done"];
    let answer = pod.cri.exec(&running.id, &command, 20).await?;
    ensure_eq!(
        (answer.exit_code, answer.stdout.as_slice()),
        (0, b"done\n".as_slice())
    );
    ensure!(
        start.elapsed() < Duration::from_secs(5),
        "it took {:?}",
        start.elapsed()
    );
    Ok(())
}

async fn sees_what_the_container_sees(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("exec sleep 4321");
    config.working_dir = "/tmp".into();
    config.envs = vec![berth_cri_api::v1::KeyValue {
        key: "A".into(),
        value: b"from config".to_vec(),
    }];
    berth_tests::pods::security(&mut config).run_as_user =
        Some(berth_cri_api::v1::Int64Value { value: 1234 });
    let running = pod.start(&config).await?;
    ensure_eq!(
        running
            .sh("pwd; echo $A; id -u; cat /proc/1/cmdline")
            .await?,
        "/tmp\nfrom config\n1234\nsleep\u{0}4321\u{0}"
    );
    Ok(())
}

async fn not_running_is_an_error(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let created = pod.create(&script("true")).await?;
    ensure!(
        pod.cri.exec(&created.id, &["true"], 5).await.is_err(),
        "an exec in CREATED"
    );
    pod.cri.start(&created.id).await?;
    created.wait().await?;
    ensure!(
        pod.cri.exec(&created.id, &["true"], 5).await.is_err(),
        "an exec in EXITED"
    );
    Ok(())
}

async fn many_at_once(case: &mut Case) -> Result<()> {
    let (_, running) = sleeper(case).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..40 {
        let running = running.clone();
        tasks.spawn(async move { (number, running.sh(&format!("echo {number}")).await) });
    }
    while let Some(result) = tasks.join_next().await {
        let (number, text) = result?;
        ensure_eq!(text?, format!("{number}\n"));
    }
    Ok(())
}

/// The client gives up; nothing of the exec may stay when the pod goes (the leak check sees to that).
async fn the_container_lives_on_when_the_client_goes(case: &mut Case) -> Result<()> {
    let (pod, running) = sleeper(case).await?;
    let call = pod.cri.exec(&running.id, &["sleep", "3"], 60);
    let gone = tokio::time::timeout(Duration::from_millis(300), call).await;
    ensure!(gone.is_err(), "the exec came back at once");
    ensure_eq!(running.exec(&["true"]).await?.code, 0);
    Ok(())
}
