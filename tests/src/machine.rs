//! What a machine has, and what the CNI plugins leave on it by design (empty nftables tables), taken away again
//! when this run made it.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use tokio::signal::unix::{SignalKind, signal};

/// Why AppArmor profiles cannot be applied on this machine; `None`: they can.
#[must_use]
pub fn lacks_apparmor() -> Option<&'static str> {
    let enabled = std::fs::read("/sys/module/apparmor/parameters/enabled");
    if !enabled.is_ok_and(|text| text.first() == Some(&b'Y')) {
        return Some("AppArmor is not enabled on this machine");
    }
    if !Path::new("/sys/kernel/security/apparmor/profiles").exists() {
        return Some("securityfs is not mounted on this machine");
    }
    let parsers = ["/sbin/apparmor_parser", "/usr/sbin/apparmor_parser"];
    if !parsers.iter().any(|path| Path::new(path).exists()) {
        return Some("apparmor_parser is not installed on this machine");
    }
    None
}

/// The opposite: for what must be refused without AppArmor.
#[must_use]
pub fn has_apparmor() -> Option<&'static str> {
    let enabled = Path::new("/sys/kernel/security/apparmor/profiles").exists();
    enabled.then_some("this machine has AppArmor")
}

/// Why a file cannot be made a disk on this machine; `None`: it can.
#[must_use]
pub fn lacks_loop_disks() -> Option<&'static str> {
    if !Path::new("/dev/loop-control").exists() {
        return Some("this machine has no loop devices");
    }
    let made = Command::new("mkfs.ext4").arg("-V").output();
    made.is_err()
        .then_some("mkfs.ext4 is not installed on this machine")
}

/// An ext4 file system in a file, which becomes read-only at an error.
#[derive(Debug)]
pub struct Disk {
    file: PathBuf,
}

/// A place where something is mounted, which is unmounted when this is dropped.
#[derive(Debug)]
pub struct Mounted(pub PathBuf);

impl Disk {
    /// Makes one of so many bytes, which take room only when they are written.
    ///
    /// # Errors
    /// What `mkfs.ext4` said.
    pub fn make(file: &Path, bytes: u64) -> Result<Self> {
        std::fs::File::create(file)?.set_len(bytes)?;
        run(Command::new("mkfs.ext4").arg("-q").arg(file))?;
        Ok(Self {
            file: file.to_owned(),
        })
    }

    /// Mounts it, as a disk that was taken out and put in again.
    ///
    /// # Errors
    /// What `mount` said, or the last mount of it does not go.
    pub fn mount(&self, place: &Path) -> Result<Mounted> {
        // `mount` would take the same loop device, with the state of the file system: whoever copied the mount namespace of
        // this machine in between holds it for a moment.
        let begun = Instant::now();
        while self.is_held() {
            ensure!(
                begun.elapsed() < Duration::from_secs(10),
                "{} is still mounted somewhere",
                self.file.display()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        let options = ["-o", "loop,errors=remount-ro"];
        run(Command::new("mount")
            .args(options)
            .arg(&self.file)
            .arg(place))?;
        Ok(Mounted(place.to_owned()))
    }

    /// A loop device stands for the file.
    fn is_held(&self) -> bool {
        let devices = std::fs::read_dir("/sys/block").into_iter().flatten();
        let files = devices.flatten().filter_map(|device| {
            std::fs::read_to_string(device.path().join("loop/backing_file")).ok()
        });
        let held = self.file.display().to_string();
        files.into_iter().any(|file| file.trim_end() == held)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Runs a program to its end.
///
/// # Errors
/// It cannot be started, or failed: with what it said.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

const PLUGIN_TABLES: [&str; 2] = ["inet cni_plugins_masquerade", "ip cni_hostport"];

/// systemd is PID 1, and cgroup v2 is alone.
#[must_use]
pub fn has_systemd() -> bool {
    Path::new("/run/systemd/system").exists()
        && Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// How many times as long as elsewhere something may take here. A processor that QEMU emulates is fifteen to twenty-five
/// times slower than the one below it, and `make test-vm` has two machines share it: twice the time is no gift.
#[must_use]
pub fn slowness() -> u32 {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if cpu.contains("QEMU TCG CPU") { 2 } else { 1 }
}

/// The nftables tables of the machine, as `family name`.
#[must_use]
pub fn tables() -> BTreeSet<String> {
    let Ok(output) = Command::new("nft").args(["list", "tables"]).output() else {
        return BTreeSet::new();
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.trim().strip_prefix("table "))
        .map(str::to_owned)
        .collect()
}

/// Deletes the plugins' tables unless they were there before.
pub fn forget_plugin_tables(before: &BTreeSet<String>) {
    for table in PLUGIN_TABLES
        .iter()
        .filter(|table| !before.contains(**table))
    {
        let words = table.split(' ');
        let _ = Command::new("nft")
            .args(["delete", "table"])
            .args(words)
            .output();
    }
}

/// Deletes what the plugins keep of a network whose pods are gone: rules that carry its name, cached results.
pub fn forget_network(name: &str) {
    for table in PLUGIN_TABLES {
        let words: Vec<&str> = table.split(' ').collect();
        let list = Command::new("nft")
            .args(["-a", "list", "table"])
            .args(&words)
            .output();
        let Ok(list) = list else { continue };
        let mut chain = String::new();
        for line in String::from_utf8_lossy(&list.stdout).lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("chain ") {
                chain = rest.split(' ').next().unwrap_or_default().to_owned();
            }
            let handle = line.rsplit_once("# handle ").map(|(_, handle)| handle);
            if let Some(handle) = handle.filter(|_| line.contains(name)) {
                let delete = Command::new("nft")
                    .args(["delete", "rule"])
                    .args(&words)
                    .arg(&chain)
                    .args(["handle", handle])
                    .output();
                drop(delete);
            }
        }
    }
    for entry in std::fs::read_dir("/var/lib/cni/results")
        .into_iter()
        .flatten()
        .flatten()
    {
        if entry.file_name().to_string_lossy().starts_with(name) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Does the work, or gives it up when this program is told to end, so that the caller still cleans up.
///
/// # Errors
/// Those of the work, or that it was interrupted.
pub async fn unless_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    tokio::select! {
        outcome = work => outcome,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("told to end"),
    }
}
