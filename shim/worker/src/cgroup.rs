//! A container's or pause's cgroup: made, written, joined, and undone.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountPropagationFlags;
use rustix::process::{Pid, Signal};
use shim_protocol::worker;

use crate::devices;
use crate::error::{Context, Error, Result, reason};

/// How long killed processes may take to leave a cgroup that is being undone.
const EMPTYING: Duration = Duration::from_secs(2);

/// What was made; undone on drop unless kept.
#[derive(Debug)]
pub(crate) struct Made {
    dirs: Vec<PathBuf>,
    leaves: Vec<PathBuf>,
    /// Roots of the v1 hierarchies in whose leaves this worker stands.
    entered: Vec<PathBuf>,
}

/// Makes a cgroup with all its limits. Whatever fails, what was made is removed again.
pub(crate) fn make(cgroup: &worker::Cgroup) -> Result<Made> {
    let mut made = Made {
        dirs: Vec::new(),
        leaves: cgroup.leaves.iter().map(PathBuf::from).collect(),
        entered: Vec::new(),
    };
    for dir in &cgroup.dirs {
        made.directory(Path::new(dir))?;
    }
    for enable in &cgroup.enable {
        enable_controllers(enable)?;
    }
    for write in &cgroup.writes {
        write_file(write)?;
    }
    if !cgroup.device_dir.is_empty() {
        devices::apply(&cgroup.device_dir, &cgroup.devices)?;
    }
    Ok(made)
}

impl Made {
    fn directory(&mut self, dir: &Path) -> Result<()> {
        if !dir.is_absolute()
            || dir
                .components()
                .any(|c| c == std::path::Component::ParentDir)
        {
            return Err(Error::invalid(format!(
                "cgroup directory {} is not plain",
                dir.display()
            )));
        }
        match fs::create_dir(dir) {
            Ok(()) => self.dirs.push(dir.to_owned()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).context(|| format!("make cgroup {}", dir.display())),
        }
        inherit_cpuset(dir)
    }

    /// It stays: the container exists.
    pub(crate) fn keep(mut self) {
        self.dirs.clear();
        self.leaves.clear();
    }

    /// Directories and descriptors of the leaves, to be joined.
    pub(crate) fn joins(&self) -> Result<Joins> {
        joins(&self.leaves)
    }

    /// Moves this worker into the v1 leaves, and gives the v2 leaf that a process is to be cloned into, so that an
    /// init is born in them. Keeps the engine from moving init once more: it would write to `cgroup.procs` (see
    /// [`Joins::enter_v1`]). `path` is that of the leaves below the roots of their hierarchies. Needs a mount
    /// namespace of our own.
    pub(crate) fn enter(&mut self, path: &str) -> Result<Joins> {
        let mut joins = self.joins()?;
        // The unified hierarchy of a hybrid machine is none that the engine knows: see `join_rest`.
        if !unified() {
            joins.v2 = None;
        }
        for (leaf, _) in joins.v1.iter().chain(&joins.v2) {
            let root = leaf.to_str().and_then(|leaf| leaf.strip_suffix(path));
            let root = root.ok_or_else(|| {
                Error::invalid(format!("cgroup {} is not {path}", leaf.display()))
            })?;
            cover(Path::new(root), &leaf.join("cgroup.procs"))?;
            // On v2 the engine stands in the leaf that libcontainer would kill when it fails: itself, with its reason.
            let kill = leaf.join("cgroup.kill");
            if kill.exists() {
                cover(Path::new(root), &kill)?;
            }
            if joins.v2.is_none() {
                self.entered.push(PathBuf::from(root));
            }
        }
        joins.enter_v1()?;
        Ok(joins)
    }
}

