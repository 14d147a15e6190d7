//! Pod sandboxes: namespaces, files, sysctls, cgroups; Stop and Remove whatever is missing.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::pods::{Pod, namespaces, pid_of, pod_config, script};
use berth_tests::runner::{Case, Test};
use berth_tests::{ensure_eq, process, test};
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

pub(crate) const TESTS: &[Test] = &[
    test!(attributes_come_back),
    test!(list_filters),
    test!(streamed_list_is_the_list),
    test!(missing_metadata_is_refused),
    test!(unknown_handler_is_refused),
    test!(unknown_ids),
    test!(hostname_hosts_and_resolver),
    test!(resolver_of_the_host),
    test!(shm_is_shared_in_the_pod),
    test!(shm_runs_and_opens_nothing).berth_only("containerd's bind loses these options"),
    test!(sysctls_of_network_and_ipc),
    test!(unsafe_sysctl_is_refused),
    test!(host_namespaces),
    test!(shared_process_namespace),
    test!(process_namespace_of_a_container),
    test!(ipc_is_shared_and_apart_from_the_host),
    test!(cgroup_parent_holds_everything),
    test!(stop_and_remove_are_idempotent),
    test!(remove_while_running),
    test!(stop_after_the_pause_process_died),
    test!(stop_after_the_netns_is_gone).berth_only("containerd leaves the masquerade rule"),
    test!(same_pod_twice_at_once).berth_only("containerd refuses the second as a taken name"),
    test!(the_name_is_free_after_removal),
    test!(user_namespaces_are_refused).berth_only("containerd has them"),
    test!(kubelet_request_is_taken),
    test!(removal_waits_for_creates).berth_only("containerd leaves such containers behind"),
];

fn security(config: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    config
        .linux
        .get_or_insert_with(LinuxPodSandboxConfig::default)
        .security_context
        .get_or_insert_with(LinuxSandboxSecurityContext::default)
}

async fn attributes_come_back(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let status = pod.cri.pod_status(&pod.id).await?;
    ensure_eq!(status.id, pod.id);
    ensure_eq!(status.metadata, pod.config.metadata);
    ensure_eq!(status.labels, pod.config.labels);
    ensure_eq!(status.annotations, pod.config.annotations);
    ensure_eq!(status.state(), PodSandboxState::SandboxReady);
    ensure!(
        status.created_at > 1_600_000_000_000_000_000,
        "created at {}",
        status.created_at
    );
    let options = status
        .linux
        .context("linux")?
        .namespaces
        .context("namespaces")?
        .options;
    ensure_eq!(
        options,
        Some(namespaces(NamespaceMode::Pod, NamespaceMode::Container))
    );
    let verbose = pod.cri.pod_status_verbose(&pod.id).await?;
    ensure!(
        process::alive(pid_of(&verbose.info)?),
        "the pause process does not run"
    );
    pod.cri.stop_pod(&pod.id).await?;
    let status = pod.cri.pod_status(&pod.id).await?;
    ensure_eq!(status.state(), PodSandboxState::SandboxNotready);
    Ok(())
}

async fn list_filters(case: &mut Case) -> Result<()> {
    let first = case.pod().await?;
    let mut config = pod_config(case.instance()?, "second");
    config.labels = [("tier".to_owned(), "back".to_owned())].into();
    let second = Pod::run(&first.cri, config).await?;
    second.cri.stop_pod(&second.id).await?;
    let ids = async |filter: PodSandboxFilter| -> Result<Vec<String>> {
        let list = first.cri.list_pods(Some(filter)).await?;
        Ok(list.into_iter().map(|pod| pod.id).collect())
    };
    let ready = PodSandboxStateValue {
        state: PodSandboxState::SandboxReady.into(),
    };
    let by_state = PodSandboxFilter {
        state: Some(ready),
        ..PodSandboxFilter::default()
    };
    ensure_eq!(ids(by_state.clone()).await?, vec![first.id.clone()]);
    let label_selector = [("tier".to_owned(), "back".to_owned())].into();
    let by_label = PodSandboxFilter {
        label_selector,
        ..PodSandboxFilter::default()
    };
    ensure_eq!(ids(by_label.clone()).await?, vec![second.id.clone()]);
    let by_id = PodSandboxFilter {
        id: first.id.clone(),
        ..PodSandboxFilter::default()
    };
    ensure_eq!(ids(by_id).await?, vec![first.id.clone()]);
    let both = PodSandboxFilter {
        state: by_state.state,
        ..by_label
    };
    ensure_eq!(ids(both).await?, Vec::<String>::new());
    let nobody = PodSandboxFilter {
        id: "nobody".into(),
        ..PodSandboxFilter::default()
    };
    ensure_eq!(ids(nobody).await?, Vec::<String>::new());
    ensure_eq!(first.cri.list_pods(None).await?.len(), 2);
    Ok(())
}

