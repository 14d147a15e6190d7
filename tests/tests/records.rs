//! Records that this Berth cannot read: of another version, torn, gone.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::pods::{Ctr, Pod, script};
use berth_tests::runner::{Case, Test};
use berth_tests::{ensure_eq, process, test};

pub(crate) const TESTS: &[Test] = &[
    test!(records_beside_are_moved_and_read).berth_only("they are Berth's records"),
    test!(records_of_a_later_berth_are_shown_and_left_alone)
        .berth_only("it damages Berth's records"),
    test!(what_is_shown_is_stopped_and_removed).berth_only("it damages Berth's records"),
    test!(an_end_is_known_without_the_record).berth_only("it damages Berth's records"),
    test!(what_nobody_can_name_is_ended).berth_only("it damages Berth's records"),
];

/// What has records of its own.
pub(crate) const KINDS: [&str; 2] = ["pods", "containers"];

/// Puts the records, or those of one pod and one container only, where they lay before 0.2.0, without the file that has
/// stood there since.
pub(crate) fn move_back(root: &Path, only: Option<[&String; 2]>) -> Result<()> {
    for (number, kind) in KINDS.iter().enumerate() {
        let (old, dir) = (root.join(kind), root.join("records").join(kind));
        fs::remove_file(&old)?;
        match only {
            None => fs::rename(dir, old)?,
            Some(ids) => {
                fs::create_dir(&old)?;
                fs::rename(dir.join(ids[number]), old.join(ids[number]))?;
            }
        }
    }
    Ok(())
}

/// As builds between two releases left them.
async fn records_beside_are_moved_and_read(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let container = pod.start(&script("exec sleep 4321")).await?;
    let before = look(case, &pod, &container).await?;
    let root = case.instance()?.folder().join("root");
    for _ in 0..2 {
        case.instance()?.kill().await?;
        move_back(&root, None)?;
        case.instance()?.launch().await?;
        ensure_eq!(look(case, &pod, &container).await?, before);
        ensure!(
            KINDS.iter().all(|kind| root.join(kind).is_file()),
            "an older version could start"
        );
    }
    // What cannot be read comes along, and is known by its identity.
    case.instance()?.kill().await?;
    move_back(&root, None)?;
    let file = root
        .join("containers")
        .join(&container.id)
        .join("record.json");
    let text = fs::read_to_string(&file)?;
    fs::write(&file, later(text))?;
    case.instance()?.launch().await?;
    let (_, shown) = look(case, &pod, &container).await?;
    ensure_eq!(shown.reason, "RecordUnreadable");
    let cri = case.cri()?;
    cri.stop(&container.id, 0).await?;
    Ok(cri.remove(&container.id).await?)
}

/// Where the daemon keeps pods or containers.
fn kept(case: &mut Case, kind: &str) -> Result<PathBuf> {
    let root = case.instance()?.folder().join("root");
    Ok(root.join("records").join(kind))
}

/// The directory of a pod or container.
fn dir(case: &mut Case, kind: &str, id: &str) -> Result<PathBuf> {
    Ok(kept(case, kind)?.join(id))
}

/// Changes the records of a pod and a container while no daemon runs.
async fn changed(
    case: &mut Case,
    (pod, container): (&Pod, &Ctr),
    change: impl Fn(String) -> String,
) -> Result<()> {
    case.instance()?.kill().await?;
    for (kind, id) in [("pods", &pod.id), ("containers", &container.id)] {
        let file = dir(case, kind, id)?.join("record.json");
        let text = fs::read_to_string(&file).context("the record")?;
        fs::write(&file, change(text))?;
    }
    case.instance()?.launch().await?;
    Ok(())
}

fn later(text: String) -> String {
    text.replacen("\"version\":2", "\"version\":9", 1)
}

async fn look(
    case: &mut Case,
    pod: &Pod,
    container: &Ctr,
) -> Result<(PodSandboxStatus, ContainerStatus)> {
    let cri = case.cri()?;
    Ok((
        cri.pod_status(&pod.id).await?,
        cri.container_status(&container.id).await?,
    ))
}

