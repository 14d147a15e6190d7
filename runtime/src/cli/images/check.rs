//! `berth images check`, through the daemon or without it.

use std::sync::Arc;

use clap::Args;

use super::{DaemonArgs, print_json};
use crate::admin::api::{CheckReport, Thing};
use crate::admin::client::{Client, Error};
use crate::cli::print;
use crate::image::{self, ImageManager};
use crate::model::chain;
use crate::storage::Storage;

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Only look whether everything is there: some system calls for each layer, no content is read
    #[arg(long)]
    quick: bool,
    /// Take away what is damaged, and the images that need it, so that the next pull fetches it again
    #[arg(long)]
    repair: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn check(
    daemon: &DaemonArgs,
    client: &Client,
    args: &CheckArgs,
) -> Result<(), String> {
    let report = match client.check(args.quick, args.repair).await {
        Ok(report) => report,
        Err(Error::Connect { .. }) => alone(daemon, args).await?,
        Err(error) => return Err(chain(&error)),
    };
    if args.json {
        print_json(&report)?;
    } else {
        print(&text(&report))?;
    }
    if report.findings.is_empty() || report.repaired {
        return Ok(());
    }
    Err("the store is damaged: `berth images check --repair` takes away what is".to_owned())
}

/// Nobody serves: the store is opened here, which nobody else may do meanwhile.
async fn alone(daemon: &DaemonArgs, args: &CheckArgs) -> Result<CheckReport, String> {
    let config = daemon.config()?;
    if !config.root.is_dir() {
        return Err(format!(
            "no daemon answers at {}, and there is no store at {}",
            config.admin.display(),
            config.root.display()
        ));
    }
    let storage = Storage::open(&config.root).map_err(|e| chain(&e))?;
    let images = ImageManager::open(image::Config {
        storage,
        registry: (&config).into(),
        pinned: config.pinned_images,
        parallel_layers: 1,
        unpacked_limit: 0,
        metrics: Arc::default(),
    });
    let images = images.map_err(|e| chain(&e))?;
    let report = images.check(args.quick, args.repair).await;
    report.map_err(|e| chain(&e))
}

fn text(report: &CheckReport) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let thing = match finding.thing {
            Thing::Image => "image",
            Thing::Layer => "layer",
            Thing::Document => "document",
            Thing::Index => "index",
        };
        text.push_str(&format!("{thing} {}: {}", finding.what, finding.problem));
        if !finding.images.is_empty() {
            text.push_str(&format!(" (needed by {})", finding.images.join(", ")));
        }
        text.push('\n');
    }
    for name in &report.dropped {
        text.push_str(&format!("removed {name}: pull it again\n"));
    }
    for what in &report.stays {
        text.push_str(&format!("out of use, but not deleted: {what}\n"));
    }
    if !report.unverifiable.is_empty() {
        let count = report.unverifiable.len();
        text.push_str(&format!(
            "{count} layers cannot be compared with a digest\n"
        ));
    }
    let verdict = match (report.findings.len(), report.repaired) {
        (0, _) => "nothing is wrong".to_owned(),
        (count, true) if report.stays.is_empty() => {
            format!("{count} things were wrong and are gone")
        }
        (count, true) => format!("{count} things were wrong and are out of use"),
        (count, false) => format!("{count} things are wrong"),
    };
    text.push_str(&format!(
        "{} images, {} layers, {} documents: {verdict}\n",
        report.images, report.layers, report.documents
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::api::Finding;

    #[test]
    fn a_report_names_what_is_wrong_and_who_needs_it() {
        let mut report = CheckReport {
            images: 2,
            layers: 3,
            documents: 4,
            ..CheckReport::default()
        };
        assert_eq!(
            text(&report),
            "2 images, 3 layers, 4 documents: nothing is wrong\n"
        );
        report.findings.push(Finding {
            thing: Thing::Layer,
            what: "sha256:1".to_owned(),
            problem: "\"etc/x\" is missing".to_owned(),
            images: vec!["r/x:1".to_owned()],
        });
        assert!(
            text(&report).starts_with("layer sha256:1: \"etc/x\" is missing (needed by r/x:1)\n")
        );
        report.repaired = true;
        report.dropped = vec!["r/x:1".to_owned()];
        assert!(text(&report).contains("removed r/x:1: pull it again\n"));
        assert!(text(&report).ends_with("1 things were wrong and are gone\n"));
        report.stays = vec!["cannot remove \"/x\": broken".to_owned()];
        let told = text(&report);
        assert!(
            told.contains("not deleted: cannot remove \"/x\": broken\n"),
            "{told}"
        );
        assert!(
            told.ends_with("1 things were wrong and are out of use\n"),
            "{told}"
        );
    }
}
