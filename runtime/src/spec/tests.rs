//! Every field of a request, seen in the plan that comes of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use insta::assert_json_snapshot;
use serde_json::{Value, json};

use super::*;
use crate::host::CgroupFacts;
use crate::model::{
    CapabilityRequest, ContainerMetadata, ExecRequest, HugepageLimit, Kind, Kinded as _,
    MountPropagation, NamespaceModes, PodMetadata, Resources, UserRequest,
};

/// A request and all that is known with it; tests change what they are about.
struct Case {
    id: ContainerId,
    pod: ReadyPod,
    spec: ContainerSpec,
    image: ImageConfig,
    user: ContainerUser,
    facts: HostFacts,
    mounts: Vec<ResolvedMount>,
    devices: Vec<DeviceNode>,
    target: Option<PathBuf>,
    cpuset: Option<Cpuset>,
}

impl Case {
    fn v2() -> Self {
        let names = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];
        Self::on(CgroupFacts::V2 {
            root: "/sys/fs/cgroup".into(),
            controllers: names.map(str::to_owned).into(),
            swap: true,
        })
    }

    fn v1() -> Self {
        let mounts = [
            ("cpu", "cpu,cpuacct"),
            ("cpuacct", "cpu,cpuacct"),
            ("cpuset", "cpuset"),
            ("devices", "devices"),
            ("memory", "memory"),
            ("name=systemd", "systemd"),
        ];
        let hierarchies =
            mounts.map(|(name, dir)| (name.to_owned(), format!("/sys/fs/cgroup/{dir}").into()));
        let mut case = Self::on(CgroupFacts::V1 {
            hierarchies: hierarchies.into(),
            unified: None,
            swap: true,
        });
        case.cpuset = Some(Cpuset {
            cpus: "0-1".into(),
            mems: "0".into(),
        });
        case
    }

    fn on(cgroup: CgroupFacts) -> Self {
        let run = |name: &str| Some(PathBuf::from(format!("/run/berth/pods/p/{name}")));
        Self {
            id: "c0".repeat(32).parse().unwrap(),
            pod: ReadyPod {
                id: "a1".repeat(32).parse().unwrap(),
                spec: Arc::new(pod_spec()),
                netns: Some("/run/netns/berth-p".into()),
                ipcns: run("ipc"),
                utsns: run("uts"),
                pidns: run("pid"),
                hostname: "web-0".into(),
                files: "/run/berth/pods/p".into(),
                shm: "/run/berth/pods/p/shm".into(),
                cgroup_parent: "/kubepods/burstable/pod1".into(),
            },
            spec: container_spec(),
            image: ImageConfig {
                env: vec![
                    "PATH=/opt/bin:/bin".into(),
                    "LANG=C".into(),
                    "NOTHING".into(),
                    "LANG=C.UTF-8".into(),
                ],
                entrypoint: vec!["/entry".into()],
                cmd: vec!["serve".into()],
                working_dir: "srv".into(),
                ..ImageConfig::default()
            },
            user: ContainerUser {
                uid: 1000,
                gid: 1001,
                groups: vec![5, 1001],
                home: "/home/app".into(),
            },
            facts: HostFacts {
                kernel: (6, 12),
                cgroup,
                apparmor: false,
                selinux: false,
                capabilities: (1 << 41) - 1,
                hugepage_sizes: vec!["2MB".into()],
                min_oom_score_adj: -1000,
                systemd: true,
                boot_id: "b".into(),
                hostname: "node".into(),
            },
            mounts: Vec::new(),
            devices: Vec::new(),
            target: None,
            cpuset: None,
        }
    }

    fn privileged(mut self) -> Self {
        self.spec.privileged = true;
        self.pod.spec = Arc::new(PodSpec {
            privileged: true,
            ..pod_spec()
        });
        self
    }

    fn plan(&self) -> Result<ContainerPlan, Error> {
        container(&ContainerInput {
            id: &self.id,
            pod: &self.pod,
            spec: &self.spec,
            image: &self.image,
            user: &self.user,
            facts: &self.facts,
            rootfs: Path::new("/run/berth/rootfs/c"),
            mounts: &self.mounts,
            devices: &self.devices,
            target_pidns: self.target.as_deref(),
            cpuset: self.cpuset.as_ref(),
        })
    }

    fn mount(&mut self, path: &str, change: impl FnOnce(&mut ResolvedMount)) {
        let mut mount = ResolvedMount {
            request: MountRequest {
                container_path: path.into(),
                host_path: "/srv/link".into(),
                readonly: false,
                selinux_relabel: false,
                propagation: MountPropagation::Private,
                options: Vec::new(),
            },
            source: "/srv/real".into(),
            propagation: SourcePropagation::Private,
        };
        change(&mut mount);
        self.mounts.push(mount);
    }

    /// The mounts on a path, as JSON.
    fn mounts_on(&self, path: &str) -> Vec<Value> {
        let mounts = self.plan().unwrap().oci["mounts"]
            .as_array()
            .unwrap()
            .clone();
        mounts
            .into_iter()
            .filter(|mount| mount["destination"] == path)
            .collect()
    }
}

