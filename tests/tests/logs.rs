//! Container logs: format, long lines, rotation.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::cri::image_spec;
use berth_tests::pods::{Ctr, Pod, container, pod_config, script};
use berth_tests::runner::{Case, Test};
use berth_tests::{ensure_eq, images, test};
use rustix::fs::{FileType, Mode};

pub(crate) const TESTS: &[Test] = &[
    test!(both_streams_in_order),
    test!(long_line_is_split_and_marked),
    test!(last_line_without_end),
    test!(bytes_that_are_no_text),
    test!(reopen_after_rename),
    test!(rotation_loses_nothing),
    test!(no_log_path_is_no_log),
    test!(reopen_of_a_stopped_container_is_refused),
    test!(no_link_leads_a_log_elsewhere).berth_only("containerd follows links"),
    test!(a_link_put_in_the_way_is_refused_at_reopen).berth_only("containerd follows links"),
    test!(a_link_in_the_place_of_the_log_directory_is_refused)
        .berth_only("containerd follows links"),
    test!(a_log_directory_made_again_is_opened_again),
    test!(links_on_the_way_to_the_log_directory_are_followed),
];

async fn both_streams_in_order(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod
        .start(&script(
            "echo one; sleep 0.1; echo two >&2; sleep 0.1; echo; echo three",
        ))
        .await?;
    running.wait().await?;
    let lines = running.lines()?;
    let seen: Vec<(&str, &str)> = lines
        .iter()
        .map(|line| (line.stream.as_str(), line.text.as_str()))
        .collect();
    ensure_eq!(
        seen,
        [
            ("stdout", "one"),
            ("stderr", "two"),
            ("stdout", ""),
            ("stdout", "three")
        ]
    );
    ensure!(
        lines.is_sorted_by_key(|line| line.time.clone()),
        "the times go back: {lines:?}"
    );
    Ok(())
}

async fn long_line_is_split_and_marked(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod
        .start(&script(
            "head -c 40000 /dev/zero | tr '\\0' a; echo; echo end",
        ))
        .await?;
    running.wait().await?;
    let lines = running.lines()?;
    ensure!(lines.len() >= 3, "{} lines", lines.len());
    ensure!(
        lines.iter().all(|line| line.text.len() <= 16 * 1024),
        "a piece is too long"
    );
    ensure!(lines[0].partial, "the first piece is not marked");
    let text = running.stdout()?;
    ensure_eq!(text.len(), 40_000 + 1 + 4);
    Ok(())
}

async fn last_line_without_end(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod.start(&script("printf 'no end'")).await?;
    running.wait().await?;
    let lines = running.lines()?;
    ensure_eq!(lines.len(), 1);
    ensure_eq!(lines[0].text, "no end");
    Ok(())
}

async fn bytes_that_are_no_text(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod.start(&script("printf 'a\\377\\000b\\n'")).await?;
    running.wait().await?;
    let bytes = std::fs::read(&running.log)?;
    ensure!(bytes.ends_with(b" stdout F a\xff\x00b\n"), "{bytes:?}");
    Ok(())
}

async fn reopen_after_rename(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod
        .start(&script(
            "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done",
        ))
        .await?;
    running.wait_for_log("10").await?;
    let old = running.log.with_extension("old");
    std::fs::rename(&running.log, &old)?;
    pod.cri.reopen_log(&running.id).await?;
    ensure!(
        running.log.exists(),
        "the new file is not there when the call returns"
    );
    let length = std::fs::metadata(&old)?.len();
    tokio::time::sleep(Duration::from_millis(300)).await;
    ensure_eq!(std::fs::metadata(&old)?.len(), length);
    ensure!(!running.lines()?.is_empty(), "nothing in the new file");
    Ok(())
}

