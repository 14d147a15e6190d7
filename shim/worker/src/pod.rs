//! A pod's namespaces: made here, pinned as files.

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use shim_protocol::worker::{Pod, Sysctl};

use crate::error::{Context, Error, Result, reason};
use crate::sys;

/// `NSFS_MAGIC` (include/uapi/linux/magic.h).
const NSFS: u64 = 0x6e73_6673;

/// Makes and pins the namespaces that are asked for. This process is in them afterwards.
pub(crate) fn make(pod: &Pod) -> Result<Vec<Pin>> {
    check(pod)?;
    let wanted = [
        (pod.net.as_str(), "net", libc::CLONE_NEWNET),
        (pod.ipc.as_str(), "ipc", libc::CLONE_NEWIPC),
        (pod.uts.as_str(), "uts", libc::CLONE_NEWUTS),
    ];
    let wanted: Vec<_> = wanted
        .into_iter()
        .filter(|(path, _, _)| !path.is_empty())
        .collect();
    let flags = wanted.iter().fold(0, |flags, (_, _, flag)| flags | flag);
    if flags != 0 {
        sys::unshare(flags).context(|| "make the pod's namespaces".to_owned())?;
    }
    if !pod.net.is_empty() {
        sys::loopback_up().context(|| "bring lo up".to_owned())?;
    }
    if !pod.hostname.is_empty() {
        rustix::system::sethostname(pod.hostname.as_bytes())
            .context(|| format!("set host name {:?}", pod.hostname))?;
    }
    for sysctl in &pod.sysctls {
        write_sysctl(sysctl)?;
    }
    let mut pins = Vec::with_capacity(wanted.len());
    for (path, name, _) in wanted {
        pins.push(Pin::new(Path::new(path), &format!("/proc/self/ns/{name}"))?);
    }
    Ok(pins)
}

fn check(pod: &Pod) -> Result<()> {
    if !pod.hostname.is_empty() && pod.uts.is_empty() {
        return Err(Error::invalid(
            "a host name for a pod in the host's UTS namespace",
        ));
    }
    for sysctl in &pod.sysctls {
        let (namespace, _) = sysctl_file(&sysctl.name)?;
        let (own, whose) = match namespace {
            Namespace::Ipc => (&pod.ipc, "IPC"),
            Namespace::Uts => (&pod.uts, "UTS"),
        };
        if own.is_empty() {
            let name = &sysctl.name;
            return Err(Error::invalid(format!(
                "sysctl {name:?} for a pod in the host's {whose} namespace"
            )));
        }
    }
    Ok(())
}

/// Whose a sysctl is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Namespace {
    Ipc,
    Uts,
}

/// The file of a sysctl, and its namespace. Only names that the kernel keeps for each namespace.
fn sysctl_file(name: &str) -> Result<(Namespace, String)> {
    let refused = || Error::invalid(format!("sysctl {name:?} is not of an IPC or UTS namespace"));
    let plain =
        |rest: &str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let namespace = match name.split_once('.').ok_or_else(refused)? {
        ("kernel", "sem") => Namespace::Ipc,
        ("kernel", "domainname") => Namespace::Uts,
        ("kernel", key) if (key.starts_with("shm") || key.starts_with("msg")) && plain(key) => {
            Namespace::Ipc
        }
        ("fs", key) if key.strip_prefix("mqueue.").is_some_and(plain) => Namespace::Ipc,
        _ => return Err(refused()),
    };
    Ok((namespace, format!("/proc/sys/{}", name.replace('.', "/"))))
}

/// Longest domain name, bytes (`__NEW_UTS_LEN`); the kernel cuts a longer one without a word.
const LONGEST_NAME: usize = 64;

