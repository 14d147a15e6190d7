//! Killing and removing control groups (v1 and v2), by their directories.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::{Pid, Signal, getpid, kill_process};

/// Passes over a v1 tree before the caller is asked to come again: a fork may outrun one pass.
const PASSES: usize = 20;

/// Kills every process in the trees. True once there is none left; a process that is dying still counts.
pub(crate) fn kill(dirs: &[String]) -> bool {
    let mut empty = true;
    for dir in dirs {
        let dir = Path::new(dir);
        // v2 since Linux 5.14 takes the whole tree in one step, forks included.
        let _ = write_existing(dir.join("cgroup.kill"), "1");
        empty &= (0..PASSES).any(|_| kill_pass(dir));
    }
    empty
}

/// Sends SIGKILL to what a tree holds now. True when it held nothing.
fn kill_pass(dir: &Path) -> bool {
    let mut empty = true;
    for pid in processes(dir) {
        empty = false;
        if pid != getpid() && !pid.is_init() {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
    children(dir, |child| empty &= kill_pass(child));
    empty
}

/// Moves what is left in a cgroup to its parent, so that it can be removed.
pub(crate) fn empty_into_parent(dir: &str) {
    let dir = Path::new(dir);
    let Some(parent) = dir.parent() else { return };
    for pid in processes(dir) {
        let _ = write_existing(
            parent.join("cgroup.procs"),
            &pid.as_raw_nonzero().to_string(),
        );
    }
}

/// Removes a tree, the innermost first. Absence is fine.
pub(crate) fn remove(dir: &str) -> io::Result<()> {
    remove_tree(Path::new(dir))
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match fs::remove_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(()) => return Ok(()),
        // Busy: processes or children.
        Err(_) => children(dir, |child| {
            let _ = remove_tree(child);
        }),
    }
    fs::remove_dir(dir)
}

/// Whether a cgroup that could not be removed holds nothing but tasks on their way out: those are not listed
/// any more, yet keep it busy until they have left (`css_task_iter_advance` in the kernel's cgroup.c).
pub(crate) fn is_emptying(dir: &str) -> bool {
    let dir = Path::new(dir);
    let mut empty = dir.exists() && processes(dir).is_empty();
    children(dir, |child| empty &= processes(child).is_empty());
    empty
}

/// The processes of one cgroup; none when it is gone.
fn processes(dir: &Path) -> Vec<Pid> {
    let list = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    // 0 stands for a process that our PID namespace does not see.
    list.lines()
        .filter_map(|line| line.parse().ok().filter(|pid| *pid > 0))
        .filter_map(Pid::from_raw)
        .collect()
}

fn children(dir: &Path, mut each: impl FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            each(&entry.path());
        }
    }
}

/// Writes to a control file; unlike `fs::write` it never makes one.
fn write_existing(path: impl AsRef<Path>, value: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    io::Write::write_all(&mut file, value.as_bytes())
}
