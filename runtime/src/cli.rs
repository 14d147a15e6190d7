//! The command line.

mod explain;
mod images;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::config::{self, Config};
use crate::model::{chain, lines_for_terminal};

/// A Kubernetes container runtime.
#[derive(Debug, Parser)]
#[command(name = "berth", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the CRI until told to stop; containers go on without the daemon
    Serve(ConfigArgs),
    /// Show the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Pull, load, save, list, remove and check the images of a running daemon
    Images(images::ImagesArgs),
    /// Show the pulls under way, whoever asked for them
    Pulls(images::PullsArgs),
    /// Show what takes room in the store
    Df(images::DfArgs),
    /// Tell what would be done, step by step, without doing it
    #[command(subcommand)]
    Explain(explain::ExplainCommand),
    /// Print the completions of a shell, for that shell to read
    Completions {
        /// Which shell
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print every key with its value and where it came from
    Show(ConfigArgs),
    /// Print a configuration file with every key and its default, commented out
    Default,
}

/// Flags that say which configuration is meant.
#[derive(Debug, Clone, Args)]
struct ConfigArgs {
    /// Configuration file [default: /etc/berth/config.toml, which need not exist]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Persistent state (wins over the file)
    #[arg(long, value_name = "DIR")]
    root: Option<String>,
    /// Volatile state (wins over the file)
    #[arg(long, value_name = "DIR")]
    state: Option<String>,
    /// CRI socket (wins over the file)
    #[arg(long, value_name = "SOCKET")]
    listen: Option<String>,
    /// Log filter, e.g. "debug" (wins over the file)
    #[arg(long, value_name = "FILTER")]
    log_level: Option<String>,
}

impl ConfigArgs {
    fn load(&self) -> Result<Config, crate::config::Error> {
        let flags = [
            ("root", "--root", &self.root),
            ("state", "--state", &self.state),
            ("listen", "--listen", &self.listen),
            ("log_level", "--log-level", &self.log_level),
        ];
        let given: Vec<_> = flags
            .into_iter()
            .filter_map(|(key, flag, value)| value.clone().map(|value| (key, flag, value)))
            .collect();
        Config::load(self.config.as_deref(), &given)
    }
}

/// The command line as data: its manual pages are made from it.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Parses the arguments and does what they say.
pub fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(args) => args
            .load()
            .map_err(|e| chain(&e))
            .and_then(crate::daemon::main),
        Command::Config(ConfigCommand::Show(args)) => args
            .load()
            .map_err(|e| chain(&e))
            .and_then(|config| print(&config.show())),
        Command::Config(ConfigCommand::Default) => print(&config::template()),
        Command::Images(args) => images::run(&args),
        Command::Pulls(args) => images::pulls(&args),
        Command::Df(args) => images::df(&args),
        Command::Explain(command) => explain::run(&command),
        Command::Completions { shell } => print_as_it_is(&completions(shell)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            // Nobody is left to tell when standard error is gone too.
            let problem = lines_for_terminal(&problem);
            let _ = writeln!(std::io::stderr(), "berth: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "berth", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes for people to standard output, with what could steer a terminal escaped.
fn print(text: &str) -> Result<(), String> {
    print_as_it_is(&lines_for_terminal(text))
}

/// Writes for programs to standard output; a reader that has left (`berth … | head`) is no error.
fn print_as_it_is(text: &str) -> Result<(), String> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(format!("cannot write: {e}")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_shell_gets_completions_of_every_command() {
        for shell in Shell::value_variants() {
            let script = completions(*shell);
            for command in command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {command}");
            }
        }
    }
}
