//! The composition root: what there is, made in the order in which it is read here.

mod disks;
mod driver;
mod lock;
mod node;
mod observe;
mod places;
mod reload;
mod selinux;
mod signals;
mod socket;

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};

use crate::apparmor::{self, AppArmor};
use crate::config::{Config, Live, LogFormat};
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
use crate::{
    admin, blocking, container, cri, image, network, pod, recover, shim, spec, sys, telemetry,
};
use disks::Disks;
use driver::Driver;
use reload::Reload;
use signals::{Signals, Told};

pub use reload::Load;

/// How long RPCs under way may take to end after a request to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// How often memory is looked for that can be given back.
const SURPLUS_EVERY: Duration = Duration::from_secs(5);

/// Where the helpers are when they are not beside the executable.
const LIBEXEC: &str = "/usr/libexec/berth";

/// Runs the daemon until it is told to stop, by the configuration that `load` reads, now and when it is told to
/// read it again.
///
/// # Errors
/// In words, for the terminal: why it could not start, or why it ended.
pub fn main(load: Load) -> Result<(), String> {
    let config = load()?;
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
    let outcome = runtime.block_on(serve(Arc::new(config), load, log));
    // Blocking calls that hang on a dead disk must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Whatever fails on the way, what was made until then goes with what holds it.
async fn serve(config: Arc<Config>, load: Load, log: telemetry::LogFilter) -> Result<(), String> {
    let signals = Signals::listen()?;
    places::check(&config)?;
    places::check_beside(&config, &lock::others(&config))?;
    make_dir(&config.root)?;
    make_dir(&config.state)?;
    let locks = [lock::take(&config.root)?, lock::take(&config.state)?];
    let _instance = lock::instance(&config)?;
    let (listener, _name) = listen("listen", &config.listen)?;
    let (admin_listener, _admin_name) = listen("admin", &config.admin)?;
    let disks = Disks::new([&config.root, &config.state], &locks)?;
    let parts = Parts::build(&config).await?;
    let front = Front {
        listener,
        admin_listener,
        signals,
        log,
        load,
        disks,
    };
    let outcome = front.run(&config, &parts).await;
    parts.close().await;
    outcome
}

/// What faces the world.
struct Front {
    listener: UnixListener,
    admin_listener: UnixListener,
    signals: Signals,
    log: telemetry::LogFilter,
    load: Load,
    disks: Disks,
}

impl Front {
    /// Takes up what is there, and serves until told to stop.
    async fn run(self, config: &Arc<Config>, parts: &Parts) -> Result<(), String> {
        let (stop, stopping) = watch::channel(false);
        let ready = Arc::new(cri::Ready::default());
        let live = Arc::new(Live::new(config.clone()));
        let deps = cri::Deps {
            pods: parts.pods.clone(),
            containers: parts.containers.clone(),
            images: parts.images.clone(),
            stats: parts.stats.clone(),
            node: Arc::new(node::describe(&live, parts, self.disks)),
            metrics: parts.metrics.clone(),
            ready: ready.clone(),
        };
        let mut cri_server = tokio::spawn(cri::serve(self.listener, deps, told(stopping.clone())));
        let admin_deps = admin::Deps {
            images: parts.images.clone(),
            metrics: parts.metrics.clone(),
            log: self.log.clone(),
            config: live.clone(),
            ready: ready.clone(),
        };
        let admin_server = tokio::spawn(admin::serve(self.admin_listener, admin_deps, stopping));
        let reload = Reload::new(self.load, live, self.log, parts.images.clone());
        let mut signals = self.signals;
        let report = observe::report(signals.take_report(), parts);
        let served = tokio::select! {
            served = serve_until_told(config, parts, &ready, &reload, &mut signals) => Ok(served),
            () = report => Err("the signals of the machine are not heard any more".to_owned()),
            ended = &mut cri_server => Err(format!("the CRI server ended by itself: {ended:?}")),
        };
        tracing::info!("stopping; containers go on");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        stop.send_replace(true);
        let servers = async {
            if served.is_ok() {
                let _ = cri_server.await;
            }
            let _ = admin_server.await;
        };
        let _ = tokio::time::timeout(DRAIN, servers).await;
        served?
    }
}

async fn serve_until_told(
    config: &Config,
    parts: &Parts,
    ready: &cri::Ready,
    reload: &Arc<Reload>,
    signals: &mut Signals,
) -> Result<(), String> {
    let recovery = async {
        tokio::join!(
            recover::all(
                &parts.containers,
                &parts.pods,
                &parts.images,
                &parts.network
            ),
            parts.apparmor.load_default(),
        )
        .0
    };
    tokio::select! {
        recovered = recovery => recovered?,
        // As good as being killed, which recovery survives.
        () = signals.stop() => return Ok(()),
    }
    ready.set();
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!(socket = %config.listen.display(), "serving the CRI");
    if let Err(error) = sys::memory::release_code() {
        tracing::debug!(%error, "the code of start-up stays in memory");
    }
    let told = async {
        while signals.next().await == Told::Reload {
            reload.begin();
        }
    };
    tokio::select! {
        () = told => Ok(()),
        () = keep_small() => Ok(()),
    }
}

/// Gives back, now and then, the memory of what is gone.
async fn keep_small() {
    let mut surplus = sys::memory::Surplus::default();
    loop {
        tokio::time::sleep(SURPLUS_EVERY).await;
        if surplus.is_there() {
            blocking::run("give memory back", sys::memory::Surplus::give_back).await;
            surplus.settle();
        }
    }
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
    ground: Ground,
}

/// What the daemon makes on the machine before it serves. Dropping it takes away what nobody needs any more:
/// with pods, everything they stand on stays. Blocks for a moment then.
struct Ground {
    driver: Driver,
    /// Mounted.
    stage: Option<PathBuf>,
    launcher: Option<Arc<Launcher>>,
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some(launcher) = &self.launcher {
            launcher.close();
        }
        self.driver.close();
        if let Some(stage) = &self.stage
            && let Err(error) = sys::mount::detach_unmount(stage)
        {
            tracing::warn!(%error, "cannot unmount the staging directory");
        }
    }
}

