//! Crash points: places at which a test has the daemon die, as by `kill -9`, to see what the next one makes of it.
//!
//! There is one before and after every step that changes the world: between two steps that follow each other one is
//! both. They are compiled in with the feature `crash-points` only, which no release has. The daemon dies at those
//! that `FAILPOINTS` arms: `FAILPOINTS='run_pod.record.after=1*off->return'` is the second time that it passes there.

/// Ends the daemon here if a test wants that; nothing without the feature.
macro_rules! crash_point {
    ($name:expr) => {{
        #[cfg(feature = "crash-points")]
        $crate::crash::pass($name);
    }};
}

/// All of them. The first word says which call passes there; `tests/tests/crash.rs` has it die there. Those of the
/// steps that give something back are named by their operation and their step (`undo`).
pub const POINTS: &[&str] = &[
    // What several calls do.
    "record.directory.after",
    "record.file.after",
    "record.identity.before",
    "monitor.asked.after",
    "exit.record.before",
    "exit.record.after",
    "image_index.copy.after",
    "image_index.commit.after",
    "image_index.copies.after",
    // The first start after a version that kept its records elsewhere.
    "move_records.joined.after",
    "move_records.file.after",
    "move_records.exchange.after",
    // RunPodSandbox
    "run_pod.record.before",
    "run_pod.record.after",
    "run_pod.parent_directory.after",
    "run_pod.parent.after",
    "run_pod.directories.after",
    "run_pod.files_mount.after",
    "run_pod.files.after",
    "run_pod.log_directory.after",
    "run_pod.worker.after",
    "run_pod.worker_asked.after",
    "run_pod.namespaces.after",
    "run_pod.filter_file.after",
    "run_pod.filter.after",
    "run_pod.scope.after",
    "run_pod.pause.after",
    "run_pod.loopback.after",
    "run_pod.lease_file.after",
    "run_pod.lease.after",
    "run_pod.veth.after",
    "run_pod.link.after",
    "run_pod.ports.after",
    "run_pod.network_and_pause.after",
    "run_pod.sysctls.after",
    "run_pod.ready.after",
    // What the first pod of a machine makes for all.
    "first_pod.bridge.after",
    "first_pod.rules.after",
    // RunPodSandbox and StopPodSandbox with plugins
    "cni.attachment.after",
    "cni.plugin.after",
    "cni.add.after",
    "cni.delete.after",
    // StopPodSandbox
    "stop_pod.containers.after",
    "stop_pod.pause process.after",
    "stop_pod.cgroup.after",
    "stop_pod.scope.after",
    "stop_pod.ports.after",
    "stop_pod.link.after",
    "stop_pod.network.after",
    "stop_pod.network namespace.after",
    "stop_pod.namespace.after",
    "stop_pod.files and shared memory.after",
    "stop_pod.record.after",
    // RemovePodSandbox
    "remove_pod.containers.after",
    "remove_pod.files.after",
    "remove_pod.parent cgroup.after",
    "remove_pod.record.after",
    // CreateContainer
    "create_container.record.before",
    "create_container.record.after",
    "create_container.layer_directory.after",
    "create_container.layer_chain.after",
    "create_container.layer.after",
    "create_container.volumes.after",
    "create_container.directory.after",
    "create_container.bundle.after",
    "create_container.log_directory.after",
    "create_container.filter.after",
    "create_container.socket.after",
    "create_container.monitor.after",
    "create_container.hello.after",
    "create_container.made.after",
    "create_container.ready.after",
    // StartContainer
    "start_container.start.before",
    "start_container.start.after",
    "start_container.record.after",
    // StopContainer
    "stop_container.signal.after",
    "stop_container.kill.after",
    "stop_container.cgroup.after",
    // RemoveContainer
    "remove_container.end.after",
    "remove_container.cgroup.after",
    "remove_container.layer_files.after",
    "remove_container.writable layer.after",
    "remove_container.system call filter.after",
    "remove_container.bundle.after",
    "remove_container.record.after",
    // ExecSync
    "exec_sync.start.before",
    "exec_sync.start.after",
    "exec_sync.end.after",
    // ReopenContainerLog
    "reopen_log.directory.after",
    "reopen_log.file.after",
    // PullImage
    "pull_image.partial.after",
    "pull_image.bytes.after",
    "pull_image.staged.after",
    "pull_image.unpacked.after",
    "pull_image.file.after",
    "pull_image.meta.after",
    "pull_image.layer.after",
    "pull_image.document.after",
    // RemoveImage
    "remove_image.layer_away.after",
    "remove_image.layer.after",
    "remove_image.document.after",
];

/// Ends the process at once where the point is armed.
#[cfg(feature = "crash-points")]
pub(crate) fn pass(name: &str) {
    static ARM: std::sync::Once = std::sync::Once::new();
    // Dropped it would disarm all.
    ARM.call_once(|| std::mem::forget(fail::FailScenario::setup()));
    fail::fail_point!(name, |_| die(name));
}

/// Nothing of the process is unwound, closed or told.
#[cfg(feature = "crash-points")]
fn die(name: &str) -> ! {
    use rustix::process::{Signal, getpid, kill_process};
    tracing::warn!(name, "the daemon dies here, as it was asked to");
    // It reaches this thread, too, in a moment.
    let _ = kill_process(getpid(), Signal::KILL);
    loop {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests;
