//! How far a pull is: a bar on a terminal, a line now and then elsewhere.

use std::future::Future;
use std::io::{IsTerminal, Write};
use std::pin::pin;
use std::time::{Duration, Instant};

use super::show::bytes;
use crate::admin::api::PullProgress;
use crate::admin::client::Client;
use crate::model::one_line;

/// Between two looks, on a terminal and elsewhere.
const BAR_EVERY: Duration = Duration::from_millis(150);
const LINE_EVERY: Duration = Duration::from_secs(5);

const WIDTH: u64 = 30;

/// Waits for a pull and shows on standard error how far it is.
pub(super) async fn watch<T>(client: &Client, reference: &str, pull: impl Future<Output = T>) -> T {
    let is_terminal = std::io::stderr().is_terminal();
    let mut pull = pin!(pull);
    let begin = Instant::now();
    let mut shown = false;
    loop {
        let pause = if is_terminal { BAR_EVERY } else { LINE_EVERY };
        let ended = tokio::time::timeout(pause, pull.as_mut()).await;
        if let Ok(outcome) = ended {
            if shown && is_terminal {
                tell("\r\x1b[K");
            }
            return outcome;
        }
        // A daemon that does not tell how far it is may pull nevertheless.
        let pulls = client.pulls().await.unwrap_or_default();
        let Some(progress) = pulls.iter().find(|one| is_of(one, reference)) else {
            continue;
        };
        let text = line(reference, progress, begin.elapsed());
        let text = one_line(&text);
        if is_terminal {
            tell(&format!("\r\x1b[K{}", fitting(&text)));
        } else {
            tell(&format!("{text}\n"));
        }
        shown = true;
    }
}

/// The daemon has the whole name, the operator perhaps a short one.
fn is_of(progress: &PullProgress, reference: &str) -> bool {
    let named = reference.parse::<crate::registry::Reference>();
    named.is_ok_and(|named| named.to_string() == progress.reference)
}

fn tell(text: &str) {
    let mut out = std::io::stderr();
    // Who does not see it can do without.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// A line that is longer than the terminal would not be overwritten.
fn fitting(text: &str) -> String {
    let size = rustix::termios::tcgetwinsize(std::io::stderr());
    let width = size.map_or(80, |size| usize::from(size.ws_col));
    text.chars().take(width.saturating_sub(1).max(20)).collect()
}

fn line(reference: &str, progress: &PullProgress, elapsed: Duration) -> String {
    let PullProgress {
        layers,
        layers_done,
        bytes: total,
        bytes_done,
        source,
        ..
    } = progress;
    if *layers == 0 {
        return format!("{reference}: asking the registry");
    }
    let full = match *total {
        0 => WIDTH,
        total => (bytes_done.saturating_mul(WIDTH) / total).min(WIDTH),
    };
    let bar: String = (0..WIDTH)
        .map(|n| if n < full { '#' } else { '.' })
        .collect();
    let milliseconds = u64::try_from(elapsed.as_millis())
        .unwrap_or(u64::MAX)
        .max(1);
    let speed = bytes(bytes_done.saturating_mul(1000) / milliseconds);
    format!(
        "[{bar}] {} of {}, {speed}/s, layer {layers_done} of {layers} from {source}: {reference}",
        bytes(*bytes_done),
        bytes(*total)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_bytes_layers_speed_and_source() {
        let progress = PullProgress {
            reference: "docker.io/library/x:latest".to_owned(),
            milliseconds: 0,
            source: "r.io".to_owned(),
            layers: 4,
            layers_done: 1,
            bytes: 200 << 20,
            bytes_done: 100 << 20,
        };
        assert!(is_of(&progress, "x") && !is_of(&progress, "x:1"));
        let text = line("x", &progress, Duration::from_secs(10));
        let want = "[###############...............] 100 MiB of 200 MiB, 10 MiB/s, layer 1 of 4 from r.io: x";
        assert_eq!(text, want);
        let begin = PullProgress {
            layers: 0,
            ..progress
        };
        assert!(line("x", &begin, Duration::ZERO).contains("asking"));
    }
}
