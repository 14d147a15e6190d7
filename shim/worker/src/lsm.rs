//! Labels that AppArmor or SELinux apply at the next execve.

use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Context, Error, Result};

/// What to write below `/proc/thread-self/attr`.
#[derive(Debug)]
pub(crate) struct Label {
    apparmor: Option<String>,
    selinux: Option<String>,
}

impl Label {
    /// Checks the names; an empty one is none.
    pub(crate) fn new(apparmor: &str, selinux: &str) -> Result<Self> {
        for name in [apparmor, selinux] {
            if name.contains(['\0', '\n']) {
                return Err(Error::invalid(format!(
                    "security label {name:?} is malformed"
                )));
            }
        }
        Ok(Self {
            apparmor: (!apparmor.is_empty()).then(|| format!("exec {apparmor}")),
            selinux: (!selinux.is_empty()).then(|| selinux.to_owned()),
        })
    }

    /// Sets the labels for the coming execve. `proc` is the host's procfs: the container's may be
    /// masked or faked.
    pub(crate) fn apply(&self, proc: BorrowedFd<'_>) -> Result<()> {
        if let Some(command) = &self.apparmor {
            // The first file belongs to AppArmor alone (Linux 5.8), the second to whoever comes first.
            write(
                proc,
                &["thread-self/attr/apparmor/exec", "thread-self/attr/exec"],
                command,
            )
            .context(|| format!("set AppArmor profile ({command}); is it loaded?"))?;
        }
        if let Some(label) = &self.selinux {
            write(proc, &["thread-self/attr/exec"], label)
                .context(|| format!("set SELinux label {label:?}"))?;
        }
        Ok(())
    }
}

fn write(proc: BorrowedFd<'_>, files: &[&str], value: &str) -> std::result::Result<(), Errno> {
    let mut result = Err(Errno::NOENT);
    for file in files {
        result = rustix::fs::openat(proc, *file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        if !matches!(result, Err(Errno::NOENT)) {
            break;
        }
    }
    rustix::io::write(result?, value.as_bytes()).map(drop)
}
