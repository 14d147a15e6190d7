//! Where a container's log is: below the log directory of its pod, and nowhere else.
//!
//! The kubelet names the directory, and links on the way to it are the operator's (`/var/log` on another disk). The directory
//! itself is the pod's, and it and what is below it can be changed by whoever has it, or the directory of all pods' logs,
//! mounted: no link there is followed, by the daemon nor by the monitor.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType};
use rustix::io::Errno;

use crate::sys::fs::{make_dir, make_own_dir};

/// The opened directory of a log, and the log's name in it.
#[derive(Debug)]
pub(super) struct Log {
    /// The directory.
    pub(super) dir: OwnedFd,
    /// The file's name there.
    pub(super) name: String,
}

/// A log that was not there before: if the create fails, nothing of it stays.
#[derive(Debug)]
pub(super) struct Fresh(Log);

/// The path of a log as CRI shows it; empty without a log.
pub(super) fn path(directory: &str, log_path: &str) -> String {
    if directory.is_empty() || log_path.is_empty() {
        return String::new();
    }
    Path::new(directory).join(log_path).display().to_string()
}

/// The log directory in what [`path`] made of it.
pub(super) fn directory_of<'a>(path: &'a str, log_path: &str) -> &'a str {
    path.strip_suffix(log_path).unwrap_or(path)
}

/// Opens the directory that a log is in, and makes what is missing of it. `log_path` is the log's path below `directory`.
///
/// # Errors
/// A sentence that names the part of the path that is wrong.
pub(super) fn open(directory: &str, log_path: &str) -> Result<Option<Log>, String> {
    if directory.is_empty() || log_path.is_empty() {
        return Ok(None);
    }
    let parts: Vec<&str> = log_path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    let Some((name, dirs)) = parts.split_last() else {
        return Err(format!("log_path {log_path:?} names no file"));
    };
    if log_path.starts_with('/') || parts.contains(&"..") {
        return Err(format!(
            "log_path {log_path:?} leaves the log directory {directory:?} of the pod sandbox"
        ));
    }
    let mut here = PathBuf::from(directory);
    let mut dir = make_own_dir(&here).map_err(|e| explain(&here, &e))?;
    for part in dirs {
        here.push(part);
        dir = make_dir(dir.as_fd(), OsStr::new(part)).map_err(|e| explain(&here, &e))?;
    }
    Ok(Some(Log {
        dir,
        name: (*name).to_owned(),
    }))
}

fn explain(path: &Path, error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        // ENOTDIR is what Linux says to O_DIRECTORY | O_NOFOLLOW on a link.
        Some(Errno::LOOP | Errno::NOTDIR) => format!(
            "{path:?} is not a directory: a link on the way to a log is not followed; remove it"
        ),
        _ => format!("{path:?}: {error}"),
    }
}

impl Log {
    /// What has to be taken back if the create fails, when the log is not there yet.
    ///
    /// # Errors
    /// When it cannot be told.
    pub(super) fn fresh(&self) -> io::Result<Option<Fresh>> {
        match rustix::fs::statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(None),
            Err(Errno::NOENT) => Ok(Some(Fresh(Self {
                dir: self.dir.try_clone()?,
                name: self.name.clone(),
            }))),
            Err(error) => Err(error.into()),
        }
    }
}

