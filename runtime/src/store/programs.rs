//! Compiled seccomp programs, stored once by content: a container's later execs load the very bytes its
//! init was started with, also after the daemon's table has changed.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use super::{Error, io_error, make_dir, sum_bytes};

/// A directory of programs named by their hash.
#[derive(Debug)]
pub struct Programs {
    dir: PathBuf,
}

impl Programs {
    /// Opens the directory, making it if needed.
    ///
    /// # Errors
    /// What the file system said.
    pub fn open(dir: PathBuf) -> Result<Self, Error> {
        make_dir(&dir)?;
        Ok(Self { dir })
    }

    /// Keeps a program and returns its name.
    ///
    /// # Errors
    /// What the file system said.
    pub fn keep(&self, program: &[u8]) -> Result<String, Error> {
        let name = sum_bytes(program);
        let path = self.dir.join(&name);
        if !path.exists() {
            let fresh = self.dir.join(format!("{name}.{}.tmp", std::process::id()));
            std::fs::write(&fresh, program).map_err(io_error("write", &fresh))?;
            std::fs::rename(&fresh, &path).map_err(io_error("replace", &path))?;
        }
        Ok(name)
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_program_is_kept_once_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let programs = Programs::open(dir.path().join("p")).unwrap();
        let name = programs.keep(b"abc").unwrap();
        assert_eq!(programs.keep(b"abc").unwrap(), name);
        let mut bytes = Vec::new();
        programs
            .get(&name)
            .unwrap()
            .read_to_end(&mut bytes)
            .unwrap();
        assert_eq!(bytes, b"abc");
        assert!(programs.get("../x").is_err());
    }
}
