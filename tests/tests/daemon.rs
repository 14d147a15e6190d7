//! The daemon itself: start, configuration, what it says about itself.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::runner::{Case, Test};
use berth_tests::runtime::{Instance, Kind, Net, Options};
use berth_tests::{ensure_eq, paths, test};
use tonic::Code;

pub(crate) const TESTS: &[Test] = &[
    test!(version_and_status),
    test!(runtime_config),
    test!(update_runtime_config),
    test!(what_is_not_built_says_so).berth_only("containerd has it"),
    test!(second_daemon_on_one_root_is_refused)
        .berth_only("containerd waits for its database's lock"),
    test!(unknown_key_is_an_error).berth_only("Berth's configuration"),
    test!(wrong_value_is_an_error).berth_only("Berth's configuration"),
    test!(config_show_tells_the_origin).berth_only("Berth's configuration"),
    test!(large_messages),
    test!(two_instances_side_by_side),
    test!(restart_without_pods_leaves_nothing),
];

async fn version_and_status(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    let version = cri.version().await?;
    ensure_eq!(
        (
            version.version.as_str(),
            version.runtime_api_version.as_str()
        ),
        ("0.1.0", "v1")
    );
    ensure!(
        !version.runtime_name.is_empty() && !version.runtime_version.is_empty(),
        "{version:?}"
    );
    let status = cri.status(true).await?;
    let conditions = status.status.context("no status")?.conditions;
    for name in ["RuntimeReady", "NetworkReady"] {
        ensure!(
            conditions
                .iter()
                .any(|one| one.r#type == name && one.status),
            "{name} is missing"
        );
    }
    ensure!(
        status
            .runtime_handlers
            .iter()
            .any(|handler| handler.name.is_empty()),
        "the handler without a name is missing"
    );
    let config = status
        .info
        .get("config")
        .context("no `config` in the verbose status")?;
    let _: serde_json::Value = serde_json::from_str(config)?;
    Ok(())
}

async fn runtime_config(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    let answer = cri
        .runtime
        .clone()
        .runtime_config(RuntimeConfigRequest {})
        .await?
        .into_inner();
    let driver = answer.linux.context("no linux part")?.cgroup_driver();
    let systemd = berth_tests::machine::has_systemd() && Kind::from_env()? == Kind::Berth;
    let wanted = match systemd {
        true => CgroupDriver::Systemd,
        false => CgroupDriver::Cgroupfs,
    };
    ensure_eq!(driver, wanted);
    Ok(())
}

async fn update_runtime_config(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    let network_config = Some(NetworkConfig {
        pod_cidr: "10.1.0.0/24".into(),
    });
    let config = Some(RuntimeConfig { network_config });
    let request = UpdateRuntimeConfigRequest {
        runtime_config: config,
    };
    cri.runtime.clone().update_runtime_config(request).await?;
    Ok(())
}

async fn what_is_not_built_says_so(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    let mut runtime = cri.runtime.clone();
    let errors = [
        ("Exec", runtime.exec(ExecRequest::default()).await.err()),
        (
            "Attach",
            runtime.attach(AttachRequest::default()).await.err(),
        ),
        (
            "PortForward",
            runtime
                .port_forward(PortForwardRequest::default())
                .await
                .err(),
        ),
        (
            "ListPodSandboxMetrics",
            runtime
                .list_pod_sandbox_metrics(ListPodSandboxMetricsRequest::default())
                .await
                .err(),
        ),
        (
            "GetContainerEvents",
            runtime
                .get_container_events(GetEventsRequest::default())
                .await
                .err(),
        ),
        (
            "CheckpointContainer",
            runtime
                .checkpoint_container(CheckpointContainerRequest::default())
                .await
                .err(),
        ),
    ];
    for (name, error) in errors {
        let error = error.with_context(|| format!("{name} answers"))?;
        ensure!(error.code() == Code::Unimplemented, "{name}: {error}");
        ensure!(error.message().len() > 10, "{name} says nothing: {error}");
    }
    Ok(())
}

async fn second_daemon_on_one_root_is_refused(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let before = std::fs::metadata(instance.log_file())?.len();
    let mut second = instance.command()?;
    let mut child = second.spawn()?;
    let ended = tokio::time::timeout(Duration::from_secs(15), child.wait()).await;
    if ended.is_err() {
        child.kill().await?;
    }
    ensure!(
        ended.is_ok_and(|status| status.is_ok_and(|status| !status.success())),
        "it runs"
    );
    let log = std::fs::read(instance.log_file())?;
    let said = String::from_utf8_lossy(&log[usize::try_from(before)?..]).into_owned();
    ensure!(!said.trim().is_empty(), "it ended without a word");
    instance.cri()?.version().await?;
    Ok(())
}

/// A daemon whose configuration is wrong ends at once; gives what it said.
async fn refused(case: &mut Case, extra: &str) -> Result<String> {
    let options = Options {
        extra: extra.to_owned(),
        ..case.options()
    };
    let instance = Instance::prepare(options)?;
    let output = instance
        .command()?
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .output();
    let output = tokio::time::timeout(Duration::from_secs(15), output).await??;
    ensure!(!output.status.success(), "it runs");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

async fn unknown_key_is_an_error(case: &mut Case) -> Result<()> {
    let said = refused(case, "\n[streaming]\nadress = \"127.0.0.1:0\"\n").await?;
    ensure!(
        said.contains("adress") && said.contains("address"),
        "no nearest key: {said}"
    );
    ensure!(
        said.contains("config.toml"),
        "the file is not named: {said}"
    );
    ensure!(
        said.contains(":1") || said.contains("line 1"),
        "no line: {said}"
    );
    Ok(())
}

async fn wrong_value_is_an_error(case: &mut Case) -> Result<()> {
    let said = refused(case, "\n[streaming]\naddress = 7\n").await?;
    ensure!(
        said.contains("address") && said.contains("config.toml"),
        "{said}"
    );
    Ok(())
}

async fn config_show_tells_the_origin(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let output = tokio::process::Command::new(paths::berth_dir().join("berth"))
        .args(["config", "show", "--config"])
        .arg(instance.config_file())
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        text.contains("default"),
        "no value comes from the defaults: {text}"
    );
    ensure!(
        text.contains("config.toml"),
        "no value comes from the file: {text}"
    );
    ensure!(
        text.contains(&instance.name),
        "the instance is not shown: {text}"
    );
    Ok(())
}

async fn large_messages(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = berth_tests::pods::script("true");
    // Beyond the 4 MiB at which many servers stop.
    let value = "x".repeat(1 << 20);
    let numbered = |end| (0..end).map(|number| (format!("a{number}"), value.clone()));
    config.annotations = numbered(1).collect();
    config.labels = numbered(1).collect();
    config.envs = numbered(4)
        .map(|(key, value)| KeyValue {
            key,
            value: value.into(),
        })
        .collect();
    let created = pod.create(&config).await?;
    ensure_eq!(created.status().await?.annotations, config.annotations);
    Ok(())
}

async fn two_instances_side_by_side(case: &mut Case) -> Result<()> {
    let first = case.pod().await?;
    let second = case.pod().await?;
    ensure_eq!(first.cri.list_pods(None).await?.len(), 1);
    ensure_eq!(second.cri.list_pods(None).await?.len(), 1);
    first.remove().await?;
    let text = second
        .output_of(&berth_tests::pods::script("echo fine"))
        .await?;
    ensure_eq!(text, "fine\n");
    Ok(())
}

async fn restart_without_pods_leaves_nothing(case: &mut Case) -> Result<()> {
    let options = Options {
        net: Net::Builtin,
        ..case.options()
    };
    let instance = case.start_with(options).await?;
    for _ in 0..3 {
        instance.terminate().await?;
        instance.launch().await?;
    }
    Ok(())
}
