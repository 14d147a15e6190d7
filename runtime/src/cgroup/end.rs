//! The end of a container: everything in its cgroups dies, and they go.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::{Error, gone};
use crate::sys::cgroup::{is_inner, wait_event, write_value};

/// How long dying may take: exiting processes give back their memory first, and that can be a lot.
const KILL_TIME: Duration = Duration::from_secs(10);
/// How long a cgroup may stay busy after its last process: the kernel lets go of it a little later.
const REMOVE_TIME: Duration = Duration::from_secs(2);
/// Children of children of a cgroup that are followed.
const MAX_DEPTH: usize = 64;

/// Kills everything in these cgroups (one container's, one directory for each hierarchy) and below them, and
/// waits until nothing is left. Cgroups that are gone are fine.
///
/// # Errors
/// A path that is no cgroup below a root, or processes that survive for ten seconds.
pub fn kill(leaves: &[String]) -> Result<(), Error> {
    let mut present = Vec::new();
    for leaf in leaves.iter().map(PathBuf::from) {
        if inner(&leaf)? {
            present.push(leaf);
        }
    }
    let deadline = Instant::now() + KILL_TIME;
    for leaf in &present {
        kill_by_kernel(leaf, deadline)?;
    }
    let mut pause = Duration::from_micros(500);
    loop {
        let pids = all_processes(&present)?;
        let Some(&first) = pids.first() else {
            return Ok(());
        };
        if Instant::now() > deadline {
            let path = holder(&present, first);
            return Err(Error::Survivors {
                path,
                pids: pids.into_iter().take(8).collect(),
            });
        }
        kill_each(&present, &pids);
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// `Ok(false)` when it is gone.
fn inner(path: &Path) -> Result<bool, Error> {
    match is_inner(path) {
        Ok(true) => Ok(true),
        Ok(false) => Err(Error::NotInner(path.to_owned())),
        Err(error) if gone(&error) => Ok(false),
        Err(source) => Err(Error::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// v2: one write kills the whole tree, forks included (kernel 5.14), and an event says when it is empty.
fn kill_by_kernel(leaf: &Path, deadline: Instant) -> Result<(), Error> {
    if write_value(&leaf.join("cgroup.kill"), "1").is_err() {
        return Ok(());
    }
    let path = leaf.join("cgroup.events");
    let read_failed = |source| Error::Read {
        path: path.clone(),
        source,
    };
    let mut events = match File::open(&path) {
        Ok(events) => events,
        Err(error) if gone(&error) => return Ok(()),
        Err(source) => return Err(read_failed(source)),
    };
    loop {
        let mut text = String::new();
        let read = events
            .rewind()
            .and_then(|()| events.read_to_string(&mut text));
        match read {
            Err(error) if gone(&error) => return Ok(()),
            Err(source) => return Err(read_failed(source)),
            Ok(_) if !text.lines().any(|line| line == "populated 1") => return Ok(()),
            Ok(_) => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        wait_event(&events, left).map_err(read_failed)?;
    }
}

/// v1: frozen processes cannot fork while they are counted; they die when they are thawed.
fn kill_each(leaves: &[PathBuf], pids: &BTreeSet<i32>) {
    let freezers: Vec<PathBuf> = leaves
        .iter()
        .map(|leaf| leaf.join("freezer.state"))
        .filter(|file| file.exists())
        .collect();
    // Best effort, all of it: the loop around looks at what is left.
    for freezer in &freezers {
        let _ = write_value(freezer, "FROZEN");
    }
    let again = if freezers.is_empty() {
        None
    } else {
        all_processes(leaves).ok()
    };
    for pid in again.as_ref().unwrap_or(pids) {
        if let Some(pid) = Pid::from_raw(*pid) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
    for freezer in &freezers {
        let _ = write_value(freezer, "THAWED");
    }
}

/// The processes in these cgroups and below them, as far as they are in our PID namespace.
///
/// # Errors
/// When a cgroup that is there cannot be read.
pub fn processes(leaves: &[String]) -> Result<Vec<i32>, Error> {
    let leaves: Vec<PathBuf> = leaves.iter().map(PathBuf::from).collect();
    Ok(all_processes(&leaves)?.into_iter().collect())
}

fn all_processes(leaves: &[PathBuf]) -> Result<BTreeSet<i32>, Error> {
    let mut pids = BTreeSet::new();
    for leaf in leaves {
        for dir in tree(leaf)? {
            pids.extend(pids_of(&dir)?);
        }
    }
    // Never ourselves, whatever somebody moved where; 0 is a process of another PID namespace.
    pids.remove(&i32::try_from(std::process::id()).unwrap_or(0));
    Ok(pids.into_iter().filter(|&pid| pid > 0).collect())
}

fn pids_of(dir: &Path) -> Result<Vec<i32>, Error> {
    let path = dir.join("cgroup.procs");
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(error) if gone(&error) => Ok(Vec::new()),
        // A threaded cgroup lists its processes in the one above (cgroup-v2.rst, "Threads").
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
        Err(source) => Err(Error::Read { path, source }),
    }
}

fn holder(leaves: &[PathBuf], pid: i32) -> PathBuf {
    let holds = |leaf: &&PathBuf| {
        all_processes(std::slice::from_ref(*leaf)).is_ok_and(|pids| pids.contains(&pid))
    };
    leaves
        .iter()
        .find(holds)
        .or(leaves.first())
        .cloned()
        .unwrap_or_default()
}

/// A cgroup and all below it, outermost first; empty when it is gone.
fn tree(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut dirs = vec![(root.to_owned(), 0)];
    let mut at = 0;
    while let Some((dir, depth)) = dirs.get(at).cloned() {
        at += 1;
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if gone(&error) => continue,
            Err(source) => return Err(Error::Read { path: dir, source }),
        };
        for entry in entries.flatten() {
            if depth < MAX_DEPTH && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push((entry.path(), depth + 1));
            }
        }
    }
    Ok(dirs.into_iter().map(|(dir, _)| dir).collect())
}

/// Removes these cgroups and all that the container made below them. Those that are gone are fine.
///
/// # Errors
/// A path that is no cgroup below a root, or one that stays busy; a repeated call goes on.
pub fn remove(leaves: &[String]) -> Result<(), Error> {
    for leaf in leaves.iter().map(PathBuf::from) {
        if inner(&leaf)? {
            remove_tree(&leaf)?;
        }
    }
    Ok(())
}

fn remove_tree(leaf: &Path) -> Result<(), Error> {
    let deadline = Instant::now() + REMOVE_TIME;
    let mut pause = Duration::from_millis(1);
    loop {
        let mut failed = None;
        for dir in tree(leaf)?.into_iter().rev() {
            match std::fs::remove_dir(&dir) {
                Err(error) if !gone(&error) => failed = Some((dir, error)),
                _ => {}
            }
        }
        let Some((path, source)) = failed else {
            return Ok(());
        };
        let busy = source.raw_os_error() == Some(libc::EBUSY);
        if !busy || Instant::now() > deadline {
            return Err(Error::Remove { path, source });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// Removes the cgroups of the monitors if none is left; one with a monitor stays. The kernel keeps a cgroup busy
/// for a moment after its last thread has ended, and lists a thread for a moment after it was joined.
pub fn remove_shims(dirs: &[PathBuf]) {
    let deadline = Instant::now() + REMOVE_TIME;
    for dir in dirs {
        let left = || pids_of(dir).is_ok_and(|pids| !pids.into_iter().any(stays));
        while let Err(error) = std::fs::remove_dir(dir) {
            let passing = error.raw_os_error() == Some(libc::EBUSY) && left();
            if !passing || Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Whether this is another process than ours, and one that has not ended (proc_pid_stat(5): the state follows
/// the name in parentheses).
fn stays(pid: i32) -> bool {
    let ours = u32::try_from(pid) == Ok(std::process::id());
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit(')')
        .next()
        .and_then(|rest| rest.trim_start().chars().next());
    !ours && !matches!(state, None | Some('Z' | 'X'))
}

/// Removes cgroups that Berth itself made above its containers ([`super::make_parents`]), innermost first, as
/// far as they are empty. Somebody else may have moved in: then they stay.
pub fn remove_parents(made: &[PathBuf]) {
    let mut dirs: Vec<&PathBuf> = made.iter().collect();
    dirs.sort_by_key(|dir| std::cmp::Reverse(dir.components().count()));
    for dir in dirs {
        match std::fs::remove_dir(dir) {
            Err(error) if !gone(&error) => {
                tracing::debug!(%error, dir = %dir.display(), "a cgroup parent stays");
            }
            _ => {}
        }
    }
}
