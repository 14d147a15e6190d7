//! Ends of containers: what the monitors report, and what is made of monitors that are gone.

use std::sync::{Arc, Weak};
use std::time::Duration;

use shim_protocol::monitor::Exit;
use tokio::sync::mpsc;

use super::{Change, Container, Error, Inner};
use crate::model::{ContainerExit, ContainerState, ExitReason, Kind, Kinded, chain, now_nanos};
use crate::shim::{self, MonitorEvent, MonitorEventKind};
use crate::sys;

/// Exit code of a container that was lost (as containerd reports it).
const LOST: i32 = 255;

/// How long a monitor is given to report an end that was seen otherwise.
const TELLING: Duration = Duration::from_secs(2);

/// How long the end of a container may take that has made a call fail.
const DYING: Duration = Duration::from_millis(300);
/// Why nobody knows how a container ended.
const DIED: &str = "the container's monitor died; the container was killed";
const SILENT: &str = "the container is dead, and its monitor did not report how it ended: it was killed; is the disk of its log hanging?";

/// Follows the monitors until the manager is gone.
pub(super) async fn follow(inner: Weak<Inner>, mut events: mpsc::UnboundedReceiver<MonitorEvent>) {
    while let Some(event) = events.recv().await {
        let Some(inner) = inner.upgrade() else { return };
        let Some(container) = inner.containers.get(&event.id) else {
            continue;
        };
        // Beside each other: a container that is slow to die or to record must not hide the ends of others.
        tokio::spawn(async move { heed(&inner, &container, event.kind).await });
    }
}

async fn heed(inner: &Arc<Inner>, container: &Arc<Container>, event: MonitorEventKind) {
    match event {
        MonitorEventKind::Exited(exit) => {
            over(inner, container, outcome(&exit), exit.started_at).await;
        }
        MonitorEventKind::Lost => lost(inner, container, DIED).await,
        MonitorEventKind::Silent => {
            if let Err(error) = super::stop::past_monitor(inner, container).await {
                tracing::error!(container.id = %container.id, error = %chain(&error), "the container is dead but not over: its monitor hangs");
            }
        }
        MonitorEventKind::Oom(kills) => {
            tracing::info!(container.id = %container.id, kills, "the kernel killed a process of the container: out of memory");
        }
    }
}

/// What CRI says of an end.
pub(super) fn outcome(exit: &Exit) -> ContainerExit {
    let reason = match exit.code {
        _ if !exit.start_error.is_empty() => ExitReason::StartError,
        _ if exit.oom => ExitReason::OomKilled,
        0 => ExitReason::Completed,
        _ => ExitReason::Error,
    };
    ContainerExit {
        code: exit.code,
        finished_at: exit.finished_at,
        reason,
        message: exit.start_error.clone(),
    }
}

/// How a container has ended that never ran, for an error about it.
pub(super) fn before_start(exit: &ContainerExit) -> String {
    match exit.message.is_empty() {
        true => format!(
            ": it ended before it was started ({}, exit code {})",
            exit.reason.as_str(),
            exit.code
        ),
        false => format!(": {}", exit.message),
    }
}

/// The end of a container whose monitor died or whose state nobody knows.
pub(super) fn unknown(message: &str) -> ContainerExit {
    ContainerExit {
        code: LOST,
        finished_at: now_nanos(),
        reason: ExitReason::Unknown,
        message: message.to_owned(),
    }
}

/// Makes the end known: the monitor has written the log and the exit record before it said so (row R069).
pub(super) async fn over(
    inner: &Arc<Inner>,
    container: &Arc<Container>,
    exit: ContainerExit,
    started_at: i64,
) {
    let killed_for_memory = exit.reason == ExitReason::OomKilled;
    let ended = Change::Ended { exit, started_at };
    if container.change(&inner.deps.events, ended).is_over() {
        return;
    }
    if killed_for_memory {
        inner.deps.metrics.container_oom.inc();
    }
    crash_point!("exit.record.before");
    if let Err(error) = inner.save(container).await {
        // The exit record of the monitor says the same; a restarted daemon reads that.
        tracing::warn!(container.id = %container.id, error = %chain(&error), "cannot record the exit");
    }
    crash_point!("exit.record.after");
}

/// The monitor is gone. Whatever is left of the container is killed; the monitor's exit record says what
/// happened, and without one the container was lost.
async fn lost(inner: &Arc<Inner>, container: &Arc<Container>, message: &str) {
    let dir = inner.state_dir(&container.id);
    let leaves = container.parts().leaves.clone();
    let record = crate::blocking::run("clean up after a lost monitor", move || {
        if let Err(error) = crate::cgroup::kill(&leaves) {
            tracing::warn!(error = %chain(&error), "cannot kill what a lost monitor left");
        }
        crate::shim::read_exit(&dir)
    })
    .await;
    if container.status().is_over() {
        return;
    }
    let (exit, started_at) = match record {
        Ok(Some(record)) => (outcome(&record.exit), record.exit.started_at),
        Ok(None) => {
            tracing::warn!(container.id = %container.id, "{message}");
            (unknown(message), 0)
        }
        Err(error) => {
            tracing::error!(container.id = %container.id, error = %chain(&error), "the container's exit record cannot be read");
            (unknown(&chain(&error)), 0)
        }
    };
    over(inner, container, exit, started_at).await;
}

