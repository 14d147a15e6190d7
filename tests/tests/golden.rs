//! Writes the files by which `runtime/src/record/golden.rs` knows the forms of a version: pods, containers, networks
//! and images in every state, as the programs in `$BERTH_BIN_DIR` keep them. Called by `hack/golden.sh` only.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::oci::Tree;
use berth_tests::pods::{Pod, container, mount, namespaces, pid_of, pod_config, resources};
use berth_tests::pods::{script, security};
use berth_tests::runner::{Case, Test};
use berth_tests::runtime::{Instance, Net, Options};
use berth_tests::{ensure_eq, images, process, test};
use redb::{ReadableDatabase as _, ReadableTable as _};
use rustix::process::{Pid, Signal, kill_process};

use crate::volumes;

/// The folder to write to.
const OUT: &str = "BERTH_GOLDEN";

pub(crate) const TESTS: &[Test] = &[
    test!(built_in_network).berth_only("they are Berth's files"),
    test!(plugins).berth_only("they are Berth's files"),
];

/// Whether the files are to be written: no test of Berth, so it is not among the tests.
pub(crate) fn is_wanted() -> bool {
    std::env::var_os(OUT).is_some()
}

/// One of the folders.
fn out(kind: &str) -> Result<PathBuf> {
    let dir = PathBuf::from(std::env::var_os(OUT).context(OUT)?).join(kind);
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

async fn built_in_network(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    // One that says all that can be said, one by several names, one with volumes.
    cri.pull(images::CONFIGURED).await?;
    for (name, volumes) in [
        ("volume", &["/data", "/more"][..]),
        ("one", &[]),
        ("other", &[]),
    ] {
        volumes::image(case, &cri, name, Tree::default(), volumes).await?;
    }
    let instance = case.instance()?;
    let racing = Racing::start(instance.folder());
    let ready = ready_pod(instance).await?;
    some_containers(instance, &ready).await?;
    host_pod(instance).await?;
    let stopped = Pod::run(&cri, pod_config(instance, "stopped")).await?;
    stopped
        .start(&named("killed", script("exec sleep 4321")))
        .await?;
    cri.stop_pod(&stopped.id).await?;
    let not_ready = Pod::run(&cri, pod_config(instance, "not-ready")).await?;
    let pause = pid_of(&cri.pod_status_verbose(&not_ready.id).await?.info)?;
    kill(pause)?;
    // Told of at once, and written a moment later.
    let record = place(&instance.folder().join("root"), "pods").join(&not_ready.id);
    while !fs::read_to_string(record.join("record.json"))?.contains("\"state\":\"NotReady\"") {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    racing.until_both(instance).await?;
    let root = instance.folder().join("root");
    keep_objects(&root)?;
    keep(&root.join("cni/builtin/leases"), "leases")?;
    keep(&root.join("images"), "images")?;
    case.instance()?.kill().await?;
    keep_rows(&root.join("index.redb"))?;
    case.instance()?.launch().await?;
    Ok(())
}

/// The network's files where CNI plugins are.
async fn plugins(case: &mut Case) -> Result<()> {
    let options = Options {
        net: Net::Cni,
        ..case.options()
    };
    let instance = case.start_with(options).await?;
    let runtime_config = Some(RuntimeConfig {
        network_config: Some(NetworkConfig {
            pod_cidr: "10.1.0.0/24,fd00:1::/64".into(),
        }),
    });
    let request = UpdateRuntimeConfigRequest { runtime_config };
    let mut runtime = instance.cri()?.runtime.clone();
    runtime.update_runtime_config(request).await?;
    let mut config = pod_config(instance, "plugins");
    config.port_mappings = ports();
    Pod::run(instance.cri()?, config).await?;
    let cni = instance.folder().join("root/cni");
    keep(&cni.join("attachments"), "attachments")?;
    fs::copy(
        cni.join("pod_cidrs"),
        out("pod_cidrs")?.join("pod_cidrs.json"),
    )?;
    Ok(())
}

fn kill(pid: u32) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("pid")?;
    Ok(kill_process(pid, Signal::KILL)?)
}

fn ports() -> Vec<PortMapping> {
    let port = |protocol: Protocol, container_port, host_port| PortMapping {
        protocol: protocol.into(),
        container_port,
        host_port,
        host_ip: String::new(),
    };
    vec![
        port(Protocol::Tcp, 80, 28_080),
        port(Protocol::Udp, 53, 28_053),
    ]
}

async fn ready_pod(instance: &Instance) -> Result<Pod> {
    let mut config = pod_config(instance, "ready");
    config.port_mappings = ports();
    let linux = config.linux.get_or_insert_default();
    linux.sysctls = [("net.ipv4.ip_unprivileged_port_start".into(), "0".into())].into();
    linux.overhead = Some(limits());
    linux.resources = Some(limits());
    let context = linux.security_context.get_or_insert_default();
    context.supplemental_groups = vec![1234];
    context.run_as_user = Some(Int64Value { value: 1000 });
    context.run_as_group = Some(Int64Value { value: 1000 });
    Pod::run(instance.cri()?, config).await
}

fn limits() -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: 500,
        ..LinuxContainerResources::default()
    }
}

