//! The daemon dies at every crash point, comes back, and its caller goes on as a kubelet does: there is no second copy of
//! anything, nothing is left, and no exit code and no line of a log is lost.
//!
//! The daemon is this executable, which has the points (`berth::crash`).

mod containers;
mod images;
mod pods;
mod records;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use berth::crash::POINTS;
use berth_cri_api::v1::*;
use berth_tests::cri::Cri;
use berth_tests::pods::{Ctr, Pod, pod_config, security};
use berth_tests::runner::{Case, Test};
use berth_tests::runtime::{Net, Options};
use berth_tests::{machine, paths, process, test};
use containers::{
    create_container, exec_sync, late_monitor, remove_container, reopen_log, start_container,
    stop_container,
};
use images::{pull_image, remove_image};
use pods::{cni, first_pod, late_worker, remove_pod, run_pod, stop_pod};
use records::move_records;
use rustix::process::{Pid, Signal, kill_process};
use tokio::task::JoinHandle;

const OURS: &str = "containerd has no such points";

pub(crate) const TESTS: &[Test] = &[
    test!(every_point_is_tried).berth_only(OURS),
    test!(a_release_has_no_points).berth_only(OURS),
    test!(move_records).berth_only(OURS),
    test!(run_pod).berth_only(OURS),
    test!(late_worker).berth_only(OURS),
    test!(first_pod).berth_only(OURS),
    test!(cni).berth_only(OURS),
    test!(stop_pod).berth_only(OURS),
    test!(remove_pod).berth_only(OURS),
    test!(create_container).berth_only(OURS),
    test!(late_monitor).berth_only(OURS),
    test!(start_container).berth_only(OURS),
    test!(stop_container).berth_only(OURS),
    test!(remove_container).berth_only(OURS),
    test!(exec_sync).berth_only(OURS),
    test!(reopen_log).berth_only(OURS),
    test!(pull_image).berth_only(OURS),
    test!(remove_image).berth_only(OURS),
];

