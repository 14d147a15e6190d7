//! StopContainer: the stop signal once, the grace time, SIGKILL.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::state::Stage;
use super::{Change, Container, Error, Inner};
use crate::model::{ContainerState, Kind, chain};
use crate::sys;

/// How long a killed process may take to die before its cgroup is looked at, and everything in that then.
const DEATH: Duration = Duration::from_secs(5);
const TREE_DEATH: Duration = Duration::from_secs(20);

/// How long the monitor of a dead container may take to say so before the cgroup is looked at, and then: the rest of
/// the log must still be written.
const REPORT: Duration = Duration::from_secs(3);
const LAST_REPORT: Duration = Duration::from_secs(7);

/// How long a start that is under way may take until a stop ends it. It takes a millisecond, and what runs is
/// stopped by its signal; one that hangs is not waited for.
const START_FIRST: Duration = Duration::from_millis(250);

/// Stops by signal. Calls may overlap: the signal is sent once, each waits its own time.
pub(super) async fn stop(
    inner: &Arc<Inner>,
    container: &Arc<Container>,
    grace: Duration,
) -> Result<(), Error> {
    if container.state() == ContainerState::Created {
        while tokio::time::timeout(START_FIRST, container.turn.lock())
            .await
            .is_err()
        {
            if container.status().stage == Stage::Starting {
                return kill(inner, container).await;
            }
        }
    }
    if matches!(
        container.state(),
        ContainerState::Created | ContainerState::Exited
    ) {
        return Ok(());
    }
    if !grace.is_zero() {
        let signal = container.parts().stop_signal.number;
        let before = container.change(&inner.deps.events, Change::StopSent);
        let init = match before.stop_sent {
            false => signal_init(container, signal)?,
            true => find_init(container)?,
        };
        crash_point!("stop_container.signal.after");
        match end_of(container, init, grace, REPORT).await {
            End::Reported => return Ok(()),
            End::Silent => return past_monitor(inner, container).await,
            End::Alive => {}
        }
    }
    kill(inner, container).await
}

/// Kills and waits for the end. A created container is over too.
pub(super) async fn kill(inner: &Arc<Inner>, container: &Arc<Container>) -> Result<(), Error> {
    match container.state() {
        ContainerState::Exited => return Ok(()),
        ContainerState::Created => {
            destroy_created(inner, container).await;
            return Ok(());
        }
        ContainerState::Running | ContainerState::Unknown => {}
    }
    let init = signal_init(container, rustix::process::Signal::KILL.as_raw())?;
    crash_point!("stop_container.kill.after");
    match end_of(container, init, DEATH, REPORT).await {
        End::Reported => Ok(()),
        End::Silent | End::Alive => past_monitor(inner, container).await,
    }
}

/// What came of waiting for a container's end.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Its monitor has said so.
    Reported,
    /// Its first process is dead, and its monitor does not say so.
    Silent,
    /// Its first process lives.
    Alive,
}

/// Waits for the monitor's word: `limit` while the first process lives; once it is dead (`None`) `report`, if there is a
/// monitor to be heard.
async fn end_of(
    container: &Container,
    init: Option<OwnedFd>,
    limit: Duration,
    report: Duration,
) -> End {
    let report = container.monitor().map_or(Duration::ZERO, |_| report);
    let mut changes = container.status.subscribe();
    let reported = async {
        // Fails only when the container is gone, which means the same.
        let _ = changes.wait_for(|s| s.is_over()).await;
        End::Reported
    };
    let dead = async {
        if let Some(init) = init {
            match tokio::time::timeout(limit, sys::process::ended(init)).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) | Err(_) => return End::Alive,
            }
        }
        tokio::time::sleep(report).await;
        End::Silent
    };
    tokio::select! {
        biased;
        end = reported => end,
        end = dead => end,
    }
}

