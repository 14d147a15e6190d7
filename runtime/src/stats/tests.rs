use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::host::CgroupFacts;
use crate::model::{
    AppArmorProfile, ContainerMetadata, ContainerSpec, ContainerState, GroupsPolicy,
    NamespaceModes, PodMetadata, PodSpec, SeccompProfile,
};

/// A machine with a v2 hierarchy of ordinary files.
struct Rig {
    dir: tempfile::TempDir,
    stats: Stats,
    storage: Storage,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(&dir.path().join("berth")).unwrap();
        let mut facts = HostFacts::probe().unwrap();
        facts.cgroup = CgroupFacts::V2 {
            root: dir.path().join("cgroup"),
            controllers: Vec::new(),
            swap: true,
        };
        Self {
            stats: Stats::new(Arc::new(facts), storage.clone()),
            storage,
            dir,
        }
    }

    fn path(&self, cgroup: &str) -> PathBuf {
        let root = self.dir.path().join("cgroup");
        root.join(cgroup.trim_start_matches('/'))
    }

    /// A cgroup that used so many milliseconds and kibibytes, and has so many processes.
    fn cgroup(&self, path: &str, ms: u64, kib: u64, processes: u64) {
        let dir = self.path(path);
        fs::create_dir_all(&dir).unwrap();
        let write = |name: &str, text: String| fs::write(dir.join(name), text).unwrap();
        write("cpu.stat", format!("usage_usec {}\n", ms * 1000));
        write(
            "cpu.pressure",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n".into(),
        );
        write("memory.current", format!("{}\n", kib << 10));
        write("memory.max", format!("{}\n", 1 << 30));
        write(
            "memory.stat",
            "anon 4096\ninactive_file 1024\npgfault 5\n".into(),
        );
        write("memory.swap.current", "0\n".into());
        write("memory.swap.max", "max\n".into());
        write("pids.current", format!("{processes}\n"));
    }

    fn container(&self, pod: &PodId, state: ContainerState) -> ContainerSubject {
        let id = ContainerId::generate().unwrap();
        self.storage.prepare(&id, &[]).unwrap();
        ContainerSubject {
            cgroup: format!("/berth/{id}"),
            id,
            pod: pod.clone(),
            spec: Arc::new(container_spec()),
            state,
        }
    }
}

fn pod(cgroup: impl FnOnce(&PodId) -> PodCgroup) -> PodSubject {
    let id = PodId::generate().unwrap();
    PodSubject {
        cgroup: cgroup(&id),
        id,
        spec: Arc::new(pod_spec()),
        pause: None,
        netns: None,
    }
}

fn container_spec() -> ContainerSpec {
    ContainerSpec {
        metadata: ContainerMetadata {
            name: "c".into(),
            attempt: 0,
        },
        image: String::new(),
        user_specified_image: String::new(),
        command: Vec::new(),
        args: Vec::new(),
        working_dir: String::new(),
        envs: Vec::new(),
        mounts: Vec::new(),
        devices: Vec::new(),
        labels: Default::default(),
        annotations: Default::default(),
        log_path: String::new(),
        stdin: false,
        stdin_once: false,
        tty: false,
        resources: Default::default(),
        capabilities: Default::default(),
        privileged: false,
        namespaces: NamespaceModes::default(),
        user: Default::default(),
        read_only_root: false,
        no_new_privs: false,
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        seccomp: SeccompProfile::Unconfined,
        apparmor: AppArmorProfile::Unset,
        stop_signal: None,
    }
}

fn pod_spec() -> PodSpec {
    PodSpec {
        metadata: PodMetadata {
            name: "web".into(),
            uid: "u".into(),
            namespace: "default".into(),
            attempt: 0,
        },
        hostname: String::new(),
        log_directory: String::new(),
        dns: None,
        port_mappings: Vec::new(),
        labels: Default::default(),
        annotations: Default::default(),
        cgroup_parent: String::new(),
        sysctls: Default::default(),
        namespaces: NamespaceModes::default(),
        privileged: false,
        seccomp: SeccompProfile::Unconfined,
        apparmor: AppArmorProfile::Unset,
        run_as_user: None,
        run_as_group: None,
        supplemental_groups: Vec::new(),
        supplemental_groups_policy: GroupsPolicy::Merge,
        overhead: None,
        resources: None,
        runtime_handler: String::new(),
    }
}

fn cpu(usage: &CgroupUsage) -> (u64, Option<u64>) {
    let cpu = usage.cpu.unwrap();
    (cpu.nanoseconds, cpu.nano_cores)
}

