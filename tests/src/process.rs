//! Reads /proc: who runs, whose it is, and how much memory it costs.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// A process as a test sees it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// process id
    pub pid: u32,
    /// parent's process id
    pub parent: u32,
    /// `comm`
    pub name: String,
    /// command line, words joined by spaces
    pub command: String,
}

fn read(pid: u32, file: &str) -> Option<Vec<u8>> {
    fs::read(format!("/proc/{pid}/{file}")).ok()
}

fn text(pid: u32, file: &str) -> String {
    read(pid, file).map_or_else(String::new, |bytes| {
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The fields of `stat` after the name: state, parent, ...
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = text(pid, "stat");
    let (_, rest) = text.rsplit_once(") ")?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

/// Reads one process; `None` when it is gone.
#[must_use]
pub fn process(pid: u32) -> Option<Process> {
    let parent = stat(pid)?.get(1)?.parse().ok()?;
    let command = text(pid, "cmdline").replace('\0', " ").trim().to_owned();
    Some(Process {
        pid,
        parent,
        name: text(pid, "comm").trim().to_owned(),
        command,
    })
}

/// Every process of the machine.
#[must_use]
pub fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(process)
        .collect()
}

/// Every process that belongs to an instance: its environment or command line carries the mark, it sits in a cgroup
/// of that name, or it descends from one that does.
#[must_use]
pub fn marked(marks: &[&str]) -> Vec<Process> {
    let own = std::process::id();
    let everybody = all();
    let mut ours: BTreeMap<u32, Process> = BTreeMap::new();
    for process in everybody.iter().filter(|process| process.pid != own) {
        let belongs = |file| {
            let text = text(process.pid, file);
            marks.iter().any(|mark| text.contains(mark))
        };
        if belongs("cmdline") || belongs("cgroup") || belongs("environ") {
            ours.insert(process.pid, process.clone());
        }
    }
    loop {
        let more: Vec<Process> = everybody
            .iter()
            .filter(|one| ours.contains_key(&one.parent) && !ours.contains_key(&one.pid))
            .cloned()
            .collect();
        if more.is_empty() {
            return ours.into_values().collect();
        }
        ours.extend(more.into_iter().map(|one| (one.pid, one)));
    }
}

/// Whether the process is there and no zombie.
#[must_use]
pub fn alive(pid: u32) -> bool {
    stat(pid)
        .and_then(|fields| fields.first().map(|state| state != "Z"))
        .unwrap_or(false)
}

/// Waits up to ten seconds until the process is gone, or is a zombie.
///
/// # Errors
/// When it is still there.
pub async fn gone(pid: u32) -> Result<()> {
    let begun = Instant::now();
    while alive(pid) {
        ensure!(
            begun.elapsed() < Duration::from_secs(10),
            "the process {pid} is still there"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Proportional set size in KiB; 0 when the process is gone.
#[must_use]
pub fn pss_kib(pid: u32) -> u64 {
    text(pid, "smaps_rollup")
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

/// The most memory that a process had since `clear_refs` was told 5, or since it began.
#[must_use]
pub fn peak_rss_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// CPU time of the process alone, in clock ticks of 10 ms: a container that its monitor has reaped is not the monitor's.
#[must_use]
pub fn cpu_ticks(pid: u32) -> u64 {
    let Some(fields) = stat(pid) else { return 0 };
    (11..13)
        .filter_map(|index| fields.get(index)?.parse::<u64>().ok())
        .sum()
}

/// Busy CPU time of the whole machine, in clock ticks of 10 ms.
#[must_use]
pub fn machine_ticks() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|number| number.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal
    [0, 1, 2, 5, 6]
        .iter()
        .filter_map(|index| fields.get(*index))
        .sum()
}

/// The open files of a process, grouped by what they are; numbers that differ from run to run are left out.
#[must_use]
pub fn open_files(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return kinds;
    };
    for entry in entries.flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_else(|_| PathBuf::from("gone"));
        let target = target.display().to_string();
        let kind = target
            .split_once(":[")
            .map_or(target.as_str(), |(kind, _)| kind)
            .to_owned();
        *kinds.entry(kind).or_insert(0) += 1;
    }
    kinds
}

/// The path of a process's cgroup in a v1 controller, or in the unified hierarchy when the name is empty.
#[must_use]
pub fn cgroup_of(pid: u32, controller: &str) -> Option<String> {
    text(pid, "cgroup").lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = parts.next()?;
        let path = parts.next()?;
        controllers
            .split(',')
            .any(|name| name == controller)
            .then(|| path.to_owned())
    })
}
