//! Log throughput.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Bench, as_f64};
use crate::cri::image_spec;
use crate::images;
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
}
