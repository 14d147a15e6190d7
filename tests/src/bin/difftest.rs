//! Runs generated pods on Berth and on containerd and compares what they see from inside. A difference that is not in
//! `tests/difftest/known.txt` is a failure; the same seed gives the same pods again.

// The futures of CRI calls are large, and here are two.
#![allow(clippy::large_futures)]
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use berth_tests::difftest::generate::Case;
use berth_tests::difftest::known::Known;
use berth_tests::difftest::{self, Seen};
use berth_tests::images;
use berth_tests::machine;
use berth_tests::registry::Registry;
use berth_tests::runtime::{Instance, Kind, Net, Options};
use clap::Parser;

/// Compares Berth with containerd from inside generated pods.
#[derive(Debug, Parser)]
struct Args {
    /// What the pods follow from; a new number each time when it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// How many pods.
    #[arg(long, default_value_t = 60)]
    count: usize,
    /// Only this one of them, with its configuration and everything that was seen.
    #[arg(long)]
    only: Option<usize>,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let seed = match args.seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    println!("difftest: seed {seed}; again with: make difftest ARGS='--seed {seed}'");
    let known = Known::read(&difftest::table())?;
    let work = tempfile::Builder::new().prefix("bt-difftest-").tempdir()?;
    let tables = machine::tables();
    let registry = Registry::start(&work.path().join("registry")).await?;
    let hosts = registry.write_hosts(&work.path().join("hosts"))?;
    images::push_odd(registry.client()).await?;
    let options = |kind| Options {
        kind,
        net: Net::Cni,
        hosts: hosts.clone(),
        extra: String::new(),
        program: None,
    };
    let mut both = [
        Instance::start(options(Kind::Berth)).await?,
        Instance::start(options(Kind::Containerd)).await?,
    ];
    let outcome = machine::unless_interrupted(run(&both, &known, seed, &args)).await;
    let logs: Vec<String> = both.iter().map(Instance::log_tail).collect();
    for instance in &mut both {
        instance.sweep().await;
    }
    machine::forget_plugin_tables(&tables);
    let good = outcome.with_context(|| format!("last words: {}", logs.join("\n---\n")))?;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn run(both: &[Instance; 2], known: &Known, seed: u64, args: &Args) -> Result<bool> {
    let start = Instant::now();
    for instance in both {
        difftest::mount_sources(instance)?;
        for image in images::odd::NAMES {
            instance.cri()?.pull(image).await?;
        }
    }
    let cases: Vec<usize> = match args.only {
        Some(one) => vec![one],
        None => (0..args.count).collect(),
    };
    let mut meant: BTreeMap<String, usize> = BTreeMap::new();
    let (mut failed, mut refused) = (0, 0);
    for &number in &cases {
        let case = Case::generate(seed, number);
        let (berth, containerd) = tokio::join!(
            difftest::look(&both[0], &case),
            difftest::look(&both[1], &case)
        );
        let (berth, containerd) = (berth?, containerd?);
        if berth.view.len() == 1 && berth.view == containerd.view {
            refused += 1;
            println!(
                "case {number} is refused by both: {}",
                one_line(&containerd.words)
            );
        }
        let found = difftest::compare(&berth, &containerd);
        let (known_ones, new): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|one| known.argument(one).is_some());
        for one in &known_ones {
            *meant
                .entry(known.argument(one).unwrap_or_default().to_owned())
                .or_default() += 1;
        }
        if args.only.is_some() {
            println!("{case:#?}\n{:#?}\n{:#?}", berth.view, containerd.view);
        }
        if !new.is_empty() {
            failed += 1;
            println!("case {number}: {}", summary(&case));
            for one in &new {
                println!(
                    "  {}\n    berth      {:?}\n    containerd {:?}",
                    one.key, one.berth, one.containerd
                );
            }
            told(&berth, &containerd);
        }
    }
    for (argument, count) in &meant {
        println!("{count:>4} times: {argument}");
    }
    println!(
        "difftest: {refused} of the pods were refused by both; {:.0} s",
        start.elapsed().as_secs_f64()
    );
    println!(
        "difftest: {} passed, {failed} failed, 0 skipped",
        cases.len() - failed
    );
    Ok(failed == 0)
}

fn summary(case: &Case) -> String {
    let image = case
        .container
        .image
        .as_ref()
        .map(|image| image.image.as_str());
    format!("{} {:?}", image.unwrap_or_default(), case.container.command)
}

fn one_line(words: &str) -> String {
    words.replace('\n', " ").chars().take(300).collect()
}

fn told(berth: &Seen, containerd: &Seen) {
    for (name, seen) in [("berth", berth), ("containerd", containerd)] {
        if !seen.words.is_empty() {
            println!("  {name} said: {}", seen.words.trim_end());
        }
    }
}