async fn streamed_list_is_the_list(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut runtime = pod.cri.runtime.clone();
    let request = StreamPodSandboxesRequest { filter: None };
    let mut stream = runtime.stream_pod_sandboxes(request).await?.into_inner();
    let mut pods = Vec::new();
    while let Some(message) = stream.message().await? {
        pods.extend(message.pod_sandboxes);
    }
    let mut list = pod.cri.list_pods(None).await?;
    list.sort_by(|a, b| a.id.cmp(&b.id));
    pods.sort_by(|a, b| a.id.cmp(&b.id));
    ensure_eq!(pods, list);
    Ok(())
}

async fn missing_metadata_is_refused(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let config = PodSandboxConfig {
        metadata: None,
        ..pod_config(instance, "x")
    };
    ensure!(
        instance.cri()?.run_pod(&config).await.is_err(),
        "a pod without metadata runs"
    );
    Ok(())
}

async fn unknown_handler_is_refused(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let request = RunPodSandboxRequest {
        config: Some(pod_config(instance, "x")),
        runtime_handler: "no-such-handler".into(),
    };
    let answer = instance
        .cri()?
        .runtime
        .clone()
        .run_pod_sandbox(request)
        .await;
    ensure!(answer.is_err(), "a pod of an unknown handler runs");
    Ok(())
}

async fn unknown_ids(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    cri.stop_pod("0123456789ab").await?;
    cri.remove_pod("0123456789ab").await?;
    let code = cri
        .pod_status("0123456789ab")
        .await
        .err()
        .map(|status| status.code());
    ensure_eq!(code, Some(Code::NotFound));
    Ok(())
}

async fn hostname_hosts_and_resolver(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let text = pod
        .output_of(&script("hostname; cat /etc/hostname /etc/resolv.conf"))
        .await?;
    ensure!(text.starts_with("pod\npod\n"), "{text}");
    for line in [
        "nameserver 10.96.0.10",
        "search default.svc.cluster.local",
        "options ndots:5",
    ] {
        ensure!(text.lines().any(|one| one == line), "no {line:?} in {text}");
    }
    Ok(())
}

async fn resolver_of_the_host(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let config = PodSandboxConfig {
        dns_config: None,
        ..pod_config(instance, "host-dns")
    };
    let pod = Pod::run(instance.cri()?, config).await?;
    let text = pod.output_of(&script("cat /etc/resolv.conf")).await?;
    let host = std::fs::read_to_string("/etc/resolv.conf")?;
    ensure_eq!(text.trim(), host.trim());
    Ok(())
}

async fn shm_is_shared_in_the_pod(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    pod.output_of(&script("echo seen > /dev/shm/file")).await?;
    ensure_eq!(pod.output_of(&script("cat /dev/shm/file")).await?, "seen\n");
    let line = pod
        .output_of(&script("grep ' /dev/shm ' /proc/mounts"))
        .await?;
    for word in ["tmpfs", "size=65536k"] {
        ensure!(line.contains(word), "no {word} in {line}");
    }
    Ok(())
}

async fn shm_runs_and_opens_nothing(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let line = pod
        .output_of(&script("grep ' /dev/shm ' /proc/mounts"))
        .await?;
    for word in ["nosuid", "noexec", "nodev"] {
        ensure!(line.contains(word), "no {word} in {line}");
    }
    Ok(())
}

async fn sysctls_of_network_and_ipc(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let mut config = pod_config(instance, "sysctl");
    let linux = config
        .linux
        .get_or_insert_with(LinuxPodSandboxConfig::default);
    linux.sysctls = [
        (
            "net.ipv4.ip_local_port_range".to_owned(),
            "10000 20000".to_owned(),
        ),
        ("kernel.shm_rmid_forced".to_owned(), "1".to_owned()),
        ("fs.mqueue.msg_max".to_owned(), "77".to_owned()),
    ]
    .into();
    let pod = Pod::run(instance.cri()?, config).await?;
    let read =
        "cd /proc/sys; cat net/ipv4/ip_local_port_range kernel/shm_rmid_forced fs/mqueue/msg_max";
    let text = pod.output_of(&script(read)).await?;
    ensure_eq!(
        text.split_whitespace().collect::<Vec<_>>(),
        ["10000", "20000", "1", "77"]
    );
    Ok(())
}