/// Ends a container whose monitor has not reported its end: everything in its cgroup dies, and then the monitor, which
/// may be waiting for a dead disk.
pub(super) async fn past_monitor(
    inner: &Arc<Inner>,
    container: &Arc<Container>,
) -> Result<(), Error> {
    let _turn = container.silence.lock().await;
    if container.status().is_over() {
        return Ok(());
    }
    let failed = |problem| container.step("end the processes", Kind::Unknown, problem);
    // Processes that outlive init keep the pipes open, and a frozen one does not die: the cgroup holds them all.
    let leaves = container.parts().leaves.clone();
    let killed = crate::blocking::run("kill a container's cgroup", move || {
        crate::cgroup::kill(&leaves)
    })
    .await;
    crash_point!("stop_container.cgroup.after");
    if container.monitor().is_none() {
        // A daemon before this one may have lost it for a moment only. What it says is told to `over`.
        let _ = super::restore::reach(inner, container).await;
    }
    match end_of(container, find_init(container)?, TREE_DEATH, LAST_REPORT).await {
        End::Reported => Ok(()),
        End::Alive => Err(failed(format!(
            "its first process is alive {} s after SIGKILL: it waits in the kernel, is a disk or a mount of its hanging?",
            TREE_DEATH.as_secs()
        ))),
        End::Silent => {
            killed.map_err(|e| failed(chain(&e)))?;
            super::exit::silent(inner, container).await;
            Ok(())
        }
    }
}

/// Ends a start that is under way, for whoever would wait behind it.
pub(super) async fn end_start(inner: &Arc<Inner>, container: &Arc<Container>) -> Result<(), Error> {
    if container.status().stage == Stage::Starting {
        kill(inner, container).await
    } else {
        Ok(())
    }
}

async fn destroy_created(inner: &Arc<Inner>, container: &Arc<Container>) {
    let message = if container.status().stage == Stage::Starting {
        "stopped while it was being started"
    } else {
        "stopped before it was started"
    };
    if let Some(monitor) = container.monitor()
        && let Err(error) = monitor.destroy().await
    {
        tracing::warn!(container.id = %container.id, error = %chain(&error), "the container is ended past its monitor");
        let leaves = container.parts().leaves.clone();
        // What is left then keeps the container from being removed, and is named there.
        let _ = crate::blocking::run("kill a container's cgroup", move || {
            crate::cgroup::kill(&leaves)
        })
        .await;
    }
    let killed = crate::model::ContainerExit {
        code: 128 + rustix::process::Signal::KILL.as_raw(),
        finished_at: crate::model::now_nanos(),
        reason: crate::model::ExitReason::Error,
        message: message.to_owned(),
    };
    super::exit::over(inner, container, killed, 0).await;
}

/// Sends a signal to the first process, which can be watched then. `None`: it has ended.
fn signal_init(container: &Container, signal: i32) -> Result<Option<OwnedFd>, Error> {
    let Some(init) = find_init(container)? else {
        return Ok(None);
    };
    match sys::process::send_signal(init.as_fd(), signal) {
        Ok(lives) => Ok(lives.then_some(init)),
        Err(error) => {
            let problem = format!("signal {signal}: {error}");
            Err(container.step("signal the process", Kind::Unknown, problem))
        }
    }
}

/// The first process has ended.
pub(super) fn is_dead(container: &Container) -> bool {
    find_init(container).is_ok_and(|init| {
        init.is_none_or(|init| {
            sys::process::has_ended(init.as_fd(), Duration::ZERO).unwrap_or(false)
        })
    })
}

/// The first process; `None` when it has ended and been reaped.
fn find_init(container: &Container) -> Result<Option<OwnedFd>, Error> {
    let init = container.status().init.clone();
    let Some(init) = init else { return Ok(None) };
    sys::process::open_same(init.pid, init.start_time).map_err(|error| {
        let problem = format!("pid {}: {error}", init.pid);
        container.step("find the process", Kind::Unknown, problem)
    })
}
