//! What the benchmark measures, through the CRI only, so that any runtime can be measured.

mod logs;
pub mod pulls;
pub mod table;

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use berth_cri_api::v1::*;
use tonic::{Code, Status};

use crate::cri::Cri;
use crate::images;
use crate::pods::{Ctr, Pod, container, pod_config};
use crate::process;
use crate::runtime::Instance;

/// One figure; `None` when the runtime does not have what it measures.
#[derive(Clone, Debug)]
pub struct Figure {
    /// what was measured
    pub name: String,
    /// its unit
    pub unit: &'static str,
    /// the value
    pub value: Option<f64>,
    /// whether more is better
    pub more_is_better: bool,
}

impl Figure {
    /// One figure; of rates more is better.
    #[must_use]
    pub fn new(name: &str, unit: &'static str, value: Option<f64>) -> Self {
        Self {
            name: name.to_owned(),
            unit,
            value,
            more_is_better: matches!(unit, "pods/s" | "MiB/s"),
        }
    }
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// sequential pods
    pub pods: usize,
    /// execs
    pub execs: usize,
    /// lines of 64 bytes
    pub lines: u64,
    /// pulls of the large image
    pub pulls: usize,
}

impl Effort {
    /// What the published figures are made with.
    pub const FULL: Self = Self {
        pods: 40,
        execs: 200,
        lines: 16 * 1024 * 1024,
        pulls: 3,
    };
    /// A quick look.
    pub const QUICK: Self = Self {
        pods: 8,
        execs: 20,
        lines: 1024 * 1024,
        pulls: 1,
    };
}

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// pods one after the other, commands in one of them, memory and lists of many, many at a time
    Pods,
    /// log throughput
    Logs,
    /// large images
    Pulls,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pods, Self::Logs, Self::Pulls];
}

/// A runtime under measurement.
#[derive(Debug)]
pub struct Bench<'a> {
    instance: &'a Instance,
    cri: Cri,
    daemon: u32,
    effort: Effort,
    figures: Vec<Figure>,
}

/// The value at a share of a sorted list.
fn percentile(sorted: &[Duration], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small index"
    )]
    let index = (last as f64 * share).round() as usize;
    sorted.get(index).map(|time| time.as_secs_f64() * 1000.0)
}

/// Times a call; `None` when the runtime says that it does not have it.
async fn timed<T>(call: impl Future<Output = Result<T, Status>>) -> Result<Option<Duration>> {
    let start = Instant::now();
    match call.await {
        Ok(_) => Ok(Some(start.elapsed())),
        Err(status) if status.code() == Code::Unimplemented => Ok(None),
        Err(status) => Err(status.into()),
    }
}

impl<'a> Bench<'a> {
    /// Pulls busybox and settles down.
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn new(instance: &'a Instance, effort: Effort) -> Result<Self> {
        let cri = instance.cri()?.clone();
        let daemon = instance.pid().context("the daemon does not run")?;
        cri.pull(images::BUSYBOX).await?;
        cri.pull(images::LOGLINES).await?;
        Ok(Self {
            instance,
            cri,
            daemon,
            effort,
            figures: Vec::new(),
        })
    }

    /// Measures these parts; pulls are measured by [`pulls::measure`].
    ///
    /// # Errors
    /// As the runtime answers.
    pub async fn run(mut self, parts: &[Part]) -> Result<Vec<Figure>> {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let rest = process::pss_kib(self.daemon);
        self.add("daemon at rest (PSS)", "KiB", Some(as_f64(rest)));
        if parts.contains(&Part::Pods) {
            // One pod before anything counts: bridges, caches.
            self.pod("warm-up").await?.0.remove().await?;
            self.sequential().await?;
            self.exec().await?;
            self.memory(rest).await?;
            self.parallel().await?;
        }
        if parts.contains(&Part::Logs) {
            self.logs().await?;
        }
        Ok(self.figures)
    }

    fn add(&mut self, name: &str, unit: &'static str, value: Option<f64>) {
        eprintln!(
            "    {name}: {} {unit}",
            value.map_or("n/a".into(), |value| format!("{value:.1}"))
        );
        self.figures.push(Figure::new(name, unit, value));
    }

    fn add_times(&mut self, name: &str, mut times: Vec<Duration>) {
        times.sort();
        self.add(&format!("{name}, p50"), "ms", percentile(&times, 0.5));
        self.add(&format!("{name}, p95"), "ms", percentile(&times, 0.95));
    }

    async fn pod(&self, name: &str) -> Result<(Pod, Ctr)> {
        let pod = Pod::run(&self.cri, pod_config(self.instance, name)).await?;
        let sleeper = pod.start(&container(&["sleep", "4321"])).await?;
        Ok((pod, sleeper))
    }

