//! What SELinux does on this machine.

use std::path::{Path, PathBuf};

use super::mounts::MountEntry;

/// What SELinux does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelinuxMode {
    /// The kernel does not have it, it is not enabled, or it has no policy.
    Off,
    /// It logs what it would refuse.
    Permissive,
    /// It refuses.
    Enforcing,
}

/// Where the kernel tells what SELinux does: an operator changes it at any time (setenforce(8)).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selinux {
    /// The `enforce` file of selinuxfs; none: SELinux is not enabled.
    enforce: Option<PathBuf>,
}

impl Selinux {
    /// Looks below `root`, which is `/` but for tests. SELinux is enabled where its file system is mounted and
    /// a policy is loaded: until then the kernel calls every process `kernel` (selinux(8), `is_selinux_enabled`).
    pub(super) fn find(root: &Path, mounts: &[MountEntry]) -> Self {
        let below = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
        let label = std::fs::read(below(Path::new("/proc/self/attr/current"))).unwrap_or_default();
        let label = label.strip_suffix(b"\0").unwrap_or(&label).trim_ascii();
        let file = |mount: &MountEntry| below(&mount.mount_point).join("enforce");
        let mut files = mounts
            .iter()
            .filter(|mount| mount.fs_type == "selinuxfs")
            .map(file);
        Self {
            enforce: files.find(|file| file.exists() && label != b"kernel"),
        }
    }

    /// SELinux with this file to tell.
    #[cfg(test)]
    pub(crate) fn at(enforce: PathBuf) -> Self {
        Self {
            enforce: Some(enforce),
        }
    }

    /// What it does now. Where it is enabled and does not say, it is taken to refuse.
    pub fn mode(&self) -> SelinuxMode {
        let Some(file) = &self.enforce else {
            return SelinuxMode::Off;
        };
        match std::fs::read(file) {
            Ok(text) if text.trim_ascii() == b"0" => SelinuxMode::Permissive,
            _ => SelinuxMode::Enforcing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse_mountinfo;
    use super::*;

    const MOUNTED: &str = "\
22 28 0:21 / /sys rw shared:7 - sysfs sysfs rw
29 22 0:20 / /sys/fs/selinux rw,relatime shared:8 - selinuxfs selinuxfs rw";

    /// A machine whose SELinux says so, or has no file of that name.
    fn machine(label: &str, enforce: Option<&str>) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("proc/self/attr/current", label);
        if let Some(text) = enforce {
            write("sys/fs/selinux/enforce", text);
        }
        root
    }

    fn mode(root: &Path, mountinfo: &str) -> SelinuxMode {
        Selinux::find(root, &parse_mountinfo(mountinfo)).mode()
    }

    #[test]
    fn the_three_states() {
        let label = "system_u:system_r:container_runtime_t:s0\0";
        for (enforce, want) in [
            (Some("0"), SelinuxMode::Permissive),
            (Some("0\n"), SelinuxMode::Permissive),
            (Some("1"), SelinuxMode::Enforcing),
            (Some("1\n"), SelinuxMode::Enforcing),
            // Enabled, and what it does cannot be told.
            (Some(""), SelinuxMode::Enforcing),
            // A mount point without the file system's files.
            (None, SelinuxMode::Off),
        ] {
            let root = machine(label, enforce);
            assert_eq!(mode(root.path(), MOUNTED), want, "{enforce:?}");
        }
    }

    #[test]
    fn what_is_not_mounted_or_has_no_policy_is_off() {
        let root = machine("unconfined", Some("1"));
        let without = MOUNTED.lines().next().unwrap();
        assert_eq!(mode(root.path(), without), SelinuxMode::Off);
        assert_eq!(mode(root.path(), ""), SelinuxMode::Off);
        for label in ["kernel", "kernel\0", "kernel\n"] {
            let root = machine(label, Some("0"));
            assert_eq!(mode(root.path(), MOUNTED), SelinuxMode::Off, "{label:?}");
        }
    }

    #[test]
    fn it_can_be_changed_at_any_time_and_mounted_anywhere() {
        let root = machine("u:r:t:s0", None);
        let dir = root.path().join("selinux");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("enforce"), "0").unwrap();
        let mounts = MOUNTED.replace("/sys/fs/selinux", "/selinux");
        let selinux = Selinux::find(root.path(), &parse_mountinfo(&mounts));
        assert_eq!(selinux.mode(), SelinuxMode::Permissive);
        std::fs::write(dir.join("enforce"), "1").unwrap();
        assert_eq!(selinux.mode(), SelinuxMode::Enforcing);
    }
}
