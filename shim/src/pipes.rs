//! Pipes between the monitor and its container, and the pipe that tells why execve(2) failed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

/// Longest text of an execve(2) failure that is kept.
const MAX_ERROR: usize = 4096;

/// A pipe: read end, write end; both close-on-exec and blocking.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe_with(PipeFlags::CLOEXEC)?)
}

/// `/dev/null`, for both directions.
pub(crate) fn null() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        "/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// Makes reads and writes of this end return instead of waiting. Only for ends that nobody else
/// holds: the flag belongs to the open file, not to the descriptor.
pub(crate) fn non_blocking(fd: &OwnedFd) -> io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(fd, true)?)
}

/// What the pipe said in the end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// End of file without a word: execve(2) succeeded and closed it.
    Executed,
    /// Why it failed.
    Failed(String),
}

/// The read end of a close-on-exec pipe.
pub(crate) struct ErrorPipe {
    fd: OwnedFd,
    text: Vec<u8>,
}

impl ErrorPipe {
    /// The pipe, and its write end for the process that will call execve(2).
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        let (fd, write) = pipe()?;
        non_blocking(&fd)?;
        Ok((
            Self {
                fd,
                text: Vec::new(),
            },
            write,
        ))
    }

    /// To be polled.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Reads what there is; the verdict once all writers are gone.
    pub(crate) fn read(&mut self) -> Option<Verdict> {
        let mut piece = [0; 512];
        loop {
            match rustix::io::read(&self.fd, &mut piece) {
                Ok(0) => return Some(self.verdict()),
                Ok(n) => {
                    let room = MAX_ERROR.saturating_sub(self.text.len());
                    self.text.extend_from_slice(&piece[..n.min(room)]);
                }
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }

    /// The verdict after the process has died, whoever else may still hold the pipe.
    pub(crate) fn read_last(&mut self) -> Verdict {
        self.read().unwrap_or_else(|| self.verdict())
    }

    fn verdict(&self) -> Verdict {
        if self.text.is_empty() {
            Verdict::Executed
        } else {
            Verdict::Failed(String::from_utf8_lossy(&self.text).trim().to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_success_and_text_is_failure() {
        let (mut pipe, write) = ErrorPipe::new().unwrap();
        assert_eq!(pipe.read(), None);
        drop(write);
        assert_eq!(pipe.read(), Some(Verdict::Executed));

        let (mut pipe, write) = ErrorPipe::new().unwrap();
        rustix::io::write(&write, &[b'x'; 5000]).unwrap();
        assert_eq!(pipe.read(), None);
        assert_eq!(pipe.read_last(), Verdict::Failed("x".repeat(MAX_ERROR)));
    }
}
