//! `berth images` and `berth df`: what an operator does with the images of a running daemon.

mod check;
mod progress;
mod pulls;
mod save;
mod show;

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

pub(super) use pulls::{PullsArgs, run as pulls};

use super::{print, print_as_it_is};
use crate::admin::api::{ImageSummary, Loaded, PullRequest};
use crate::admin::client::{Client, Error};
use crate::config::Config;
use crate::model::chain;

/// Longest line of credentials on standard input, bytes.
const MAX_CREDENTIALS: u64 = 64 * 1024;

/// Which daemon is meant.
#[derive(Debug, Clone, Args)]
pub(super) struct DaemonArgs {
    /// Admin socket of the daemon [default: the configured one]
    #[arg(long, global = true, value_name = "SOCKET")]
    admin: Option<PathBuf>,
    /// Configuration file that names the socket
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl DaemonArgs {
    fn config(&self) -> Result<Config, String> {
        Config::load(self.config.as_deref(), &[]).map_err(|e| chain(&e))
    }

    fn client(&self) -> Result<Client, String> {
        Ok(Client::new(match &self.admin {
            Some(socket) => socket.clone(),
            None => self.config()?.admin,
        }))
    }
}

#[derive(Debug, Args)]
pub(super) struct ImagesArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
    #[command(subcommand)]
    command: ImagesCommand,
}

