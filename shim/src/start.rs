//! What keeps a process from becoming its program.

use std::time::Duration;

/// Exit statuses of a process that SIGSYS or SIGILL has ended.
const BAD_CALL: i32 = 128 + 31;
const TRAPPED: i32 = 128 + 4;

/// How long it may take. From the byte, or from its making, to execve(2). That takes a millisecond, or the seconds of a slow disk or
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

/// Why a process that has a seccomp filter has ended before its command was executed, where its exit status says that
/// the filter is the reason. One that may not even exit ends by SIGILL.
pub(crate) fn refused(code: i32) -> Option<&'static str> {
    match code {
        BAD_CALL => Some(
            "its seccomp profile ended it before its command was executed (SIGSYS): \
             it refuses a system call that a start needs",
        ),
        TRAPPED => Some(
            "its command could not be executed, and its seccomp profile refuses that it tells why and ends",
        ),
        _ => None,
    }
}
