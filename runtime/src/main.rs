//! The `berth` executable: parse, then do.

use std::process::ExitCode;

fn main() -> ExitCode {
    berth::cli::main()
}
