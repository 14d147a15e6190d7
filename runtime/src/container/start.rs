//! StartContainer: one byte through the monitor.

use std::sync::Arc;

use super::{Container, Error, Inner};
use crate::events::Event;
use crate::model::{ContainerState, Kinded, chain};

pub(super) async fn start(inner: &Arc<Inner>, container: &Arc<Container>) -> Result<(), Error> {
    let _turn = container.turn.lock().await;
    let monitor = container.live(ContainerState::Created)?;
    // What makes it EXITED after a failure is the monitor's exit event, as for every other end.
    let started_at = match monitor.start().await {
        Ok(started_at) => started_at,
        Err(error) => {
            let failed = container.step("start the process", error.kind(), chain(&error));
            super::exit::after_failed_start(inner, container, &error.to_string()).await;
            return Err(failed);
        }
    };
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
    inner
        .save(container)
        .await
        .map_err(|e| container.step("record the start", crate::model::Kind::Unknown, chain(&e)))
}
