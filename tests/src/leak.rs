//! What an instance of a runtime holds on this machine, as sorted lines, so that "before" and "after" can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;

/// Where to look, and by which names.
#[derive(Clone, Debug)]
pub struct Scope {
    /// words that mark what belongs to the instance (its name, its folder)
    pub marks: Vec<String>,
    /// folders whose files are listed
    pub folders: Vec<PathBuf>,
    /// names below those folders that images live in: they stay
    pub image_names: Vec<&'static str>,
    /// the daemon; it is no process left behind
    pub daemon: Option<u32>,
    /// whether the daemon's open files are counted
    pub open_files: bool,
}

/// One look at the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    lines: BTreeSet<String>,
    open_files: BTreeMap<String, usize>,
}

/// Connections to a registry and of a client that is about to close stay open for a while.
const SOCKETS_THAT_STAY: usize = 6;

impl Snapshot {
    /// Looks.
    #[must_use]
    pub fn take(scope: &Scope) -> Self {
        let mut snapshot = Self::default();
        let marks: Vec<&str> = scope.marks.iter().map(String::as_str).collect();
        // The daemon itself may be another one than before: a test restarted it.
        for one in process::marked(&marks)
            .iter()
            .filter(|one| Some(one.pid) != scope.daemon)
            // Orphans that have ended are left by nobody: when they are reaped is the business of pid 1.
            .filter(|one| one.parent != 1 || process::alive(one.pid))
        {
            snapshot.add(
                "process",
                &format!("{} {} ({})", one.pid, one.name, one.command),
            );
        }
        snapshot.mounts(&marks);
        snapshot.cgroups(&marks);
        snapshot.links(&marks);
        snapshot.rules(&marks);
        for folder in &scope.folders {
            snapshot.files(folder, folder, &scope.image_names);
        }
        if let Some(pid) = scope.daemon.filter(|_| scope.open_files) {
            snapshot.open_files = process::open_files(pid);
        }
        snapshot
    }

    fn add(&mut self, kind: &str, what: &str) {
        self.lines.insert(format!("{kind}: {what}"));
    }

    /// Takes a file as one that was there, and that the daemon had open.
    pub fn know(&mut self, file: &Path) {
        let name = file.display().to_string();
        self.add("file", &name);
        self.open_files.entry(name).or_insert(1);
    }

    fn mounts(&mut self, marks: &[&str]) {
        for line in fs::read_to_string("/proc/self/mountinfo")
            .unwrap_or_default()
            .lines()
        {
            if !marks.iter().any(|mark| line.contains(mark)) {
                continue;
            }
            let mut fields = line.split_whitespace().skip(4);
            let target = fields.next().unwrap_or_default();
            let kind = line.split(" - ").nth(1).unwrap_or_default();
            self.add("mount", &format!("{target} ({kind})"));
        }
    }

    fn cgroups(&mut self, marks: &[&str]) {
        let root = Path::new("/sys/fs/cgroup");
        let mut stack = vec![root.to_path_buf()];
        while let Some(folder) = stack.pop() {
            let Ok(entries) = fs::read_dir(&folder) else {
                continue;
            };
            for entry in entries.flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let path = entry.path();
                let text = path.display().to_string();
                // systemd keeps the slices that somebody has named; the kubelet removes its own.
                let slice = text.ends_with("pods.slice");
                if !slice && marks.iter().any(|mark| text.contains(mark)) {
                    self.add("cgroup", &text);
                }
                stack.push(path);
            }
        }
    }

    fn links(&mut self, marks: &[&str]) {
        let Ok(output) = Command::new("ip").args(["-o", "link", "show"]).output() else {
            return;
        };
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            if marks.iter().any(|mark| line.contains(mark)) {
                // "7: name@if2: <FLAGS> mtu 1500 ... master bridge ...": the flags change on their own.
                let name = line.split(": ").nth(1).unwrap_or(line);
                self.add("network link", name.split('@').next().unwrap_or(name));
            }
        }
    }

    fn rules(&mut self, marks: &[&str]) {
        let Ok(output) = Command::new("nft").args(["list", "ruleset"]).output() else {
            return;
        };
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            if marks.iter().any(|mark| line.contains(mark)) {
                self.add("nftables rule", line.trim());
            }
        }
    }

    fn files(&mut self, top: &Path, folder: &Path, skip: &[&str]) {
        let Ok(entries) = fs::read_dir(folder) else {
            return;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let relative = path.strip_prefix(top).unwrap_or(&path);
            let first = relative
                .components()
                .next()
                .map(|part| part.as_os_str().to_owned());
            let name = first.unwrap_or_default().to_string_lossy().into_owned();
            let whole = relative.to_string_lossy();
            if skip
                .iter()
                .any(|skipped| name.contains(skipped) || whole == *skipped)
            {
                continue;
            }
            self.add("file", &path.display().to_string());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.files(top, &path, skip);
            }
        }
    }

    /// What is in `self` and was not in `before`, one line each; empty when nothing is left behind.
    #[must_use]
    pub fn beyond(&self, before: &Self) -> String {
        let mut text = String::new();
        for line in self.lines.difference(&before.lines) {
            let _ = writeln!(text, "  left behind: {line}");
        }
        for (kind, count) in &self.open_files {
            let known = before.open_files.get(kind).copied().unwrap_or(0);
            let allowed = if kind == "socket" {
                known + SOCKETS_THAT_STAY
            } else {
                known
            };
            if *count > allowed {
                let _ = writeln!(
                    text,
                    "  left behind: {count} open files of the daemon are {kind}; {known} before"
                );
            }
        }
        text
    }

    /// Whether nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}
