//! Images from a registry and from archives.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use berth_cri_api::v1::*;
use berth_tests::cri::{Cri, image_spec};
use berth_tests::pods::{Pod, container, pod_config, script};
use berth_tests::registry::secure::{Secure, USER};
use berth_tests::runner::{Case, Test};
use berth_tests::runtime::Options;
use berth_tests::{ensure_eq, images, oci, process, test};
use tonic::{Code, Request};

use crate::storage::berth;

pub(crate) const TESTS: &[Test] = &[
    test!(every_kind_of_layer_and_manifest),
    test!(pull_twice_is_one_image),
    test!(identical_pulls_at_once),
    test!(missing_image),
    test!(wrong_digest_is_refused),
    test!(pull_by_digest),
    test!(https_and_tokens),
    test!(users_of_the_config),
    test!(remove_takes_every_name),
    test!(image_in_use_keeps_running),
    test!(nobody_holds_a_removed_image).berth_only("it looks into Berth's store"),
    test!(status_of_the_unknown),
    test!(file_system_info),
    test!(streamed_list_is_the_list),
    test!(a_corrupt_layer_is_refused).berth_only("it writes its own registry content"),
    test!(load_of_archives).berth_only("a command of Berth"),
    test!(deadline_of_the_client),
];

pub(crate) async fn run_echo(case: &mut Case, image: &str) -> Result<()> {
    let instance = case.instance()?;
    let pod = Pod::run(instance.cri()?, pod_config(instance, "echo")).await?;
    let mut config = container(&["/bin/echo", "fine"]);
    config.image = Some(image_spec(image));
    let text = pod
        .output_of(&config)
        .await
        .with_context(|| format!("running {image}"))?;
    ensure_eq!(text, "fine\n");
    pod.remove().await
}

async fn every_kind_of_layer_and_manifest(case: &mut Case) -> Result<()> {
    case.start().await?;
    for image in [
        images::ZSTD,
        images::PLAIN,
        images::DOCKER_LIST,
        images::OCI_INDEX,
    ] {
        case.cri()?
            .pull(image)
            .await
            .with_context(|| format!("pulling {image}"))?;
        run_echo(case, image).await?;
    }
    Ok(())
}

async fn pull_twice_is_one_image(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    let first = cri.pull(images::ZSTD).await?;
    ensure_eq!(cri.pull(images::ZSTD).await?, first);
    let list = cri.list_images().await?;
    let named: Vec<&Image> = list
        .iter()
        .filter(|image| image.repo_tags.contains(&images::ZSTD.to_owned()))
        .collect();
    ensure_eq!(named.len(), 1);
    ensure!(named[0].size > 100_000, "its size is {}", named[0].size);
    ensure_eq!(named[0].repo_digests.len(), 1);
    Ok(())
}

async fn identical_pulls_at_once(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let cri = cri.clone();
        tasks.spawn(async move { cri.pull(images::LOGLINES).await });
    }
    let mut ids = std::collections::BTreeSet::new();
    while let Some(result) = tasks.join_next().await {
        ids.insert(result??);
    }
    ensure_eq!(ids.len(), 1);
    Ok(())
}

async fn missing_image(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    for name in ["berth.test/no-such:1", "berth.test/busybox:no-such-tag"] {
        let error = cri.pull(name).await.err().context("it was pulled")?;
        ensure!(
            error.message().contains("no-such"),
            "the error does not name it: {error}"
        );
    }
    let error = cri
        .pull("berth.test/UPPER:1")
        .await
        .err()
        .context("a wrong name was pulled")?;
    ensure!(!error.message().is_empty(), "no word");
    Ok(())
}

async fn wrong_digest_is_refused(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    let name = format!("berth.test/busybox@sha256:{}", "0".repeat(64));
    ensure!(
        cri.pull(&name).await.is_err(),
        "an image by a digest that nobody has"
    );
    Ok(())
}

async fn pull_by_digest(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    cri.pull(images::ZSTD).await?;
    let image = cri.image_status(images::ZSTD).await?.context("no image")?;
    let digest = image.repo_digests.first().context("no digest")?.clone();
    ensure!(digest.starts_with("berth.test/busybox@sha256:"), "{digest}");
    cri.remove_image(&image.id).await?;
    ensure_eq!(cri.image_status(images::ZSTD).await?, None);
    cri.pull(&digest).await?;
    let again = cri
        .image_status(&digest)
        .await?
        .context("no image by its digest")?;
    ensure_eq!(again.id, image.id);
    ensure_eq!(again.repo_tags, Vec::<String>::new());
    run_echo(case, &digest).await
}

