//! Containers between create and execve, and calls that meet a container's end.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::security_profile::ProfileType;
use berth_cri_api::v1::*;
use berth_tests::machine::lacks_apparmor;
use berth_tests::pods::{Ctr, Pod, container, namespaces, pod_config, resources, script, security};
use berth_tests::runner::{Case, Test};
use berth_tests::{ensure_eq, test};
use tonic::{Code, Status};

pub(crate) const TESTS: &[Test] = &[
    test!(neighbours_of_a_waiting_container).berth_only("runc's init is another program"),
    test!(apparmor_between_neighbours)
        .unless(lacks_apparmor)
        .berth_only("runc's init is another program"),
    test!(little_but_execve),
    test!(profiles_that_refuse_the_end).berth_only("runc starts nothing under such a profile"),
    test!(profiles_under_which_nobody_can_wait).berth_only("the error has other words"),
    test!(profiles_that_end_pause).berth_only("containerd's pause is another program"),
    test!(a_start_after_the_end_says_why).berth_only("the error has other words"),
    test!(a_stopped_start_does_not_hold_up_the_end).berth_only("containerd waits"),
    test!(a_stopped_start_outlives_the_daemon).berth_only("containerd waits"),
    test!(a_start_has_a_deadline).berth_only("containerd has none"),
    test!(memory_limits_too_low_for_the_start).berth_only("the error has other words"),
    test!(exec_in_a_full_container).berth_only("the error has other words"),
    test!(names_that_are_no_capabilities).berth_only("it reads Berth's log"),
];

/// What nobody waits for longer.
const SOON: Duration = Duration::from_secs(6);

fn shares_pids(config: &mut ContainerConfig) {
    let modes = namespaces(NamespaceMode::Pod, NamespaceMode::Pod);
    security(config).namespace_options = Some(modes);
}

/// A pod whose containers see each other's processes.
async fn shared_pod(case: &mut Case, name: &str) -> Result<Pod> {
    if case.first().is_err() {
        case.start().await?;
    }
    let instance = case.first()?;
    let mut config = pod_config(instance, name);
    if let Some(security) = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
    {
        security.namespace_options = Some(namespaces(NamespaceMode::Pod, NamespaceMode::Pod));
    }
    Pod::run(instance.cri()?, config).await
}

/// A running container of that pod. AppArmor's default profile would keep it from a waiting init, which gets its own
/// profile with its program: what is left is what the kernel allows by itself.
async fn neighbour(pod: &Pod, add: &[&str], drop: &[&str]) -> Result<Ctr> {
    let mut config = container(&["sleep", "4321"]);
    shares_pids(&mut config);
    security(&mut config).apparmor = Some(SecurityProfile {
        profile_type: ProfileType::Unconfined.into(),
        localhost_ref: String::new(),
    });
    let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    security(&mut config).capabilities = Some(Capability {
        add_capabilities: owned(add),
        drop_capabilities: owned(drop),
        ..Capability::default()
    });
    pod.start(&config).await
}

/// A shell that gives the pid, in the shared namespace, of the init that waits.
const WAITING: &str = "grep -l 'INIT' /proc/[0-9]*/comm | head -1 | cut -d/ -f3";

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|l| l.strip_prefix(name));
    let words = line.and_then(|l| l.strip_prefix(':')).unwrap_or_default();
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

async fn neighbours_of_a_waiting_container(case: &mut Case) -> Result<()> {
    let pod = shared_pod(case, "shared").await?;
    let powerless = neighbour(&pod, &[], &["ALL"]).await?;
    let tracer = neighbour(&pod, &["SYS_PTRACE"], &[]).await?;
    for (uid, no_new_privs) in [(0, false), (0, true), (1000, false), (1000, true)] {
        let mut config = container(&["sleep", "4321"]);
        shares_pids(&mut config);
        security(&mut config).run_as_user = Some(Int64Value { value: uid });
        security(&mut config).no_new_privs = no_new_privs;
        security(&mut config).seccomp = Some(SecurityProfile {
            profile_type: ProfileType::RuntimeDefault.into(),
            localhost_ref: String::new(),
        });
        let waiting = pod.create(&config).await?;
        let pid = tracer.sh(WAITING).await?;
        let pid = pid.trim();
        ensure!(!pid.is_empty(), "no init waits");
        let status = tracer.sh(&format!("cat /proc/{pid}/status")).await?;
        for name in ["CapPrm", "CapEff", "CapBnd"] {
            ensure_eq!(field(&status, name), "00000000a80425fb");
        }
        ensure_eq!(
            field(&status, "Uid"),
            [uid; 4].map(|id| id.to_string()).join(" ")
        );
        ensure_eq!(
            field(&status, "NoNewPrivs"),
            u8::from(no_new_privs).to_string()
        );
        ensure_eq!(
            field(&status, "Seccomp"),
            if no_new_privs { "0" } else { "2" }
        );
        // As after the start: a signal asks for the same user or CAP_KILL.
        let signal = powerless.exec(&["kill", "-0", pid]).await?;
        ensure_eq!(signal.code == 0, uid == 0);
        // Not dumpable: nobody without CAP_SYS_PTRACE looks into it, whoever it is.
        let look = powerless
            .exec(&["readlink", &format!("/proc/{pid}/exe")])
            .await?;
        ensure!(look.code != 0, "{look:?}");
        pod.cri.start(&waiting.id).await?;
        let running = tracer.sh(&format!("cat /proc/{pid}/status")).await?;
        ensure_eq!(field(&running, "Seccomp"), "2");
        ensure_eq!(field(&running, "Name"), "sleep");
        let signal = powerless.exec(&["kill", "-0", pid]).await?;
        ensure_eq!(signal.code == 0, uid == 0);
        pod.cri.remove(&waiting.id).await?;
    }
    Ok(())
}

