//! What the kernel's refusal of a cgroup value means to whoever asked for it; the daemon and the worker write them.

use std::io;
use std::path::Path;

// asm-generic/errno-base.h and errno.h.
const EACCES: i32 = 13;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const ERANGE: i32 = 34;

/// Why a value is none for its file, in words; nothing where that is not the value's fault.
pub fn refused(file: &str, error: &io::Error) -> Option<String> {
    let file = Path::new(file);
    let (what, online) = match file.file_name().and_then(|name| name.to_str()) {
        Some("cpuset.cpus") => ("CPUs", "/sys/devices/system/cpu/online"),
        Some("cpuset.mems") => ("memory nodes", "/sys/devices/system/node/online"),
        _ => {
            let values = matches!(error.raw_os_error(), Some(EINVAL | ERANGE | ENODEV));
            return values
                .then(|| "it is malformed or out of range: ask for another one".to_owned());
        }
    };
    let list = |path: &Path| {
        let list = std::fs::read_to_string(path).ok()?;
        Some(list.trim().to_owned()).filter(|list| !list.is_empty())
    };
    match error.raw_os_error()? {
        EINVAL | ERANGE | ENODEV => {
            // A kernel without NUMA has one.
            let there = list(Path::new(online)).unwrap_or_else(|| "0".to_owned());
            Some(format!(
                "malformed or out of range: this machine has {what} {there}"
            ))
        }
        // On v1 a group has at most what the one above it has.
        EACCES => {
            let above = file.parent()?.parent()?.join(file.file_name()?);
            let there = list(&above)?;
            Some(format!("out of range: the cgroup above has {what} {there}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_values_are_blamed_on_the_request() {
        let said = |file: &str, number| refused(file, &io::Error::from_raw_os_error(number));
        for number in [EINVAL, ERANGE, ENODEV] {
            assert!(
                said("/c/cpuset.cpus", number)
                    .unwrap()
                    .contains("this machine has CPUs 0")
            );
            assert!(
                said("/c/cpuset.mems", number)
                    .unwrap()
                    .contains("memory nodes 0")
            );
            assert!(said("/c/memory.max", number).is_some());
        }
        // ENOENT, EBUSY.
        for number in [2, 16] {
            assert_eq!(said("/c/cpuset.cpus", number), None);
            assert_eq!(said("/c/memory.max", number), None);
        }
        assert_eq!(said("/c/memory.max", EACCES), None);
        let dir = std::env::temp_dir().join(format!("berth-limits-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("leaf")).unwrap();
        std::fs::write(dir.join("cpuset.cpus"), "0-3\n").unwrap();
        let inner = dir.join("leaf/cpuset.cpus");
        let error = said(inner.to_str().unwrap(), EACCES).unwrap();
        std::fs::remove_dir_all(dir).unwrap();
        assert!(error.contains("the cgroup above has CPUs 0-3"), "{error}");
    }
}
