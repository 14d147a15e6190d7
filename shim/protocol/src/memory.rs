//! What the kernel's memory files say when a start ended in an out-of-memory kill, and how that is told.

use crate::worker::Cgroup;

/// Below this a v1 limit is one: without, the file shows the largest number of pages (page_counter.h).
const UNLIMITED: u64 = 1 << 60;

/// The kernel keeps a limit in whole pages, which have 64 KiB at most.
const PAGE: u64 = 64 << 10;

/// The files of a memory limit, of v2 and of v1.
const LIMITS: [&str; 2] = ["/memory.max", "/memory.limit_in_bytes"];

/// Out-of-memory kills that `memory.events` (v2) or `memory.oom_control` (v1) count.
pub fn kills(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// The limit in bytes that `memory.max` (v2) or `memory.limit_in_bytes` (v1) shows; none when there is none. Where that
/// is `asked`, rounded down to pages, it is told as it was asked for.
pub fn limit(text: &str, asked: Option<u64>) -> Option<u64> {
    let bytes: u64 = text.trim().parse().ok()?;
    let rounded = |asked: &u64| asked.checked_sub(bytes).is_some_and(|cut| cut < PAGE);
    (bytes < UNLIMITED).then(|| asked.filter(rounded).unwrap_or(bytes))
}

/// The memory limit that a cgroup is made with, if any.
pub fn asked(cgroup: &Cgroup) -> Option<u64> {
    let is_limit = |file: &str| LIMITS.iter().any(|name| file.ends_with(name));
    let written = cgroup.writes.iter().rev().find(|w| is_limit(&w.file))?;
    written.value.trim().parse().ok()
}

/// Why something did not come to be in a cgroup whose limit is this. `what` was killed, as in "the container".
pub fn too_low(limit: Option<u64>, what: &str) -> String {
    match limit {
        Some(bytes) => format!(
            "the memory limit of {bytes} bytes is too low for {what} to start: the kernel killed it (out of memory); raise the limit"
        ),
        None => format!(
            "the kernel killed {what} before it could start (out of memory): the memory limit of the pod, or the memory of the node, is too low"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::CgroupWrite;

    #[test]
    fn both_formats_are_read() {
        assert_eq!(
            kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            Some(3)
        );
        assert_eq!(
            kills("low 0\noom 9\noom_kill 2\noom_group_kill 7\n"),
            Some(2)
        );
        assert_eq!((kills("low 0\n"), kills("oom_kill x\n")), (None, None));
        assert_eq!(limit("524288\n", None), Some(524_288));
        assert_eq!(limit("max\n", None), None);
        assert_eq!(limit("9223372036854771712\n", Some(1)), None);
    }

    #[test]
    fn a_limit_is_told_as_it_was_asked_for() {
        for (shown, asked, told) in [
            ("0\n", Some(1), 1),
            ("4096\n", Some(5000), 5000),
            ("65536\n", Some(65536), 65536),
            // It was changed since.
            ("1048576\n", Some(4096), 1_048_576),
            ("4096\n", Some(1 << 20), 4096),
            ("0\n", None, 0),
        ] {
            assert_eq!(limit(shown, asked), Some(told), "{shown} {asked:?}");
        }
        let write = |file: &str, value: &str| CgroupWrite {
            file: file.into(),
            value: value.into(),
            optional: false,
        };
        let cgroup = Cgroup {
            writes: vec![
                write("/m/c/memory.limit_in_bytes", "4097"),
                write("/m/c/memory.memsw.limit_in_bytes", "8194"),
                write("/m/c/memory.swap.max", "0"),
            ],
            ..Cgroup::default()
        };
        assert_eq!(asked(&cgroup), Some(4097));
        assert_eq!(asked(&Cgroup::default()), None);
    }

    #[test]
    fn the_limit_is_named() {
        assert!(
            too_low(Some(4096), "the container")
                .contains("the memory limit of 4096 bytes is too low")
        );
        assert!(too_low(None, "the command").contains("of the pod"));
    }
}