/// Neither the same user nor a capability takes a container under the default profile to one that waits.
async fn apparmor_between_neighbours(case: &mut Case) -> Result<()> {
    let pod = shared_pod(case, "confined").await?;
    let witness = neighbour(&pod, &[], &[]).await?;
    let config = || {
        let mut config = container(&["sleep", "4321"]);
        shares_pids(&mut config);
        security(&mut config).capabilities = Some(Capability {
            add_capabilities: vec!["SYS_PTRACE".into()],
            ..Capability::default()
        });
        config
    };
    let confined = pod.start(&config()).await?;
    let waiting = pod.create(&config()).await?;
    let pid = witness.sh(WAITING).await?;
    let pid = pid.trim();
    ensure!(!pid.is_empty(), "no init waits");
    let signal = ["kill", "-0", pid];
    let root = format!("/proc/{pid}/root");
    let look = ["readlink", root.as_str()];
    ensure_eq!(witness.exec(&signal).await?.code, 0);
    ensure!(confined.exec(&signal).await?.code != 0, "it is signalled");
    ensure!(confined.exec(&look).await?.code != 0, "it is looked into");
    pod.cri.start(&waiting.id).await?;
    ensure_eq!(confined.exec(&signal).await?.code, 0);
    Ok(())
}

/// Writes a profile that allows nothing but some calls, or everything but some.
fn profile(case: &mut Case, name: &str, allow: bool, calls: &[&str]) -> Result<SecurityProfile> {
    let file = case.instance()?.folder().join(name);
    let (default, action) = match allow {
        true => ("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW"),
        false => ("SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"),
    };
    let text = serde_json::json!({
        "defaultAction": default,
        "syscalls": [{ "names": calls, "action": action }],
    });
    std::fs::write(&file, text.to_string())?;
    Ok(SecurityProfile {
        profile_type: ProfileType::Localhost.into(),
        localhost_ref: file.display().to_string(),
    })
}

/// What a static program needs to begin and to end, and none of what a start does.
const LITTLE: [&str; 14] = [
    "execve",
    "exit_group",
    "brk",
    "arch_prctl",
    "set_tid_address",
    "set_robust_list",
    "rseq",
    "prlimit64",
    "readlink",
    "readlinkat",
    "getrandom",
    "mprotect",
    "getuid",
    "mmap",
];

async fn little_but_execve(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    for uid in [0, 1000] {
        let mut config = container(&["/bin/true"]);
        security(&mut config).run_as_user = Some(Int64Value { value: uid });
        security(&mut config).no_new_privs = true;
        security(&mut config).seccomp = Some(profile(case, "little.json", true, &LITTLE)?);
        pod.output_of(&config).await?;
    }
    Ok(())
}

async fn profiles_that_refuse_the_end(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let ends = ["exit", "exit_group"];
    for (more, no_new_privs, words) in [
        (&[][..], true, "no-such-command"),
        (&[][..], false, "no-such-command"),
        (&["write"][..], true, "seccomp profile"),
        (&["write", "execve"][..], true, "seccomp profile"),
    ] {
        let calls = [&ends[..], more].concat();
        let mut config = container(&["no-such-command"]);
        security(&mut config).no_new_privs = no_new_privs;
        security(&mut config).seccomp = Some(profile(case, "endless.json", false, &calls)?);
        let created = pod.create(&config).await?;
        let begun = Instant::now();
        let error = refusal(pod.cri.start(&created.id).await)?;
        ensure!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        ensure!(error.message().contains(words), "{error}");
        let status = created.wait().await?;
        ensure_eq!(
            (status.exit_code, status.reason.as_str()),
            (128, "StartError")
        );
        ensure!(status.message.contains(words), "{}", status.message);
    }
    Ok(())
}

