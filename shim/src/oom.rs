//! Counting out-of-memory kills, and latching them before the cgroup is gone (row X051).

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFlags, eventfd};
use shim_protocol::memory;
use shim_protocol::monitor::{Failure, FailureKind, OomSource};

use crate::worker::failure;

/// v1 tells of the trouble before it kills, so the counter is read again for a while. v2 tells of every
/// reclaim at a limit too, up to a hundred times a second: after an event without a kill it is not listened to
/// for this long.
const RECHECK: Duration = Duration::from_millis(50);
const RECHECKS: u32 = 20;

/// The watch over one container.
#[derive(Default)]
pub(crate) struct Oom {
    counter: Option<File>,
    /// v2: the counter itself can be polled.
    polled: bool,
    /// v1: signalled by the kernel.
    event: Option<OwnedFd>,
    /// v2: the pod's counter, and what it stood at when the container was made.
    pod: Option<(File, u64)>,
    kills: u64,
    rechecks: u32,
    recheck_at: Option<Instant>,
}

impl Oom {
    /// Opens the counters of an existing cgroup. A missing one is no reason to refuse a container:
    /// it then reports no kill.
    pub(crate) fn watch(source: &OomSource) -> Self {
        let mut oom = Self::default();
        if !source.v2_dir.is_empty() {
            oom.counter = File::open(Path::new(&source.v2_dir).join("memory.events")).ok();
            oom.polled = true;
            oom.pod = File::open(Path::new(&source.v2_pod_dir).join("memory.events"))
                .ok()
                .map(|file| {
                    let now = read(&file).unwrap_or(0);
                    (file, now)
                });
        } else if !source.v1_dir.is_empty() {
            let dir = Path::new(&source.v1_dir);
            oom.counter = File::open(dir.join("memory.oom_control")).ok();
            oom.event = oom
                .counter
                .as_ref()
                .and_then(|file| register(dir, file).ok());
        }
        // The first read also arms poll(2) on v2.
        oom.kills = oom.counter.as_ref().and_then(read).unwrap_or(0);
        oom
    }

    /// What to poll.
    pub(crate) fn fd(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match (&self.event, &self.counter) {
            (Some(event), _) => Some((event.as_fd(), PollFlags::IN)),
            (None, Some(counter)) if self.polled && self.recheck_at.is_none() => {
                Some((counter.as_fd(), PollFlags::PRI))
            }
            _ => None,
        }
    }

    /// When to call [`Oom::refresh`] without an event.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.recheck_at
    }

    /// The kernel has told of something. True when there were more kills.
    pub(crate) fn on_event(&mut self) -> bool {
        if let Some(event) = &self.event {
            let _ = rustix::io::read(event, &mut [0; 8]);
            self.rechecks = RECHECKS;
        } else {
            // One for the reading below, one for the end of the pause.
            self.rechecks = 2;
        }
        self.refresh()
    }

    /// Reads the counter. True when there were more kills.
    pub(crate) fn refresh(&mut self) -> bool {
        let Some(now) = self.counter.as_ref().and_then(read) else {
            // The cgroup is gone: poll(2) would report that for ever.
            self.event = None;
            self.counter = None;
            self.recheck_at = None;
            return false;
        };
        let more = now > self.kills;
        self.kills = self.kills.max(now);
        self.rechecks = if more {
            0
        } else {
            self.rechecks.saturating_sub(1)
        };
        self.recheck_at = (self.rechecks > 0).then(|| Instant::now() + RECHECK);
        more
    }

    /// Last reading, before anything of the container is removed. `killed`: it died of SIGKILL.
    pub(crate) fn latch(&mut self, killed: bool) {
        self.refresh();
        if self.kills == 0 && self.counter.is_none() && killed {
            let rose = self
                .pod
                .as_ref()
                .and_then(|(file, base)| Some(read(file)?.saturating_sub(*base)));
            self.kills = rose.unwrap_or(0);
        }
    }

    /// Kills so far.
    pub(crate) fn kills(&self) -> u64 {
        self.kills
    }

    /// Kills so far, read anew.
    pub(crate) fn kills_now(&self) -> u64 {
        let now = self.counter.as_ref().and_then(read).unwrap_or(0);
        now.max(self.kills)
    }
}

/// Whether the kernel has killed in a cgroup that is not watched yet.
pub(crate) fn has_killed(source: &OomSource) -> bool {
    let counter = File::open(file(source, "memory.events", "memory.oom_control"));
    counter
        .ok()
        .as_ref()
        .and_then(read)
        .is_some_and(|kills| kills > 0)
}

