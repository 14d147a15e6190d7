//! Lists that fit into a message, whatever their objects carry.
//!
//! A list is one message of 16 MiB at most, on either side, and a kubelet that cannot read it cannot run
//! the node. Annotations are what grows: each pod's author may write a quarter of a megabyte. Nothing that
//! a kubelet keeps there itself is left out, and the status of one object has all of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use berth_cri_api::{MAX_MESSAGE_BYTES, v1};
use prost::Message;

use super::batch::{BATCH_BYTES, FRAME, batches};
use crate::metrics::Metrics;

/// Encoded bytes that a list stays below, with room for what surrounds it.
const MOST: usize = MAX_MESSAGE_BYTES - (1 << 20);

/// A kubelet lists every second; the log is told this often.
const TELL_EVERY: Duration = Duration::from_secs(600);

/// What people attach to an object.
pub(super) struct Notes<'a> {
    annotations: &'a mut BTreeMap<String, String>,
    labels: &'a mut BTreeMap<String, String>,
}

/// An item of a list.
pub(super) trait Annotated: Message {
    /// The notes of each object in it.
    fn notes(&mut self) -> Vec<Notes<'_>>;
}

/// Implements it for messages that have `annotations` and `labels`.
macro_rules! annotated {
    ($($message:ty),*) => {$(
        impl Annotated for $message {
            fn notes(&mut self) -> Vec<Notes<'_>> {
                vec![Notes { annotations: &mut self.annotations, labels: &mut self.labels }]
            }
        }
    )*};
}

annotated!(
    v1::PodSandbox,
    v1::Container,
    v1::ContainerAttributes,
    v1::PodSandboxAttributes
);

impl Annotated for v1::ContainerStats {
    fn notes(&mut self) -> Vec<Notes<'_>> {
        let attributes = self.attributes.iter_mut();
        attributes.flat_map(Annotated::notes).collect()
    }
}

impl Annotated for v1::PodSandboxStats {
    fn notes(&mut self) -> Vec<Notes<'_>> {
        let own = self.attributes.iter_mut().flat_map(Annotated::notes);
        let containers = self
            .linux
            .iter_mut()
            .flat_map(|linux| &mut linux.containers);
        own.chain(containers.flat_map(Annotated::notes)).collect()
    }
}

/// Leaves out of a list the largest annotations, and as few of them as may be, until it fits; labels too
/// where that is not enough. Far from the limit nothing is looked at but the length.
pub(super) fn fit<T: Annotated>(items: &mut [T], list: &'static str, metrics: &Metrics) {
    let left_out = shorten(items, MOST);
    if left_out.entries == 0 {
        return;
    }
    metrics.list_annotations_dropped.inc_by(left_out.entries);
    static TOLD: Mutex<Option<Instant>> = Mutex::new(None);
    let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
    if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
        *told = Some(Instant::now());
        tracing::warn!(
            list,
            entries = left_out.entries,
            bytes = left_out.bytes,
            "the list would not fit into a message of 16 MiB: its largest annotations are left out; the status of each object has them"
        );
    }
}

/// The messages of a streamed list.
pub(super) fn fitting_batches<T: Annotated>(
    items: impl Iterator<Item = T>,
    list: &'static str,
    metrics: Arc<Metrics>,
) -> impl Iterator<Item = Vec<T>> {
    // One item alone may be too large: a pod's statistics have its containers in them.
    batches(items, BATCH_BYTES).map(move |mut batch| {
        fit(&mut batch, list, &metrics);
        batch
    })
}

#[derive(Debug, Default, PartialEq, Eq)]
struct LeftOut {
    entries: u64,
    bytes: usize,
}

fn shorten<T: Annotated>(items: &mut [T], most: usize) -> LeftOut {
    let length: usize = items.iter().map(|item| item.encoded_len() + FRAME).sum();
    let mut left_out = LeftOut::default();
    let Some(excess) = length.checked_sub(most).filter(|excess| *excess > 0) else {
        return left_out;
    };
    let notes = items.iter_mut().flat_map(Annotated::notes);
    let (annotations, labels): (Vec<_>, Vec<_>) =
        notes.map(|notes| (notes.annotations, notes.labels)).unzip();
    for maps in [annotations, labels] {
        let Some(excess) = excess.checked_sub(left_out.bytes).filter(|e| *e > 0) else {
            break;
        };
        let more = drop_largest(maps, excess);
        left_out.entries += more.entries;
        left_out.bytes += more.bytes;
    }
    left_out
}

