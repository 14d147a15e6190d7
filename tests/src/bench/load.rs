//! The heavy measurements: log throughput and pulls of large images.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{Bench, as_f64};
use crate::cri::image_spec;
use crate::images::{self, large};
use crate::oci::Pack;
use crate::pods::{Ctr, Pod, container, pod_config};
use crate::process;

const MIB: f64 = 1024.0 * 1024.0;
/// `USER_HZ`: what /proc counts CPU time in.
const TICKS: f64 = 100.0;

impl Bench<'_> {
    /// Lines of 64 bytes from a producer that alone is faster than any runtime, until the container is EXITED, that
    /// is, until the last line is in the file.
    pub(super) async fn logs(&mut self) -> Result<()> {
        let bytes = as_f64(self.effort.lines) * 64.0;
        let pod = Pod::run(&self.cri, pod_config(self.instance, "logs")).await?;
        let alone = format!("loglines {} > /dev/null", self.effort.lines);
        let (took, _) = self.log_run(&pod, &["sh", "-c", &alone]).await?;
        self.add(
            "producer alone, to /dev/null",
            "MiB/s",
            Some(bytes / MIB / took),
        );
        let lines = self.effort.lines.to_string();
        let (took, cpu) = self.log_run(&pod, &["loglines", &lines]).await?;
        self.add(
            "container log, 64-byte lines",
            "MiB/s",
            Some(bytes / MIB / took),
        );
        let per_gib = cpu / (bytes / MIB / 1024.0);
        self.add(
            "CPU of shim and daemon for 1 GiB of log",
            "s",
            Some(per_gib),
        );
        pod.remove().await?;
        let _ = std::fs::remove_dir_all(&pod.config.log_directory);
        Ok(())
    }

    async fn log_run(&self, pod: &Pod, command: &[&str]) -> Result<(f64, f64)> {
        let mut config = container(command);
        config.image = Some(image_spec(images::LOGLINES));
        let created = pod.create(&config).await?;
        let shims = self.shims();
        let before = self.cpu(&shims);
        let start = Instant::now();
        self.cri.start(&created.id).await?;
        let (took, last) = self.watch(&created, &shims, start).await?;
        self.cri.remove(&created.id).await?;
        Ok((took, as_f64(last.saturating_sub(before)) / TICKS))
    }

    /// Looks often, since a monitor and its account are gone soon after the end.
    async fn watch(&self, container: &Ctr, shims: &[u32], start: Instant) -> Result<(f64, u64)> {
        let mut cpu = 0;
        loop {
            let status = container.status().await?;
            cpu = cpu.max(self.cpu(shims));
            if status.finished_at != 0 {
                anyhow::ensure!(status.exit_code == 0, "the producer ended with {status:?}");
                return Ok((start.elapsed().as_secs_f64(), cpu));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What works for containers now: monitors, shims. A worker that waits counts too.
    fn shims(&self) -> Vec<u32> {
        process::marked(&[&self.instance.name])
            .iter()
            .filter(|one| one.name.contains("shim") || one.name.contains("berth"))
            .map(|one| one.pid)
            .filter(|pid| *pid != self.daemon)
            .collect()
    }

    fn cpu(&self, shims: &[u32]) -> u64 {
        shims
            .iter()
            .chain([&self.daemon])
            .map(|pid| process::cpu_ticks(*pid))
            .sum()
    }

    /// Pulls of large images, packed in both ways, and what the disk can do.
    pub(super) async fn pulls(&mut self) -> Result<()> {
        for (pack, name) in [(Pack::Gzip, "gzip"), (Pack::Zstd, "zstd")] {
            self.pull(pack, name).await?;
        }
        let disk = self.disk_rate().await?;
        self.add("the disk's own rate for as many bytes", "MiB/s", Some(disk));
        Ok(())
    }

    /// From the registry on the loopback to complete and on the disk: `syncfs` is part of the time, for whoever did
    /// not sync on its own.
    async fn pull(&mut self, pack: Pack, name: &str) -> Result<()> {
        let (mut times, mut answers, mut cpus) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..self.effort.pulls {
            self.sync().await?;
            let ticks = self.pull_ticks();
            let start = Instant::now();
            self.cri.pull(&large::reference(pack, number)).await?;
            answers.push(start.elapsed());
            self.sync().await?;
            times.push(start.elapsed());
            eprintln!(
                "{name} {number}: answer after {:.2} s, on the disk after {:.2} s",
                answers.last().map_or(0.0, Duration::as_secs_f64),
                times.last().map_or(0.0, Duration::as_secs_f64)
            );
            cpus.push(as_f64(self.pull_ticks().saturating_sub(ticks)) / TICKS);
        }
        cpus.sort_by(f64::total_cmp);
        let middle = times.len() / 2;
        times.sort();
        answers.sort();
        let seconds = |list: &[Duration]| list.get(middle).map(Duration::as_secs_f64);
        let what = format!("pull of 636 MiB in 6 layers, {name}");
        self.add(&format!("{what}, answer"), "s", seconds(&answers));
        self.add(&format!("{what}, on the disk"), "s", seconds(&times));
        self.add(
            &format!("CPU of the machine for the pull, {name}, registry left out"),
            "s",
            cpus.get(middle).copied(),
        );
        Ok(())
    }

    fn pull_ticks(&self) -> u64 {
        let registry = self.registry.map_or(0, process::cpu_ticks);
        process::machine_ticks().saturating_sub(registry)
    }

    async fn sync(&self) -> Result<()> {
        let root = self.root();
        tokio::task::spawn_blocking(move || {
            let folder = std::fs::File::open(root)?;
            rustix::fs::syncfs(folder).context("syncfs")
        })
        .await?
    }

    async fn disk_rate(&self) -> Result<f64> {
        let file = self.root().join("bench-disk");
        tokio::task::spawn_blocking(move || {
            use std::io::Write as _;
            let chunk = vec![0x5a_u8; 4 << 20];
            let start = Instant::now();
            let mut out = std::fs::File::create(&file)?;
            for _ in 0..159 {
                out.write_all(&chunk)?;
            }
            out.sync_all()?;
            std::fs::remove_file(&file)?;
            Ok(636.0 / start.elapsed().as_secs_f64())
        })
        .await?
    }
}
