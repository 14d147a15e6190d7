//! What the kernel says about mounts, and the propagation of a container's.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{Mode, OFlags};
use shim_protocol::worker;

use crate::error::{Context, Error, Result};
use crate::{path, sys};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Propagation {
    Private,
    Slave,
    Shared,
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

/// Sets the propagation of every mount of the container that this process is in: as wanted for those
/// named and what is mounted below them, private for all others. `proc` is the host's procfs.
pub(crate) fn propagate(proc: BorrowedFd<'_>, wanted: &[worker::Propagation]) -> Result<()> {
    let mounts = mounts(proc)?;
    let root = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(|| "open the container's root".to_owned())?;
    let mut plan = vec![Propagation::Private; mounts.len()];
    let mut wanted: Vec<&worker::Propagation> = wanted.iter().collect();
    // A mount inside another one has the last word about itself.
    wanted.sort_by_key(|w| w.path.len());
    for want in wanted {
        mark(root.as_fd(), &mounts, &mut plan, want)?;
    }
    for (mount, propagation) in mounts.iter().zip(plan) {
        set(root.as_fd(), mount, propagation)?;
    }
    Ok(())
}

fn mark(
    root: BorrowedFd<'_>,
    mounts: &[Mount],
    plan: &mut [Propagation],
    want: &worker::Propagation,
) -> Result<()> {
    let propagation = match want.mode {
        0 => Propagation::Private,
        1 => Propagation::Slave,
        2 => Propagation::Shared,
        other => return Err(Error::invalid(format!("propagation mode {other}"))),
    };
    let id = path::open(root, want.path.as_bytes())
        .and_then(path::mount_id)
        .context(|| format!("open mount point {}", want.path))?;
    let top = mounts
        .iter()
        .find(|m| m.id == id)
        .filter(|m| m.point != b"/")
        .ok_or_else(|| {
            Error::invalid(format!(
                "{} is not a mount point of the container",
                want.path
            ))
        })?;
    let possible = match propagation {
        Propagation::Private => true,
        Propagation::Slave => top.shared || top.slave,
        Propagation::Shared => top.shared,
    };
    if !possible {
        return Err(Error::invalid(format!(
            "the volume at {} cannot propagate mounts: its source is not on a shared mount of the host",
            want.path
        )));
    }
    for (mount, slot) in mounts.iter().zip(plan) {
        if below(mounts, mount, id) {
            *slot = propagation;
        }
    }
    Ok(())
}

/// Whether a mount is `top` or mounted on it, at whatever depth.
fn below(mounts: &[Mount], mount: &Mount, top: u64) -> bool {
    let mut at = mount;
    // The list bounds the walk, whatever it says.
    for _ in 0..mounts.len() {
        if at.id == top {
            return true;
        }
        match mounts.iter().find(|m| m.id == at.parent && m.id != at.id) {
            Some(parent) => at = parent,
            None => return false,
        }
    }
    false
}

fn set(root: BorrowedFd<'_>, mount: &Mount, propagation: Propagation) -> Result<()> {
    let (is, flag) = match propagation {
        Propagation::Private => (!mount.shared && !mount.slave, libc::MS_PRIVATE),
        Propagation::Slave => (!mount.shared && mount.slave, libc::MS_SLAVE),
        Propagation::Shared => (mount.shared, libc::MS_SHARED),
    };
    if is {
        return Ok(());
    }
    let shown = || {
        format!(
            "set the propagation of {}",
            String::from_utf8_lossy(&mount.point)
        )
    };
    let fd = path::open_plain(root, &mount.point).context(shown)?;
    // Another mount lies on top of it: nobody can get at this one any more.
    if path::mount_id(&fd).context(shown)? != mount.id {
        return Ok(());
    }
    sys::set_propagation(fd.as_fd(), flag).context(shown)
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
    fn below_follows_parents_and_ends() {
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
        assert!(below(&mounts, &mounts[2], 2));
        assert!(!below(&mounts, &mounts[3], 2));
        assert!(!below(&mounts, &mounts[4], 2));
    }
}
