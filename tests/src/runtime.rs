//! A throw-away daemon: Berth, or containerd, by which a doubtful test is judged.

mod config;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::cri::Cri;
use crate::leak::{Scope, Snapshot};
use crate::subnet::Subnet;
use crate::{machine, paths, process};

/// Which program is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// this workspace's daemon
    Berth,
    /// containerd with runc
    Containerd,
}

impl Kind {
    /// What `BERTH_TEST_RUNTIME` names; Berth when it is not set.
    ///
    /// # Errors
    /// When it names something else.
    pub fn from_env() -> Result<Self> {
        match std::env::var("BERTH_TEST_RUNTIME").as_deref() {
            Ok("containerd") => Ok(Self::Containerd),
            Ok("berth" | "") | Err(_) => Ok(Self::Berth),
            Ok(other) => bail!("BERTH_TEST_RUNTIME is {other}: it must be berth or containerd"),
        }
    }
}

/// How pods get their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// Berth's own network; containerd gets the plugins instead
    Builtin,
    /// the CNI plugins bridge and portmap, rules in nftables
    Cni,
    /// the CNI plugins as a cluster would have them (iptables)
    CniIptables,
    /// no configuration at all
    None,
}

/// How an instance is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// which program
    pub kind: Kind,
    /// which network
    pub net: Net,
    /// folder with a hosts.toml for each registry
    pub hosts: PathBuf,
    /// more lines for the configuration file (TOML), for Berth only; they begin in the table `[images]`
    pub extra: String,
    /// another executable than that of the kind
    pub program: Option<PathBuf>,
}

/// A daemon with a folder of its own.
#[derive(Debug)]
pub struct Instance {
    /// how it was made
    pub options: Options,
    /// its name: bridge, nftables table, cgroups
    pub name: String,
    /// where it dies once it is launched again, in the words of `FAILPOINTS`
    pub crash_at: Option<String>,
    folder: tempfile::TempDir,
    subnet: Subnet,
    child: Option<Child>,
    cri: Option<Cri>,
}

impl Instance {
    /// Makes the folder and the configuration, starts the daemon, and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up within 30 seconds.
    pub async fn start(options: Options) -> Result<Self> {
        let mut instance = Self::prepare(options)?;
        instance.launch().await?;
        Ok(instance)
    }

    /// Makes the folder and the configuration only.
    ///
    /// # Errors
    /// When a file cannot be written or a tool is missing.
    pub fn prepare(options: Options) -> Result<Self> {
        let parent =
            std::env::var_os("BERTH_TEST_TMP").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
        let folder = tempfile::Builder::new()
            .prefix("bt-")
            .rand_bytes(6)
            .tempdir_in(parent)?;
        let random: String = folder
            .path()
            .file_name()
            .map(|name| {
                name.to_string_lossy()
                    .trim_start_matches("bt-")
                    .to_lowercase()
            })
            .unwrap_or_default();
        let name = format!("bt{random}");
        let instance = Self {
            options,
            name,
            crash_at: None,
            folder,
            subnet: Subnet::claim()?,
            child: None,
            cri: None,
        };
        instance.write_config()?;
        Ok(instance)
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its CRI socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder().join("cri.sock")
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_file(&self) -> PathBuf {
        self.folder().join("config.toml")
    }

    /// Its log.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.folder().join("daemon.log")
    }

    /// The cgroup below which its pods go, as a kubelet would name it to this runtime.
    #[must_use]
    pub fn cgroup_parent(&self) -> String {
        match self.has_systemd_driver() {
            true => format!("{}pods.slice", self.name),
            false => format!("/{}-pods", self.name),
        }
    }

    /// The path of that cgroup.
    #[must_use]
    pub fn cgroup_parent_path(&self) -> String {
        let parent = self.cgroup_parent();
        format!("/{}", parent.trim_start_matches('/'))
    }

    /// Berth takes systemd's driver by itself where it can; containerd is not configured to.
    fn has_systemd_driver(&self) -> bool {
        self.options.kind == Kind::Berth && machine::has_systemd()
    }

    /// The client.
    ///
    /// # Errors
    /// When the daemon does not run.
    pub fn cri(&self) -> Result<&Cri> {
        self.cri.as_ref().context("the daemon does not run")
    }

    /// The daemon's process id.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// The addresses that its pods have, as a subnet.
    #[must_use]
    pub fn subnet(&self) -> String {
        self.subnet.to_string()
    }

