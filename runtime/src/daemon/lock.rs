//! One daemon for each directory.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

/// How often the lock is tried for.
const ATTEMPTS: u32 = 15;

/// Time between attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// Locks a directory for as long as the file lives. The kernel gives the lock back when the process ends,
/// however it ends.
pub(super) fn take(dir: &Path) -> Result<File, String> {
    let path = dir.join("lock");
    let failed = |e: std::io::Error| format!("cannot lock {}: {e}", path.display());
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed)?;
    if !locked(&file) {
        let mut owner = String::new();
        // Only for the message: without it the message is shorter.
        let _ = file.read_to_string(&mut owner);
        return Err(format!(
            "{} is in use by another berth (pid {}): stop it, or give this one a root, a state directory and an instance of its own",
            dir.display(),
            owner.trim()
        ));
    }
    file.set_len(0).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

/// Tries for a moment: a daemon that was just killed holds the lock until the kernel has ended its threads, and
/// so does a child of it that has not reached its `execve` yet.
fn locked(file: &File) -> bool {
    (0..ATTEMPTS).any(|attempt| {
        if attempt > 0 {
            std::thread::sleep(PAUSE);
        }
        flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path()).unwrap();
        let refused = take(dir.path()).unwrap_err();
        assert!(
            refused.contains(&std::process::id().to_string()),
            "{refused}"
        );
        drop(first);
        take(dir.path()).unwrap();
    }
}
