//! Short ways to say what a kubelet would send, and handles on what came of it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use berth_cri_api::v1::*;

use crate::cri::{Cri, image_spec};
use crate::images;
use crate::runtime::Instance;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A number that nobody else in this process has.
#[must_use]
pub fn unique() -> u32 {
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// What a kubelet would send for a plain pod.
#[must_use]
pub fn pod_config(instance: &Instance, name: &str) -> PodSandboxConfig {
    let number = unique();
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{}-{number}", instance.name),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        hostname: name.to_owned(),
        log_directory: instance
            .folder()
            .join(format!("logs/{name}-{number}"))
            .display()
            .to_string(),
        dns_config: Some(DnsConfig {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["default.svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        }),
        labels: [("app".to_owned(), name.to_owned())].into(),
        annotations: [("berth.test/number".to_owned(), number.to_string())].into(),
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: instance.cgroup_parent(),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(NamespaceMode::Pod, NamespaceMode::Container)),
                ..LinuxSandboxSecurityContext::default()
            }),
            ..LinuxPodSandboxConfig::default()
        }),
        ..PodSandboxConfig::default()
    }
}

/// Namespace modes: network and IPC together, PID apart.
#[must_use]
pub fn namespaces(network_and_ipc: NamespaceMode, pid: NamespaceMode) -> NamespaceOption {
    NamespaceOption {
        network: network_and_ipc.into(),
        ipc: network_and_ipc.into(),
        pid: pid.into(),
        ..NamespaceOption::default()
    }
}

/// Puts a pod into the host's network.
pub fn use_host_network(config: &mut PodSandboxConfig) {
    config.hostname = String::new();
    let mode = NamespaceOption {
        network: NamespaceMode::Node.into(),
        ..namespaces(NamespaceMode::Pod, NamespaceMode::Container)
    };
    config
        .linux
        .get_or_insert_with(LinuxPodSandboxConfig::default)
        .security_context
        .get_or_insert_with(LinuxSandboxSecurityContext::default)
        .namespace_options = Some(mode);
}

/// What a kubelet would send for a plain container of busybox.
#[must_use]
pub fn container(command: &[&str]) -> ContainerConfig {
    let name = format!("c{}", unique());
    ContainerConfig {
        log_path: format!("{name}_0.log"),
        metadata: Some(ContainerMetadata { name, attempt: 0 }),
        image: Some(image_spec(images::BUSYBOX)),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources::default()),
            security_context: Some(LinuxContainerSecurityContext {
                namespace_options: Some(namespaces(NamespaceMode::Pod, NamespaceMode::Container)),
                ..LinuxContainerSecurityContext::default()
            }),
        }),
        ..ContainerConfig::default()
    }
}

/// A shell script as a container's command.
#[must_use]
pub fn script(text: &str) -> ContainerConfig {
    container(&["sh", "-c", text])
}

/// The security context of a container, to be changed in place.
#[must_use]
pub fn security(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    config
        .linux
        .get_or_insert_with(LinuxContainerConfig::default)
        .security_context
        .get_or_insert_with(LinuxContainerSecurityContext::default)
}

/// The resources of a container, to be changed in place.
#[must_use]
pub fn resources(config: &mut ContainerConfig) -> &mut LinuxContainerResources {
    config
        .linux
        .get_or_insert_with(LinuxContainerConfig::default)
        .resources
        .get_or_insert_with(LinuxContainerResources::default)
}

/// A bind mount.
#[must_use]
pub fn mount(host: &Path, inside: &str, readonly: bool) -> Mount {
    Mount {
        host_path: host.display().to_string(),
        container_path: inside.to_owned(),
        readonly,
        ..Mount::default()
    }
}

/// A pod that runs.
#[derive(Clone, Debug)]
pub struct Pod {
    /// the client
    pub cri: Cri,
    /// its id
    pub id: String,
    /// what it was made from
    pub config: PodSandboxConfig,
}

impl Pod {
    /// RunPodSandbox
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn run(cri: &Cri, config: PodSandboxConfig) -> Result<Self> {
        let id = cri.run_pod(&config).await.context("RunPodSandbox")?;
        Ok(Self {
            cri: cri.clone(),
            id,
            config,
        })
    }

    /// CreateContainer
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn create(&self, config: &ContainerConfig) -> Result<Ctr> {
        let id = self
            .cri
            .create(&self.id, config, &self.config)
            .await
            .context("CreateContainer")?;
        let log = Path::new(&self.config.log_directory).join(&config.log_path);
        Ok(Ctr {
            cri: self.cri.clone(),
            id,
            log,
        })
    }

    /// CreateContainer and StartContainer
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn start(&self, config: &ContainerConfig) -> Result<Ctr> {
        let container = self.create(config).await?;
        self.cri
            .start(&container.id)
            .await
            .context("StartContainer")?;
        Ok(container)
    }

    /// Runs a script to its end and gives its standard output; a failure carries both streams.
    ///
    /// # Errors
    /// When it does not end with 0.
    pub async fn output_of(&self, config: &ContainerConfig) -> Result<String> {
        let container = self.start(config).await?;
        let status = container.wait().await?;
        let text = container.stdout()?;
        ensure!(
            status.exit_code == 0,
            "exit code {} ({}): {text}{}",
            status.exit_code,
            status.reason,
            container.stream("stderr")?
        );
        Ok(text)
    }

