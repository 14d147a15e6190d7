//! What a machine has, and what the CNI plugins leave on it by design (empty nftables tables), taken away again
//! when this run made it.

use std::collections::BTreeSet;
use std::future::Future;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
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

const PLUGIN_TABLES: [&str; 2] = ["inet cni_plugins_masquerade", "ip cni_hostport"];

/// systemd is PID 1, and cgroup v2 is alone.
#[must_use]
pub fn has_systemd() -> bool {
    Path::new("/run/systemd/system").exists()
        && Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
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
