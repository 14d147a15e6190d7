//! Users, capabilities, seccomp, masks: what a container may not do.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::security_profile::ProfileType;
use berth_cri_api::v1::*;
use berth_tests::cri::image_spec;
use berth_tests::machine::{has_apparmor, lacks_apparmor};
use berth_tests::pods::{Pod, container, pid_of, pod_config, script, security, unique};
use berth_tests::runner::{Case, Test};
use berth_tests::{ensure_eq, images, test};
use tokio::io::AsyncWriteExt as _;

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
    test!(apparmor_default)
        .unless(lacks_apparmor)
        .berth_only("the default profile has another name"),
    test!(apparmor_localhost)
        .unless(lacks_apparmor)
        .berth_only("the error has other words"),
    test!(apparmor_unconfined).unless(lacks_apparmor),
    test!(apparmor_is_refused_where_it_is_not)
        .unless(has_apparmor)
        .berth_only("the error has other words"),
    test!(devices_of_the_host_are_closed),
    test!(host_path_escapes_by_link),
    test!(users_of_the_host_reach_no_file_of_an_image).berth_only("it looks into Berth's store"),
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

/// The profile of a process, without its mode.
const CURRENT: &str = "sed 's/ (.*//' /proc/self/attr/current";

fn host_profile(pid: u32) -> Result<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/attr/current"))?;
    Ok(text.trim().to_owned())
}

/// A profile of the test's own in the kernel; removed with this value.
struct Profile {
    name: String,
    text: String,
}

impl Profile {
    /// One that denies writes to /tmp.
    fn load() -> Result<Self> {
        let name = format!("berth-test-{}-{}", std::process::id(), unique());
        let rules = "file, capability, network, unix, signal, ptrace, deny /tmp/** w,";
        let profile = Self {
            text: format!("profile {name} flags=(attach_disconnected) {{ {rules} }}\n"),
            name,
        };
        profile.parser("-Kr")?;
        Ok(profile)
    }

