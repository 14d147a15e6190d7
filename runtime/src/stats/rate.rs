//! CPU time per second, between two readings of the same cgroup.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A shorter window says more about scheduling than about the container.
const WINDOW: Duration = Duration::from_millis(500);

/// What nobody has asked for in this time is forgotten.
const FORGET: Duration = Duration::from_secs(600);

/// How often is looked for what to forget.
const SWEEP: Duration = Duration::from_secs(60);

/// The last readings.
#[derive(Debug, Default)]
pub(super) struct Rates {
    kept: HashMap<Box<str>, Kept>,
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Kept {
    at: Instant,
    nanoseconds: u64,
    rate: Option<u64>,
}

impl Rates {
    /// Nanoseconds of CPU time per second since the reading before, if that is a while ago; else the rate as it
    /// was then. `None` for the first reading.
    pub(super) fn of(&mut self, id: &str, now: Instant, nanoseconds: u64) -> Option<u64> {
        self.sweep(now);
        let Some(kept) = self.kept.get_mut(id) else {
            let kept = Kept {
                at: now,
                nanoseconds,
                rate: None,
            };
            self.kept.insert(id.into(), kept);
            return None;
        };
        let window = now.saturating_duration_since(kept.at);
        if window >= WINDOW {
            // The sum over a pod without a cgroup of its own gets less when a container goes.
            let spent = nanoseconds.checked_sub(kept.nanoseconds);
            *kept = Kept {
                at: now,
                nanoseconds,
                rate: spent.and_then(|spent| per_second(spent, window)),
            };
        }
        kept.rate
    }

    fn sweep(&mut self, now: Instant) {
        let last = *self.swept.get_or_insert(now);
        if now.saturating_duration_since(last) < SWEEP {
            return;
        }
        self.swept = Some(now);
        self.kept
            .retain(|_, kept| now.saturating_duration_since(kept.at) < FORGET);
    }
}

fn per_second(spent: u64, window: Duration) -> Option<u64> {
    let rate = (u128::from(spent) * 1_000_000_000).checked_div(window.as_nanos())?;
    u64::try_from(rate).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_readings_that_are_apart() {
        let mut rates = Rates::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(rates.of("a", at(0), 5_000), None);
        assert_eq!(rates.of("a", at(100), 90_000_000), None);
        assert_eq!(rates.of("b", at(100), 7), None);
        // Half a CPU for two seconds.
        assert_eq!(
            rates.of("a", at(2000), 1_000_005_000),
            Some(500_000_000),
            "the window begins with the first reading"
        );
        // Too soon: the rate as it was.
        assert_eq!(rates.of("a", at(2100), 2_000_000_000), Some(500_000_000));
        // Readers that overtake each other.
        assert_eq!(rates.of("a", at(1900), 900_000_000), Some(500_000_000));
        assert_eq!(rates.of("a", at(4000), 1_000_005_000), Some(0));
        // A sum that got less is no rate, and the next one begins there.
        assert_eq!(rates.of("a", at(5000), 5), None);
        assert_eq!(rates.of("a", at(6000), 1_000_005), Some(1_000_000));
    }

    #[test]
    fn what_nobody_asks_for_is_forgotten() {
        let mut rates = Rates::default();
        let start = Instant::now();
        for number in 0..100 {
            rates.of(&format!("{number}"), start, 1);
        }
        for minute in 1..=10 {
            rates.of("0", start + minute * SWEEP, 1);
        }
        assert_eq!(rates.kept.len(), 1);
    }
}