/// Has writes to a file of a hierarchy go nowhere, as far as this mount namespace is concerned.
fn cover(root: &Path, file: &Path) -> Result<()> {
    // Else the host would have it too.
    rustix::mount::mount_change(root, MountPropagationFlags::PRIVATE)
        .context(|| format!("make {} private", root.display()))?;
    rustix::mount::mount_bind("/dev/null", file).context(|| format!("cover {}", file.display()))
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.dirs.is_empty() {
            return;
        }
        for root in &self.entered {
            // If it fails the leaf stays busy, and is removed with the container's record.
            let _out = fs::write(root.join("tasks"), "0");
        }
        // Only a leaf of our own making can hold nothing but what this worker started.
        let ours: Vec<&PathBuf> = self
            .leaves
            .iter()
            .filter(|l| self.dirs.contains(l))
            .collect();
        let end = Instant::now() + EMPTYING;
        loop {
            let left = ours.iter().filter(|leaf| !kill_all(leaf)).count();
            if left == 0 || Instant::now() > end {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        for dir in self.dirs.iter().rev() {
            // One that others have begun to use in the meantime is theirs now; the kernel refuses.
            let _used = fs::remove_dir(dir);
        }
    }
}

/// Kills what is in a cgroup; true once it is empty.
fn kill_all(leaf: &Path) -> bool {
    // By threads, of v1 or of v2: `cgroup.procs` is covered in this mount namespace (see `cover`), and looks empty.
    let read = |name| fs::read_to_string(leaf.join(name));
    let Ok(processes) = read("tasks").or_else(|_| read("cgroup.threads")) else {
        return true;
    };
    let own = std::process::id().to_string();
    let mut empty = true;
    for pid in processes.lines().filter(|p| *p != own) {
        empty = false;
        if let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) {
            let _gone = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
    empty
}

/// A v1 cpuset without CPUs or memory nodes takes no process (cpusets(7)): what the parent has.
fn inherit_cpuset(dir: &Path) -> Result<()> {
    if !dir.join("cgroup.clone_children").exists() {
        return Ok(());
    }
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = dir.join(name);
        let Ok(value) = fs::read_to_string(&file) else {
            continue;
        };
        let Some(parent) = dir.parent().filter(|_| value.trim().is_empty()) else {
            continue;
        };
        let value = fs::read_to_string(parent.join(name))
            .context(|| format!("read {}", parent.join(name).display()))?;
        fs::write(&file, value).context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// Switches controllers on, only those that are not on: each write stops the cgroup tree for a moment.
fn enable_controllers(enable: &worker::CgroupWrite) -> Result<()> {
    let mut file = PathBuf::from(&enable.file);
    if !file.ends_with("cgroup.subtree_control") {
        file.push("cgroup.subtree_control");
    }
    let on = match fs::read_to_string(&file) {
        Ok(on) => on,
        Err(e) if e.kind() == io::ErrorKind::NotFound && enable.optional => return Ok(()),
        Err(e) => return Err(e).context(|| format!("read {}", file.display())),
    };
    for controller in enable.value.split_whitespace() {
        let name = controller.trim_start_matches('+');
        if on.split_whitespace().any(|c| c == name) {
            continue;
        }
        let switch = || fs::write(&file, format!("+{name}"));
        let enabled = match switch() {
            Err(e) if e.kind() == io::ErrorKind::NotFound && !enable.optional => {
                file.parent().map_or(Ok(()), |dir| hand_down(dir, name))?;
                switch()
            }
            other => other,
        };
        match enabled {
            // Nothing that was asked for needs it: without it a statistic is missing, no limit.
            Err(_) if enable.optional => {}
            other => other.context(|| format!("enable controller {name} in {}", file.display()))?,
        }
    }
    Ok(())
}

/// Has a cgroup be given a controller by those above it. systemd hands none down that it does not know itself
/// (hugetlb), and the kubelet none below its own cgroups.
fn hand_down(dir: &Path, name: &str) -> Result<()> {
    let Some(parent) = dir.parent() else {
        return Ok(());
    };
    // Above the root of the hierarchy there is no such file.
    let Ok(has) = fs::read_to_string(parent.join("cgroup.controllers")) else {
        return Ok(());
    };
    if !has.split_whitespace().any(|known| known == name) {
        hand_down(parent, name)?;
    }
    fs::write(parent.join("cgroup.subtree_control"), format!("+{name}"))
        .context(|| format!("enable controller {name} in {}", parent.display()))
}

fn write_file(write: &worker::CgroupWrite) -> Result<()> {
    // Not fs::write: a cgroup file is never created, and one write(2) carries one value.
    let file = rustix::fs::open(
        write.file.as_str(),
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let result = file.and_then(|file| rustix::io::write(file, write.value.as_bytes()));
    match result {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::NOENT) if write.optional => Ok(()),
        Err(e) => {
            let told = || format!("write {:?} to {}", write.value, write.file);
            let e = io::Error::from(e);
            match shim_protocol::limits::refused(&write.file, &e) {
                Some(why) => Err(Error::invalid(format!("{}: {why}", told()))),
                None => Err(e).context(told),
            }
        }
    }
}

/// Leaves to be joined: v1 by writing, v2 by being cloned into.
#[derive(Debug)]
pub(crate) struct Joins {
    v1: Vec<(PathBuf, OwnedFd)>,
    v2: Option<(PathBuf, OwnedFd)>,
}

/// Opens cgroup directories while the host's files can still be seen.
pub(crate) fn joins(dirs: &[PathBuf]) -> Result<Joins> {
    let mut joins = Joins {
        v1: Vec::new(),
        v2: None,
    };
    for dir in dirs {
        // Only cgroup v2 has this file.
        if dir.join("cgroup.controllers").exists() {
            let fd = rustix::fs::open(
                dir,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .context(|| format!("open cgroup {}", dir.display()))?;
            joins.v2 = Some((dir.clone(), fd));
        } else {
            let tasks = dir.join("tasks");
            let fd = rustix::fs::open(&tasks, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .context(|| format!("open {}", tasks.display()))?;
            joins.v1.push((dir.clone(), fd));
        }
    }
    Ok(joins)
}

impl Joins {
    /// Moves the calling process, which has one thread, into the v1 cgroups. A write to `cgroup.procs` would
    /// wait for an RCU grace period on an idle machine (7-15 ms); a thread that moves itself by `tasks` does
    /// not (`cgroup_procs_write_start` in the kernel's cgroup.c).
    pub(crate) fn enter_v1(&self) -> Result<()> {
        for (dir, tasks) in &self.v1 {
            rustix::io::write(tasks, b"0").context(|| format!("join cgroup {}", dir.display()))?;
        }
        Ok(())
    }

    /// The v2 directory to be cloned into.
    pub(crate) fn v2(&self) -> Option<&OwnedFd> {
        self.v2.as_ref().map(|(_, fd)| fd)
    }

    /// Why a clone has failed. Two reasons are the v2 cgroup's (cgroups(7)): a privileged container may have
    /// changed the one that it stands in.
    pub(crate) fn refused(&self, error: &io::Error) -> Error {
        let why = match error.raw_os_error() {
            Some(libc::EBUSY) => "the container has enabled controllers for its children",
            Some(libc::EOPNOTSUPP) => "the container has made cgroups of its own threaded",
            _ => return Error::internal(format!("clone into the container: {}", reason(error))),
        };
        let leaf = self.v2.as_ref().map(|(dir, _)| dir.display());
        let leaf = leaf.map_or_else(String::new, |dir| format!(" {dir}"));
        Error::state(format!("cgroup{leaf} takes no process: {why}"))
    }
}

/// Moves an init into the v2 leaf if libcontainer does not know it (the unified hierarchy of a hybrid
/// machine).
pub(crate) fn join_rest(leaves: &[String], pid: i32) -> Result<()> {
    let own = pid.to_string();
    for leaf in leaves.iter().map(Path::new) {
        if !leaf.join("cgroup.controllers").exists() {
            continue;
        }
        let procs = leaf.join("cgroup.procs");
        let inside = fs::read_to_string(&procs).context(|| format!("read {}", procs.display()))?;
        if inside.lines().any(|p| p == own) {
            continue;
        }
        match fs::write(&procs, &own) {
            // It is dead already, which its exit tells better than a failed create.
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
            other => other.context(|| format!("join cgroup {}", leaf.display()))?,
        }
    }
    Ok(())
}

/// Refuses cgroups that are frozen: a process put there hangs.
pub(crate) fn refuse_frozen(dirs: &[PathBuf]) -> Result<()> {
    for dir in dirs {
        let v1 = fs::read_to_string(dir.join("freezer.state")).is_ok_and(|s| s.trim() != "THAWED");
        let v2 = fs::read_to_string(dir.join("cgroup.events"))
            .is_ok_and(|s| s.lines().any(|l| l == "frozen 1"));
        if v1 || v2 {
            return Err(Error::state(format!(
                "the container is paused (cgroup {})",
                dir.display()
            )));
        }
    }
    Ok(())
}

/// An exec's own cgroup; undone on drop unless kept. By descriptor: the worker is in the container's
/// mount namespace by then.
#[derive(Debug, Default)]
pub(crate) struct Own {
    made: Vec<(OwnedFd, OsString)>,
}

impl Own {
    /// Makes the directories.
    pub(crate) fn new(dirs: &[String]) -> Result<Self> {
        let mut own = Self::default();
        for dir in dirs.iter().map(Path::new) {
            let shown = dir.display();
            let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
                return Err(Error::invalid(format!(
                    "cgroup directory {shown} is not plain"
                )));
            };
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let parent = rustix::fs::open(parent, flags, Mode::empty())
                .context(|| format!("open the parent of cgroup {shown}"))?;
            match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => own.made.push((parent, name.to_owned())),
                Err(rustix::io::Errno::EXIST) => {}
                Err(e) => return Err(e).context(|| format!("make cgroup {shown}")),
            }
            inherit_cpuset(dir)?;
        }
        Ok(own)
    }

    /// It stays: the process is in it.
    pub(crate) fn keep(mut self) {
        self.made.clear();
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        for (parent, name) in self.made.iter().rev() {
            let remove = || rustix::fs::unlinkat(parent, name, rustix::fs::AtFlags::REMOVEDIR);
            if remove() != Err(rustix::io::Errno::BUSY) {
                continue;
            }
            // v1: this worker is in it; nobody else is. On v2 it is not, and must not join the container's.
            let procs = rustix::fs::openat(
                parent,
                "cgroup.procs",
                OFlags::WRONLY | OFlags::CLOEXEC,
                Mode::empty(),
            );
            let _moved = procs.and_then(|procs| rustix::io::write(procs, b"0"));
            let _used = remove();
        }
    }
}

/// Whether the machine has cgroup v2 alone.
pub(crate) fn unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_optional_file_may_be_missing_and_is_never_made() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("memory.max").display().to_string();
        let write = |optional| worker::CgroupWrite {
            file: file.clone(),
            value: "1".into(),
            optional,
        };
        write_file(&write(true)).unwrap();
        let error = write_file(&write(false)).unwrap_err().to_string();
        assert!(
            error.contains("memory.max") && error.contains("no such file"),
            "{error}"
        );
        assert!(!dir.path().join("memory.max").exists());
    }

    #[test]
    fn values_that_the_kernel_refuses_blame_the_request() {
        let dir = Path::new("/sys/fs/cgroup/cpuset");
        let dir = if dir.exists() {
            dir
        } else {
            Path::new("/sys/fs/cgroup")
        };
        let leaf = dir.join(format!("berth-refused-{}", std::process::id()));
        fs::create_dir(&leaf).unwrap();
        // v2: as for a pod, and for this test only.
        let control = dir.join("cgroup.subtree_control");
        let switched = !leaf.join("cpuset.cpus").exists();
        if switched {
            fs::write(&control, "+cpuset").unwrap();
        }
        let refused = |file: &str, value: &str| {
            write_file(&worker::CgroupWrite {
                file: leaf.join(file).display().to_string(),
                value: value.into(),
                optional: false,
            })
        };
        let outcomes = [
            ("cpuset.cpus", "9999"),
            ("cpuset.cpus", "0-"),
            ("cpuset.mems", "9999"),
            ("cpuset.mems", "x"),
        ]
        .map(|(file, value)| (file, refused(file, value)));
        fs::remove_dir(&leaf).unwrap();
        if switched {
            fs::write(&control, "-cpuset").unwrap();
        }
        for (file, outcome) in outcomes {
            let error = outcome.unwrap_err();
            let what = if file.ends_with("cpus") {
                "CPUs 0"
            } else {
                "memory nodes 0"
            };
            assert!(
                error.is_invalid() && error.to_string().contains(what),
                "{error}"
            );
        }
    }

    #[test]
    fn what_was_made_is_removed_unless_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = |p: &str| dir.path().join(p).display().to_string();
        let failing = worker::Cgroup {
            dirs: vec![path("a"), path("a/b")],
            writes: vec![worker::CgroupWrite {
                file: path("a/b/x"),
                ..Default::default()
            }],
            ..Default::default()
        };
        assert!(make(&failing).is_err());
        assert!(!dir.path().join("a").exists());
        let good = worker::Cgroup {
            writes: Vec::new(),
            ..failing
        };
        make(&good).unwrap().keep();
        assert!(dir.path().join("a/b").is_dir());
        let relative = worker::Cgroup {
            dirs: vec![path("a/../c")],
            ..Default::default()
        };
        assert!(make(&relative).is_err());
    }

    /// As a v1 leaf looks once its `cgroup.procs` is covered.
    #[test]
    fn what_is_left_in_a_covered_leaf_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let mut left = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        fs::write(dir.path().join("cgroup.procs"), "").unwrap();
        fs::write(dir.path().join("tasks"), format!("{}\n", left.id())).unwrap();
        assert!(!kill_all(dir.path()));
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(left.wait().unwrap().signal(), Some(libc::SIGKILL));
        fs::write(dir.path().join("tasks"), "").unwrap();
        assert!(kill_all(dir.path()));
    }

    #[test]
    fn a_dead_process_has_joined() {
        let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .map(Path::new)
            .into_iter()
            .find(|root| root.join("cgroup.controllers").exists())
            .expect("no cgroup v2 hierarchy on this machine");
        let leaf = root.join(format!("berth-join-{}", std::process::id()));
        fs::create_dir(&leaf).unwrap();
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        dead.wait().unwrap();
        let pid = i32::try_from(dead.id()).unwrap();
        let joined = join_rest(&[leaf.display().to_string()], pid);
        fs::remove_dir(&leaf).unwrap();
        joined.unwrap();
    }
}