    fn parser(&self, option: &str) -> Result<()> {
        use std::io::Write as _;
        let mut child = std::process::Command::new("apparmor_parser")
            .env("PATH", "/usr/sbin:/sbin")
            .args(["-q", option])
            .stdin(std::process::Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().context("no input")?;
        stdin.write_all(self.text.as_bytes())?;
        drop(stdin);
        let status = child.wait()?;
        ensure!(status.success(), "apparmor_parser {option}: {status}");
        Ok(())
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        if let Err(error) = self.parser("-R") {
            println!("profile {} is left: {error}", self.name);
        }
    }
}

/// What the default profile takes away even from a container whose other walls are down. Each number that is
/// written is the one that is there.
const REACH: &str = "echo $(cat /proc/sys/vm/swappiness) > /proc/sys/vm/swappiness && echo host sysctl; \
     echo $(cat /proc/sys/kernel/shmmni) > /proc/sys/kernel/shmmni && echo own sysctl; \
     mkdir /tmp/m && mount -t tmpfs none /tmp/m && echo mount; \
     sleep 4321 & kill $! && echo kill; echo done; exec sleep 4321";

async fn apparmor_default(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let probe = format!("{CURRENT}; {REACH}");
    for wanted in [None, profile(ProfileType::RuntimeDefault, "")] {
        let mut config = script(&probe);
        security(&mut config).apparmor = wanted;
        security(&mut config).capabilities = Some(Capability {
            add_capabilities: vec!["SYS_ADMIN".into()],
            ..Capability::default()
        });
        let running = pod.start(&config).await?;
        running.wait_for_log("done").await?;
        ensure_eq!(running.stdout()?, "berth-default\nown sysctl\nkill\ndone\n");
        ensure_eq!(running.sh(CURRENT).await?, "berth-default\n");
        let info = pod.cri.container_status_verbose(&running.id).await?.info;
        let info = info.get("info").context("no verbose status")?;
        let info: serde_json::Value = serde_json::from_str(info)?;
        ensure_eq!(
            info["runtimeSpec"]["process"]["apparmorProfile"],
            "berth-default"
        );
        // Stop sends a signal from outside the profile.
        pod.cri.stop(&running.id, 5).await?;
    }
    let pause = pid_of(&pod.cri.pod_status_verbose(&pod.id).await?.info)?;
    ensure_eq!(host_profile(pause)?, "berth-default (enforce)");
    Ok(())
}

#[allow(deprecated)] // The older field still counts.
async fn apparmor_localhost(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let own = Profile::load()?;
    let older = format!("localhost/{}", own.name);
    for (newer, older) in [
        (profile(ProfileType::Localhost, &own.name), ""),
        (profile(ProfileType::Localhost, &older), "localhost/missing"),
        (None, older.as_str()),
    ] {
        let mut config = script(&format!(
            "{CURRENT}; touch /tmp/x || echo refused; touch /x && echo made; echo done; exec sleep 4321"
        ));
        security(&mut config).apparmor = newer;
        security(&mut config).apparmor_profile = older.to_owned();
        security(&mut config).no_new_privs = true;
        let running = pod.start(&config).await?;
        running.wait_for_log("done").await?;
        ensure_eq!(
            running.stdout()?,
            format!("{}\nrefused\nmade\ndone\n", own.name)
        );
        let output = running.exec(&["touch", "/tmp/y"]).await?;
        ensure!(
            output.code != 0,
            "an exec may do what the container may not"
        );
    }
    let mut missing = script("true");
    security(&mut missing).apparmor = profile(ProfileType::Localhost, "no-such-profile");
    let answer = pod.cri.create(&pod.id, &missing, &pod.config).await;
    let error = answer.err().context("a missing profile was ignored")?;
    ensure!(
        error
            .message()
            .contains("\"no-such-profile\" is not loaded"),
        "{error}"
    );
    Ok(())
}

async fn apparmor_unconfined(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let mut config = pod_config(instance, "unconfined");
    if let Some(security) = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
    {
        security.privileged = true;
    }
    let pod = Pod::run(instance.cri()?, config).await?;
    for (privileged, wanted) in [
        (true, None),
        (true, profile(ProfileType::RuntimeDefault, "")),
        (false, profile(ProfileType::Unconfined, "")),
    ] {
        let mut config = script(&format!("{CURRENT}; {REACH}"));
        security(&mut config).privileged = privileged;
        security(&mut config).apparmor = wanted;
        security(&mut config).capabilities = Some(Capability {
            add_capabilities: vec!["SYS_ADMIN".into()],
            ..Capability::default()
        });
        let running = pod.start(&config).await?;
        running.wait_for_log("done").await?;
        ensure_eq!(
            running.stdout()?,
            "unconfined\nhost sysctl\nown sysctl\nmount\nkill\ndone\n"
        );
        ensure_eq!(running.sh(CURRENT).await?, "unconfined\n");
    }
    let pause = pid_of(&pod.cri.pod_status_verbose(&pod.id).await?.info)?;
    ensure_eq!(host_profile(pause)?, "unconfined");
    Ok(())
}

async fn apparmor_is_refused_where_it_is_not(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    for wanted in [
        profile(ProfileType::RuntimeDefault, ""),
        profile(ProfileType::Localhost, "x"),
    ] {
        let mut config = script("true");
        security(&mut config).apparmor = wanted;
        let answer = pod.cri.create(&pod.id, &config, &pod.config).await;
        let error = answer.err().context("a profile was ignored")?;
        ensure!(
            error
                .message()
                .contains("AppArmor is not enabled on this host"),
            "{error}"
        );
    }
    let mut config = script("echo fine");
    security(&mut config).apparmor = profile(ProfileType::Unconfined, "");
    ensure_eq!(pod.output_of(&config).await?, "fine\n");
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

/// Runs a script with a path as `$0`, as a user of the host who owns nothing. Not the path itself: setpriv looks its
/// program up before it has given up the last capability.
async fn as_nobody(script: &str, path: &Path, input: &str) -> Result<Output> {
    let mut child = tokio::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--clear-groups"])
        .args(["sh", "-c", script])
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("starting setpriv")?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let writing = async {
        let written = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        written
    };
    let (output, written) = tokio::join!(child.wait_with_output(), writing);
    written?;
    Ok(output?)
}

fn everything_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
            all.push(entry.path());
        }
    }
    Ok(all)
}

/// S22: a set-user-id program of an image would make every user of the host root.
async fn users_of_the_host_reach_no_file_of_an_image(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    pod.cri.pull(images::NONEWPRIVS).await?;
    let mut config = script("exec sleep 4321");
    config.image = Some(image_spec(images::NONEWPRIVS));
    pod.start(&config).await?;
    let folder = case.instance()?.folder().to_owned();
    // What is looked at is what the daemon leaves open, not how a test closes its folder.
    std::fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
    let read = as_nobody("cat \"$0\"", &folder.join("config.toml"), "").await?;
    ensure!(read.status.success(), "{read:?}");

    let root = folder.join("root");
    let all = everything_below(&root)?;
    let program = all.iter().find(|path| path.ends_with("fs/nnp"));
    let program = program.context("the program is not in the store")?;
    ensure_eq!(program.metadata()?.mode() & 0o7777, 0o4755);
    let run = as_nobody("exec \"$0\"", program, "").await?;
    ensure!(!run.status.success(), "it ran: {run:?}");
    // What is of pods and of the daemon itself, and no file of an image.
    let others = ["cni", "lock"].map(|name| root.join(name));
    let of_images = |path: &&PathBuf| !others.iter().any(|other| path.starts_with(other));
    let lines = all.iter().filter(of_images);
    let lines: Vec<String> = lines.map(|path| format!("{}\n", path.display())).collect();
    let look = "while IFS= read -r path; do
        if [ -r \"$path\" ] || [ -w \"$path\" ] || [ -x \"$path\" ]; then echo \"$path\"; fi
    done";
    let reached = as_nobody(look, &root, &lines.concat()).await?;
    ensure!(reached.status.success(), "{reached:?}");
    ensure_eq!(String::from_utf8(reached.stdout)?, "");
    Ok(())
}
