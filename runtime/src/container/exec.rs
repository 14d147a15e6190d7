//! ExecSync: a process beside the container's own, its output collected, its time limited. It ends with its caller.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::pipe::{PipeFlags, pipe_with};
use shim_protocol::{monitor, worker};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;

use super::output::{Captured, ExecOutput, collect};
use super::{Container, Error, Inner};
use crate::host::CgroupFacts;
use crate::id::ContainerId;
use crate::model::{ContainerState, ExecRequest, Kind, chain};
use crate::shim::{ExecStdio, Monitor};
use crate::spec;

/// v1 hierarchies in which an exec may have a group of its own without losing a limit of its container.
const HOLDERS: [&str; 2] = ["pids", "freezer"];

pub(super) async fn exec_sync(
    inner: &Arc<Inner>,
    container: &Arc<Container>,
    request: ExecRequest,
) -> Result<ExecOutput, Error> {
    let failed = |kind, problem: String| container.step("run a command", kind, problem);
    if request.command.is_empty() {
        return Err(Error::Invalid("the command is empty".to_owned()));
    }
    let monitor = container.live(ContainerState::Running)?;
    let (exec, seccomp) = plan(inner, container, &request)?;
    let (stdout, out) = pipe().map_err(|e| failed(Kind::Unknown, e.to_string()))?;
    let (stderr, err) = pipe().map_err(|e| failed(Kind::Unknown, e.to_string()))?;
    let stdio = ExecStdio {
        stdin: None,
        stdout: Some(out),
        stderr: Some(err),
    };
    let what = "run a command";
    // From here on whoever drops this, an error below or a caller that leaves, ends the command.
    let mut tie = Tie::new(container, &monitor, &exec);
    crash_point!("exec_sync.start.before");
    let handle = match monitor.exec(exec, stdio, seccomp).await {
        Ok(handle) => handle,
        Err(error) => {
            // Refused, it does not run; unanswered, it may.
            if let crate::shim::Error::Refused { .. } = error {
                tie.cut();
            }
            return Err(super::exit::refused(container, what, error).await);
        }
    };
    crash_point!("exec_sync.start.after");
    let (ended, ending) = watch::channel(false);
    let (exit, stdout, stderr) = tokio::join!(
        async {
            let exit = handle.wait(request.timeout).await;
            ended.send_replace(true);
            exit
        },
        collect(stdout, ending.clone(), Captured::new(&inner.output)),
        collect(stderr, ending.clone(), Captured::new(&inner.output)),
    );
    crash_point!("exec_sync.end.after");
    let late = request.timeout.filter(|limit| tie.since.elapsed() > *limit);
    let exit = match (exit, late) {
        (Ok(exit), _) => {
            tie.cut();
            exit
        }
        // Its monitor does not tell that it was killed: we do it, and that is what its caller asked for.
        (Err(_), Some(_)) => monitor::ExecExit {
            timed_out: true,
            ..Default::default()
        },
        (Err(error), None) => return Err(super::exit::refused(container, what, error).await),
    };
    if exit.timed_out {
        let seconds = request.timeout.map_or(0, |t| t.as_secs());
        return Err(Error::TimedOut {
            id: container.id.clone(),
            command: request.command,
            seconds,
        });
    }
    let read =
        |stream: io::Result<Captured>| stream.map_err(|e| failed(Kind::Unknown, e.to_string()));
    Ok(ExecOutput {
        stdout: read(stdout)?,
        stderr: read(stderr)?,
        exit_code: exit.code,
    })
}

/// Ties a command to its caller: dropped before it was cut, it kills the command with all that it started.
struct Tie {
    since: tokio::time::Instant,
    /// `None` once it is cut.
    command: Option<Command>,
}

/// A command that may run.
struct Command {
    container: ContainerId,
    monitor: Monitor,
    exec_id: String,
    cgroup: Vec<String>,
}

impl Tie {
    fn new(container: &Container, monitor: &Monitor, exec: &monitor::Exec) -> Self {
        let cgroup = exec.exec.as_ref().map(|exec| exec.own_cgroup.clone());
        Self {
            since: tokio::time::Instant::now(),
            command: Some(Command {
                container: container.id.clone(),
                monitor: monitor.clone(),
                exec_id: exec.exec_id.clone(),
                cgroup: cgroup.unwrap_or_default(),
            }),
        }
    }

    /// The command is over, or never was.
    fn cut(&mut self) {
        self.command = None;
    }
}

impl Drop for Tie {
    fn drop(&mut self) {
        // Without a runtime the daemon is ending, and its monitor does it.
        if let (Some(command), Ok(runtime)) =
            (self.command.take(), tokio::runtime::Handle::try_current())
        {
            runtime.spawn(command.kill());
        }
    }
}