fn drop_largest(maps: Vec<&mut BTreeMap<String, String>>, excess: usize) -> LeftOut {
    let size = |key: &String, value: &String| key.len() + value.len();
    let entries = maps.iter().flat_map(|map| map.iter());
    let droppable = entries.filter(|(key, _)| !is_kubelets(key));
    let mut sizes: Vec<usize> = droppable.map(|(key, value)| size(key, value)).collect();
    sizes.sort_unstable_by(|one, other| other.cmp(one));
    let mut bytes = 0;
    let enough = sizes.iter().position(|size| {
        bytes += size;
        bytes >= excess
    });
    let count = enough.map_or(sizes.len(), |last| last + 1);
    let Some(&smallest) = sizes[..count].last() else {
        return LeftOut::default();
    };
    let mut of_smallest = sizes[..count].iter().filter(|s| **s == smallest).count();
    for map in maps {
        map.retain(|key, value| {
            let size = size(key, value);
            if is_kubelets(key) || size < smallest || (size == smallest && of_smallest == 0) {
                return true;
            }
            of_smallest -= usize::from(size == smallest);
            false
        });
    }
    LeftOut {
        entries: count as u64,
        bytes,
    }
}

/// What kubelets keep for themselves, and read back.
fn is_kubelets(key: &str) -> bool {
    key.starts_with("io.kubernetes.") || key.starts_with("kubernetes.io/")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(entries: &[(&str, usize)]) -> BTreeMap<String, String> {
        let entries = entries.iter();
        entries
            .map(|(key, length)| ((*key).to_owned(), "x".repeat(*length)))
            .collect()
    }

    fn pod(annotations: &[(&str, usize)]) -> v1::PodSandbox {
        v1::PodSandbox {
            id: "id".to_owned(),
            annotations: map(annotations),
            labels: map(&[("app", 3), ("io.kubernetes.pod.name", 20)]),
            ..v1::PodSandbox::default()
        }
    }

    fn keys(pod: &v1::PodSandbox) -> Vec<&str> {
        pod.annotations.keys().map(String::as_str).collect()
    }

    #[test]
    fn sixty_six_pods_of_a_quarter_of_a_megabyte_are_listed() {
        let metrics = Metrics::new();
        let one = [
            (
                "kubectl.kubernetes.io/last-applied-configuration",
                256 << 10,
            ),
            ("kubernetes.io/config.source", 3),
            ("small", 100),
        ];
        let mut pods: Vec<_> = (0..66).map(|_| pod(&one)).collect();
        fit(&mut pods, "ListPodSandbox", &metrics);
        let answer = v1::ListPodSandboxResponse { items: pods };
        assert!(answer.encoded_len() <= MAX_MESSAGE_BYTES);
        let pods = answer.items;
        assert_eq!(pods.len(), 66);
        let whole = pods.iter().filter(|pod| keys(pod).len() == 3).count();
        // No more than need be.
        assert_eq!(whole, 59);
        for pod in &pods {
            assert!(keys(pod).ends_with(&["kubernetes.io/config.source", "small"]));
            assert_eq!(pod.labels.len(), 2);
        }
        assert_eq!(metrics.list_annotations_dropped.get(), 7);
    }

    #[test]
    fn a_list_that_fits_is_left_alone() {
        let metrics = Metrics::new();
        let mut pods: Vec<_> = (0..50).map(|_| pod(&[("a", 256 << 10)])).collect();
        let before = pods.clone();
        fit(&mut pods, "ListPodSandbox", &metrics);
        assert_eq!(pods, before);
        assert_eq!(metrics.list_annotations_dropped.get(), 0);
    }

    #[test]
    fn the_largest_go_first_the_kubelets_never_and_labels_last() {
        let mut pods = [
            pod(&[
                ("a", 300),
                ("io.kubernetes.x", 900),
                ("kubernetes.io/y", 900),
            ]),
            pod(&[("b", 500), ("c", 200)]),
        ];
        let length = |pods: &[v1::PodSandbox]| pods.iter().map(|p| p.encoded_len() + FRAME).sum();
        let whole: usize = length(&pods);
        shorten(&mut pods, whole - 1);
        assert_eq!(keys(&pods[1]), ["c"]);
        shorten(&mut pods, whole - 520);
        assert_eq!(keys(&pods[0]), ["io.kubernetes.x", "kubernetes.io/y"]);
        assert_eq!(keys(&pods[1]), ["c"]);
        shorten(&mut pods, 0);
        assert_eq!(keys(&pods[0]), ["io.kubernetes.x", "kubernetes.io/y"]);
        assert!(keys(&pods[1]).is_empty());
        for pod in &pods {
            assert!(pod.labels.keys().eq(["io.kubernetes.pod.name"]));
        }
    }

    #[test]
    fn statistics_carry_annotations_too() {
        let container = |length| v1::ContainerStats {
            attributes: Some(v1::ContainerAttributes {
                annotations: map(&[("a", length)]),
                ..v1::ContainerAttributes::default()
            }),
            ..v1::ContainerStats::default()
        };
        let metrics = Arc::new(Metrics::new());
        let mut stats: Vec<_> = (0..9).map(|_| container(2 << 20)).collect();
        fit(&mut stats, "ListContainerStats", &metrics);
        let answer = v1::ListContainerStatsResponse { stats };
        assert!(answer.encoded_len() <= MAX_MESSAGE_BYTES);
        assert_eq!(metrics.list_annotations_dropped.get(), 2);

        // One pod with all of its containers is one item, also of a stream.
        let pod = v1::PodSandboxStats {
            attributes: Some(v1::PodSandboxAttributes {
                annotations: map(&[("a", 2 << 20)]),
                ..v1::PodSandboxAttributes::default()
            }),
            linux: Some(v1::LinuxPodSandboxStats {
                containers: (0..9).map(|_| container(2 << 20)).collect(),
                ..v1::LinuxPodSandboxStats::default()
            }),
            windows: None,
        };
        let pods = vec![pod.clone(), pod].into_iter();
        let sent: Vec<_> =
            fitting_batches(pods, "StreamPodSandboxStats", metrics.clone()).collect();
        assert_eq!(sent.len(), 2);
        for pod_sandbox_stats in sent {
            let answer = v1::StreamPodSandboxStatsResponse { pod_sandbox_stats };
            assert!(answer.encoded_len() <= MAX_MESSAGE_BYTES);
            assert_eq!(
                answer.pod_sandbox_stats[0]
                    .linux
                    .as_ref()
                    .unwrap()
                    .containers
                    .len(),
                9
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_left_fits_and_no_larger_one_has_stayed(
            pods in prop::collection::vec(
                prop::collection::btree_map("[a-c]|kubernetes\\.io/[a-c]|io\\.kubernetes\\.[a-c]", 0..300_usize, 0..6),
                0..20,
            ),
            most in 0..6_000_usize,
        ) {
            let mut items: Vec<_> = pods.iter().map(|entries| {
                let entries: Vec<_> = entries.iter().map(|(k, n)| (k.as_str(), *n)).collect();
                v1::PodSandbox { labels: BTreeMap::new(), ..pod(&entries) }
            }).collect();
            let before = items.clone();
            let left_out = shorten(&mut items, most);
            let length: usize = items.iter().map(|i| i.encoded_len() + FRAME).sum();
            let mut dropped = Vec::new();
            let mut stayed = Vec::new();
            for (before, after) in before.iter().zip(&items) {
                for (key, value) in &before.annotations {
                    let size = key.len() + value.len();
                    match after.annotations.get(key) {
                        Some(same) => {
                            prop_assert_eq!(same, value);
                            if !is_kubelets(key) { stayed.push(size); }
                        }
                        None => {
                            prop_assert!(!is_kubelets(key));
                            dropped.push(size);
                        }
                    }
                }
            }
            prop_assert_eq!(left_out.entries, dropped.len() as u64);
            prop_assert!(length <= most || stayed.is_empty());
            let smallest = dropped.iter().min().copied().unwrap_or(usize::MAX);
            prop_assert!(stayed.iter().all(|size| *size <= smallest));
            // With the smallest of them back, it would not fit.
            let whole: usize = before.iter().map(|i| i.encoded_len() + FRAME).sum();
            let without: usize = dropped.iter().sum();
            prop_assert!(dropped.is_empty() || whole - (without - smallest) > most);
        }
    }
}
