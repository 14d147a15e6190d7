//! What procfs tells of a process.

use rustix::process::Pid;

/// `PF_FORKNOEXEC` (include/linux/sched.h): cloned, and nothing executed since.
const FORKED: u64 = 0x40;

/// Whether a child that is not reaped yet has executed a program. The kernel clears the mark before it
/// closes what execve(2) closes, and it is still to be read when the process has died.
pub(crate) fn has_executed(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    // One that cannot be looked at is believed.
    stat.ok()
        .and_then(|stat| flags(&stat))
        .is_none_or(|flags| flags & FORKED == 0)
}

/// Field 9 (proc_pid_stat(5)). The name in parentheses may hold anything.
fn flags(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(6)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_found_behind_any_name() {
        let stat = "7 (a) b ( 64) S 1 7 7 0 -1 4194624 100 0";
        assert_eq!(flags(stat), Some(4_194_624));
        assert_eq!(flags("7 (a"), None);
        assert!(has_executed(rustix::process::getpid()));
    }
}
