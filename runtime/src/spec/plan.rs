//! Puts the pieces together.

use shim_protocol::monitor::OomSource;
use shim_protocol::worker::{Capabilities, Cgroup, CgroupWrite, Process};

use super::cgroup_path::{below, chain, leaves};
use super::resources::{self, Place};
use super::{
    ContainerInput, ContainerPlan, Error, PauseInput, PausePlan, capabilities, devices, mounts,
    oci, process, users,
};
use crate::host::CgroupFacts;
use crate::model::{Resources, SeccompProfile};

/// `oom_score_adj` of pause: the last to go before the node's own daemons (row X053).
const PAUSE_OOM_SCORE_ADJ: i64 = -998;

/// User and group of pause when the pod names none: nobody's, as in the usual pause images.
const PAUSE_ID: u32 = 65_535;

/// Controllers whose files are read for statistics, or may be written by an update, even where nothing is
/// limited at first.
const WANTED: [&str; 6] = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];

/// What to do to make a container.
///
/// # Errors
/// What the request asks for contradicts itself or cannot be had on this machine.
pub fn container(input: &ContainerInput<'_>) -> Result<ContainerPlan, Error> {
    if input.spec.privileged && !input.pod.spec.privileged {
        return Err(Error::Namespace(
            "a privileged container needs a privileged sandbox, and this one is not",
        ));
    }
    let host = input.facts.capabilities;
    let found = capabilities::sets(&input.spec.capabilities, input.spec.privileged, host)?;
    let (process, oom_score_clamped) = process::first(input, found.sets)?;
    let mounts = mounts::build(input)?;
    let nodes = devices::nodes(input.devices, &mounts)?;
    let oci = oci::config(input, &process, &mounts, nodes)?;
    let cgroup = cgroup(input)?;
    let leaves = cgroup.leaves.clone();
    Ok(ContainerPlan {
        oci,
        process,
        oom: oom_source(input, &cgroup.path),
        kill_cgroup: if input.own_pid_namespace() {
            Vec::new()
        } else {
            leaves.clone()
        },
        leaves,
        cgroup,
        seccomp: if input.spec.privileged {
            SeccompProfile::Unconfined
        } else {
            input.spec.seccomp.clone()
        },
        oom_score_clamped,
        unknown_capabilities: found.unknown,
    })
}

fn cgroup(input: &ContainerInput<'_>) -> Result<Cgroup, Error> {
    let path = input.cgroup_path();
    let facts = &input.facts.cgroup;
    let place = Place { facts, path: &path };
    let mut writes = resources::create(place, &input.spec.resources, input.cpuset)?;
    let enable = enable(place, &input.pod.cgroup_parent, &writes);
    let rules = devices::rules(input.devices, input.spec.privileged);
    let mut cgroup = new_cgroup(facts, &path);
    match facts {
        CgroupFacts::V2 { root, .. } => {
            cgroup.device_dir = below(root, &path);
            cgroup.devices = rules;
        }
        CgroupFacts::V1 { hierarchies, .. } => {
            if let Some(mount) = hierarchies.get("devices") {
                let dir = below(mount, &path);
                writes.extend(rules.iter().map(|rule| {
                    let (file, value) = devices::v1_line(rule);
                    CgroupWrite {
                        file: format!("{dir}/{file}"),
                        value,
                        optional: false,
                    }
                }));
            } else if !input.spec.privileged {
                // Without it every device node would be open to the container.
                return Err(Error::Namespace(
                    "this machine has no devices controller mounted: device access cannot be limited",
                ));
            }
        }
    }
    cgroup.enable = enable;
    cgroup.writes = writes;
    Ok(cgroup)
}

fn new_cgroup(facts: &CgroupFacts, path: &str) -> Cgroup {
    Cgroup {
        path: path.to_owned(),
        dirs: chain(facts, path),
        enable: Vec::new(),
        writes: Vec::new(),
        device_dir: String::new(),
        devices: Vec::new(),
        leaves: leaves(facts, path),
    }
}