impl Ground {
    fn new(driver: Driver) -> Self {
        Self {
            driver,
            stage: None,
            launcher: None,
        }
    }

    fn make_stage(&mut self, state: &Path) -> Result<(), String> {
        let stage = state.join("stage");
        make_dir(&stage.join("rootfs"))?;
        // Before it is mounted: what fails half-way is undone as well.
        self.stage = Some(stage.clone());
        sys::mount::make_private_mount(&stage)
            .map_err(|e| format!("cannot make {} a private mount: {e}", stage.display()))?;
        make_dir(&stage.join("rootfs"))
    }

    fn launch(&mut self, config: shim::LauncherConfig) -> Result<Arc<Launcher>, String> {
        let launcher = Arc::new(Launcher::open(config).map_err(|e| chain(&e))?);
        Ok(self.launcher.insert(launcher).clone())
    }
}

impl Parts {
    async fn build(config: &Arc<Config>) -> Result<Self, String> {
        let facts = Arc::new(HostFacts::probe().map_err(|e| chain(&e))?);
        let open_files = sys::process::OpenFiles::raise()
            .map_err(|e| format!("cannot raise the limit of open files: {e}"))?;
        let mut ground = Ground::new(Driver::choose(config, &facts)?);
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
        ground.make_stage(&config.state)?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let launcher = ground.launch(shim::LauncherConfig {
            shim: helper("berth-shim")?,
            worker: helper("berth-worker")?,
            state_dir: config.state.clone(),
            shims: ground.driver.shims(),
            open_files,
            events: sender,
            boot_id: facts.boot_id.clone(),
            left_behind: metrics.monitors_left_behind.clone(),
        })?;
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
            cgroups: ground.driver.pods(),
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
            ground,
        })
    }

    /// Leaves nothing behind that nobody needs.
    async fn close(self) {
        if let Err(error) = self.network.shutdown().await {
            tracing::warn!(error = %chain(&error), "cannot remove the built-in network");
        }
        let ground = self.ground;
        crate::blocking::run("remove empty cgroups", move || drop(ground)).await;
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

fn listen(key: &str, path: &Path) -> Result<(UnixListener, socket::Name), String> {
    if let Some(dir) = path.parent() {
        make_dir(dir)?;
    }
    socket::listen(key, path)
}
