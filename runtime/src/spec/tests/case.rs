//! What tests begin with.

use serde_json::{Value, json};

use super::*;
use crate::model::AppArmorProfile;
use crate::record::Form as _;
use crate::record::v1::SeccompProfile as SeccompForm;

/// A request and all that is known with it; tests change what they are about.
pub(super) struct Case {
    pub(super) id: ContainerId,
    pub(super) pod: ReadyPod,
    pub(super) spec: ContainerSpec,
    pub(super) image: ImageConfig,
    pub(super) user: ContainerUser,
    pub(super) facts: HostFacts,
    pub(super) mounts: Vec<ResolvedMount>,
    pub(super) devices: Vec<DeviceNode>,
    pub(super) target: Option<PathBuf>,
    pub(super) cpuset: Option<Cpuset>,
    pub(super) apparmor: String,
}

impl Case {
    pub(super) fn v2() -> Self {
        let names = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];
        Self::on(CgroupFacts::V2 {
            root: "/sys/fs/cgroup".into(),
            controllers: names.map(str::to_owned).into(),
            swap: true,
        })
    }

    pub(super) fn v1() -> Self {
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

    pub(super) fn on(cgroup: CgroupFacts) -> Self {
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
                closing: Default::default(),
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
                selinux: crate::host::Selinux::default(),
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
            apparmor: String::new(),
        }
    }

    pub(super) fn privileged(mut self) -> Self {
        self.spec.privileged = true;
        self.pod.spec = Arc::new(PodSpec {
            privileged: true,
            ..pod_spec()
        });
        self
    }

    pub(super) fn plan(&self) -> Result<ContainerPlan, Error> {
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
            apparmor: &self.apparmor,
        })
    }

    pub(super) fn mount(&mut self, path: &str, change: impl FnOnce(&mut ResolvedMount)) {
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
            own: false,
        };
        change(&mut mount);
        self.mounts.push(mount);
    }

    /// The mounts on a path, as JSON.
    pub(super) fn mounts_on(&self, path: &str) -> Vec<Value> {
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

pub(super) fn pod_spec() -> PodSpec {
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
        apparmor: AppArmorProfile::Unset,
        run_as_user: None,
        run_as_group: None,
        supplemental_groups: Vec::new(),
        supplemental_groups_policy: crate::model::GroupsPolicy::Merge,
        overhead: None,
        resources: None,
        runtime_handler: String::new(),
    }
}

pub(super) fn container_spec() -> ContainerSpec {
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
        apparmor: AppArmorProfile::Unset,
        stop_signal: None,
    }
}

/// A plan as JSON that people can read.
pub(super) fn shown(plan: &ContainerPlan) -> Value {
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
        "oom": { "v2": plan.oom.v2_dir, "v2Pod": plan.oom.v2_pod_dir, "v1": plan.oom.v1_dir },
        "killCgroup": plan.kill_cgroup,
        "seccomp": SeccompForm::freeze(&plan.seccomp),
    })
}

pub(super) fn shown_cgroup(cgroup: &worker::Cgroup) -> Value {
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
pub(super) fn parsed(plan: &ContainerPlan) -> oci_spec::runtime::Spec {
    serde_json::from_value(plan.oci.clone()).unwrap()
}
