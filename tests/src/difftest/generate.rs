//! Configurations that follow from a seed: what pods of all sorts ask for, alone and together.

use berth_cri_api::v1::*;

use super::random::Random;
use crate::cri::image_spec;
use crate::images::odd;
use crate::pods::namespaces;

/// Stands for the folder with the sources of mounts, which each runtime has of its own.
pub const SOURCES: &str = "@SOURCES@";

/// A pod with a container, before a runtime's own names are put in.
#[derive(Clone, Debug)]
pub struct Case {
    /// its number within the run
    pub number: usize,
    /// the pod
    pub pod: PodSandboxConfig,
    /// the container
    pub container: ContainerConfig,
}

impl Case {
    /// The case of a run.
    #[must_use]
    pub fn generate(seed: u64, number: usize) -> Self {
        let mut random = Random::new(seed, number);
        let random = &mut random;
        let mut pod = pod(random, number);
        let mut container = container(random);
        mounts(random, &mut container);
        devices(random, &mut container);
        security(random, &mut pod, &mut container);
        leave_shared_mounts_alone(&mut container);
        Self {
            number,
            pod,
            container,
        }
    }
}

fn text(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn pod(random: &mut Random, number: usize) -> PodSandboxConfig {
    let mut config = PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: format!("case-{number}"),
            uid: format!("case-{number}"),
            namespace: "difftest".to_owned(),
            attempt: 0,
        }),
        hostname: (*random.one(&["pod", "web-0", "a-name-of-many-letters-and-1-digit"])).to_owned(),
        labels: [("app".to_owned(), "difftest".to_owned())].into(),
        linux: Some(LinuxPodSandboxConfig::default()),
        ..PodSandboxConfig::default()
    };
    if random.chance(70) {
        config.dns_config = Some(DnsConfig {
            servers: random.some(60, &text(&["10.96.0.10", "10.96.0.11"])),
            searches: random.some(50, &text(&["default.svc.cluster.local", "example.org"])),
            options: random.some(50, &text(&["ndots:5", "edns0"])),
        });
    }
    let sysctls = [
        ("net.ipv4.ip_unprivileged_port_start", "80"),
        ("net.ipv4.ping_group_range", "0 1000"),
        ("net.ipv4.ping_group_range", "0\t1000"),
        ("net/core/somaxconn", "777"),
        ("net.ipv4.ip_local_port_range", "20000\t30000"),
        ("net.ipv4.tcp_rmem", "4096 100000 600000"),
        ("kernel.shm_rmid_forced", "1"),
        ("kernel.msgmax", "12345"),
        ("kernel.sem", "250\t32000\t32\t200"),
        ("fs.mqueue.msg_max", "20"),
    ];
    if let Some(linux) = &mut config.linux {
        let chosen = random.some(12, &sysctls);
        linux.sysctls = chosen
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
    }
    config
}

fn container(random: &mut Random) -> ContainerConfig {
    let image = *random.one(&odd::NAMES);
    let mut config = ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: "probe".to_owned(),
            attempt: random.chance(20).into(),
        }),
        image: Some(image_spec(image)),
        labels: [("a".to_owned(), "label".to_owned())].into(),
        annotations: [("an".to_owned(), "annotation\nof two lines".to_owned())].into(),
        log_path: (*random.one(&["probe.log", "deep/er/probe.log"])).to_owned(),
        linux: Some(LinuxContainerConfig {
            resources: Some(resources(random)),
            security_context: Some(LinuxContainerSecurityContext::default()),
        }),
        ..ContainerConfig::default()
    };
    // The images run the probe by themselves, too.
    match random.below(4) {
        0 => config.command = text(&["/bin/sh", "/probe"]),
        1 => {
            config.command = text(&["sh", "/probe"]);
            config.args = text(&["one", "two words", ""]);
        }
        2 => config.args = text(&["/probe", "an argument"]),
        _ => {}
    }
    let envs = [
        ("A", "1"),
        ("A", "2"),
        ("EMPTY", ""),
        ("HOME", "/elsewhere"),
        ("PATH", "/sbin:/bin"),
        ("GREETING", "from the request"),
        ("ODD", "a=b 'c' \"d\" $e"),
        ("lower.case-name", "x"),
        ("HOSTNAME", "mine"),
        ("TERM", "vt100"),
    ];
    let envs = random.some(15, &envs);
    config.envs = envs
        .into_iter()
        .map(|(key, value)| KeyValue {
            key: key.to_owned(),
            value: value.into(),
        })
        .collect();
    if random.chance(30) {
        config.working_dir =
            (*random.one(&["/", "/tmp", "/data", "/made/deep/by/cwd", "/etc"])).to_owned();
    }
    if random.chance(15) {
        config.tty = true;
        config.stdin = random.chance(50);
    } else if random.chance(20) {
        config.stdin = true;
        config.stdin_once = random.chance(50);
    }
    if random.chance(15) {
        let signals = [
            Signal::Sigusr1,
            Signal::Sigint,
            Signal::Sigquit,
            Signal::Sigterm,
        ];
        config.stop_signal = (*random.one(&signals)).into();
    }
    config
}