    /// The command that runs the daemon, with its output going to the log.
    ///
    /// # Errors
    /// When a tool is missing.
    pub fn command(&self) -> Result<Command> {
        let (usual, args) = match self.options.kind {
            Kind::Berth => (paths::berth_dir().join("berth"), vec!["serve"]),
            Kind::Containerd => (paths::tool("containerd")?, Vec::new()),
        };
        let program = self.options.program.clone().unwrap_or(usual);
        ensure!(
            program.exists(),
            "{} is missing: run `make build`",
            program.display()
        );
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_file())?;
        // containerd hands down to its containers what whoever ran the tests ignored (nohup).
        let mut command = Command::new("env");
        command.arg("--default-signal").arg(&program);
        command
            .args(args)
            .arg("--config")
            .arg(self.config_file())
            .env("BERTH_TEST_INSTANCE", &self.name)
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(point) = &self.crash_at {
            command.env("FAILPOINTS", point);
        }
        if self.options.kind == Kind::Containerd {
            let path = std::env::var("PATH").unwrap_or_default();
            command.env(
                "PATH",
                format!("{}:{path}", paths::build_dir().join("bin").display()),
            );
        }
        Ok(command)
    }

    /// Starts the daemon and waits until it answers; gives the time that took.
    ///
    /// # Errors
    /// When it does not answer within 30 seconds, with the end of its log.
    pub async fn launch(&mut self) -> Result<Duration> {
        let start = Instant::now();
        self.child = Some(self.command()?.spawn().context("starting the daemon")?);
        loop {
            if let Ok(cri) = Cri::connect(&self.socket()).await
                && self.ready(&cri).await
            {
                self.cri = Some(cri);
                return Ok(start.elapsed());
            }
            let ended = match self.child.as_mut() {
                Some(child) => child.try_wait()?,
                None => None,
            };
            if let Some(status) = ended {
                bail!("the daemon ended with {status}\n{}", self.log_tail());
            }
            if start.elapsed() > Duration::from_secs(30) {
                bail!("the daemon does not answer after 30 s\n{}", self.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn ready(&self, cri: &Cri) -> bool {
        if cri.version().await.is_err() {
            return false;
        }
        if self.options.net == Net::None {
            return true;
        }
        let Ok(answer) = cri.status(false).await else {
            return false;
        };
        // containerd adds a third condition about deprecated settings.
        let conditions = answer.status.unwrap_or_default().conditions;
        ["RuntimeReady", "NetworkReady"].iter().all(|name| {
            conditions
                .iter()
                .any(|one| one.r#type == *name && one.status)
        })
    }

    /// The last lines of the daemon's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When the daemon is still there after 30 seconds.
    pub async fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        self.reap().await
    }

    /// kill -9, and waits for the end.
    ///
    /// # Errors
    /// When the daemon does not run.
    pub async fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.reap().await
    }

    /// Whether it dies by itself within this time.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn dies_within(&mut self, patience: Duration) -> Result<bool> {
        let child = self.child.as_mut().context("the daemon does not run")?;
        let died = tokio::time::timeout(patience, child.wait()).await.is_ok();
        if died {
            (self.child, self.cri) = (None, None);
        }
        Ok(died)
    }

    /// Sends the daemon a signal.
    ///
    /// # Errors
    /// When the daemon does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().context("the daemon does not run")?;
        let pid = Pid::from_raw(i32::try_from(pid)?).context("pid 0")?;
        Ok(kill_process(pid, signal)?)
    }

    async fn reap(&mut self) -> Result<()> {
        self.cri = None;
        let mut child = self.child.take().context("the daemon does not run")?;
        if tokio::time::timeout(Duration::from_secs(30), child.wait())
            .await
            .is_err()
        {
            child.kill().await?;
            bail!(
                "the daemon did not end within 30 s of SIGTERM\n{}",
                self.log_tail()
            );
        }
        Ok(())
    }

    /// Where the leak check looks.
    #[must_use]
    pub fn scope(&self) -> Scope {
        Scope {
            marks: vec![self.name.clone(), self.folder().display().to_string()],
            folders: ["root", "state", "cni-leases", "netns"]
                .iter()
                .map(|name| self.folder().join(name))
                .collect(),
            image_names: config::IMAGE_NAMES.to_vec(),
            daemon: self.pid(),
            // containerd keeps connections to the registry as long as it likes.
            open_files: self.options.kind == Kind::Berth,
        }
    }

    /// What it holds now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::take(&self.scope())
    }

    /// Waits until it holds nothing that it did not hold before.
    ///
    /// # Errors
    /// When something is still left after the time, with each thing on a line.
    pub async fn expect_clean(&self, before: &Snapshot, patience: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            let left = self.snapshot().beyond(before);
            if left.is_empty() {
                return Ok(());
            }
            ensure!(
                start.elapsed() < patience,
                "something is left behind:\n{left}"
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Stops and removes every pod.
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn remove_pods(&self) -> Result<()> {
        let cri = self.cri()?;
        for pod in cri.list_pods(None).await? {
            cri.stop_pod(&pod.id).await?;
            cri.remove_pod(&pod.id).await?;
        }
        Ok(())
    }

    /// Ends whatever is left, by id, so that one failed test does not disturb the next.
    pub async fn sweep(&mut self) {
        if let Ok(cri) = self.cri() {
            for pod in cri.list_pods(None).await.unwrap_or_default() {
                let _ = cri.stop_pod(&pod.id).await;
                let _ = cri.remove_pod(&pod.id).await;
            }
        }
        if self.child.is_some() {
            let _ = self.terminate().await;
        }
        for _ in 0..3 {
            for one in process::marked(&[&self.name, &self.folder().display().to_string()]) {
                let pid = i32::try_from(one.pid).ok().and_then(Pid::from_raw);
                let _ = pid.map(|pid| kill_process(pid, Signal::KILL));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.sweep_mounts();
        self.sweep_cgroups();
        if self.options.net != Net::Builtin || self.options.kind == Kind::Containerd {
            crate::machine::forget_network(&self.name);
            // The bridge plugin leaves its bridge for the next pod.
            let _ = std::process::Command::new("ip")
                .args(["link", "del", &self.name])
                .output();
        }
    }

    fn sweep_mounts(&self) {
        let folder = self.folder().display().to_string();
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in table.lines().rev() {
            if let Some(target) = line.split_whitespace().nth(4)
                && target.starts_with(&folder)
            {
                let _ = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH);
            }
        }
    }

    fn sweep_cgroups(&self) {
        let mut found = Vec::new();
        let mut stack = vec![PathBuf::from("/sys/fs/cgroup")];
        while let Some(folder) = stack.pop() {
            let Ok(entries) = std::fs::read_dir(&folder) else {
                continue;
            };
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    if entry.path().display().to_string().contains(&self.name) {
                        found.push(entry.path());
                    }
                    stack.push(entry.path());
                }
            }
        }
        found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        for path in found {
            let _ = std::fs::remove_dir(path);
        }
    }
}
