//! StartContainer: one byte through the monitor.

use std::sync::Arc;

use super::{Change, Container, Error, Inner};
use crate::model::{ContainerState, Kind, Kinded as _, chain};
use crate::shim;

pub(super) async fn start(inner: &Arc<Inner>, container: &Arc<Container>) -> Result<(), Error> {
    let _turn = container.turn.lock().await;
    let monitor = container.live(ContainerState::Created)?;
    let events = &inner.deps.events;
    container.change(events, Change::StartSent);
    crash_point!("start_container.start.before");
    // What makes it EXITED after a failure is the monitor's exit event, as for every other end.
    let at = match monitor.start().await {
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
    container.change(events, Change::Started { at });
    let saved = inner.save(container).await;
    crash_point!("start_container.record.after");
    saved.map_err(|e| container.step("record the start", Kind::Unknown, chain(&e)))
}

/// Waits for the outcome of a start that an earlier daemon began: nobody else would hear of it.
pub(super) fn resume(inner: &Arc<Inner>, container: &Arc<Container>) {
    let (inner, container) = (inner.clone(), container.clone());
    tokio::spawn(async move {
        if let Err(error) = start(&inner, &container).await {
            tracing::warn!(container.id = %container.id, error = %chain(&error), "a start that an earlier daemon began has failed");
        }
    });
}