/// v2: controllers are enabled in the pod's cgroup and nowhere above it; one write each, because the kernel
/// takes all of a write or nothing.
fn enable(place: Place<'_>, parent: &str, writes: &[CgroupWrite]) -> Vec<CgroupWrite> {
    let CgroupFacts::V2 {
        root, controllers, ..
    } = place.facts
    else {
        return Vec::new();
    };
    let mut needed = resources::controllers(place, writes);
    for name in WANTED
        .iter()
        .filter(|name| controllers.iter().any(|known| known == *name))
    {
        needed.entry((*name).to_owned()).or_insert(false);
    }
    let file = format!("{}/cgroup.subtree_control", below(root, parent));
    let write = |(name, required): (String, bool)| CgroupWrite {
        file: file.clone(),
        value: format!("+{name}"),
        optional: !required,
    };
    needed.into_iter().map(write).collect()
}

fn oom_source(input: &ContainerInput<'_>, path: &str) -> OomSource {
    let dir = |mount: Option<std::path::PathBuf>, path: &str| {
        mount.map_or(String::new(), |mount| below(&mount, path))
    };
    let facts = &input.facts.cgroup;
    let memory = facts.mount_of("memory");
    if facts.is_v2() {
        OomSource {
            v2_dir: dir(memory.clone(), path),
            v2_pod_dir: dir(memory, &input.pod.cgroup_parent),
            v1_dir: String::new(),
        }
    } else {
        OomSource {
            v2_dir: String::new(),
            v2_pod_dir: String::new(),
            v1_dir: dir(memory, path),
        }
    }
}

/// What to do to start a pod's pause process.
///
/// # Errors
/// A group without a user, or an id out of range.
pub fn pause(input: &PauseInput<'_>) -> Result<PausePlan, Error> {
    let spec = input.spec;
    let (uid, gid) = match (spec.run_as_user, spec.run_as_group) {
        (None, Some(_)) => return Err(users::UserError::GroupWithoutUser.into()),
        (None, None) => (PAUSE_ID, PAUSE_ID),
        (Some(uid), gid) => (uid, gid.unwrap_or(0)),
    };
    let mut groups = spec.supplemental_groups.clone();
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    if let Some(id) = groups
        .iter()
        .chain([&uid])
        .find(|id| i32::try_from(**id).is_err())
    {
        return Err(users::UserError::OutOfRange(id.to_string()).into());
    }
    let path = format!("{}/{}", input.cgroup_parent, input.id);
    let facts = &input.facts.cgroup;
    let mut cgroup = new_cgroup(facts, &path);
    cgroup.writes = resources::create(
        Place { facts, path: &path },
        &Resources::default(),
        input.cpuset,
    )?;
    Ok(PausePlan {
        process: pause_process(input, uid, gid, groups),
        cgroup,
        seccomp: if spec.privileged {
            SeccompProfile::Unconfined
        } else {
            spec.seccomp.clone()
        },
    })
}

/// Pause reaps and waits; it needs no privilege for that, whatever the pod's containers get.
fn pause_process(input: &PauseInput<'_>, uid: u32, gid: u32, groups: Vec<u32>) -> Process {
    let lowest = input.facts.min_oom_score_adj;
    let (oom_score_adj, _) = process::oom_score_adj(PAUSE_OOM_SCORE_ADJ, lowest);
    Process {
        args: vec![b"pause".to_vec()],
        env: Vec::new(),
        cwd: b"/".to_vec(),
        uid,
        gid,
        groups,
        capabilities: Some(Capabilities {
            bounding: 0,
            effective: 0,
            permitted: 0,
            inheritable: 0,
            ambient: 0,
        }),
        no_new_privs: true,
        oom_score_adj: Some(oom_score_adj),
        terminal: false,
        rows: 0,
        columns: 0,
        umask: None,
        apparmor: input.apparmor.to_owned(),
        selinux: String::new(),
    }
}
