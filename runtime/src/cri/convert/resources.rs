//! Limits (rows F055 to F062).

use berth_cri_api::v1;

use super::{At, Error};
use crate::model::{HugepageLimit, Resources};

/// Limits of a request. Contradictions and values that no kernel takes are errors; whether this kernel
/// takes them shows when they are written.
pub(in crate::cri) fn resources(
    at: &At<'_>,
    given: v1::LinuxContainerResources,
) -> Result<Resources, Error> {
    at_least(&at.field("cpu_period"), given.cpu_period, 0)?;
    at_least(&at.field("cpu_quota"), given.cpu_quota, -1)?;
    at_least(&at.field("cpu_shares"), given.cpu_shares, 0)?;
    let memory = given.memory_limit_in_bytes;
    at_least(&at.field("memory_limit_in_bytes"), memory, -1)?;
    let swap_at = at.field("memory_swap_limit_in_bytes");
    let swap = given.memory_swap_limit_in_bytes;
    at_least(&swap_at, swap, -1)?;
    if swap > 0 && memory > swap {
        return Err(swap_at.invalid(format!(
            "{swap} is memory and swap together, so it cannot be below the memory limit {memory}"
        )));
    }
    if !(-1000..=1000).contains(&given.oom_score_adj) {
        let at = at.field("oom_score_adj");
        return Err(at.invalid(format!("{} is not in -1000..=1000", given.oom_score_adj)));
    }
    for file in given.unified.keys() {
        cgroup_file(&at.field("unified"), file)?;
    }
    Ok(Resources {
        cpu_period: given.cpu_period,
        cpu_quota: given.cpu_quota,
        cpu_shares: given.cpu_shares,
        memory_limit: memory,
        memory_swap_limit: swap,
        oom_score_adj: given.oom_score_adj,
        cpuset_cpus: cpu_list(&at.field("cpuset_cpus"), given.cpuset_cpus)?,
        cpuset_mems: cpu_list(&at.field("cpuset_mems"), given.cpuset_mems)?,
        hugepages: hugepages(&at.field("hugepage_limits"), given.hugepage_limits)?,
        unified: given.unified,
    })
}

/// Limits of an answer.
pub(super) fn to_proto(resources: &Resources) -> v1::LinuxContainerResources {
    let hugepages = resources.hugepages.iter();
    v1::LinuxContainerResources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        memory_limit_in_bytes: resources.memory_limit,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: hugepages
            .map(|h| v1::HugepageLimit {
                page_size: h.page_size.clone(),
                limit: h.limit,
            })
            .collect(),
        unified: resources.unified.clone(),
        memory_swap_limit_in_bytes: resources.memory_swap_limit,
    }
}

fn at_least(at: &At<'_>, value: i64, least: i64) -> Result<(), Error> {
    if value < least {
        return Err(at.invalid(format!("{value} is below {least}")));
    }
    Ok(())
}

/// The name of a file in a cgroup, not a path: it is joined to a directory of ours.
fn cgroup_file(at: &At<'_>, name: &str) -> Result<(), Error> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.contains('.') && !name.starts_with('.') && name.chars().all(allowed) {
        return Ok(());
    }
    Err(at.invalid(format!("{name:?} is not the name of a cgroup file")))
}

fn cpu_list(at: &At<'_>, list: String) -> Result<String, Error> {
    let allowed = |c: char| c.is_ascii_digit() || matches!(c, ',' | '-' | ':' | '/');
    if list.trim().chars().all(allowed) {
        return Ok(list);
    }
    Err(at.invalid(format!("{list:?} is not a list such as \"0-3,7\"")))
}

/// A kubelet sends a limit for every page size of the host, 0 included (row G016), so nothing is refused
/// for being 0.
fn hugepages(at: &At<'_>, limits: Vec<v1::HugepageLimit>) -> Result<Vec<HugepageLimit>, Error> {
    let limits = limits.into_iter().enumerate();
    limits
        .map(|(i, limit)| {
            let at = at.index(i);
            let at = at.field("page_size");
            let size = &limit.page_size;
            let digits = size.trim_end_matches(|c: char| c.is_ascii_uppercase());
            let unit = &size[digits.len()..];
            let number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            if !number || !matches!(unit, "KB" | "MB" | "GB") {
                return Err(at.invalid(format!("{size:?} is not a page size such as \"2MB\"")));
            }
            Ok(HugepageLimit {
                page_size: limit.page_size,
                limit: limit.limit,
            })
        })
        .collect()
}
