//! Runs integration tests: each with a daemon of its own, and a look afterwards at what is left behind.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_skip::Lack;
use tokio::sync::Semaphore;

use crate::cri::Cri;
use crate::images;
use crate::leak::Snapshot;
use crate::machine::unless_interrupted;
use crate::pods::{Pod, container, pod_config, use_host_network};
use crate::registry::Registry;
use crate::runtime::{Instance, Kind, Net, Options};

/// What a test's body returns.
pub type Outcome<'a> = Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>>;

/// A test.
#[derive(Clone, Copy)]
pub struct Test {
    /// module and function
    pub name: &'static str,
    /// the function
    pub body: for<'a> fn(&'a mut Case) -> Outcome<'a>,
    /// whether nothing else may run meanwhile (it measures)
    pub alone: bool,
    /// why containerd does not take it
    pub berth_only: Option<&'static str>,
    /// tells why this machine cannot run it
    pub unfit: Option<fn() -> Option<Lack>>,
}

impl std::fmt::Debug for Test {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Test {
    /// A test that may run beside others.
    #[must_use]
    pub const fn new(name: &'static str, body: for<'a> fn(&'a mut Case) -> Outcome<'a>) -> Self {
        Self {
            name,
            body,
            alone: false,
            berth_only: None,
            unfit: None,
        }
    }

    /// The same test, with nothing else running.
    #[must_use]
    pub const fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// The same test, only where `unfit` has nothing to say against the machine.
    #[must_use]
    pub const fn unless(mut self, unfit: fn() -> Option<Lack>) -> Self {
        self.unfit = Some(unfit);
        self
    }

    /// The same test, for Berth only.
    #[must_use]
    pub const fn berth_only(mut self, why: &'static str) -> Self {
        self.berth_only = Some(why);
        self
    }
}

/// Makes a [`Test`] of an async function that takes `&mut Case`.
#[macro_export]
macro_rules! test {
    ($function:ident) => {
        $crate::runner::Test::new(
            concat!(module_path!(), "::", stringify!($function)),
            |case| Box::pin($function(case)),
        )
    };
}

/// Fails unless both are equal, and shows both.
#[macro_export]
macro_rules! ensure_eq {
    ($left:expr, $right:expr $(,)?) => {
        match (&$left, &$right) {
            (left, right) => anyhow::ensure!(
                left == right,
                "{} is\n    {:?}\n  and not\n    {:?}",
                stringify!($left),
                left,
                right
            ),
        }
    };
}

/// What all tests of a run share.
#[derive(Debug)]
pub struct Shared {
    /// the registry with all images
    pub registry: Registry,
    /// the folder with its hosts.toml files
    pub hosts: PathBuf,
    kind: Kind,
    over: AtomicBool,
    work: tempfile::TempDir,
}

impl Shared {
    /// Starts the registry and fills it.
    ///
    /// # Errors
    /// When a tool is missing.
    pub async fn start() -> Result<Self> {
        let work = tempfile::Builder::new().prefix("bt-shared-").tempdir()?;
        let registry = Registry::start(&work.path().join("registry")).await?;
        let hosts = registry.write_hosts(&work.path().join("hosts"))?;
        images::push_all(registry.client()).await?;
        let kind = Kind::from_env()?;
        Ok(Self {
            registry,
            hosts,
            kind,
            over: AtomicBool::new(false),
            work,
        })
    }

    /// A folder that goes with the run.
    #[must_use]
    pub fn work(&self) -> &Path {
        self.work.path()
    }
}

/// One test while it runs.
#[derive(Debug)]
pub struct Case {
    shared: Arc<Shared>,
    instances: Vec<(Instance, Snapshot)>,
}

impl Case {
    /// The options that a daemon gets if the test does not care: the built-in network.
    #[must_use]
    pub fn options(&self) -> Options {
        Options {
            kind: self.shared.kind,
            net: Net::Builtin,
            hosts: self.shared.hosts.clone(),
            extra: String::new(),
            program: None,
        }
    }