/// 300 000 numbered lines while the file is renamed again and again: each is there once, whole and in order.
async fn rotation_loses_nothing(case: &mut Case) -> Result<()> {
    const LINES: usize = 300_000;
    let pod = case.pod().await?;
    pod.cri.pull(images::LOGLINES).await?;
    let mut config = container(&["loglines", &LINES.to_string()]);
    config.image = Some(image_spec(images::LOGLINES));
    let running = pod.create(&config).await?;
    pod.cri.start(&running.id).await?;
    let mut files = Vec::new();
    for number in 0..200 {
        if running.status().await?.finished_at != 0 {
            break;
        }
        let old = running.log.with_extension(format!("{number:03}"));
        std::fs::rename(&running.log, &old)?;
        files.push(old);
        if pod.cri.reopen_log(&running.id).await.is_err() {
            break;
        }
    }
    running.wait().await?;
    if running.log.exists() {
        files.push(running.log.clone());
    }
    let mut next = 0;
    for file in &files {
        let bytes = std::fs::read(file)?;
        for line in bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let text = std::str::from_utf8(line)?;
            let content = text
                .splitn(4, ' ')
                .nth(3)
                .with_context(|| format!("torn: {text:?}"))?;
            let number: usize = content.get(..16).context("a short line")?.parse()?;
            ensure!(
                number == next,
                "line {next} is missing in {}: {number}",
                file.display()
            );
            ensure!(content.len() == 63, "a torn line: {text:?}");
            next += 1;
        }
    }
    ensure_eq!(next, LINES);
    Ok(())
}

async fn no_log_path_is_no_log(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script("echo into the void; exit 4");
    config.log_path = String::new();
    ensure_eq!(pod.start(&config).await?.wait().await?.exit_code, 4);
    Ok(())
}

async fn reopen_of_a_stopped_container_is_refused(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let running = pod.start(&script("true")).await?;
    running.wait().await?;
    ensure!(
        pod.cri.reopen_log(&running.id).await.is_err(),
        "it was taken"
    );
    Ok(())
}

/// Whoever has the log directory mounted may put links and more into it.
async fn no_link_leads_a_log_elsewhere(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let outside = case.instance()?.folder().join("outside");
    std::fs::create_dir_all(outside.join("dir"))?;
    let logs = PathBuf::from(&pod.config.log_directory);
    for (name, target) in [
        ("absolute", outside.display().to_string()),
        ("relative", "../../outside".to_owned()),
        ("dangling", outside.join("missing").display().to_string()),
        ("file.log", outside.join("file").display().to_string()),
    ] {
        std::os::unix::fs::symlink(target, logs.join(name))?;
    }
    for (name, kind, device) in [
        ("fifo.log", FileType::Fifo, 0),
        (
            "null.log",
            FileType::CharacterDevice,
            rustix::fs::makedev(1, 3),
        ),
    ] {
        rustix::fs::mknodat(rustix::fs::CWD, logs.join(name), kind, Mode::RWXU, device)?;
    }
    for path in [
        "absolute/0.log",
        "absolute/dir/0.log",
        "relative/0.log",
        "dangling/0.log",
        "file.log",
        "fifo.log",
        "null.log",
        "a/../0.log",
        ".",
    ] {
        let mut config = script("echo out");
        config.log_path = path.to_owned();
        let answer = pod.cri.create(&pod.id, &config, &pod.config).await;
        ensure!(answer.is_err(), "a log at {path} was opened");
    }
    ensure_eq!(std::fs::read_dir(&outside)?.count(), 1);
    ensure_eq!(std::fs::read_dir(outside.join("dir"))?.count(), 0);
    // What is missing is made, as before.
    let mut config = script("echo in");
    config.log_path = "new/./deep//0.log".to_owned();
    let text = pod.output_of(&config).await?;
    ensure_eq!(text, "in\n");
    Ok(())
}

const COUNTER: &str = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done";

async fn grows(running: &Ctr) -> Result<()> {
    longer_than(&running.log, 0).await
}