fn resources(random: &mut Random) -> LinuxContainerResources {
    let mut resources = LinuxContainerResources::default();
    if random.chance(40) {
        resources.cpu_shares = *random.one(&[2, 102, 1024, 2048]);
    }
    if random.chance(30) {
        resources.cpu_period = *random.one(&[100_000, 50_000]);
        resources.cpu_quota = *random.one(&[20_000, 100_000, 150_000, -1]);
    }
    if random.chance(40) {
        resources.memory_limit_in_bytes = *random.one(&[64 << 20, 100_000_000, 1 << 30]);
    }
    if random.chance(30) {
        resources.oom_score_adj = *random.one(&[0, 2, 500, 1000]);
    }
    if random.chance(15) {
        resources.cpuset_cpus = (*random.one(&["0", "0-1"])).to_owned();
    }
    if random.chance(10) {
        resources.cpuset_mems = "0".to_owned();
    }
    if random.chance(15) {
        resources.hugepage_limits = vec![HugepageLimit {
            page_size: "2MB".to_owned(),
            limit: *random.one(&[0, 4 << 20]),
        }];
    }
    resources
}

fn mounts(random: &mut Random, config: &mut ContainerConfig) {
    let places = [
        ("data", "/data"),
        ("data", "/data/"),
        ("data", "/made/deep/../deep"),
        ("data", "/ro"),
        ("data", "/alias"),
        ("data", "/var/run/inside"),
        ("data/sub", "/nested/inner"),
        ("data", "/nested"),
        ("data/sub", "/vol"),
        ("data", "/vol/inner"),
        ("data", "/dev/shm"),
        ("data", "/dev/below"),
        ("link", "/through-a-link"),
        ("absent", "/was-absent"),
        ("file", "/file"),
        ("file", "/etc/hosts"),
        ("file", "/etc/hostname"),
        ("file", "/etc/resolv.conf"),
        ("file", "/etc/localtime"),
        ("file", "/dev/termination-log"),
        ("file", "/made/deep/file"),
        ("file", "/data/sub/over"),
    ];
    for (source, target) in random.some(12, &places) {
        let mut mount = Mount {
            host_path: format!("{SOURCES}/{source}"),
            container_path: target.to_owned(),
            readonly: random.chance(35) || target == "/ro",
            ..Mount::default()
        };
        if random.chance(20) {
            mount.propagation = MountPropagation::PropagationHostToContainer.into();
        } else if random.chance(10) {
            mount.propagation = MountPropagation::PropagationBidirectional.into();
        }
        mount.selinux_relabel = random.chance(10);
        config.mounts.push(mount);
    }
    if random.chance(5) {
        let (source, target) = *random.one(&[
            ("/dev", "/dev"),
            ("/dev/urandom", "/dev/urandom"),
            ("/dev/null", "/dev/tty"),
            ("/dev/zero", "/dev/null"),
            ("/sys", "/sys"),
            ("/proc", "/host/proc"),
        ]);
        config.mounts.push(Mount {
            host_path: source.to_owned(),
            container_path: target.to_owned(),
            ..Mount::default()
        });
    }
}

fn devices(random: &mut Random, config: &mut ContainerConfig) {
    let devices = [
        ("/dev/zero", "/dev/extra", "rwm"),
        ("/dev/full", "/dev/sub/folder/full", "r"),
        ("/dev/zero", "/srv/zero", "rw"),
        ("/dev/null", "/dev/null", "rwm"),
    ];
    for (host, inside, permissions) in random.some(8, &devices) {
        config.devices.push(Device {
            host_path: host.to_owned(),
            container_path: inside.to_owned(),
            permissions: permissions.to_owned(),
        });
    }
}

fn security(random: &mut Random, pod: &mut PodSandboxConfig, container: &mut ContainerConfig) {
    let node = |random: &mut Random| {
        if random.chance(8) {
            NamespaceMode::Node
        } else {
            NamespaceMode::Pod
        }
    };
    let pid = match random.below(5) {
        0 => NamespaceMode::Pod,
        1 => NamespaceMode::Node,
        _ => NamespaceMode::Container,
    };
    let modes = NamespaceOption {
        network: node(random).into(),
        ..namespaces(node(random), pid)
    };
    if modes.network == i32::from(NamespaceMode::Node) {
        pod.hostname.clear();
        if let Some(linux) = &mut pod.linux {
            linux.sysctls.retain(|name, _| !name.starts_with("net"));
        }
    }
    if modes.ipc == i32::from(NamespaceMode::Node)
        && let Some(linux) = &mut pod.linux
    {
        linux.sysctls.retain(|name, _| name.starts_with("net"));
    }
    let privileged = random.chance(12);
    let outer = LinuxSandboxSecurityContext {
        namespace_options: Some(modes.clone()),
        privileged,
        selinux_options: random.chance(8).then(selinux),
        ..LinuxSandboxSecurityContext::default()
    };
    let mut inner = LinuxContainerSecurityContext {
        namespace_options: Some(modes),
        privileged,
        readonly_rootfs: random.chance(25),
        no_new_privs: random.chance(30),
        selinux_options: random.chance(8).then(selinux),
        ..LinuxContainerSecurityContext::default()
    };
    let image = container.image.as_ref().map(|image| image.image.as_str());
    let known = image.is_some_and(|image| image.ends_with("users"));
    user(random, &mut inner, known);
    capabilities(random, &mut inner);
    paths(random, &mut inner);
    if random.chance(50) {
        let kind = if random.chance(60) {
            security_profile::ProfileType::RuntimeDefault
        } else {
            security_profile::ProfileType::Unconfined
        };
        inner.seccomp = Some(SecurityProfile {
            profile_type: kind.into(),
            localhost_ref: String::new(),
        });
    }
    if let Some(linux) = &mut pod.linux {
        linux.security_context = Some(outer);
    }
    if let Some(linux) = &mut container.linux {
        linux.security_context = Some(inner);
    }
}

