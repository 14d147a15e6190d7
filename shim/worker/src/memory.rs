//! Failures that are the kernel's out-of-memory kills.

use std::fs;
use std::path::Path;

use shim_protocol::{memory, worker};

use crate::error::Error;

/// The counter of kills and the limit, of v2 and of v1.
const FILES: [(&str, &str); 2] = [
    ("memory.events", "memory.max"),
    ("memory.oom_control", "memory.limit_in_bytes"),
];

/// Why a container could not be made in its new cgroups: a kill there is the reason, whatever was seen of it.
pub(crate) fn explain(cgroup: &worker::Cgroup, error: Error) -> Error {
    for (leaf, (counter, limit)) in cgroup
        .leaves
        .iter()
        .flat_map(|leaf| FILES.map(|files| (leaf, files)))
    {
        let read = |name: &str| fs::read_to_string(Path::new(leaf).join(name)).unwrap_or_default();
        if memory::kills(&read(counter)).is_some_and(|kills| kills > 0) {
            return Error::memory(memory::too_low(
                memory::limit(&read(limit), memory::asked(cgroup)),
                "the container",
            ));
        }
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_in_a_leaf_is_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = worker::Cgroup {
            leaves: vec!["/nonexistent".to_owned(), dir.path().display().to_string()],
            ..worker::Cgroup::default()
        };
        let explained = || explain(&cgroup, Error::internal("lost")).to_string();
        assert_eq!(explained(), "lost");
        for (counter, limit) in FILES {
            fs::write(dir.path().join(counter), "oom_kill 0\n").unwrap();
            assert_eq!(explained(), "lost");
            fs::write(dir.path().join(counter), "oom_kill 1\n").unwrap();
            fs::write(dir.path().join(limit), "4096\n").unwrap();
            assert!(explained().contains("4096 bytes"));
            fs::remove_file(dir.path().join(counter)).unwrap();
        }
    }
}
