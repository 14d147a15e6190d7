//! What pods and containers use: read from cgroup files when somebody asks, and kept for nobody else.
//!
//! Nothing runs while nobody asks. A list is one blocking task that reads all cgroups one after the other;
//! writable layers, which have to be walked, are walked beside it and at most every ten seconds, and a
//! disk that hangs costs a list its newest sizes and nothing else.
//!
//! A container or pod that ends while it is measured is left out of a list.

mod interfaces;
mod rate;
#[cfg(test)]
mod tests;
mod writable;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::cgroup::UsageReader;
use crate::host::HostFacts;
use crate::id::{ContainerId, PodId};
use crate::model::{
    CgroupUsage, ContainerStats, ContainerSubject, CpuUsage, Kind, Kinded, MemoryUsage, PodCgroup,
    PodStats, PodSubject, SwapUsage, chain,
};
use crate::storage::Storage;
use rate::Rates;
use writable::Writable;

/// How many lists are read at the same time; others wait for their turn. The kernel works most of it off
/// under one lock anyway.
const READERS: usize = 2;

/// How long a call waits for sizes of writable layers of which none is known.
const FIRST_SIZES: Duration = Duration::from_millis(250);

/// How long a call waits for newer sizes than those it has.
const NEWER_SIZES: Duration = Duration::from_millis(5);

/// Why something cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A container without processes.
    #[error("container {0} is over: there are statistics of created and running containers only")]
    ContainerOver(ContainerId),
    /// A pod without processes.
    #[error("pod sandbox {0} ended while it was measured: it has no statistics any more")]
    PodOver(PodId),
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        Kind::FailedPrecondition
    }
}

/// Measures pods and containers. Cheap to clone; clones share what they remember.
#[derive(Clone, Debug)]
pub struct Stats(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    facts: Arc<HostFacts>,
    rates: Mutex<Rates>,
    writable: Writable,
    readers: Semaphore,
}

impl Stats {
    /// With writable layers in this store.
    pub fn new(facts: Arc<HostFacts>, storage: Storage) -> Self {
        Self(Arc::new(Inner {
            facts,
            rates: Mutex::default(),
            writable: Writable::new(storage),
            readers: Semaphore::new(READERS),
        }))
    }

    /// Measures containers. Of one that is over there is the writable layer only; one that is not, but has
    /// no cgroup any more, is left out.
    pub async fn containers(&self, subjects: Vec<ContainerSubject>) -> Vec<ContainerStats> {
        let sizes = self.sizes(layers_of(&subjects));
        let read = self.read("read the statistics of containers", move |inner, reader| {
            inner.containers(reader, subjects)
        });
        let ((), mut stats) = tokio::join!(sizes, read);
        self.0.with_sizes(&mut stats);
        stats
    }

    /// Measures one container.
    ///
    /// # Errors
    /// When it is over.
    pub async fn container(&self, subject: ContainerSubject) -> Result<ContainerStats, Error> {
        let id = subject.id.clone();
        let stats = if subject.lives() {
            self.containers(vec![subject]).await.pop()
        } else {
            None
        };
        stats.ok_or(Error::ContainerOver(id))
    }

    /// Measures ready pods with those of `containers` that run in them. One without a cgroup is left out.
    pub async fn pods(
        &self,
        pods: Vec<PodSubject>,
        containers: Vec<ContainerSubject>,
    ) -> Vec<PodStats> {
        let sizes = self.sizes(layers_of(&containers));
        let read = self.read("read the statistics of pods", move |inner, reader| {
            inner.pods(reader, pods, containers)
        });
        let ((), mut stats) = tokio::join!(sizes, read);
        for pod in &mut stats {
            self.0.with_sizes(&mut pod.containers);
        }
        stats
    }

    /// Measures one ready pod.
    ///
    /// # Errors
    /// When it ended meanwhile.
    pub async fn pod(
        &self,
        pod: PodSubject,
        containers: Vec<ContainerSubject>,
    ) -> Result<PodStats, Error> {
        let id = pod.id.clone();
        let stats = self.pods(vec![pod], containers).await.pop();
        stats.ok_or(Error::PodOver(id))
    }

    async fn sizes(&self, wanted: Vec<(ContainerId, bool)>) {
        let writable = &self.0.writable;
        writable.refresh(wanted, FIRST_SIZES, NEWER_SIZES).await;
    }

    async fn read<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Inner, &mut UsageReader) -> T + Send + 'static,
    ) -> T {
        // It is never closed, so this always waits for a turn.
        let _turn = self.0.readers.acquire().await;
        let inner = self.0.clone();
        crate::blocking::run(what, move || {
            work(&inner, &mut UsageReader::new(&inner.facts.cgroup))
        })
        .await
    }
}