fn selinux() -> SeLinuxOption {
    SeLinuxOption {
        user: String::new(),
        role: String::new(),
        r#type: "spc_t".to_owned(),
        level: "s0:c1,c2".to_owned(),
    }
}

fn user(random: &mut Random, context: &mut LinuxContainerSecurityContext, known: bool) {
    let value = |value: i64| Some(Int64Value { value });
    match random.below(6) {
        0 => context.run_as_user = value(*random.one(&[0, 1000, 1234, 4_000_000])),
        1 => {
            let names: &[&str] = if known {
                &["app", "nogroup", "short"]
            } else {
                &["root", "www-data"]
            };
            context.run_as_username = (*random.one(names)).to_owned();
        }
        _ => {}
    }
    if (context.run_as_user.is_some() || !context.run_as_username.is_empty()) && random.chance(40) {
        context.run_as_group = value(*random.one(&[0, 1235, 5_000_000]));
    }
    if random.chance(30) {
        context.supplemental_groups = random.some(50, &[0, 1236, 2000, 2000, 70_000]);
    }
    if random.chance(30) {
        context.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
    }
}

fn capabilities(random: &mut Random, context: &mut LinuxContainerSecurityContext) {
    if !random.chance(45) {
        return;
    }
    let names = text(&[
        "NET_ADMIN",
        "NET_RAW",
        "SYS_PTRACE",
        "sys_time",
        "CHOWN",
        "SYS_ADMIN",
        "MKNOD",
        "SETUID",
        "SYS_NICE",
        "SYSLOG",
        "NOT_A_CAPABILITY",
    ]);
    let mut add = random.some(15, &names);
    let mut drop = random.some(15, &names);
    if random.chance(25) {
        drop = text(&["ALL"]);
    } else if random.chance(15) {
        add = text(&["ALL"]);
    }
    context.capabilities = Some(Capability {
        add_capabilities: add,
        drop_capabilities: drop,
        add_ambient_capabilities: Vec::new(),
    });
}

fn paths(random: &mut Random, context: &mut LinuxContainerSecurityContext) {
    if random.chance(70) {
        context.masked_paths = text(&[
            "/proc/acpi",
            "/proc/kcore",
            "/proc/keys",
            "/proc/latency_stats",
            "/proc/timer_list",
            "/proc/sched_debug",
            "/proc/scsi",
            "/sys/firmware",
        ]);
        context.readonly_paths = text(&[
            "/proc/bus",
            "/proc/fs",
            "/proc/irq",
            "/proc/sys",
            "/proc/sysrq-trigger",
        ]);
    }
    context.masked_paths.extend(random.some(
        10,
        &text(&["/alias", "/srv", "/absent", "/etc/hosts", "/masked"]),
    ));
    context
        .readonly_paths
        .extend(random.some(10, &text(&["/tmp", "/etc/passwd", "/absent", "/alias"])));
}

/// With runc what is mounted in a Bidirectional volume, and what masks it, goes through it to the host and to every other
/// mount of the same source; on Berth it stays where it is (ADR 15).
fn leave_shared_mounts_alone(config: &mut ContainerConfig) {
    let shared: Vec<String> = config
        .mounts
        .iter()
        .filter(|mount| mount.propagation() == MountPropagation::PropagationBidirectional)
        .map(|mount| format!("{}/", mount.container_path.trim_end_matches('/')))
        .collect();
    let is_in = |path: &str| shared.iter().any(|top| path.starts_with(top));
    config.mounts.retain(|mount| !is_in(&mount.container_path));
    let context = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut());
    if let Some(context) = context.filter(|_| !shared.is_empty()) {
        let kernel = |path: &String| path.starts_with("/proc/") || path.starts_with("/sys/");
        context.masked_paths.retain(kernel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_the_same_every_time_and_cases_differ() {
        let print = |seed, number| format!("{:?}", Case::generate(seed, number));
        assert_eq!(print(5, 9), print(5, 9));
        assert_ne!(print(5, 9), print(5, 10));
    }
}
