//! `berth-shim`, the monitor: one tiny process per container.
//!
//! It has the container made by a disposable worker, lets it start, writes its output into the CRI
//! log, waits for its end, and leaves an exit record. It goes on while the daemon is away, and its
//! own death is the container's. Descriptor 0 is the first daemon's socket; everything else comes
//! by messages (`shim_protocol::monitor`). One thread, one poll(2), no allocation while it waits.

mod cgroup;
mod conn;
mod container;
mod exec;
mod exit;
mod log;
mod oom;
mod pipes;
mod proc;
mod server;
mod start;
mod sys;
mod time;
mod worker;

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, getpid, set_child_subreaper, set_dumpable_behavior};

fn main() {
    // There is nobody to tell: the daemon sees the socket close before an answer.
    let code = match set_up() {
        Ok((children, bootstrap)) => {
            server::Server::new(children, bootstrap).run();
            0
        }
        Err(_) => 1,
    };
    sys::exit_now(code);
}

/// Cuts the ties to whoever started this process. Gives the descriptor that tells of children, and
/// the first connection.
fn set_up() -> io::Result<(OwnedFd, OwnedFd)> {
    sys::close_from(3)?;
    let bootstrap = sys::inherited(0)?;
    rustix::io::ioctl_fionbio(&bootstrap, true)?;
    let null = pipes::null()?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    let children = sys::block_signals()?;
    // Orphans of a container without a PID namespace of its own come to us to be reaped.
    set_child_subreaper(Some(getpid()))?;
    rustix::process::chdir("/")?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    // A process group leader cannot make a session; being one already is as good.
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"berth-shim");
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    sys::set_huge_pages(false);
    // Without CAP_SYS_RESOURCE this is refused; the monitor is then as likely a victim as others.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-999");
    Ok((children, bootstrap))
}