#[derive(Debug, Args)]
pub(super) struct DfArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum ImagesCommand {
    /// Pull images
    Pull {
        /// Names, with a tag or digest or ":latest"
        #[arg(required = true)]
        references: Vec<String>,
        /// Read "user:password" from standard input
        #[arg(long)]
        creds_stdin: bool,
        /// Say nothing but the ids
        #[arg(long, short)]
        quiet: bool,
        /// As JSON, when all are there
        #[arg(long)]
        json: bool,
    },
    /// Load the images of OCI layouts and `docker save` archives, compressed or not
    Load {
        /// Archives, or directories with an OCI layout; "-" is standard input
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Save images into one archive: an OCI layout that `docker load` and `ctr images import` take too
    Save {
        /// Names, digests or ids
        #[arg(required = true)]
        references: Vec<String>,
        /// File to write, or directory with --dir [default: standard output]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Write an OCI layout into a new directory instead of an archive
        #[arg(long, requires = "output")]
        dir: bool,
    },
    /// List the images
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell all about images, as JSON
    Inspect {
        /// Names, digests or ids
        #[arg(required = true)]
        references: Vec<String>,
    },
    /// Remove images with all their names
    Rm {
        /// Names, digests, ids or unique prefixes of ids
        #[arg(required = true)]
        references: Vec<String>,
        /// One that is not there is no error
        #[arg(long, short)]
        force: bool,
    },
    /// Remove images that have no tag and no container, and everything that no image needs
    Prune {
        /// Images with a tag and interrupted downloads, too; pinned images stay
        #[arg(long, short)]
        all: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Check every image, layer and document, by their digests
    ///
    /// Reads all bytes of the store. Works without the daemon, too. Exits with 1 when something is wrong and was not repaired.
    Check(check::CheckArgs),
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the async runtime: {e}"))
}

pub(super) fn run(args: &ImagesArgs) -> Result<(), String> {
    runtime()?.block_on(act(&args.daemon, &args.command))
}

pub(super) fn df(args: &DfArgs) -> Result<(), String> {
    let client = args.daemon.client()?;
    let used = runtime()?.block_on(client.disk_use());
    let used = used.map_err(|e| chain(&e))?;
    if args.json {
        return print_json(&used);
    }
    print(&show::disk_use(&used))
}

fn print_json(value: &impl serde::Serialize) -> Result<(), String> {
    let text = serde_json::to_string_pretty(value).map_err(|e| e.to_string())?;
    print_as_it_is(&format!("{text}\n"))
}

async fn act(daemon: &DaemonArgs, command: &ImagesCommand) -> Result<(), String> {
    let client = daemon.client()?;
    match command {
        ImagesCommand::Pull {
            references,
            creds_stdin,
            quiet,
            json,
        } => {
            let output = match (*json, *quiet) {
                (true, _) => Output::Json,
                (false, true) => Output::Ids,
                (false, false) => Output::Lines,
            };
            pull(&client, references, *creds_stdin, output).await
        }
        ImagesCommand::Load { files, json } => load(&client, files, *json).await,
        ImagesCommand::Save {
            references,
            output,
            dir,
        } => save::save(&client, references, output.as_deref(), *dir).await,
        ImagesCommand::List { json } => {
            let images = client.images().await.map_err(|e| chain(&e))?;
            if *json {
                return print_json(&images);
            }
            print(&show::table(&images))
        }
        ImagesCommand::Inspect { references } => {
            let mut all = Vec::with_capacity(references.len());
            for reference in references {
                all.push(client.inspect(reference).await.map_err(|e| chain(&e))?);
            }
            print_json(&all)
        }
        ImagesCommand::Rm { references, force } => remove(&client, references, *force).await,
        ImagesCommand::Prune { all, json } => {
            let pruned = client.prune(*all).await.map_err(|e| chain(&e))?;
            if *json {
                return print_json(&pruned);
            }
            let names = pruned.images.iter().map(|name| format!("removed {name}\n"));
            let text: String = names.collect();
            print(&format!("{text}{} freed\n", show::bytes(pruned.bytes)))
        }
        ImagesCommand::Check(args) => check::check(daemon, &client, args).await,
    }
}

/// How a pull tells of itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Output {
    Lines,
    Ids,
    Json,
}

async fn pull(
    client: &Client,
    references: &[String],
    creds_stdin: bool,
    output: Output,
) -> Result<(), String> {
    let (username, password) = match creds_stdin {
        true => credentials()?,
        false => Default::default(),
    };
    let mut all: Vec<ImageSummary> = Vec::new();
    for (done, reference) in references.iter().enumerate() {
        let request = PullRequest {
            reference: reference.clone(),
            username: username.clone(),
            password: password.clone(),
        };
        let pull = client.pull(&request);
        let pulled = if output == Output::Lines {
            progress::watch(client, reference, pull).await
        } else {
            pull.await
        };
        let pulled = pulled.map_err(|e| match &references[done + 1..] {
            [] => format!("{reference}: {}", chain(&e)),
            rest => format!(
                "{reference}: {} (not tried: {})",
                chain(&e),
                rest.join(", ")
            ),
        })?;
        for image in &pulled {
            match output {
                Output::Lines => print(&format!("pulled {reference}: {}\n", image.id))?,
                Output::Ids => print(&format!("{}\n", image.id))?,
                Output::Json => {}
            }
        }
        all.extend(pulled);
    }
    match output {
        Output::Json => print_json(&all),
        _ => Ok(()),
    }
}

/// On the command line everybody on the machine could read them.
fn credentials() -> Result<(String, String), String> {
    let mut text = String::new();
    let read = std::io::stdin()
        .take(MAX_CREDENTIALS)
        .read_to_string(&mut text);
    read.map_err(|e| format!("cannot read the credentials from standard input: {e}"))?;
    let line = text.lines().next().unwrap_or_default();
    match line.split_once(':') {
        Some((user, password)) if !user.is_empty() => Ok((user.to_owned(), password.to_owned())),
        _ => Err("standard input has no line \"user:password\"".to_owned()),
    }
}

async fn load(client: &Client, files: &[PathBuf], json: bool) -> Result<(), String> {
    let mut all: Vec<Loaded> = Vec::new();
    for file in files {
        let loaded = if file == Path::new("-") {
            if std::io::stdin().is_terminal() {
                return Err("standard input is a terminal: give it an archive".to_owned());
            }
            client.load_stream(std::io::stdin()).await
        } else if file.is_dir() {
            client.load_stream(save::read_layout(file)?).await
        } else {
            let path = std::path::absolute(file).map_err(|e| format!("{}: {e}", file.display()))?;
            client.load_file(&path).await
        };
        let loaded = loaded.map_err(|e| format!("{}: {}", file.display(), chain(&e)))?;
        if !json {
            let lines = loaded
                .iter()
                .map(|image| format!("loaded {}\n", show::loaded(image)));
            print(&lines.collect::<String>())?;
        }
        all.extend(loaded);
    }
    if json { print_json(&all) } else { Ok(()) }
}

async fn remove(client: &Client, references: &[String], force: bool) -> Result<(), String> {
    let mut failures = Vec::new();
    for reference in references {
        match client.remove(reference).await {
            Ok(()) => print(&format!("removed {reference}\n"))?,
            Err(Error::Refused { status: 404, .. }) if force => {}
            // The others can go nevertheless.
            Err(error @ Error::Refused { .. }) => failures.push(chain(&error)),
            Err(error) => return Err(chain(&error)),
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    Err(failures.join("; "))
}
