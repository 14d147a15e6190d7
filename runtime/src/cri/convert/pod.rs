//! Sandboxes (rows F001 to F030, F100 to F104).

use std::collections::BTreeMap;
use std::net::IpAddr;

use berth_cri_api::v1;

use super::{Abilities, At, Error, namespaces, resources, security};
use crate::model::{
    DnsConfig, NamespaceMode, NamespaceModes, PodFilter, PodMetadata, PodSpec, PodState, PodStatus,
    PortMapping, Protocol, Resources,
};

/// Longest host name the kernel takes (uname(2)).
const HOST_NAME_MAX: usize = 64;

/// What a sandbox is to be like. `at` is the field that holds the configuration.
pub(in crate::cri) fn spec(
    at: &At<'_>,
    config: v1::PodSandboxConfig,
    runtime_handler: String,
    abilities: Abilities,
) -> Result<PodSpec, Error> {
    let linux_at = at.field("linux");
    let linux = config.linux.unwrap_or_default();
    let security_at = linux_at.field("security_context");
    let security = linux.security_context.unwrap_or_default();
    let namespaces = namespaces::of_pod(
        &security_at.field("namespace_options"),
        security.namespace_options.clone(),
    )?;
    let pause = pause(&security_at, security, abilities)?;
    let dns_at = at.field("dns_config");
    Ok(PodSpec {
        metadata: metadata(&at.field("metadata"), config.metadata)?,
        hostname: hostname(&at.field("hostname"), config.hostname)?,
        log_directory: log_directory(&at.field("log_directory"), config.log_directory)?,
        dns: config.dns_config.map(|c| dns(&dns_at, c)).transpose()?,
        port_mappings: ports(&at.field("port_mappings"), config.port_mappings)?,
        labels: at.field("labels").notes(config.labels)?,
        annotations: at.field("annotations").notes(config.annotations)?,
        cgroup_parent: cgroup_parent(&linux_at.field("cgroup_parent"), linux.cgroup_parent)?,
        sysctls: sysctls(&linux_at.field("sysctls"), linux.sysctls, &namespaces)?,
        namespaces,
        privileged: pause.privileged,
        seccomp: pause.seccomp,
        apparmor: pause.apparmor,
        run_as_user: pause.user,
        run_as_group: pause.group,
        supplemental_groups: pause.groups,
        supplemental_groups_policy: pause.policy,
        overhead: optional_resources(&linux_at.field("overhead"), linux.overhead)?,
        resources: optional_resources(&linux_at.field("resources"), linux.resources)?,
        runtime_handler,
    })
}

/// Settings of the pause process.
struct Pause {
    privileged: bool,
    seccomp: crate::model::SeccompProfile,
    apparmor: crate::model::AppArmorProfile,
    user: Option<u32>,
    group: Option<u32>,
    groups: Vec<u32>,
    policy: crate::model::GroupsPolicy,
}

#[allow(deprecated)] // The older text form of the seccomp profile still counts (row F030).
fn pause(
    at: &At<'_>,
    given: v1::LinuxSandboxSecurityContext,
    abilities: Abilities,
) -> Result<Pause, Error> {
    let labels_at = at.field("selinux_options");
    security::selinux(&labels_at, given.selinux_options, abilities)?;
    let user = security::id(&at.field("run_as_user"), given.run_as_user)?;
    let group_at = at.field("run_as_group");
    let group = security::id(&group_at, given.run_as_group)?;
    if group.is_some() && user.is_none() {
        return Err(group_at.invalid("is given without run_as_user"));
    }
    let policy_at = at.field("supplemental_groups_policy");
    Ok(Pause {
        privileged: given.privileged,
        seccomp: security::seccomp(at, given.seccomp, given.seccomp_profile_path)?,
        apparmor: security::apparmor(at, given.apparmor, "", given.privileged, abilities)?,
        user,
        group,
        groups: security::groups(&at.field("supplemental_groups"), given.supplemental_groups)?,
        policy: security::groups_policy(&policy_at, given.supplemental_groups_policy)?,
    })
}