    /// The pod's address.
    ///
    /// # Errors
    /// When it has none.
    pub async fn ip(&self) -> Result<String> {
        let network = self
            .cri
            .pod_status(&self.id)
            .await?
            .network
            .context("no network status")?;
        ensure!(!network.ip.is_empty(), "the pod has no address");
        Ok(network.ip)
    }

    /// Stop and remove
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn remove(&self) -> Result<()> {
        self.cri
            .stop_pod(&self.id)
            .await
            .context("StopPodSandbox")?;
        self.cri
            .remove_pod(&self.id)
            .await
            .context("RemovePodSandbox")
    }
}

/// A container.
#[derive(Clone, Debug)]
pub struct Ctr {
    /// the client
    pub cri: Cri,
    /// its id
    pub id: String,
    /// its log file
    pub log: PathBuf,
}

/// What an exec gave.
#[derive(Clone, Debug)]
pub struct Output {
    /// exit code
    pub code: i32,
    /// standard output
    pub stdout: String,
    /// standard error
    pub stderr: String,
}

impl Ctr {
    /// ContainerStatus
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn status(&self) -> Result<ContainerStatus> {
        Ok(self.cri.container_status(&self.id).await?)
    }

    /// Waits up to a minute for the end.
    ///
    /// # Errors
    /// When the container is not EXITED by then.
    pub async fn wait(&self) -> Result<ContainerStatus> {
        let start = Instant::now();
        loop {
            let status = self.status().await?;
            if status.state() == ContainerState::ContainerExited {
                return Ok(status);
            }
            ensure!(
                start.elapsed() < Duration::from_secs(60),
                "the container is still {:?}",
                status.state()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// ExecSync
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn exec(&self, command: &[&str]) -> Result<Output> {
        let answer = self
            .cri
            .exec(&self.id, command, 20)
            .await
            .context("ExecSync")?;
        Ok(Output {
            code: answer.exit_code,
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
        })
    }

    /// ExecSync of a shell script that must succeed; gives its standard output.
    ///
    /// # Errors
    /// As the runtime answers, or when the script fails.
    pub async fn sh(&self, text: &str) -> Result<String> {
        let output = self.exec(&["sh", "-c", text]).await?;
        ensure!(output.code == 0, "`{text}` gave {output:?}");
        Ok(output.stdout)
    }

    /// The lines of the log.
    ///
    /// # Errors
    /// When a line is not in the CRI format.
    pub fn lines(&self) -> Result<Vec<Line>> {
        let bytes = std::fs::read(&self.log)
            .with_context(|| format!("reading the log {}", self.log.display()))?;
        String::from_utf8_lossy(&bytes)
            .lines()
            .map(Line::parse)
            .collect()
    }

    /// What one stream said, partial lines joined.
    ///
    /// # Errors
    /// When a line is not in the CRI format.
    pub fn stream(&self, stream: &str) -> Result<String> {
        let mut text = String::new();
        for line in self.lines()?.iter().filter(|line| line.stream == stream) {
            text.push_str(&line.text);
            if !line.partial {
                text.push('\n');
            }
        }
        Ok(text)
    }

    /// What standard output said.
    ///
    /// # Errors
    /// When a line is not in the CRI format.
    pub fn stdout(&self) -> Result<String> {
        self.stream("stdout")
    }

    /// Waits up to ten seconds until the log contains the text.
    ///
    /// # Errors
    /// When it does not by then.
    pub async fn wait_for_log(&self, text: &str) -> Result<()> {
        for _ in 0..500 {
            if std::fs::read_to_string(&self.log)
                .unwrap_or_default()
                .contains(text)
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!(
            "the log never said {text:?}: {:?}",
            std::fs::read_to_string(&self.log)
        )
    }

    /// The host's process id of the container's first process, from the verbose status.
    ///
    /// # Errors
    /// When the runtime does not tell it.
    pub async fn pid(&self) -> Result<u32> {
        let answer = self.cri.container_status_verbose(&self.id).await?;
        pid_of(&answer.info)
    }
}

/// The process id in the `info` of a verbose status (JSON with a field `pid`).
///
/// # Errors
/// When there is none.
pub fn pid_of(info: &std::collections::BTreeMap<String, String>) -> Result<u32> {
    let text = info
        .get("info")
        .context("a verbose status without `info`")?;
    let value: serde_json::Value = serde_json::from_str(text)?;
    let pid = value
        .get("pid")
        .and_then(serde_json::Value::as_u64)
        .context("no pid in `info`")?;
    Ok(u32::try_from(pid)?)
}

/// A line of a CRI log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// RFC 3339 time with nanoseconds
    pub time: String,
    /// `stdout` or `stderr`
    pub stream: String,
    /// whether the line goes on in the next one
    pub partial: bool,
    /// the content
    pub text: String,
}

impl Line {
    fn parse(line: &str) -> Result<Self> {
        let mut parts = line.splitn(4, ' ');
        let mut next = || {
            parts
                .next()
                .with_context(|| format!("not a CRI log line: {line:?}"))
        };
        let (time, stream, tag) = (next()?, next()?, next()?);
        let text = parts.next().unwrap_or_default();
        ensure!(
            matches!(stream, "stdout" | "stderr"),
            "no such stream: {line:?}"
        );
        ensure!(matches!(tag, "F" | "P"), "no such tag: {line:?}");
        ensure!(
            time.contains('T') && time.contains('.'),
            "no such time: {line:?}"
        );
        Ok(Self {
            time: time.to_owned(),
            stream: stream.to_owned(),
            partial: tag == "P",
            text: text.to_owned(),
        })
    }
}