async fn unsafe_sysctl_is_refused(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let mut config = pod_config(instance, "sysctl");
    let linux = config
        .linux
        .get_or_insert_with(LinuxPodSandboxConfig::default);
    linux.sysctls = [("kernel.panic".to_owned(), "7".to_owned())].into();
    let before = std::fs::read_to_string("/proc/sys/kernel/panic")?;
    ensure!(
        instance.cri()?.run_pod(&config).await.is_err(),
        "a sysctl of the host was taken"
    );
    ensure_eq!(std::fs::read_to_string("/proc/sys/kernel/panic")?, before);
    ensure_eq!(instance.cri()?.list_pods(None).await?, vec![]);
    Ok(())
}

async fn host_namespaces(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let mut config = pod_config(instance, "host");
    config.hostname = String::new();
    security(&mut config).namespace_options =
        Some(namespaces(NamespaceMode::Node, NamespaceMode::Node));
    let pod = Pod::run(instance.cri()?, config).await?;
    let mut container = script("for n in net ipc pid uts; do readlink /proc/self/ns/$n; done");
    berth_tests::pods::security(&mut container).namespace_options =
        Some(namespaces(NamespaceMode::Node, NamespaceMode::Node));
    let text = pod.output_of(&container).await?;
    for namespace in ["net", "ipc", "pid", "uts"] {
        let own = std::fs::read_link(format!("/proc/self/ns/{namespace}"))?;
        ensure!(
            text.contains(&*own.to_string_lossy()),
            "{namespace} is not the host's: {text}"
        );
    }
    Ok(())
}

async fn shared_process_namespace(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let shared = namespaces(NamespaceMode::Pod, NamespaceMode::Pod);
    let mut config = pod_config(instance, "shared");
    security(&mut config).namespace_options = Some(shared.clone());
    let pod = Pod::run(instance.cri()?, config).await?;
    let mut sleeper = script("exec sleep 4321");
    berth_tests::pods::security(&mut sleeper).namespace_options = Some(shared.clone());
    pod.start(&sleeper).await?;
    let mut looker = script("sleep 0.2; pgrep -f 'sleep 4321'; cat /proc/1/comm");
    berth_tests::pods::security(&mut looker).namespace_options = Some(shared);
    let text = pod.output_of(&looker).await?;
    ensure!(text.ends_with("pause\n"), "pid 1 is not pause: {text}");
    ensure!(
        text.lines().count() >= 2,
        "the other container is not seen: {text}"
    );
    Ok(())
}

async fn process_namespace_of_a_container(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let target = pod.start(&script("exec sleep 4321")).await?;
    let mut config = script("cat /proc/1/cmdline");
    berth_tests::pods::security(&mut config).namespace_options = Some(NamespaceOption {
        target_id: target.id.clone(),
        ..namespaces(NamespaceMode::Pod, NamespaceMode::Target)
    });
    let text = pod.output_of(&config).await?;
    ensure!(text.contains("4321"), "pid 1 is not the target's: {text}");
    Ok(())
}

async fn ipc_is_shared_and_apart_from_the_host(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let link = script("readlink /proc/self/ns/ipc");
    let first = pod.output_of(&link).await?;
    let second = pod.output_of(&script("readlink /proc/self/ns/ipc")).await?;
    ensure_eq!(first, second);
    let host = std::fs::read_link("/proc/self/ns/ipc")?;
    ensure!(
        first.trim() != host.to_string_lossy(),
        "the pod has the host's IPC namespace"
    );
    Ok(())
}

async fn cgroup_parent_holds_everything(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let container = pod.start(&script("exec sleep 4321")).await?;
    let pause = pid_of(&pod.cri.pod_status_verbose(&pod.id).await?.info)?;
    let parent = case.instance()?.cgroup_parent_path();
    for (what, pid) in [("pause", pause), ("container", container.pid().await?)] {
        let path = process::cgroup_of(pid, "memory")
            .or_else(|| process::cgroup_of(pid, ""))
            .context("no cgroup")?;
        ensure!(
            path.starts_with(&format!("{parent}/")),
            "{what} is in {path}"
        );
    }
    Ok(())
}

async fn stop_and_remove_are_idempotent(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let container = pod.start(&script("exec sleep 4321")).await?;
    for _ in 0..3 {
        pod.cri.stop_pod(&pod.id).await?;
    }
    ensure_eq!(
        container.status().await?.state(),
        ContainerState::ContainerExited
    );
    for _ in 0..3 {
        pod.cri.remove_pod(&pod.id).await?;
    }
    let code = pod
        .cri
        .container_status(&container.id)
        .await
        .err()
        .map(|status| status.code());
    ensure_eq!(code, Some(Code::NotFound));
    Ok(())
}

async fn remove_while_running(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let container = pod.start(&script("trap '' TERM; sleep 4321")).await?;
    let pid = container.pid().await?;
    pod.cri.remove_pod(&pod.id).await?;
    ensure!(!process::alive(pid), "the container still runs");
    ensure_eq!(pod.cri.list_containers(None).await?, vec![]);
    Ok(())
}

