//! A pod's namespaces: made here, pinned as files.

use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::UnmountFlags;
use shim_protocol::worker::{Pod, Sysctl};

use crate::error::{Context, Error, Result};
use crate::sys;

/// `NSFS_MAGIC` (include/uapi/linux/magic.h).
const NSFS: u64 = 0x6e73_6673;

/// Makes and pins the namespaces that are asked for. This process is in them afterwards.
pub(crate) fn make(pod: &Pod) -> Result<()> {
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
    for sysctl in &pod.ipc_sysctls {
        write_sysctl(sysctl)?;
    }
    let mut pins = Vec::with_capacity(wanted.len());
    for (path, name, _) in wanted {
        pins.push(Pin::new(Path::new(path), &format!("/proc/self/ns/{name}"))?);
    }
    pins.into_iter().for_each(Pin::keep);
    Ok(())
}

fn check(pod: &Pod) -> Result<()> {
    if !pod.hostname.is_empty() && pod.uts.is_empty() {
        return Err(Error::invalid(
            "a host name for a pod in the host's UTS namespace",
        ));
    }
    if !pod.ipc_sysctls.is_empty() && pod.ipc.is_empty() {
        return Err(Error::invalid(
            "IPC sysctls for a pod in the host's IPC namespace",
        ));
    }
    pod.ipc_sysctls
        .iter()
        .try_for_each(|s| sysctl_file(&s.name).map(drop))
}

/// The file of an IPC sysctl. Only names that the kernel keeps for each IPC namespace.
fn sysctl_file(name: &str) -> Result<String> {
    let refused = || Error::invalid(format!("sysctl {name:?} is not of an IPC namespace"));
    let plain =
        |rest: &str| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let known = match name.split_once('.').ok_or_else(refused)? {
        ("kernel", key) => {
            key == "sem" || ((key.starts_with("shm") || key.starts_with("msg")) && plain(key))
        }
        ("fs", key) => key.strip_prefix("mqueue.").is_some_and(plain),
        _ => false,
    };
    if known {
        Ok(format!("/proc/sys/{}", name.replace('.', "/")))
    } else {
        Err(refused())
    }
}

fn write_sysctl(sysctl: &Sysctl) -> Result<()> {
    let what = || format!("set sysctl {} to {:?}", sysctl.name, sysctl.value);
    let file = rustix::fs::open(
        sysctl_file(&sysctl.name)?,
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(what)?;
    let written = rustix::io::write(file, sysctl.value.as_bytes()).context(what)?;
    // The kernel stops at what it does not understand; "1 2" must not pass for "1".
    if written == sysctl.value.len() {
        Ok(())
    } else {
        Err(Error::invalid(format!("{}: malformed", what())))
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
    fn only_ipc_sysctls_have_a_file() {
        for (name, file) in [
            ("kernel.shm_rmid_forced", "/proc/sys/kernel/shm_rmid_forced"),
            ("kernel.msgmax", "/proc/sys/kernel/msgmax"),
            ("kernel.sem", "/proc/sys/kernel/sem"),
            ("fs.mqueue.msg_max", "/proc/sys/fs/mqueue/msg_max"),
        ] {
            assert_eq!(sysctl_file(name).unwrap(), file);
        }
        for name in [
            "kernel.core_pattern",
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
        let sysctl = Sysctl {
            name: "kernel.shmmax".into(),
            value: "1".into(),
        };
        assert!(
            make(&Pod {
                ipc_sysctls: vec![sysctl],
                ..Pod::default()
            })
            .is_err()
        );
    }
}
