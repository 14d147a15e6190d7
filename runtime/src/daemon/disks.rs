//! Whether the disks below the root and the state directory take what is written to them.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{StatVfsMountFlags, fstatvfs};
use rustix::io::Errno;
use tokio::time::Instant;

use crate::cri::Condition;

/// From the beginning of a look to that of the next at the earliest. The kubelet asks every five seconds.
const EVERY: Duration = Duration::from_secs(4);

/// A look that takes longer is reported: the disk hangs. One that is only busy may take many seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is known of the disks.
///
/// Nobody waits for a disk here: being asked begins a look on another thread, and what the last one saw
/// is the answer. So a disk that hangs costs one thread, and a daemon that nobody asks does nothing.
pub(super) struct Disks {
    seen: Arc<Mutex<Seen>>,
    look: Arc<dyn Fn() -> Condition + Send + Sync>,
    names: String,
}

struct Seen {
    /// When the last look began.
    begun: Option<Instant>,
    under_way: bool,
    last: Condition,
}

impl Disks {
    /// Watches directories, each by a file in it that is open for writing.
    ///
    /// # Errors
    /// When no descriptors are left.
    pub(super) fn new(dirs: [&Path; 2], files: &[File; 2]) -> Result<Self, String> {
        let failed = |e: io::Error| format!("cannot watch the disks: {e}");
        let [root, state] = dirs.map(Path::to_path_buf);
        let [in_root, in_state] = files.each_ref().map(File::try_clone);
        let (in_root, in_state) = (in_root.map_err(failed)?, in_state.map_err(failed)?);
        let names = format!("{} or {}", root.display(), state.display());
        Ok(Self::with(names, move || {
            let of_root = look_at(&root, &in_root);
            if of_root.ready {
                look_at(&state, &in_state)
            } else {
                of_root
            }
        }))
    }

    fn with(names: String, look: impl Fn() -> Condition + Send + Sync + 'static) -> Self {
        Self {
            seen: Arc::new(Mutex::new(Seen {
                begun: None,
                under_way: false,
                last: Condition::ready(),
            })),
            look: Arc::new(look),
            names,
        }
    }

    /// What the last look saw. Begins another one when that is some seconds ago.
    pub(super) fn condition(&self) -> Condition {
        let mut seen = locked(&self.seen);
        let age = seen.begun.map(|begun| begun.elapsed());
        if !seen.under_way && age.is_none_or(|age| age >= EVERY) {
            seen.begun = Some(Instant::now());
            seen.under_way = true;
            let (shared, look) = (self.seen.clone(), self.look.clone());
            let look = move || {
                let found = look();
                let mut seen = locked(&shared);
                seen.under_way = false;
                tell_change(&seen.last, &found);
                seen.last = found;
            };
            // Not one of tokio's: those may all be busy with something else, and the disk is well.
            if let Err(error) = std::thread::Builder::new()
                .name("disks".to_owned())
                .spawn(look)
            {
                tracing::warn!(%error, "the disks are not looked at: there is no thread for it");
                seen.under_way = false;
            }
        } else if let Some(age) = age.filter(|age| seen.under_way && *age >= PATIENCE) {
            return self.hanging(age);
        }
        seen.last.clone()
    }

    fn hanging(&self, age: Duration) -> Condition {
        let seconds = age.as_secs();
        let message = format!(
            "the disk of {} has not answered for {seconds} s: see the kernel's log, and what the disk is attached to",
            self.names
        );
        not_ready("DiskNotResponding", message)
    }
}

fn locked(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tell_change(before: &Condition, after: &Condition) {
    match (before.ready, after.ready) {
        (true, false) => tracing::error!(reason = after.reason, "{}", after.message),
        (false, true) => tracing::info!("the disks take what is written again"),
        _ => {}
    }
}

/// Writes nothing, so that it wears no disk and needs no room: a sync fails on a file system that has given
/// up writing even when there is nothing to sync, and the flag tells of those that were made read-only.
fn look_at(dir: &Path, file: &File) -> Condition {
    let looked = || {
        // Kernels differ in which of the two tells that a file system has given up.
        if fstatvfs(file)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Err(Errno::ROFS.into());
        }
        file.sync_data()
    };
    verdict(dir, looked())
}

fn verdict(dir: &Path, outcome: io::Result<()>) -> Condition {
    let Err(error) = outcome else {
        return Condition::ready();
    };
    let dir = dir.display();
    match error.kind() {
        // The kubelet sees to a full disk itself, and wants a ready node for it.
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Condition::ready(),
        io::ErrorKind::ReadOnlyFilesystem => not_ready(
            "DiskReadOnly",
            format!(
                "the file system of {dir} takes no writes: {error}: the kernel's log says why; check the disk, mount it for writing, and start berth again"
            ),
        ),
        _ => not_ready(
            "DiskFailed",
            format!(
                "the disk of {dir} fails: {error}: the kernel's log says more; repair or replace it, and start berth again"
            ),
        ),
    }
}

fn not_ready(reason: &str, message: String) -> Condition {
    Condition {
        ready: false,
        reason: reason.to_owned(),
        message,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_a_disk_says_is_a_condition() {
        let told = |errno: Errno| verdict(Path::new("/var/lib/berth"), Err(errno.into()));
        for full in [Errno::NOSPC, Errno::DQUOT] {
            assert_eq!(told(full), Condition::ready());
        }
        for (errno, reason, what) in [
            (Errno::ROFS, "DiskReadOnly", "takes no writes"),
            (Errno::IO, "DiskFailed", "fails"),
        ] {
            let told = told(errno);
            assert_eq!((told.ready, told.reason.as_str()), (false, reason));
            let why = format!("/var/lib/berth {what}: {}", io::Error::from(errno));
            assert!(told.message.contains(&why), "{}", told.message);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(look_at(file.path(), file.as_file()), Condition::ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_is_told_and_holds_nobody_up() {
        let (answer, answers) = mpsc::channel();
        let answers = Mutex::new(answers);
        let disks = Disks::with("/root or /state".to_owned(), move || {
            answers.lock().unwrap().recv().unwrap()
        });
        assert_eq!(disks.condition(), Condition::ready());
        tokio::time::advance(PATIENCE / 2).await;
        assert_eq!(disks.condition(), Condition::ready());
        tokio::time::advance(PATIENCE).await;
        let told = disks.condition();
        assert_eq!(told.reason, "DiskNotResponding");
        assert!(
            told.message
                .contains("/root or /state has not answered for 45 s"),
            "{}",
            told.message
        );
        // One thread, however often it is asked.
        answer.send(Condition::ready()).unwrap();
        while disks.seen.lock().unwrap().under_way {
            tokio::task::yield_now().await;
        }
        assert_eq!(disks.condition(), Condition::ready());
        answer
            .send(not_ready("DiskFailed", "it broke".to_owned()))
            .unwrap();
        while disks.seen.lock().unwrap().under_way {
            tokio::task::yield_now().await;
        }
        assert_eq!(disks.condition().reason, "DiskFailed");
    }
}
