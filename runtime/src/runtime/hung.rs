//! Monitors that hang: ended past their own will, and those that not even SIGKILL ends.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use crate::id::ContainerId;
use crate::metrics::Gauge;
use crate::sys::process;

/// How long a killed monitor may take to die. It is small: only a wait in the kernel, for a disk, takes longer.
const DEATH: Duration = Duration::from_secs(3);

/// Kills a monitor, and with it what is left of its container. False when it does not die: it is counted and
/// left behind then, and reaped once it does.
pub(super) async fn kill(pidfd: OwnedFd, id: &ContainerId, left_behind: &Gauge) -> bool {
    // One that has ended is as good.
    let _ = process::send_signal(pidfd.as_fd(), libc::SIGKILL);
    let mut ended = Box::pin(process::ended(pidfd));
    match tokio::time::timeout(DEATH, &mut ended).await {
        Ok(Ok(pidfd)) => {
            process::reap(pidfd.as_fd());
            return true;
        }
        Ok(Err(error)) => {
            tracing::warn!(container.id = %id, %error, "the end of a killed monitor cannot be watched");
            return true;
        }
        Err(_) => {}
    }
    left_behind.inc();
    tracing::error!(container.id = %id, "the container's monitor was killed and does not end: it waits in the kernel, is the disk of its log hanging? it is left behind");
    let (id, left_behind) = (id.clone(), left_behind.clone());
    tokio::spawn(async move {
        if let Ok(pidfd) = ended.await {
            process::reap(pidfd.as_fd());
        }
        left_behind.dec();
        tracing::info!(container.id = %id, "a monitor that was left behind has ended");
    });
    false
}

#[cfg(test)]
#[expect(
    clippy::zombie_processes,
    reason = "that they are reaped is what is tested"
)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    fn pidfd(child: &std::process::Child) -> OwnedFd {
        process::pidfd_open(i32::try_from(child.id()).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn one_that_is_stopped_dies_and_is_reaped() {
        let (id, left) = (ContainerId::generate().unwrap(), Gauge::default());
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        process::send_signal(pidfd(&child).as_fd(), libc::SIGSTOP).unwrap();
        assert!(kill(pidfd(&child), &id, &left).await);
        assert_eq!(left.get(), 0);
        assert!(process::pidfd_open(i32::try_from(child.id()).unwrap()).is_err());
    }

    #[tokio::test]
    async fn one_that_does_not_die_is_counted_until_it_does() {
        let (id, left) = (ContainerId::generate().unwrap(), Gauge::default());
        // A frozen process of a v1 hierarchy stands for one in an uninterruptible wait.
        let group = std::path::Path::new("/sys/fs/cgroup/freezer");
        if !group.exists() {
            berth_skip::skip!("cgroup-v1", "no hierarchy of its freezer is mounted");
        }
        let group = group.join(format!("berth-hung-{}", std::process::id()));
        std::fs::create_dir(&group).unwrap();
        let mut command = Command::new("sleep");
        command.arg("1000").process_group(0);
        let child = command.spawn().unwrap();
        std::fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
        std::fs::write(group.join("freezer.state"), "FROZEN").unwrap();
        let killed = kill(pidfd(&child), &id, &left).await;
        let counted = left.get();
        std::fs::write(group.join("freezer.state"), "THAWED").unwrap();
        assert!(!killed);
        assert_eq!(counted, 1);
        for _ in 0..500 {
            if left.get() == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(left.get(), 0);
        assert!(process::pidfd_open(i32::try_from(child.id()).unwrap()).is_err());
        std::fs::remove_dir(&group).unwrap();
    }
}
