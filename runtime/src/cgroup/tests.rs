use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use shim_protocol::worker::CgroupWrite;

use super::*;
use crate::host::{CgroupFacts, HostFacts};

/// The cgroup that a test works in; everything in it goes at the end, also of a failed test.
struct Place {
    facts: CgroupFacts,
    path: String,
    made: Vec<PathBuf>,
}

impl Place {
    /// `None`, with a reason printed, where no cgroups can be made.
    fn new(name: &str) -> Option<Self> {
        Self::with(HostFacts::probe().unwrap().cgroup, name)
    }

    /// On the v2 hierarchy, also where that is only the one beside v1.
    fn unified(name: &str) -> Option<Self> {
        let facts = match HostFacts::probe().unwrap().cgroup {
            CgroupFacts::V1 {
                unified: Some((root, controllers)),
                ..
            } => CgroupFacts::V2 {
                root,
                controllers,
                swap: true,
            },
            CgroupFacts::V1 { unified: None, .. } => {
                println!("skipped: no v2 hierarchy is mounted");
                return None;
            }
            v2 => v2,
        };
        Self::with(facts, name)
    }

    fn with(facts: CgroupFacts, name: &str) -> Option<Self> {
        let path = format!("/berth-test-{}-{name}/inner", std::process::id());
        match make_parents(&facts, &path) {
            Ok(made) => Some(Self { facts, path, made }),
            Err(error) => {
                println!("skipped: {error}: {:?}", std::error::Error::source(&error));
                None
            }
        }
    }

    fn dirs(&self) -> Vec<String> {
        let mounts = self.facts.controller_mounts();
        mounts
            .iter()
            .map(|mount| format!("{}{}", mount.display(), self.path))
            .collect()
    }