    /// What all tests share.
    #[must_use]
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Starts a daemon, pulls busybox, runs and removes one pod with a container, and notes what is there from then on.
    ///
    /// # Errors
    /// When any of that fails.
    pub async fn start_with(&mut self, options: Options) -> Result<&mut Instance> {
        let instance = Instance::start(options).await?;
        self.instances.push((instance, Snapshot::default()));
        let (instance, before) = self.instances.last_mut().context("no instance")?;
        let cri = instance.cri()?;
        cri.pull(images::BUSYBOX).await.context("pulling busybox")?;
        let mut warm_up = pod_config(instance, "warm-up");
        if instance.options.net == Net::None {
            use_host_network(&mut warm_up);
        }
        let pod = Pod::run(cri, warm_up).await?;
        pod.start(&container(&["true"])).await?.wait().await?;
        pod.remove().await?;
        *before = instance.snapshot();
        Ok(instance)
    }

    /// Starts a daemon and does nothing with it.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start_bare(&mut self, options: Options) -> Result<&mut Instance> {
        let instance = Instance::start(options).await?;
        let before = instance.snapshot();
        self.instances.push((instance, before));
        self.instance()
    }

    /// The daemon that was started first.
    ///
    /// # Errors
    /// When none was.
    pub fn first(&self) -> Result<&Instance> {
        Ok(&self.instances.first().context("no daemon was started")?.0)
    }

    /// Starts the default daemon.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start(&mut self) -> Result<&mut Instance> {
        let options = self.options();
        self.start_with(options).await
    }

    /// The default daemon and a pod.
    ///
    /// # Errors
    /// When either does not come up.
    pub async fn pod(&mut self) -> Result<Pod> {
        let instance = self.start().await?;
        Pod::run(instance.cri()?, pod_config(instance, "pod")).await
    }

    /// The daemon that was started last.
    ///
    /// # Errors
    /// When none was.
    pub fn instance(&mut self) -> Result<&mut Instance> {
        Ok(&mut self
            .instances
            .last_mut()
            .context("no daemon was started")?
            .0)
    }

    /// Takes files of the daemon that was started last as if they had been there when it was: another version of it may
    /// have others.
    ///
    /// # Errors
    /// When none was.
    pub fn know(&mut self, files: &[PathBuf]) -> Result<()> {
        let (_, before) = self.instances.last_mut().context("no daemon was started")?;
        for file in files {
            before.know(file);
        }
        Ok(())
    }

    /// The client of the daemon that was started last.
    ///
    /// # Errors
    /// When none was.
    pub fn cri(&self) -> Result<&Cri> {
        self.instances
            .last()
            .context("no daemon was started")?
            .0
            .cri()
    }

    /// Removes the pods, compares with the beginning, ends the daemons, and looks again.
    async fn finish(&mut self) -> Result<()> {
        for (instance, before) in &mut self.instances {
            if instance.pid().is_some() {
                instance
                    .remove_pods()
                    .await
                    .context("removing the pods at the end")?;
                instance
                    .expect_clean(before, Duration::from_secs(10))
                    .await?;
                instance.terminate().await?;
            }
            if instance.options.kind == Kind::Berth {
                Self::nothing_left(instance).await?;
            }
        }
        Ok(())
    }

