//! Runs critest against a daemon of its own, and compares the outcome with the lists in `tests/critest`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use berth_tests::critest::{self, Lists, Outcome, Verdict};
use berth_tests::registry::Registry;
use berth_tests::runtime::{Instance, Kind, Net, Options};
use berth_tests::{images, machine, paths};
use clap::{Parser, ValueEnum};
use tokio::process::Command;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Network {
    /// Berth's own network
    Builtin,
    /// the CNI plugins
    Cni,
}

/// Runs critest. The runtime is Berth, or what `BERTH_TEST_RUNTIME` says.
#[derive(Debug, Parser)]
struct Args {
    /// How pods get their addresses.
    #[arg(long, value_enum, default_value = "cni")]
    net: Network,
    /// Run what waits too, and say which of it passes.
    #[arg(long)]
    all: bool,
    /// Run only specs that match this expression; the lists are not compared then.
    #[arg(long)]
    focus: Option<String>,
    /// Keep the whole output of critest here.
    #[arg(long)]
    log: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let critest = paths::tool("critest")?;
    let lists = Lists::read(&paths::workspace().join("tests/critest"))?;
    let work = tempfile::Builder::new().prefix("bt-critest-").tempdir()?;
    lists.check(&suite(&critest, work.path()).await?)?;
    println!(
        "critest: {} specs, {} required, {} waiting",
        lists.required.len() + lists.waiting.len(),
        lists.required.len(),
        lists.waiting.len()
    );
    let tables = machine::tables();
    let registry = Registry::start(&work.path().join("registry")).await?;
    let hosts = registry.write_hosts(&work.path().join("hosts"))?;
    images::push_all(registry.client()).await?;
    let net = match args.net {
        Network::Builtin => Net::Builtin,
        Network::Cni => Net::Cni,
    };
    let options = Options {
        kind: Kind::from_env()?,
        net,
        hosts,
        extra: String::new(),
        program: None,
    };
    let mut instance = Instance::start(options).await?;
    let start = Instant::now();
    let work_to_do = run(&critest, &args, &lists, &instance, work.path());
    let outcome = machine::unless_interrupted(work_to_do).await;
    println!("critest: ran for {:.0} s", start.elapsed().as_secs_f64());
    let log = instance.log_tail();
    instance.sweep().await;
    // Without plugins there are none of ours, and another run beside this one may have made some.
    if matches!(args.net, Network::Cni) {
        machine::forget_plugin_tables(&tables);
    }
    let specs = outcome.with_context(|| format!("the daemon's last words:\n{log}"))?;
    if args.focus.is_some() {
        return Ok(print_focus(&specs));
    }
    let network = match args.net {
        Network::Builtin => "builtin",
        Network::Cni => "cni",
    };
    Ok(print(network, &critest::judge(&lists, &specs)))
}

/// Every spec of the suite, from a dry run.
async fn suite(critest: &Path, work: &Path) -> Result<BTreeMap<String, Outcome>> {
    let report = work.join("suite.xml");
    let output = Command::new(critest)
        .current_dir(work)
        .args([
            "-ginkgo.dry-run",
            "-ginkgo.no-color",
            "-ginkgo.junit-report",
        ])
        .arg(&report)
        .output()
        .await?;
    let text = std::fs::read_to_string(&report).with_context(|| {
        format!(
            "critest gave no list: {}",
            String::from_utf8_lossy(&output.stderr)
        )
    })?;
    critest::report(&text)
}

async fn run(
    critest: &Path,
    args: &Args,
    lists: &Lists,
    instance: &Instance,
    work: &Path,
) -> Result<BTreeMap<String, Outcome>> {
    let report = work.join("report.xml");
    let log = args.log.clone().unwrap_or_else(|| work.join("critest.log"));
    let file = std::fs::File::create(&log)?;
    let mut command = Command::new(critest);
    command
        .current_dir(work)
        .arg("-runtime-endpoint")
        .arg(format!("unix://{}", instance.socket().display()))
        // Else it is that of /etc/crictl.yaml.
        .arg("-image-endpoint")
        .arg(format!("unix://{}", instance.socket().display()))
        .args([
            "-config",
            "/dev/null",
            "-ginkgo.no-color",
            "-ginkgo.timeout=15m",
        ])
        .arg("-ginkgo.junit-report")
        .arg(&report)
        .kill_on_drop(true)
        .stdin(std::process::Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    if let Some(focus) = &args.focus {
        command.arg("-ginkgo.focus").arg(focus);
    } else if !args.all {
        command.arg("-ginkgo.skip").arg(lists.skip_expression());
    }
    let status = command.status().await?;
    let Ok(text) = std::fs::read_to_string(&report) else {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        bail!(
            "critest ended with {status} and no report:\n{}",
            lines[lines.len().saturating_sub(30)..].join("\n")
        );
    };
    critest::report(&text)
}

fn print_focus(specs: &BTreeMap<String, Outcome>) -> ExitCode {
    let mut good = true;
    for (name, outcome) in specs
        .iter()
        .filter(|(_, outcome)| **outcome != Outcome::Skipped)
    {
        println!("{outcome:?}: {name}");
        good &= *outcome == Outcome::Passed;
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn print(network: &str, verdict: &Verdict) -> ExitCode {
    for (name, why) in &verdict.failed {
        println!("FAILED  {name}\n      {why}");
    }
    for name in &verdict.ripe {
        println!("ripe    {name}: it waits, yet passed");
    }
    for (reason, count) in &verdict.waiting {
        println!("waiting {count:>2} for {reason} ({network})");
    }
    println!(
        "critest: {} passed, {} failed, {} skipped",
        verdict.passed,
        verdict.failed.len(),
        verdict.waiting.values().sum::<usize>()
    );
    if verdict.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
