//! The daemon itself: start, configuration, what it says about itself.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::runner::{Case, Test};
use berth_tests::runtime::{Instance, Kind, Net, Options};
use berth_tests::{ensure_eq, paths, test};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
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
    test!(clients_that_name_the_path_as_the_host).berth_only("containerd does not read the name"),
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

/// A connection that is written by hand: a client's library sends no such names, or nothing else.
struct Wire {
    stream: UnixStream,
    next: u32,
}

impl Wire {
    async fn open(socket: &Path) -> Result<Self> {
        let mut stream = UnixStream::connect(socket).await?;
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await?;
        stream.write_all(&frame(4, 0, 0, &[])).await?;
        Ok(Self { stream, next: 1 })
    }

    /// Calls Version; gives 0 when it is answered, and the code of HTTP/2 when it is reset.
    async fn version(&mut self, authority: Option<&str>) -> Result<u32> {
        let id = self.next;
        self.next += 2;
        // POST, http, and the rest as literals (RFC 7541, appendix A and section 6.2.2).
        let mut block = vec![0x83, 0x86, 0x04];
        block.extend(text("/runtime.v1.RuntimeService/Version")?);
        if let Some(authority) = authority {
            block.push(0x01);
            block.extend(text(authority)?);
        }
        block.extend([0x0f, 0x10]);
        block.extend(text("application/grpc")?);
        block.push(0);
        block.extend([text("te")?, text("trailers")?].concat());
        self.stream.write_all(&frame(1, 4, id, &block)).await?;
        self.stream.write_all(&frame(0, 1, id, &[0; 5])).await?;
        loop {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut body = vec![0; usize::try_from(length)?];
            self.stream.read_exact(&mut body).await?;
            let of = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            match head[3] {
                0x1 if of == id => return Ok(0),
                0x3 if of == id => {
                    let code = body.first_chunk().context("a short reset")?;
                    return Ok(u32::from_be_bytes(*code));
                }
                0x7 => anyhow::bail!("the connection is ended"),
                _ => {}
            }
        }
    }
}

fn text(text: &str) -> Result<Vec<u8>> {
    Ok([&[u8::try_from(text.len())?], text.as_bytes()].concat())
}

fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// As gRPC's C core does, unless it is told another name (ADR 17).
async fn clients_that_name_the_path_as_the_host(case: &mut Case) -> Result<()> {
    const PROTOCOL_ERROR: u32 = 1;
    let socket = case.start().await?.socket();
    let mut wire = Wire::open(&socket).await?;
    for path in ["run%2Fberth%2Fberth.sock", "/run/berth.sock", "a b", ""] {
        ensure_eq!(wire.version(Some(path)).await?, PROTOCOL_ERROR);
        // What the documentation says to set, on the same connection; and what others send.
        for name in [Some("localhost"), None, Some("berth.sock:0"), Some("berth")] {
            ensure_eq!(wire.version(name).await?, 0);
        }
    }
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
