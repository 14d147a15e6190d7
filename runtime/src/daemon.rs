//! The composition root: what there is, made in the order in which it is read here.

mod disks;
mod driver;
mod lock;
mod node;
mod observe;
mod selinux;

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::apparmor::{self, AppArmor};
use crate::config::{Config, LogFormat};
use crate::container::ContainerManager;
use crate::events::Events;
use crate::host::HostFacts;
use crate::image::ImageManager;
use crate::metrics::Metrics;
use crate::model::chain;
use crate::network::Network;
use crate::pod::PodManager;
use crate::shim::Launcher;
use crate::stats::Stats;
use crate::storage::Storage;
use crate::store::Programs;
use crate::{admin, container, cri, image, network, pod, recover, shim, spec, sys, telemetry};
use disks::Disks;
use driver::Driver;

/// How long RPCs under way may take to end after a request to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// Where the helpers are when they are not beside the executable.
const LIBEXEC: &str = "/usr/libexec/berth";

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// In words, for the terminal: why it could not start, or why it ended.
pub fn main(config: Config) -> Result<(), String> {
    let format = match config.log_format {
        LogFormat::Text => telemetry::Format::Text,
        LogFormat::Json => telemetry::Format::Json,
    };
    let log = telemetry::init(format, &config.log_level).map_err(|e| chain(&e))?;
    sys::memory::return_large_allocations();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().min(4)))
        .max_blocking_threads(64)
        .thread_keep_alive(Duration::from_secs(5))
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the async runtime: {e}"))?;
    let outcome = runtime.block_on(serve(Arc::new(config), log));
    // Blocking calls that hang on a dead disk must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn serve(config: Arc<Config>, log: telemetry::LogFilter) -> Result<(), String> {
    make_dir(&config.root)?;
    make_dir(&config.state)?;
    let locks = [lock::take(&config.root)?, lock::take(&config.state)?];
    let disks = Disks::new([&config.root, &config.state], &locks)?;
    let parts = Parts::build(&config).await?;
    let listener = listen(&config.listen)?;
    let admin_listener = listen(&config.admin)?;

    let (stop, stopping) = watch::channel(false);
    let ready = Arc::new(cri::Ready::default());
    let deps = cri::Deps {
        pods: parts.pods.clone(),
        containers: parts.containers.clone(),
        images: parts.images.clone(),
        stats: parts.stats.clone(),
        node: Arc::new(node::describe(&config, &parts, disks)),
        metrics: parts.metrics.clone(),
        ready: ready.clone(),
    };
    let cri_server = tokio::spawn(cri::serve(listener, deps, told(stopping.clone())));
    let admin_deps = admin::Deps {
        images: parts.images.clone(),
        metrics: parts.metrics.clone(),
        log,
        config: config.clone(),
        ready: ready.clone(),
    };
    let admin_server = tokio::spawn(admin::serve(admin_listener, admin_deps, stopping));

    let (recovered, ()) = tokio::join!(
        recover::all(&parts.containers, &parts.pods, &parts.images),
        parts.apparmor.load_default(),
    );
    recovered?;
    ready.set();
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(socket = %config.listen.display(), "serving the CRI");
    if let Err(error) = sys::memory::release_code() {
        tracing::debug!(%error, "the code of start-up stays in memory");
    }

    let mut cri_server = cri_server;
    let failed = tokio::select! {
        told = wait_for_stop() => told.err(),
        ended = &mut cri_server => Some(format!("the CRI server ended by itself: {ended:?}")),
    };
    tracing::info!("stopping; containers go on");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    stop.send_replace(true);
    let servers = async {
        if failed.is_none() {
            let _ = cri_server.await;
        }
        let _ = admin_server.await;
    };
    let _ = tokio::time::timeout(DRAIN, servers).await;
    parts.close(&config).await;
    for socket in [&config.listen, &config.admin] {
        // Another daemon cannot have made it: the locks are still ours.
        let _ = std::fs::remove_file(socket);
    }
    failed.map_or(Ok(()), Err)
}

/// Everything that the daemon is made of.
struct Parts {
    facts: Arc<HostFacts>,
    metrics: Arc<Metrics>,
    network: Arc<Network>,
    apparmor: Arc<AppArmor>,
    pods: Arc<PodManager>,
    containers: Arc<ContainerManager>,
    images: Arc<ImageManager>,
    stats: Stats,
    launcher: Arc<Launcher>,
    driver: Driver,
}