/// Writes a profile that allows all but this.
fn profile_of(case: &mut Case, name: &str, rule: &serde_json::Value) -> Result<SecurityProfile> {
    let file = case.instance()?.folder().join(name);
    let text = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
    std::fs::write(&file, text.to_string())?;
    Ok(SecurityProfile {
        profile_type: ProfileType::Localhost.into(),
        localhost_ref: file.display().to_string(),
    })
}

/// The create says so, at once, whatever the profile answers.
async fn profiles_under_which_nobody_can_wait(case: &mut Case) -> Result<()> {
    use serde_json::json;
    let pod = case.pod().await?;
    let third = json!([{ "index": 0, "value": 3, "op": "SCMP_CMP_EQ" }]);
    for (call, action, errno, args) in [
        ("read", "SCMP_ACT_ERRNO", 1, json!([])),
        ("read", "SCMP_ACT_ERRNO", 4, json!([])),
        ("read", "SCMP_ACT_ERRNO", 4, third.clone()),
        ("read", "SCMP_ACT_ERRNO", 0, json!([])),
        ("read", "SCMP_ACT_TRAP", 0, json!([])),
        ("read", "SCMP_ACT_KILL", 0, third),
        ("capset", "SCMP_ACT_ERRNO", 1, json!([])),
        ("capset", "SCMP_ACT_ERRNO", 0, json!([])),
        ("capset", "SCMP_ACT_KILL_PROCESS", 0, json!([])),
    ] {
        let mut rule = json!({ "names": [call], "action": action, "args": args });
        if action == "SCMP_ACT_ERRNO" {
            rule["errnoRet"] = errno.into();
        }
        let mut config = container(&["true"]);
        security(&mut config).seccomp = Some(profile_of(case, "deaf.json", &rule)?);
        let begun = Instant::now();
        let error = refusal(pod.cri.create(&pod.id, &config, &pod.config).await)?;
        ensure!(begun.elapsed() < SOON, "{rule}: {:?}", begun.elapsed());
        ensure_eq!(error.code(), Code::InvalidArgument);
        let text = error.message();
        ensure!(
            text.contains("seccomp profile") && text.contains(call),
            "{rule}: {text}"
        );
        if action != "SCMP_ACT_ERRNO" {
            ensure!(text.contains("SIGSYS"), "{rule}: {text}");
        }
    }
    // What is only closed meanwhile is not asked for.
    let rule = json!({ "names": ["close", "close_range"], "action": "SCMP_ACT_KILL" });
    let mut config = container(&["/bin/true"]);
    security(&mut config).seccomp = Some(profile_of(case, "open.json", &rule)?);
    let created = pod.create(&config).await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    pod.cri.start(&created.id).await?;
    ensure_eq!(created.wait().await?.exit_code, 0);
    Ok(())
}

async fn profiles_that_end_pause(case: &mut Case) -> Result<()> {
    case.start().await?;
    let rule = serde_json::json!({ "names": ["execveat"], "action": "SCMP_ACT_KILL" });
    let profile = profile_of(case, "pause.json", &rule)?;
    let mut config = pod_config(case.instance()?, "ended");
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().seccomp = Some(profile);
    let error = refusal(case.cri()?.run_pod(&config).await)?;
    ensure_eq!(error.code(), Code::InvalidArgument);
    ensure!(error.message().contains("seccomp profile"), "{error}");
    Ok(())
}

async fn a_start_after_the_end_says_why(case: &mut Case) -> Result<()> {
    use rustix::process::{Pid, Signal, kill_process};
    // As the first process of a PID namespace it would not heed the second signal.
    let pod = shared_pod(case, "ended").await?;
    for (signal, words, code) in [
        (
            Signal::KILL,
            "ended before it was started (Error, exit code 137)",
            137,
        ),
        // As if the kernel had sent it.
        (Signal::SYS, "its seccomp profile ended it", 128),
    ] {
        let mut config = container(&["sleep", "4321"]);
        shares_pids(&mut config);
        security(&mut config).seccomp = Some(SecurityProfile {
            profile_type: ProfileType::RuntimeDefault.into(),
            localhost_ref: String::new(),
        });
        let created = pod.create(&config).await?;
        let pid = Pid::from_raw(i32::try_from(created.pid().await?)?).context("no pid")?;
        kill_process(pid, signal)?;
        let status = created.wait().await?;
        ensure_eq!(status.exit_code, code);
        let error = refusal(pod.cri.start(&created.id).await)?;
        ensure_eq!(error.code(), Code::FailedPrecondition);
        ensure!(error.message().contains(words), "{error}");
    }
    Ok(())
}