async fn longer_than(log: &Path, length: u64) -> Result<()> {
    let start = std::time::Instant::now();
    while std::fs::metadata(log).map_or(0, |log| log.len()) <= length {
        ensure!(
            start.elapsed() < Duration::from_secs(20),
            "nothing more in {}",
            log.display()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

async fn a_link_put_in_the_way_is_refused_at_reopen(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let outside = case.instance()?.folder().join("outside");
    std::fs::create_dir(&outside)?;
    let mut config = script(COUNTER);
    config.log_path = "c/0.log".to_owned();
    let running = pod.start(&config).await?;
    grows(&running).await?;
    let dir = running.log.parent().context("no directory")?;
    let aside = dir.with_extension("aside");
    std::fs::rename(dir, &aside)?;
    std::os::unix::fs::symlink(&outside, dir)?;
    let error = pod.cri.reopen_log(&running.id).await.err();
    let error = error.context("a link was followed")?;
    ensure!(error.message().contains("not followed"), "{error}");
    ensure_eq!(std::fs::read_dir(&outside)?.count(), 0);
    // The old file was in use all the time.
    let old = aside.join("0.log");
    let length = std::fs::metadata(&old)?.len();
    longer_than(&old, length).await?;
    std::fs::remove_file(dir)?;
    pod.cri.reopen_log(&running.id).await?;
    grows(&running).await
}

/// Whoever has the directory of all pods' logs mounted may put one there.
async fn a_link_in_the_place_of_the_log_directory_is_refused(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let outside = case.instance()?.folder().join("outside");
    std::fs::create_dir(&outside)?;
    let mut config = script(COUNTER);
    config.log_path = "c/0.log".to_owned();
    let running = pod.start(&config).await?;
    grows(&running).await?;
    let logs = PathBuf::from(&pod.config.log_directory);
    let aside = logs.with_extension("aside");
    std::fs::rename(&logs, &aside)?;
    for target in [outside.clone(), outside.join("missing")] {
        std::os::unix::fs::symlink(&target, &logs)?;
        let error = pod.cri.reopen_log(&running.id).await.err();
        let error = error.context("a link was followed at reopen")?;
        ensure!(error.message().contains("not followed"), "{error}");
        // A create meets it, too, and so does a pod.
        let mut config = script("echo out");
        config.log_path = "d/0.log".to_owned();
        let answer = pod.cri.create(&pod.id, &config, &pod.config).await;
        let error = answer.err().context("a link was followed at create")?;
        ensure!(error.message().contains("not followed"), "{error}");
        let mut other = pod_config(case.instance()?, "other");
        other.log_directory = logs.display().to_string();
        let answer = pod.cri.run_pod(&other).await;
        let error = answer.err().context("a link was followed by a pod")?;
        ensure!(error.message().contains("not followed"), "{error}");
        std::fs::remove_file(&logs)?;
    }
    ensure_eq!(std::fs::read_dir(&outside)?.count(), 0);
    std::fs::rename(&aside, &logs)?;
    std::fs::remove_file(&running.log)?;
    pod.cri.reopen_log(&running.id).await?;
    grows(&running).await
}

async fn a_log_directory_made_again_is_opened_again(case: &mut Case) -> Result<()> {
    let pod = case.pod().await?;
    let mut config = script(COUNTER);
    config.log_path = "c/0.log".to_owned();
    let mut running = pod.start(&config).await?;
    let logs = PathBuf::from(&pod.config.log_directory);
    for round in 0..4 {
        grows(&running).await?;
        std::fs::remove_dir_all(&logs)?;
        // Whether the whole of it, a part of it, or nothing was made again.
        match round {
            0 => std::fs::create_dir_all(logs.join("c"))?,
            1 => std::fs::create_dir_all(&logs)?,
            2 => {
                case.instance()?.kill().await?;
                case.instance()?.launch().await?;
                running.cri = case.cri()?.clone();
            }
            _ => {}
        }
        running.cri.reopen_log(&running.id).await?;
    }
    grows(&running).await
}

/// `/var/log` may be a link to another disk.
async fn links_on_the_way_to_the_log_directory_are_followed(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let disk = instance.folder().join("disk");
    let link = instance.folder().join("link");
    std::fs::create_dir(&disk)?;
    std::os::unix::fs::symlink("disk", &link)?;
    let mut config = pod_config(instance, "pod");
    config.log_directory = link.join("pods/one").display().to_string();
    let pod = Pod::run(instance.cri()?, config).await?;
    let running = pod.start(&script(COUNTER)).await?;
    grows(&running).await?;
    std::fs::remove_file(&running.log)?;
    pod.cri.reopen_log(&running.id).await?;
    grows(&running).await?;
    ensure!(disk.join("pods/one").is_dir(), "it is elsewhere");
    Ok(())
}
