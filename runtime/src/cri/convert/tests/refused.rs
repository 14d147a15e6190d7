//! What is refused, and which field is named for it.

use super::*;

/// A change to a request, the field that is named, and whether it is "not built" instead of wrong.
type Refusal = (&'static str, &'static str, bool);

const SANDBOXES: [Refusal; 30] = [
    ("metadata { name: '' }", "config.metadata.name", false),
    (
        "hostname: '0123456789012345678901234567890123456789012345678901234567890123456789'",
        "config.hostname",
        false,
    ),
    ("hostname: 'a\\nb'", "config.hostname", false),
    ("log_directory: 'relative'", "config.log_directory", false),
    (
        "dns_config { servers: '1.1.1.1\\nnameserver 2.2.2.2' }",
        "config.dns_config.servers[0]",
        false,
    ),
    (
        "port_mappings { container_port: 70000 }",
        "config.port_mappings[0].container_port",
        false,
    ),
    (
        "port_mappings { host_port: 80 }",
        "config.port_mappings[0].container_port",
        false,
    ),
    (
        "port_mappings { container_port: 80 host_ip: 'x' }",
        "config.port_mappings[0].host_ip",
        false,
    ),
    (
        "port_mappings { container_port: 80 protocol: 9 }",
        "config.port_mappings[0].protocol",
        false,
    ),
    (
        "linux { cgroup_parent: '/kubepods/../x' }",
        "config.linux.cgroup_parent",
        false,
    ),
    (
        "linux { sysctls { key: 'vm.swappiness' value: '1' } }",
        "config.linux.sysctls",
        false,
    ),
    (
        "linux { sysctls { key: 'net.core.somaxconn' value: '1\\000' } }",
        "config.linux.sysctls",
        false,
    ),
    (
        "linux { sysctls { key: 'net.core.somaxconn\\n' value: '1' } }",
        "config.linux.sysctls",
        false,
    ),
    (
        "linux { sysctls { key: 'net.core/../../kernel.pid_max' value: '1' } }",
        "config.linux.sysctls",
        false,
    ),
    (
        "linux { sysctls { key: 'fs.mqueue.//.//.kernel.pid_max' value: '1' } }",
        "config.linux.sysctls",
        false,
    ),
    (
        "linux { sysctls { key: 'net..x' value: '1' } }",
        "config.linux.sysctls",
        false,
    ),
    (
        "linux { sysctls { key: 'net.core.somaxconn' value: '1' } security_context { namespace_options { network: NODE } } }",
        "config.linux.sysctls",
        false,
    ),
    (
        "linux { overhead { cpu_quota: -2 } }",
        "config.linux.overhead.cpu_quota",
        false,
    ),
    (
        "namespace_options { network: CONTAINER }",
        "namespace_options.network",
        false,
    ),
    (
        "namespace_options { pid: TARGET }",
        "namespace_options.pid",
        false,
    ),
    (
        "namespace_options { ipc: 7 }",
        "namespace_options.ipc",
        false,
    ),
    (
        "namespace_options { userns_options { mode: TARGET } }",
        "namespace_options.userns_options.mode",
        false,
    ),
    (
        "namespace_options { userns_options { mode: NODE uids { length: 1 } } }",
        "namespace_options.userns_options",
        false,
    ),
    (
        "namespace_options { userns_options { mode: POD uids { host_id: 1 length: 0 } gids { length: 1 } } }",
        "namespace_options.userns_options.uids",
        false,
    ),
    (
        "namespace_options { userns_options { mode: POD uids { host_id: 65536 length: 65536 } gids { host_id: 65536 length: 65536 } } }",
        "namespace_options.userns_options",
        true,
    ),
    ("run_as_group { value: 5 }", "run_as_group", false),
    ("run_as_user { value: -1 }", "run_as_user", false),
    (
        "supplemental_groups: 4294967295",
        "supplemental_groups[0]",
        false,
    ),
    (
        "seccomp { profile_type: Localhost localhost_ref: 'relative.json' }",
        "seccomp.localhost_ref",
        false,
    ),
    (
        "seccomp_profile_path: 'nonsense'",
        "seccomp_profile_path",
        false,
    ),
];

#[test]
fn a_refused_sandbox_names_the_field() {
    let security = "linux.security_context";
    for (change, field, not_built) in SANDBOXES {
        let in_security = !field.starts_with("config.");
        let text = if in_security {
            format!("linux {{ security_context {{ {change} }} }}")
        } else {
            change.to_owned()
        };
        let mut config: v1::PodSandboxConfig = parse("PodSandboxConfig", &text);
        config.metadata = config.metadata.or(kubelet_pod().metadata);
        let field = if in_security {
            format!("config.{security}.{field}")
        } else {
            field.to_owned()
        };
        refused(pod_spec(config).map(drop), change, &field, not_built);
    }
}

