//! Builds the test images and serves them, or writes one small image as an archive.

use std::path::PathBuf;

use anyhow::Result;
use berth_tests::images::{self, Kit};
use berth_tests::registry::Registry;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// Builds the images of the tests from what `hack/tools.sh` made.
#[derive(Debug, Parser)]
enum Command {
    /// Starts a registry with all images and a hosts.toml for each public one; ends with Ctrl-C or SIGTERM.
    Serve {
        /// Where the store goes.
        #[arg(long)]
        store: PathBuf,
        /// Where the hosts.toml files go.
        #[arg(long)]
        hosts: PathBuf,
        /// The large image of the pull benchmark too.
        #[arg(long)]
        large: bool,
    },
    /// Writes busybox as an OCI archive.
    Archive {
        /// The name inside the archive.
        #[arg(long, default_value = "berth.test/busybox:demo")]
        name: String,
        /// The file.
        out: PathBuf,
    },
}

#[tokio::main]
async fn main() -> Result<()> {
    match Command::parse() {
        Command::Serve {
            store,
            hosts,
            large,
        } => {
            let registry = Registry::start(&store).await?;
            registry.write_hosts(&hosts)?;
            images::push_all(registry.client()).await?;
            if large {
                images::large::push(&registry.client(), 1).await?;
            }
            println!("{}", registry.address());
            // The registry's process ends with `registry`, and not at all if a signal ends this one.
            let mut told = signal(SignalKind::terminate())?;
            tokio::select! {
                end = tokio::signal::ctrl_c() => end?,
                _ = told.recv() => {}
            }
        }
        Command::Archive { name, out } => {
            std::fs::write(out, Kit::new()?.busybox()?.oci_archive(&name)?)?;
        }
    }
    Ok(())
}
