//! The monitor as a process, with a fake worker in place of the real one: this program, started
//! again under the worker's name. Runs one test after the other; needs root.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::exit,
    reason = "a test that cannot go on ends"
)]

mod execs;
mod fake;
mod harness;
mod life;
mod limits;
mod logs;

use std::panic::catch_unwind;
use std::process::ExitCode;

/// A named test.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    let mut args = std::env::args();
    if args.next().as_deref() == Some("berth-worker") {
        fake::main();
        return ExitCode::SUCCESS;
    }
    let args: Vec<String> = args.collect();
    let filters: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let tests = [life::TESTS, execs::TESTS, logs::TESTS, limits::TESTS].concat();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|f| name.contains(*f));
    let mut failed = Vec::new();
    let mut passed = 0;
    for (name, test) in tests.into_iter().filter(|t| wanted(t.0)) {
        if args.iter().any(|a| a == "--list") {
            println!("{name}: test");
            continue;
        }
        match catch_unwind(test) {
            Ok(()) => {
                passed += 1;
                println!("test {name} ... ok");
            }
            Err(_) => {
                failed.push(name);
                println!("test {name} ... FAILED");
            }
        }
    }
    println!(
        "\ntest result: {passed} passed; {} failed {failed:?}",
        failed.len()
    );
    ExitCode::from(u8::from(!failed.is_empty()))
}
