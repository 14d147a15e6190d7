//! Directories that Berth makes, and processes in them.

use std::io;
use std::path::{Path, PathBuf};

use super::Error;
use crate::host::{CgroupFacts, Cpuset};
use crate::sys::cgroup::write_value;

/// Controllers that pods need. No others are switched on: each costs the whole machine.
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];

/// Makes what is missing of a pod's cgroup (`/kubepods/…/pod1`) in every hierarchy with controllers, and
/// gives back what it made, outermost first. What the kubelet made is left as it is.
///
/// v2: above a directory that it makes, the controllers are enabled as far as the kernel lets them; a limit
/// that needs a missing one fails when the container is made. v1: empty cpusets are filled from above.
///
/// # Errors
/// When a directory cannot be made; those made before are removed again.
pub fn make_parents(facts: &CgroupFacts, parent: &str) -> Result<Vec<PathBuf>, Error> {
    let mut made = Vec::new();
    let result = facts
        .controller_mounts()
        .iter()
        .try_for_each(|mount| make_chain(mount, parent, &mut made));
    let result = result.and_then(|()| fill_cpusets(facts, parent));
    if let Err(error) = result {
        super::remove_parents(&made);
        return Err(error);
    }
    Ok(made)
}

fn make_chain(mount: &Path, path: &str, made: &mut Vec<PathBuf>) -> Result<(), Error> {
    let mut dir = mount.to_owned();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let above = dir.clone();
        dir.push(part);
        match std::fs::create_dir(&dir) {
            Ok(()) => {
                made.push(dir.clone());
                crash_point!("run_pod.parent_directory.after");
                enable(&above);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(Error::NotACgroup(dir));
            }
            Err(source) => return Err(Error::Make { path: dir, source }),
        }
    }
    Ok(())
}

/// On v1 there is no such file. One write each, because the kernel takes all of a write or nothing.
fn enable(dir: &Path) {
    let Ok(available) = std::fs::read_to_string(dir.join("cgroup.controllers")) else {
        return;
    };
    for name in available
        .split_whitespace()
        .filter(|name| CONTROLLERS.contains(name))
    {
        if let Err(error) = write_value(&dir.join("cgroup.subtree_control"), &format!("+{name}")) {
            tracing::debug!(%error, controller = name, dir = %dir.display(), "controller could not be enabled");
        }
    }
}

/// From the root down, each empty cpuset becomes that of its parent.
fn fill_cpusets(facts: &CgroupFacts, path: &str) -> Result<(), Error> {
    let CgroupFacts::V1 { hierarchies, .. } = facts else {
        return Ok(());
    };
    let Some(mount) = hierarchies.get("cpuset") else {
        return Ok(());
    };
    let mut dir = mount.clone();
    let mut above = read_cpuset(&dir)?;
    for part in path.split('/').filter(|part| !part.is_empty()) {
        dir.push(part);
        let own = read_cpuset(&dir)?;
        for (file, own, inherited) in [
            ("cpuset.cpus", &own.cpus, &above.cpus),
            ("cpuset.mems", &own.mems, &above.mems),
        ] {
            let path = dir.join(file);
            if own.is_empty()
                && let Err(source) = write_value(&path, inherited)
            {
                return Err(Error::Write {
                    path,
                    value: inherited.clone(),
                    restored: false,
                    source,
                });
            }
        }
        above = read_cpuset(&dir)?;
    }
    Ok(())
}

/// The cpuset of a cgroup on v1, which its children have to be given; `None` on v2, where they inherit.
///
/// # Errors
/// When it cannot be read.
pub fn cpuset(facts: &CgroupFacts, path: &str) -> Result<Option<Cpuset>, Error> {
    let CgroupFacts::V1 { hierarchies, .. } = facts else {
        return Ok(None);
    };
    let dir = hierarchies
        .get("cpuset")
        .map(|mount| mount.join(path.trim_start_matches('/')));
    dir.map(|dir| read_cpuset(&dir)).transpose()
}

fn read_cpuset(dir: &Path) -> Result<Cpuset, Error> {
    let read = |file: &str| {
        let path = dir.join(file);
        let text = std::fs::read_to_string(&path).map_err(|source| Error::Read { path, source })?;
        Ok(text.trim().to_owned())
    };
    Ok(Cpuset {
        cpus: read("cpuset.cpus")?,
        mems: read("cpuset.mems")?,
    })
}

/// Makes the cgroup of the monitors in every hierarchy, named ones too, and gives its directories. It is made
/// again if somebody removed it.
///
/// # Errors
/// When a directory cannot be made.
pub fn ensure_shims(facts: &CgroupFacts, name: &str) -> Result<Vec<PathBuf>, Error> {
    let mut made = Vec::new();
    for mount in facts.all_mounts() {
        make_chain(&mount, name, &mut made)?;
    }
    fill_cpusets(facts, name)?;
    Ok(facts
        .all_mounts()
        .iter()
        .map(|mount| mount.join(name.trim_start_matches('/')))
        .collect())
}

/// Puts a process into cgroups.
///
/// # Errors
/// When the kernel refuses it, for instance because the process is gone.
pub fn join(dirs: &[PathBuf], pid: i32) -> Result<(), Error> {
    for dir in dirs {
        let path = dir.join("cgroup.procs");
        let value = pid.to_string();
        if let Err(source) = write_value(&path, &value) {
            return Err(Error::Write {
                path,
                value,
                restored: false,
                source,
            });
        }
    }
    Ok(())
}