impl Parts {
    async fn build(config: &Arc<Config>) -> Result<Self, String> {
        let facts = Arc::new(HostFacts::probe().map_err(|e| chain(&e))?);
        let open_files = sys::process::OpenFiles::raise()
            .map_err(|e| format!("cannot raise the limit of open files: {e}"))?;
        let driver = Driver::choose(config, &facts)?;
        let metrics = Arc::new(Metrics::new());
        let events = Events::default();
        let storage = Storage::open(&config.root).map_err(|e| chain(&e))?;
        let programs = Programs::open(config.state.join("seccomp")).map_err(|e| chain(&e))?;
        let programs = Arc::new(programs);
        let seccomp = Arc::new(spec::seccomp::Compiler::new(facts.kernel).map_err(|e| chain(&e))?);
        let apparmor = apparmor::Config::of_host(facts.apparmor, config.state.clone());
        let apparmor = Arc::new(AppArmor::open(apparmor));
        let builtin = config
            .builtin_network
            .as_ref()
            .map(|text| text.parse())
            .transpose();
        let builtin = builtin.map_err(|e: network::NotASubnet| format!("network.builtin: {e}"))?;
        let network = Network::open(network::NetworkConfig {
            cni_conf_dir: config.cni_conf_dir.clone(),
            cni_bin_dirs: config.cni_bin_dirs.clone(),
            cache_dir: config.root.join("cni"),
            builtin,
            instance: config.instance.clone(),
            state_dir: config.state.join("network"),
            netns_dir: config.netns_dir.clone(),
            plugin_timeout: network::DEFAULT_PLUGIN_TIMEOUT,
        });
        let network = Arc::new(network.map_err(|e| chain(&e))?);
        let stage = config.state.join("stage");
        make_dir(&stage.join("rootfs"))?;
        sys::mount::make_private_mount(&stage)
            .map_err(|e| format!("cannot make {} a private mount: {e}", stage.display()))?;
        make_dir(&stage.join("rootfs"))?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let launcher = Launcher::open(shim::LauncherConfig {
            shim: helper("berth-shim")?,
            worker: helper("berth-worker")?,
            state_dir: config.state.clone(),
            shims: driver.shims(),
            open_files,
            events: sender,
            boot_id: facts.boot_id.clone(),
            left_behind: metrics.monitors_left_behind.clone(),
        });
        let launcher = Arc::new(launcher.map_err(|e| chain(&e))?);
        let pods = PodManager::open(pod::Deps {
            config: config.clone(),
            facts: facts.clone(),
            network: network.clone(),
            launcher: launcher.clone(),
            seccomp: seccomp.clone(),
            programs: programs.clone(),
            apparmor: apparmor.clone(),
            events: events.clone(),
            metrics: metrics.clone(),
            cgroups: driver.pods(),
        });
        let pods = Arc::new(pods.map_err(|e| chain(&e))?);
        let containers = ContainerManager::open(
            container::Deps {
                config: config.clone(),
                facts: facts.clone(),
                launcher: launcher.clone(),
                storage: storage.clone(),
                seccomp,
                programs,
                apparmor: apparmor.clone(),
                events: events.clone(),
                metrics: metrics.clone(),
            },
            receiver,
        );
        let containers = Arc::new(containers.map_err(|e| chain(&e))?);
        let stats = Stats::new(facts.clone(), storage.clone());
        let images = ImageManager::open(image::Config {
            storage,
            registry: config.as_ref().into(),
            pinned: config.pinned_images.clone(),
            parallel_layers: config.max_concurrent_layers,
            unpacked_limit: config.max_unpacked_gib << 30,
            metrics: metrics.clone(),
        });
        let images = Arc::new(images.map_err(|e| chain(&e))?);
        observe::register(&metrics, &pods, &containers, &images, events);
        Ok(Self {
            facts,
            metrics,
            network,
            apparmor,
            pods,
            containers,
            images,
            stats,
            launcher,
            driver,
        })
    }

    /// Leaves nothing behind that nobody needs: with pods, everything they stand on stays.
    async fn close(self, config: &Config) {
        if let Err(error) = sys::mount::detach_unmount(&config.state.join("stage")) {
            tracing::warn!(%error, "cannot unmount the staging directory");
        }
        if let Err(error) = self.network.shutdown().await {
            tracing::warn!(error = %chain(&error), "cannot remove the built-in network");
        }
        let (driver, launcher) = (self.driver, self.launcher);
        crate::blocking::run("remove empty cgroups", move || {
            launcher.close();
            driver.close();
        })
        .await;
    }
}

/// Ends when the daemon is told to stop.
async fn told(mut stopping: watch::Receiver<bool>) {
    // Fails only when the sender is gone, which means the same.
    let _ = stopping.wait_for(|stop| *stop).await;
}

fn make_dir(dir: &Path) -> Result<(), String> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(dir)
        .map_err(|e| format!("cannot make {}: {e}", dir.display()))
}

/// A helper beside this executable, else in the system's place.
fn helper(name: &str) -> Result<PathBuf, String> {
    let own = std::env::current_exe()
        .map_err(|e| format!("cannot tell where this executable is: {e}"))?;
    let beside = own.with_file_name(name);
    let installed = Path::new(LIBEXEC).join(name);
    [&beside, &installed]
        .into_iter()
        .find(|p| p.is_file())
        .cloned()
        .ok_or_else(|| {
            format!(
                "{name} is neither {} nor {}: build or install it",
                beside.display(),
                installed.display()
            )
        })
}

fn listen(path: &Path) -> Result<UnixListener, String> {
    let failed = |e: io::Error| format!("cannot listen on {}: {e}", path.display());
    if let Some(dir) = path.parent() {
        make_dir(dir)?;
    }
    // The locks are ours, so a socket that is there belongs to a daemon that is dead.
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
    Ok(listener)
}

async fn wait_for_stop() -> Result<(), String> {
    let listen = |kind| signal(kind).map_err(|e| format!("cannot listen for signals: {e}"));
    let (mut term, mut int) = (
        listen(SignalKind::terminate())?,
        listen(SignalKind::interrupt())?,
    );
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