impl Inner {
    fn containers(
        &self,
        reader: &mut UsageReader,
        subjects: Vec<ContainerSubject>,
    ) -> Vec<ContainerStats> {
        let measured = subjects.into_iter().filter_map(|subject| {
            let cgroup = if subject.lives() {
                Some(self.measure(reader, subject.id.as_str(), &subject.cgroup)?)
            } else {
                None
            };
            Some(ContainerStats {
                subject,
                cgroup,
                writable: None,
            })
        });
        measured.collect()
    }

    /// A cgroup with its rate. `None`: it is gone, or it cannot be read, which a list must not fail for.
    fn measure(&self, reader: &mut UsageReader, id: &str, path: &str) -> Option<CgroupUsage> {
        let mut usage = usage_of(reader, path)?;
        self.rate(id, &mut usage);
        Some(usage)
    }

    fn rate(&self, id: &str, usage: &mut CgroupUsage) {
        if let Some(cpu) = &mut usage.cpu {
            let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
            cpu.nano_cores = rates.of(id, Instant::now(), cpu.nanoseconds);
        }
    }

    fn pods(
        &self,
        reader: &mut UsageReader,
        pods: Vec<PodSubject>,
        containers: Vec<ContainerSubject>,
    ) -> Vec<PodStats> {
        let mut of_pod: BTreeMap<PodId, Vec<ContainerSubject>> = BTreeMap::new();
        for container in containers {
            let group = of_pod.entry(container.pod.clone()).or_default();
            group.push(container);
        }
        let measured = pods.into_iter().filter_map(|pod| {
            let containers = of_pod.remove(&pod.id).unwrap_or_default();
            self.measure_pod(reader, pod, containers)
        });
        measured.collect()
    }

    fn measure_pod(
        &self,
        reader: &mut UsageReader,
        subject: PodSubject,
        containers: Vec<ContainerSubject>,
    ) -> Option<PodStats> {
        let containers = self.containers(reader, containers);
        let (mut cgroup, processes) = match &subject.cgroup {
            PodCgroup::Own(path) => (usage_of(reader, path)?, processes_of(reader, path)),
            PodCgroup::Shared(pause) => {
                let mut sum = bare(&usage_of(reader, pause)?);
                let mut processes = processes_of(reader, pause);
                for container in &containers {
                    if let Some(usage) = &container.cgroup {
                        add(&mut sum, usage);
                    }
                    let count = processes_of(reader, &container.subject.cgroup);
                    processes = processes.map(|sum| sum + count.unwrap_or(0));
                }
                (sum, processes)
            }
        };
        self.rate(subject.id.as_str(), &mut cgroup);
        Some(PodStats {
            network: interfaces::of_pod(&subject),
            subject,
            cgroup,
            processes,
            containers,
        })
    }

    fn with_sizes(&self, stats: &mut [ContainerStats]) {
        for one in stats {
            one.writable = self.writable.of(&one.subject.id);
        }
    }
}

/// Whose writable layers there are, and whether they may still change.
fn layers_of(subjects: &[ContainerSubject]) -> Vec<(ContainerId, bool)> {
    let layers = subjects.iter().map(|s| (s.id.clone(), s.lives()));
    layers.collect()
}

fn usage_of(reader: &mut UsageReader, path: &str) -> Option<CgroupUsage> {
    reader.read(path).unwrap_or_else(|error| {
        tracing::warn!(cgroup = path, error = %chain(&error), "a cgroup is left out of the statistics");
        None
    })
}

fn processes_of(reader: &mut UsageReader, path: &str) -> Option<u64> {
    reader.processes(path).unwrap_or_else(|error| {
        tracing::warn!(cgroup = path, error = %chain(&error), "processes are left out of the statistics");
        None
    })
}

/// What can be added up: pressure and limits cannot.
fn bare(usage: &CgroupUsage) -> CgroupUsage {
    CgroupUsage {
        at: usage.at,
        cpu: usage.cpu.map(|cpu| CpuUsage {
            pressure: None,
            ..cpu
        }),
        memory: usage.memory.map(|memory| MemoryUsage {
            available: None,
            pressure: None,
            ..memory
        }),
        swap: usage.swap.map(|swap| SwapUsage {
            available: None,
            ..swap
        }),
        io: None,
    }
}

fn add(sum: &mut CgroupUsage, more: &CgroupUsage) {
    if let (Some(a), Some(b)) = (&mut sum.cpu, &more.cpu) {
        a.nanoseconds += b.nanoseconds;
    }
    if let (Some(a), Some(b)) = (&mut sum.memory, &more.memory) {
        a.usage += b.usage;
        a.working_set += b.working_set;
        a.rss += b.rss;
        a.page_faults += b.page_faults;
        a.major_page_faults += b.major_page_faults;
    }
    if let (Some(a), Some(b)) = (&mut sum.swap, &more.swap) {
        a.usage += b.usage;
    }
}
