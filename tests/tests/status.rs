//! How a container's life is reported: states, times, reasons, exit codes, lists.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use berth_cri_api::v1::*;
use berth_tests::cri::Cri;
use berth_tests::machine::{Disk, lacks_loop_disks};
use berth_tests::pods::{container, resources, script};
use berth_tests::runner::{Case, Test};
use berth_tests::{ensure_eq, images, test};
use tonic::Code;

pub(crate) const TESTS: &[Test] = &[
    test!(life_of_a_container),
    test!(error_and_its_code),
    test!(killed_by_a_signal),
    test!(command_not_found_is_a_start_error),
    test!(missing_folder_in_the_command_is_a_start_error),
    test!(out_of_memory),
    test!(out_of_memory_in_a_child),
    test!(container_list_filters),
    test!(streamed_list_is_the_list),
    test!(unknown_container),
    test!(start_twice_is_refused),
    test!(image_names_in_the_status),
    test!(a_thousand_short_ones).alone(),
    test!(a_disk_that_takes_no_writes_is_told)
        .berth_only("the words are Berth's")
        .unless(lacks_loop_disks),
];

async fn life_of_a_container(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("sleep 0.3");
    config.labels = [("k".to_owned(), "v".to_owned())].into();
    config.annotations = [("a".to_owned(), "b\n\"c".to_owned())].into();
    let created = pod.create(&config).await?;
    let status = created.status().await?;
    ensure_eq!(status.state(), ContainerState::ContainerCreated);
    ensure_eq!((status.started_at, status.finished_at), (0, 0));
    ensure_eq!(status.metadata, config.metadata);
    ensure_eq!(status.labels, config.labels);
    ensure_eq!(status.annotations, config.annotations);
    ensure_eq!(status.log_path, created.log.display().to_string());
    pod.cri.start(&created.id).await?;
    let running = created.status().await?;
    ensure_eq!(running.state(), ContainerState::ContainerRunning);
    ensure!(running.started_at >= status.created_at, "{running:?}");
    ensure_eq!(running.finished_at, 0);
    let ended = created.wait().await?;
    ensure_eq!((ended.exit_code, ended.reason.as_str()), (0, "Completed"));
    ensure_eq!(ended.created_at, status.created_at);
    ensure_eq!(ended.started_at, running.started_at);
    let took = ended.finished_at - ended.started_at;
    ensure!(
        (200_000_000..5_000_000_000).contains(&took),
        "it ran for {took} ns"
    );
    Ok(())
}

async fn error_and_its_code(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let status = pod.start(&script("exit 42")).await?.wait().await?;
    ensure_eq!((status.exit_code, status.reason.as_str()), (42, "Error"));
    Ok(())
}

async fn killed_by_a_signal(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod.start(&script("sh -c 'kill -SEGV $$'; exit $?")).await?;
    ensure_eq!(running.wait().await?.exit_code, 139);
    Ok(())
}

async fn command_not_found_is_a_start_error(case: &mut Case) -> Result<()> {
    start_error(case, &["no-such-program"]).await
}

async fn missing_folder_in_the_command_is_a_start_error(case: &mut Case) -> Result<()> {
    start_error(case, &["/no/such/program"]).await
}

async fn start_error(case: &mut Case, command: &[&str]) -> Result<()> {
    let pod = case.pod().await?;
    let created = pod.create(&container(command)).await?;
    let error = pod
        .cri
        .start(&created.id)
        .await
        .err()
        .context("it started")?;
    ensure!(
        error.message().contains(command[0]),
        "the error does not name it: {error}"
    );
    let status = created.status().await?;
    ensure_eq!(status.state(), ContainerState::ContainerExited);
    ensure_eq!(
        (status.exit_code, status.reason.as_str()),
        (128, "StartError")
    );
    ensure!(status.message.contains(command[0]), "{}", status.message);
    ensure!(status.finished_at > 0, "no end time");
    Ok(())
}

fn memory_hog(script_text: &str) -> ContainerConfig {
    let mut config = script(script_text);
    resources(&mut config).memory_limit_in_bytes = 16 * 1024 * 1024;
    resources(&mut config).memory_swap_limit_in_bytes = 16 * 1024 * 1024;
    config
}