fn pod_spec() -> PodSpec {
    PodSpec {
        metadata: PodMetadata {
            name: "web".into(),
            uid: "u".into(),
            namespace: "n".into(),
            attempt: 0,
        },
        hostname: "web-0".into(),
        log_directory: String::new(),
        dns: None,
        port_mappings: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        cgroup_parent: "/kubepods/burstable/pod1".into(),
        sysctls: BTreeMap::new(),
        namespaces: NamespaceModes {
            pid: NamespaceMode::Container,
            ..NamespaceModes::default()
        },
        privileged: false,
        seccomp: SeccompProfile::RuntimeDefault,
        run_as_user: None,
        run_as_group: None,
        supplemental_groups: Vec::new(),
        supplemental_groups_policy: crate::model::GroupsPolicy::Merge,
        overhead: None,
        resources: None,
        runtime_handler: String::new(),
    }
}

fn container_spec() -> ContainerSpec {
    ContainerSpec {
        metadata: ContainerMetadata {
            name: "app".into(),
            attempt: 0,
        },
        image: "sha256:0".into(),
        user_specified_image: String::new(),
        command: Vec::new(),
        args: Vec::new(),
        working_dir: String::new(),
        envs: vec![("GREETING".into(), b"hello".to_vec())],
        mounts: Vec::new(),
        devices: Vec::new(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        log_path: String::new(),
        stdin: false,
        stdin_once: false,
        tty: false,
        resources: Resources::default(),
        capabilities: CapabilityRequest::default(),
        privileged: false,
        namespaces: NamespaceModes {
            pid: NamespaceMode::Container,
            ..NamespaceModes::default()
        },
        user: UserRequest::default(),
        read_only_root: false,
        no_new_privs: false,
        masked_paths: vec!["/proc/acpi".into(), "/proc/keys".into()],
        readonly_paths: vec!["/proc/sys".into()],
        seccomp: SeccompProfile::RuntimeDefault,
        stop_signal: None,
    }
}

/// A plan as JSON that people can read.
fn shown(plan: &ContainerPlan) -> Value {
    let p = &plan.process;
    let text = |words: &[Vec<u8>]| {
        words
            .iter()
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect::<Vec<_>>()
    };
    let caps = p.capabilities.unwrap();
    json!({
        "oci": plan.oci,
        "process": {
            "args": text(&p.args), "env": text(&p.env), "cwd": String::from_utf8_lossy(&p.cwd),
            "uid": p.uid, "gid": p.gid, "groups": p.groups, "noNewPrivs": p.no_new_privs, "terminal": p.terminal,
            "oomScoreAdj": p.oom_score_adj, "bounding": format!("{:#x}", caps.bounding),
            "effective": format!("{:#x}", caps.effective), "permitted": format!("{:#x}", caps.permitted),
            "inheritable": caps.inheritable, "ambient": caps.ambient,
        },
        "cgroup": shown_cgroup(&plan.cgroup),
        "propagation": plan.propagation.iter().map(|one| format!("{} {}", one.path, one.mode)).collect::<Vec<_>>(),
        "allPrivate": plan.all_private,
        "oom": { "v2": plan.oom.v2_dir, "v2Pod": plan.oom.v2_pod_dir, "v1": plan.oom.v1_dir },
        "killCgroup": plan.kill_cgroup,
        "seccomp": plan.seccomp,
    })
}

fn shown_cgroup(cgroup: &worker::Cgroup) -> Value {
    let mark = |write: &worker::CgroupWrite| {
        format!(
            "{} = {}{}",
            write.file,
            write.value,
            if write.optional { " ?" } else { "" }
        )
    };
    let rules = cgroup.devices.iter().map(|rule| {
        let (file, line) = devices::v1_line(rule);
        format!("{file} {line}")
    });
    let rules: Vec<_> = rules.collect();
    json!({
        "path": cgroup.path, "dirs": cgroup.dirs, "leaves": cgroup.leaves,
        "enable": cgroup.enable.iter().map(mark).collect::<Vec<_>>(),
        "writes": cgroup.writes.iter().map(mark).collect::<Vec<_>>(),
        "deviceDir": cgroup.device_dir, "devices": rules,
    })
}

/// libcontainer reads the configuration with this crate.
fn parsed(plan: &ContainerPlan) -> oci_spec::runtime::Spec {
    serde_json::from_value(plan.oci.clone()).unwrap()
}

#[test]
fn an_ordinary_container_on_v2() {
    let plan = Case::v2().plan().unwrap();
    assert_json_snapshot!("ordinary_v2", shown(&plan));
}

#[test]
fn an_ordinary_container_on_v1() {
    let plan = Case::v1().plan().unwrap();
    assert_json_snapshot!("ordinary_v1", shown(&plan));
}

#[test]
fn a_privileged_container_on_v2() {
    let mut case = Case::v2().privileged();
    case.devices.push(DeviceNode {
        path: "/dev/sda".into(),
        kind: 'b',
        major: 8,
        minor: 0,
        mode: 0o660,
        uid: 0,
        gid: 6,
        access: "rwm".into(),
    });
    let plan = case.plan().unwrap();
    assert_json_snapshot!("privileged_v2", shown(&plan));
}

#[test]
fn a_privileged_container_on_v1_has_its_own_cgroup_writable() {
    let case = Case::v1().privileged();
    let memory = case.mounts_on("/sys/fs/cgroup/memory");
    assert!(
        memory[0]["options"]
            .as_array()
            .unwrap()
            .contains(&json!("rw")),
        "{memory:?}"
    );
    let plan = case.plan().unwrap();
    assert_eq!(plan.oci["linux"]["readonlyPaths"], json!([]));
    assert!(
        plan.cgroup
            .writes
            .iter()
            .any(|write| write.file.ends_with("devices.allow") && write.value == "a")
    );
}

#[test]
fn a_busy_request() {
    let mut case = Case::v2();
    case.spec.command = vec!["sh".into(), "-c".into()];
    case.spec.args = vec!["echo $X".into()];
    case.spec.tty = true;
    case.spec.working_dir = "/work/../data/".into();
    case.spec.read_only_root = true;
    case.spec.no_new_privs = true;
    case.spec.capabilities = CapabilityRequest {
        add: vec!["net_admin".into()],
        drop: vec!["ALL".into()],
        add_ambient: vec![],
    };
    case.spec.resources = Resources {
        cpu_shares: 512,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        memory_limit: 64 << 20,
        oom_score_adj: 987,
        cpuset_cpus: "0".into(),
        hugepages: vec![HugepageLimit {
            page_size: "2MB".into(),
            limit: 0,
        }],
        unified: BTreeMap::from([("memory.oom.group".into(), "1".into())]),
        ..Resources::default()
    };
    case.devices.push(DeviceNode {
        path: "/dev/fuse".into(),
        kind: 'c',
        major: 10,
        minor: 229,
        mode: 0o666,
        uid: 0,
        gid: 0,
        access: "rw".into(),
    });
    case.mount("/etc/hosts", |_| {});
    case.mount("/dev/termination-log", |_| {});
    case.mount("data/in", |mount| {
        mount.request.options = vec!["noexec".into(), "rnodev".into()]
    });
    case.mount("/data", |mount| mount.request.readonly = true);
    let plan = case.plan().unwrap();
    parsed(&plan);
    assert_json_snapshot!("busy_v2", shown(&plan));
}

#[test]
fn nothing_is_injected_that_nobody_asked_for() {
    for case in [
        Case::v1(),
        Case::v2(),
        Case::v1().privileged(),
        Case::v2().privileged(),
    ] {
        let spec = parsed(&case.plan().unwrap());
        let process = spec.process().as_ref().unwrap();
        assert!(process.no_new_privileges().is_none(), "false is not absent");
        assert!(process.capabilities().is_none() && process.rlimits().is_none());
        assert!(process.apparmor_profile().is_none() && process.selinux_label().is_none());
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.resources().is_none() && linux.seccomp().is_none());
        assert!(linux.uid_mappings().is_none() && linux.sysctl().is_none());
        assert!(spec.hostname().is_none() && spec.hooks().is_none());
    }
}