/// A point, and how often the daemon passes it before it dies there.
type At = (&'static str, usize);

/// The flows, each with what it tries besides the points that have its name: those that several calls pass, and those
/// that one call passes more than once.
const FLOWS: &[(&str, &[At])] = &[
    (
        "move_records",
        &[
            ("move_records.joined.after", 1),
            ("move_records.file.after", 1),
            ("move_records.exchange.after", 1),
        ],
    ),
    (
        "run_pod",
        &[
            ("record.directory.after", 0),
            ("record.file.after", 0),
            ("record.file.after", 1),
            ("record.identity.before", 0),
            ("run_pod.parent_directory.after", 1),
            ("run_pod.worker_asked.after", 1),
        ],
    ),
    ("first_pod", &[]),
    ("cni", &[("cni.plugin.after", 1)]),
    ("stop_pod", &[("record.file.after", 0)]),
    ("remove_pod", &[]),
    (
        "create_container",
        &[
            ("record.directory.after", 0),
            ("record.file.after", 0),
            ("record.file.after", 1),
            ("record.identity.before", 0),
            ("monitor.asked.after", 0),
        ],
    ),
    ("start_container", &[("monitor.asked.after", 0)]),
    (
        "stop_container",
        &[("exit.record.before", 0), ("exit.record.after", 0)],
    ),
    ("remove_container", &[("monitor.asked.after", 0)]),
    ("exec_sync", &[("monitor.asked.after", 0)]),
    ("reopen_log", &[("monitor.asked.after", 0)]),
    (
        "pull_image",
        &[
            ("pull_image.bytes.after", 3),
            ("pull_image.file.after", 1),
            ("pull_image.file.after", 2),
            ("pull_image.file.after", 3),
            ("pull_image.file.after", 4),
            ("pull_image.layer.after", 1),
            ("pull_image.document.after", 1),
            ("image_index.copy.after", 0),
            ("image_index.commit.after", 0),
        ],
    ),
    (
        "remove_image",
        &[
            ("image_index.commit.after", 0),
            ("image_index.copies.after", 0),
            ("remove_image.layer.after", 1),
        ],
    ),
];

/// Of how many points an emulated machine tries one: it takes twenty times as long, and is there for what it alone has.
const SAMPLE: usize = 6;

/// Only with systemd pods have scopes.
fn is_of_systemd(point: &str) -> bool {
    point.contains(".scope.")
}

/// What a flow passes on this machine.
fn passed(flow: &str) -> Result<Vec<At>> {
    let (_, more) = FLOWS
        .iter()
        .find(|(name, _)| *name == flow)
        .context("no such flow")?;
    let own = POINTS.iter().filter(|point| {
        let rest = point.strip_prefix(flow);
        rest.is_some_and(|rest| rest.starts_with('.'))
    });
    let all = own.map(|point| (*point, 0)).chain(more.iter().copied());
    Ok(all
        .filter(|(point, _)| machine::has_systemd() || !is_of_systemd(point))
        .collect())
}

/// What a flow tries.
fn tried(flow: &str) -> Result<Vec<At>> {
    let every = if machine::slowness() > 1 { SAMPLE } else { 1 };
    let all = passed(flow)?.into_iter().enumerate();
    let tried = all.filter(|(n, (point, _))| n % every == 0 || is_of_systemd(point));
    Ok(tried.map(|(_, at)| at).collect())
}

async fn every_point_is_tried(_: &mut Case) -> Result<()> {
    let mut left: Vec<&str> = POINTS.to_vec();
    left.retain(|point| machine::has_systemd() || !is_of_systemd(point));
    for (flow, _) in FLOWS {
        let passed = passed(flow)?;
        left.retain(|point| !passed.iter().any(|(other, _)| other == point));
    }
    ensure!(left.is_empty(), "no flow passes {left:?}");
    Ok(())
}

/// Whether one of the words is in a program.
fn has(program: &Path, words: &[&str]) -> Result<bool> {
    let mut grep = Command::new("grep");
    grep.arg("-qaF");
    for word in words {
        grep.arg("-e").arg(word);
    }
    let code = grep.arg(program).status()?.code();
    ensure!(
        matches!(code, Some(0 | 1)),
        "cannot look into {}",
        program.display()
    );
    Ok(code == Some(0))
}

async fn a_release_has_no_points(_: &mut Case) -> Result<()> {
    // The variable that arms them is there with any of them.
    let mut words = POINTS.to_vec();
    words.push("FAILPOINTS");
    let own = std::env::current_exe()?;
    ensure!(has(&own, &words)?, "they are not found where they are");
    let released = paths::berth_dir().join("berth");
    ensure!(
        !has(&released, &words)?,
        "{} has crash points: it must be built without that feature",
        released.display()
    );
    Ok(())
}

/// This executable under the name of the daemon, with the helpers beside it, where the daemon looks for them.
fn program(case: &Case) -> Result<PathBuf> {
    static MAKING: Mutex<()> = Mutex::new(());
    let _turn = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = case.shared().work().join("crash");
    let program = dir.join("berth");
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(&dir)?;
    for helper in ["berth-shim", "berth-worker"] {
        let built = paths::berth_dir().join(helper);
        // A package has them elsewhere, and there the daemon looks as well.
        if built.exists() {
            fs::copy(&built, dir.join(helper))?;
        }
    }
    let own = std::env::current_exe()?;
    if fs::hard_link(&own, &program).is_err() {
        fs::copy(&own, &program)?;
    }
    Ok(program)
}

fn options(case: &Case, net: Net) -> Result<Options> {
    Ok(Options {
        net,
        program: Some(program(case)?),
        ..case.options()
    })
}

/// Has the daemon die at a point while `call` is under way, and starts it again. Everything else that is to be there must
/// be, and no step of it be passed when a daemon takes it up.
async fn die_at<T, F>(
    case: &mut Case,
    (point, before): At,
    call: impl FnOnce(Cri) -> F,
) -> Result<()>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let action = match before {
        0 => format!("{point}=return"),
        before => format!("{point}={before}*off->return"),
    };
    let cri = arm(case, action).await?;
    let call = tokio::spawn(call(cri));
    dies(case, call).await?;
    case.instance()?
        .launch()
        .await
        .context("the daemon does not come back")?;
    Ok(())
}

