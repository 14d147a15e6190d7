//! How long a process may take to become its program.

use std::time::Duration;

/// From the byte, or from its making, to execve(2). That takes a millisecond, or the seconds of a slow disk or
/// of a cgroup without CPU time. What takes longer never comes: the process was stopped by a neighbour, or may not
/// execute, tell or end. The kubelet gives a start two minutes (`runtimeRequestTimeout`), the daemon one.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Nothing has come of it.
pub(crate) fn overdue() -> String {
    format!(
        "the command was not executed within {} s of the start: was the process stopped by another (SIGSTOP), \
         does its seccomp profile refuse what a start needs, or does the disk of the image hang?",
        LIMIT.as_secs()
    )
}
