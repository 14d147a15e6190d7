//! What passes, what is refused and what comes back.

mod refused;

use std::sync::{Arc, LazyLock};

use berth_cri_api::v1;
use prost_reflect::{DescriptorPool, DynamicMessage};

use super::*;
use crate::id::{ContainerId, PodId};
use crate::model::{
    AppArmorProfile, ContainerExit, ContainerSpec, ContainerState, ContainerStatus, ContainerUser,
    ExitReason, NamespaceMode, PodSpec, PodState, PodStatus, SeccompProfile, SignalName,
};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/../cri-api/proto");
    let set = protox::compile(["api.proto"], [proto]).unwrap();
    DescriptorPool::from_file_descriptor_set(set).unwrap()
});

/// A message from its text form.
fn parse<T: prost::Message + Default>(name: &str, text: &str) -> T {
    let descriptor = POOL
        .get_message_by_name(&format!("runtime.v1.{name}"))
        .unwrap();
    DynamicMessage::parse_text_format(descriptor, text)
        .unwrap()
        .transcode_to()
        .unwrap()
}

fn kubelet_pod() -> v1::PodSandboxConfig {
    let text = include_str!("../fixtures/run_pod_sandbox.textpb");
    let request: v1::RunPodSandboxRequest = parse("RunPodSandboxRequest", text);
    request.config.unwrap()
}

fn kubelet_container() -> v1::ContainerConfig {
    let text = include_str!("../fixtures/create_container.textpb");
    let request: v1::CreateContainerRequest = parse("CreateContainerRequest", text);
    request.config.unwrap()
}

fn pod_spec(config: v1::PodSandboxConfig) -> Result<PodSpec, Error> {
    pod::spec(
        &At::root("config"),
        config,
        String::new(),
        Abilities::default(),
    )
}

fn container_spec(
    config: v1::ContainerConfig,
    abilities: Abilities,
) -> Result<ContainerSpec, Error> {
    let pod = pod_spec(kubelet_pod()).unwrap();
    container::spec(&At::root("config"), config, &pod, abilities)
}

/// Every combination of what a host may have.
fn all_abilities() -> impl Iterator<Item = Abilities> {
    (0..8).map(|bits| Abilities {
        apparmor: bits & 1 != 0,
        selinux: match bits & 2 {
            0 => SelinuxOptions::Ignored,
            _ => SelinuxOptions::Refused,
        },
        mount_options: bits & 4 != 0,
    })
}

#[test]
fn what_every_kubelet_sends_is_never_refused() {
    for abilities in all_abilities() {
        let config = kubelet_pod();
        let pod = pod::spec(
            &At::root("config"),
            config.clone(),
            String::new(),
            abilities,
        )
        .unwrap();
        assert_eq!(pod.namespaces.pid, NamespaceMode::Container);
        assert_eq!(pod.namespaces.network, NamespaceMode::Pod);
        assert_eq!(pod.seccomp, SeccompProfile::RuntimeDefault);
        assert_eq!(pod.overhead, Some(Default::default()));
        assert_eq!(pod.resources.as_ref().unwrap().memory_limit, 134_217_728);
        assert_eq!(
            (pod.port_mappings.len(), pod.port_mappings[0].host_port),
            (1, 0)
        );
        assert_eq!(
            (&pod.labels, &pod.annotations),
            (&config.labels, &config.annotations)
        );

        let at = At::root("config");
        let mut config = kubelet_container();
        // A Secret's value may be any bytes (row R009).
        config.envs[0].value = vec![0xff, 0xfe, 0x01];
        let spec = container::spec(&at, config, &pod, abilities).unwrap();
        assert_eq!(
            spec.envs[0],
            ("GREETING".to_owned(), vec![0xff, 0xfe, 0x01])
        );
        assert_eq!(spec.resources.hugepages.len(), 2);
        assert_eq!(spec.seccomp, SeccompProfile::Unconfined);
        assert_eq!(
            (spec.masked_paths.len(), spec.readonly_paths.len()),
            (12, 5)
        );
        assert_eq!(
            (spec.mounts.len(), spec.log_path.as_str()),
            (4, "web/0.log")
        );
        assert_eq!(spec.stop_signal, None);
    }
}

