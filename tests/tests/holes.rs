//! What libcontainer gets wrong when it is used as it is: each hole was reproduced once, and must stay closed.

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::pods::{container, resources, script, security};
use berth_tests::runner::{Case, Test};
use berth_tests::{ensure_eq, paths, process, test};

pub(crate) const TESTS: &[Test] = &[
    test!(exec_keeps_seccomp),
    test!(cgroup_mount_is_read_only),
    test!(cgroup_files_show_the_container),
    test!(own_program_cannot_be_overwritten).berth_only("it looks at Berth's programs"),
    test!(signals_and_groups_are_reset)
        .berth_only("containerd hands on the ignored signals that it inherited"),
    test!(plain_user_opens_dev_stdout),
    test!(entrypoint_only_for_root),
    test!(environment_keeps_order_and_doubles),
    test!(empty_command_is_refused),
    test!(open_files_do_not_leak_in),
    test!(no_swap_means_no_swap),
    test!(umask_and_limits),
    test!(monitor_keeps_its_oom_score).berth_only("it looks at Berth's monitor"),
    test!(no_getpwuid_of_the_image),
];

async fn exec_keeps_seccomp(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("exec sleep 4321");
    security(&mut config).seccomp = Some(SecurityProfile {
        profile_type: security_profile::ProfileType::RuntimeDefault.into(),
        ..SecurityProfile::default()
    });
    let running = pod.start(&config).await?;
    ensure_eq!(
        running
            .sh("grep ^Seccomp: /proc/self/status | tr -d ' \\t'")
            .await?,
        "Seccomp:2\n"
    );
    Ok(())
}

async fn cgroup_mount_is_read_only(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script(
        "f=$(ls /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null | head -1); \
         echo 200000000 > $f; cat $f",
    );
    resources(&mut config).memory_limit_in_bytes = 64 << 20;
    let running = pod.start(&config).await?;
    running.wait().await?;
    let text = running.stdout()?;
    ensure!(
        !text.contains("200000000"),
        "a container raised its own limit: {text}"
    );
    Ok(())
}

/// What keeps libcontainer from moving init must not be seen by the container.
async fn cgroup_files_show_the_container(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod.start(&script("exec sleep 4321")).await?;
    // v2 has one; a folder below it is the exec's own.
    let files = "ls /sys/fs/cgroup/cgroup.procs 2>/dev/null || ls /sys/fs/cgroup/*/cgroup.procs";
    let text = running
        .sh(&format!(
            "for f in $({files}); do grep -qx 1 $f && echo yes || echo no $f; done"
        ))
        .await?;
    ensure!(
        text.contains("yes") && !text.contains("no"),
        "init is not in its cgroup as the container sees it: {text}"
    );
    Ok(())
}

/// CVE-2019-5736: a script whose interpreter is /proc/self/exe, and then a write to the program behind it.
async fn own_program_cannot_be_overwritten(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let before = programs()?;
    let running = pod.start(&script("exec sleep 4321")).await?;
    running
        .sh("printf '#!/proc/self/exe\\n' > /bad; chmod 755 /bad")
        .await?;
    for _ in 0..5 {
        let _ = pod.cri.exec(&running.id, &["/bad"], 3).await;
    }
    let attack = "for p in /proc/[0-9]*; do (echo owned > $p/exe) 2>/dev/null; done; exit 0";
    running.sh(attack).await?;
    let mut bad = container(&["/bad"]);
    bad.working_dir = "/".into();
    let _ = pod.start(&bad).await;
    ensure_eq!(programs()?, before);
    Ok(())
}

fn programs() -> Result<Vec<String>> {
    ["berth", "berth-shim", "berth-worker"]
        .iter()
        .map(|name| {
            Ok(berth_tests::oci::digest(&std::fs::read(
                paths::berth_dir().join(name),
            )?))
        })
        .collect()
}

async fn signals_and_groups_are_reset(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    // No shell in between: busybox's ignores SIGQUIT by itself.
    let running = pod.start(&container(&["sleep", "4321"])).await?;
    let init = running.exec(&["cat", "/proc/1/status"]).await?.stdout;
    let exec = running.exec(&["cat", "/proc/self/status"]).await?.stdout;
    for text in [init, exec] {
        for name in ["SigBlk:", "SigIgn:"] {
            let line = text
                .lines()
                .find(|line| line.starts_with(name))
                .context("no such line")?;
            ensure!(line.ends_with("0000000000000000"), "{line}");
        }
        let groups = text
            .lines()
            .find(|line| line.starts_with("Groups:"))
            .context("no groups")?;
        ensure!(
            matches!(groups.trim_start_matches("Groups:").trim(), "" | "0"),
            "{groups}"
        );
    }
    Ok(())
}

async fn plain_user_opens_dev_stdout(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("echo out > /dev/stdout; echo err > /dev/stderr");
    security(&mut config).run_as_user = Some(Int64Value { value: 1000 });
    let running = pod.start(&config).await?;
    ensure_eq!(running.wait().await?.exit_code, 0);
    ensure_eq!(
        (
            running.stdout()?.as_str(),
            running.stream("stderr")?.as_str()
        ),
        ("out\n", "err\n")
    );
    Ok(())
}