#[test]
fn v1_never_mounts_a_cgroup_file_system() {
    for case in [Case::v1(), Case::v1().privileged()] {
        let plan = case.plan().unwrap();
        assert!(
            plan.oci["mounts"]
                .as_array()
                .unwrap()
                .iter()
                .all(|mount| mount["type"] != "cgroup")
        );
        assert!(
            plan.oci["linux"]["namespaces"]
                .as_array()
                .unwrap()
                .iter()
                .all(|ns| ns["type"] != "cgroup")
        );
    }
}

#[test]
fn without_a_cgroup_namespace_v2_is_bound() {
    let case = Case::v2().privileged();
    let mount = &case.mounts_on("/sys/fs/cgroup")[0];
    assert_eq!(
        (&mount["type"], &mount["source"]),
        (&json!("bind"), &json!("/sys/fs/cgroup"))
    );
}

#[test]
fn namespaces_of_pids() {
    let pid = |mode, target: Option<&str>| {
        let mut case = Case::v2();
        case.spec.namespaces.pid = mode;
        case.target = target.map(PathBuf::from);
        case.plan().map(|plan| {
            let list = plan.oci["linux"]["namespaces"].as_array().unwrap().clone();
            (
                list.into_iter().find(|ns| ns["type"] == "pid"),
                plan.kill_cgroup.is_empty(),
            )
        })
    };
    assert_eq!(
        pid(NamespaceMode::Container, None).unwrap(),
        (Some(json!({"type": "pid"})), true)
    );
    assert_eq!(pid(NamespaceMode::Node, None).unwrap(), (None, false));
    let joined = |path: &str| Some(json!({"type": "pid", "path": path}));
    assert_eq!(
        pid(NamespaceMode::Pod, None).unwrap(),
        (joined("/run/berth/pods/p/pid"), false)
    );
    assert_eq!(
        pid(NamespaceMode::Target, Some("/t")).unwrap(),
        (joined("/t"), false)
    );
    assert!(pid(NamespaceMode::Target, None).is_err());
    let mut case = Case::v2();
    case.pod.pidns = None;
    case.spec.namespaces.pid = NamespaceMode::Pod;
    assert!(case.plan().is_err());
}

