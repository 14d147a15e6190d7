//! The store of a real daemon: killed, damaged, counted, and in the operator's hands.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use berth_tests::runner::{Case, Test};
use berth_tests::runtime::{Instance, Kind, Net, Options};
use berth_tests::{ensure_eq, images, paths, test};
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use crate::image::{image_filesystem, nothing_deleted_is_open, run_echo};
use crate::registry::sized_image;

const OURS: &str = "Berth's store and commands";

pub(crate) const TESTS: &[Test] = &[
    test!(killed_while_images_come_and_go).berth_only(OURS),
    test!(damage_is_found_named_and_fetched_again).berth_only(OURS),
    test!(a_lost_index_is_made_again).berth_only(OURS),
    test!(room_is_what_du_says).berth_only(OURS),
    test!(pulls_and_removals_at_once),
    test!(saved_images_load_everywhere).berth_only(OURS),
    test!(pinned_images_stay).berth_only(OURS),
    test!(commands_of_the_operator).berth_only(OURS),
];

/// A command of the operator for the daemon of the case.
pub(crate) fn command(case: &mut Case, args: &[&str]) -> Result<tokio::process::Command> {
    let mut command = tokio::process::Command::new(paths::berth_dir().join("berth"));
    let config = case.instance()?.config_file();
    command.args(args).arg("--config").arg(config);
    Ok(command)
}