    fn sleeper(&self, script: &str) -> Child {
        // It waits for a line before it begins: a child forked before the move would stay outside.
        let mut child = Command::new("sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let dirs: Vec<PathBuf> = self.dirs().iter().map(PathBuf::from).collect();
        join(&dirs, i32::try_from(child.id()).unwrap()).unwrap();
        child.stdin.take().unwrap().write_all(b"go\n").unwrap();
        child
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = kill(&self.dirs());
        let _ = remove(&self.dirs());
        remove_parents(&self.made);
    }
}

fn kill_a_tree(place: &Place) {
    let mut children: Vec<Child> = (0..3)
        .map(|_| place.sleeper("sleep 100 & sleep 100 & wait"))
        .collect();
    std::thread::sleep(Duration::from_millis(100));
    assert!(processes(&place.dirs()).unwrap().len() >= 9);
    // A container with a writable cgroup makes children of it.
    let nested = format!("{}/a/b", place.dirs()[0]);
    std::fs::create_dir_all(&nested).unwrap();
    let moved = place.sleeper("sleep 100");
    if !nested.contains("cpuset") {
        join(&[nested.clone().into()], i32::try_from(moved.id()).unwrap()).unwrap();
    }
    children.push(moved);
    kill(&place.dirs()).unwrap();
    children.iter_mut().for_each(|child| drop(child.wait()));
    assert_eq!(processes(&place.dirs()).unwrap(), Vec::<i32>::new());
    remove(&place.dirs()).unwrap();
    assert!(
        place
            .dirs()
            .iter()
            .all(|dir| !std::path::Path::new(dir).exists())
    );
    kill(&place.dirs()).unwrap();
    remove(&place.dirs()).unwrap();
}

#[test]
fn everything_in_a_cgroup_dies_and_it_goes() {
    if let Some(place) = Place::new("kill") {
        kill_a_tree(&place);
    }
}

#[test]
fn everything_in_a_v2_cgroup_dies_and_it_goes() {
    if let Some(place) = Place::unified("kill2") {
        kill_a_tree(&place);
    }
}

#[test]
fn a_process_that_forks_all_the_time_dies_too() {
    for place in [Place::new("fork"), Place::unified("fork2")]
        .into_iter()
        .flatten()
    {
        let mut child = place.sleeper("while :; do (sleep 0.01; :) & done");
        std::thread::sleep(Duration::from_millis(200));
        kill(&place.dirs()).unwrap();
        drop(child.wait());
        assert_eq!(processes(&place.dirs()).unwrap(), Vec::<i32>::new());
    }
}

#[test]
fn parents_are_made_once_and_removed_when_empty() {
    let Some(place) = Place::new("parents") else {
        return;
    };
    assert_eq!(place.made.len(), 2 * place.facts.controller_mounts().len());
    assert_eq!(
        make_parents(&place.facts, &place.path).unwrap(),
        Vec::<PathBuf>::new()
    );
    if let Some(cpuset) = cpuset(&place.facts, &place.path).unwrap() {
        assert!(!cpuset.cpus.is_empty() && !cpuset.mems.is_empty());
    }
    let mut child = place.sleeper("sleep 100");
    remove_parents(&place.made);
    assert!(
        std::path::Path::new(&place.dirs()[0]).exists(),
        "a used one stays"
    );
    kill(&place.dirs()).unwrap();
    drop(child.wait());
    std::thread::sleep(Duration::from_millis(50));
    remove_parents(&place.made);
    assert!(
        !place.made.iter().any(|dir| dir.exists()),
        "{:?}",
        place.made
    );
}

#[test]
fn a_refused_value_puts_the_old_ones_back() {
    let Some(place) = Place::new("writes") else {
        return;
    };
    let Some(memory) = place.facts.mount_of("memory") else {
        return;
    };
    let file = if place.facts.is_v2() {
        "memory.max"
    } else {
        "memory.limit_in_bytes"
    };
    let limit = format!("{}{}/{file}", memory.display(), place.path);
    let write = |file: &str, value: &str, optional| CgroupWrite {
        file: file.into(),
        value: value.into(),
        optional,
    };
    let read = || std::fs::read_to_string(&limit).unwrap().trim().to_owned();
    apply_writes(&[
        write(&limit, "67108864", false),
        write("/no/such/file", "0", true),
    ])
    .unwrap();
    assert_eq!(read(), "67108864");
    let error = apply_writes(&[
        write(&limit, "134217728", false),
        write(&limit, "nonsense", false),
    ])
    .unwrap_err();
    assert!(
        matches!(error, Error::Write { restored: true, .. }),
        "{error}"
    );
    use crate::model::{Kind, Kinded as _};
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert_eq!(read(), "67108864");
    assert!(apply_writes(&[write("/no/such/file", "0", false)]).is_err());
}

#[test]
fn memory_in_use_is_counted() {
    let Some(place) = Place::new("counters") else {
        return;
    };
    let mut child = place.sleeper("x=$(head -c 8000000 /dev/zero | tr '\\0' x); sleep 100");
    std::thread::sleep(Duration::from_millis(500));
    assert!(memory_in_use(&place.facts, &place.path).unwrap().unwrap() > 1 << 20);
    kill(&place.dirs()).unwrap();
    drop(child.wait());
    assert_eq!(memory_in_use(&place.facts, "/no/such").unwrap(), None);
}

#[test]
fn the_monitors_cgroup_is_in_every_hierarchy() {
    let facts = HostFacts::probe().unwrap().cgroup;
    let name = format!("berth-test-{}-shims", std::process::id());
    let dirs = match ensure_shims(&facts, &name) {
        Ok(dirs) => dirs,
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    assert_eq!(dirs.len(), facts.all_mounts().len());
    std::fs::remove_dir(&dirs[0]).unwrap();
    assert_eq!(ensure_shims(&facts, &name).unwrap(), dirs);
    let mut child = Command::new("sleep").arg("100").spawn().unwrap();
    join(&dirs, i32::try_from(child.id()).unwrap()).unwrap();
    let dirs: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    kill(&dirs).unwrap();
    drop(child.wait());
    remove(&dirs).unwrap();
}

#[test]
fn roots_and_other_directories_are_left_alone() {
    let facts = HostFacts::probe().unwrap().cgroup;
    let root = facts.controller_mounts()[0].display().to_string();
    let dir = tempfile::tempdir().unwrap();
    for path in [
        root,
        dir.path().display().to_string(),
        "/".to_owned(),
        "/proc".to_owned(),
    ] {
        assert!(
            matches!(kill(std::slice::from_ref(&path)), Err(Error::NotInner(_))),
            "{path}"
        );
        assert!(
            matches!(remove(std::slice::from_ref(&path)), Err(Error::NotInner(_))),
            "{path}"
        );
    }
    assert!(dir.path().exists());
}

#[test]
fn a_parent_that_names_a_file_is_refused_and_counts_as_gone() {
    let Some(place) = Place::new("file") else {
        return;
    };
    for name in ["cgroup.procs", "cgroup.procs/pod1"] {
        let path = format!("{}/{name}", place.path);
        let refused = make_parents(&place.facts, &path).unwrap_err();
        assert!(matches!(refused, Error::NotACgroup(_)), "{refused}");
        assert_eq!(refused.kind(), Kind::InvalidArgument);
        let leaves: Vec<String> = place
            .dirs()
            .iter()
            .map(|dir| format!("{dir}/{name}"))
            .collect();
        let below: Vec<String> = leaves.iter().map(|leaf| format!("{leaf}/abc")).collect();
        for leaves in [leaves, below] {
            kill(&leaves).unwrap();
            assert!(processes(&leaves).unwrap().is_empty());
            remove(&leaves).unwrap();
            remove_parents(&leaves.iter().map(PathBuf::from).collect::<Vec<_>>());
        }
        assert_eq!(memory_in_use(&place.facts, &path).unwrap(), None);
        let mut reader = UsageReader::new(&place.facts);
        assert_eq!(reader.processes(&path).unwrap(), None);
    }
    for dir in place.dirs() {
        assert!(std::path::Path::new(&dir).join("cgroup.procs").exists());
    }
}
