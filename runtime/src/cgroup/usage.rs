//! What a cgroup uses, from its files.
//!
//! The formulas are those of the kubelet and cAdvisor, so that figures do not jump when a node changes its
//! runtime: a working set is the usage without inactive file pages, `rss` is anonymous memory. v1 files are
//! read with `total_` keys, which count the groups below too, as v2 always does.

mod dir;
mod parse;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use super::Error;
use crate::host::CgroupFacts;
use crate::model::{CgroupUsage, CpuUsage, MemoryUsage, Pressure, SwapUsage, now_nanos};
use dir::Dir;

/// Limits of v1 from here on are none: the kernel's is the largest number of whole pages.
const UNLIMITED: u64 = 1 << 62;

/// Reads cgroups one after the other, with one buffer for all.
#[derive(Debug)]
pub struct UsageReader {
    layout: Layout,
    buffer: Vec<u8>,
}

#[derive(Debug)]
enum Layout {
    V1 {
        cpuacct: Option<PathBuf>,
        memory: Option<PathBuf>,
        pids: Option<PathBuf>,
        swap: bool,
    },
    V2(PathBuf),
}

impl UsageReader {
    /// For cgroups of this machine.
    pub fn new(facts: &CgroupFacts) -> Self {
        let layout = match facts {
            CgroupFacts::V2 { root, .. } => Layout::V2(root.clone()),
            CgroupFacts::V1 { .. } => Layout::V1 {
                cpuacct: facts.mount_of("cpuacct"),
                memory: facts.mount_of("memory"),
                pids: facts.mount_of("pids"),
                swap: facts.swap(),
            },
        };
        Self {
            layout,
            buffer: Vec::with_capacity(8192),
        }
    }

    /// What a cgroup uses; `path` is that below each hierarchy's root. `None`: it is gone.
    ///
    /// # Errors
    /// When a file cannot be read or makes no sense.
    pub fn read(&mut self, path: &str) -> Result<Option<CgroupUsage>, Error> {
        let usage = match &self.layout {
            Layout::V1 {
                cpuacct,
                memory,
                swap,
                ..
            } => {
                let mut usage = CgroupUsage::default();
                if let Some(dir) = Dir::below(cpuacct.as_deref(), path)? {
                    usage.cpu = v1_cpu(&dir, &mut self.buffer)?;
                }
                if let Some(dir) = Dir::below(memory.as_deref(), path)? {
                    v1_memory(&dir, *swap, &mut usage, &mut self.buffer)?;
                }
                usage
            }
            Layout::V2(root) => {
                let mut usage = CgroupUsage::default();
                if let Some(dir) = Dir::below(Some(root), path)? {
                    usage.cpu = v2_cpu(&dir, &mut self.buffer)?;
                    v2_memory(&dir, &mut usage, &mut self.buffer)?;
                    usage.io = pressure(&dir, "io.pressure", &mut self.buffer)?;
                }
                usage
            }
        };
        let there = usage.cpu.is_some() || usage.memory.is_some();
        Ok(there.then(|| CgroupUsage {
            at: now_nanos(),
            ..usage
        }))
    }

    /// Processes and threads of a cgroup and all below. `None`: it is gone, or they are not counted.
    ///
    /// # Errors
    /// When the file cannot be read or makes no sense.
    pub fn processes(&mut self, path: &str) -> Result<Option<u64>, Error> {
        let mount = match &self.layout {
            Layout::V1 { pids, .. } => pids.as_deref(),
            Layout::V2(root) => Some(root.as_path()),
        };
        match Dir::below(mount, path)? {
            Some(dir) => dir.number("pids.current", &mut self.buffer),
            None => Ok(None),
        }
    }
}

fn v1_cpu(dir: &Dir, buffer: &mut Vec<u8>) -> Result<Option<CpuUsage>, Error> {
    let nanoseconds = dir.number("cpuacct.usage", buffer)?;
    Ok(nanoseconds.map(|nanoseconds| CpuUsage {
        nanoseconds,
        ..CpuUsage::default()
    }))
}

fn v1_memory(
    dir: &Dir,
    accounts_swap: bool,
    found: &mut CgroupUsage,
    buffer: &mut Vec<u8>,
) -> Result<(), Error> {
    let Some(usage) = dir.number("memory.usage_in_bytes", buffer)? else {
        return Ok(());
    };
    let limit = v1_limit(dir, "memory.limit_in_bytes", buffer)?;
    let with_swap = if accounts_swap {
        v1_limit(dir, "memory.memsw.limit_in_bytes", buffer)?
    } else {
        None
    };
    let Some(stat) = dir.text("memory.stat", buffer)? else {
        return Ok(());
    };
    let [inactive, rss, faults, major, swapped] = parse::keyed(
        stat,
        [
            "total_inactive_file",
            "total_rss",
            "total_pgfault",
            "total_pgmajfault",
            "total_swap",
        ],
    );
    let working_set = usage.saturating_sub(inactive);
    found.memory = Some(MemoryUsage {
        usage,
        working_set,
        available: limit.map(|limit| limit.saturating_sub(working_set)),
        rss,
        page_faults: faults,
        major_page_faults: major,
        pressure: None,
    });
    if accounts_swap {
        // Memory and swap have one limit together: what it leaves over the limit of memory is for swap.
        let allowed = limit.zip(with_swap).map(|(m, all)| all.saturating_sub(m));
        found.swap = Some(SwapUsage {
            usage: swapped,
            available: allowed.map(|allowed| allowed.saturating_sub(swapped)),
        });
    }
    Ok(())
}

fn v1_limit(dir: &Dir, file: &str, buffer: &mut Vec<u8>) -> Result<Option<u64>, Error> {
    Ok(dir.number(file, buffer)?.filter(|limit| *limit < UNLIMITED))
}

fn v2_cpu(dir: &Dir, buffer: &mut Vec<u8>) -> Result<Option<CpuUsage>, Error> {
    let Some(stat) = dir.text("cpu.stat", buffer)? else {
        return Ok(None);
    };
    let [microseconds] = parse::keyed(stat, ["usage_usec"]);
    Ok(Some(CpuUsage {
        nanoseconds: microseconds.saturating_mul(1000),
        nano_cores: None,
        pressure: pressure(dir, "cpu.pressure", buffer)?,
    }))
}

fn v2_memory(dir: &Dir, found: &mut CgroupUsage, buffer: &mut Vec<u8>) -> Result<(), Error> {
    let Some(usage) = dir.number("memory.current", buffer)? else {
        return Ok(());
    };
    let limit = dir.limit("memory.max", buffer)?;
    let Some(stat) = dir.text("memory.stat", buffer)? else {
        return Ok(());
    };
    let [inactive, rss, faults, major] =
        parse::keyed(stat, ["inactive_file", "anon", "pgfault", "pgmajfault"]);
    let working_set = usage.saturating_sub(inactive);
    found.memory = Some(MemoryUsage {
        usage,
        working_set,
        available: limit.map(|limit| limit.saturating_sub(working_set)),
        rss,
        page_faults: faults,
        major_page_faults: major,
        pressure: pressure(dir, "memory.pressure", buffer)?,
    });
    if let Some(usage) = dir.number("memory.swap.current", buffer)? {
        let limit = dir.limit("memory.swap.max", buffer)?;
        found.swap = Some(SwapUsage {
            usage,
            available: limit.map(|limit| limit.saturating_sub(usage)),
        });
    }
    Ok(())
}

fn pressure(dir: &Dir, file: &str, buffer: &mut Vec<u8>) -> Result<Option<Pressure>, Error> {
    Ok(dir.text(file, buffer)?.and_then(parse::pressure))
}