/// That `what` could not start for want of memory. `asked` is the limit with which the container was made.
pub(crate) fn too_low(source: &OomSource, asked: Option<u64>, what: &str) -> Failure {
    let limit = std::fs::read_to_string(file(source, "memory.max", "memory.limit_in_bytes"));
    let limit = limit.ok().and_then(|text| memory::limit(&text, asked));
    failure(FailureKind::Memory, memory::too_low(limit, what))
}

fn file(source: &OomSource, v2: &str, v1: &str) -> PathBuf {
    match source.v2_dir.as_str() {
        "" => Path::new(&source.v1_dir).join(v1),
        dir => Path::new(dir).join(v2),
    }
}

/// The `oom_kill` line of `memory.events` (v2) or `memory.oom_control` (v1).
fn read(file: &File) -> Option<u64> {
    let mut text = [0; 512];
    let got = file.read_at(&mut text, 0).ok()?;
    memory::kills(std::str::from_utf8(&text[..got]).ok()?)
}

/// Asks for an event on out-of-memory (Documentation/admin-guide/cgroup-v1/memory.rst, section 10).
fn register(dir: &Path, control: &File) -> io::Result<OwnedFd> {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let mut file = File::options()
        .write(true)
        .open(dir.join("cgroup.event_control"))?;
    file.write_all(format!("{} {}", event.as_raw_fd(), control.as_raw_fd()).as_bytes())?;
    Ok(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_too_low_is_told_with_its_value() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_string_lossy().into_owned();
        let v1 = OomSource {
            v1_dir: path.clone(),
            ..OomSource::default()
        };
        assert!(!has_killed(&v1));
        std::fs::write(dir.path().join("memory.oom_control"), "oom_kill 1\n").unwrap();
        std::fs::write(dir.path().join("memory.limit_in_bytes"), "65536\n").unwrap();
        assert!(has_killed(&v1));
        let told = too_low(&v1, Some(65537), "the container");
        assert_eq!(told.kind(), FailureKind::Memory);
        assert!(told.message.contains("65537 bytes"), "{told:?}");
        let v2 = OomSource {
            v2_dir: path,
            ..OomSource::default()
        };
        assert!(!has_killed(&v2));
        std::fs::write(dir.path().join("memory.events"), "oom_kill 2\n").unwrap();
        assert!(has_killed(&v2) && too_low(&v2, None, "it").message.contains("of the pod"));
    }

    #[test]
    fn without_counters_nothing_is_reported() {
        let mut oom = Oom::watch(&OomSource {
            v2_dir: "/nonexistent".into(),
            ..OomSource::default()
        });
        oom.latch(true);
        assert_eq!((oom.kills(), oom.fd().is_none()), (0, true));
    }

    #[test]
    fn v2_is_listened_to_unless_it_has_just_told_of_no_kill() {
        let dir = tempfile::tempdir().unwrap();
        let events = dir.path().join("memory.events");
        std::fs::write(&events, "max 1\noom_kill 0\n").unwrap();
        // Without the pod's counter too.
        let mut oom = Oom::watch(&OomSource {
            v2_dir: dir.path().to_string_lossy().into_owned(),
            ..OomSource::default()
        });
        assert!(oom.fd().is_some() && oom.deadline().is_none());
        assert!(!oom.on_event());
        assert!(oom.fd().is_none() && oom.deadline().is_some());
        assert!(!oom.refresh());
        assert!(oom.fd().is_some() && oom.deadline().is_none());
        assert!(!oom.on_event());
        std::fs::write(&events, "max 2\noom_kill 1\n").unwrap();
        assert!(oom.refresh());
        assert!(oom.fd().is_some() && oom.deadline().is_none());
    }

    #[test]
    fn the_pod_counter_stands_in_for_a_vanished_cgroup() {
        let pod = tempfile::tempdir().unwrap();
        let events = pod.path().join("memory.events");
        std::fs::write(&events, "oom_kill 4\n").unwrap();
        let source = OomSource {
            v2_dir: "/nonexistent".into(),
            v2_pod_dir: pod.path().to_string_lossy().into_owned(),
            ..OomSource::default()
        };
        let (mut killed, mut ended) = (Oom::watch(&source), Oom::watch(&source));
        std::fs::write(&events, "oom_kill 5\n").unwrap();
        killed.latch(true);
        ended.latch(false);
        assert_eq!((killed.kills(), ended.kills()), (1, 0));
    }
}