/// The container has no monitor any more.
pub(super) async fn monitor_is_gone(inner: &Arc<Inner>, container: &Arc<Container>) {
    lost(inner, container, DIED).await;
}

/// Everything of the container is dead, and its monitor does not say so: that ends, or is left behind, and the
/// container is over.
pub(super) async fn silent(inner: &Arc<Inner>, container: &Arc<Container>) {
    end_monitor(inner, container).await;
    lost(inner, container, SILENT).await;
}

/// Kills the monitor of a container that is over, if there is one.
pub(super) async fn end_monitor(inner: &Arc<Inner>, container: &Arc<Container>) {
    if let Some(monitor) = container.monitor() {
        monitor.kill().await;
        return;
    }
    let Some(monitor) = container.status().found.clone() else {
        return;
    };
    let found = (monitor.pid, monitor.start_time);
    if let Err(error) = inner.deps.launcher.kill_monitor(&container.id, found).await {
        tracing::warn!(container.id = %container.id, pid = monitor.pid, %error, "cannot look for the container's monitor");
    }
}

/// Whether the monitor says within this time that the container is over.
async fn told(container: &Container, limit: Duration) -> bool {
    let mut changes = container.status.subscribe();
    let exited = changes.wait_for(|s| s.is_over());
    tokio::time::timeout(limit, exited).await.is_ok()
}

/// What a monitor's failure means for a call about a running container: that this has ended meanwhile, if it has.
pub(super) async fn refused(
    container: &Container,
    step: &'static str,
    error: shim::Error,
) -> Error {
    use shim_protocol::monitor::FailureKind;
    let limit = match error {
        // It ends with its container, or the container with it.
        shim::Error::Gone { .. } => TELLING,
        // An init on its way out makes calls fail in many ways before it is seen to have ended.
        shim::Error::Refused {
            kind: FailureKind::Internal | FailureKind::Memory,
            ..
        } => DYING,
        _ => Duration::ZERO,
    };
    told(container, limit).await;
    ended_or(container, container.step(step, error.kind(), chain(&error)))
}

/// A failure as it is to be answered: where the container has ended that is what is the matter.
pub(super) fn ended_or(container: &Container, error: Error) -> Error {
    match error.kind() {
        Kind::Unknown | Kind::Unavailable | Kind::ResourceExhausted if has_ended(container) => {
            Error::State {
                id: container.id.clone(),
                state: super::state_name(ContainerState::Exited),
                wanted: super::state_name(ContainerState::Running),
                why: String::new(),
            }
        }
        _ => error,
    }
}

/// Whether it is over, or about to be reported so.
fn has_ended(container: &Container) -> bool {
    let (over, init) = {
        let status = container.status();
        (status.is_over(), status.init.clone())
    };
    over || init.is_some_and(|init| {
        sys::process::is_alive(init.pid, init.start_time).is_ok_and(|alive| !alive)
    })
}

/// Init is dead; its monitor says so once the log is written. If it does not, it is dead too, or hangs.
pub(super) async fn await_end(inner: &Arc<Inner>, container: &Arc<Container>) {
    if !told(container, TELLING).await {
        silent(inner, container).await;
    }
}

/// A start that failed ends the container; the monitor says so in a moment. If it cannot, we do.
pub(super) async fn after_failed_start(
    inner: &Arc<Inner>,
    container: &Arc<Container>,
    message: &str,
) {
    if told(container, TELLING).await {
        return;
    }
    if let Some(monitor) = container.monitor() {
        // Its failure changes nothing: the container is reported over, and removal kills by cgroup.
        let _ = monitor.destroy().await;
    }
    let exit = ContainerExit {
        code: 128,
        finished_at: now_nanos(),
        reason: ExitReason::StartError,
        message: message.to_owned(),
    };
    over(inner, container, exit, 0).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(code: i32, oom: bool, start_error: &str) -> &'static str {
        outcome(&Exit {
            code,
            oom,
            start_error: start_error.into(),
            ..Default::default()
        })
        .reason
        .as_str()
    }

    #[test]
    fn the_end_of_what_never_ran_says_why() {
        let exit = |code, oom, start_error: &str| {
            before_start(&outcome(&Exit {
                code,
                oom,
                start_error: start_error.into(),
                ..Default::default()
            }))
        };
        assert_eq!(exit(128, false, "no such file"), ": no such file");
        assert!(exit(137, true, "").ends_with("(OOMKilled, exit code 137)"));
        assert!(exit(137, false, "").ends_with("(Error, exit code 137)"));
    }

    #[test]
    fn ends_are_told_as_the_kubelet_knows_them() {
        assert_eq!(reason(0, false, ""), "Completed");
        assert_eq!(reason(3, false, ""), "Error");
        assert_eq!(reason(137, true, ""), "OOMKilled");
        assert_eq!(reason(0, true, ""), "OOMKilled");
        assert_eq!(reason(128, false, "no such file"), "StartError");
    }
}
