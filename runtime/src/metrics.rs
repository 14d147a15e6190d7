//! Measurements for Prometheus, all with the prefix `berth_`.
//!
//! One [`Metrics`] is made by the daemon and handed to those who measure; there is no global one. No label
//! ever holds the name of a pod or container: their number is not bounded.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
pub use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
pub use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// The content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Seconds; from a status that is served from memory to an image pull.
const CALL_BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 120.0,
];

/// Seconds; from a system call to a hanging disk.
const STEP_BUCKETS: [f64; 11] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5, 30.0,
];

/// Seconds; from an image that was there to one of many gigabytes.
const PULL_BUCKETS: [f64; 12] = [
    0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0,
];

/// A histogram for each set of labels.
pub type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Labels of a finished RPC.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RpcLabels {
    /// Name of the RPC.
    pub method: &'static str,
    /// Name of the gRPC code.
    pub code: &'static str,
}

/// Labels of a step of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StepLabels {
    /// The operation, such as `run_pod`.
    pub operation: &'static str,
    /// The step, such as `cni_add`.
    pub step: &'static str,
}

/// Labels of a finished pull of an image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PullLabels {
    /// `pulled`, `unchanged` when the image was there, or `failed`.
    pub outcome: &'static str,
}

/// Labels of the bytes of layers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OriginLabels {
    /// `registry`, or `kept` for what an interrupted download has left.
    pub origin: &'static str,
}

/// Everything that is measured.
pub struct Metrics {
    /// Seconds from the arrival of an RPC to its answer.
    pub rpc_duration: Histograms<RpcLabels>,
    /// RPCs under way.
    pub rpc_in_flight: Gauge,
    /// RPCs whose handler panicked.
    pub rpc_panics: Counter,
    /// Seconds of each step of the longer operations.
    pub step_duration: Histograms<StepLabels>,
    /// Annotations left out of lists that would not have fit into a message, and labels where those were not enough.
    pub list_annotations_dropped: Counter,
    /// Containers that the kernel killed for memory.
    pub container_oom: Counter,
    /// Monitors that were killed and do not end: they wait in the kernel.
    pub monitors_left_behind: Gauge,
    /// Seconds of each pull of an image; joined ones count once.
    pub image_pull_duration: Histograms<PullLabels>,
    /// Compressed bytes of layers.
    pub image_layer_bytes: Family<OriginLabels, Counter>,
    registry: Mutex<Registry>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn call_histogram() -> Histogram {
    Histogram::new(CALL_BUCKETS)
}

fn step_histogram() -> Histogram {
    Histogram::new(STEP_BUCKETS)
}

fn pull_histogram() -> Histogram {
    Histogram::new(PULL_BUCKETS)
}

impl Metrics {
    /// A registry with all families, each empty.
    pub fn new() -> Self {
        let metrics = Self {
            rpc_duration: Family::new_with_constructor(call_histogram),
            rpc_in_flight: Gauge::default(),
            rpc_panics: Counter::default(),
            step_duration: Family::new_with_constructor(step_histogram),
            list_annotations_dropped: Counter::default(),
            container_oom: Counter::default(),
            monitors_left_behind: Gauge::default(),
            image_pull_duration: Family::new_with_constructor(pull_histogram),
            image_layer_bytes: Family::default(),
            registry: Mutex::new(Registry::with_prefix("berth")),
        };
        metrics.register_calls();
        metrics.register_work();
        metrics.register_images();
        metrics
    }

    fn register_calls(&self) {
        let mut registry = self.registry();
        let build = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("arch", std::env::consts::ARCH),
        ];
        registry.register("build", "The running program", Info::new(build.to_vec()));
        registry.register_with_unit(
            "rpc_duration",
            "Time from the arrival of an RPC to its answer",
            Unit::Seconds,
            self.rpc_duration.clone(),
        );
        registry.register(
            "rpc_in_flight",
            "RPCs under way",
            self.rpc_in_flight.clone(),
        );
        registry.register(
            "rpc_panics",
            "RPCs whose handler panicked",
            self.rpc_panics.clone(),
        );
        registry.register(
            "list_annotations_dropped",
            "Annotations left out of lists that would not have fit into a message",
            self.list_annotations_dropped.clone(),
        );
        registry.register_with_unit(
            "operation_step_duration",
            "Time of each step of the longer operations",
            Unit::Seconds,
            self.step_duration.clone(),
        );
    }

    fn register_work(&self) {
        let mut registry = self.registry();
        registry.register(
            "container_oom",
            "Containers that the kernel killed for memory",
            self.container_oom.clone(),
        );
        registry.register(
            "monitors_left_behind",
            "Monitors of containers that were killed and do not end, because a disk hangs",
            self.monitors_left_behind.clone(),
        );
    }

    fn register_images(&self) {
        let mut registry = self.registry();
        registry.register_with_unit(
            "image_pull_duration",
            "Time of each pull of an image by its outcome",
            Unit::Seconds,
            self.image_pull_duration.clone(),
        );
        registry.register_with_unit(
            "image_layer",
            "Compressed bytes of layers by where they came from",
            Unit::Bytes,
            self.image_layer_bytes.clone(),
        );
    }

