//! Limits as values for cgroup files, on v1 and v2, at create and at update.

use std::collections::BTreeMap;

use shim_protocol::worker::CgroupWrite;

use super::Error;
use super::cgroup_path::below;
use crate::host::{CgroupFacts, Cpuset};
use crate::model::{HugepageLimit, Resources};

/// CFS takes no shorter quota (kernel/sched/core.c, min_cfs_quota_period: 1 ms).
const MIN_QUOTA: i64 = 1000;
/// The kernel's default period, microseconds.
const DEFAULT_PERIOD: i64 = 100_000;
/// Files that steer the group itself. Nobody may write them by way of a limit.
const RESERVED: [&str; 6] = [
    "cgroup.procs",
    "cgroup.threads",
    "cgroup.kill",
    "cgroup.freeze",
    "cgroup.type",
    "cgroup.subtree_control",
];

/// A cgroup, by its place in the hierarchies.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The hierarchies.
    pub facts: &'a CgroupFacts,
    /// Path below each root.
    pub path: &'a str,
}

/// The limits after an update, and how to get there.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    /// Old limits with the new ones over them.
    pub resources: Resources,
    /// What to write, in this order.
    pub writes: Vec<CgroupWrite>,
}

/// What to write into a new cgroup. `parent` is the cpuset of its parent, on v1, where a new group begins
/// with an empty one and takes no process.
///
/// # Errors
/// A value that the kernel would refuse or that contradicts another, or a controller that is not there.
pub fn create(
    place: Place<'_>,
    resources: &Resources,
    parent: Option<&Cpuset>,
) -> Result<Vec<CgroupWrite>, Error> {
    let mut full = resources.clone();
    if let (CgroupFacts::V1 { hierarchies, .. }, Some(parent)) = (place.facts, parent)
        && hierarchies.contains_key("cpuset")
    {
        fill(&mut full.cpuset_cpus, &parent.cpus);
        fill(&mut full.cpuset_mems, &parent.mems);
    }
    // A new group is unlimited: whatever is given fits below it, so growing and shrinking are no question.
    writes(place, &full, &full, None)
}

/// What to write into a living cgroup. Zero and empty fields of `new` stay as they are in `old`.
/// `usage` is the memory in use that cannot be reclaimed, in bytes.
///
/// # Errors
/// As [`create`]; and a memory limit below `usage`, which the kernel would enforce by killing.
pub fn update(
    place: Place<'_>,
    old: &Resources,
    new: &Resources,
    usage: Option<u64>,
) -> Result<Update, Error> {
    if let (Some(usage), Ok(limit)) = (usage, u64::try_from(new.memory_limit))
        && limit > 0
        && limit < usage
    {
        return Err(Error::MemoryInUse {
            limit: new.memory_limit,
            usage,
        });
    }
    let resources = merge(old, new);
    let writes = writes(place, &resources, new, Some(old))?;
    Ok(Update { resources, writes })
}

fn fill(value: &mut String, default: &str) {
    if value.is_empty() {
        default.clone_into(value);
    }
}

/// Old values with the given new ones over them. The `oom_score_adj` of a running process is not changed.
fn merge(old: &Resources, new: &Resources) -> Resources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: &String, new: &String| {
        if new.is_empty() {
            old.clone()
        } else {
            new.clone()
        }
    };
    let mut hugepages = old.hugepages.clone();
    for page in &new.hugepages {
        match hugepages
            .iter_mut()
            .find(|known| known.page_size == page.page_size)
        {
            Some(known) => known.limit = page.limit,
            None => hugepages.push(page.clone()),
        }
    }
    let mut unified = old.unified.clone();
    unified.extend(new.unified.clone());
    Resources {
        cpu_period: number(old.cpu_period, new.cpu_period),
        cpu_quota: number(old.cpu_quota, new.cpu_quota),
        cpu_shares: number(old.cpu_shares, new.cpu_shares),
        memory_limit: number(old.memory_limit, new.memory_limit),
        memory_swap_limit: merged_swap(old, new),
        oom_score_adj: old.oom_score_adj,
        cpuset_cpus: text(&old.cpuset_cpus, &new.cpuset_cpus),
        cpuset_mems: text(&old.cpuset_mems, &new.cpuset_mems),
        hugepages,
        unified,
    }
}