fn refused(outcome: Result<(), Error>, change: &str, field: &str, not_built: bool) {
    let error = outcome.expect_err(change);
    let (Error::Invalid { field: named, .. } | Error::NotBuilt { field: named, .. }) = &error;
    assert_eq!(named, field, "{change}: {error}");
    let kind = if not_built {
        Kind::Unimplemented
    } else {
        Kind::InvalidArgument
    };
    assert_eq!(error.kind(), kind, "{change}: {error}");
}

/// `MOUNT` stands for a mount that is fine so far.
const CONTAINERS: [Refusal; 31] = [
    ("metadata { name: '' }", "metadata.name", false),
    ("image { image: '' }", "image.image", false),
    ("command: 'a\\000b'", "command[0]", false),
    ("envs { key: 'A=B' }", "envs[0].key", false),
    ("envs { key: 'A' value: 'x\\000' }", "envs[0].value", false),
    ("log_path: '../x'", "log_path", false),
    ("log_path: '/x'", "log_path", false),
    ("stop_signal: 99", "stop_signal", false),
    (
        "CDI_devices { name: 'vendor/class=x' }",
        "CDI_devices",
        true,
    ),
    (
        "devices { container_path: '/dev/x' host_path: '/dev/x' permissions: 'rx' }",
        "devices[0].permissions",
        false,
    ),
    (
        "devices { container_path: '/dev/x' }",
        "devices[0].host_path",
        false,
    ),
    (
        "mounts { host_path: '/h' }",
        "mounts[0].container_path",
        false,
    ),
    (
        "mounts { container_path: '/m' }",
        "mounts[0].host_path",
        false,
    ),
    (
        "mounts { MOUNT propagation: 9 }",
        "mounts[0].propagation",
        false,
    ),
    (
        "mounts { container_path: '/m' image { image: 'sha256:00' } }",
        "mounts[0].image",
        true,
    ),
    (
        "mounts { MOUNT image_sub_path: 'x' }",
        "mounts[0].image_sub_path",
        false,
    ),
    (
        "mounts { MOUNT uidMappings { length: 1 } }",
        "mounts[0].uidMappings",
        true,
    ),
    (
        "mounts { MOUNT recursive_read_only: true }",
        "mounts[0].recursive_read_only",
        false,
    ),
    (
        "mounts { MOUNT readonly: true recursive_read_only: true propagation: PROPAGATION_BIDIRECTIONAL }",
        "mounts[0].recursive_read_only",
        false,
    ),
    (
        "mounts { MOUNT readonly: true recursive_read_only: true }",
        "mounts[0].recursive_read_only",
        true,
    ),
    (
        "mounts { MOUNT mount_options: 'suid' }",
        "mounts[0].mount_options[0]",
        false,
    ),
    (
        "linux { resources { unified { key: '../x.y' value: '1' } } }",
        "linux.resources.unified",
        false,
    ),
    (
        "linux { resources { oom_score_adj: 1001 } }",
        "linux.resources.oom_score_adj",
        false,
    ),
    (
        "linux { resources { memory_limit_in_bytes: 9 memory_swap_limit_in_bytes: 8 } }",
        "linux.resources.memory_swap_limit_in_bytes",
        false,
    ),
    (
        "linux { resources { cpuset_cpus: 'x' } }",
        "linux.resources.cpuset_cpus",
        false,
    ),
    (
        "linux { resources { hugepage_limits { page_size: '2' } } }",
        "linux.resources.hugepage_limits[0].page_size",
        false,
    ),
    (
        "linux { security_context { privileged: true } }",
        "linux.security_context.privileged",
        false,
    ),
    (
        "linux { security_context { run_as_group { value: 1 } } }",
        "linux.security_context.run_as_group",
        false,
    ),
    (
        "linux { security_context { run_as_user { value: 1 } run_as_username: 'x' } }",
        "linux.security_context.run_as_username",
        false,
    ),
    (
        "linux { security_context { namespace_options { network: NODE } } }",
        "linux.security_context.namespace_options.network",
        false,
    ),
    (
        "linux { security_context { namespace_options { pid: TARGET } } }",
        "linux.security_context.namespace_options.target_id",
        false,
    ),
];

#[test]
fn a_refused_container_names_the_field() {
    let mount = "container_path: '/m' host_path: '/h'";
    let abilities = Abilities {
        mount_options: true,
        ..Abilities::default()
    };
    for (change, field, not_built) in CONTAINERS {
        let text = change.replace("MOUNT", mount);
        let mut config: v1::ContainerConfig = parse("ContainerConfig", &text);
        config.metadata = config.metadata.or(kubelet_container().metadata);
        config.image = config.image.or(kubelet_container().image);
        let outcome = container_spec(config, abilities).map(drop);
        refused(outcome, change, &format!("config.{field}"), not_built);
    }
}
