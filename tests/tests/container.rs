//! Containers: what a config asks for is what the process sees.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::cri::image_spec;
use berth_tests::images;
use berth_tests::pods::{self, container, mount, script};
use berth_tests::runner::{Case, Test};
use berth_tests::{ensure_eq, process, test};

pub(crate) const TESTS: &[Test] = &[
    test!(command_args_env_and_folder),
    test!(env_values_are_bytes).berth_only("containerd makes text of them"),
    test!(image_config_is_merged),
    test!(command_replaces_the_entrypoint),
    test!(missing_working_folder_is_made),
    test!(volumes),
    test!(file_mount_and_read_only_mount),
    test!(symlinked_host_path),
    test!(missing_host_path_is_made),
    test!(propagation_host_to_container),
    test!(propagation_private),
    test!(read_only_root),
    test!(stop_with_grace),
    test!(stop_kills_what_ignores_term),
    test!(stop_signal_of_the_image),
    test!(stop_with_zero_grace),
    test!(tty),
    test!(stdin_is_empty_by_default),
    test!(same_container_twice_at_once).berth_only("containerd refuses the second as a taken name"),
    test!(remove_running),
    test!(create_in_a_stopped_pod_is_refused),
    test!(unsupported_requests_are_refused).berth_only("containerd has these features"),
    test!(children_die_with_the_container),
];

async fn command_args_env_and_folder(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = container(&["sh", "-c"]);
    config.args = vec![
        "echo \"$0 $1 $A\"; pwd".into(),
        "zero".into(),
        "one two".into(),
    ];
    config.envs = vec![KeyValue {
        key: "A".into(),
        value: b"b=c d".to_vec(),
    }];
    config.working_dir = "/tmp".into();
    ensure_eq!(pod.output_of(&config).await?, "zero one two b=c d\n/tmp\n");
    Ok(())
}

async fn env_values_are_bytes(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("printf %s \"$RAW\" | od -An -tx1");
    config.envs = vec![KeyValue {
        key: "RAW".into(),
        value: vec![0x66, 0xff, 0xfe],
    }];
    ensure_eq!(pod.output_of(&config).await?.trim(), "66 ff fe");
    Ok(())
}

async fn image_config_is_merged(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    pod.cri.pull(images::CONFIGURED).await?;
    let mut config = container(&[]);
    config.image = Some(image_spec(images::CONFIGURED));
    let running = pod.start(&config).await?;
    running.wait_for_log("uid=").await?;
    let text = running.stdout()?;
    ensure!(
        text.starts_with("from-image hello\n/srv\nuid=1234(app) gid=1235(app)"),
        "{text}"
    );
    ensure!(
        text.contains("1236(extra)"),
        "the groups of the image's file are missing: {text}"
    );
    let mut config = container(&[]);
    config.image = Some(image_spec(images::CONFIGURED));
    config.args = vec!["echo $GREETING $KEEP".into()];
    config.envs = vec![KeyValue {
        key: "GREETING".into(),
        value: b"changed".to_vec(),
    }];
    ensure_eq!(pod.output_of(&config).await?, "changed image\n");
    Ok(())
}

async fn command_replaces_the_entrypoint(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    pod.cri.pull(images::CONFIGURED).await?;
    let mut config = container(&["echo", "mine"]);
    config.image = Some(image_spec(images::CONFIGURED));
    ensure_eq!(pod.output_of(&config).await?, "mine\n");
    Ok(())
}

async fn missing_working_folder_is_made(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("pwd");
    config.working_dir = "/not/there/yet".into();
    ensure_eq!(pod.output_of(&config).await?, "/not/there/yet\n");
    Ok(())
}

/// emptyDir and hostPath as a kubelet hands them: folders of the host.
async fn volumes(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let folder = case.instance()?.folder().join("volume");
    std::fs::create_dir(&folder)?;
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777))?;
    let mut writer = script("echo shared > /data/file");
    writer.mounts = vec![mount(&folder, "/data", false)];
    pod.output_of(&writer).await?;
    ensure_eq!(std::fs::read_to_string(folder.join("file"))?, "shared\n");
    let mut reader = script("cat /deep/er/file");
    reader.mounts = vec![mount(&folder, "/deep/er", false)];
    ensure_eq!(pod.output_of(&reader).await?, "shared\n");
    Ok(())
}