/// A memory limit without a swap limit means: no swap. An old "no swap" follows the new limit.
fn merged_swap(old: &Resources, new: &Resources) -> i64 {
    let no_swap_before = old.memory_swap_limit == old.memory_limit;
    match (new.memory_swap_limit, new.memory_limit) {
        (0, 0) => old.memory_swap_limit,
        (0, limit) if no_swap_before && old.memory_swap_limit != 0 => limit,
        (0, _) => old.memory_swap_limit,
        (swap, _) => swap,
    }
}

/// Writes for what `given` says; combined values (quota with period, swap with memory) come from `full`.
/// `old` is what is in force, `None` for a new group.
fn writes(
    place: Place<'_>,
    full: &Resources,
    given: &Resources,
    old: Option<&Resources>,
) -> Result<Vec<CgroupWrite>, Error> {
    check(full)?;
    let mut files = Files {
        place,
        writes: Vec::new(),
    };
    if place.facts.is_v2() {
        v2(&mut files, full, given)?;
    } else {
        v1(&mut files, full, given, old)?;
    }
    Ok(files.writes)
}

struct Files<'a> {
    place: Place<'a>,
    writes: Vec<CgroupWrite>,
}

impl Files<'_> {
    /// A later value for the same file takes the place of the earlier one.
    fn put(
        &mut self,
        controller: &str,
        file: &str,
        value: impl ToString,
        optional: bool,
    ) -> Result<(), Error> {
        let known = match self.place.facts {
            CgroupFacts::V1 { hierarchies, .. } => hierarchies.contains_key(controller),
            CgroupFacts::V2 { controllers, .. } => {
                controller == "cgroup" || controllers.iter().any(|known| known == controller)
            }
        };
        let mount = self.place.facts.mount_of(controller).filter(|_| known);
        let Some(mount) = mount else {
            if optional {
                return Ok(());
            }
            return Err(invalid(
                file,
                value,
                &format!("this machine has no {controller} controller"),
            ));
        };
        let file = format!("{}/{file}", below(&mount, self.place.path));
        let value = value.to_string();
        match self.writes.iter_mut().find(|write| write.file == file) {
            Some(write) => (write.value, write.optional) = (value, optional),
            None => self.writes.push(CgroupWrite {
                file,
                value,
                optional,
            }),
        }
        Ok(())
    }
}

fn invalid(name: &str, value: impl ToString, why: &str) -> Error {
    Error::Resource {
        name: name.to_owned(),
        value: value.to_string(),
        why: why.to_owned(),
    }
}

fn check(resources: &Resources) -> Result<(), Error> {
    let r = resources;
    for (name, value) in [
        ("cpu_quota", r.cpu_quota),
        ("memory_limit_in_bytes", r.memory_limit),
        ("memory_swap_limit_in_bytes", r.memory_swap_limit),
    ] {
        if value < -1 {
            return Err(invalid(
                name,
                value,
                "it is negative, and only -1 (unlimited) may be",
            ));
        }
    }
    if r.cpu_period != 0 && !(1000..=1_000_000).contains(&r.cpu_period) {
        return Err(invalid(
            "cpu_period",
            r.cpu_period,
            "the kernel takes 1000 to 1000000 microseconds",
        ));
    }
    if r.cpu_shares < 0 {
        return Err(invalid("cpu_shares", r.cpu_shares, "it is negative"));
    }
    check_swap(r)?;
    for (name, list) in [
        ("cpuset_cpus", &r.cpuset_cpus),
        ("cpuset_mems", &r.cpuset_mems),
    ] {
        if !list
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b',' | b'-'))
        {
            return Err(invalid(name, list, "a list such as 0-3,7 is wanted"));
        }
    }
    for page in &r.hugepages {
        check_page_size(page)?;
    }
    r.unified
        .iter()
        .try_for_each(|(key, value)| check_unified(key, value))
}

fn check_swap(r: &Resources) -> Result<(), Error> {
    let swap = r.memory_swap_limit;
    let why = match (r.memory_limit, swap) {
        (_, 0 | -1) => return Ok(()),
        (0 | -1, _) => "it counts memory and swap, so it needs a memory limit",
        (limit, swap) if swap < limit => {
            "it counts memory and swap, so it cannot be below the memory limit"
        }
        _ => return Ok(()),
    };
    Err(invalid("memory_swap_limit_in_bytes", swap, why))
}

