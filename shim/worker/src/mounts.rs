//! What the kernel says about mounts, and who on the host a container's mounts are shared with.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MoveMountFlags, UnmountFlags};

use crate::error::{Context, Error, Result};
use crate::path;
use crate::sys::MountChange;

/// One line of mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    id: u64,
    parent: u64,
    point: Vec<u8>,
    shared: bool,
    slave: bool,
}

/// Propagation as it is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Propagation {
    #[default]
    Private,
    Slave,
    Shared,
}

impl Propagation {
    pub(crate) fn change(self) -> MountChange {
        MountChange {
            propagation: match self {
                Self::Private => libc::MS_PRIVATE,
                Self::Slave => libc::MS_SLAVE,
                Self::Shared => libc::MS_SHARED,
            },
            ..MountChange::default()
        }
    }
}

/// Refuses a staging directory on a shared mount: what the worker attaches there would show up on the host.
pub(crate) fn require_private(proc: BorrowedFd<'_>, dir: &str) -> Result<()> {
    let fd = rustix::fs::open(
        dir,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(|| format!("open staging directory {dir}"))?;
    let id = path::mount_id(fd).context(|| format!("stat staging directory {dir}"))?;
    let shared = mounts(proc)?.iter().any(|m| m.id == id && m.shared);
    if shared {
        return Err(Error::invalid(format!(
            "staging directory {dir} is on a shared mount; bind it on itself and make it private"
        )));
    }
    Ok(())
}

/// Refuses a source whose mount has nobody on the host to propagate from, or to.
pub(crate) fn require_peers(
    proc: BorrowedFd<'_>,
    source: &str,
    destination: &str,
    wanted: Propagation,
) -> Result<()> {
    let told = || format!("mount {source} on {destination}: open the source");
    let fd =
        rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context(told)?;
    let id = path::mount_id(fd).context(told)?;
    let possible = mounts(proc)?.iter().any(|m| {
        m.id == id
            && match wanted {
                Propagation::Private => true,
                Propagation::Slave => m.shared || m.slave,
                Propagation::Shared => m.shared,
            }
    });
    if possible {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the volume at {destination} cannot propagate mounts: its source {source} is not on a shared mount of the host"
    )))
}

/// Joins a mount of this process's, and what came along below it, to the peer groups of `peers`, a clone of the
/// same source. Mounts in `except`, and what is on them, stay as they are. `proc` is the host's procfs.
pub(crate) fn join(
    proc: BorrowedFd<'_>,
    tree: BorrowedFd<'_>,
    peers: BorrowedFd<'_>,
    except: &[u64],
) -> Result<()> {
    let told = || "look at its mounts".to_owned();
    let root = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(|| "open the container's root".to_owned())?;
    let mounts = mounts(proc)?;
    let id = path::mount_id(tree).context(told)?;
    let top = mounts
        .iter()
        .find(|m| m.id == id)
        .ok_or_else(|| Error::internal("it is not among the container's mounts"))?;
    for mount in &mounts {
        let Some(rest) = mount.point.strip_prefix(top.point.as_slice()) else {
            continue;
        };
        if !belongs(&mounts, mount, id, except) {
            continue;
        }
        // Its place is gone, or another mount lies on top of it: nobody can get at this one any more.
        let point = match path::open_plain(root.as_fd(), &mount.point) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            other => other.context(told)?,
        };
        if path::mount_id(&point).context(told)? != mount.id {
            continue;
        }
        join_one(mount, point.as_fd(), peers, rest)
            .context(|| format!("join {}", String::from_utf8_lossy(&mount.point)))?;
    }
    Ok(())
}

fn join_one(
    mount: &Mount,
    point: BorrowedFd<'_>,
    peers: BorrowedFd<'_>,
    rest: &[u8],
) -> io::Result<()> {
    let opened = match rest.strip_prefix(b"/").unwrap_or(rest) {
        b"" => peers.try_clone_to_owned().map(Some),
        rest => path::mount_root(peers, rest),
    };
    let Some(peer) = opened? else {
        // It was unmounted on the host meanwhile, and would keep what it shows busy.
        let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        return Ok(rustix::mount::unmount(mount.point.as_slice(), flags)?);
    };
    let flags = MoveMountFlags::MOVE_MOUNT_SET_GROUP
        | MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
        | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(peer, "", point, "", flags)?)
}

/// Whether a mount is `top` or on it, at whatever depth, with none of `except` between.
fn belongs(mounts: &[Mount], mount: &Mount, top: u64, except: &[u64]) -> bool {
    let mut at = mount;
    // The list bounds the walk, whatever it says.
    for _ in 0..mounts.len() {
        if at.id == top {
            return true;
        }
        if except.contains(&at.id) {
            return false;
        }
        match mounts.iter().find(|m| m.id == at.parent && m.id != at.id) {
            Some(parent) => at = parent,
            None => return false,
        }
    }
    false
}

fn mounts(proc: BorrowedFd<'_>) -> Result<Vec<Mount>> {
    let file = rustix::fs::openat(
        proc,
        "thread-self/mountinfo",
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(|| "open mountinfo".to_owned())?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut File::from(file), &mut bytes)
        .context(|| "read mountinfo".to_owned())?;
    bytes
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            parse(line).ok_or_else(|| {
                Error::internal(format!(
                    "mountinfo line {:?}",
                    String::from_utf8_lossy(line)
                ))
            })
        })
        .collect()
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let point = unescape(fields.nth(2)?);
    let tags: Vec<&[u8]> = fields.skip(1).take_while(|f| *f != b"-").collect();
    Some(Mount {
        id,
        parent,
        point,
        shared: tags.iter().any(|t| t.starts_with(b"shared:")),
        slave: tags.iter().any(|t| t.starts_with(b"master:")),
    })
}

/// Space, tab, newline and backslash are printed as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        rest = tail;
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) =
            (first, tail)
        {
            out.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
            rest = tail;
        } else {
            out.push(*first);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines() {
        let line = br"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 shared:7 - ext3 /dev/root rw";
        let mount = parse(line).unwrap();
        assert_eq!(
            (mount.id, mount.parent, mount.point.as_slice()),
            (36, 35, &b"/mnt 2"[..])
        );
        assert!(mount.shared && mount.slave);
        let plain = parse(b"1 0 0:2 / / rw - rootfs rootfs rw").unwrap();
        assert!(!plain.shared && !plain.slave);
        assert_eq!(unescape(br"a\134b\9"), br"a\b\9");
        assert!(parse(b"nonsense").is_none());
    }

    #[test]
    fn a_mount_belongs_to_another_by_its_parents() {
        let mount = |id, parent| Mount {
            id,
            parent,
            point: Vec::new(),
            shared: false,
            slave: false,
        };
        let mounts = [
            mount(1, 1),
            mount(2, 1),
            mount(3, 2),
            mount(4, 1),
            mount(5, 6),
            mount(6, 5),
        ];
        assert!(belongs(&mounts, &mounts[2], 2, &[]));
        assert!(belongs(&mounts, &mounts[1], 2, &[2]));
        assert!(!belongs(&mounts, &mounts[2], 1, &[2]));
        assert!(!belongs(&mounts, &mounts[3], 2, &[]));
        assert!(!belongs(&mounts, &mounts[4], 2, &[]));
    }
}