/// The host's namespaces, but for the container that looks into another one's.
async fn host_pod(instance: &Instance) -> Result<()> {
    let mut config = pod_config(instance, "host");
    let modes = NamespaceOption {
        pid: NamespaceMode::Node.into(),
        ..namespaces(NamespaceMode::Node, NamespaceMode::Node)
    };
    config.hostname = String::new();
    let linux = config.linux.get_or_insert_default();
    let context = linux.security_context.get_or_insert_default();
    context.namespace_options = Some(modes.clone());
    context.privileged = true;
    let pod = Pod::run(instance.cri()?, config).await?;
    let mut privileged = named("privileged", script("exec sleep 4321"));
    security(&mut privileged).privileged = true;
    security(&mut privileged).namespace_options = Some(modes);
    pod.start(&privileged).await?;
    Ok(())
}

fn named(name: &str, mut config: ContainerConfig) -> ContainerConfig {
    config.metadata = Some(ContainerMetadata {
        name: name.to_owned(),
        attempt: 2,
    });
    config.log_path = format!("{name}/2.log");
    config
}

async fn some_containers(instance: &Instance, pod: &Pod) -> Result<()> {
    pod.create(&named("created", container(&["true"]))).await?;
    let mut running = named("running", script("exec sleep 4321"));
    running.labels = [("io.kubernetes.container.name".into(), "running".into())].into();
    running.annotations = [("berth.test/note".into(), "ä \"quoted\"\n".into())].into();
    running.envs = vec![KeyValue {
        key: "NAME".into(),
        value: "wert ü".into(),
    }];
    running.working_dir = "/tmp".into();
    let running = pod.start(&running).await?;

    pod.start(&named("exited", script("exit 3")))
        .await?
        .wait()
        .await?;
    pod.start(&named("completed", script("exit 0")))
        .await?
        .wait()
        .await?;
    let mut hungry = named(
        "hungry",
        script("exec dd if=/dev/zero of=/dev/null bs=64M count=9"),
    );
    resources(&mut hungry).memory_limit_in_bytes = 16 << 20;
    let status = pod.start(&hungry).await?.wait().await?;
    ensure_eq!(status.reason, "OOMKilled");
    let lost = pod.start(&named("lost", script("exec sleep 4321"))).await?;
    let monitor = process::process(lost.pid().await?).context("no process")?;
    kill(monitor.parent)?;
    lost.wait().await?;
    let failed = pod
        .create(&named("failed", container(&["/none/there"])))
        .await?;
    ensure!(
        instance.cri()?.start(&failed.id).await.is_err(),
        "it started"
    );

    let mut terminal = named("terminal", script("exec sleep 4321"));
    (terminal.tty, terminal.stdin, terminal.stdin_once) = (true, true, true);
    pod.start(&terminal).await?;

    let volume = instance.folder().join("volume");
    fs::create_dir_all(&volume)?;
    let mut volumes = named("volumes", script("exec sleep 4321"));
    volumes.mounts = vec![
        mount(&volume, "/data", false),
        mount(&volume, "/fixed", true),
    ];
    volumes.devices = vec![Device {
        container_path: "/dev/other".into(),
        host_path: "/dev/null".into(),
        permissions: "rw".into(),
    }];
    pod.start(&volumes).await?;
    pod.start(&confined()).await?;

    let mut target = named("target", script("exec sleep 4321"));
    security(&mut target).namespace_options = Some(NamespaceOption {
        target_id: running.id.clone(),
        ..namespaces(NamespaceMode::Pod, NamespaceMode::Target)
    });
    pod.start(&target).await?;
    let mut configured = named("configured", container(&[]));
    configured.image = Some(berth_tests::cri::image_spec(images::CONFIGURED));
    pod.create(&configured).await?;
    Ok(())
}

