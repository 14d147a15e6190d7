//! Containers as they are asked for (rows F041 to F071).

use berth_cri_api::v1;

use super::{Abilities, At, Error, mounts, namespaces, resources, security, signals};
use crate::model::{
    CapabilityRequest, ContainerFilter, ContainerMetadata, ContainerSpec, ContainerState, PodSpec,
    UserRequest,
};

/// What a container is to be like, in that pod.
pub(in crate::cri) fn spec(
    at: &At<'_>,
    config: v1::ContainerConfig,
    pod: &PodSpec,
    abilities: Abilities,
) -> Result<ContainerSpec, Error> {
    if !config.cdi_devices.is_empty() {
        let at = at.field("CDI_devices");
        return Err(at.not_built("CDI devices are not built into this version of Berth"));
    }
    let image = at.field("image").required(config.image)?;
    let image_at = at.field("image");
    let linux_at = at.field("linux");
    let linux = config.linux.unwrap_or_default();
    let security_at = linux_at.field("security_context");
    let security = Security::parse(
        &security_at,
        linux.security_context.unwrap_or_default(),
        pod,
        abilities,
    )?;
    let resources_at = linux_at.field("resources");
    Ok(ContainerSpec {
        metadata: metadata(&at.field("metadata"), config.metadata)?,
        image: image_at.field("image").filled(image.image)?,
        user_specified_image: image.user_specified_image,
        command: at.field("command").each(config.command, At::text)?,
        args: at.field("args").each(config.args, At::text)?,
        working_dir: at.field("working_dir").text(config.working_dir)?,
        envs: environment(&at.field("envs"), config.envs)?,
        mounts: mounts::mounts(&at.field("mounts"), config.mounts, abilities)?,
        devices: mounts::devices(&at.field("devices"), config.devices)?,
        labels: at.field("labels").notes(config.labels)?,
        annotations: at.field("annotations").notes(config.annotations)?,
        log_path: log_path(&at.field("log_path"), config.log_path)?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources: resources::resources(&resources_at, linux.resources.unwrap_or_default())?,
        capabilities: security.capabilities,
        privileged: security.privileged,
        namespaces: security.namespaces,
        user: security.user,
        read_only_root: security.read_only_root,
        no_new_privs: security.no_new_privs,
        masked_paths: security.masked_paths,
        readonly_paths: security.readonly_paths,
        seccomp: security.seccomp,
        apparmor: security.apparmor,
        stop_signal: signals::stop_signal(&at.field("stop_signal"), config.stop_signal)?,
    })
}

fn metadata(at: &At<'_>, given: Option<v1::ContainerMetadata>) -> Result<ContainerMetadata, Error> {
    let given = at.required(given)?;
    let name_at = at.field("name");
    Ok(ContainerMetadata {
        name: name_at.line(name_at.filled(given.name)?)?,
        attempt: given.attempt,
    })
}

/// Names without `=`; values are any bytes but NUL, which ends an entry of the environment (execve(2)).
fn environment(at: &At<'_>, given: Vec<v1::KeyValue>) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let given = given.into_iter().enumerate();
    given
        .map(|(i, variable)| {
            let at = at.index(i);
            let key_at = at.field("key");
            let key = key_at.filled(variable.key)?;
            if key.contains('=') {
                return Err(key_at.invalid(format!("{key:?} contains an equals sign")));
            }
            if variable.value.contains(&0) {
                let at = at.field("value");
                return Err(at.invalid(format!("the value of {key} contains a NUL byte")));
            }
            Ok((key, variable.value))
        })
        .collect()
}

/// Relative to the log directory of the pod, and never out of it.
fn log_path(at: &At<'_>, path: String) -> Result<String, Error> {
    if path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return Err(at.invalid(format!("{path:?} leaves the log directory of the pod")));
    }
    at.text(path)
}

