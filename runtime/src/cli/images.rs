//! `berth images`: what an operator does with the images of a running daemon.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::print;
use crate::admin::api::ImageSummary;
use crate::admin::client::Client;
use crate::config::Config;
use crate::model::chain;

#[derive(Debug, Args)]
pub(super) struct ImagesArgs {
    /// Admin socket of the daemon [default: the configured one]
    #[arg(long, global = true, value_name = "SOCKET")]
    admin: Option<PathBuf>,
    /// Configuration file that names the socket
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: ImagesCommand,
}

#[derive(Debug, Subcommand)]
enum ImagesCommand {
    /// Load the images of an OCI layout or `docker save` archive
    Load {
        /// The archive; "-" is standard input
        file: PathBuf,
    },
    /// List the images
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove images with all their names
    Rm {
        /// Name, digest, id or unique prefix of an id
        #[arg(required = true)]
        references: Vec<String>,
    },
}

pub(super) fn run(args: &ImagesArgs) -> Result<(), String> {
    let socket = match &args.admin {
        Some(socket) => socket.clone(),
        None => {
            Config::load(args.config.as_deref(), &[])
                .map_err(|e| chain(&e))?
                .admin
        }
    };
    let client = Client::new(socket);
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the async runtime: {e}"))?
        .block_on(act(&client, &args.command))
}

async fn act(client: &Client, command: &ImagesCommand) -> Result<(), String> {
    match command {
        ImagesCommand::Load { file } => {
            let loaded = if file == Path::new("-") {
                client.load_stream(std::io::stdin()).await
            } else {
                let path =
                    std::path::absolute(file).map_err(|e| format!("{}: {e}", file.display()))?;
                client.load_file(&path).await
            };
            let loaded = loaded.map_err(|e| chain(&e))?;
            print(
                &loaded
                    .iter()
                    .map(|image| format!("loaded {}\n", name(image)))
                    .collect::<String>(),
            )
        }
        ImagesCommand::List { json } => {
            let images = client.images().await.map_err(|e| chain(&e))?;
            if *json {
                let text = serde_json::to_string_pretty(&images).map_err(|e| e.to_string())?;
                return print(&format!("{text}\n"));
            }
            print(&table(&images))
        }
        ImagesCommand::Rm { references } => {
            for reference in references {
                client.remove(reference).await.map_err(|e| chain(&e))?;
                print(&format!("removed {reference}\n"))?;
            }
            Ok(())
        }
    }
}

fn name(image: &ImageSummary) -> &str {
    image
        .tags
        .first()
        .or(image.digests.first())
        .unwrap_or(&image.id)
}

fn table(images: &[ImageSummary]) -> String {
    let width = images
        .iter()
        .map(|i| name(i).len())
        .max()
        .unwrap_or(0)
        .max(5);
    let mut text = format!("{:width$}  {:12}  SIZE\n", "IMAGE", "ID");
    for image in images {
        let id: String = image
            .id
            .trim_start_matches("sha256:")
            .chars()
            .take(12)
            .collect();
        text.push_str(&format!(
            "{:width$}  {id:12}  {}\n",
            name(image),
            bytes(image.size)
        ));
    }
    text
}

/// Whole numbers of the unit that leaves one to four digits.
fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB"];
    let mut value = count;
    let mut unit = 0;
    while value >= 10_000 && unit + 1 < units.len() {
        value = value.div_ceil(1024);
        unit += 1;
    }
    format!("{value} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(10_000), "10 KiB");
        assert_eq!(bytes(300 << 20), "300 MiB");
    }

    #[test]
    fn the_table_names_images_by_their_best_name() {
        let image = ImageSummary {
            id: format!("sha256:{}", "a".repeat(64)),
            tags: vec!["docker.io/library/x:1".into()],
            digests: vec![],
            size: 5,
            pinned: false,
        };
        let text = table(&[image]);
        assert!(
            text.contains("docker.io/library/x:1  aaaaaaaaaaaa  5 B"),
            "{text}"
        );
    }
}
