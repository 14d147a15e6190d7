//! Counters that decisions depend on.

use std::path::{Path, PathBuf};

use super::Error;
use crate::host::CgroupFacts;

/// Memory of a cgroup that cannot be reclaimed at once, in bytes: what is charged without the file pages that
/// were not used lately, as the kubelet counts a working set. `None`: the cgroup is gone.
///
/// # Errors
/// When the counters cannot be read or make no sense.
pub fn memory_in_use(facts: &CgroupFacts, path: &str) -> Result<Option<u64>, Error> {
    let (usage, inactive) = if facts.is_v2() {
        ("memory.current", "inactive_file")
    } else {
        ("memory.usage_in_bytes", "total_inactive_file")
    };
    let Some(dir) = memory_dir(facts, path) else {
        return Ok(None);
    };
    let (Some(usage_text), Some(stat)) = (read(&dir.join(usage))?, read(&dir.join("memory.stat"))?)
    else {
        return Ok(None);
    };
    let usage = usage_text
        .trim()
        .parse::<u64>()
        .map_err(|error| nonsense(dir.join(usage), error))?;
    Ok(Some(
        usage.saturating_sub(keyed(&stat, inactive).unwrap_or(0)),
    ))
}

fn memory_dir(facts: &CgroupFacts, path: &str) -> Option<PathBuf> {
    facts
        .mount_of("memory")
        .map(|mount| mount.join(path.trim_start_matches('/')))
}

/// `None` when the file is gone: an open one says ENODEV then.
fn read(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(source) => Err(Error::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn nonsense(path: PathBuf, error: std::num::ParseIntError) -> Error {
    Error::Read {
        path,
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, error),
    }
}

/// A value of a flat-keyed file (Documentation/admin-guide/cgroup-v2.rst).
fn keyed(text: &str, key: &str) -> Option<u64> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.find(|(name, _)| *name == key)?.1.trim().parse().ok()
}