#[test]
fn nothing_but_a_name_is_a_pod() {
    let config = v1::PodSandboxConfig {
        metadata: kubelet_pod().metadata,
        ..Default::default()
    };
    let pod = pod_spec(config).unwrap();
    assert_eq!(pod.namespaces, Default::default());
    assert_eq!(pod.dns, None);
    assert_eq!(pod.seccomp, SeccompProfile::Unconfined);
}

/// The security context of a container, alone.
fn with_security(text: &str, abilities: Abilities) -> Result<ContainerSpec, Error> {
    let mut config = kubelet_container();
    let security = parse("LinuxContainerSecurityContext", text);
    config.linux.as_mut().unwrap().security_context = Some(security);
    let mut pod = pod_spec(kubelet_pod()).unwrap();
    pod.privileged = true;
    container::spec(&At::root("config"), config, &pod, abilities)
}

#[test]
fn the_newer_profile_wins_over_the_older_text() {
    let seccomp = |text: &str| with_security(text, Abilities::default()).unwrap().seccomp;
    let both = "seccomp { profile_type: Unconfined } seccomp_profile_path: 'runtime/default'";
    assert_eq!(seccomp(both), SeccompProfile::Unconfined);
    for older in ["runtime/default", "docker/default"] {
        let text = format!("seccomp_profile_path: '{older}'");
        assert_eq!(seccomp(&text), SeccompProfile::RuntimeDefault);
    }
    let file = SeccompProfile::Localhost("/var/lib/kubelet/seccomp/a.json".into());
    assert_eq!(
        seccomp("seccomp_profile_path: 'localhost//var/lib/kubelet/seccomp/a.json'"),
        file
    );
    assert_eq!(
        seccomp(
            "seccomp { profile_type: Localhost localhost_ref: '/var/lib/kubelet/seccomp/a.json' }"
        ),
        file
    );
    assert_eq!(seccomp(""), SeccompProfile::Unconfined);
}

#[test]
fn the_apparmor_profile_is_read_from_both_fields() {
    use AppArmorProfile::{Localhost, RuntimeDefault, Unconfined, Unset};
    let named = |name: &str| Localhost(name.to_owned());
    let reference =
        |name: &str| format!("apparmor {{ profile_type: Localhost localhost_ref: '{name}' }}");
    let text = str::to_owned;
    // What is asked for, what is made of it, and whether a host without AppArmor takes it.
    let cases = [
        (String::new(), Unset, true),
        (
            text("apparmor { profile_type: Unconfined }"),
            Unconfined,
            true,
        ),
        (text("apparmor_profile: 'unconfined'"), Unconfined, true),
        (
            text("apparmor { profile_type: RuntimeDefault }"),
            RuntimeDefault,
            false,
        ),
        (
            text("apparmor_profile: 'runtime/default'"),
            RuntimeDefault,
            false,
        ),
        (reference("x y"), named("x y"), false),
        (reference("localhost/x"), named("x"), false),
        (text("apparmor_profile: 'localhost/x'"), named("x"), false),
        // One prefix is the form, another one is a part of the name.
        (
            text("apparmor_profile: 'localhost/localhost/x'"),
            named("localhost/x"),
            false,
        ),
        // The newer field wins.
        (
            text("apparmor { profile_type: Unconfined } apparmor_profile: 'localhost/x'"),
            Unconfined,
            true,
        ),
        (
            format!("{} apparmor_profile: 'nonsense'", reference("y")),
            named("y"),
            false,
        ),
    ];
    for (text, expected, off_passes) in cases {
        for privileged in [false, true] {
            let text = format!("privileged: {privileged} {text}");
            let made = with_security(&text, WITH_APPARMOR).unwrap();
            assert_eq!(made.apparmor, expected, "{text}");
            // Privileged means unconfined anyway, unless a profile is named.
            let passes = off_passes || (privileged && expected == RuntimeDefault);
            match with_security(&text, Abilities::default()) {
                Ok(made) => assert!(passes && made.apparmor == expected, "off: {text}"),
                Err(error) => {
                    assert!(!passes, "off: {text}: {error}");
                    assert_eq!(error.kind(), Kind::InvalidArgument);
                    assert!(error.to_string().contains("not enabled on this host"));
                }
            }
        }
    }
}

