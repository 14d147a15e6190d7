//! What the kernel's memory files say when a start ended in an out-of-memory kill, and how that is told.

/// Below this a v1 limit is one: without, the file shows the largest number of pages (page_counter.h).
const UNLIMITED: u64 = 1 << 60;

/// Out-of-memory kills that `memory.events` (v2) or `memory.oom_control` (v1) count.
pub fn kills(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// The limit in bytes that `memory.max` (v2) or `memory.limit_in_bytes` (v1) shows; none when there is none.
pub fn limit(text: &str) -> Option<u64> {
    let bytes = text.trim().parse().ok()?;
    (bytes < UNLIMITED).then_some(bytes)
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
        assert_eq!((limit("524288\n"), limit("0\n")), (Some(524_288), Some(0)));
        assert_eq!(
            (limit("max\n"), limit("9223372036854771712\n")),
            (None, None)
        );
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