async fn out_of_memory(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let config = memory_hog("exec dd if=/dev/zero of=/dev/null bs=64M count=9");
    let status = pod.start(&config).await?.wait().await?;
    ensure_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    Ok(())
}

/// The first process lives on and gives its own exit code; Kubernetes still wants to know.
async fn out_of_memory_in_a_child(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let config = memory_hog("dd if=/dev/zero of=/dev/null bs=64M count=9; echo $?; exit 5");
    let running = pod.start(&config).await?;
    let status = running.wait().await?;
    ensure_eq!((status.exit_code, status.reason.as_str()), (5, "OOMKilled"));
    ensure_eq!(running.stdout()?, "137\n");
    Ok(())
}

async fn container_list_filters(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut labelled = script("exec sleep 4321");
    labelled.labels = [("tier".to_owned(), "front".to_owned())].into();
    let running = pod.start(&labelled).await?;
    let created = pod.create(&script("true")).await?;
    let ids = async |filter: ContainerFilter| -> Result<Vec<String>> {
        let list = pod.cri.list_containers(Some(filter)).await?;
        Ok(list.into_iter().map(|container| container.id).collect())
    };
    let state = Some(ContainerStateValue {
        state: ContainerState::ContainerCreated.into(),
    });
    let by_state = ContainerFilter {
        state,
        ..ContainerFilter::default()
    };
    ensure_eq!(ids(by_state).await?, vec![created.id.clone()]);
    let label_selector = [("tier".to_owned(), "front".to_owned())].into();
    let by_label = ContainerFilter {
        label_selector,
        ..ContainerFilter::default()
    };
    ensure_eq!(ids(by_label).await?, vec![running.id.clone()]);
    let by_pod = ContainerFilter {
        pod_sandbox_id: pod.id.clone(),
        ..ContainerFilter::default()
    };
    ensure_eq!(ids(by_pod).await?.len(), 2);
    let nobody = ContainerFilter {
        pod_sandbox_id: "nobody".into(),
        ..ContainerFilter::default()
    };
    ensure_eq!(ids(nobody).await?, Vec::<String>::new());
    let list = pod.cri.list_containers(None).await?;
    let one = list
        .iter()
        .find(|one| one.id == running.id)
        .context("it is not in the list")?;
    ensure_eq!(one.pod_sandbox_id, pod.id);
    ensure_eq!(one.labels, labelled.labels);
    ensure_eq!(one.metadata, labelled.metadata);
    ensure_eq!(one.state(), ContainerState::ContainerRunning);
    Ok(())
}

async fn streamed_list_is_the_list(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    pod.start(&script("exec sleep 4321")).await?;
    let mut runtime = pod.cri.runtime.clone();
    let request = StreamContainersRequest { filter: None };
    let mut stream = runtime.stream_containers(request).await?.into_inner();
    let mut containers = Vec::new();
    while let Some(message) = stream.message().await? {
        containers.extend(message.containers);
    }
    let mut list = pod.cri.list_containers(None).await?;
    list.sort_by(|a, b| a.id.cmp(&b.id));
    containers.sort_by(|a, b| a.id.cmp(&b.id));
    ensure_eq!(containers, list);
    Ok(())
}

async fn unknown_container(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    let id = "0123456789ab";
    cri.stop(id, 1).await?;
    cri.remove(id).await?;
    for code in [
        cri.container_status(id)
            .await
            .err()
            .map(|status| status.code()),
        cri.start(id).await.err().map(|status| status.code()),
        cri.exec(id, &["true"], 1)
            .await
            .err()
            .map(|status| status.code()),
        cri.reopen_log(id).await.err().map(|status| status.code()),
    ] {
        ensure_eq!(code, Some(Code::NotFound));
    }
    Ok(())
}

async fn start_twice_is_refused(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod.start(&script("exec sleep 4321")).await?;
    ensure!(
        pod.cri.start(&running.id).await.is_err(),
        "a running container was started"
    );
    pod.cri.stop(&running.id, 0).await?;
    ensure!(
        pod.cri.start(&running.id).await.is_err(),
        "an exited container was started"
    );
    Ok(())
}