async fn records_of_a_later_berth_are_shown_and_left_alone(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let container = pod.start(&script("exec sleep 4321")).await?;
    let (whole_pod, whole) = look(case, &pod, &container).await?;
    let pid = container.pid().await?;
    changed(case, (&pod, &container), later).await?;
    for _ in 0..2 {
        let (of_pod, of_container) = look(case, &pod, &container).await?;
        ensure_eq!(of_pod.state(), PodSandboxState::SandboxNotready);
        ensure_eq!(of_pod.metadata, whole_pod.metadata);
        ensure_eq!(of_pod.labels, whole_pod.labels);
        ensure_eq!(of_container.state(), ContainerState::ContainerUnknown);
        ensure_eq!(of_container.reason, "RecordUnreadable");
        let told = &of_container.message;
        ensure!(told.contains("version 9"), "{told}");
        ensure_eq!(of_container.metadata, whole.metadata);
        ensure_eq!(of_container.labels, whole.labels);
        ensure_eq!(of_container.image_ref, whole.image_ref);
        ensure_eq!(of_container.created_at, whole.created_at);
        ensure!(process::alive(pid), "the container was ended");
        case.instance()?.terminate().await?;
        case.instance()?.launch().await?;
    }
    // The Berth that wrote them is there again.
    changed(case, (&pod, &container), |text| {
        text.replacen("\"version\":9", "\"version\":2", 1)
    })
    .await?;
    let (of_pod, of_container) = look(case, &pod, &container).await?;
    ensure_eq!(of_pod, whole_pod);
    ensure_eq!(of_container, whole);
    ensure!(process::alive(pid), "the container was ended");
    Ok(())
}

async fn what_is_shown_is_stopped_and_removed(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let container = pod.start(&script("exec sleep 4321")).await?;
    let created = pod.create(&script("true")).await?;
    let pid = container.pid().await?;
    changed(case, (&pod, &container), |text| {
        text[..text.len() / 2].to_owned()
    })
    .await?;
    let cri = case.cri()?.clone();
    let refused = cri.create(&pod.id, &script("true"), &pod.config).await;
    let words = format!(
        "{:#}",
        refused.err().context("a container was put into it")?
    );
    ensure!(words.contains("not ready"), "{words}");
    cri.stop(&container.id, 0).await?;
    ensure!(!process::alive(pid), "the container lives on");
    let status = cri.container_status(&container.id).await?;
    ensure_eq!(status.state(), ContainerState::ContainerExited);
    cri.remove(&container.id).await?;
    cri.stop_pod(&pod.id).await?;
    cri.remove_pod(&pod.id).await?;
    ensure!(
        cri.list_containers(None).await?.is_empty(),
        "{created:?} is left"
    );
    for kind in ["pods", "containers"] {
        let left = fs::read_dir(kept(case, kind)?)?.count();
        ensure_eq!(left, 0);
    }
    Ok(())
}

async fn an_end_is_known_without_the_record(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let container = pod.start(&script("sleep 1; exit 7")).await?;
    changed(case, (&pod, &container), |_| String::new()).await?;
    let container = Ctr {
        cri: case.cri()?.clone(),
        ..container
    };
    let status = container.wait().await?;
    ensure_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    Ok(())
}

async fn what_nobody_can_name_is_ended(case: &mut Case) -> Result<()> {
    let lost = case.pod().await?;
    let of_lost = lost.start(&script("exec sleep 4321")).await?;
    let kept = Pod::run(
        &lost.cri,
        berth_tests::pods::pod_config(case.instance()?, "kept"),
    )
    .await?;
    let ended = kept.start(&script("exec sleep 4321")).await?;
    let stays = kept.start(&script("exec sleep 4321")).await?;
    let (first, second, third) = (of_lost.pid().await?, ended.pid().await?, stays.pid().await?);
    let pause = lost.cri.pod_status_verbose(&lost.id).await?.info;
    let pause = berth_tests::pods::pid_of(&pause)?;
    case.instance()?.kill().await?;
    for (kind, id) in [("pods", &lost.id), ("containers", &ended.id)] {
        let dir = dir(case, kind, id)?;
        fs::write(dir.join("record.json"), "{}")?;
        fs::write(dir.join("identity.json"), "{}")?;
    }
    case.instance()?.launch().await?;
    let cri = case.cri()?.clone();
    ensure_eq!(cri.list_pods(None).await?.len(), 1);
    ensure!(
        cri.container_status(&ended.id).await.is_err(),
        "it is there"
    );
    // Of a pod that is not there.
    let of_lost = Ctr {
        cri: cri.clone(),
        ..of_lost
    };
    of_lost.wait().await?;
    for (pid, what) in [
        (first, "of the lost pod"),
        (second, "lost"),
        (pause, "pause"),
    ] {
        ensure!(!process::alive(pid), "{what}: pid {pid} lives on");
    }
    ensure!(process::alive(third), "another container was ended");
    cri.remove(&of_lost.id).await?;
    Ok(())
}
