//! `berth explain`: why something is as it is.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{print, print_as_it_is};
use crate::admin::client::{Client, Error};
use crate::config::Config;
use crate::model::{ExplainStep, Explanation, chain};
use crate::registry::{self, Reference, Registry};

#[derive(Debug, Subcommand)]
pub(super) enum ExplainCommand {
    /// Which hosts a pull asks, what each answers, and what would be pulled
    ///
    /// A running daemon is asked to find out, for its proxies, its network and its credentials are those that count;
    /// without one, this command asks the registries itself with the daemon's configuration. Nothing is pulled, and no
    /// credentials are shown.
    Image(ImageArgs),
}

#[derive(Debug, Args)]
pub(super) struct ImageArgs {
    /// Name of the image, as in a pod
    reference: String,
    /// Credentials in the form of a pull secret (.dockerconfigjson), instead of the node's
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Admin socket of the daemon [default: the configured one]
    #[arg(long, value_name = "SOCKET")]
    admin: Option<PathBuf>,
    /// Configuration file of the daemon
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(command: &ExplainCommand) -> Result<(), String> {
    let ExplainCommand::Image(args) = command;
    let config = Config::load(args.config.as_deref(), &[]).map_err(|e| chain(&e))?;
    let told = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| format!("cannot start the async runtime: {e}"))?
        .block_on(ask(args, &config))?;
    match args.json {
        true => {
            let text = serde_json::to_string_pretty(&told).map_err(|e| e.to_string())?;
            print_as_it_is(&format!("{text}\n"))?;
        }
        false => print(&page(&told))?,
    }
    match told.error {
        None => Ok(()),
        Some(_) => Err(format!("{} cannot be pulled", told.reference)),
    }
}

async fn ask(args: &ImageArgs, config: &Config) -> Result<Explanation, String> {
    let reference: Reference = args.reference.parse().map_err(|e| chain(&e))?;
    let auth = match &args.credentials {
        Some(file) => {
            let found = registry::of_pull_secret(file, &reference);
            Some(found.map_err(|e| chain(&e))?)
        }
        None => None,
    };
    let socket = args.admin.as_ref().unwrap_or(&config.admin);
    let client = Client::new(socket);
    match client.explain(&args.reference, auth.clone()).await {
        // A socket that was named is meant.
        Err(Error::Connect { .. }) if args.admin.is_none() => {}
        told => return told.map_err(|e| chain(&e)),
    }
    let registry = Registry::new(config);
    Ok(registry::explain(&registry, &reference, auth.as_ref()).await)
}

/// The explanation for a person.
fn page(told: &Explanation) -> String {
    let mut text = format!("reference  {}\n", told.reference);
    let _ = match &told.hosts_file {
        Some(file) => writeln!(text, "hosts      by {}", file.display()),
        // There may be one that cannot be read.
        None if told.hosts.is_empty() => Ok(()),
        None => writeln!(text, "hosts      no hosts.toml: the registry itself"),
    };
    for (number, host) in told.hosts.iter().enumerate() {
        let _ = writeln!(text, "  {}. {} ({})", number + 1, host.url, host.role);
        let mut facts = vec![
            format!("may {}", host.capabilities.join(", ")),
            format!("TLS: {}", host.tls),
            format!("credentials: {}", host.credentials),
        ];
        facts.extend(host.proxy.iter().map(|proxy| format!("proxy: {proxy}")));
        if !host.headers.is_empty() {
            facts.push(format!("headers: {}", host.headers.join(", ")));
        }
        let _ = writeln!(text, "     {}", facts.join("; "));
    }
    if !told.steps.is_empty() {
        text.push_str("asked\n");
    }
    for step in &told.steps {
        step_lines(&mut text, step);
    }
    if let Some(image) = &told.image {
        let _ = write!(
            text,
            "image      {}\n  digest   {}\n  manifest {}\n  platform {}\n  layers   {}\n  size     {} bytes, compressed\n",
            image.id, image.digest, image.manifest, image.platform, image.layers, image.size
        );
        let _ = match image.stored {
            Some(true) => writeln!(text, "  stored   yes"),
            Some(false) => writeln!(text, "  stored   no"),
            None => writeln!(text, "  stored   unknown: the daemon does not run"),
        };
    }
    if let Some(error) = &told.error {
        let _ = writeln!(text, "error      {error}");
    }
    text
}

fn step_lines(text: &mut String, step: &ExplainStep) {
    let outcome = match &step.error {
        None => "ok",
        Some(_) => "failed",
    };
    let _ = writeln!(text, "  {} at {}: {outcome}", step.what, step.host);
    for exchange in &step.exchanges {
        let answer = match (exchange.status, &exchange.error) {
            (Some(status), _) => status.to_string(),
            (None, Some(error)) => error.clone(),
            (None, None) => "nothing".to_owned(),
        };
        let _ = writeln!(
            text,
            "     {} {} -> {answer} ({} ms)",
            exchange.method, exchange.url, exchange.millis
        );
    }
    if let Some(error) = &step.error {
        let _ = writeln!(text, "     {error}");
    }
    if let Some(next) = &step.next {
        let _ = writeln!(text, "     so {next}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ExplainExchange, ExplainHost, ExplainImage};

    #[test]
    fn the_page_tells_who_was_asked_what_came_and_why_the_next_one_was() {
        let exchange = |status: Option<u16>, error: Option<&str>| ExplainExchange {
            method: "GET".into(),
            url: "https://m.io/v2/x/manifests/1".into(),
            status,
            error: error.map(str::to_owned),
            millis: 7,
        };
        let told = Explanation {
            reference: "r.io/x:1".into(),
            hosts_file: Some("/etc/berth/certs.d/r.io/hosts.toml".into()),
            hosts: vec![ExplainHost {
                url: "https://m.io/v2".into(),
                role: "mirror".into(),
                capabilities: vec!["pull".into()],
                tls: "the system's authorities".into(),
                proxy: Some("http://p:1".into()),
                credentials: "none".into(),
                headers: vec!["x-one".into()],
            }],
            steps: vec![ExplainStep {
                what: "manifest 1".into(),
                host: "m.io".into(),
                exchanges: vec![exchange(Some(503), None), exchange(None, Some("refused"))],
                error: Some("m.io answered 503".into()),
                next: Some("the next host is asked".into()),
            }],
            image: Some(ExplainImage {
                platform: "linux/amd64".into(),
                size: 17,
                ..ExplainImage::default()
            }),
            error: None,
        };
        let text = page(&told);
        for part in [
            "by /etc/berth/certs.d/r.io/hosts.toml",
            "1. https://m.io/v2 (mirror)",
            "proxy: http://p:1",
            "headers: x-one",
            "manifest 1 at m.io: failed",
            "-> 503 (7 ms)",
            "-> refused (7 ms)",
            "so the next host is asked",
            "platform linux/amd64",
            "size     17 bytes",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
