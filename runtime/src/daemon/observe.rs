//! What is counted when metrics are asked for, and by nobody in between.

use std::sync::Arc;

use tokio::signal::unix::Signal;

use crate::container::ContainerManager;
use crate::events::Events;
use crate::image::{ImageManager, PullStatus};
use crate::metrics::Metrics;
use crate::model::{ContainerFilter, ContainerState, PodFilter, PodState};
use crate::pod::PodManager;

pub(super) fn register(
    metrics: &Metrics,
    pods: &Arc<PodManager>,
    containers: &Arc<ContainerManager>,
    images: &Arc<ImageManager>,
    events: Events,
) {
    let counted = pods.clone();
    metrics.observe_gauge("pods", "Pod sandboxes by state", "state", move || {
        let all = counted.list(&PodFilter::default());
        let of = |state| count(all.iter().filter(|pod| pod.state == state).count());
        vec![
            ("ready", of(PodState::Ready)),
            ("not_ready", of(PodState::NotReady)),
        ]
    });
    let counted = containers.clone();
    metrics.observe_gauge("containers", "Containers by state", "state", move || {
        let all = counted.list(&ContainerFilter::default());
        let of = |state| {
            count(
                all.iter()
                    .filter(|container| container.state == state)
                    .count(),
            )
        };
        vec![
            ("created", of(ContainerState::Created)),
            ("running", of(ContainerState::Running)),
            ("exited", of(ContainerState::Exited)),
            ("unknown", of(ContainerState::Unknown)),
        ]
    });
    let counted = images.clone();
    metrics.observe_gauge("images", "Images, and pulls under way", "kind", move || {
        vec![
            ("stored", count(counted.list().len())),
            ("pulling", count(counted.pulls().len())),
        ]
    });
    let counted = images.clone();
    let help = "Compressed bytes of the pulls under way";
    metrics.observe_gauge("image_pulls_bytes", help, "state", move || {
        let pulls = counted.pulls();
        let sum = |of: fn(&PullStatus) -> u64| pulls.iter().map(of).fold(0, u64::saturating_add);
        let number = |sum| i64::try_from(sum).unwrap_or(i64::MAX);
        vec![
            ("wanted", number(sum(|pull| pull.bytes.0))),
            ("there", number(sum(|pull| pull.bytes.1))),
        ]
    });
    metrics.observe_counter("events_dropped", "Events that listeners lost", move || {
        events.dropped()
    });
}

/// What the daemon is doing, into the log, each time that the signal comes. Without one it waits for ever.
pub(super) async fn report(asked: Option<Signal>, parts: &super::Parts) {
    let Some(mut asked) = asked else {
        return std::future::pending().await;
    };
    while asked.recv().await.is_some() {
        log(parts);
    }
}

fn log(parts: &super::Parts) {
    let pods = parts.pods.list(&PodFilter::default());
    let containers = parts.containers.list(&ContainerFilter::default());
    let in_state = |state| containers.iter().filter(|one| one.state == state).count();
    tracing::info!(
        calls_under_way = parts.metrics.rpc_in_flight.get(),
        calls_panicked = parts.metrics.rpc_panics.get(),
        pods = pods.len(),
        pods_ready = pods
            .iter()
            .filter(|pod| pod.state == PodState::Ready)
            .count(),
        containers = containers.len(),
        created = in_state(ContainerState::Created),
        running = in_state(ContainerState::Running),
        exited = in_state(ContainerState::Exited),
        unknown = in_state(ContainerState::Unknown),
        monitors_left_behind = parts.metrics.monitors_left_behind.get(),
        images = parts.images.list().len(),
        pulls_under_way = parts.images.pulls().len(),
        "asked by SIGUSR1 what the daemon is doing"
    );
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
