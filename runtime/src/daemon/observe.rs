//! What is counted when metrics are asked for, and by nobody in between.

use std::sync::Arc;

use crate::container::ContainerManager;
use crate::events::Events;
use crate::image::ImageManager;
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
    metrics.observe_counter("events_dropped", "Events that listeners lost", move || {
        events.dropped()
    });
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