/// The security context, checked.
struct Security {
    capabilities: CapabilityRequest,
    privileged: bool,
    namespaces: crate::model::NamespaceModes,
    user: UserRequest,
    read_only_root: bool,
    no_new_privs: bool,
    masked_paths: Vec<String>,
    readonly_paths: Vec<String>,
    seccomp: crate::model::SeccompProfile,
    apparmor: crate::model::AppArmorProfile,
}

impl Security {
    #[allow(deprecated)] // The older text forms of the profiles still count (rows F030, F036).
    fn parse(
        at: &At<'_>,
        given: v1::LinuxContainerSecurityContext,
        pod: &PodSpec,
        abilities: Abilities,
    ) -> Result<Self, Error> {
        if given.privileged && !pod.privileged {
            let at = at.field("privileged");
            return Err(
                at.invalid("is set, but the sandbox was not made for privileged containers")
            );
        }
        let user = user(at, &given)?;
        let labels_at = at.field("selinux_options");
        security::selinux(&labels_at, given.selinux_options, abilities)?;
        let namespaces_at = at.field("namespace_options");
        Ok(Self {
            capabilities: capabilities(given.capabilities),
            privileged: given.privileged,
            namespaces: namespaces::of_container(
                &namespaces_at,
                given.namespace_options,
                &pod.namespaces,
            )?,
            user,
            read_only_root: given.readonly_rootfs,
            no_new_privs: given.no_new_privs,
            masked_paths: at
                .field("masked_paths")
                .each(given.masked_paths, At::text)?,
            readonly_paths: at
                .field("readonly_paths")
                .each(given.readonly_paths, At::text)?,
            seccomp: security::seccomp(at, given.seccomp, given.seccomp_profile_path)?,
            apparmor: security::apparmor(
                at,
                given.apparmor,
                &given.apparmor_profile,
                given.privileged,
                abilities,
            )?,
        })
    }
}

/// An empty name is one that is no capability, like others: it is passed over with a warning.
fn capabilities(given: Option<v1::Capability>) -> CapabilityRequest {
    let given = given.unwrap_or_default();
    CapabilityRequest {
        add: given.add_capabilities,
        drop: given.drop_capabilities,
        add_ambient: given.add_ambient_capabilities,
    }
}

/// A user by number or by name, a group only with one of them (row F067).
fn user(at: &At<'_>, given: &v1::LinuxContainerSecurityContext) -> Result<UserRequest, Error> {
    let uid = security::id(&at.field("run_as_user"), given.run_as_user)?;
    let name_at = at.field("run_as_username");
    let username = name_at.line(given.run_as_username.clone())?;
    if uid.is_some() && !username.is_empty() {
        return Err(name_at.invalid("is given together with run_as_user"));
    }
    let group_at = at.field("run_as_group");
    let gid = security::id(&group_at, given.run_as_group)?;
    if gid.is_some() && uid.is_none() && username.is_empty() {
        return Err(group_at.invalid("is given without run_as_user or run_as_username"));
    }
    Ok(UserRequest {
        uid,
        gid,
        username,
        supplemental_groups: security::groups(
            &at.field("supplemental_groups"),
            given.supplemental_groups.clone(),
        )?,
        policy: security::groups_policy(
            &at.field("supplemental_groups_policy"),
            given.supplemental_groups_policy,
        )?,
    })
}

/// Which containers are wanted.
pub(in crate::cri) fn filter(given: Option<v1::ContainerFilter>) -> Result<ContainerFilter, Error> {
    let given = given.unwrap_or_default();
    let at = At::root("filter.state");
    let state = given.state.map(|s| at.known(s.state)).transpose()?;
    Ok(ContainerFilter {
        id: given.id,
        pod: given.pod_sandbox_id,
        state: state.map(|s: v1::ContainerState| match s {
            v1::ContainerState::ContainerCreated => ContainerState::Created,
            v1::ContainerState::ContainerRunning => ContainerState::Running,
            v1::ContainerState::ContainerExited => ContainerState::Exited,
            v1::ContainerState::ContainerUnknown => ContainerState::Unknown,
        }),
        labels: given.label_selector,
    })
}