/// Starts the daemon again, as one that dies where `points` say.
async fn arm(case: &mut Case, points: String) -> Result<Cri> {
    let instance = case.instance()?;
    instance.kill().await?;
    instance.crash_at = Some(points);
    let launched = instance.launch().await;
    instance.crash_at = None;
    launched?;
    Ok(instance.cri()?.clone())
}

/// Waits for the daemon's death under a call.
async fn dies<T>(case: &mut Case, call: JoinHandle<T>) -> Result<()> {
    let instance = case.instance()?;
    let mut over = false;
    for _ in 0..30 {
        if instance.dies_within(Duration::from_secs(1)).await? {
            call.abort();
            return Ok(());
        }
        // What is recorded in the background may come a little later than the answer, and so may a death.
        if over {
            break;
        }
        over = call.is_finished();
    }
    let said = if over { "the call is over" } else { "30 s" };
    call.abort();
    bail!("the point is never reached ({said}): the flow must pass it, or it goes");
}

/// Waits for a helper of the daemon, and stops it until it is told to go on.
async fn freeze(case: &mut Case, helper: &str) -> Result<Pid> {
    let name = case.instance()?.name.clone();
    for _ in 0..100 {
        let found = process::marked(&[&name]);
        let mut living = found.iter().filter(|one| process::alive(one.pid));
        if let Some(one) = living.find(|one| one.name == helper) {
            let pid = Pid::from_raw(i32::try_from(one.pid)?).context("pid")?;
            kill_process(pid, Signal::STOP)?;
            return Ok(pid);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("no {helper} comes");
}

/// Tries one point after the other.
macro_rules! each {
    ($flow:literal, $at:ident => $body:expr) => {
        for $at in $crate::crash::tried($flow)? {
            let outcome: ::anyhow::Result<()> = async { $body }.await;
            outcome.with_context(|| format!("at {} (passed {} times)", $at.0, $at.1))?;
        }
    };
}
use each;

/// With a system call filter, which is a file of its own.
fn filtered() -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: security_profile::ProfileType::RuntimeDefault.into(),
        ..SecurityProfile::default()
    })
}

/// A pod that has one of everything.
fn full_pod(case: &mut Case, name: &str) -> Result<PodSandboxConfig> {
    let mut config = pod_config(case.instance()?, name);
    let port = std::net::TcpListener::bind(("0.0.0.0", 0))?
        .local_addr()?
        .port();
    config.port_mappings = vec![PortMapping {
        container_port: 80,
        host_port: i32::from(port),
        ..PortMapping::default()
    }];
    if let Some(context) = config
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
    {
        context.seccomp = filtered();
    }
    Ok(config)
}

/// A container that has one of everything.
fn full_container(text: &str) -> ContainerConfig {
    let mut config = berth_tests::pods::script(text);
    security(&mut config).seccomp = filtered();
    config
}

/// A kubelet after its runtime came back: a ready pod is taken, anything else is stopped and removed, and what is not
/// there is run.
async fn take_pod(case: &Case, config: &PodSandboxConfig) -> Result<Pod> {
    let cri = case.cri()?;
    for pod in cri.list_pods(None).await? {
        ensure!(
            pod.metadata == config.metadata,
            "a pod that nobody asked for: {pod:?}"
        );
        if pod.state() == PodSandboxState::SandboxReady {
            return handle(case, config, pod.id);
        }
        cri.stop_pod(&pod.id).await?;
        cri.remove_pod(&pod.id).await?;
    }
    Pod::run(cri, config.clone()).await
}

fn handle(case: &Case, config: &PodSandboxConfig, id: String) -> Result<Pod> {
    Ok(Pod {
        cri: case.cri()?.clone(),
        id,
        config: config.clone(),
    })
}

/// The same pod, by the daemon that is there now.
fn again(case: &Case, pod: &Pod) -> Result<Pod> {
    handle(case, &pod.config, pod.id.clone())
}

/// The same container, by the daemon that is there now.
fn anew(case: &Case, container: &Ctr) -> Result<Ctr> {
    Ok(Ctr {
        cri: case.cri()?.clone(),
        ..container.clone()
    })
}
