//! The sockets that are listened on: never taken from somebody who lives, and gone at the end.

use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::{UnixListener, UnixStream};

use crate::sys;

/// How often the directory's lock is tried for, and the time in between.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// A socket's name in the file system, which goes with this.
#[derive(Debug)]
pub(super) struct Name {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl Drop for Name {
    fn drop(&mut self) {
        // Somebody may have removed it, and somebody else listen there now.
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens. What is there already goes only if it is a socket that nobody serves any more.
pub(super) fn listen(key: &str, path: &Path) -> Result<(UnixListener, Name), String> {
    let failed =
        |e: &dyn std::fmt::Display| format!("cannot listen on `{key}` = {}: {e}", path.display());
    // Two that start at the same time must not both find the same dead socket.
    let _alone = alone(path.parent().unwrap_or(Path::new("/"))).map_err(|e| failed(&e))?;
    clear(path).map_err(|why| failed(&why))?;
    let listener = UnixListener::bind(path).map_err(|e| failed(&e))?;
    let name = Name {
        path: path.to_owned(),
        identity: identity(path),
    };
    let mode = std::fs::Permissions::from_mode(0o660);
    std::fs::set_permissions(path, mode).map_err(|e| failed(&e))?;
    Ok((listener, name))
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = std::fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

fn alone(dir: &Path) -> io::Result<File> {
    let dir = File::open(dir)?;
    for _ in 0..ATTEMPTS {
        match flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => std::thread::sleep(PAUSE),
            other => return other.map(|()| dir).map_err(Into::into),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::WouldBlock,
        "somebody holds a lock on its directory",
    ))
}

/// Makes room for a socket, or says who is in the way.
fn clear(path: &Path) -> Result<(), String> {
    let found = match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| e.to_string())?,
    };
    let kind = sys::fs::kind(&found);
    if kind != "a socket" {
        return Err(format!(
            "there is {kind} of that name: move it away, or choose another place"
        ));
    }
    match served(path).map_err(|e| format!("cannot tell whether its socket is in use: {e}"))? {
        Some(owner) => Err(format!(
            "its socket is in use by {owner}: stop that one, or choose another place"
        )),
        None => match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e.to_string()),
            _ => Ok(()),
        },
    }
}

/// Who serves a socket; `None`: nobody.
fn served(path: &Path) -> io::Result<Option<String>> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => {
            let stream = UnixStream::from_std(socket.into())?;
            // None of another PID namespace has a number here.
            let Some(pid) = stream.peer_cred()?.pid().filter(|pid| *pid > 0) else {
                return Ok(Some("a process of another PID namespace".to_owned()));
            };
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            Ok(Some(format!("{:?} (pid {pid})", name.trim())))
        }
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(None),
        Err(Errno::AGAIN) => Ok(Some("a server that does not answer".to_owned())),
        Err(Errno::PROTOTYPE) => Ok(Some("a server of another kind".to_owned())),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener as Server};

    use super::*;

    #[tokio::test]
    async fn only_a_dead_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let refused = |what: &str| {
            let error = listen("listen", &path).unwrap_err();
            assert!(error.contains(what), "{error}");
            assert!(std::fs::symlink_metadata(&path).is_ok());
            std::fs::remove_file(&path)
                .or_else(|_| std::fs::remove_dir(&path))
                .unwrap();
        };
        std::fs::write(&path, "precious").unwrap();
        refused("a regular file");
        std::fs::create_dir(&path).unwrap();
        refused("a directory");
        std::os::unix::fs::symlink("/nonexistent", &path).unwrap();
        refused("a symbolic link");
        let server = Server::bind(&path).unwrap();
        refused(&format!("(pid {})", std::process::id()));
        drop(server);
        let server = UnixDatagram::bind(&path).unwrap();
        refused("another kind");
        drop(server);
        drop(Server::bind(&path).unwrap());
        let (listener, name) = listen("listen", &path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o660);
        drop((listener, name));
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_server_whose_queue_is_full_lives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let flags = SocketFlags::CLOEXEC;
        let server =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        rustix::net::bind(&server, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&server, 0).unwrap();
        let mut waiting = Vec::new();
        while let Ok(Some(_)) = served(&path)
            && waiting.len() < 8
        {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let one =
                rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
            let one = one.unwrap();
            let _ = rustix::net::connect(&one, &SocketAddrUnix::new(&path).unwrap());
            waiting.push(one);
        }
        let error = listen("admin", &path).unwrap_err();
        assert!(error.contains("in use by"), "{error}");
        assert!(path.exists());
    }

    #[tokio::test]
    async fn the_name_of_another_server_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let (_listener, name) = listen("listen", &path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = Server::bind(&path).unwrap();
        drop(name);
        assert!(path.exists());
    }
}