async fn file_mount_and_read_only_mount(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let folder = case.instance()?.folder().join("volume");
    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join("hosts"), "127.0.0.1 from-kubelet\n")?;
    let mut config = script("cat /etc/hosts; echo x >> /etc/hosts; touch /ro/x; echo end");
    config.mounts = vec![
        mount(&folder.join("hosts"), "/etc/hosts", true),
        mount(&folder, "/ro", true),
    ];
    let running = pod.start(&config).await?;
    let status = running.wait().await?;
    ensure_eq!(status.mounts, config.mounts);
    ensure_eq!(running.stdout()?, "127.0.0.1 from-kubelet\nend\n");
    ensure_eq!(
        running
            .stream("stderr")?
            .matches("Read-only file system")
            .count(),
        2
    );
    Ok(())
}

async fn symlinked_host_path(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let folder = case.instance()?.folder();
    std::fs::create_dir(folder.join("real"))?;
    std::fs::write(folder.join("real/file"), "through\n")?;
    std::os::unix::fs::symlink("real", folder.join("link"))?;
    let mut config = script("cat /v/file");
    config.mounts = vec![mount(&folder.join("link"), "/v", false)];
    ensure_eq!(pod.output_of(&config).await?, "through\n");
    Ok(())
}

async fn missing_host_path_is_made(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let folder = case.instance()?.folder().join("made/by/runtime");
    let mut config = script("touch /v/file");
    config.mounts = vec![mount(&folder, "/v", false)];
    pod.output_of(&config).await?;
    ensure!(
        folder.join("file").exists(),
        "the folder of the host was not made"
    );
    Ok(())
}

/// A shared mount of its own under the instance's folder, so that propagation has a source.
fn shared_folder(case: &mut Case) -> Result<std::path::PathBuf> {
    use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
    let folder = case.instance()?.folder().join("shared");
    std::fs::create_dir_all(folder.join("inner"))?;
    mount_bind(&folder, &folder)?;
    mount_change(&folder, MountPropagationFlags::SHARED)?;
    Ok(folder)
}

async fn propagation(case: &mut Case, mode: MountPropagation) -> Result<(String, bool)> {
    let pod = case.pod().await?;
    let folder = shared_folder(case)?;
    let mut config = script("exec sleep 4321");
    config.mounts = vec![Mount {
        propagation: mode.into(),
        ..mount(&folder, "/shared", false)
    }];
    let running = pod.start(&config).await?;
    let inner = folder.join("inner");
    rustix::mount::mount(
        "none",
        &inner,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    )?;
    std::fs::write(inner.join("late"), "")?;
    let seen = running.sh("ls /shared/inner").await?;
    let own = running
        .sh("grep -c ' /shared ' /proc/self/mountinfo")
        .await?;
    pod.remove().await?;
    rustix::mount::unmount(&inner, rustix::mount::UnmountFlags::DETACH)?;
    rustix::mount::unmount(&folder, rustix::mount::UnmountFlags::DETACH)?;
    Ok((seen, own.trim() == "1"))
}

async fn propagation_host_to_container(case: &mut Case) -> Result<()> {
    let mode = MountPropagation::PropagationHostToContainer;
    ensure_eq!(propagation(case, mode).await?, ("late\n".to_owned(), true));
    Ok(())
}

async fn propagation_private(case: &mut Case) -> Result<()> {
    let mode = MountPropagation::PropagationPrivate;
    ensure_eq!(propagation(case, mode).await?, (String::new(), true));
    Ok(())
}

async fn read_only_root(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("touch /x; touch /dev/shm/y && echo shm");
    pods::security(&mut config).readonly_rootfs = true;
    let running = pod.start(&config).await?;
    running.wait().await?;
    ensure_eq!(running.stdout()?, "shm\n");
    ensure!(
        running.stream("stderr")?.contains("Read-only"),
        "{:?}",
        running.lines()?
    );
    Ok(())
}

async fn stop_with_grace(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let config = script("trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done");
    let running = pod.start(&config).await?;
    running.wait_for_log("up").await?;
    let start = Instant::now();
    pod.cri.stop(&running.id, 20).await?;
    ensure!(
        start.elapsed() < Duration::from_secs(5),
        "it took {:?}",
        start.elapsed()
    );
    let status = running.status().await?;
    ensure_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    ensure!(
        running.stdout()?.ends_with("bye\n"),
        "the last words are lost"
    );
    pod.cri.stop(&running.id, 20).await?;
    Ok(())
}

async fn stop_kills_what_ignores_term(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let config = script("trap '' TERM; echo up; while :; do sleep 0.05; done");
    let running = pod.start(&config).await?;
    running.wait_for_log("up").await?;
    let start = Instant::now();
    pod.cri.stop(&running.id, 1).await?;
    let took = start.elapsed();
    ensure!(
        took >= Duration::from_secs(1) && took < Duration::from_secs(4),
        "it took {took:?}"
    );
    ensure_eq!(running.status().await?.exit_code, 137);
    Ok(())
}