fn refusal<T>(answer: Result<T, Status>) -> Result<Status> {
    answer.err().context("it was not refused")
}

/// A container whose start hangs because its neighbour has stopped it; gives the start's answer to come.
async fn stopped_start(
    pod: &Pod,
    neighbour: &Ctr,
) -> Result<(Ctr, tokio::task::JoinHandle<Result<(), Status>>)> {
    let mut config = container(&["sleep", "4321"]);
    shares_pids(&mut config);
    let created = pod.create(&config).await?;
    neighbour
        .sh(&format!("kill -STOP $({WAITING})"))
        .await
        .context("stop the waiting init")?;
    let (cri, id) = (pod.cri.clone(), created.id.clone());
    let start = tokio::spawn(async move { cri.start(&id).await });
    tokio::time::sleep(Duration::from_millis(400)).await;
    ensure!(!start.is_finished(), "a stopped process was started");
    Ok((created, start))
}

async fn a_stopped_start_does_not_hold_up_the_end(case: &mut Case) -> Result<()> {
    let pod = shared_pod(case, "stopped").await?;
    let witness = neighbour(&pod, &[], &[]).await?;
    for end in ["stop", "remove"] {
        let (created, start) = stopped_start(&pod, &witness).await?;
        let begun = Instant::now();
        match end {
            "stop" => pod.cri.stop(&created.id, 30).await?,
            _ => pod.cri.remove(&created.id).await?,
        }
        ensure!(begun.elapsed() < SOON, "{end}: {:?}", begun.elapsed());
        let error = refusal(start.await?)?;
        ensure_eq!(error.code(), Code::FailedPrecondition);
        if end == "stop" {
            expect_stopped(&created).await?;
            pod.cri.remove(&created.id).await?;
        }
    }
    for end in ["stop", "remove"] {
        let pod = match end {
            "stop" => pod.clone(),
            _ => shared_pod(case, "stopped-too").await?,
        };
        let witness = match end {
            "stop" => witness.clone(),
            _ => neighbour(&pod, &[], &[]).await?,
        };
        let (created, start) = stopped_start(&pod, &witness).await?;
        let begun = Instant::now();
        match end {
            "stop" => pod.cri.stop_pod(&pod.id).await?,
            _ => pod.cri.remove_pod(&pod.id).await?,
        }
        ensure!(
            begun.elapsed() < SOON,
            "{end} the pod: {:?}",
            begun.elapsed()
        );
        let error = refusal(start.await?)?;
        ensure_eq!(error.code(), Code::FailedPrecondition);
        if end == "stop" {
            expect_stopped(&created).await?;
        }
    }
    Ok(())
}

async fn expect_stopped(container: &Ctr) -> Result<()> {
    let status = container.status().await?;
    ensure_eq!(status.state(), ContainerState::ContainerExited);
    ensure_eq!(status.message, "stopped while it was being started");
    Ok(())
}