    async fn sequential(&mut self) -> Result<()> {
        let (mut starts, mut stops) = (Vec::new(), Vec::new());
        for number in 0..self.effort.pods {
            let start = Instant::now();
            let (pod, container) = self.pod(&format!("s{number}")).await?;
            starts.push(start.elapsed());
            // The pod's own time to end is not the runtime's: `sleep` as pid 1 ignores TERM.
            let start = Instant::now();
            self.cri.stop(&container.id, 0).await?;
            pod.remove().await?;
            stops.push(start.elapsed());
        }
        self.add_times("pod start (Run+Create+Start)", starts);
        self.add_times("pod stop+remove", stops);
        Ok(())
    }

    async fn exec(&mut self) -> Result<()> {
        let (pod, running) = self.pod("exec").await?;
        let mut times = Vec::new();
        for _ in 0..self.effort.execs {
            let start = Instant::now();
            self.cri.exec(&running.id, &["true"], 10).await?;
            times.push(start.elapsed());
        }
        self.add_times("ExecSync `true`", times);
        pod.remove().await
    }

    /// PSS of everything that is the runtime's: the daemon's growth, monitors or shims, pause processes.
    async fn memory(&mut self, rest: u64) -> Result<()> {
        const PODS: u64 = 30;
        let mut pods = Vec::new();
        for number in 0..PODS {
            pods.push(self.pod(&format!("m{number}")).await?.0);
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let sum: u64 = process::marked(&[&self.instance.name])
            .iter()
            .filter(|one| one.name != "sleep")
            .map(|one| process::pss_kib(one.pid))
            .sum();
        let each = as_f64(sum.saturating_sub(rest)) / as_f64(PODS);
        self.add("memory of a pod at 30 pods (PSS)", "KiB", Some(each));
        for pod in pods {
            pod.remove().await?;
        }
        Ok(())
    }

    async fn parallel(&mut self) -> Result<()> {
        const PODS: usize = 50;
        let start = Instant::now();
        let pods = self.many(PODS, 10).await?;
        let rate = PODS as f64 / start.elapsed().as_secs_f64();
        self.add("50 pods, 10 at a time", "pods/s", Some(rate));
        self.lists(&pods[0].1.id).await?;
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for chunk in pods.chunks(PODS / 10) {
            let chunk: Vec<Pod> = chunk.iter().map(|(pod, _)| pod.clone()).collect();
            tasks.spawn(async move {
                for pod in chunk {
                    pod.remove().await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(result) = tasks.join_next().await {
            result??;
        }
        let rate = PODS as f64 / start.elapsed().as_secs_f64();
        self.add(
            "50 pods stopped and removed, 10 at a time",
            "pods/s",
            Some(rate),
        );
        Ok(())
    }

    async fn many(&self, count: usize, width: usize) -> Result<Vec<(Pod, Ctr)>> {
        let mut tasks = tokio::task::JoinSet::new();
        for worker in 0..width {
            let configs: Vec<PodSandboxConfig> = (0..count / width)
                .map(|number| pod_config(self.instance, &format!("p{worker}-{number}")))
                .collect();
            let cri = self.cri.clone();
            tasks.spawn(async move {
                let mut pods = Vec::new();
                for config in configs {
                    let pod = Pod::run(&cri, config).await?;
                    let running = pod.start(&container(&["sleep", "4321"])).await?;
                    pods.push((pod, running));
                }
                anyhow::Ok(pods)
            });
        }
        let mut pods = Vec::new();
        while let Some(result) = tasks.join_next().await {
            pods.extend(result??);
        }
        Ok(pods)
    }

    async fn lists(&mut self, id: &str) -> Result<()> {
        const ROUNDS: usize = 40;
        let mut times: [Vec<Duration>; 6] = Default::default();
        for _ in 0..ROUNDS {
            let mut runtime = self.cri.runtime.clone();
            let answers = [
                timed(self.cri.list_pods(None)).await?,
                timed(self.cri.list_containers(None)).await?,
                timed(self.cri.container_status(id)).await?,
                timed(self.cri.status(false)).await?,
                timed(runtime.list_container_stats(ListContainerStatsRequest::default())).await?,
                timed(self.cri.list_pod_stats(None)).await?,
            ];
            for (list, answer) in times.iter_mut().zip(answers) {
                list.extend(answer);
            }
        }
        let names = [
            "ListPodSandbox at 50 pods",
            "ListContainers at 50 pods",
            "ContainerStatus at 50 pods",
            "Status at 50 pods",
            "ListContainerStats at 50 pods",
            "ListPodSandboxStats at 50 pods",
        ];
        for (name, list) in names.iter().zip(times) {
            self.add_times(name, list);
        }
        Ok(())
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "figures are printed with one digit"
)]
fn as_f64(number: u64) -> f64 {
    number as f64
}
