//! One daemon for each directory, and for each instance name on a machine.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::config::Config;
use crate::sys;

/// Where the instances of a machine are known; a directory of root's, so that nobody else takes a name.
pub(super) const INSTANCES: &str = "/run/berth-instances";

/// How often the lock is tried for.
const ATTEMPTS: u32 = 15;

/// Time between attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// More than any lock file has, bytes: a pid, and two paths.
const LIMIT: u64 = 16 << 10;

/// Locks a directory for as long as the file lives. The kernel gives the lock back when the process ends,
/// however it ends.
pub(super) fn take(dir: &Path) -> Result<File, String> {
    let path = dir.join("lock");
    let file = match take_file(&path)? {
        Ok(file) => file,
        Err(owner) => {
            return Err(format!(
                "{} is in use by another berth (pid {}): stop it, or give this one a root, a state directory and an instance of its own",
                dir.display(),
                owner.lines().next().unwrap_or("unknown")
            ));
        }
    };
    write(&file, "").map_err(|e| failed(&path, &e))?;
    Ok(file)
}

/// The name of an instance, while it lives.
#[derive(Debug)]
pub(super) struct Instance {
    path: PathBuf,
    _file: File,
}

impl Drop for Instance {
    fn drop(&mut self) {
        // While the lock is held, so that nobody waits for a file without a name; one that was left would do no harm.
        let _ = std::fs::remove_file(&self.path);
        let _ = self.path.parent().map(std::fs::remove_dir);
    }
}

/// Takes the instance's name, whatever root and state the others have: bridge, rules and cgroups are called by it.
pub(super) fn instance(config: &Config) -> Result<Instance, String> {
    instance_in(Path::new(INSTANCES), config)
}

/// Who else lives on this machine, in words, and where its root is. One that is just starting or ending may be missing.
pub(super) fn others(config: &Config) -> Vec<(String, PathBuf)> {
    others_in(Path::new(INSTANCES), config)
}

fn others_in(dir: &Path, config: &Config) -> Vec<(String, PathBuf)> {
    let own = format!("{}.lock", config.instance);
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let others = entries.filter(|entry| entry.file_name() != own.as_str());
    let living = others.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let instance = name.strip_suffix(".lock")?;
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(flags.bits().cast_signed());
        let file = options.open(entry.path()).ok()?;
        // What a killed one left is not locked.
        if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            return None;
        }
        let text = String::from_utf8(sys::fs::read_open(&file, LIMIT).ok()?).ok()?;
        let mut lines = text.lines();
        let pid = lines.next()?;
        let root = lines.find_map(|line| line.strip_prefix("root "))?;
        Some((
            format!("instance {instance:?}, pid {pid}"),
            PathBuf::from(root),
        ))
    });
    living.collect()
}

fn instance_in(dir: &Path, config: &Config) -> Result<Instance, String> {
    let name = &config.instance;
    let path = dir.join(format!("{name}.lock"));
    let what = format!(
        "root {}\nstate {}\n",
        config.root.display(),
        config.state.display()
    );
    for _ in 0..ATTEMPTS {
        make_private(dir)?;
        let file = match take_file(&path) {
            Ok(Ok(file)) => file,
            Ok(Err(owner)) => {
                let owner = owner.lines().collect::<Vec<_>>().join(", ");
                return Err(format!(
                    "the instance name {name:?} is in use by another berth (pid {owner}): its bridge, rules and cgroups have that name; stop it, or set another `instance`"
                ));
            }
            // The last of the others has just taken the directory away.
            Err(_) if !dir.exists() => continue,
            Err(error) => return Err(error),
        };
        // Its owner may have removed it before it let go of it.
        let same = match (file.metadata(), std::fs::symlink_metadata(&path)) {
            (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
            _ => false,
        };
        if same {
            write(&file, &what).map_err(|e| failed(&path, &e))?;
            return Ok(Instance { path, _file: file });
        }
    }
    Err(format!(
        "cannot lock {}: somebody removes it again and again",
        path.display()
    ))
}

fn make_private(dir: &Path) -> Result<(), String> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(format!("cannot make {}: {e}", dir.display()));
        }
        _ => {}
    }
    let found = match std::fs::symlink_metadata(dir) {
        // Taken away again; the caller looks.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| format!("cannot look at {}: {e}", dir.display()))?,
    };
    if found.is_dir() && is_ours(&found) && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(format!(
        "{} is not a directory that only root can write to: remove it",
        dir.display()
    ))
}

fn is_ours(found: &std::fs::Metadata) -> bool {
    found.uid() == rustix::process::geteuid().as_raw()
}

fn failed(path: &Path, error: &io::Error) -> String {
    format!("cannot lock {}: {error}", path.display())
}