async fn a_stopped_start_outlives_the_daemon(case: &mut Case) -> Result<()> {
    let pod = shared_pod(case, "restarted").await?;
    let witness = neighbour(&pod, &[], &[]).await?;
    let (created, start) = stopped_start(&pod, &witness).await?;
    case.instance()?.kill().await?;
    ensure!(start.await?.is_err(), "a killed daemon has answered");
    case.instance()?.launch().await?;
    let cri = case.cri()?.clone();
    let begun = Instant::now();
    cri.stop(&created.id, 30).await?;
    ensure!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    let status = cri.container_status(&created.id).await?;
    ensure_eq!(status.state(), ContainerState::ContainerExited);
    // One that goes on meanwhile is running, although the daemon that began it is gone.
    let pod = Pod {
        cri: cri.clone(),
        ..pod
    };
    let witness = Ctr {
        cri: cri.clone(),
        ..witness
    };
    let (created, start) = stopped_start(&pod, &witness).await?;
    case.instance()?.kill().await?;
    drop(start.await?);
    case.instance()?.launch().await?;
    let cri = case.cri()?.clone();
    let witness = Ctr {
        cri: cri.clone(),
        ..witness
    };
    witness.sh(&format!("kill -CONT $({WAITING})")).await?;
    let begun = Instant::now();
    while cri.container_status(&created.id).await?.state() != ContainerState::ContainerRunning {
        ensure!(begun.elapsed() < SOON, "it does not run");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure_eq!(cri.exec(&created.id, &["true"], 10).await?.exit_code, 0);
    Ok(())
}

async fn a_start_has_a_deadline(case: &mut Case) -> Result<()> {
    let pod = shared_pod(case, "deadline").await?;
    let neighbour = neighbour(&pod, &[], &[]).await?;
    let (created, start) = stopped_start(&pod, &neighbour).await?;
    let begun = Instant::now();
    let error = refusal(start.await?)?;
    let took = begun.elapsed().as_secs();
    ensure!((25..=36).contains(&took), "{took} s");
    ensure!(error.message().contains("SIGSTOP"), "{error}");
    let status = created.wait().await?;
    ensure_eq!(
        (status.exit_code, status.reason.as_str()),
        (128, "StartError")
    );
    ensure!(status.message.contains("within 30 s"), "{}", status.message);
    Ok(())
}

async fn memory_limits_too_low_for_the_start(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut refused = 0;
    for limit in [
        1,
        5000,
        4 << 10,
        64 << 10,
        256 << 10,
        512 << 10,
        1 << 20,
        2 << 20,
    ] {
        let mut config = container(&["sleep", "4321"]);
        resources(&mut config).memory_limit_in_bytes = limit;
        let created = pod.cri.create(&pod.id, &config, &pod.config).await;
        let answer = match created {
            Ok(id) => pod.cri.start(&id).await,
            Err(error) => Err(error),
        };
        let Err(error) = answer else { continue };
        refused += 1;
        let words = format!("the memory limit of {limit} bytes is too low for the container");
        ensure!(error.message().contains(&words), "{limit}: {error}");
        ensure_eq!(error.code(), Code::ResourceExhausted);
    }
    ensure!(refused > 1, "a limit of 4 KiB was enough");
    Ok(())
}

/// The kernel chooses who dies: the command, before it runs or after, or what fills the container.
async fn exec_in_a_full_container(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let fill = "dd if=/dev/zero of=/dev/shm/fill bs=64k count=200 2>/dev/null";
    let mut config = script(&format!("{fill}; echo full; exec sleep 4321"));
    resources(&mut config).memory_limit_in_bytes = 14 << 20;
    let full = pod.start(&config).await?;
    full.wait_for_log("full").await?;
    let filler = "dd if=/dev/zero of=/dev/shm/more bs=16k count=400 2>/dev/null";
    let _killed = full.exec(&["sh", "-c", filler]).await;
    for _ in 0..10 {
        match pod.cri.exec(&full.id, &["true"], 20).await {
            Ok(_) => {}
            Err(error) => {
                let known = [Code::ResourceExhausted, Code::FailedPrecondition];
                ensure!(known.contains(&error.code()), "{error}");
                ensure!(!error.message().contains("gave no answer"), "{error}");
            }
        }
    }
    Ok(())
}

async fn names_that_are_no_capabilities(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("grep -E 'Cap(Bnd|Amb)' /proc/self/status");
    security(&mut config).capabilities = Some(Capability {
        add_capabilities: vec![
            "NO_SUCH\nTHING".into(),
            "cap_net_admin".into(),
            String::new(),
        ],
        drop_capabilities: vec!["CAP_NEITHER".into()],
        add_ambient_capabilities: vec!["NOR_THIS".into()],
    });
    let text = pod.output_of(&config).await?;
    ensure_eq!(field(&text, "CapBnd"), "00000000a80435fb");
    ensure_eq!(field(&text, "CapAmb"), "0000000000000000");
    let log = std::fs::read_to_string(case.instance()?.log_file())?;
    let line = log.lines().find(|line| line.contains("NEITHER"));
    let line = line.context("nothing was said")?;
    for name in ["NO_SUCH", "THING", "NOR_THIS"] {
        ensure!(line.contains(name), "{line}");
    }
    ensure!(!line.contains("net_admin"), "{line}");
    // Known, and not to be had by this machine.
    let own = std::fs::read_to_string("/proc/self/status")?;
    let own = u64::from_str_radix(&field(&own, "CapBnd"), 16)?;
    if own & 1 << 24 == 0 {
        let mut config = script("true");
        security(&mut config).capabilities = Some(Capability {
            add_capabilities: vec!["SYS_RESOURCE".into()],
            ..Capability::default()
        });
        let error = refusal(pod.cri.create(&pod.id, &config, &pod.config).await)?;
        ensure!(error.message().contains("SYS_RESOURCE"), "{error}");
    }
    Ok(())
}
