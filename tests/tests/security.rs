//! Users, capabilities, seccomp, masks: what a container may not do.

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::security_profile::ProfileType;
use berth_cri_api::v1::*;
use berth_tests::cri::image_spec;
use berth_tests::pods::{Pod, container, pod_config, script, security};
use berth_tests::runner::{Case, Test};
use berth_tests::{ensure_eq, images, test};

pub(crate) const TESTS: &[Test] = &[
    test!(user_by_number_and_name),
    test!(unknown_user_is_refused),
    test!(supplemental_groups_of_both_policies),
    test!(group_without_user_is_refused),
    test!(default_capabilities),
    test!(capabilities_added_and_dropped),
    test!(capabilities_of_a_plain_user),
    test!(no_new_privileges),
    test!(masked_and_read_only_paths),
    test!(privileged),
    test!(seccomp_runtime_default),
    test!(seccomp_localhost),
    test!(seccomp_missing_profile_is_refused),
    test!(devices_of_the_host_are_closed),
    test!(host_path_escapes_by_link),
];

async fn user_by_number_and_name(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut number = script("id -u; id -g; id -G; echo $HOME");
    security(&mut number).run_as_user = Some(Int64Value { value: 4242 });
    security(&mut number).run_as_group = Some(Int64Value { value: 4243 });
    ensure_eq!(pod.output_of(&number).await?, "4242\n4243\n4243\n/\n");
    let mut name = script("id -nu; id -u; echo $HOME");
    security(&mut name).run_as_username = "nobody".into();
    ensure_eq!(pod.output_of(&name).await?, "nobody\n65534\n/home\n");
    Ok(())
}

async fn unknown_user_is_refused(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("true");
    security(&mut config).run_as_username = "no-such-user".into();
    let error = pod
        .cri
        .create(&pod.id, &config, &pod.config)
        .await
        .err()
        .context("it was made")?;
    // containerd's words are "no users found".
    let named = ["no-such-user", "no users"]
        .iter()
        .any(|word| error.message().contains(word));
    ensure!(named, "the error does not name the user: {error}");
    Ok(())
}

async fn supplemental_groups_of_both_policies(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    pod.cri.pull(images::GROUPS).await?;
    for (policy, expected) in [
        (SupplementalGroupsPolicy::Merge, "1000 1234 50000"),
        (SupplementalGroupsPolicy::Strict, "1000 1234"),
    ] {
        let mut config = container(&["sh", "-c", "id -G; sleep 4321"]);
        config.image = Some(image_spec(images::GROUPS));
        security(&mut config).supplemental_groups = vec![1234];
        security(&mut config).supplemental_groups_policy = policy.into();
        let running = pod.start(&config).await?;
        running.wait_for_log(expected).await?;
        ensure_eq!(running.stdout()?.trim(), expected);
        ensure_eq!(running.sh("id -G").await?.trim(), expected);
        let user = running
            .status()
            .await?
            .user
            .and_then(|user| user.linux)
            .context("no user")?;
        ensure_eq!((user.uid, user.gid), (1000, 1000));
    }
    Ok(())
}

async fn group_without_user_is_refused(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("true");
    security(&mut config).run_as_group = Some(Int64Value { value: 1001 });
    ensure!(
        pod.create(&config).await.is_err(),
        "a group without a user was taken"
    );
    Ok(())
}

/// A field of /proc/self/status in the container.
const STATUS: &str = "grep -E '^(Cap|NoNew|Seccomp:|SigBlk|SigIgn|Groups)' /proc/self/status";

fn field(text: &str, name: &str) -> Result<String> {
    let line = text.lines().find(|line| line.starts_with(name));
    let line = line.with_context(|| format!("no {name} in {text}"))?;
    Ok(line
        .split_once(':')
        .map_or("", |(_, value)| value)
        .trim()
        .to_owned())
}

/// The fourteen that every runtime gives: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
/// net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
const DEFAULT: &str = "00000000a80425fb";

async fn default_capabilities(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let text = pod.output_of(&script(STATUS)).await?;
    for name in ["CapPrm", "CapEff", "CapBnd"] {
        ensure_eq!(field(&text, name)?, DEFAULT);
    }
    ensure_eq!(field(&text, "CapAmb")?, "0000000000000000");
    ensure_eq!(field(&text, "CapInh")?, "0000000000000000");
    Ok(())
}

async fn capabilities_added_and_dropped(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script(&format!("{STATUS}; exec sleep 4321"));
    security(&mut config).capabilities = Some(Capability {
        add_capabilities: vec!["NET_ADMIN".into()],
        drop_capabilities: vec!["MKNOD".into(), "NET_RAW".into()],
        ..Capability::default()
    });
    let running = pod.start(&config).await?;
    running.wait_for_log("Seccomp:").await?;
    // + bit 12, - bits 13 and 27
    let expected = "00000000a00415fb";
    ensure_eq!(field(&running.stdout()?, "CapBnd")?, expected);
    ensure_eq!(field(&running.sh(STATUS).await?, "CapEff")?, expected);
    let mut none = script(STATUS);
    security(&mut none).capabilities = Some(Capability {
        drop_capabilities: vec!["ALL".into()],
        ..Capability::default()
    });
    ensure_eq!(
        field(&pod.output_of(&none).await?, "CapBnd")?,
        "0000000000000000"
    );
    Ok(())
}

