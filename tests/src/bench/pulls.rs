//! Pulls of large images, by all runtimes in turn.
//!
//! What a pull costs depends on what the machine did before: memory that a hypervisor has to find, an ext4 that looks
//! for inodes, a disk that is fast for some gigabytes only. So all runtimes pull one image after the other, each is
//! first once, and all of them find the same.

use std::collections::HashSet;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{Effort, Figure, as_f64};
use crate::cri::Cri;
use crate::images::large;
use crate::oci::Pack;
use crate::process;
use crate::runtime::Instance;

/// `USER_HZ`: what /proc counts CPU time in.
const TICKS: f64 = 100.0;
const IMAGE_MIB: u32 = 636;
/// More than a pull takes, with the page cache of all it writes.
const TOUCHED: usize = 3 << 30;
/// How deep below a root its layers are at most: snapshotter, `snapshots`, number, `fs`, `opt`.
const DEPTH: u32 = 5;

/// What one pull took.
#[derive(Clone, Copy, Debug)]
struct Sample {
    answer: Duration,
    on_disk: Duration,
    cpu: f64,
    /// Reading all of its files once, after that.
    read: Duration,
}

struct Puller {
    name: String,
    cri: Cri,
    root: PathBuf,
    /// Layers that were there before.
    known: HashSet<PathBuf>,
    figures: Vec<Figure>,
}

/// Lets these runtimes pull in turn; the figures are in their order.
///
/// # Errors
/// As the runtimes answer, or when the disk of one of them fails.
pub async fn measure(
    instances: &[(&str, &Instance)],
    registry: Option<u32>,
    effort: Effort,
) -> Result<Vec<Vec<Figure>>> {
    let mut pullers = Vec::new();
    for (name, instance) in instances {
        pullers.push(Puller {
            name: (*name).to_owned(),
            cri: instance.cri()?.clone(),
            root: instance.folder().join("root"),
            known: HashSet::new(),
            figures: Vec::new(),
        });
    }
    let mut rates = Vec::new();
    for (pack, name) in [(Pack::Gzip, "gzip"), (Pack::Zstd, "zstd")] {
        let mut samples = vec![Vec::new(); pullers.len()];
        for number in 0..effort.pulls {
            let count = pullers.len();
            let turns = (0..count).map(|turn| (turn + number) % count);
            for turn in turns {
                let (Some(puller), Some(list)) = (pullers.get_mut(turn), samples.get_mut(turn))
                else {
                    continue;
                };
                let sample = puller
                    .pull(&large::reference(pack, number), registry)
                    .await?;
                eprintln!("{}, {name} {number}: {sample:.2?}", puller.name);
                list.push(sample);
            }
            if let Some(puller) = pullers.first() {
                rates.push(puller.disk_rate().await?);
            }
        }
        for (puller, list) in pullers.iter_mut().zip(&samples) {
            puller.sum_up(name, list);
        }
    }
    let rate = median(rates);
    Ok(pullers
        .into_iter()
        .map(|mut puller| {
            puller.figures.push(Figure::new(
                "the disk's own rate for as many bytes",
                "MiB/s",
                rate,
            ));
            puller.figures
        })
        .collect())
}

impl Puller {
    /// From the registry on the loopback to complete and on the disk: `syncfs` is part of the time, for whoever did
    /// not sync on its own.
    async fn pull(&mut self, reference: &str, registry: Option<u32>) -> Result<Sample> {
        self.sync().await?;
        tokio::task::spawn_blocking(|| drop(black_box(vec![1_u8; TOUCHED]))).await?;
        let ticks = ticks(registry);
        let start = Instant::now();
        self.cri.pull(reference).await?;
        let answer = start.elapsed();
        self.sync().await?;
        let on_disk = start.elapsed();
        let cpu = as_f64(self::ticks(registry).saturating_sub(ticks)) / TICKS;
        Ok(Sample {
            answer,
            on_disk,
            cpu,
            read: self.read_new_layers().await?,
        })
    }

    /// How long it takes to read every file of the layers that have come: from memory where the runtime left them there.
    async fn read_new_layers(&mut self) -> Result<Duration> {
        let mut layers = Vec::new();
        find_layers(&self.root, DEPTH, &mut layers)?;
        layers.retain(|layer| self.known.insert(layer.clone()));
        tokio::task::spawn_blocking(move || {
            let start = Instant::now();
            for layer in layers {
                warm(&layer)?;
            }
            Ok(start.elapsed())
        })
        .await?
    }

    fn sum_up(&mut self, pack: &str, samples: &[Sample]) {
        let of = |value: fn(&Sample) -> f64| median(samples.iter().map(value).collect());
        let what = format!("pull of {IMAGE_MIB} MiB in 6 layers, {pack}");
        self.figures.extend([
            Figure::new(
                &format!("{what}, answer"),
                "s",
                of(|one| one.answer.as_secs_f64()),
            ),
            Figure::new(
                &format!("{what}, on the disk"),
                "s",
                of(|one| one.on_disk.as_secs_f64()),
            ),
            Figure::new(
                &format!("{what}, on the disk, and every file of it read once"),
                "s",
                of(|one| (one.on_disk + one.read).as_secs_f64()),
            ),
            Figure::new(
                &format!("CPU of the machine for the pull, {pack}, registry left out"),
                "s",
                of(|one| one.cpu),
            ),
        ]);
    }

    async fn sync(&self) -> Result<()> {
        let root = self.root.clone();
        tokio::task::spawn_blocking(move || {
            let folder = std::fs::File::open(root)?;
            rustix::fs::syncfs(folder).context("syncfs")
        })
        .await?
    }

    async fn disk_rate(&self) -> Result<f64> {
        let file = self.root.join("bench-disk");
        tokio::task::spawn_blocking(move || {
            use std::io::Write as _;
            let chunk = vec![0x5a_u8; 1 << 20];
            let start = Instant::now();
            let mut out = std::fs::File::create(&file)?;
            for _ in 0..IMAGE_MIB {
                out.write_all(&chunk)?;
            }
            out.sync_all()?;
            let took = start.elapsed();
            std::fs::remove_file(&file)?;
            Ok(f64::from(IMAGE_MIB) / took.as_secs_f64())
        })
        .await?
    }
}

fn ticks(registry: Option<u32>) -> u64 {
    let registry = registry.map_or(0, process::cpu_ticks);
    process::machine_ticks().saturating_sub(registry)
}

fn median(mut list: Vec<f64>) -> Option<f64> {
    list.sort_by(f64::total_cmp);
    list.get(list.len() / 2).copied()
}

/// The unpacked layers below a runtime's root: both have them in directories called `fs`, and those of the large images
/// have an `opt`.
fn find_layers(folder: &Path, depth: u32, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let path = entry.path();
        if path.ends_with("fs/opt") {
            found.push(path);
        } else if depth > 0 {
            find_layers(&path, depth - 1, found)?;
        }
    }
    Ok(())
}

/// Reads every file below a folder. What a registry serves is read like this, so that the first who asks it does not wait
/// for the disk.
///
/// # Errors
/// When a file cannot be read.
pub fn warm(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            warm(&entry.path())?;
        } else {
            let mut file = std::fs::File::open(entry.path())?;
            std::io::copy(&mut file, &mut std::io::sink())
                .with_context(|| format!("reading {}", entry.path().display()))?;
        }
    }
    Ok(())
}