#[test]
fn a_pod_on_the_hosts_namespaces_joins_none() {
    let mut case = Case::v2();
    (case.pod.netns, case.pod.ipcns, case.pod.utsns) = (None, None, None);
    let plan = case.plan().unwrap();
    assert_eq!(
        plan.oci["linux"]["namespaces"],
        json!([{"type": "mount"}, {"type": "pid"}, {"type": "cgroup"}])
    );
}

#[test]
fn a_privileged_container_needs_a_privileged_pod() {
    let mut case = Case::v2();
    case.spec.privileged = true;
    assert!(matches!(case.plan(), Err(Error::Namespace(_))));
}

#[test]
fn a_privileged_container_ignores_filters_and_masks_but_not_a_read_only_root() {
    let mut case = Case::v2().privileged();
    case.spec.seccomp = SeccompProfile::Localhost("/x.json".into());
    case.spec.read_only_root = true;
    let plan = case.plan().unwrap();
    assert_eq!(plan.seccomp, SeccompProfile::Unconfined);
    assert_eq!(plan.oci["linux"]["maskedPaths"], json!([]));
    assert_eq!(plan.oci["root"]["readonly"], json!(true));
}

#[test]
fn masked_paths_are_exactly_the_requests() {
    let mut case = Case::v2();
    case.spec.masked_paths.clear();
    case.spec.readonly_paths.clear();
    let linux = &case.plan().unwrap().oci["linux"];
    assert_eq!(
        (&linux["maskedPaths"], &linux["readonlyPaths"]),
        (&json!([]), &json!([]))
    );
}