async fn capabilities_of_a_plain_user(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script(STATUS);
    security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
    let text = pod.output_of(&config).await?;
    ensure_eq!(field(&text, "CapEff")?, "0000000000000000");
    ensure_eq!(field(&text, "CapBnd")?, DEFAULT);
    Ok(())
}

async fn no_new_privileges(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    pod.cri.pull(images::NONEWPRIVS).await?;
    for (no_new_privs, expected) in [
        (true, "Effective uid: 1000\n"),
        (false, "Effective uid: 0\n"),
    ] {
        let mut config = container(&[]);
        config.image = Some(image_spec(images::NONEWPRIVS));
        security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
        security(&mut config).no_new_privs = no_new_privs;
        ensure_eq!(pod.output_of(&config).await?, expected);
    }
    Ok(())
}

async fn masked_and_read_only_paths(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script(
        "cat /proc/kcore | head -c 1 | wc -c; ls /proc/scsi | wc -l; cat /bin/ls; echo 1 > /proc/sys/vm/swappiness; touch /tmp/x",
    );
    security(&mut config).masked_paths = vec![
        "/proc/kcore".into(),
        "/proc/scsi".into(),
        "/bin/ls".into(),
        "/not/there".into(),
    ];
    security(&mut config).readonly_paths = vec!["/proc/sys".into(), "/tmp".into()];
    let running = pod.start(&config).await?;
    running.wait().await?;
    ensure!(
        running.stdout()?.starts_with("0\n"),
        "{:?}",
        running.lines()?
    );
    let errors = running.stream("stderr")?;
    ensure_eq!(errors.matches("Read-only file system").count(), 2);
    Ok(())
}

async fn privileged(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let mut config = pod_config(instance, "privileged");
    if let Some(security) = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
    {
        security.privileged = true;
    }
    let pod = Pod::run(instance.cri()?, config).await?;
    let mut container = script(&format!(
        "{STATUS}; brctl addbr d0 && echo made; ls /dev | wc -l"
    ));
    security(&mut container).privileged = true;
    let text = pod.output_of(&container).await?;
    ensure_eq!(field(&text, "Seccomp")?, "0");
    ensure!(text.contains("made\n"), "{text}");
    let own = std::fs::read_to_string("/proc/self/status")?;
    ensure_eq!(field(&text, "CapEff")?, field(&own, "CapBnd")?);
    Ok(())
}

fn profile(kind: ProfileType, path: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: path.to_owned(),
    })
}

async fn seccomp_runtime_default(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    for (profile, expected) in [
        (profile(ProfileType::RuntimeDefault, ""), "2"),
        (profile(ProfileType::Unconfined, ""), "0"),
        (None, "0"),
    ] {
        let mut config = script(&format!(
            "{STATUS}; unshare -U true && echo allowed; exec sleep 4321"
        ));
        security(&mut config).seccomp = profile;
        let running = pod.start(&config).await?;
        running.wait_for_log("Seccomp:").await?;
        ensure_eq!(field(&running.stdout()?, "Seccomp")?, expected);
        ensure_eq!(field(&running.sh(STATUS).await?, "Seccomp")?, expected);
    }
    Ok(())
}

async fn seccomp_localhost(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let file = case.instance()?.folder().join("profile.json");
    let text = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#;
    std::fs::write(&file, text)?;
    let mut config = script("mkdir /tmp/x || echo refused; exec sleep 4321");
    security(&mut config).seccomp = profile(ProfileType::Localhost, &file.display().to_string());
    let running = pod.start(&config).await?;
    running.wait_for_log("refused").await?;
    // The file may change afterwards: an exec gets the filter that the container was started with.
    std::fs::write(&file, r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#)?;
    let output = running.exec(&["mkdir", "/tmp/y"]).await?;
    ensure!(
        output.code != 0,
        "an exec may do what the container may not"
    );
    Ok(())
}

async fn seccomp_missing_profile_is_refused(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("true");
    security(&mut config).seccomp = profile(ProfileType::Localhost, "/no/such/profile.json");
    ensure!(
        pod.start(&config).await.is_err(),
        "a profile that is not there was ignored"
    );
    Ok(())
}

async fn devices_of_the_host_are_closed(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let disk = "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem; echo $?; mknod /tmp/null c 1 3 && echo x > /tmp/null && echo fine";
    let running = pod.start(&script(disk)).await?;
    running.wait().await?;
    ensure_eq!(running.stdout()?, "1\nfine\n");
    Ok(())
}

/// A link in the image that points outside must lead to a place inside.
async fn host_path_escapes_by_link(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let folder = case.instance()?.folder().join("volume");
    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join("mine"), "")?;
    let mut config = script("ls /etc/inside/deep");
    config.mounts = vec![berth_tests::pods::mount(
        &folder,
        "/proc/self/root/etc/inside/deep",
        false,
    )];
    if let Ok(running) = pod.start(&config).await {
        running.wait().await?;
    }
    ensure!(
        !std::path::Path::new("/etc/inside").exists(),
        "the mount point was made on the host"
    );
    Ok(())
}