const WITH_APPARMOR: Abilities = Abilities {
    apparmor: true,
    selinux: SelinuxOptions::Ignored,
    mount_options: false,
};

#[test]
fn what_is_no_apparmor_profile_is_refused_by_its_field() {
    for (text, field) in [
        (
            "apparmor { profile_type: Localhost }",
            "apparmor.localhost_ref",
        ),
        (
            "apparmor { profile_type: Localhost localhost_ref: 'localhost/' }",
            "apparmor.localhost_ref",
        ),
        (
            "apparmor { profile_type: Localhost localhost_ref: 'a\\nb' }",
            "apparmor.localhost_ref",
        ),
        ("apparmor_profile: 'nonsense'", "apparmor_profile"),
        ("apparmor_profile: 'localhost/'", "apparmor_profile"),
    ] {
        let error = with_security(text, WITH_APPARMOR).unwrap_err().to_string();
        let field = format!("config.linux.security_context.{field}");
        assert!(error.contains(&field), "{text}: {error}");
    }
}

#[test]
fn a_sandbox_has_an_apparmor_profile_too() {
    let make = |text: &str, abilities| {
        let mut config = kubelet_pod();
        let security = parse("LinuxSandboxSecurityContext", text);
        config.linux.as_mut().unwrap().security_context = Some(security);
        let made = pod::spec(&At::root("config"), config, String::new(), abilities);
        made.map(|pod| pod.apparmor)
    };
    let localhost = "apparmor { profile_type: Localhost localhost_ref: 'x' }";
    let off = Abilities::default();
    assert_eq!(make("", off).unwrap(), AppArmorProfile::Unset);
    assert!(make(localhost, off).is_err());
    let named = AppArmorProfile::Localhost("x".into());
    assert_eq!(make(localhost, WITH_APPARMOR).unwrap(), named);
}

const ENFORCING: Abilities = Abilities {
    apparmor: false,
    selinux: SelinuxOptions::Refused,
    mount_options: true,
};

#[test]
fn selinux_labels_are_ignored_where_nothing_comes_of_them() {
    let off = Abilities::default();
    for options in [
        "selinux_options {}",
        "selinux_options { level: 's0:c1,c2' }",
        "selinux_options { type: 'spc_t' }",
        "selinux_options { user: 'u' role: 'r' type: 't' level: 'l' }",
        "privileged: false selinux_options { level: 's0' }",
    ] {
        assert!(with_security(options, off).is_ok(), "{options}");
        let asks = options.contains(": '");
        match with_security(options, ENFORCING) {
            Ok(_) => assert!(!asks, "{options}"),
            Err(error) => {
                assert!(asks && error.kind() == Kind::Unimplemented, "{options}");
                assert!(error.to_string().contains("containers.selinux = \"off\""));
            }
        }
    }
}

#[test]
fn a_sandboxs_selinux_labels_are_ignored_too() {
    let make = |abilities| {
        let mut config = kubelet_pod();
        let security = "selinux_options { user: 'u' type: 't' level: 's0' }";
        let security = parse("LinuxSandboxSecurityContext", security);
        config.linux.as_mut().unwrap().security_context = Some(security);
        pod::spec(&At::root("config"), config, String::new(), abilities)
    };
    assert!(make(Abilities::default()).is_ok());
    let refused = make(ENFORCING).unwrap_err();
    assert_eq!(refused.kind(), Kind::Unimplemented);
    let field = "config.linux.security_context.selinux_options";
    assert!(refused.to_string().starts_with(field), "{refused}");
}

#[test]
fn a_relabel_is_echoed_and_nothing_else_where_nothing_comes_of_labels() {
    let make = |abilities| {
        let mut config = kubelet_container();
        config.mounts[0].selinux_relabel = true;
        container_spec(config, abilities)
    };
    let made = make(Abilities::default()).unwrap();
    assert!(made.mounts[0].selinux_relabel);
    let refused = make(ENFORCING).unwrap_err();
    assert_eq!(refused.kind(), Kind::Unimplemented);
    assert!(
        refused
            .to_string()
            .starts_with("config.mounts[0].selinux_relabel")
    );
}