#[test]
fn commands_follow_dockers_rules() {
    let run = |command: &[&str], args: &[&str], entrypoint: &[&str], cmd: &[&str]| {
        let owned = |words: &[&str]| {
            words
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        let mut case = Case::v2();
        (case.spec.command, case.spec.args) = (owned(command), owned(args));
        (case.image.entrypoint, case.image.cmd) = (owned(entrypoint), owned(cmd));
        case.plan().map(|plan| {
            plan.process
                .args
                .iter()
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect::<Vec<_>>()
                .join(" ")
        })
    };
    assert_eq!(run(&[], &[], &["e"], &["c"]).unwrap(), "e c");
    assert_eq!(run(&[], &["a"], &["e"], &["c"]).unwrap(), "e a");
    assert_eq!(run(&["x"], &[], &["e"], &["c"]).unwrap(), "x");
    assert_eq!(run(&["x"], &["a"], &["e"], &["c"]).unwrap(), "x a");
    assert_eq!(run(&[], &[], &[], &["c"]).unwrap(), "c");
    assert!(matches!(run(&[], &[], &[], &[]), Err(Error::NoCommand)));
    assert!(matches!(
        run(&[], &[], &[""], &[]),
        Err(Error::Command { index: 0, .. })
    ));
    assert!(matches!(
        run(&["a\0b"], &[], &[], &[]),
        Err(Error::Command { .. })
    ));
}

#[test]
fn environment_keeps_order_and_bytes() {
    let mut case = Case::v2();
    case.spec.envs = vec![
        ("LANG".into(), b"x".to_vec()),
        ("RAW".into(), vec![0xff, b'\n', 0xfe]),
        ("LANG".into(), b"y".to_vec()),
    ];
    let env = case.plan().unwrap().process.env;
    let expected: Vec<&[u8]> = vec![
        b"PATH=/opt/bin:/bin",
        b"HOSTNAME=web-0",
        b"LANG=y",
        b"RAW=\xff\n\xfe",
        b"HOME=/home/app",
    ];
    assert_eq!(env, expected);
}

#[test]
fn environment_that_cannot_be_is_refused() {
    for (name, value) in [
        ("HOME", "/a\nroot::0:0"),
        ("", "x"),
        ("A=B", "x"),
        ("A", "x\0y"),
        ("A\0", "x"),
    ] {
        let mut case = Case::v2();
        case.spec.envs = vec![(name.into(), value.as_bytes().to_vec())];
        let error = case.plan().unwrap_err();
        assert!(
            matches!(error, Error::Environment { .. }) && error.kind() == Kind::InvalidArgument,
            "{name}: {error}"
        );
    }
    let mut case = Case::v2();
    case.image.env = vec!["HOME=/x\ny".into()];
    assert!(case.plan().is_err());
}

#[test]
fn working_directories() {
    let cwd = |asked: &str, image: &str| {
        let mut case = Case::v2();
        (case.spec.working_dir, case.image.working_dir) = (asked.into(), image.into());
        case.plan()
            .map(|plan| String::from_utf8(plan.process.cwd).unwrap())
    };
    assert_eq!(cwd("", "").unwrap(), "/");
    assert_eq!(cwd("", "srv").unwrap(), "/srv");
    assert_eq!(cwd("/a/b", "srv").unwrap(), "/a/b");
    for bad in [
        "/proc/self/fd/7",
        "/proc/1/cwd/x",
        "/a/../proc/self/root",
        "/a\0",
        &"a".repeat(5000),
    ] {
        assert!(cwd("", bad).is_err(), "{bad}");
    }
}

#[test]
fn the_requests_mounts_win_over_our_own() {
    let mut case = Case::v2();
    for path in ["/etc/resolv.conf", "/dev/shm", "/sys", "/proc"] {
        case.mount(path, |_| {});
    }
    for path in ["/etc/resolv.conf", "/dev/shm", "/sys", "/proc"] {
        let found = case.mounts_on(path);
        assert_eq!(found.len(), 1, "{path}");
        assert_eq!(found[0]["source"], "/srv/real");
    }
    assert!(
        case.mounts_on("/sys/fs/cgroup").is_empty(),
        "it would lie in the host's /sys"
    );
}

#[test]
fn mounts_that_cannot_be_are_refused() {
    let refused = |path: &str, change: fn(&mut ResolvedMount)| {
        let mut case = Case::v2();
        case.mount(path, change);
        matches!(case.plan(), Err(Error::Mount { .. }))
    };
    assert!(
        refused("", |_| {})
            && refused("/", |_| {})
            && refused("/a\0", |_| {})
            && refused("/dev/", |_| {})
    );
    assert!(refused("/a", |mount| mount.request.options = vec!["sync".into()]));
    assert!(refused("/a", |mount| mount.source = "relative".into()));
    assert!(refused("/a", |mount| mount.request.propagation =
        MountPropagation::HostToContainer));
    assert!(refused("/a", |mount| {
        mount.request.propagation = MountPropagation::Bidirectional;
        mount.propagation = SourcePropagation::Slave;
    }));
}

#[test]
fn propagation_of_volumes_and_of_the_root() {
    let mut case = Case::v2();
    case.mount("/private", |_| {});
    let plan = case.plan().unwrap();
    assert!(plan.all_private && plan.oci["linux"]["rootfsPropagation"] == "private");
    case.mount("/down", |mount| {
        mount.request.propagation = MountPropagation::HostToContainer;
        mount.propagation = SourcePropagation::Slave;
    });
    let plan = case.plan().unwrap();
    assert!(!plan.all_private && plan.oci["linux"]["rootfsPropagation"] == "slave");
    case.mount("/both", |mount| {
        mount.request.propagation = MountPropagation::Bidirectional;
        mount.propagation = SourcePropagation::Shared;
    });
    let plan = case.plan().unwrap();
    assert_eq!(plan.oci["linux"]["rootfsPropagation"], "shared");
    let modes: Vec<_> = plan
        .propagation
        .iter()
        .map(|one| (one.path.as_str(), one.mode))
        .collect();
    assert_eq!(modes, [("/down", 1), ("/both", 2)]);
}

#[test]
fn oom_score_adj_is_clamped_and_said_so() {
    for (asked, lowest, given, clamped) in [
        (-998, -1000, -998, false),
        (-998, 0, 0, true),
        (500, 0, 500, false),
        (5000, 0, 1000, false),
    ] {
        let mut case = Case::v2();
        case.facts.min_oom_score_adj = lowest;
        case.spec.resources.oom_score_adj = asked;
        let plan = case.plan().unwrap();
        assert_eq!(
            (plan.process.oom_score_adj, plan.oom_score_clamped),
            (Some(given), clamped)
        );
    }
}

#[test]
fn exec_takes_the_containers_credentials() {
    let process = Case::v2().plan().unwrap().process;
    let request = |tty, command: &[&str]| ExecRequest {
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        tty,
        timeout: None,
    };
    let made = exec(&process, &request(true, &["ls", "-l"])).unwrap();
    assert_eq!(made.args, [b"ls".to_vec(), b"-l".to_vec()]);
    assert!(made.terminal && made.env.contains(&b"TERM=xterm".to_vec()));
    assert_eq!(
        (made.uid, &made.groups, made.capabilities),
        (1000, &vec![5, 1001], process.capabilities)
    );
    assert_eq!(made.oom_score_adj, process.oom_score_adj);
    assert!(
        !exec(&process, &request(false, &["ls"]))
            .unwrap()
            .env
            .contains(&b"TERM=xterm".to_vec())
    );
    assert!(exec(&process, &request(false, &[])).is_err());
}

#[test]
fn pause_has_no_privileges_and_its_own_cgroup() {
    let plan = |change: fn(&mut PodSpec), case: Case| {
        let mut spec = pod_spec();
        change(&mut spec);
        pause(&PauseInput {
            id: &case.pod.id,
            spec: &spec,
            cgroup_parent: "/kubepods/pod1",
            facts: &case.facts,
            cpuset: case.cpuset.as_ref(),
        })
    };
    let made = plan(|_| {}, Case::v1()).unwrap();
    assert_eq!(
        (made.process.uid, made.process.gid, &made.process.groups),
        (65_535, 65_535, &vec![65_535])
    );
    assert_eq!(made.process.capabilities.unwrap().bounding, 0);
    assert_eq!(made.process.oom_score_adj, Some(-998));
    assert_eq!(made.seccomp, SeccompProfile::RuntimeDefault);
    assert_json_snapshot!("pause_v1", shown_cgroup(&made.cgroup));
    assert_json_snapshot!(
        "pause_v2",
        shown_cgroup(&plan(|_| {}, Case::v2()).unwrap().cgroup)
    );
    let named = plan(
        |spec| {
            (
                spec.run_as_user,
                spec.run_as_group,
                spec.supplemental_groups,
            ) = (Some(7), Some(8), vec![9])
        },
        Case::v2(),
    );
    assert_eq!(named.unwrap().process.groups, [8, 9]);
    assert!(plan(|spec| spec.run_as_group = Some(8), Case::v2()).is_err());
    assert!(plan(|spec| spec.run_as_user = Some(1 << 31), Case::v2()).is_err());
}