async fn stop_after_the_pause_process_died(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    pod.start(&script("exec sleep 4321")).await?;
    let pause = pid_of(&pod.cri.pod_status_verbose(&pod.id).await?.info)?;
    let raw = Pid::from_raw(i32::try_from(pause)?).context("pid")?;
    kill_process(raw, Signal::KILL)?;
    let mut state = PodSandboxState::SandboxReady;
    for _ in 0..50 {
        state = pod.cri.pod_status(&pod.id).await?.state();
        if state == PodSandboxState::SandboxNotready {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    ensure_eq!(state, PodSandboxState::SandboxNotready);
    pod.remove().await
}

async fn stop_after_the_netns_is_gone(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let folder = case.instance()?.folder().display().to_string();
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut found = false;
    for line in table
        .lines()
        .filter(|line| line.contains(" - nsfs ") && line.contains(&folder))
    {
        let target = Path::new(
            line.split_whitespace()
                .nth(4)
                .context("a mount without a target")?,
        );
        rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH)?;
        let _ = std::fs::remove_file(target);
        found = true;
    }
    ensure!(found, "no network namespace is pinned under {folder}");
    pod.remove().await
}

async fn same_pod_twice_at_once(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let config = pod_config(instance, "twice");
    let cri = instance.cri()?;
    let (one, two) = tokio::join!(cri.run_pod(&config), cri.run_pod(&config));
    ensure_eq!(one?, two?);
    ensure_eq!(cri.list_pods(None).await?.len(), 1);
    Ok(())
}

async fn the_name_is_free_after_removal(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    pod.remove().await?;
    let again = Pod::run(&pod.cri, pod.config.clone()).await?;
    ensure!(again.id != pod.id, "the id came back");
    Ok(())
}

async fn user_namespaces_are_refused(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let mut config = pod_config(instance, "userns");
    let mapping = IdMapping {
        host_id: 100_000,
        container_id: 0,
        length: 65536,
    };
    security(&mut config).namespace_options = Some(NamespaceOption {
        userns_options: Some(UserNamespace {
            mode: NamespaceMode::Pod.into(),
            uids: vec![mapping],
            gids: vec![mapping],
        }),
        ..namespaces(NamespaceMode::Pod, NamespaceMode::Container)
    });
    let error = instance
        .cri()?
        .run_pod(&config)
        .await
        .err()
        .context("it was ignored")?;
    ensure!(error.message().contains("user namespace"), "{error}");
    Ok(())
}

/// What a kubelet of 1.36 always sends, whether or not the machine can do it.
async fn kubelet_request_is_taken(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let mut config = pod_config(instance, "kubelet");
    config.port_mappings = vec![PortMapping {
        container_port: 80,
        host_port: 0,
        ..PortMapping::default()
    }];
    let linux = config
        .linux
        .get_or_insert_with(LinuxPodSandboxConfig::default);
    linux.overhead = Some(LinuxContainerResources::default());
    linux.resources = Some(LinuxContainerResources {
        cpu_period: 100_000,
        cpu_shares: 2,
        ..LinuxContainerResources::default()
    });
    let pod = Pod::run(instance.cri()?, config).await?;
    let mut container = script("echo fine");
    let page = |size: &str| HugepageLimit {
        page_size: size.to_owned(),
        limit: 0,
    };
    berth_tests::pods::resources(&mut container).hugepage_limits = vec![page("2MB"), page("1GB")];
    berth_tests::pods::resources(&mut container).cpu_shares = 2;
    berth_tests::pods::resources(&mut container).oom_score_adj = 1000;
    ensure_eq!(pod.output_of(&container).await?, "fine\n");
    Ok(())
}

/// A caller that gave up a create may remove the pod while the create goes on.
async fn removal_waits_for_creates(case: &mut Case) -> Result<()> {
    case.start().await?;
    for round in 0..5 {
        let instance = case.instance()?;
        let pod = Pod::run(
            instance.cri()?,
            pod_config(instance, &format!("race{round}")),
        )
        .await?;
        let creates: Vec<_> = (0..4)
            .map(|number| {
                let pod = pod.clone();
                let mut config = script("exec sleep 4321");
                if let Some(metadata) = config.metadata.as_mut() {
                    metadata.name = format!("c{number}");
                }
                tokio::spawn(async move { pod.create(&config).await.is_ok() })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(4 * round)).await;
        pod.cri.stop_pod(&pod.id).await?;
        pod.cri.remove_pod(&pod.id).await?;
        for create in creates {
            create.await?;
        }
        let left = pod.cri.list_containers(None).await?;
        ensure!(left.is_empty(), "left in a removed pod: {left:?}");
    }
    Ok(())
}
