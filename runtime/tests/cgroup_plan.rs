//! What `spec` plans for a container's cgroup, the kernel of this machine takes; and `cgroup` undoes it.

#![allow(clippy::unwrap_used)] // a failure here is the test failing

use std::path::Path;

use berth::cgroup;
use berth::host::HostFacts;
use berth::model::{
    ContainerSpec, ContainerUser, HugepageLimit, ImageConfig, NamespaceMode, NamespaceModes,
    PodSpec, ReadyPod, Resources,
};
use berth::spec::{self, ContainerInput, ContainerPlan, resources::Place};

fn modes() -> NamespaceModes {
    NamespaceModes {
        pid: NamespaceMode::Container,
        ..NamespaceModes::default()
    }
}

fn pod(parent: &str) -> ReadyPod {
    let spec = PodSpec {
        cgroup_parent: parent.to_owned(),
        namespaces: modes(),
        ..PodSpec::default()
    };
    ReadyPod {
        id: "a1".repeat(32).parse().unwrap(),
        spec: spec.into(),
        netns: None,
        ipcns: None,
        utsns: None,
        pidns: None,
        hostname: "h".into(),
        files: "/nowhere".into(),
        shm: "/dev/shm".into(),
        cgroup_parent: parent.into(),
        closing: Default::default(),
    }
}

fn container(resources: Resources) -> ContainerSpec {
    ContainerSpec {
        command: vec!["true".to_owned()],
        namespaces: modes(),
        resources,
        ..ContainerSpec::default()
    }
}

fn plan(facts: &HostFacts, parent: &str, resources: Resources) -> ContainerPlan {
    let cpuset = cgroup::cpuset(&facts.cgroup, parent).unwrap();
    spec::container(&ContainerInput {
        id: &"c0".repeat(32).parse().unwrap(),
        pod: &pod(parent),
        spec: &container(resources),
        image: &ImageConfig::default(),
        user: &ContainerUser {
            home: "/".into(),
            ..ContainerUser::default()
        },
        facts,
        rootfs: Path::new("/nowhere"),
        mounts: &[],
        devices: &[],
        target_pidns: None,
        cpuset: cpuset.as_ref(),
        apparmor: "",
    })
    .unwrap()
}

/// What the worker does with it.
fn make(plan: &ContainerPlan) {
    for dir in &plan.cgroup.dirs {
        std::fs::create_dir_all(dir).unwrap();
    }
    cgroup::apply_writes(&plan.cgroup.enable).unwrap();
    cgroup::apply_writes(&plan.cgroup.writes).unwrap();
}

#[test]
fn the_kernel_takes_the_planned_cgroup_and_its_updates() {
    let facts = HostFacts::probe().unwrap();
    let parent = format!("/berth-plan-{}/pod", std::process::id());
    let made = cgroup::make_parents(&facts.cgroup, &parent).unwrap();
    let first = Resources {
        cpu_shares: 512,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        memory_limit: 64 << 20,
        cpuset_cpus: "0".into(),
        hugepages: vec![HugepageLimit {
            page_size: "2MB".into(),
            limit: 0,
        }],
        ..Resources::default()
    };
    let plan = plan(&facts, &parent, first.clone());
    make(&plan);
    let place = Place {
        facts: &facts.cgroup,
        path: &plan.cgroup.path,
    };
    let mut now = first;
    for (memory, quota, period) in [
        (128 << 20, 80_000, 0),
        (32 << 20, 5_000, 10_000),
        (-1, -1, 0),
        (16 << 20, 500, 0),
    ] {
        let new = Resources {
            memory_limit: memory,
            cpu_quota: quota,
            cpu_period: period,
            ..Resources::default()
        };
        let usage = cgroup::memory_in_use(&facts.cgroup, &plan.cgroup.path).unwrap();
        let update = spec::update(place, &now, &new, usage).unwrap();
        cgroup::apply_writes(&update.writes).unwrap();
        now = update.resources;
    }
    let mut child = std::process::Command::new("sleep")
        .arg("100")
        .spawn()
        .unwrap();
    let leaves: Vec<_> = plan.leaves.iter().map(Into::into).collect();
    cgroup::join(&leaves, i32::try_from(child.id()).unwrap()).unwrap();
    cgroup::kill(&plan.leaves).unwrap();
    child.wait().unwrap();
    cgroup::remove(&plan.leaves).unwrap();
    cgroup::remove_parents(&made);
    assert!(
        !made.iter().any(|dir| dir.exists()),
        "left behind: {made:?}"
    );
}