impl Fresh {
    /// Removes the file, if it is the empty one that the monitor has made.
    pub(super) fn remove(self) {
        let Self(Log { dir, name }) = self;
        let name = OsString::from(name);
        let stat = rustix::fs::statat(&dir, name.as_bytes(), AtFlags::SYMLINK_NOFOLLOW);
        let empty = stat.is_ok_and(|stat| {
            stat.st_size == 0 && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        });
        if empty {
            // The create has failed already: one empty file more is no news.
            let _ = rustix::fs::unlinkat(&dir, name.as_bytes(), AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &Path) -> &str {
        path.to_str().unwrap()
    }

    #[test]
    fn a_log_is_opened_below_its_directory_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let (logs, elsewhere) = (dir.path().join("logs"), dir.path().join("elsewhere"));
        std::fs::create_dir_all(elsewhere.join("x")).unwrap();
        std::fs::create_dir(&logs).unwrap();
        std::os::unix::fs::symlink(&elsewhere, logs.join("link")).unwrap();
        std::os::unix::fs::symlink("../elsewhere", logs.join("relative")).unwrap();
        std::os::unix::fs::symlink("nowhere", logs.join("dangling")).unwrap();
        std::fs::write(logs.join("file"), "").unwrap();
        for bad in [
            "link/0.log",
            "link/x/0.log",
            "relative/0.log",
            "dangling/0.log",
            "file/0.log",
            "a/../0.log",
            "../elsewhere/0.log",
            "/etc/0.log",
            ".",
            "/",
            "./.",
        ] {
            open(text(&logs), bad).unwrap_err();
        }
        assert!(!elsewhere.join("0.log").exists() && !logs.join("nowhere").exists());
        for (good, at) in [("0.log", "."), ("a/b/0.log", "a/b"), ("./a//0.log", "a")] {
            let log = open(text(&logs), good).unwrap().unwrap();
            assert_eq!(log.name, "0.log");
            let stat = rustix::fs::fstat(&log.dir).unwrap();
            assert_eq!(stat.st_ino, rustix::fs::stat(logs.join(at)).unwrap().st_ino);
        }
        assert!(open("", "x").unwrap().is_none() && open("/x", "").unwrap().is_none());
    }

    #[test]
    fn the_way_to_the_directory_may_have_links_and_what_is_missing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("disk")).unwrap();
        std::os::unix::fs::symlink("disk", dir.path().join("log")).unwrap();
        open(text(&dir.path().join("log/pods/p")), "c/0.log")
            .unwrap()
            .unwrap();
        assert!(dir.path().join("disk/pods/p/c").is_dir());
    }

    #[test]
    fn a_link_in_the_place_of_the_directory_itself_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (logs, elsewhere) = (dir.path().join("logs"), dir.path().join("elsewhere"));
        std::fs::create_dir(&elsewhere).unwrap();
        for target in ["elsewhere", "missing", text(&elsewhere), "logs"] {
            std::os::unix::fs::symlink(target, &logs).unwrap();
            for log_directory in [text(&logs).to_owned(), format!("{}//", text(&logs))] {
                let told = open(&log_directory, "c/0.log").unwrap_err();
                assert!(told.contains("is not followed"), "{told}");
            }
            std::fs::remove_file(&logs).unwrap();
        }
        std::fs::write(&logs, "").unwrap();
        open(text(&logs), "0.log").unwrap_err();
        assert_eq!(std::fs::read_dir(&elsewhere).unwrap().count(), 0);
        assert!(!dir.path().join("missing").exists());
    }

    #[test]
    fn the_directory_is_found_again_in_the_path() {
        for (directory, log_path) in [("/l/p", "c/0.log"), ("/l/p/", "0.log"), ("/", "0.log")] {
            let joined = path(directory, log_path);
            let back = directory_of(&joined, log_path);
            assert_eq!(Path::new(back), Path::new(directory));
        }
    }

    #[test]
    fn only_the_empty_file_of_a_failed_create_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let log = |name: &str| open(text(dir.path()), name).unwrap().unwrap();
        let fresh = log("a").fresh().unwrap().unwrap();
        std::fs::write(dir.path().join("a"), "").unwrap();
        assert!(log("a").fresh().unwrap().is_none());
        fresh.remove();
        assert!(!dir.path().join("a").exists());
        let fresh = log("a").fresh().unwrap().unwrap();
        std::fs::write(dir.path().join("full"), "x").unwrap();
        std::os::unix::fs::symlink("full", dir.path().join("a")).unwrap();
        fresh.remove();
        assert!(dir.path().join("a").is_symlink() && dir.path().join("full").exists());
        assert!(log("a").fresh().unwrap().is_none());
    }
}