async fn entrypoint_only_for_root(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let folder = case.instance()?.folder().join("tool");
    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join("run"), "#!/bin/sh\necho mine\n")?;
    std::fs::set_permissions(
        folder.join("run"),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )?;
    let mut config = container(&["/tool/run"]);
    config.mounts = vec![berth_tests::pods::mount(&folder, "/tool", true)];
    ensure_eq!(pod.output_of(&config).await?, "mine\n");
    Ok(())
}

async fn environment_keeps_order_and_doubles(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = container(&["cat", "/proc/self/environ"]);
    let pair = |key: &str, value: &str| KeyValue {
        key: key.into(),
        value: value.into(),
    };
    config.envs = vec![
        pair("Z", "1"),
        pair("A", "2"),
        pair("M", "3"),
        pair("Z", "4"),
    ];
    let text = pod.output_of(&config).await?;
    let names: Vec<&str> = text
        .split('\0')
        .filter(|pair| ["Z=", "A=", "M="].iter().any(|name| pair.starts_with(name)))
        .collect();
    // A later value of a name wins; whether the earlier one stays is the runtime's choice, the order is not.
    ensure!(names.contains(&"Z=4"), "{names:?}");
    let place = |name: &str| names.iter().position(|pair| pair.starts_with(name));
    ensure!(place("A=") < place("M="), "{names:?}");
    Ok(())
}

async fn empty_command_is_refused(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    ensure!(
        pod.start(&container(&[""])).await.is_err(),
        "a command without a name runs"
    );
    ensure_eq!(pod.output_of(&script("echo alive")).await?, "alive\n");
    Ok(())
}

/// Counted from the host, so that no shell adds its own.
async fn open_files_do_not_leak_in(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod.start(&container(&["sleep", "4321"])).await?;
    let own: usize = process::open_files(running.pid().await?).values().sum();
    ensure_eq!(own, 3);
    let exec = {
        let running = running.clone();
        tokio::spawn(async move { running.exec(&["sleep", "2"]).await })
    };
    let name = case.instance()?.name.clone();
    let mut seen = None;
    for _ in 0..100 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        let sleeping = |one: &process::Process| one.name == "sleep" && one.command == "sleep 2";
        seen = process::marked(&[&name]).into_iter().find(sleeping);
        if seen.is_some() {
            break;
        }
    }
    let pid = seen.context("the exec is nowhere")?.pid;
    let files = process::open_files(pid);
    ensure!(
        files.values().sum::<usize>() == 3,
        "an exec has more than three files: {files:?}"
    );
    ensure_eq!(exec.await??.code, 0);
    Ok(())
}

async fn no_swap_means_no_swap(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("exec sleep 4321");
    resources(&mut config).memory_limit_in_bytes = 32 << 20;
    resources(&mut config).memory_swap_limit_in_bytes = 32 << 20;
    let pid = pod.start(&config).await?.pid().await?;
    let Some(path) = process::cgroup_of(pid, "memory") else {
        let path = process::cgroup_of(pid, "").context("no cgroup")?;
        let text = std::fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.swap.max"))?;
        ensure_eq!(text.trim(), "0");
        return Ok(());
    };
    let file = format!("/sys/fs/cgroup/memory{path}/memory.memsw.limit_in_bytes");
    if std::path::Path::new(&file).exists() {
        ensure_eq!(
            std::fs::read_to_string(&file)?.trim(),
            (32 << 20).to_string()
        );
    }
    Ok(())
}

async fn umask_and_limits(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod
        .start(&script(
            "umask; cat /proc/self/timerslack_ns 2>/dev/null; nice; exec sleep 4321",
        ))
        .await?;
    running.wait_for_log("0022").await?;
    ensure_eq!(running.sh("umask").await?, "0022\n");
    // Those that the daemon was started with, whatever it takes for itself.
    let ours = tokio::process::Command::new("sh")
        .args(["-c", "ulimit -Sn; ulimit -Hn"])
        .output()
        .await?;
    ensure_eq!(
        running.sh("ulimit -Sn; ulimit -Hn").await?,
        String::from_utf8(ours.stdout)?
    );
    Ok(())
}

async fn monitor_keeps_its_oom_score(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("exec sleep 4321");
    resources(&mut config).oom_score_adj = 900;
    let running = pod.start(&config).await?;
    running.sh("true").await?;
    let monitor = process::process(running.pid().await?)
        .context("no process")?
        .parent;
    let score = std::fs::read_to_string(format!("/proc/{monitor}/oom_score_adj"))?;
    ensure!(
        score.trim().parse::<i32>()? <= 0,
        "the monitor dies first: {score}"
    );
    Ok(())
}

/// HOME comes from the image's /etc/passwd, read by us; nothing of the image is loaded to find it.
async fn no_getpwuid_of_the_image(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    ensure_eq!(pod.output_of(&script("echo $HOME")).await?, "/root\n");
    let mut config = script("echo $HOME");
    security(&mut config).run_as_user = Some(Int64Value { value: 33 });
    ensure_eq!(pod.output_of(&config).await?, "/var/www\n");
    Ok(())
}