/// All that keeps a container in its place.
fn confined() -> ContainerConfig {
    let mut config = named("confined", script("exec sleep 4321"));
    *resources(&mut config) = LinuxContainerResources {
        cpuset_cpus: "0".into(),
        ..limits()
    };
    let context = security(&mut config);
    context.capabilities = Some(Capability {
        add_capabilities: vec!["NET_ADMIN".into()],
        drop_capabilities: vec!["MKNOD".into()],
        add_ambient_capabilities: Vec::new(),
    });
    context.run_as_user = Some(Int64Value { value: 1000 });
    context.run_as_group = Some(Int64Value { value: 1001 });
    context.supplemental_groups = vec![1002, 1003];
    context.readonly_rootfs = true;
    context.no_new_privs = true;
    context.masked_paths = vec!["/proc/kcore".into()];
    context.readonly_paths = vec!["/proc/sys".into()];
    context.seccomp = Some(SecurityProfile {
        profile_type: security_profile::ProfileType::RuntimeDefault.into(),
        localhost_ref: String::new(),
    });
    config
}

/// Where the programs keep a kind of object.
fn place(root: &Path, kind: &str) -> PathBuf {
    let dir = root.join("records").join(kind);
    if dir.is_dir() { dir } else { root.join(kind) }
}

/// Looks for objects that are being made: their records say so for milliseconds.
struct Racing {
    over: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<[Option<Vec<u8>>; 2]>,
}

impl Racing {
    const KINDS: [(&'static str, &'static str); 2] = [
        ("pods", "\"phase\":\"Creating\""),
        ("containers", "\"creating\":true"),
    ];

    fn start(folder: &Path) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (told, root) = (over.clone(), folder.join("root"));
        let task = tokio::task::spawn_blocking(move || {
            let mut found = [None, None];
            while found.iter().any(Option::is_none) && !told.load(Ordering::Relaxed) {
                for (found, (kind, mark)) in found.iter_mut().zip(Self::KINDS) {
                    let entries = fs::read_dir(place(&root, kind)).into_iter().flatten();
                    for entry in entries.flatten() {
                        let text = fs::read(entry.path().join("record.json")).unwrap_or_default();
                        if String::from_utf8_lossy(&text).contains(mark) {
                            *found = Some(text);
                        }
                    }
                }
            }
            found
        });
        Self { over, task }
    }

    /// Makes more of them until one of each kind was seen, and keeps those.
    async fn until_both(self, instance: &Instance) -> Result<()> {
        for number in 0..200 {
            if self.task.is_finished() {
                break;
            }
            let pod = Pod::run(
                instance.cri()?,
                pod_config(instance, &format!("more-{number}")),
            )
            .await?;
            pod.create(&named("more", container(&["true"]))).await?;
            pod.remove().await?;
        }
        self.over.store(true, Ordering::Relaxed);
        for (found, (kind, _)) in self.task.await?.into_iter().zip(Self::KINDS) {
            let found = found.with_context(|| format!("none of the {kind} was seen in time"))?;
            fs::write(out(kind)?.join("half-made.json"), found)?;
        }
        Ok(())
    }
}

/// The records of pods and containers, by the names that these have here, and where there are, their identities.
fn keep_objects(root: &Path) -> Result<()> {
    for kind in ["pods", "containers"] {
        for entry in fs::read_dir(place(root, kind))? {
            let dir = entry?.path();
            let text = fs::read(dir.join("record.json"))?;
            let value: serde_json::Value = serde_json::from_slice(&text)?;
            let name = value
                .pointer("/data/spec/metadata/name")
                .and_then(serde_json::Value::as_str)
                .context("a record without a name")?;
            fs::write(out(kind)?.join(format!("{name}.json")), &text)?;
            if let Ok(identity) = fs::read(dir.join("identity.json")) {
                let file = out(&format!("identities/{kind}"))?.join(format!("{name}.json"));
                fs::write(file, identity)?;
            }
        }
    }
    Ok(())
}

/// All files of a folder, but for what is being written.
fn keep(from: &Path, kind: &str) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let (dir, name) = match name.to_string_lossy().as_ref() {
            "last" => (out("last")?, "last".to_owned()),
            name => (out(kind)?, name.trim_end_matches(".json").to_owned()),
        };
        fs::copy(entry.path(), dir.join(format!("{name}.json")))?;
    }
    Ok(())
}

/// The rows of the image index.
fn keep_rows(file: &Path) -> Result<()> {
    let database = redb::Database::open(file)?;
    let table: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("images");
    for row in database.begin_read()?.open_table(table)?.iter()? {
        let (key, value) = row?;
        fs::write(
            out("index")?.join(format!("{}.json", key.value())),
            value.value(),
        )?;
    }
    Ok(())
}
