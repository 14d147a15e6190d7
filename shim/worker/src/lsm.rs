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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsFd;
    use std::path::{Path, PathBuf};

    /// A stand-in for procfs with these files.
    fn proc(name: &str, files: &[&str]) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("berth-lsm-{name}-{}", std::process::id()));
        for file in files {
            let file = dir.join("thread-self/attr").join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        dir
    }

    fn apply(dir: &Path, label: &Label) -> Result<()> {
        label.apply(fs::File::open(dir).unwrap().as_fd())
    }

    #[test]
    fn the_file_that_is_apparmors_alone_comes_first() {
        let label = Label::new("a b", "").unwrap();
        for (name, files, written) in [
            ("new", &["apparmor/exec", "exec"][..], "apparmor/exec"),
            ("old", &["exec"][..], "exec"),
        ] {
            let dir = proc(name, files);
            apply(&dir, &label).unwrap();
            for file in files {
                let text = fs::read_to_string(dir.join("thread-self/attr").join(file)).unwrap();
                let expected = if *file == written { "exec a b" } else { "" };
                assert_eq!(text, expected, "{file}");
            }
            fs::remove_dir_all(dir).unwrap();
        }
    }

    #[test]
    fn a_profile_that_cannot_be_set_is_named_and_none_is_nothing() {
        let dir = proc("none", &["current"]);
        let error = apply(&dir, &Label::new("missing", "").unwrap()).unwrap_err();
        assert!(error.to_string().contains("exec missing"), "{error}");
        apply(&dir, &Label::new("", "").unwrap()).unwrap();
        fs::remove_dir_all(dir).unwrap();
        assert!(Label::new("a\nb", "").is_err());
    }
}