/// A registry over HTTPS that wants Bearer tokens, also for what everybody may pull.
async fn https_and_tokens(case: &mut Case) -> Result<()> {
    let work = tempfile::Builder::new().prefix("bt-secure-").tempdir()?;
    let repository = |image: &str| image.split_once('/').map(|(_, rest)| rest.to_owned());
    let open = repository(images::BUSYBOX).context("no repository")?;
    let closed = repository(images::ZSTD).context("no repository")?;
    let name = |image: &str| image.split(':').next().unwrap_or_default().to_owned();
    let shared = &case.shared().registry;
    let secure = Secure::start(shared.store(), work.path(), &name(&open)).await?;
    let hosts = shared.write_hosts(&work.path().join("hosts"))?;
    secure.write_hosts(&hosts, "secure.test", true)?;
    secure.write_hosts(&hosts, "stranger.test", false)?;
    let options = Options {
        hosts,
        ..case.options()
    };
    let cri = case.start_with(options).await?.cri()?.clone();
    let refused = |answer: Result<String, tonic::Status>| match answer {
        Ok(id) => bail!("the pull was not refused: {id}"),
        Err(status) => Ok(status.message().to_owned()),
    };

    cri.pull(&format!("secure.test/{open}")).await?;
    let closed = format!("secure.test/{closed}");
    refused(cri.pull(&closed).await)?;
    refused(cri.pull_as(&closed, Some((USER.0, "wrong"))).await)?;
    cri.pull_as(&closed, Some(USER)).await?;
    let why = refused(cri.pull(&format!("stranger.test/{open}")).await)?;
    ensure!(why.to_lowercase().contains("certificate"), "{why}");
    Ok(())
}

async fn users_of_the_config(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    cri.pull(images::CONFIGURED).await?;
    cri.pull(images::GROUPS).await?;
    let named = cri
        .image_status(images::CONFIGURED)
        .await?
        .context("no image")?;
    ensure_eq!((named.username.as_str(), named.uid), ("app", None));
    let numbered = cri
        .image_status(images::GROUPS)
        .await?
        .context("no image")?;
    ensure_eq!(
        (numbered.username.as_str(), numbered.uid),
        ("", Some(Int64Value { value: 1000 }))
    );
    Ok(())
}

async fn remove_takes_every_name(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    let base = "gcr.io/k8s-staging-cri-tools/test-image-tags";
    for tag in 1..=3 {
        cri.pull(&format!("{base}:{tag}")).await?;
    }
    let image = cri
        .image_status(&format!("{base}:2"))
        .await?
        .context("no image")?;
    ensure_eq!(image.repo_tags.len(), 3);
    cri.remove_image(&format!("{base}:1")).await?;
    for tag in 1..=3 {
        ensure_eq!(cri.image_status(&format!("{base}:{tag}")).await?, None);
    }
    cri.remove_image(&image.id).await?;
    Ok(())
}