#[test]
fn a_container_follows_its_pod_where_it_says_nothing() {
    let mut config = kubelet_container();
    config.linux.as_mut().unwrap().security_context = None;
    let mut pod_config = kubelet_pod();
    let linux = pod_config.linux.as_mut().unwrap();
    let options = linux
        .security_context
        .as_mut()
        .unwrap()
        .namespace_options
        .as_mut()
        .unwrap();
    options.network = v1::NamespaceMode::Node.into();
    let pod = pod_spec(pod_config).unwrap();
    let spec = container::spec(
        &At::root("config"),
        config.clone(),
        &pod,
        Abilities::default(),
    );
    assert_eq!(spec.unwrap().namespaces, pod.namespaces);
    // critest sends choices that leave the network at its zero value.
    let linux = config.linux.as_mut().unwrap();
    linux.security_context = Some(parse(
        "LinuxContainerSecurityContext",
        "namespace_options { pid: NODE }",
    ));
    let spec = container::spec(&At::root("config"), config, &pod, Abilities::default()).unwrap();
    assert_eq!(
        (spec.namespaces.network, spec.namespaces.pid),
        (NamespaceMode::Node, NamespaceMode::Node)
    );
}

#[test]
fn sysctls_get_dotted_names() {
    let text = "linux { sysctls { key: 'net/ipv4/conf/eth0.1/forwarding' value: '1' } sysctls { key: 'kernel.shmmax' value: '65536' } }";
    let mut config: v1::PodSandboxConfig = parse("PodSandboxConfig", text);
    config.metadata = kubelet_pod().metadata;
    let names: Vec<String> = pod_spec(config).unwrap().sysctls.into_keys().collect();
    assert_eq!(names, ["kernel.shmmax", "net.ipv4.conf.eth0/1.forwarding"]);
}

#[test]
fn the_domain_name_is_the_pods_where_the_host_name_is() {
    let asked = |key: &str, network: v1::NamespaceMode| {
        let text = format!("linux {{ sysctls {{ key: '{key}' value: 'example.org' }} }}");
        let mut config: v1::PodSandboxConfig = parse("PodSandboxConfig", &text);
        config.metadata = kubelet_pod().metadata;
        let security = config
            .linux
            .as_mut()
            .unwrap()
            .security_context
            .insert(v1::LinuxSandboxSecurityContext::default());
        security.namespace_options.get_or_insert_default().network = network.into();
        pod_spec(config).map(|spec| spec.sysctls)
    };
    let (own, host) = (v1::NamespaceMode::Pod, v1::NamespaceMode::Node);
    assert_eq!(
        asked("kernel/domainname", own).unwrap()["kernel.domainname"],
        "example.org"
    );
    let told = asked("kernel.domainname", host).unwrap_err().to_string();
    assert!(told.contains("UTS namespace of the node"), "{told}");
    let told = asked("kernel.hostname", own).unwrap_err().to_string();
    assert!(told.contains("\"hostname\""), "{told}");
}