    async fn nothing_left(instance: &Instance) -> Result<()> {
        let mut scope = instance.scope();
        scope.folders.clear();
        let plugins = instance.options.net != Net::Builtin;
        for attempt in 0..25 {
            let left = Snapshot::take(&scope).beyond(&Snapshot::default());
            // The bridge plugin leaves its bridge for the next pod; that is not ours to remove.
            let left: Vec<&str> = left
                .lines()
                .filter(|line| !(plugins && line.contains("network link")))
                .collect();
            if left.is_empty() {
                break;
            }
            ensure!(
                attempt < 24,
                "left after the daemon's end:\n{}",
                left.join("\n")
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok(())
    }

    fn logs(&self) -> String {
        let tail = |(instance, _): &(Instance, Snapshot)| {
            format!(
                "  log of {}:\n    {}",
                instance.name,
                instance.log_tail().replace('\n', "\n    ")
            )
        };
        self.instances
            .iter()
            .map(tail)
            .collect::<Vec<_>>()
            .join("\n")
    }

    async fn sweep(&mut self) {
        for (instance, _) in &mut self.instances {
            instance.sweep().await;
        }
    }
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    /// passed
    pub passed: usize,
    /// failed
    pub failed: usize,
    /// not run, each with a printed reason
    pub skipped: usize,
}

/// Runs the tests whose names contain one of the filters (all, when there is none).
///
/// # Errors
/// When the registry does not come up.
pub async fn run(tests: &[Test], filters: &[String], jobs: usize) -> Result<Count> {
    let names: BTreeSet<&str> = tests.iter().map(|test| test.name).collect();
    ensure!(names.len() == tests.len(), "two tests have the same name");
    let mut count = Count::default();
    let chosen: Vec<Test> = tests
        .iter()
        .filter(|test| filters.is_empty() || filters.iter().any(|part| test.name.contains(part)))
        .copied()
        .collect();
    let tables = crate::machine::tables();
    let shared = Arc::new(Shared::start().await?);
    let (mut runnable, mut failed) = (Vec::new(), Vec::new());
    for test in chosen {
        if let Some(why) = test.berth_only.filter(|_| shared.kind != Kind::Berth) {
            println!("SKIP {}: {why}", test.name);
            count.skipped += 1;
            continue;
        }
        match test.unfit.and_then(|unfit| unfit()) {
            Some(lack) => match lack.note(test.name) {
                Ok(()) => {
                    println!("SKIP {}: {lack}", test.name);
                    count.skipped += 1;
                }
                Err(error) => {
                    println!("FAIL {error}");
                    failed.push(test.name);
                }
            },
            None => runnable.push(test),
        }
    }
    let (alone, together): (Vec<Test>, Vec<Test>) =
        runnable.into_iter().partition(|test| test.alone);
    let watched = Arc::clone(&shared);
    let watcher = tokio::spawn(async move {
        // Tests that have not begun are not begun any more.
        let _ = unless_interrupted(std::future::pending::<Result<()>>()).await;
        watched.over.store(true, Ordering::Relaxed);
    });
    for (group, width) in [(together, jobs.max(1)), (alone, 1)] {
        for (name, good) in run_group(&shared, group, width).await {
            if good {
                count.passed += 1;
            } else {
                failed.push(name);
            }
        }
    }
    watcher.abort();
    crate::machine::forget_plugin_tables(&tables);
    count.failed = failed.len();
    for name in failed {
        println!("FAILED {name}");
    }
    Ok(count)
}

async fn run_group(
    shared: &Arc<Shared>,
    tests: Vec<Test>,
    width: usize,
) -> Vec<(&'static str, bool)> {
    let permits = Arc::new(Semaphore::new(width));
    let mut tasks = Vec::new();
    for test in tests {
        let (shared, permits) = (Arc::clone(shared), Arc::clone(&permits));
        tasks.push((
            test.name,
            tokio::spawn(async move {
                let _permit = permits.acquire_owned().await;
                run_one(shared, test).await
            }),
        ));
    }
    let mut results = Vec::new();
    for (name, task) in tasks {
        results.push((name, task.await.unwrap_or(false)));
    }
    results
}

async fn run_one(shared: Arc<Shared>, test: Test) -> bool {
    let start = Instant::now();
    if shared.over.load(Ordering::Relaxed) {
        return false;
    }
    let mut case = Case {
        shared,
        instances: Vec::new(),
    };
    let limit = Duration::from_secs(180);
    let mut outcome =
        match tokio::time::timeout(limit, unless_interrupted((test.body)(&mut case))).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("still running after {} s", limit.as_secs())),
        };
    if outcome.is_ok() {
        outcome = match tokio::time::timeout(limit, case.finish()).await {
            Ok(outcome) => outcome.context("after the test"),
            Err(_) => Err(anyhow::anyhow!("the clean-up hangs")),
        };
    }
    let seconds = start.elapsed().as_secs_f64();
    match &outcome {
        Ok(()) => println!("ok   {} ({seconds:.1} s)", test.name),
        Err(error) => {
            println!(
                "FAIL {} ({seconds:.1} s)\n  {error:#}\n{}",
                test.name,
                case.logs()
            );
        }
    }
    case.sweep().await;
    outcome.is_ok()
}
