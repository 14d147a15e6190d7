//! Berth's integration tests: a real daemon, real containers, a real registry, real CNI plugins.
//!
//! `cargo test -p berth-tests --test integration -- [--jobs N] [--list] [NAME...]`, as root, after `make build`.
//! With `BERTH_TEST_RUNTIME=containerd` the same tests judge containerd.

// A future of a test may be as large as it likes: there are three of them.
#![allow(clippy::large_futures)]

mod beside;
mod certificates;
mod commands;
mod container;
mod crash;
mod daemon;
mod destinations;
mod endings;
mod exec;
mod foreign;
mod golden;
mod holes;
mod identity;
mod image;
mod logs;
mod memory;
mod monitors;
mod network;
mod pod;
mod records;
mod registry;
mod resources;
mod restart;
mod resume;
mod security;
mod stats;
mod status;
mod storage;
mod tree;
mod upgrade;
mod upkeep;
mod volumes;
mod waiting;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use berth_tests::runner::{self, Test};
use clap::Parser;

/// Runs the integration tests.
#[derive(Debug, Parser)]
struct Args {
    /// How many tests run side by side.
    #[arg(long, default_value_t = 3)]
    jobs: usize,
    /// Only print the names.
    #[arg(long)]
    list: bool,
    /// Only print the places at which the tests of crashes have the daemon die.
    #[arg(long)]
    crash_points: bool,
    /// Parts of names; without any, everything runs.
    names: Vec<String>,
}

fn tests() -> Vec<Test> {
    [
        pod::TESTS,
        container::TESTS,
        destinations::TESTS,
        status::TESTS,
        resources::TESTS,
        stats::TESTS,
        image::TESTS,
        foreign::TESTS,
        storage::TESTS,
        registry::TESTS,
        certificates::TESTS,
        resume::TESTS,
        network::TESTS,
        records::TESTS,
        restart::TESTS,
        crash::TESTS,
        logs::TESTS,
        endings::TESTS,
        exec::TESTS,
        commands::TESTS,
        monitors::TESTS,
        daemon::TESTS,
        beside::TESTS,
        security::TESTS,
        holes::TESTS,
        identity::TESTS,
        memory::TESTS,
        tree::TESTS,
        waiting::TESTS,
        upkeep::TESTS,
        volumes::TESTS,
        // Not among the tests: these need programs of an earlier version, or write files.
        if upgrade::is_wanted() {
            upgrade::TESTS
        } else {
            &[]
        },
        if golden::is_wanted() {
            golden::TESTS
        } else {
            &[]
        },
    ]
    .concat()
}

fn main() -> Result<ExitCode> {
    // The daemon that dies is this very executable: it has the crash points, and what is released has not.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|word| word == "serve")
    {
        return Ok(berth::cli::main());
    }
    run(Args::parse())
}

#[tokio::main]
async fn run(args: Args) -> Result<ExitCode> {
    let tests = tests();
    if args.crash_points {
        for point in berth::crash::POINTS {
            println!("{point}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.list {
        for test in &tests {
            println!("{}", test.name);
        }
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "the integration tests need root"
    );
    let count = runner::run(&tests, &args.names, args.jobs).await?;
    println!(
        "integration: {} passed, {} failed, {} skipped",
        count.passed, count.failed, count.skipped
    );
    Ok(if count.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
