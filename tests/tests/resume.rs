//! Pulls that are interrupted, or that get nowhere.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::registry::faulty::{Fault, Faulty, Seen};
use berth_tests::runner::{Case, Test};
use berth_tests::terminal::Terminal;
use berth_tests::{ensure_eq, images, test};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use crate::image::run_echo;
use crate::registry::{NAME, hosts_folder, layer_of, sized_image, start};
use crate::storage::{berth, command};

pub(crate) const TESTS: &[Test] = &[
    test!(a_killed_daemon_goes_on_with_its_pull).berth_only("containerd starts over"),
    test!(a_pull_whose_caller_left_goes_on).berth_only("containerd starts over"),
    test!(progress_on_a_terminal_and_elsewhere).berth_only("a command of Berth"),
    test!(a_stalled_pull_holds_nobody_up),
];

/// Bytes of a layer, and those that come before nothing more does.
const SIZE: usize = 4 << 20;
const FIRST: usize = 3 << 20;

/// The download that is kept, once that much of it is on the disk.
async fn kept(case: &mut Case) -> Result<PathBuf> {
    let folder = case.instance()?.folder().join("root/partial");
    for _ in 0..600 {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let entry = entry?;
            if entry.metadata()?.len() >= FIRST as u64 {
                return Ok(entry.path());
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("no download is kept in {}", folder.display())
}

/// What an operator's Prometheus reads.
pub(crate) async fn metrics(case: &mut Case) -> Result<String> {
    let socket = case.instance()?.folder().join("state/admin.sock");
    let mut stream = UnixStream::connect(&socket).await?;
    let request = "GET /metrics HTTP/1.1\r\nHost: berth\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// The value of a sample that is there.
fn sample(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.with_context(|| format!("no {name} in\n{text}"))?;
    Ok(value.trim().parse()?)
}

/// What was asked of a layer, from that request on.
fn ranges(faulty: &Faulty, begin: usize, layer: &str) -> Vec<Option<String>> {
    let seen = faulty.seen().split_off(begin);
    let asked = seen.iter().filter(|seen| seen.path.contains(layer));
    let range = |seen: &Seen| Some(seen.headers.get("range")?.to_str().ok()?.to_owned());
    asked.map(range).collect()
}

fn the_rest() -> Option<String> {
    Some(format!("bytes={FIRST}-"))
}

/// What came before `kill -9` does not come again, and everybody can see how far it is.
async fn a_killed_daemon_goes_on_with_its_pull(case: &mut Case) -> Result<()> {
    let faulty = Faulty::start().await?;
    let (_work, hosts) = hosts_folder(case)?;
    Faulty::write_hosts(&hosts, NAME, &faulty.url(), &[])?;
    let cri = start(case, hosts, "").await?;
    let image = sized_image("resume", SIZE)?;
    faulty.add("x", "resume", &image);
    let layer = layer_of(&image)?;
    faulty.fault(&layer, Fault::Stall(FIRST), 1);
    let name = format!("{NAME}/x:resume");
    let pull = tokio::spawn({
        let (cri, name) = (cri.clone(), name.clone());
        async move { cri.pull(&name).await }
    });
    kept(case).await?;
    let shown: Value = serde_json::from_str(&berth(case, &["pulls", "--json"]).await?)?;
    ensure_eq!(shown[0]["reference"], name.as_str());
    ensure!(
        shown[0]["bytes_done"].as_u64() >= Some(FIRST as u64),
        "{shown}"
    );
    let text = metrics(case).await?;
    ensure_eq!(sample(&text, "berth_images{kind=\"pulling\"}")?, 1);
    ensure!(sample(&text, "berth_image_pulls_bytes{state=\"there\"}")? >= FIRST as u64);

    case.instance()?.kill().await?;
    ensure!(pull.await?.is_err(), "a dead daemon answered");
    faulty.heal();
    let begin = faulty.seen().len();
    case.instance()?.launch().await?;
    case.cri()?.pull(&name).await?;
    ensure_eq!(ranges(&faulty, begin, &layer), [the_rest()]);
    let text = metrics(case).await?;
    let bytes = |origin| {
        sample(
            &text,
            &format!("berth_image_layer_bytes_total{{origin=\"{origin}\"}}"),
        )
    };
    ensure_eq!(bytes("kept")?, FIRST as u64);
    let digest = layer.trim_start_matches("/blobs/");
    let whole = image.blobs.iter().find(|blob| blob.digest == digest);
    let whole = whole.context("no layer")?.bytes.len();
    ensure_eq!(bytes("registry")?, (whole - FIRST) as u64);
    let pulls = "berth_image_pull_duration_seconds_count{outcome=\"pulled\"}";
    ensure_eq!(sample(&text, pulls)?, 1);
    let left = std::fs::read_dir(case.instance()?.folder().join("root/partial"))?.count();
    ensure_eq!(left, 0);
    Ok(())
}

/// A cancelled call ends no pull: it goes on alone, nothing of it twice, and the next call joins it.
async fn a_pull_whose_caller_left_goes_on(case: &mut Case) -> Result<()> {
    let faulty = Faulty::start().await?;
    let (_work, hosts) = hosts_folder(case)?;
    Faulty::write_hosts(&hosts, NAME, &faulty.url(), &[])?;
    let cri = start(case, hosts, "silence_limit = 10\n").await?;
    let image = sized_image("left", SIZE)?;
    faulty.add("x", "left", &image);
    let layer = layer_of(&image)?;
    faulty.fault(&layer, Fault::Stall(FIRST), 1);
    let name = format!("{NAME}/x:left");
    let caller = tokio::spawn({
        let (cri, name) = (cri.clone(), name.clone());
        async move { cri.pull(&name).await }
    });
    kept(case).await?;
    caller.abort();
    ensure!(caller.await.is_err(), "it was not stalled");
    let text = metrics(case).await?;
    ensure_eq!(sample(&text, "berth_images{kind=\"pulling\"}")?, 1);
    let id = cri.pull(&name).await?;
    let shown = cri.image_status(&name).await?.context("it is not there")?;
    ensure_eq!(shown.id, id);
    ensure_eq!(ranges(&faulty, 0, &layer), [None, the_rest()]);
    let text = metrics(case).await?;
    let pulls = "berth_image_pull_duration_seconds_count{outcome=\"pulled\"}";
    // The first one is busybox.
    ensure_eq!(sample(&text, pulls)?, 2);
    Ok(())
}

fn piped(mut command: Command) -> Result<Child> {
    let command = command.stdin(Stdio::null()).kill_on_drop(true);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(child.spawn()?)
}

/// A bar and a table that are written over on a terminal; plain lines for everybody else.
async fn progress_on_a_terminal_and_elsewhere(case: &mut Case) -> Result<()> {
    let faulty = Faulty::start().await?;
    let (_work, hosts) = hosts_folder(case)?;
    Faulty::write_hosts(&hosts, NAME, &faulty.url(), &[])?;
    start(case, hosts, "silence_limit = 15\n").await?;
    let image = sized_image("shown", SIZE)?;
    faulty.add("x", "shown", &image);
    faulty.fault(&layer_of(&image)?, Fault::Stall(FIRST), 1);
    let (name, host) = (format!("{NAME}/x:shown"), faulty.address().to_string());
    let pull = ["images", "pull", &name];
    let mut bar = Terminal::run(command(case, &pull)?)?;
    let plain = piped(command(case, &pull)?)?;
    let table = Terminal::run(command(case, &["pulls", "-w"])?)?;
    let mut lines = piped(command(case, &["pulls", "-w"])?)?;

    let begin = "\r\x1b[K[######################........] 3072 KiB of ";
    let source = format!(", layer 0 of 1 from {host}: {name}");
    let patience = Duration::from_secs(15);
    let line = |line: &str| line.starts_with(&begin[4..]) && line.ends_with(&source);
    bar.until(patience, |text| text.split("\r\x1b[K").any(line))
        .await?;
    let row = |text: &str| text.contains("0 of 1") && text.trim_end().ends_with(&host);
    // Up by the head and one row.
    let over = "\r\x1b[2A\x1b[JIMAGE ";
    table
        .until(patience, |text| {
            text.rsplit_once(over)
                .is_some_and(|(before, after)| row(before) && row(after))
        })
        .await?;
    let mut read = String::new();
    let mut out = BufReader::new(lines.stdout.take().context("no output")?);
    while read.matches("IMAGE ").count() < 3 || !row(&read) {
        ensure!(out.read_line(&mut read).await? > 0, "it ended: {read}");
    }
    ensure!(!read.contains(['\r', '\x1b']), "{read:?}");

    let plain = plain.wait_with_output().await?;
    let (out, told) = (
        String::from_utf8(plain.stdout)?,
        String::from_utf8(plain.stderr)?,
    );
    ensure!(
        plain.status.success() && out.starts_with(&format!("pulled {name}: ")),
        "{out}{told}"
    );
    ensure!(told.lines().any(line), "{told:?}");
    ensure!(!(out + &told).contains(['\r', '\x1b']), "{told:?}");
    ensure!(bar.wait().await?.success(), "{:?}", bar.text());
    let end = format!("\r\x1b[Kpulled {name}: ");
    bar.until(patience, |text| text.contains(&end)).await?;
    Ok(())
}

/// While a registry is silent, everybody else's work goes on as if it were not there.
async fn a_stalled_pull_holds_nobody_up(case: &mut Case) -> Result<()> {
    let faulty = Faulty::start().await?;
    let (_work, hosts) = hosts_folder(case)?;
    Faulty::write_hosts(&hosts, NAME, &faulty.url(), &[])?;
    let cri = start(case, hosts, "").await?;
    let mut pulls = tokio::task::JoinSet::new();
    for number in 0..8 {
        let tag = format!("stalled{number}");
        let image = sized_image(&tag, 300 << 10)?;
        faulty.add("x", &tag, &image);
        faulty.fault(&layer_of(&image)?, Fault::Stall(100_000), 1);
        let (cri, name) = (cri.clone(), format!("{NAME}/x:{tag}"));
        pulls.spawn(async move { cri.pull(&name).await });
    }
    let stalled = async {
        let layers = |faulty: &Faulty| {
            let seen = faulty.seen();
            let blobs = seen.iter().filter(|seen| seen.path.contains("/blobs/"));
            blobs.count()
        };
        // The configuration and the layer of each.
        while layers(&faulty) < 16 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), stalled).await?;
    let others = async {
        cri.list_images().await?;
        cri.pull(images::ZSTD).await?;
        run_echo(case, images::ZSTD).await
    };
    // Far more than it takes, and less than the silence that a pull may last.
    let limit = Duration::from_secs(20);
    let others = tokio::time::timeout(limit, others).await;
    others.context("it waited for the silent registry")??;
    ensure!(pulls.try_join_next().is_none(), "a stalled pull ended");
    pulls.abort_all();
    Ok(())
}