fn write_sysctl(sysctl: &Sysctl) -> Result<()> {
    let what = || format!("set sysctl {} to {:?}", sysctl.name, sysctl.value);
    let (namespace, file) = sysctl_file(&sysctl.name)?;
    if namespace == Namespace::Uts && sysctl.value.trim_end().len() > LONGEST_NAME {
        return Err(Error::invalid(format!(
            "{}: it has more than {LONGEST_NAME} bytes",
            what()
        )));
    }
    let written = rustix::fs::open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|file| rustix::io::write(file, sysctl.value.as_bytes()));
    match written {
        // The kernel stops at what it does not understand; "1 2" must not pass for "1".
        Ok(written) if written != sysctl.value.len() => {
            Err(Error::invalid(format!("{}: malformed", what())))
        }
        // No such parameter, none that anybody may change, no value for it.
        Err(error @ (Errno::NOENT | Errno::ACCESS | Errno::INVAL | Errno::RANGE)) => {
            let why = reason(&error.into());
            Err(Error::invalid(format!("{}: {why}", what())))
        }
        other => other.map(drop).context(what),
    }
}

/// A namespace kept alive by a mount; taken away again on drop unless kept.
#[derive(Debug)]
pub(crate) struct Pin {
    path: Option<PathBuf>,
}

impl Pin {
    /// Binds a namespace's file from `/proc` on a path, which is made.
    pub(crate) fn new(path: &Path, namespace: &str) -> Result<Self> {
        let shown = path.display();
        if !path.is_absolute() {
            return Err(Error::invalid(format!(
                "namespace path {shown} is not absolute"
            )));
        }
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o444))
            .context(|| format!("make namespace file {shown}"))?;
        let kind = rustix::fs::fstatfs(&file)
            .context(|| format!("stat {shown}"))?
            .f_type;
        if u64::try_from(kind) == Ok(NSFS) {
            return Err(Error::state(format!(
                "a namespace is pinned at {shown} already"
            )));
        }
        let pin = Self {
            path: Some(path.to_owned()),
        };
        rustix::mount::mount_bind(namespace, path)
            .context(|| format!("pin {namespace} at {shown}"))?;
        Ok(pin)
    }

    /// It stays.
    pub(crate) fn keep(mut self) {
        self.path = None;
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if let Some(path) = self.path.take() {
            let _unmounted = rustix::mount::unmount(&path, UnmountFlags::DETACH);
            let _gone = std::fs::remove_file(&path);
        }
    }
}

/// Where a process's namespace is found in the host's `/proc`.
pub(crate) fn namespace_of(pid: i32, name: &str) -> String {
    format!("/proc/{pid}/ns/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sysctls_of_the_namespaces_have_a_file() {
        for (name, namespace, file) in [
            (
                "kernel.shm_rmid_forced",
                Namespace::Ipc,
                "kernel/shm_rmid_forced",
            ),
            ("kernel.msgmax", Namespace::Ipc, "kernel/msgmax"),
            ("kernel.sem", Namespace::Ipc, "kernel/sem"),
            ("fs.mqueue.msg_max", Namespace::Ipc, "fs/mqueue/msg_max"),
            ("kernel.domainname", Namespace::Uts, "kernel/domainname"),
        ] {
            let path = format!("/proc/sys/{file}");
            assert_eq!(sysctl_file(name).unwrap(), (namespace, path));
        }
        for name in [
            "kernel.core_pattern",
            "kernel.hostname",
            "kernel.domainname.x",
            "kernel.semx",
            "kernel.shm/../core_pattern",
            "kernel.shm..x",
            "net.core.somaxconn",
            "fs.mqueue.",
            "fs.file-max",
            "kernel",
            "kernel.shmmax\n",
            "",
            "kernel/shmmax",
        ] {
            assert!(sysctl_file(name).is_err(), "{name}");
        }
    }

    #[test]
    fn host_namespaces_take_no_settings() {
        let hostname = Pod {
            hostname: "x".into(),
            ..Pod::default()
        };
        assert!(make(&hostname).is_err());
        for name in ["kernel.shmmax", "kernel.domainname"] {
            let sysctl = Sysctl {
                name: name.into(),
                value: "1".into(),
            };
            let pod = Pod {
                sysctls: vec![sysctl],
                ..Pod::default()
            };
            assert!(make(&pod).is_err());
        }
    }
}