fn check_page_size(page: &HugepageLimit) -> Result<(), Error> {
    let digits = ["KB", "MB", "GB"]
        .iter()
        .find_map(|unit| page.page_size.strip_suffix(unit));
    let good = digits.is_some_and(|digits| {
        (1..=8).contains(&digits.len())
            && digits.bytes().all(|b| b.is_ascii_digit())
            && !digits.starts_with('0')
    });
    if good {
        Ok(())
    } else {
        Err(invalid(
            "hugepage page_size",
            &page.page_size,
            "a size such as 2MB or 1GB is wanted",
        ))
    }
}

/// A key is a file of the cgroup itself and nothing else; only huge page sizes are in capitals.
fn check_unified(key: &str, value: &str) -> Result<(), Error> {
    let plain = key
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.'));
    let hugetlb = key.starts_with("hugetlb.")
        && key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'));
    let dotted = key.split('.').count() >= 2 && key.split('.').all(|part| !part.is_empty());
    if !(plain || hugetlb) || !dotted || key.len() > 64 {
        return Err(invalid(
            key,
            value,
            "a cgroup v2 file name such as memory.high is wanted",
        ));
    }
    if RESERVED.contains(&key) {
        return Err(invalid(key, value, "this file is no limit"));
    }
    if value.len() > 4096 || value.contains('\0') {
        return Err(invalid(
            key,
            "",
            "its value is longer than 4096 bytes or contains a NUL byte",
        ));
    }
    Ok(())
}

fn quota(quota: i64) -> i64 {
    if quota > 0 {
        quota.max(MIN_QUOTA)
    } else {
        quota
    }
}

fn period(period: i64) -> i64 {
    if period == 0 { DEFAULT_PERIOD } else { period }
}

/// The weight of v2 for shares of v1: 2, 1024 and 262144 become 1, 100 and 10000, and between them a
/// quadratic of the logarithm (kubernetes/kubernetes#131216; runc and crun agree since 2025).
fn weight(shares: i64) -> u32 {
    let shares = shares.clamp(2, 262_144);
    let log = f64::from(u32::try_from(shares).unwrap_or(2)).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // Rounded before it is raised: 10^(exactly 2) must not become 101.
    let weight = (10_f64.powf(exponent) * 1e9).round() / 1e9;
    (1..10_000)
        .find(|&candidate| f64::from(candidate) >= weight)
        .unwrap_or(10_000)
}