/// The locked file, or what its owner wrote into it. Nothing is written before the lock is held, and what
/// cannot be a lock of ours, a link above all, is never touched.
fn take_file(path: &Path) -> Result<Result<File, String>, String> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(|e| match std::fs::symlink_metadata(path) {
            Ok(found) if !found.is_file() => foreign(path, sys::fs::kind(&found)),
            _ => failed(path, &e),
        })?;
    let found = file.metadata().map_err(|e| failed(path, &e))?;
    if !found.is_file() {
        return Err(foreign(path, sys::fs::kind(&found)));
    }
    if found.nlink() > 1 {
        return Err(foreign(path, "a file that has other names as well"));
    }
    if !is_ours(&found) {
        return Err(foreign(path, "a file of somebody else"));
    }
    let locked = locked(&file);
    let text = match sys::fs::read_open(&file, LIMIT) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.kind() == io::ErrorKind::FileTooLarge => {
            return Err(foreign(path, "a large file"));
        }
        Err(e) => return Err(failed(path, &e)),
    };
    let is_pid = |line: &str| !line.is_empty() && line.bytes().all(|b| b.is_ascii_digit());
    if !text.is_empty() && !text.lines().next().is_some_and(is_pid) {
        return Err(foreign(path, "a file with something else in it"));
    }
    Ok(if locked { Ok(file) } else { Err(text) })
}

fn foreign(path: &Path, what: &str) -> String {
    format!(
        "{} is {what}, and not a lock of berth: move it away, or choose another directory",
        path.display()
    )
}

fn write(mut file: &File, more: &str) -> io::Result<()> {
    file.set_len(0)?;
    io::Seek::rewind(&mut file)?;
    file.write_all(format!("{}\n{more}", std::process::id()).as_bytes())
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
        // A longer one than ours.
        std::fs::write(dir.path().join("lock"), "123456789012345\n").unwrap();
        take(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join("lock")).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
    }

    #[test]
    fn what_is_not_a_lock_is_never_touched() {
        let dir = tempfile::tempdir().unwrap();
        let (lock, target) = (dir.path().join("lock"), dir.path().join("precious"));
        std::fs::write(&target, "12 precious bytes").unwrap();
        let refused = |what: &str| {
            let error = take(dir.path()).unwrap_err();
            assert!(error.contains(what), "{error}");
            assert_eq!(
                std::fs::read_to_string(&target).unwrap(),
                "12 precious bytes"
            );
            let _ = std::fs::remove_file(&lock).or_else(|_| std::fs::remove_dir(&lock));
        };
        std::os::unix::fs::symlink("precious", &lock).unwrap();
        refused("is a symbolic link");
        std::os::unix::fs::symlink("made", &lock).unwrap();
        refused("is a symbolic link");
        assert!(!dir.path().join("made").exists());
        std::fs::hard_link(&target, &lock).unwrap();
        refused("other names");
        std::fs::create_dir(&lock).unwrap();
        refused("is a directory");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &lock, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        refused("is a FIFO");
        std::fs::write(&lock, "somebody's notes").unwrap();
        refused("something else in it");
        std::fs::write(&lock, "1".repeat(20 << 10)).unwrap();
        refused("a large file");
        std::fs::write(&lock, "1\n").unwrap();
        std::os::unix::fs::chown(&lock, Some(65534), None).unwrap();
        refused("of somebody else");
        take(dir.path()).unwrap();
    }

    #[test]
    fn an_instance_has_one_owner_whatever_its_directories() {
        let dir = tempfile::tempdir().unwrap();
        let names = dir.path().join("instances");
        let config = |root: &str| {
            let mut config = Config::load(None, &[]).unwrap();
            config.root = root.into();
            config
        };
        let first = instance_in(&names, &config("/a")).unwrap();
        let refused = instance_in(&names, &config("/b")).unwrap_err();
        let pid = std::process::id();
        let mut other = config("/b");
        assert_eq!(others_in(&names, &other), []);
        other.instance = "other".to_owned();
        let living = [(
            format!("instance \"berth\", pid {pid}"),
            PathBuf::from("/a"),
        )];
        assert_eq!(others_in(&names, &other), living);
        assert!(
            refused.contains(&format!("pid {pid}, root /a")),
            "{refused}"
        );
        drop(first);
        assert!(!names.exists());
        // What a killed one left is nobody's.
        std::fs::create_dir(&names).unwrap();
        std::fs::write(names.join("berth.lock"), "1\nroot /a\n").unwrap();
        assert_eq!(others_in(&names, &other), []);
        drop(instance_in(&names, &config("/b")).unwrap());
        std::fs::create_dir(&names).unwrap();
        std::fs::set_permissions(&names, std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .unwrap();
        let refused = instance_in(&names, &config("/b")).unwrap_err();
        assert!(refused.contains("only root can write"), "{refused}");
    }
}
