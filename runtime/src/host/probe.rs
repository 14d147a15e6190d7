//! Fills [`HostFacts`] in. What parses text is apart from what reads it, so that other machines can be tested.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::mounts::{MountEntry, parse_mountinfo};
use super::{CgroupFacts, HostFacts, Selinux};

/// Why the machine could not be understood.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that every Linux has.
    #[error("{path} could not be read: is /proc mounted?")]
    Read {
        /// The file.
        path: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Nothing mounted.
    #[error("no cgroup hierarchy is mounted: mount cgroup2 on /sys/fs/cgroup")]
    NoCgroup,
    /// A kernel release that is none.
    #[error("kernel release {0:?} has no version number")]
    Kernel(String),
    /// The capability sets could not be read.
    #[error("the bounding set of capabilities could not be read")]
    Capabilities(#[source] caps::errors::CapsError),
}

pub(super) fn probe() -> Result<HostFacts, Error> {
    let mounts = parse_mountinfo(&read("/proc/self/mountinfo")?);
    let release = read("/proc/sys/kernel/osrelease")?;
    let capabilities = bounding_set()?;
    let own_oom: i32 = read("/proc/self/oom_score_adj")?
        .trim()
        .parse()
        .unwrap_or(0);
    Ok(HostFacts {
        kernel: parse_kernel(&release).ok_or_else(|| Error::Kernel(release.trim().to_owned()))?,
        cgroup: cgroup(&mounts)?,
        apparmor: flag("/sys/module/apparmor/parameters/enabled"),
        selinux: Selinux::find(Path::new("/"), &mounts),
        capabilities,
        hugepage_sizes: hugepages(Path::new("/sys/kernel/mm/hugepages")),
        min_oom_score_adj: min_oom_score_adj(own_oom)?,
        systemd: read("/proc/1/comm").is_ok_and(|name| name.trim() == "systemd")
            && Path::new("/run/systemd/system").is_dir(),
        boot_id: read("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
        hostname: read("/proc/sys/kernel/hostname")?.trim().to_owned(),
    })
}

fn read(path: &'static str) -> Result<String, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path, source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn flag(path: &str) -> bool {
    std::fs::read(path).is_ok_and(|bytes| bytes.first() == Some(&b'Y'))
}

/// `6.18.44-fc` is (6, 18).
fn parse_kernel(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.trim().split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn bounding_set() -> Result<u64, Error> {
    let set = caps::read(None, caps::CapSet::Bounding).map_err(Error::Capabilities)?;
    Ok(set.iter().fold(0, |mask, cap| mask | 1 << cap.index()))
}

/// Lowering one's own value needs CAP_SYS_RESOURCE (proc(5)), and a child starts with its parent's.
fn min_oom_score_adj(own: i32) -> Result<i32, Error> {
    let effective = caps::has_cap(
        None,
        caps::CapSet::Effective,
        caps::Capability::CAP_SYS_RESOURCE,
    )
    .map_err(Error::Capabilities)?;
    Ok(if effective { -1000 } else { own })
}

/// `hugepages-2048kB` is `2MB`.
fn hugepages(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let mut sizes: Vec<u64> = names.filter_map(|name| hugepage_kib(&name)).collect();
    sizes.sort_unstable();
    sizes.into_iter().map(hugepage_name).collect()
}

fn hugepage_kib(name: &str) -> Option<u64> {
    name.strip_prefix("hugepages-")?
        .strip_suffix("kB")?
        .parse()
        .ok()
}

/// As the hugetlb controller names its files.
fn hugepage_name(kib: u64) -> String {
    const MIB: u64 = 1 << 10;
    const GIB: u64 = 1 << 20;
    match kib {
        kib if kib % GIB == 0 => format!("{}GB", kib / GIB),
        kib if kib % MIB == 0 => format!("{}MB", kib / MIB),
        kib => format!("{kib}KB"),
    }
}

fn cgroup(mounts: &[MountEntry]) -> Result<CgroupFacts, Error> {
    let layout = layout(
        mounts,
        &v1_controllers(&read("/proc/cgroups").unwrap_or_default()),
    );
    match layout {
        Layout::None => Err(Error::NoCgroup),
        Layout::V2(root) => {
            let controllers = controllers_of(&root);
            // The root has no memory.swap.max of its own; vmstat's swap counters and /proc/swaps say
            // nothing either: the kernel accounts swap on v2 unless booted with swapaccount=0.
            let swap = controllers.iter().any(|name| name == "memory") && !swapaccount_off();
            Ok(CgroupFacts::V2 {
                root,
                controllers,
                swap,
            })
        }
        Layout::V1 {
            hierarchies,
            unified,
        } => {
            let swap = hierarchies
                .get("memory")
                .is_some_and(|memory| memory.join("memory.memsw.limit_in_bytes").exists());
            let unified = unified.map(|root| {
                let controllers = controllers_of(&root);
                (root, controllers)
            });
            Ok(CgroupFacts::V1 {
                hierarchies,
                unified,
                swap,
            })
        }
    }
}

fn swapaccount_off() -> bool {
    let line = read("/proc/cmdline").unwrap_or_default();
    line.split_whitespace().any(|word| word == "swapaccount=0")
}

fn controllers_of(root: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// The controllers that the kernel has and has enabled (fourth column of `/proc/cgroups`).
fn v1_controllers(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next()?;
            (words.nth(2)? == "1").then(|| name.to_owned())
        })
        .collect()
}

#[derive(Debug, PartialEq, Eq)]
enum Layout {
    None,
    V2(PathBuf),
    V1 {
        hierarchies: BTreeMap<String, PathBuf>,
        unified: Option<PathBuf>,
    },
}

/// A v1 hierarchy with a controller makes it v1, whatever else is mounted: limits live there.
fn layout(mounts: &[MountEntry], known: &[String]) -> Layout {
    let mut hierarchies = BTreeMap::new();
    let mut unified = None;
    // Only mounts of a whole hierarchy count, and the first one of each: containers' binds come later.
    for mount in mounts.iter().filter(|mount| mount.root == Path::new("/")) {
        match mount.fs_type.as_str() {
            "cgroup2" if unified.is_none() => unified = Some(mount.mount_point.clone()),
            "cgroup" => {
                for option in &mount.super_options {
                    if option.starts_with("name=") || known.iter().any(|name| name == option) {
                        hierarchies
                            .entry(option.clone())
                            .or_insert_with(|| mount.mount_point.clone());
                    }
                }
            }
            _ => {}
        }
    }
    let controllers = hierarchies.keys().any(|name| !name.starts_with("name="));
    match unified {
        _ if controllers => Layout::V1 {
            hierarchies,
            unified,
        },
        Some(root) => Layout::V2(root),
        None => Layout::None,
    }
}

#[cfg(test)]
mod tests;
