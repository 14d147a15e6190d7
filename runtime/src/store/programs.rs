//! Compiled seccomp programs, stored once by content: a container's later execs load the very bytes its
//! init was started with, also after the daemon's table has changed.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Error, io_error, make_dir, sum_bytes};

/// A directory of programs named by their hash. A program stays as long as somebody holds it.
#[derive(Debug)]
pub struct Programs {
    dir: PathBuf,
    holders: Mutex<HashMap<String, usize>>,
}

impl Programs {
    /// Opens the directory, making it if needed.
    ///
    /// # Errors
    /// What the file system said.
    pub fn open(dir: PathBuf) -> Result<Self, Error> {
        make_dir(&dir)?;
        Ok(Self {
            dir,
            holders: Mutex::default(),
        })
    }

    /// Keeps a program for one holder more; gives its name and the open file.
    ///
    /// # Errors
    /// What the file system said.
    pub fn hold(&self, program: &[u8]) -> Result<(String, File), Error> {
        let name = sum_bytes(program);
        let mut holders = self.lock();
        let path = self.dir.join(&name);
        if !path.exists() {
            let fresh = self.dir.join(format!("{name}.tmp"));
            std::fs::write(&fresh, program).map_err(io_error("write", &fresh))?;
            crash_point!("run_pod.filter_file.after");
            std::fs::rename(&fresh, &path).map_err(io_error("replace", &path))?;
        }
        let file = self.get(&name)?;
        *holders.entry(name.clone()).or_default() += 1;
        Ok((name, file))
    }

    /// Takes up a holder that an earlier daemon had; an empty name is none.
    pub fn restore(&self, name: &str) {
        if name.is_empty() {
            return;
        }
        *self.lock().entry(name.to_owned()).or_default() += 1;
    }

    /// One holder less; the last one's program goes.
    ///
    /// # Errors
    /// What the file system said.
    pub fn release(&self, name: &str) -> Result<(), Error> {
        let mut holders = self.lock();
        let Some(count) = holders.get_mut(name) else {
            return Ok(());
        };
        *count -= 1;
        if *count > 0 {
            return Ok(());
        }
        holders.remove(name);
        let path = self.dir.join(name);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    /// Removes what nobody holds: a daemon may have died between a program and the record that names it. To be called
    /// when all holders are taken up, and before new ones come.
    ///
    /// # Errors
    /// What the file system said.
    pub fn sweep(&self) -> Result<(), Error> {
        let holders = self.lock();
        for entry in std::fs::read_dir(&self.dir).map_err(io_error("list", &self.dir))? {
            let entry = entry.map_err(io_error("list", &self.dir))?;
            let name = entry.file_name();
            if name.to_str().is_none_or(|name| !holders.contains_key(name)) {
                std::fs::remove_file(entry.path()).map_err(io_error("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    /// Opens a kept program.
    ///
    /// # Errors
    /// When it is not there or the name is none of ours.
    pub fn get(&self, name: &str) -> Result<File, Error> {
        let path = self.dir.join(name);
        if name.len() != 64 || !name.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(io_error("open", &path)(io::ErrorKind::InvalidInput.into()));
        }
        File::open(&path).map_err(io_error("open", &path))
    }

    // Held over a few calls on a small file: whoever holds must find what another one is removing.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_program_stays_as_long_as_it_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let programs = Programs::open(dir.path().join("p")).unwrap();
        let (name, mut file) = programs.hold(b"abc").unwrap();
        assert_eq!(programs.hold(b"abc").unwrap().0, name);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"abc");
        programs.release(&name).unwrap();
        assert!(programs.get(&name).is_ok());
        programs.release(&name).unwrap();
        assert!(programs.get(&name).is_err());
        assert!(programs.get("../x").is_err());
    }

    #[test]
    fn what_nobody_holds_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let programs = Programs::open(dir.path().into()).unwrap();
        let (held, _) = programs.hold(b"abc").unwrap();
        let (lost, _) = programs.hold(b"def").unwrap();
        std::fs::write(dir.path().join(format!("{lost}.tmp")), "de").unwrap();
        let programs = Programs::open(dir.path().into()).unwrap();
        programs.restore(&held);
        programs.sweep().unwrap();
        assert!(programs.get(&held).is_ok());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