async fn image_in_use_keeps_running(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod.start(&script("exec sleep 4321")).await?;
    pod.cri.remove_image(images::BUSYBOX).await?;
    ensure_eq!(running.sh("echo still").await?, "still\n");
    ensure_eq!(
        running.status().await?.state(),
        ContainerState::ContainerRunning
    );
    // Its layers go with the last container that needs them.
    let used = || async {
        let info = image_filesystem(&pod.cri).await?;
        anyhow::Ok(info.used_bytes.map_or(0, |used| used.value))
    };
    let before = used().await?;
    pod.cri.stop(&running.id, 0).await?;
    pod.cri.remove(&running.id).await?;
    for _ in 0..TRIES {
        if used().await? < before {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    bail!("the removed image still takes {before} bytes")
}

/// A file that somebody has open takes room after it was deleted: the daemon, a monitor, and whoever else belongs to them.
pub(crate) fn nothing_deleted_is_open(case: &mut Case) -> Result<()> {
    let instance = case.instance()?;
    let root = instance.folder().join("root").display().to_string();
    let mut pids: Vec<u32> = process::marked(&[&instance.name])
        .iter()
        .map(|one| one.pid)
        .collect();
    pids.extend(instance.pid());
    for pid in pids {
        for target in open_paths(pid) {
            let deleted = target.starts_with(&root) && target.ends_with(" (deleted)");
            ensure!(!deleted, "{target} is open in {:?}", process::process(pid));
        }
    }
    Ok(())
}

/// What the descriptors of a process lead to; nothing, when it is gone.
fn open_paths(pid: u32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"));
    let links = entries.into_iter().flatten().flatten();
    let targets = links.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    targets.map(|target| target.display().to_string()).collect()
}

/// The monitor of another container of the pod lives on, and so does pause.
async fn nobody_holds_a_removed_image(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let stays = pod.start(&script("exec sleep 4321")).await?;
    pod.cri.pull(images::CONFIGURED).await?;
    let mut config = script("exec sleep 4321");
    config.image = Some(image_spec(images::CONFIGURED));
    let goes = pod.start(&config).await?;
    let instance = case.instance()?;
    let (name, daemon) = (instance.name.clone(), instance.pid().context("no daemon")?);
    let root = instance.folder().join("root");
    let layers = layer_folders(&root)?;
    pod.cri.remove_image(images::CONFIGURED).await?;
    ensure_eq!(layer_folders(&root)?, layers);
    pod.cri.stop(&goes.id, 0).await?;
    pod.cri.remove(&goes.id).await?;

    let mut gone = layers.clone();
    for _ in 0..100 {
        let left = layer_folders(&root)?;
        gone = layers.difference(&left).cloned().collect();
        if !gone.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    ensure_eq!(gone.len(), 1);
    nothing_deleted_is_open(case)?;
    let monitors = |one: &process::Process| one.name == "berth-shim";
    let all = process::marked(&[&name]);
    ensure_eq!(all.iter().filter(|one| monitors(one)).count(), 1);
    for pid in all.iter().map(|one| one.pid).chain([daemon]) {
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo"));
        let held = [open_paths(pid).join("\n"), mounts.unwrap_or_default()];
        for layer in &gone {
            let held = held.iter().any(|text| text.contains(layer));
            ensure!(!held, "{layer} is held by {:?}", process::process(pid));
        }
    }
    ensure_eq!(
        stays.status().await?.state(),
        ContainerState::ContainerRunning
    );
    Ok(())
}

fn layer_folders(root: &Path) -> Result<BTreeSet<String>> {
    let entries = std::fs::read_dir(root.join("layers"))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

/// containerd counts every ten seconds.
const TRIES: usize = 24;

pub(crate) async fn image_filesystem(cri: &Cri) -> Result<FilesystemUsage> {
    let info = cri
        .image
        .clone()
        .image_fs_info(ImageFsInfoRequest {})
        .await?
        .into_inner();
    info.image_filesystems
        .into_iter()
        .next()
        .context("no image file system")
}

async fn status_of_the_unknown(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    ensure_eq!(cri.image_status("berth.test/no-such:1").await?, None);
    cri.remove_image("berth.test/no-such:1").await?;
    Ok(())
}

async fn file_system_info(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    let mut last = None;
    for _ in 0..TRIES {
        let first = image_filesystem(&cri).await?;
        let path = &first.fs_id.as_ref().context("no fs_id")?.mountpoint;
        ensure!(std::path::Path::new(path).exists(), "{path} is not there");
        ensure!(first.timestamp > 0, "no time");
        if first.used_bytes.as_ref().is_some_and(|used| used.value > 0) {
            return Ok(());
        }
        last = Some(first);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    bail!("an image takes no room: {last:?}")
}

async fn streamed_list_is_the_list(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    let request = StreamImagesRequest::default();
    let mut stream = cri.image.clone().stream_images(request).await?.into_inner();
    let mut images = Vec::new();
    while let Some(message) = stream.message().await? {
        images.extend(message.images);
    }
    let mut list = cri.list_images().await?;
    list.sort_by(|a, b| a.id.cmp(&b.id));
    images.sort_by(|a, b| a.id.cmp(&b.id));
    ensure_eq!(images, list);
    Ok(())
}

/// A layer whose content is not what the config's diff ID says: nothing of it may stay.
async fn a_corrupt_layer_is_refused(case: &mut Case) -> Result<()> {
    let mut tree = oci::Tree::default();
    tree.file("wrong", 0o644, b"wrong")?;
    let mut layer = tree.layer(oci::Pack::Gzip)?;
    layer.diff_id = oci::digest(b"something else");
    let recipe = oci::Recipe {
        layers: vec![layer],
        ..oci::Recipe::default()
    };
    let image = recipe.build(oci::Flavor::Oci)?;
    case.shared()
        .registry
        .client()
        .push("corrupt", &["1"], &image)
        .await?;
    let cri = case.start().await?.cri()?.clone();
    let error = cri
        .pull("berth.test/corrupt:1")
        .await
        .err()
        .context("it was pulled")?;
    ensure!(error.message().contains("diff"), "{error}");
    ensure_eq!(cri.image_status("berth.test/corrupt:1").await?, None);
    Ok(())
}

async fn load_of_archives(case: &mut Case) -> Result<()> {
    let image = images::Kit::new()?.busybox()?;
    let folder = case.start().await?.folder().to_path_buf();
    let archives = [
        (
            "oci.tar",
            "berth.test/from-oci:1",
            image.oci_archive("berth.test/from-oci:1")?,
        ),
        (
            "docker.tar",
            "berth.test/from-docker:1",
            image.docker_archive(&["berth.test/from-docker:1"])?,
        ),
    ];
    for (file, name, bytes) in archives {
        std::fs::write(folder.join(file), bytes)?;
        let output = berth(
            case,
            &["images", "load", &folder.join(file).display().to_string()],
        )
        .await?;
        ensure!(output.contains(name), "`berth images load` says {output:?}");
        run_echo(case, name).await?;
        ensure!(
            berth(case, &["images", "list"]).await?.contains(name),
            "it is not listed"
        );
    }
    berth(case, &["images", "rm", "berth.test/from-oci:1"]).await?;
    ensure_eq!(
        case.cri()?.image_status("berth.test/from-oci:1").await?,
        None
    );
    Ok(())
}

async fn deadline_of_the_client(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    let mut request = Request::new(PullImageRequest {
        image: Some(image_spec(images::NGINX)),
        ..PullImageRequest::default()
    });
    request.set_timeout(Duration::from_millis(1));
    let code = cri
        .image
        .clone()
        .pull_image(request)
        .await
        .err()
        .map(|status| status.code());
    ensure!(
        matches!(code, Some(Code::DeadlineExceeded | Code::Cancelled)),
        "{code:?}"
    );
    cri.pull(images::NGINX).await?;
    Ok(())
}