async fn stop_signal_of_the_image(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    pod.cri.pull(images::CONFIGURED).await?;
    let mut config = container(&[]);
    config.image = Some(image_spec(images::CONFIGURED));
    config.args = vec!["trap 'exit 33' USR1; echo up; while :; do sleep 0.05; done".into()];
    let running = pod.start(&config).await?;
    running.wait_for_log("up").await?;
    pod.cri.stop(&running.id, 20).await?;
    ensure_eq!(running.status().await?.exit_code, 33);
    Ok(())
}

async fn stop_with_zero_grace(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod
        .start(&script(
            "trap 'sleep 9; exit 0' TERM; while :; do sleep 0.05; done",
        ))
        .await?;
    let start = Instant::now();
    pod.cri.stop(&running.id, 0).await?;
    ensure!(
        start.elapsed() < Duration::from_secs(2),
        "it took {:?}",
        start.elapsed()
    );
    ensure_eq!(running.status().await?.exit_code, 137);
    Ok(())
}

async fn tty(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("tty; test -t 1 && echo terminal; echo oops >&2");
    config.tty = true;
    config.stdin = true;
    let running = pod.start(&config).await?;
    running.wait().await?;
    let text = running.stdout()?.replace('\r', "");
    ensure_eq!(text, "/dev/pts/0\nterminal\noops\n");
    Ok(())
}

async fn stdin_is_empty_by_default(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    ensure_eq!(pod.output_of(&script("cat; echo end")).await?, "end\n");
    Ok(())
}

async fn same_container_twice_at_once(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let config = script("exec sleep 4321");
    let (one, two) = tokio::join!(pod.create(&config), pod.create(&config));
    ensure_eq!(one?.id, two?.id);
    ensure_eq!(pod.cri.list_containers(None).await?.len(), 1);
    Ok(())
}

async fn remove_running(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod
        .start(&script("trap '' TERM; while :; do sleep 1; done"))
        .await?;
    let pid = running.pid().await?;
    pod.cri.remove(&running.id).await?;
    ensure!(!process::alive(pid), "the process is still there");
    pod.cri.remove(&running.id).await?;
    Ok(())
}

async fn create_in_a_stopped_pod_is_refused(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    pod.cri.stop_pod(&pod.id).await?;
    ensure!(
        pod.create(&script("true")).await.is_err(),
        "a container was created"
    );
    Ok(())
}

async fn unsupported_requests_are_refused(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let folder = case.instance()?.folder().to_path_buf();
    let mut recursive = script("true");
    let rro = Mount {
        recursive_read_only: true,
        ..mount(&folder, "/v", true)
    };
    recursive.mounts = vec![rro];
    let mut image = script("true");
    let volume = Mount {
        image: Some(image_spec(images::BUSYBOX)),
        container_path: "/v".into(),
        readonly: true,
        ..Mount::default()
    };
    image.mounts = vec![volume];
    let mut cdi = script("true");
    cdi.cdi_devices = vec![CdiDevice {
        name: "vendor.com/device=one".into(),
    }];
    let mut apparmor = script("true");
    pods::security(&mut apparmor).apparmor = Some(SecurityProfile {
        profile_type: security_profile::ProfileType::Localhost.into(),
        localhost_ref: "no-such-profile".into(),
    });
    for (what, config) in [
        ("recursive read-only", recursive),
        ("image volume", image),
        ("CDI", cdi),
        ("AppArmor", apparmor),
    ] {
        let answer = pod.cri.create(&pod.id, &config, &pod.config).await;
        let error = answer
            .err()
            .with_context(|| format!("{what} was ignored"))?;
        ensure!(
            !error.message().is_empty(),
            "{what} is refused without a word"
        );
    }
    Ok(())
}

async fn children_die_with_the_container(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let shared = pods::namespaces(NamespaceMode::Pod, NamespaceMode::Pod);
    let mut pod_config = pods::pod_config(instance, "shared");
    if let Some(security) = pod_config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
    {
        security.namespace_options = Some(shared.clone());
    }
    let pod = pods::Pod::run(instance.cri()?, pod_config).await?;
    let mut config = script("setsid sleep 98761 & sleep 0.2; exit 3");
    pods::security(&mut config).namespace_options = Some(shared);
    let running = pod.start(&config).await?;
    ensure_eq!(running.wait().await?.exit_code, 3);
    let name = case.instance()?.name.clone();
    let left = process::marked(&[&name]);
    let orphan = left.iter().find(|one| one.command.contains("98761"));
    ensure!(
        orphan.is_none(),
        "an orphan outlived its container: {orphan:?}"
    );
    Ok(())
}