#[test]
fn a_pod_comes_back_as_it_was_sent() {
    let config = kubelet_pod();
    let status = PodStatus {
        id: PodId::generate().unwrap(),
        spec: Arc::new(pod_spec(config.clone()).unwrap()),
        state: PodState::NotReady,
        created_at: 5,
        ips: vec!["10.85.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
        netns: None,
        pause_pid: None,
        problem: None,
        cni_result: None,
    };
    let out = pod::status(&status);
    let sent = config
        .linux
        .unwrap()
        .security_context
        .unwrap()
        .namespace_options;
    assert_eq!(out.linux.unwrap().namespaces.unwrap().options, sent);
    assert_eq!(
        (&out.labels, &out.annotations),
        (&config.labels, &config.annotations)
    );
    assert_eq!(out.metadata, config.metadata);
    assert_eq!(out.state, v1::PodSandboxState::SandboxNotready as i32);
    let network = out.network.unwrap();
    assert_eq!(network.ip, "10.85.0.7");
    assert_eq!(network.additional_ips[0].ip, "fd00::7");
    assert_eq!(pod::item(&status).labels, config.labels);
}

#[test]
fn a_container_comes_back_as_it_was_sent() {
    let config = kubelet_container();
    let spec = Arc::new(container_spec(config.clone(), Abilities::default()).unwrap());
    let image_id = spec.image.parse().unwrap();
    let status = ContainerStatus {
        id: ContainerId::generate().unwrap(),
        pod: PodId::generate().unwrap(),
        resources: spec.resources.clone(),
        spec,
        state: ContainerState::Exited,
        created_at: 1,
        started_at: 2,
        exit: Some(ContainerExit {
            code: 137,
            finished_at: 3,
            reason: ExitReason::OomKilled,
            message: String::new(),
        }),
        problem: None,
        image_id,
        image_name: "docker.io/library/nginx:1.27".into(),
        image_ref: "docker.io/library/nginx@sha256:00".into(),
        log_path: "/var/log/pods/x/nginx/0.log".into(),
        user: ContainerUser {
            uid: 101,
            gid: 101,
            groups: vec![101],
            home: "/".into(),
        },
        stop_signal: SignalName {
            number: 3,
            name: "SIGQUIT".into(),
        },
        pid: None,
    };
    let out = container_status(&status);
    assert_eq!(out.mounts, config.mounts);
    assert_eq!(
        (out.labels, out.annotations),
        (config.labels.clone(), config.annotations)
    );
    assert_eq!(
        out.resources.unwrap().linux,
        config.linux.unwrap().resources
    );
    assert_eq!(
        (out.exit_code, out.finished_at, out.reason.as_str()),
        (137, 3, "OOMKilled")
    );
    assert_eq!(out.stop_signal, v1::Signal::Sigquit as i32);
    let user = out.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.supplemental_groups), (101, vec![101]));

    let listed = container_item(&status);
    assert_eq!(listed.image_id, out.image_id);
    assert_eq!(listed.image_ref, listed.image_id);
    assert_eq!(listed.image.unwrap().image, config.image.unwrap().image);
    assert_eq!(listed.labels, config.labels);
}

#[test]
fn a_wrapped_zero_in_a_filter_is_a_value() {
    let filter: v1::PodSandboxFilter = parse("PodSandboxFilter", "state { state: SANDBOX_READY }");
    assert_eq!(
        pod::filter(Some(filter)).unwrap().state,
        Some(PodState::Ready)
    );
    assert_eq!(pod::filter(None).unwrap().state, None);
    let filter: v1::ContainerFilter = parse("ContainerFilter", "state {} pod_sandbox_id: 'ab'");
    let filter = container::filter(Some(filter)).unwrap();
    assert_eq!(
        (filter.state, filter.pod.as_str()),
        (Some(ContainerState::Created), "ab")
    );
    let wrong: v1::ContainerFilter = parse("ContainerFilter", "state { state: 9 }");
    assert!(container::filter(Some(wrong)).is_err());
}

#[test]
fn an_empty_id_is_refused_and_empty_credentials_are_none() {
    assert!(id("container_id", String::new()).is_err());
    assert!(image::reference(None).is_err());
    assert!(image::reference(Some(Default::default())).is_err());
    assert_eq!(image::auth(Some(Default::default())), None);
    let auth = v1::AuthConfig {
        username: "u".into(),
        ..Default::default()
    };
    assert!(image::auth(Some(auth)).is_some());
}

#[test]
fn labels_and_annotations_of_one_object_have_two_megabytes_each() {
    let notes = |bytes: usize| [("k".to_owned(), "v".repeat(bytes - 1))].into();
    for (bytes, fits) in [(256 << 10, true), (2 << 20, true), ((2 << 20) + 1, false)] {
        for field in ["labels", "annotations"] {
            let (mut pod, mut container) = (kubelet_pod(), kubelet_container());
            match field {
                "labels" => (pod.labels, container.labels) = (notes(bytes), notes(bytes)),
                _ => (pod.annotations, container.annotations) = (notes(bytes), notes(bytes)),
            }
            let made = [
                pod_spec(pod).map(drop),
                container_spec(container, Abilities::default()).map(drop),
            ];
            for made in made {
                let Err(error) = made else {
                    assert!(fits, "{field} {bytes}");
                    continue;
                };
                assert!(
                    !fits && error.kind() == Kind::InvalidArgument,
                    "{field} {bytes}"
                );
                let said =
                    format!("config.{field}: has 2097153 bytes in total; 2097152 are the most");
                assert_eq!(error.to_string(), said);
            }
        }
    }
}
