//! Measures Berth and containerd in turn on this machine, with the same images and the same CNI configuration, and
//! writes a table.

// One future at a time.
#![allow(clippy::large_futures)]

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::bench::table::{Column, markdown};
use berth_tests::bench::{Bench, Effort, Part};
use berth_tests::registry::Registry;
use berth_tests::runtime::{Instance, Kind, Net, Options};
use berth_tests::{images, machine, paths};
use clap::{Parser, ValueEnum};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// containerd and runc with the CNI plugins
    Containerd,
    /// Berth with the same CNI plugins and configuration
    Berth,
    /// Berth with its own network
    BerthBuiltin,
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd, CNI",
            Self::Berth => "Berth, CNI",
            Self::BerthBuiltin => "Berth, built-in",
        }
    }
}

/// Measures container runtimes through the CRI.
#[derive(Debug, Parser)]
struct Args {
    /// What is measured, in this order; the others are compared with the first.
    #[arg(value_enum, default_values = ["containerd", "berth", "berth-builtin"])]
    subjects: Vec<Subject>,
    /// A quick look instead of figures to publish.
    #[arg(long)]
    quick: bool,
    /// Only a part of it.
    #[arg(long, default_values_t = Part::ALL, value_enum)]
    only: Vec<Part>,
    /// Where the table goes.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(
        rustix::process::geteuid().is_root(),
        "the benchmark needs root"
    );
    let work = tempfile::Builder::new().prefix("bt-bench-").tempdir()?;
    // The large image is made once and kept.
    let registry = Registry::start(&paths::build_dir().join("bench-registry")).await?;
    let hosts = registry.write_hosts(&work.path().join("hosts"))?;
    push(&registry).await?;
    let tables = machine::tables();
    let effort = if args.quick {
        Effort::QUICK
    } else {
        Effort::FULL
    };
    let mut columns = Vec::new();
    for subject in args.subjects {
        settle().await;
        eprintln!("{}:", subject.name());
        let options = Options {
            kind: if subject == Subject::Containerd {
                Kind::Containerd
            } else {
                Kind::Berth
            },
            net: if subject == Subject::BerthBuiltin {
                Net::Builtin
            } else {
                Net::CniIptables
            },
            slot: 198,
            hosts: hosts.clone(),
            extra: String::new(),
        };
        let mut instance = Instance::start(options).await?;
        let work = measure(&instance, registry.pid(), effort, &args.only);
        let figures = machine::unless_interrupted(work).await;
        let log = instance.log_tail();
        instance.sweep().await;
        let figures = figures.with_context(|| format!("{}; its log:\n{log}", subject.name()))?;
        columns.push(Column {
            name: subject.name().to_owned(),
            figures,
        });
    }
    machine::forget_plugin_tables(&tables);
    report(
        &args
            .out
            .unwrap_or_else(|| paths::build_dir().join("bench.md")),
        &columns,
    )
}

async fn measure(
    instance: &Instance,
    registry: Option<u32>,
    effort: Effort,
    parts: &[Part],
) -> Result<Vec<berth_tests::bench::Figure>> {
    Bench::new(instance, registry, effort)
        .await?
        .run(parts)
        .await
}

/// ext4 leaves inodes alone that were deleted within the last minute, and is slow where most were: nobody is to
/// pay for who was there before.
async fn settle() {
    rustix::fs::sync();
    eprintln!("waiting for a minute, until the disk has forgotten what was deleted on it");
    tokio::time::sleep(Duration::from_secs(75)).await;
}

async fn push(registry: &Registry) -> Result<()> {
    images::push_all(registry.client()).await?;
    images::large::push(&registry.client(), Effort::FULL.pulls).await
}

fn report(out: &PathBuf, columns: &[Column]) -> Result<()> {
    let cores = std::thread::available_parallelism()?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "Measured on {cores} cores, kernel {}.\n",
        kernel.trim()
    );
    text.push_str(&markdown(columns));
    println!("{text}");
    std::fs::write(out, &text).with_context(|| format!("writing {}", out.display()))?;
    println!("written to {}", out.display());
    Ok(())
}
