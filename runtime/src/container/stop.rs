//! StopContainer: the stop signal once, the grace time, SIGKILL.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Container, Error, Inner};
use crate::model::{ContainerState, Kind, chain};
use crate::sys;

/// How long a killed container may take to be reported dead: the log must still be drained.
const DEATH: Duration = Duration::from_secs(20);

/// How long a start that is under way may take until a stop ends it. It takes a millisecond, and what runs is
/// stopped by its signal; one that hangs is not waited for.
const START_FIRST: Duration = Duration::from_millis(250);

/// Stops by signal. Calls may overlap: the signal is sent once, each waits its own time.
pub(super) async fn stop(
    inner: &Arc<Inner>,
    container: &Arc<Container>,
    grace: Duration,
) -> Result<(), Error> {
    if container.now().state == ContainerState::Created {
        while tokio::time::timeout(START_FIRST, container.turn.lock())
            .await
            .is_err()
        {
            if container.starting.load(Ordering::SeqCst) {
                return kill(inner, container).await;
            }
        }
    }
    if matches!(
        container.now().state,
        ContainerState::Created | ContainerState::Exited
    ) {
        return Ok(());
    }
    if !grace.is_zero() {
        if !container.stop_sent.swap(true, Ordering::SeqCst) {
            let signal = container.now().stop_signal.number;
            signal_init(container, signal)?;
        }
        let mut state = container.state.subscribe();
        let exited = state.wait_for(|s| *s == ContainerState::Exited);
        if tokio::time::timeout(grace, exited).await.is_ok() {
            return Ok(());
        }
    }
    kill(inner, container).await
}

/// Kills and waits for the end. A created container is over too.
pub(super) async fn kill(inner: &Arc<Inner>, container: &Arc<Container>) -> Result<(), Error> {
    let state = container.now().state;
    match state {
        ContainerState::Exited => return Ok(()),
        ContainerState::Created => destroy_created(inner, container).await,
        ContainerState::Running | ContainerState::Unknown => {
            signal_init(container, rustix::process::Signal::KILL.as_raw())?;
        }
    }
    if container.monitor().is_none() {
        super::exit::lost(inner, container).await;
        return Ok(());
    }
    let mut changes = container.state.subscribe();
    let exited = changes.wait_for(|s| *s == ContainerState::Exited);
    if tokio::time::timeout(DEATH / 4, exited).await.is_ok() {
        return Ok(());
    }
    // Processes that outlive init keep the pipes open: the cgroup holds them all.
    let leaves = container.now().leaves.clone();
    let killed = crate::blocking::run("kill a container's cgroup", move || {
        crate::cgroup::kill(&leaves)
    })
    .await;
    let mut changes = container.state.subscribe();
    let exited = changes.wait_for(|s| *s == ContainerState::Exited);
    if tokio::time::timeout(DEATH, exited).await.is_ok() {
        return Ok(());
    }
    let problem = match killed {
        Err(error) => chain(&error),
        Ok(()) => format!(
            "it is not reported dead {} s after SIGKILL: its disk or monitor may hang",
            DEATH.as_secs()
        ),
    };
    Err(container.step("end the processes", Kind::Unknown, problem))
}

/// Ends a start that is under way, for whoever would wait behind it.
pub(super) async fn end_start(inner: &Arc<Inner>, container: &Arc<Container>) -> Result<(), Error> {
    if container.starting.load(Ordering::SeqCst) {
        kill(inner, container).await
    } else {
        Ok(())
    }
}

async fn destroy_created(inner: &Arc<Inner>, container: &Arc<Container>) {
    let message = if container.starting.load(Ordering::SeqCst) {
        "stopped while it was being started"
    } else {
        "stopped before it was started"
    };
    if let Some(monitor) = container.monitor() {
        // When the monitor hangs, the kill by cgroup that follows ends it all the same.
        let _ = monitor.destroy().await;
    }
    let killed = crate::model::ContainerExit {
        code: 128 + rustix::process::Signal::KILL.as_raw(),
        finished_at: crate::model::now_nanos(),
        reason: crate::model::ExitReason::Error,
        message: message.to_owned(),
    };
    super::exit::over(inner, container, killed, 0).await;
}

fn signal_init(container: &Container, signal: i32) -> Result<(), Error> {
    let init = container.now().init.clone();
    let Some(init) = init else { return Ok(()) };
    match sys::process::signal_same(init.pid, init.start_time, signal) {
        Ok(_) => Ok(()),
        Err(error) => Err(container.step(
            "signal the process",
            Kind::Unknown,
            format!("pid {}: {error}", init.pid),
        )),
    }
}