fn metadata(at: &At<'_>, given: Option<v1::PodSandboxMetadata>) -> Result<PodMetadata, Error> {
    let given = at.required(given)?;
    let word = |name, text| {
        let at = at.field(name);
        at.filled(text).and_then(|text| at.line(text))
    };
    Ok(PodMetadata {
        name: word("name", given.name)?,
        uid: word("uid", given.uid)?,
        namespace: word("namespace", given.namespace)?,
        attempt: given.attempt,
    })
}

fn hostname(at: &At<'_>, name: String) -> Result<String, Error> {
    if name.len() > HOST_NAME_MAX {
        return Err(at.invalid(format!("{name:?} is longer than {HOST_NAME_MAX} bytes")));
    }
    at.line(name)
}

fn log_directory(at: &At<'_>, directory: String) -> Result<String, Error> {
    if !directory.is_empty() && !directory.starts_with('/') {
        return Err(at.invalid(format!("{directory:?} is not an absolute path")));
    }
    at.text(directory)
}

fn cgroup_parent(at: &At<'_>, parent: String) -> Result<String, Error> {
    if parent.split('/').any(|part| part == "..") {
        return Err(at.invalid(format!("{parent:?} leaves the cgroup hierarchy")));
    }
    at.line(parent)
}

fn dns(at: &At<'_>, given: v1::DnsConfig) -> Result<DnsConfig, Error> {
    Ok(DnsConfig {
        servers: at.field("servers").each(given.servers, At::line)?,
        searches: at.field("searches").each(given.searches, At::line)?,
        options: at.field("options").each(given.options, At::line)?,
    })
}

fn ports(at: &At<'_>, given: Vec<v1::PortMapping>) -> Result<Vec<PortMapping>, Error> {
    let given = given.into_iter().enumerate();
    given.map(|(i, p)| port(&at.index(i), p)).collect()
}

fn port(at: &At<'_>, given: v1::PortMapping) -> Result<PortMapping, Error> {
    let number = |name, value: i32| {
        let wrong = || at.field(name).invalid(format!("{value} is not a port"));
        u16::try_from(value).map_err(|_| wrong())
    };
    let container_port = number("container_port", given.container_port)?;
    let host_port = number("host_port", given.host_port)?;
    if host_port > 0 && container_port == 0 {
        return Err(at.field("container_port").invalid("0 cannot be published"));
    }
    if !given.host_ip.is_empty() && given.host_ip.parse::<IpAddr>().is_err() {
        let at = at.field("host_ip");
        return Err(at.invalid(format!("{:?} is not an address", given.host_ip)));
    }
    Ok(PortMapping {
        protocol: match at.field("protocol").known(given.protocol)? {
            v1::Protocol::Tcp => Protocol::Tcp,
            v1::Protocol::Udp => Protocol::Udp,
            v1::Protocol::Sctp => Protocol::Sctp,
        },
        container_port,
        host_port,
        host_ip: given.host_ip,
    })
}