impl Command {
    async fn kill(self) {
        if self.monitor.kill_exec(&self.exec_id).await.is_ok() {
            return;
        }
        // Past a monitor that does not answer. Where it is dead the command is, too.
        let (id, cgroup) = (self.container, self.cgroup);
        crate::blocking::run("kill a command that nobody waits for", move || {
            let killed = crate::cgroup::kill(&cgroup);
            if let Err(error) = killed.and_then(|()| crate::cgroup::remove(&cgroup)) {
                tracing::warn!(container.id = %id, error = %chain(&error), "cannot end a command that nobody waits for");
            }
        })
        .await;
    }
}

fn plan(
    inner: &Inner,
    container: &Container,
    request: &ExecRequest,
) -> Result<(monitor::Exec, Option<OwnedFd>), Error> {
    let init = container.status().init.as_ref().map_or(0, |p| p.pid);
    let parts = container.parts();
    let exec_id = format!("e{}", inner.exec_ids.fetch_add(1, Ordering::Relaxed));
    // The daemon's pid makes the id unique for the monitor's life, which is longer than the daemon's.
    let exec_id = format!("{}-{exec_id}", std::process::id());
    let facts = &inner.deps.facts.cgroup;
    let (own_cgroup, join_cgroup) = cgroups(facts, &parts.leaves, &exec_id);
    let seccomp = match parts.seccomp.as_str() {
        "" => None,
        name => {
            let file = inner.deps.programs.get(name);
            Some(file.map_err(|e| {
                container.step("load the system call filter", Kind::Unknown, chain(&e))
            })?)
        }
    };
    let process = spec::exec(&parts.process, request).map_err(|e| Error::Invalid(chain(&e)))?;
    let exec = worker::Exec {
        container: container.id.to_string(),
        init,
        process: Some(process),
        own_cgroup,
        join_cgroup,
        user_namespace: false,
        rlimits: super::limits(&inner.deps.config),
    };
    let timeout_ms = request
        .timeout
        .map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX));
    Ok((
        monitor::Exec {
            exec_id,
            exec: Some(exec),
            timeout_ms,
            attended: true,
        },
        seccomp.map(OwnedFd::from),
    ))
}

/// A cgroup of the exec's own, so that its end reaches every process it started, whatever left its session: on v2
/// below the container's, on v1 in the pids hierarchy only, and the container's own groups in all others.
fn cgroups(facts: &CgroupFacts, leaves: &[String], exec_id: &str) -> (Vec<String>, Vec<String>) {
    let own = |leaf: &String| format!("{leaf}/exec-{exec_id}");
    if facts.is_v2() {
        return (leaves.iter().map(own).collect(), Vec::new());
    }
    let below = |controller: &&str| {
        let mount = facts.mount_of(controller)?;
        leaves
            .iter()
            .find(|leaf| std::path::Path::new(leaf).starts_with(&mount))
    };
    let holder = HOLDERS.iter().find_map(below).or(leaves.first());
    let others = leaves.iter().filter(|leaf| Some(*leaf) != holder);
    (
        holder.map(own).into_iter().collect(),
        others.cloned().collect(),
    )
}

pub(super) fn pipe() -> io::Result<(Receiver, OwnedFd)> {
    // The process's end must block as programs expect; the flag belongs to each end's own description.
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((Receiver::from_owned_fd(read)?, write))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v1(controllers: &[&str]) -> (CgroupFacts, Vec<String>) {
        let mount = |name: &&str| (String::from(*name), format!("/sys/fs/cgroup/{name}").into());
        let facts = CgroupFacts::V1 {
            hierarchies: controllers.iter().map(mount).collect(),
            unified: None,
            swap: false,
        };
        let leaf = |name: &&str| format!("/sys/fs/cgroup/{name}/pod/c");
        (facts, controllers.iter().map(leaf).collect())
    }

    #[test]
    fn every_command_has_one_group_of_its_own() {
        let own = |controllers: &[&str]| {
            let (facts, leaves) = v1(controllers);
            let (own, others) = cgroups(&facts, &leaves, "e1");
            assert_eq!(others.len(), leaves.len() - 1);
            assert_eq!(own.len(), 1);
            own[0].clone()
        };
        let path = |name: &str| format!("/sys/fs/cgroup/{name}/pod/c/exec-e1");
        assert_eq!(own(&["cpu", "freezer", "memory", "pids"]), path("pids"));
        assert_eq!(own(&["cpu", "freezer", "memory"]), path("freezer"));
        assert_eq!(own(&["cpu", "memory"]), path("cpu"));
        let unified = CgroupFacts::V2 {
            root: "/sys/fs/cgroup".into(),
            controllers: Vec::new(),
            swap: false,
        };
        // As the systemd driver names it: a scope of the pod, a child of the container.
        let leaf = "/sys/fs/cgroup/kubepods.slice/berth-1.scope/c".to_owned();
        let (own, others) = cgroups(&unified, std::slice::from_ref(&leaf), "e1");
        assert_eq!((own, others), (vec![format!("{leaf}/exec-e1")], Vec::new()));
    }
}