fn limit(value: i64) -> String {
    if value == -1 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

fn v2(files: &mut Files<'_>, full: &Resources, given: &Resources) -> Result<(), Error> {
    if given.cpu_shares != 0 {
        files.put("cpu", "cpu.weight", weight(given.cpu_shares), false)?;
    }
    if given.cpu_quota != 0 || given.cpu_period != 0 {
        let quota = match quota(full.cpu_quota) {
            0 | -1 => "max".to_owned(),
            quota => quota.to_string(),
        };
        files.put(
            "cpu",
            "cpu.max",
            format!("{quota} {}", period(full.cpu_period)),
            false,
        )?;
    }
    if !given.cpuset_cpus.is_empty() {
        files.put("cpuset", "cpuset.cpus", &given.cpuset_cpus, false)?;
    }
    if !given.cpuset_mems.is_empty() {
        files.put("cpuset", "cpuset.mems", &given.cpuset_mems, false)?;
    }
    v2_memory(files, full, given)?;
    for page in &given.hugepages {
        let optional = page.limit == 0;
        files.put(
            "hugetlb",
            &format!("hugetlb.{}.max", page.page_size),
            page.limit,
            optional,
        )?;
        files.put(
            "hugetlb",
            &format!("hugetlb.{}.rsvd.max", page.page_size),
            page.limit,
            true,
        )?;
    }
    for (key, value) in &given.unified {
        let controller = key.split('.').next().unwrap_or_default();
        // The swap files are there only if the kernel accounts swap; "no swap" then holds anyhow.
        let optional = key == "memory.swap.max" && value == "0";
        files.put(controller, key, value, optional)?;
    }
    Ok(())
}

/// `memory.swap.max` counts swap alone; equal limits mean 0, which has to be written: the default is all of it.
fn v2_memory(files: &mut Files<'_>, full: &Resources, given: &Resources) -> Result<(), Error> {
    if given.memory_limit == 0 && given.memory_swap_limit == 0 {
        return Ok(());
    }
    let swap = match (full.memory_limit, full.memory_swap_limit) {
        (_, -1) | (-1, 0) => Some("max".to_owned()),
        (0, _) => None,
        (_, 0) => Some("0".to_owned()),
        (memory, both) => Some((both - memory).to_string()),
    };
    if let Some(swap) = swap {
        files.put("memory", "memory.swap.max", swap, true)?;
    }
    if given.memory_limit != 0 {
        files.put("memory", "memory.max", limit(given.memory_limit), false)?;
    }
    Ok(())
}

/// `unified` names v2 files and is ignored here, as runc ignores it and the kubelet expects.
fn v1(
    files: &mut Files<'_>,
    full: &Resources,
    given: &Resources,
    old: Option<&Resources>,
) -> Result<(), Error> {
    if given.cpu_shares != 0 {
        files.put(
            "cpu",
            "cpu.shares",
            given.cpu_shares.clamp(2, 262_144),
            false,
        )?;
    }
    v1_cfs(files, full, given, old)?;
    if !given.cpuset_cpus.is_empty() {
        files.put("cpuset", "cpuset.cpus", &given.cpuset_cpus, false)?;
    }
    if !given.cpuset_mems.is_empty() {
        files.put("cpuset", "cpuset.mems", &given.cpuset_mems, false)?;
    }
    if given.memory_limit != 0 || given.memory_swap_limit != 0 {
        v1_memory(files, full, old)?;
    }
    for page in &given.hugepages {
        let file = format!("hugetlb.{}.limit_in_bytes", page.page_size);
        files.put("hugetlb", &file, page.limit, page.limit == 0)?;
    }
    Ok(())
}

/// The kernel refuses a bandwidth above the parent's at every single write: with a growing period the
/// period goes first, with a shrinking one the quota.
fn v1_cfs(
    files: &mut Files<'_>,
    full: &Resources,
    given: &Resources,
    old: Option<&Resources>,
) -> Result<(), Error> {
    let shrinks = old.is_some_and(|old| period(full.cpu_period) < period(old.cpu_period));
    let put_quota = |files: &mut Files<'_>| match quota(given.cpu_quota) {
        0 => Ok(()),
        quota => files.put("cpu", "cpu.cfs_quota_us", quota, false),
    };
    if shrinks {
        put_quota(files)?;
    }
    if given.cpu_period != 0 {
        files.put("cpu", "cpu.cfs_period_us", given.cpu_period, false)?;
    }
    if shrinks { Ok(()) } else { put_quota(files) }
}

/// The limit may never be above memory plus swap, not even between two writes.
fn v1_memory(
    files: &mut Files<'_>,
    full: &Resources,
    old: Option<&Resources>,
) -> Result<(), Error> {
    let memory = full.memory_limit;
    let both = match full.memory_swap_limit {
        0 => memory,
        swap => swap,
    };
    let swap_optional = !files.place.facts.swap() || both == memory;
    let unlimited = |value: i64| if value <= 0 { i64::MAX } else { value };
    let before = old.map_or(i64::MAX, |old| unlimited(old.memory_limit));
    let limit = ("memory.limit_in_bytes", memory, false);
    let swap = ("memory.memsw.limit_in_bytes", both, swap_optional);
    let order = if old.is_some() && unlimited(both) >= before {
        [swap, limit]
    } else {
        [limit, swap]
    };
    for (file, value, optional) in order {
        if value != 0 {
            files.put("memory", file, value, optional)?;
        }
    }
    Ok(())
}

/// The controllers whose files are written, and whether one of them must be there.
pub(super) fn controllers(place: Place<'_>, writes: &[CgroupWrite]) -> BTreeMap<String, bool> {
    let mut needed = BTreeMap::new();
    if let CgroupFacts::V2 { root, .. } = place.facts {
        let dir = format!("{}/", below(root, place.path));
        for write in writes {
            let file = write.file.strip_prefix(&dir).unwrap_or_default();
            let controller = file.split('.').next().unwrap_or_default();
            if !controller.is_empty() && controller != "cgroup" {
                *needed.entry(controller.to_owned()).or_insert(false) |= !write.optional;
            }
        }
    }
    needed
}

#[cfg(test)]
mod tests;
