//! `berth pulls`: everybody's pulls under way.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;

use super::show::{bytes, columns};
use super::{DaemonArgs, runtime};
use crate::admin::api::PullProgress;
use crate::model::{chain, lines_for_terminal};

const EVERY: Duration = Duration::from_secs(1);

/// What `berth pulls` takes.
#[derive(Debug, Args)]
pub(crate) struct PullsArgs {
    /// Look again every second, until interrupted
    #[arg(long, short)]
    watch: bool,
    /// Print JSON; with --watch, a line for each look
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    daemon: DaemonArgs,
}

/// Runs it.
pub(crate) fn run(args: &PullsArgs) -> Result<(), String> {
    runtime()?.block_on(async {
        let client = args.daemon.client()?;
        let is_terminal = std::io::stdout().is_terminal();
        let mut before = Before::default();
        let mut lines = 0;
        loop {
            let pulls = client.pulls().await.map_err(|e| chain(&e))?;
            let text = if args.json {
                json(&pulls)?
            } else {
                lines_for_terminal(&table(&pulls, &before)).into_owned()
            };
            let over = args.watch && is_terminal && !args.json;
            let text = if over {
                let erase = format!("\r{}\x1b[J", up(lines));
                lines = text.lines().count();
                erase + &text
            } else {
                text
            };
            if !tell(&text)? || !args.watch {
                return Ok(());
            }
            before = Before::of(&pulls);
            tokio::time::sleep(EVERY).await;
        }
    })
}

/// Whether somebody still reads it.
fn tell(text: &str) -> Result<bool, String> {
    let mut out = std::io::stdout();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(format!("cannot write: {e}")),
    }
}

/// Back to the beginning of the last table.
fn up(lines: usize) -> String {
    match lines {
        0 => String::new(),
        lines => format!("\x1b[{lines}A"),
    }
}

fn json(pulls: &[PullProgress]) -> Result<String, String> {
    let text = serde_json::to_string(pulls).map_err(|e| e.to_string())?;
    Ok(format!("{text}\n"))
}

/// How far each pull was at the last look: name to milliseconds and bytes.
#[derive(Debug, Default)]
struct Before(BTreeMap<String, (u64, u64)>);

impl Before {
    fn of(pulls: &[PullProgress]) -> Self {
        let at = |pull: &PullProgress| (pull.milliseconds, pull.bytes_done);
        let each = pulls.iter().map(|pull| (pull.reference.clone(), at(pull)));
        Self(each.collect())
    }

    /// Bytes in a second since then; since its beginning for a pull that is new.
    fn speed(&self, pull: &PullProgress) -> u64 {
        let (time, done) = match self.0.get(&pull.reference) {
            Some((time, done)) if *time < pull.milliseconds => (*time, *done),
            _ => (0, 0),
        };
        let milliseconds = (pull.milliseconds - time).max(1);
        pull.bytes_done.saturating_sub(done).saturating_mul(1000) / milliseconds
    }
}

fn table(pulls: &[PullProgress], before: &Before) -> String {
    let head = ["IMAGE", "LAYERS", "BYTES", "SPEED", "TIME", "FROM"];
    let mut rows = vec![head.iter().map(ToString::to_string).collect()];
    for pull in pulls {
        let known = pull.layers > 0;
        let of = |done: String, all: String| match known {
            true => format!("{done} of {all}"),
            false => "-".to_owned(),
        };
        rows.push(vec![
            pull.reference.clone(),
            of(pull.layers_done.to_string(), pull.layers.to_string()),
            of(bytes(pull.bytes_done), bytes(pull.bytes)),
            format!("{}/s", bytes(before.speed(pull))),
            format!("{} s", pull.milliseconds / 1000),
            pull.source.clone(),
        ]);
    }
    columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pull(milliseconds: u64, bytes_done: u64) -> PullProgress {
        PullProgress {
            reference: "r.io/x:1".to_owned(),
            milliseconds,
            source: "r.io".to_owned(),
            layers: 3,
            layers_done: 1,
            bytes: 200 << 20,
            bytes_done,
        }
    }

    #[test]
    fn a_row_for_each_pull() {
        let text = table(&[pull(2000, 100 << 20)], &Before::default());
        let want = "IMAGE     LAYERS  BYTES               SPEED     TIME  FROM\n\
                    r.io/x:1  1 of 3  100 MiB of 200 MiB  50 MiB/s  2 s   r.io\n";
        assert_eq!(text, want);
        let begun = PullProgress {
            layers: 0,
            source: String::new(),
            ..pull(0, 0)
        };
        let text = table(&[begun], &Before::default());
        assert!(
            text.ends_with("r.io/x:1  -       -      0 B/s  0 s\n"),
            "{text}"
        );
    }

    #[test]
    fn the_speed_is_that_since_the_last_look() {
        let before = Before::of(&[pull(2000, 100 << 20)]);
        assert_eq!(before.speed(&pull(3000, 110 << 20)), 10 << 20);
        // Another pull of the same name.
        assert_eq!(before.speed(&pull(500, 1 << 20)), 2 << 20);
        // A layer that starts over.
        assert_eq!(before.speed(&pull(3000, 90 << 20)), 0);
    }
}
