//! The exit record: what a daemon that was away finds out about the end of a container.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use shim_protocol::monitor::Exit;
use shim_protocol::{EXIT_RECORD_NAME, SOCKET_NAME, record};

const TEMPORARY: &str = "exit.json.new";

/// Writes the record into the monitor's state directory, whole or not at all. Nothing is synced:
/// after a power loss the boot id says that no container of that boot is left anyway.
pub(crate) fn write(dir: BorrowedFd<'_>, boot_id: &str, exit: &Exit) -> io::Result<()> {
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(dir, TEMPORARY, flags, Mode::RUSR | Mode::WUSR)?;
    let written = write_all(&file, record::encode(boot_id, exit).as_bytes())
        .and_then(|()| Ok(renameat(dir, TEMPORARY, dir, EXIT_RECORD_NAME)?));
    if written.is_err() {
        let _ = unlinkat(dir, TEMPORARY, AtFlags::empty());
    }
    written
}

/// Removes the monitor's socket, so that nobody tries to talk to it any more.
pub(crate) fn remove_socket(dir: BorrowedFd<'_>) {
    let _ = unlinkat(dir, SOCKET_NAME, AtFlags::empty());
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => bytes = &bytes[n..],
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_record_replaces_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        for code in [1, 2] {
            let exit = Exit {
                code,
                ..Exit::default()
            };
            write(fd.as_fd(), "boot", &exit).unwrap();
            let text = std::fs::read_to_string(dir.path().join(EXIT_RECORD_NAME)).unwrap();
            assert!(
                record::body(&text)
                    .unwrap()
                    .contains(&format!("\"code\":{code},"))
            );
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