    /// Adds a gauge whose values are asked for at every scrape: one for each value of `label`.
    pub fn observe_gauge(
        &self,
        name: &'static str,
        help: &'static str,
        label: &'static str,
        values: impl Fn() -> Vec<(&'static str, i64)> + Send + Sync + 'static,
    ) {
        let gauge = ObservedGauge {
            name,
            help,
            label,
            values: Box::new(values),
        };
        self.registry().register_collector(Box::new(gauge));
    }

    /// Adds a counter whose value is asked for at every scrape.
    pub fn observe_counter(
        &self,
        name: &'static str,
        help: &'static str,
        value: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        let counter = ObservedCounter {
            name,
            help,
            value: Box::new(value),
        };
        self.registry().register_collector(Box::new(counter));
    }

    /// Notes a finished pull of an image.
    pub fn pull_finished(&self, outcome: &'static str, took: Duration) {
        self.image_pull_duration
            .get_or_create(&PullLabels { outcome })
            .observe(took.as_secs_f64());
    }

    /// The counter of compressed bytes of layers from there, for who counts often.
    pub fn layer_bytes(&self, origin: &'static str) -> Counter {
        self.image_layer_bytes
            .get_or_create_owned(&OriginLabels { origin })
    }

    /// Everything as OpenMetrics text.
    ///
    /// # Errors
    /// When a collector fails; ours do not.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry())?;
        Ok(out)
    }

    /// Starts the clock of a step, which is observed when the guard goes.
    pub fn step(self: &Arc<Self>, operation: &'static str, step: &'static str) -> StepTimer {
        StepTimer {
            metrics: self.clone(),
            labels: StepLabels { operation, step },
            started: Instant::now(),
        }
    }

    /// Notes a finished RPC.
    pub fn rpc_finished(&self, method: &'static str, code: &'static str, took: Duration) {
        self.rpc_duration
            .get_or_create(&RpcLabels { method, code })
            .observe(took.as_secs_f64());
    }

    fn registry(&self) -> std::sync::MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The clock of one step.
#[derive(Debug)]
#[must_use = "the step ends when this goes"]
pub struct StepTimer {
    metrics: Arc<Metrics>,
    labels: StepLabels,
    started: Instant,
}

impl Drop for StepTimer {
    fn drop(&mut self) {
        self.metrics
            .step_duration
            .get_or_create(&self.labels)
            .observe(self.started.elapsed().as_secs_f64());
    }
}

type Values<T> = Box<dyn Fn() -> T + Send + Sync>;

struct ObservedGauge {
    name: &'static str,
    help: &'static str,
    label: &'static str,
    values: Values<Vec<(&'static str, i64)>>,
}

impl fmt::Debug for ObservedGauge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Collector for ObservedGauge {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut family =
            encoder.encode_descriptor(self.name, self.help, None, MetricType::Gauge)?;
        for (value, number) in (self.values)() {
            let labels = [(self.label, value)];
            let one: MetricEncoder<'_> = family.encode_family(&labels)?;
            ConstGauge::new(number).encode(one)?;
        }
        Ok(())
    }
}

struct ObservedCounter {
    name: &'static str,
    help: &'static str,
    value: Values<u64>,
}

impl fmt::Debug for ObservedCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Collector for ObservedCounter {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let metric = encoder.encode_descriptor(self.name, self.help, None, MetricType::Counter)?;
        ConstCounter::new((self.value)()).encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_units_and_labels_are_as_documented() {
        let metrics = Arc::new(Metrics::new());
        metrics.rpc_finished("Version", "OK", Duration::from_millis(2));
        metrics.rpc_in_flight.inc();
        metrics.container_oom.inc();
        metrics.list_annotations_dropped.inc_by(3);
        drop(metrics.step("run_pod", "cni_add"));
        metrics.pull_finished("pulled", Duration::from_secs(2));
        metrics.layer_bytes("registry").inc_by(7);
        metrics.observe_gauge("containers", "Containers by state", "state", || {
            vec![("running", 3), ("exited", 0)]
        });
        metrics.observe_counter("events_dropped", "Events that listeners lost", || 9);
        let text = metrics.encode().unwrap();
        for line in [
            "berth_rpc_duration_seconds_count{method=\"Version\",code=\"OK\"} 1",
            "berth_rpc_in_flight 1",
            "berth_container_oom_total 1",
            "berth_list_annotations_dropped_total 3",
            "berth_monitors_left_behind 0",
            "berth_operation_step_duration_seconds_count{operation=\"run_pod\",step=\"cni_add\"} 1",
            "berth_image_pull_duration_seconds_bucket{le=\"2.5\",outcome=\"pulled\"} 1",
            "berth_image_layer_bytes_total{origin=\"registry\"} 7",
            "berth_containers{state=\"running\"} 3",
            "berth_events_dropped_total 9",
            "# TYPE berth_build info",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