/// Runs a command of the operator against the daemon of the case, whatever comes of it.
async fn try_berth(case: &mut Case, args: &[&str], input: &[u8]) -> Result<Output> {
    let mut child = command(case, args)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let writing = async {
        // A command that does not want it closes it.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), writing);
    Ok(output?)
}

fn good(args: &[&str], output: &Output) -> Result<()> {
    ensure!(
        output.status.success(),
        "`berth {}`: {}{}",
        args.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Runs a command of the operator against the daemon of the case.
pub(crate) async fn berth(case: &mut Case, args: &[&str]) -> Result<String> {
    let output = try_berth(case, args, b"").await?;
    good(args, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn berth_json(case: &mut Case, args: &[&str]) -> Result<Value> {
    let text = berth(case, args).await?;
    serde_json::from_str(&text).with_context(|| format!("`berth {}` says {text}", args.join(" ")))
}

fn root(case: &mut Case) -> Result<PathBuf> {
    Ok(case.instance()?.folder().join("root"))
}

fn names(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = std::fs::read_dir(folder)?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names.collect()
}

/// Between 0 and `limit` milliseconds.
async fn some_time(limit: u32) -> Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let time = now.subsec_micros() % (limit * 1000);
    tokio::time::sleep(Duration::from_micros(u64::from(time))).await;
    Ok(())
}

/// What is on the disk is what the images need, all of it and no more, and every byte of it as it should be.
async fn nothing_half_done(case: &mut Case) -> Result<()> {
    let root = root(case)?;
    for attempt in 0..100 {
        if names(&root.join("staging"))?.is_empty() {
            break;
        }
        ensure!(
            attempt < 99,
            "in staging: {:?}",
            names(&root.join("staging"))?
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let report = berth_json(case, &["images", "check", "--json"]).await?;
    ensure_eq!(report["findings"], Value::Array(Vec::new()));
    ensure_eq!(report["orphans"], 0);
    let list = berth_json(case, &["images", "list", "--json"]).await?;
    let list = list.as_array().context("no list")?.clone();
    let (mut layers, mut documents) = (BTreeSet::new(), BTreeSet::new());
    for image in &list {
        let id = image["id"].as_str().context("no id")?;
        let details = berth_json(case, &["images", "inspect", id]).await?;
        let hex = |value: &Value| value.as_str().unwrap_or_default().replace("sha256:", "");
        for layer in details[0]["layers"].as_array().context("no layers")? {
            layers.insert(hex(&layer["chain"]));
        }
        for document in details[0]["documents"].as_array().context("no documents")? {
            documents.insert(hex(document));
        }
    }
    ensure_eq!(names(&root.join("layers"))?, layers);
    ensure_eq!(names(&root.join("blobs/sha256"))?, documents);
    ensure_eq!(names(&root.join("images"))?.len(), list.len());
    Ok(())
}

const MANY: [&str; 5] = [
    images::NGINX,
    images::ZSTD,
    images::PLAIN,
    images::LOGLINES,
    images::CONFIGURED,
];

async fn killed_while_images_come_and_go(case: &mut Case) -> Result<()> {
    case.start().await?;
    for round in 0..14_usize {
        let cri = case.cri()?.clone();
        let mut tasks = tokio::task::JoinSet::new();
        for (n, image) in MANY.iter().enumerate() {
            let cri = cri.clone();
            tasks.spawn(async move {
                // They fail when the daemon dies, which is what this is about.
                if (n + round) % 3 == 0 {
                    let _ = cri.remove_image(image).await;
                }
                let _ = cri.pull(image).await;
                if (n + round) % 4 == 0 {
                    let _ = cri.remove_image(image).await;
                }
            });
        }
        some_time(if round % 2 == 0 { 120 } else { 900 }).await?;
        case.instance()?.kill().await?;
        tasks.join_all().await;
        case.instance()?.launch().await?;
        nothing_half_done(case)
            .await
            .with_context(|| format!("after kill {round}"))?;
    }
    for image in MANY {
        case.cri()?.pull(image).await?;
    }
    nothing_half_done(case).await?;
    run_echo(case, images::ZSTD).await
}

/// A file of an image's topmost layer, by the end of its name.
async fn a_file(case: &mut Case, image: &str, name: &str) -> Result<(PathBuf, String)> {
    let details = berth_json(case, &["images", "inspect", image]).await?;
    let layers = details[0]["layers"].as_array().context("no layers")?;
    let root = root(case)?;
    for layer in layers {
        let chain = layer["chain"].as_str().context("no chain")?;
        let folder = root.join("layers").join(chain.replace("sha256:", ""));
        let file = folder.join("fs").join(name);
        if file.exists() {
            return Ok((file, chain.to_owned()));
        }
    }
    anyhow::bail!("no layer of {image} has {name}")
}

async fn damage_is_found_named_and_fetched_again(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    cri.pull(images::CONFIGURED).await?;
    let (file, chain) = a_file(case, images::CONFIGURED, "etc/passwd").await?;
    let whole = std::fs::read(&file)?;
    let mut damaged = whole.clone();
    damaged[3] ^= 1;
    std::fs::write(&file, &damaged)?;
    berth(case, &["images", "check", "--quick"]).await?;
    let args = ["images", "check"];
    let output = try_berth(case, &args, b"").await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure_eq!(output.status.code(), Some(1));
    ensure!(
        text.contains(&chain) && text.contains(images::CONFIGURED),
        "{text}"
    );
    // The same without a daemon, which then has to find it repaired.
    case.instance()?.terminate().await?;
    ensure_eq!(try_berth(case, &args, b"").await?.status.code(), Some(1));
    let text = berth(case, &["images", "check", "--repair"]).await?;
    ensure!(text.contains("pull it again"), "{text}");
    case.instance()?.launch().await?;
    let cri = case.cri()?.clone();
    ensure_eq!(cri.image_status(images::CONFIGURED).await?, None);
    cri.pull(images::CONFIGURED).await?;
    ensure_eq!(std::fs::read(&file)?, whole);
    berth(case, &["images", "check"]).await?;
    // And with a container on it, through the daemon.
    std::fs::remove_file(&file)?;
    let text = berth(case, &["images", "check", "--repair"]).await?;
    ensure!(text.contains(&chain), "{text}");
    cri.pull(images::CONFIGURED).await?;
    ensure_eq!(std::fs::read(&file)?, whole);
    nothing_half_done(case).await
}

async fn a_lost_index_is_made_again(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    for image in [images::ZSTD, images::DOCKER_LIST] {
        cri.pull(image).await?;
    }
    let mut before = cri.list_images().await?;
    before.sort_by(|a, b| a.id.cmp(&b.id));
    for damage in ["garbage", "gone", "half"] {
        case.instance()?.kill().await?;
        let index = root(case)?.join("index.redb");
        match damage {
            "garbage" => std::fs::write(&index, "this is no index")?,
            "gone" => std::fs::remove_file(&index)?,
            _ => {
                let length = std::fs::metadata(&index)?.len();
                std::fs::File::options()
                    .write(true)
                    .open(&index)?
                    .set_len(length / 2)?;
            }
        }
        case.instance()?.launch().await?;
        let mut after = case.cri()?.list_images().await?;
        after.sort_by(|a, b| a.id.cmp(&b.id));
        ensure_eq!(after, before);
        let log = std::fs::read_to_string(case.instance()?.log_file())?;
        ensure!(
            log.contains("was made again"),
            "{damage}: nothing in the log"
        );
        nothing_half_done(case).await.context(damage)?;
    }
    run_echo(case, images::ZSTD).await
}

/// What du counts below the root, without the writable layers and the records of pods.
fn du(root: &Path) -> Result<u64> {
    let mut command = std::process::Command::new("du");
    command.args(["-s", "-B1", "--total"]);
    for name in ["layers", "blobs", "images", "partial", "init", "index.redb"] {
        command.arg(root.join(name));
    }
    let output = command.output()?;
    let text = String::from_utf8(output.stdout)?;
    let total = text.lines().last().and_then(|line| line.split('\t').next());
    Ok(total.context("du says nothing")?.parse()?)
}

async fn room_is_what_du_says(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    let root = root(case)?;
    for step in ["pull", "shared", "remove", "restart"] {
        match step {
            "pull" => drop(cri.pull(images::NGINX).await?),
            "shared" => drop(cri.pull(images::CONFIGURED).await?),
            "remove" => {
                cri.remove_image(images::NGINX).await?;
                nothing_deleted_is_open(case)?;
            }
            _ => {
                case.instance()?.terminate().await?;
                case.instance()?.launch().await?;
            }
        }
        let cri = case.cri()?.clone();
        let told = image_filesystem(&cri).await?;
        let told = told.used_bytes.context("no bytes")?.value;
        let real = du(&root)?;
        ensure!(
            told.abs_diff(real) <= real / 100,
            "{step}: ImageFsInfo says {told}, du {real}"
        );
        let info = cri
            .image
            .clone()
            .image_fs_info(berth_cri_api::v1::ImageFsInfoRequest {})
            .await?
            .into_inner();
        let containers = info
            .container_filesystems
            .first()
            .context("no container file system")?;
        ensure!(containers.used_bytes.is_some() && containers.inodes_used.is_some());
        let used = berth_json(case, &["df", "--json"]).await?;
        ensure!(
            used["images"]["bytes"]
                .as_u64()
                .is_some_and(|n| n > 0 && n <= told)
        );
    }
    // What nobody told the daemon of it can only know by a walk through the trees.
    let cri = case.cri()?.clone();
    let before = image_filesystem(&cri).await?.used_bytes;
    let (file, _) = a_file(case, images::CONFIGURED, "etc/passwd").await?;
    let behind = file.with_file_name("behind-its-back");
    std::fs::write(&behind, vec![1; 10 << 20])?;
    let after = image_filesystem(&cri).await?.used_bytes;
    std::fs::remove_file(&behind)?;
    ensure_eq!(after, before);
    Ok(())
}

/// F52, S46: whatever the order, an image is there with all of its layers or not at all.
async fn pulls_and_removals_at_once(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..12_usize {
        let cri = cri.clone();
        tasks.spawn(async move {
            let image = [images::ZSTD, images::CONFIGURED][n % 2];
            for _ in 0..8 {
                if n % 3 == 0 {
                    cri.remove_image(image).await?;
                } else {
                    cri.pull(image).await?;
                }
                let status = cri.image_status(image).await?;
                let bad = status.is_some_and(|image| image.id.is_empty() || image.size == 0);
                ensure!(!bad, "an image without an id or a size");
            }
            anyhow::Ok(())
        });
    }
    while let Some(outcome) = tasks.join_next().await {
        outcome??;
    }
    let is_berth = case.instance()?.options.kind == Kind::Berth;
    if is_berth {
        nothing_half_done(case).await.context("after the race")?;
    }
    for image in [images::ZSTD, images::CONFIGURED] {
        cri.pull(image).await?;
    }
    if is_berth {
        nothing_half_done(case).await?;
    }
    run_echo(case, images::ZSTD).await
}

async fn saved_images_load_everywhere(case: &mut Case) -> Result<()> {
    let cri = case.start().await?.cri()?.clone();
    for image in [images::ZSTD, images::CONFIGURED, images::OCI_INDEX] {
        cri.pull(image).await?;
    }
    let work = tempfile::Builder::new().prefix("bt-save-").tempdir()?;
    let path = |name: &str| work.path().join(name).display().to_string();
    let id = |image: &Option<berth_cri_api::v1::Image>| image.as_ref().map(|i| i.id.clone());
    let (first, second) = (
        id(&cri.image_status(images::ZSTD).await?),
        id(&cri.image_status(images::CONFIGURED).await?),
    );
    let both = [images::ZSTD, images::CONFIGURED];
    let args = ["images", "save", "-o", &path("both.tar"), both[0], both[1]];
    berth(case, &args).await?;
    let args = [
        "images",
        "save",
        "--dir",
        "-o",
        &path("layout"),
        both[0],
        both[1],
    ];
    berth(case, &args).await?;
    let streamed = try_berth(case, &["images", "save", both[0], both[1]], b"").await?;
    good(&["images", "save"], &streamed)?;
    let archive = std::fs::read(path("both.tar"))?;
    ensure!(
        streamed.stdout == archive,
        "standard output is another archive"
    );
    std::fs::write(
        path("both.tar.zst"),
        zstd::encode_all(archive.as_slice(), 1)?,
    )?;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &archive)?;
    let gzip = gzip.finish()?;
    for source in ["both.tar", "layout", "both.tar.zst", "-"] {
        berth(case, &["images", "rm", both[0], both[1]]).await?;
        let file = if source == "-" {
            source.to_owned()
        } else {
            path(source)
        };
        let args = ["images", "load", &file];
        let output = try_berth(case, &args, &gzip).await?;
        good(&args, &output)?;
        ensure_eq!(id(&cri.image_status(both[0]).await?), first);
        ensure_eq!(id(&cri.image_status(both[1]).await?), second);
        run_echo(case, both[0]).await.context(source)?;
    }
    nothing_half_done(case).await?;
    // An image that is not there leaves no file.
    let args = ["images", "save", "-o", &path("none.tar"), "no/such:1"];
    ensure!(!try_berth(case, &args, b"").await?.status.success());
    ensure!(!Path::new(&path("none.tar")).exists());
    ensure_eq!(names(work.path())?.len(), 3);
    in_containerd(case, &path("both.tar"), &both, &[first, second]).await
}

/// The archive in containerd: the same images.
async fn in_containerd(
    case: &mut Case,
    archive: &str,
    images: &[&str],
    ids: &[Option<String>],
) -> Result<()> {
    let options = Options {
        kind: Kind::Containerd,
        net: Net::None,
        ..case.options()
    };
    let mut containerd = Instance::start(options).await?;
    let output = tokio::process::Command::new(paths::tool("ctr")?)
        .arg("--address")
        .arg(containerd.socket())
        .args(["--namespace", "k8s.io", "images", "import", archive])
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let mut found = Vec::new();
    for image in images {
        let mut status = None;
        // Its CRI service hears of new images by an event.
        for _ in 0..50 {
            status = containerd.cri()?.image_status(image).await?;
            if status.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        found.push(status.map(|image| image.id));
    }
    containerd.sweep().await;
    ensure!(output.status.success(), "ctr images import: {said}");
    ensure_eq!(found, ids);
    Ok(())
}

/// A name that comes to mean another image.
const MOVED: &str = "berth.test/moved:1";

/// X060: pinned by the configuration, over restarts and moved tags.
async fn pinned_images_stay(case: &mut Case) -> Result<()> {
    case.start().await?;
    case.instance()?.terminate().await?;
    let drop_ins = case.instance()?.folder().join("conf.d");
    std::fs::create_dir_all(&drop_ins)?;
    let text = format!("[images]\npinned = [\"{}\", \"{MOVED}\"]\n", images::ZSTD);
    std::fs::write(drop_ins.join("pinned.toml"), text)?;
    case.instance()?.launch().await?;
    let cri = case.cri()?.clone();
    for image in [images::ZSTD, images::PLAIN] {
        cri.pull(image).await?;
    }
    let registry = case.shared().registry.client();
    let mut ids = Vec::new();
    for mark in ["first", "second"] {
        let image = sized_image(mark, 4096)?;
        registry.push("moved", &["1"], &image).await?;
        ids.push(cri.pull(MOVED).await?);
        let pulled = cri.image_status(MOVED).await?.context("no image")?;
        ensure_eq!(
            (pulled.id.as_str(), pulled.pinned),
            (ids[ids.len() - 1].as_str(), true)
        );
    }
    for _ in 0..2 {
        let cri = case.cri()?.clone();
        let wanted = [
            (images::ZSTD, true),
            (images::PLAIN, false),
            (MOVED, true),
            (ids[1].as_str(), true),
            (ids[0].as_str(), false),
        ];
        for (name, pinned) in wanted {
            let image = cri.image_status(name).await?.context("no image")?;
            ensure!(image.pinned == pinned, "{name}: {image:?}");
        }
        case.instance()?.kill().await?;
        case.instance()?.launch().await?;
    }
    berth(case, &["images", "prune", "--all"]).await?;
    let cri = case.cri()?.clone();
    ensure!(
        cri.image_status(images::ZSTD).await?.is_some(),
        "it is gone"
    );
    ensure!(cri.image_status(MOVED).await?.is_some(), "it is gone");
    for gone in [images::PLAIN, &ids[0]] {
        ensure_eq!(cri.image_status(gone).await?, None);
    }
    Ok(())
}

async fn commands_of_the_operator(case: &mut Case) -> Result<()> {
    case.start().await?;
    // Not a terminal: plain lines, and no word of progress for something so quick.
    let args = ["images", "pull", images::ZSTD, images::PLAIN];
    let output = try_berth(case, &args, b"").await?;
    good(&args, &output)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure_eq!(
        said.lines()
            .filter(|line| line.starts_with("pulled "))
            .count(),
        2
    );
    ensure!(
        !String::from_utf8_lossy(&output.stderr).contains('\r'),
        "a bar without a terminal"
    );
    let args = ["images", "pull", "--json", "--creds-stdin", images::ZSTD];
    let output = try_berth(case, &args, b"me:secret\n").await?;
    good(&args, &output)?;
    let pulled: Value = serde_json::from_slice(&output.stdout)?;
    ensure_eq!(pulled[0]["tags"][0], images::ZSTD);
    let output = try_berth(case, &args, b"no colon\n").await?;
    ensure!(!output.status.success(), "credentials without a colon");
    let output = try_berth(case, &["images", "pull", "berth.test/no-such:1"], b"").await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure_eq!(output.status.code(), Some(1));
    ensure!(said.contains("no-such"), "{said}");

    let table = berth(case, &["images", "list"]).await?;
    ensure!(
        table.contains(images::ZSTD) && table.starts_with("IMAGE "),
        "{table}"
    );
    let used = berth(case, &["df"]).await?;
    ensure!(
        used.contains("RECLAIMABLE") && used.contains("free"),
        "{used}"
    );
    let details = berth_json(case, &["images", "inspect", images::ZSTD]).await?;
    ensure_eq!(details[0]["config"]["cmd"][0], "sh");
    ensure_eq!(details[0]["in_use"], false);

    let pruned = berth_json(case, &["images", "prune", "--json"]).await?;
    ensure_eq!(pruned["images"], Value::Array(Vec::new()));
    let pruned = berth(case, &["images", "prune", "--all"]).await?;
    ensure!(
        pruned.contains(images::ZSTD) && pruned.contains("freed"),
        "{pruned}"
    );
    let list = berth_json(case, &["images", "list", "--json"]).await?;
    ensure_eq!(list, Value::Array(Vec::new()));
    let args = ["images", "rm", "no/such:1"];
    ensure_eq!(try_berth(case, &args, b"").await?.status.code(), Some(1));
    berth(case, &["images", "rm", "--force", "no/such:1"]).await?;

    case.instance()?.terminate().await?;
    let output = try_berth(case, &["images", "list"], b"").await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure_eq!(output.status.code(), Some(1));
    ensure!(said.contains("is `berth serve` running"), "{said}");
    case.instance()?.launch().await?;
    Ok(())
}