/// Kernel parameters under dotted names. Only those that belong to a namespace of the pod's own are
/// taken: any other would change the host (row F013). Values are whatever the kernel makes of them.
fn sysctls(
    at: &At<'_>,
    given: BTreeMap<String, String>,
    namespaces: &NamespaceModes,
) -> Result<BTreeMap<String, String>, Error> {
    let mut sysctls = BTreeMap::new();
    for (key, value) in given {
        if value.contains('\0') {
            return Err(at.invalid(format!("the value of {key:?} contains a NUL byte")));
        }
        let name = dotted(&key);
        let plain = |c: char| c.is_ascii_graphic();
        if name.is_empty() || !name.chars().all(plain) || name.split(['.', '/']).any(str::is_empty)
        {
            return Err(at.invalid(format!("{key:?} is not the name of a kernel parameter")));
        }
        let of_ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
        if name == "kernel.hostname" {
            let text = format!("{key:?} is the field \"hostname\" of the pod: set that");
            return Err(at.invalid(text));
        }
        let namespace = if name.starts_with("net.") {
            (namespaces.network, "network")
        } else if name == "kernel.domainname" {
            // A pod has a host name of its own where it has a network of its own.
            (namespaces.network, "UTS")
        } else if of_ipc.iter().any(|prefix| name.starts_with(prefix)) {
            (namespaces.ipc, "IPC")
        } else {
            return Err(at.invalid(format!(
                "{key:?} does not belong to a namespace of the pod; it would change the host"
            )));
        };
        if namespace.0 == NamespaceMode::Node {
            return Err(at.invalid(format!(
                "{key:?} would change the host: the pod uses the {} namespace of the node",
                namespace.1
            )));
        }
        if sysctls.insert(name, value).is_some() {
            return Err(at.invalid(format!("{key:?} is given twice")));
        }
    }
    Ok(sysctls)
}

/// A name with slashes as separators becomes one with dots, the rule of sysctl.d(5): the first separator
/// tells which, and the other one is a part of the name then.
fn dotted(name: &str) -> String {
    if name.find(['.', '/']).map(|i| &name[i..=i]) != Some("/") {
        return name.to_owned();
    }
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    name.chars().map(swap).collect()
}

fn optional_resources(
    at: &At<'_>,
    given: Option<v1::LinuxContainerResources>,
) -> Result<Option<Resources>, Error> {
    given.map(|r| resources::resources(at, r)).transpose()
}

/// Which sandboxes are wanted.
pub(in crate::cri) fn filter(given: Option<v1::PodSandboxFilter>) -> Result<PodFilter, Error> {
    let given = given.unwrap_or_default();
    let at = At::root("filter.state");
    let state = given.state.map(|s| at.known(s.state)).transpose()?;
    Ok(PodFilter {
        id: given.id,
        state: state.map(|s: v1::PodSandboxState| match s {
            v1::PodSandboxState::SandboxReady => PodState::Ready,
            v1::PodSandboxState::SandboxNotready => PodState::NotReady,
        }),
        labels: given.label_selector,
    })
}

fn state(state: PodState) -> i32 {
    match state {
        PodState::Ready => v1::PodSandboxState::SandboxReady,
        PodState::NotReady => v1::PodSandboxState::SandboxNotready,
    }
    .into()
}

pub(super) fn metadata_to_proto(metadata: &PodMetadata) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        namespace: metadata.namespace.clone(),
        attempt: metadata.attempt,
    }
}

/// A sandbox in a list.
pub(in crate::cri) fn item(pod: &PodStatus) -> v1::PodSandbox {
    v1::PodSandbox {
        id: pod.id.to_string(),
        metadata: Some(metadata_to_proto(&pod.spec.metadata)),
        state: state(pod.state),
        created_at: pod.created_at,
        labels: pod.spec.labels.clone(),
        annotations: pod.spec.annotations.clone(),
        runtime_handler: pod.spec.runtime_handler.clone(),
    }
}

/// A sandbox as it is now.
pub(in crate::cri) fn status(pod: &PodStatus) -> v1::PodSandboxStatus {
    let mut ips = pod.ips.iter().map(IpAddr::to_string);
    v1::PodSandboxStatus {
        id: pod.id.to_string(),
        metadata: Some(metadata_to_proto(&pod.spec.metadata)),
        state: state(pod.state),
        created_at: pod.created_at,
        // With no address inside for the network of the host: the kubelet warns when it is not there.
        network: Some(v1::PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace {
                options: Some(namespaces::to_proto(&pod.spec.namespaces)),
            }),
        }),
        labels: pod.spec.labels.clone(),
        annotations: pod.spec.annotations.clone(),
        runtime_handler: pod.spec.runtime_handler.clone(),
    }
}
