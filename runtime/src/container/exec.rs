//! ExecSync: a process beside the container's own, its output collected, its time limited.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::pipe::{PipeFlags, pipe_with};
use shim_protocol::{monitor, worker};
use tokio::net::unix::pipe::Receiver;

use super::{Container, Error, Inner};
use crate::host::CgroupFacts;
use crate::model::{ContainerState, ExecOutput, ExecRequest, Kind, chain};
use crate::shim::ExecStdio;
use crate::spec;

/// Most bytes of each stream that are kept (row R036); the rest is read and thrown away.
const CAP: usize = 16 << 20;

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
    let handle = match monitor.exec(exec, stdio, seccomp).await {
        Ok(handle) => handle,
        Err(e) => return Err(super::exit::refused(container, what, e).await),
    };
    let (ended, ending) = tokio::sync::watch::channel(false);
    let (exit, stdout, stderr) = tokio::join!(
        async {
            let exit = handle.wait().await;
            ended.send_replace(true);
            exit
        },
        collect(stdout, ending.clone()),
        collect(stderr, ending.clone()),
    );
    let exit = match exit {
        Ok(exit) => exit,
        Err(e) => return Err(super::exit::refused(container, what, e).await),
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
        |stream: io::Result<Vec<u8>>| stream.map_err(|e| failed(Kind::Unknown, e.to_string()));
    Ok(ExecOutput {
        stdout: read(stdout)?,
        stderr: read(stderr)?,
        exit_code: exit.code,
    })
}

fn plan(
    inner: &Inner,
    container: &Container,
    request: &ExecRequest,
) -> Result<(monitor::Exec, Option<OwnedFd>), Error> {
    let record = container.now();
    let exec_id = format!("e{}", inner.exec_ids.fetch_add(1, Ordering::Relaxed));
    // The daemon's pid makes the id unique for the monitor's life, which is longer than the daemon's.
    let exec_id = format!("{}-{exec_id}", std::process::id());
    // A container that distributes its controllers takes no process beside its own groups.
    let apart = request.timeout.is_some()
        || record
            .leaves
            .iter()
            .any(|leaf| crate::cgroup::distributes(leaf));
    let facts = &inner.deps.facts.cgroup;
    let (own_cgroup, join_cgroup) = cgroups(facts, &record.leaves, &exec_id, apart);
    let seccomp = match record.seccomp.as_str() {
        "" => None,
        name => {
            let file = inner.deps.programs.get(name);
            Some(file.map_err(|e| {
                container.step("load the system call filter", Kind::Unknown, chain(&e))
            })?)
        }
    };
    let process = spec::exec(&record.process, request).map_err(|e| Error::Invalid(chain(&e)))?;
    let exec = worker::Exec {
        container: container.id.to_string(),
        init: record.init.as_ref().map_or(0, |p| p.pid),
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
        },
        seccomp.map(OwnedFd::from),
    ))
}

/// A cgroup of the exec's own, so that its time limit reaches every process it starts: on v2 below the
/// container's, on v1 in the pids hierarchy only, and the container's own groups in all others. On v2 one
/// without a time limit has none: programs look for the limits in the cgroup in which they find themselves.
fn cgroups(
    facts: &CgroupFacts,
    leaves: &[String],
    exec_id: &str,
    apart: bool,
) -> (Vec<String>, Vec<String>) {
    let own = |leaf: &String| format!("{leaf}/exec-{exec_id}");
    let (holders, others): (Vec<&String>, Vec<&String>) = match facts {
        CgroupFacts::V2 { .. } if !apart => (Vec::new(), leaves.iter().collect()),
        CgroupFacts::V2 { .. } => (leaves.iter().collect(), Vec::new()),
        CgroupFacts::V1 { .. } => {
            let pids = facts
                .mount_of("pids")
                .map(|mount| format!("{}/", mount.display()));
            leaves
                .iter()
                .partition(|leaf| pids.as_ref().is_some_and(|pids| leaf.starts_with(pids)))
        }
    };
    (
        holders.into_iter().map(own).collect(),
        others.into_iter().cloned().collect(),
    )
}

fn pipe() -> io::Result<(Receiver, OwnedFd)> {
    // The process's end must block as programs expect; the flag belongs to each end's own description.
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((Receiver::from_owned_fd(read)?, write))
}

/// Reads until end of file, or until the process has ended and the pipe is empty: what it wrote itself is
/// in the pipe by then, and a child that holds the pipe open is not waited for.
async fn collect(
    pipe: Receiver,
    mut ended: tokio::sync::watch::Receiver<bool>,
) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        if *ended.borrow_and_update() {
            return drain(&pipe, &mut buffer, kept);
        }
        match pipe.try_read(&mut buffer) {
            Ok(0) => return Ok(kept),
            Ok(n) => {
                kept.extend_from_slice(&buffer[..n.min(CAP - kept.len())]);
                // A writer that is faster than this must not keep the thread from the others.
                tokio::task::yield_now().await;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                tokio::select! {
                    ready = pipe.readable() => ready?,
                    _ = ended.changed() => {}
                }
            }
            Err(e) => return Err(e),
        }
    }
}

/// What is in the pipe right now, and no more: somebody else may go on writing.
fn drain(pipe: &Receiver, buffer: &mut [u8], mut kept: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut left = usize::try_from(rustix::io::ioctl_fionread(pipe)?).unwrap_or(usize::MAX);
    while left > 0 {
        let most = left.min(buffer.len());
        match rustix::io::read(pipe, &mut buffer[..most]) {
            Ok(0) | Err(rustix::io::Errno::AGAIN) => break,
            Ok(n) => {
                kept.extend_from_slice(&buffer[..n.min(CAP - kept.len())]);
                left -= n;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test]
    async fn a_pipe_that_is_held_open_does_not_hang_the_reader() {
        let (read, write) = pipe().unwrap();
        let mut holder = std::fs::File::from(write);
        holder.write_all(b"said").unwrap();
        let (ended, ending) = tokio::sync::watch::channel(false);
        let reader = tokio::spawn(collect(read, ending));
        ended.send_replace(true);
        assert_eq!(reader.await.unwrap().unwrap(), b"said");
        drop(holder);
    }

    #[tokio::test]
    async fn writers_that_never_stop_do_not_hang_the_reader() {
        let (read, write) = pipe().unwrap();
        let writers: Vec<_> = (0..4)
            .map(|_| {
                let mut file = std::fs::File::from(write.try_clone().unwrap());
                std::thread::spawn(move || while file.write_all(&[b'y'; 4096]).is_ok() {})
            })
            .collect();
        drop(write);
        let (ended, ending) = tokio::sync::watch::channel(false);
        let reader = tokio::spawn(collect(read, ending));
        // One thread: this goes on only if the reader lets it.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        ended.send_replace(true);
        assert!(!reader.await.unwrap().unwrap().is_empty());
        writers.into_iter().for_each(|w| w.join().unwrap());
    }

    #[tokio::test]
    async fn output_over_the_cap_is_read_and_thrown_away() {
        let (read, write) = pipe().unwrap();
        let writer = std::thread::spawn(move || {
            let mut file = std::fs::File::from(write);
            let block = vec![b'x'; 1 << 20];
            (0..20).try_for_each(|_| file.write_all(&block)).unwrap();
        });
        let (_ended, ending) = tokio::sync::watch::channel(false);
        assert_eq!(collect(read, ending).await.unwrap().len(), CAP);
        writer.join().unwrap();
    }
}
