//! The files of one cgroup directory.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::super::Error;

/// More than any of these files has; `memory.stat` has some 2 KiB.
const MAX: usize = 256 * 1024;

/// The directory of a cgroup in one hierarchy.
#[derive(Debug)]
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// `None`: there is no such hierarchy, or the cgroup is gone.
    pub(super) fn below(mount: Option<&Path>, path: &str) -> Result<Option<Self>, Error> {
        let Some(mount) = mount else {
            return Ok(None);
        };
        let path = mount.join(path.trim_start_matches('/'));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, path })),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(None),
            Err(errno) => Err(Error::Read {
                path,
                source: errno.into(),
            }),
        }
    }

    /// What a file says. `None`: it is not there, the cgroup went away, or the kernel was told not to count
    /// this (`psi=0`).
    pub(super) fn text<'b>(
        &self,
        file: &str,
        buffer: &'b mut Vec<u8>,
    ) -> Result<Option<&'b str>, Error> {
        match self.fill(file, buffer) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => return Ok(None),
            Err(errno) => {
                return Err(Error::Read {
                    path: self.path.join(file),
                    source: errno.into(),
                });
            }
        }
        match std::str::from_utf8(buffer) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(self.nonsense(file, &String::from_utf8_lossy(buffer))),
        }
    }

    fn fill(&self, file: &str, buffer: &mut Vec<u8>) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let open = rustix::fs::openat(&self.fd, file, flags, Mode::empty())?;
        let mut filled = 0;
        loop {
            if buffer.len() < filled + 4096 {
                if filled >= MAX {
                    return Err(Errno::FBIG);
                }
                buffer.resize(filled + 8192, 0);
            }
            match rustix::io::read(&open, &mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        buffer.truncate(filled);
        Ok(())
    }

    /// A file with one number.
    pub(super) fn number(&self, file: &str, buffer: &mut Vec<u8>) -> Result<Option<u64>, Error> {
        let Some(text) = self.text(file, buffer)? else {
            return Ok(None);
        };
        match text.trim_end().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(self.nonsense(file, text)),
        }
    }

    /// A file with one number or `max`, which is no limit.
    pub(super) fn limit(&self, file: &str, buffer: &mut Vec<u8>) -> Result<Option<u64>, Error> {
        match self.text(file, buffer)?.map(str::trim_end) {
            None | Some("max") => Ok(None),
            Some(text) => match text.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(self.nonsense(file, text)),
            },
        }
    }

    fn nonsense(&self, file: &str, text: &str) -> Error {
        Error::Nonsense {
            path: self.path.join(file),
            text: text.chars().take(80).collect(),
        }
    }
}