async fn image_names_in_the_status(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let status = pod
        .start(&script("exec sleep 4321"))
        .await?
        .status()
        .await?;
    let image = pod
        .cri
        .image_status(images::BUSYBOX)
        .await?
        .context("no image")?;
    ensure_eq!(
        status.image.map(|spec| spec.image),
        Some(images::BUSYBOX.to_owned())
    );
    ensure!(
        status.image_ref.contains("sha256:"),
        "image_ref is {:?}",
        status.image_ref
    );
    ensure_eq!(status.image_id, image.id);
    Ok(())
}

/// An exit that comes before StartContainer returns must not be lost.
async fn a_thousand_short_ones(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let count = if std::env::var_os("BERTH_TEST_THOROUGH").is_some() {
        1000
    } else {
        100
    };
    for number in 0..count {
        let running = pod.start(&container(&["true"])).await?;
        let status = running
            .wait()
            .await
            .with_context(|| format!("round {number}"))?;
        ensure_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
        pod.cri.remove(&running.id).await?;
    }
    Ok(())
}

async fn runtime_ready(cri: &Cri) -> Result<RuntimeCondition> {
    let conditions = cri.status(false).await?.status.context("no status")?;
    let mut conditions = conditions.conditions.into_iter();
    let runtime = conditions.find(|one| one.r#type == "RuntimeReady");
    runtime.context("no RuntimeReady")
}

/// F20: as the kernel leaves a disk that it has found damaged. A plain remount is refused while files are open for writing.
async fn a_disk_that_takes_no_writes_is_told(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let folder = instance.folder().to_owned();
    let root = folder.join("root");
    instance.terminate().await?;
    let disk = Disk::make(&folder.join("disk"), 256 << 20)?;
    let mounted = disk.mount(&root)?;
    instance.launch().await?;
    let cri = instance.cri()?.clone();
    cri.pull(images::ZSTD).await?;
    let before = runtime_ready(&cri).await?;
    ensure!(before.status && before.reason.is_empty(), "{before:?}");

    let (reason, words) = fail(&root)?;
    let begun = Instant::now();
    let told = loop {
        let told = runtime_ready(&cri).await?;
        if !told.status {
            break told;
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(15),
            "still ready after {:?}",
            begun.elapsed()
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    let path = root.display().to_string();
    ensure_eq!(told.reason, reason);
    ensure!(told.message.contains(words), "{}", told.message);
    ensure!(told.message.contains(&path), "{}", told.message);
    ensure_eq!(cri.list_images().await?.len(), 1);
    ensure_eq!(cri.list_pods(None).await?.len(), 0);
    ensure_eq!(cri.list_containers(None).await?.len(), 0);
    let error = cri.pull(images::PLAIN).await.err().context("it pulled")?;
    ensure!(error.message().contains(&path), "{error}");
    ensure!(error.message().contains(words), "{error}");

    // What an operator does about it.
    instance.terminate().await?;
    drop(mounted);
    let mounted = disk.mount(&root)?;
    instance.launch().await?;
    let cri = instance.cri()?.clone();
    cri.pull(images::PLAIN).await?;
    ensure_eq!(cri.list_images().await?.len(), 2);
    let after = runtime_ready(&cri).await?;
    ensure!(after.status, "{after:?}");
    instance.terminate().await?;
    drop(mounted);
    instance.launch().await?;
    let log = std::fs::read_to_string(instance.log_file())?;
    ensure!(!log.contains("panicked"), "it panicked");
    Ok(())
}

/// The kernel's own way to try it out, in the ext4 file system below the path. Kernels differ in what is to be seen of it
/// afterwards (6.12: an error of input and output): the answer is the reason that is right here, and words of the kernel's
/// own for it.
fn fail(path: &Path) -> Result<(&'static str, &'static str)> {
    let file = tempfile::tempfile_in(path)?;
    let device = std::fs::metadata(path)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let block = std::fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))?;
    let name = block.file_name().context("a disk without a name")?;
    let trigger = Path::new("/sys/fs/ext4")
        .join(name)
        .join("trigger_fs_error");
    std::fs::write(&trigger, "1\n").with_context(|| format!("writing {}", trigger.display()))?;
    let flags = rustix::fs::fstatvfs(&file)?.f_flag;
    match file.sync_data() {
        _ if flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) => {
            Ok(("DiskReadOnly", "ead-only"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {
            Ok(("DiskReadOnly", "ead-only"))
        }
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
            Ok(("DiskFailed", "Input/output error"))
        }
        other => bail!("the disk did not fail: {other:?}"),
    }
}
