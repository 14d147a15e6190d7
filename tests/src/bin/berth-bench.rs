//! Measures Berth and containerd in turn on this machine, with the same images and the same CNI configuration, and
//! writes a table.

// One future at a time.
#![allow(clippy::large_futures)]

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_tests::bench::table::{Column, markdown};
use berth_tests::bench::{Bench, Effort, Part, pulls};
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
    let kept = paths::build_dir().join("bench-registry");
    let registry = Registry::start(&kept).await?;
    push(&registry).await?;
    pulls::warm(&kept)?;
    let tables = machine::tables();
    let mut rig = Rig {
        subjects: args.subjects,
        effort: if args.quick {
            Effort::QUICK
        } else {
            Effort::FULL
        },
        hosts: registry.write_hosts(&work.path().join("hosts"))?,
        registry: registry.pid(),
        started: Vec::new(),
    };
    settle(args.quick).await;
    let columns = machine::unless_interrupted(rig.measure(&args.only)).await;
    let logs = rig.sweep().await;
    machine::forget_plugin_tables(&tables);
    report(
        &args
            .out
            .unwrap_or_else(|| paths::build_dir().join("bench.md")),
        &columns.with_context(|| format!("the runtimes' logs end with:\n{logs}"))?,
    )
}

/// The runtimes under measurement.
struct Rig {
    subjects: Vec<Subject>,
    effort: Effort,
    hosts: PathBuf,
    registry: Option<u32>,
    /// Their stores stay until the end: see `settle`.
    started: Vec<Instance>,
}

impl Rig {
    async fn measure(&mut self, parts: &[Part]) -> Result<Vec<Column>> {
        let mut columns: Vec<_> = self
            .subjects
            .iter()
            .map(|subject| Column {
                name: subject.name().to_owned(),
                figures: Vec::new(),
            })
            .collect();
        if parts != [Part::Pulls] {
            for (subject, column) in self.subjects.clone().into_iter().zip(&mut columns) {
                eprintln!("{}:", subject.name());
                let effort = self.effort;
                let instance = self.start(subject).await?;
                column.figures = Bench::new(instance, effort).await?.run(parts).await?;
                instance.sweep().await;
                rustix::fs::sync();
            }
        }
        if parts.contains(&Part::Pulls) {
            let before = self.started.len();
            for subject in self.subjects.clone() {
                self.start(subject).await?;
            }
            let names = self.subjects.iter().map(|subject| subject.name());
            let pulling: Vec<_> = names.zip(self.started.iter().skip(before)).collect();
            let figures = pulls::measure(&pulling, self.registry, self.effort).await?;
            for (column, figures) in columns.iter_mut().zip(figures) {
                column.figures.extend(figures);
            }
        }
        Ok(columns)
    }

    async fn start(&mut self, subject: Subject) -> Result<&mut Instance> {
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
            hosts: self.hosts.clone(),
            extra: String::new(),
            program: None,
        };
        self.started.push(Instance::start(options).await?);
        self.started.last_mut().context("it was just started")
    }

    /// Ends everything; the last lines of all logs.
    async fn sweep(&mut self) -> String {
        let mut logs = String::new();
        for instance in &mut self.started {
            let _ = writeln!(logs, "{}", instance.log_tail());
            instance.sweep().await;
        }
        logs
    }
}

/// ext4 does not use an inode again for a minute after it was deleted, or for six when its block of the table waits
/// to be written, and is slow where most are like that: nobody is to pay for what was deleted before, neither ahead
/// of the first subject nor by one for the next.
async fn settle(quick: bool) {
    rustix::fs::sync();
    let wait = Duration::from_mins(if quick { 1 } else { 6 });
    eprintln!(
        "waiting for {} s, until the disk has forgotten what was deleted on it",
        wait.as_secs()
    );
    tokio::time::sleep(wait).await;
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
