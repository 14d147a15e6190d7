//! StartContainer: one byte through the monitor.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Container, Error, Inner};
use crate::events::Event;
use crate::model::{ContainerState, Kind, Kinded as _, chain};
use crate::shim;

/// Marks a start that is under way.
struct UnderWay<'a>(&'a AtomicBool);

impl<'a> UnderWay<'a> {
    fn new(mark: &'a AtomicBool) -> Self {
        mark.store(true, Ordering::SeqCst);
        Self(mark)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

pub(super) async fn start(inner: &Arc<Inner>, container: &Arc<Container>) -> Result<(), Error> {
    let _turn = container.turn.lock().await;
    let monitor = container.live(ContainerState::Created)?;
    let _under_way = UnderWay::new(&container.starting);
    crash_point!("start_container.start.before");
    // What makes it EXITED after a failure is the monitor's exit event, as for every other end.
    let started_at = match monitor.start().await {
        Ok(started_at) => started_at,
        Err(error) => {
            let kind = match &error {
                // The container has ended with its monitor.
                shim::Error::Gone { .. } => Kind::FailedPrecondition,
                error => error.kind(),
            };
            let failed = container.step("start the process", kind, chain(&error));
            super::exit::after_failed_start(inner, container, &error.to_string()).await;
            return Err(failed);
        }
    };
    crash_point!("start_container.start.after");
    {
        let mut record = container.now();
        record.started_at = started_at;
        // A short one may be over by now.
        if record.state == ContainerState::Created {
            record.state = ContainerState::Running;
        }
    }
    container.state.send_if_modified(|state| {
        let first = *state == ContainerState::Created;
        if first {
            *state = ContainerState::Running;
        }
        first
    });
    inner.deps.events.send(Event::ContainerStarted(
        container.pod.clone(),
        container.id.clone(),
    ));
    let saved = inner.save(container).await;
    crash_point!("start_container.record.after");
    saved.map_err(|e| container.step("record the start", Kind::Unknown, chain(&e)))
}

/// Waits for the outcome of a start that an earlier daemon began: nobody else would hear of it.
pub(super) fn resume(inner: &Arc<Inner>, container: &Arc<Container>) {
    // Set here, so that a stop that comes first finds it.
    container.starting.store(true, Ordering::SeqCst);
    let (inner, container) = (inner.clone(), container.clone());
    tokio::spawn(async move {
        if let Err(error) = start(&inner, &container).await {
            tracing::warn!(container.id = %container.id, error = %chain(&error), "a start that an earlier daemon began has failed");
        }
        container.starting.store(false, Ordering::SeqCst);
    });
}