#[tokio::test]
async fn what_ends_meanwhile_is_left_out_and_what_is_over_has_its_layer_only() {
    let rig = Rig::new();
    let pod = PodId::generate().unwrap();
    let running = rig.container(&pod, ContainerState::Running);
    let vanished = rig.container(&pod, ContainerState::Running);
    let unreadable = rig.container(&pod, ContainerState::Running);
    let over = rig.container(&pod, ContainerState::Exited);
    rig.cgroup(&running.cgroup, 7, 64, 1);
    rig.cgroup(&unreadable.cgroup, 7, 64, 1);
    fs::write(rig.path(&unreadable.cgroup).join("memory.current"), "?").unwrap();
    let all = vec![running.clone(), vanished.clone(), unreadable, over.clone()];
    let stats = rig.stats.containers(all).await;
    let ids: Vec<_> = stats.iter().map(|s| s.subject.id.clone()).collect();
    assert_eq!(ids, [running.id, over.id.clone()]);
    assert_eq!(cpu(&stats[0].cgroup.unwrap()), (7_000_000, None));
    assert!(stats[1].cgroup.is_none());
    assert!(
        stats
            .iter()
            .all(|s| s.writable.as_ref().unwrap().inodes_used == 1)
    );
    for subject in [vanished, over] {
        let error = rig.stats.container(subject).await.unwrap_err();
        assert!(matches!(error, Error::ContainerOver(_)), "{error}");
    }
}

#[tokio::test]
async fn a_pod_with_a_cgroup_of_its_own() {
    let rig = Rig::new();
    let pod = pod(|id| PodCgroup::Own(format!("/kubepods/{id}")));
    let inside = rig.container(&pod.id, ContainerState::Running);
    let other = rig.container(&PodId::generate().unwrap(), ContainerState::Running);
    for subject in [&inside, &other] {
        rig.cgroup(&subject.cgroup, 7, 64, 3);
    }
    rig.cgroup(&format!("/kubepods/{}", pod.id), 1000, 4096, 9);
    let both = vec![inside.clone(), other];
    let stats = rig.stats.pod(pod.clone(), both.clone()).await.unwrap();
    assert_eq!(cpu(&stats.cgroup), (1_000_000_000, None));
    let memory = stats.cgroup.memory.unwrap();
    assert_eq!(memory.working_set, (4 << 20) - 1024);
    assert_eq!(memory.available, Some((1 << 30) - (4 << 20) + 1024));
    assert!(stats.cgroup.cpu.unwrap().pressure.is_some());
    assert_eq!((stats.processes, stats.network), (Some(9), None));
    let ids: Vec<_> = stats.containers.iter().map(|c| &c.subject.id).collect();
    assert_eq!(ids, [&inside.id]);
    // The second reading has a rate, of the pod and of the container.
    std::thread::sleep(Duration::from_millis(600));
    rig.cgroup(&format!("/kubepods/{}", pod.id), 1300, 4096, 9);
    let stats = rig.stats.pods(vec![pod.clone()], both).await.remove(0);
    let rate = cpu(&stats.cgroup).1.unwrap();
    assert!((1..=500_000_000).contains(&rate), "{rate}");
    assert_eq!(cpu(&stats.containers[0].cgroup.unwrap()).1, Some(0));
    // Its cgroup goes: it has ended.
    fs::remove_dir_all(rig.path(&format!("/kubepods/{}", pod.id))).unwrap();
    let error = rig.stats.pod(pod, Vec::new()).await.unwrap_err();
    assert!(matches!(error, Error::PodOver(_)), "{error}");
}

#[tokio::test]
async fn pods_under_one_parent_are_sums() {
    let rig = Rig::new();
    let shared = |id: &PodId| PodCgroup::Shared(format!("/berth/{id}"));
    let (one, two, gone) = (pod(shared), pod(shared), pod(shared));
    let mut containers = Vec::new();
    for (subject, count) in [(&one, 2), (&two, 0)] {
        rig.cgroup(&format!("/berth/{}", subject.id), 1, 8, 1);
        for _ in 0..count {
            let container = rig.container(&subject.id, ContainerState::Running);
            rig.cgroup(&container.cgroup, 100, 64, 3);
            containers.push(container);
        }
    }
    // What else is under the parent counts for nobody.
    rig.cgroup("/berth", 1 << 20, 1 << 20, 1 << 20);
    let all = vec![one, two, gone];
    let stats = rig.stats.pods(all, containers).await;
    let sums: Vec<_> = stats
        .iter()
        .map(|s| {
            let memory = s.cgroup.memory.unwrap();
            (
                cpu(&s.cgroup).0,
                memory.usage,
                memory.available,
                s.processes,
            )
        })
        .collect();
    let expected = [
        (201_000_000, 136 << 10, None, Some(7)),
        (1_000_000, 8 << 10, None, Some(1)),
    ];
    assert_eq!(sums, expected);
}

#[tokio::test]
async fn the_network_is_that_of_the_pinned_namespace() {
    let rig = Rig::new();
    let pin = Path::new("/proc/self/ns/net").to_owned();
    let mut subject = pod(|id| PodCgroup::Own(format!("/{id}")));
    rig.cgroup(&format!("/{}", subject.id), 1, 1, 1);
    subject.netns = Some(pin);
    subject.pause = i32::try_from(std::process::id()).ok();
    let stats = rig.stats.pod(subject.clone(), Vec::new()).await.unwrap();
    // This process stands in for pause: it has whatever interfaces the machine has.
    let names = fs::read_dir("/sys/class/net").unwrap().count();
    let found = stats.network.map_or(0, |n| n.others.len() + 1);
    assert_eq!(found, names - 1, "all but the loopback");
    // The pid is somebody else's by now.
    subject.netns = Some("/proc/self/ns/pid".into());
    let stats = rig.stats.pod(subject, Vec::new()).await.unwrap();
    assert_eq!(stats.network, None);
}
