//! Which host is asked next.
//!
//! A host that fails makes the next one asked at once; only when all have failed are those asked again
//! whose failure may pass: refused connections, 429 and 5xx. A registry's `Retry-After` is obeyed.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::Error;

/// How often a host is asked for the same thing.
const TRIES: u32 = 4;
/// First pause between two rounds; each next one is three times as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Nothing is asked again after this time, so a longer `Retry-After` fails at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// The hosts that are still to be asked for one thing.
#[derive(Debug)]
pub(crate) struct Rounds {
    queue: VecDeque<usize>,
    /// Failed in this round, may do better in the next; each with the time that it asked for.
    again: Vec<(usize, Duration)>,
    /// The last failure of each host, in the order of the file.
    failures: Vec<(usize, Error)>,
    round: u32,
    pause: Duration,
    begun: Instant,
    paused: Duration,
}

impl Rounds {
    pub(crate) fn new(hosts: impl IntoIterator<Item = usize>) -> Self {
        Self {
            queue: hosts.into_iter().collect(),
            again: Vec::new(),
            failures: Vec::new(),
            round: 1,
            pause: FIRST_PAUSE,
            begun: Instant::now(),
            paused: Duration::ZERO,
        }
    }

    /// Begins to count again after a host did it in part: what led there is over. One round more than for a first
    /// byte, so that a registry has the time to start again, and not more pauses in all than before.
    pub(crate) fn anew(&mut self) {
        self.round = 0;
        self.pause = FIRST_PAUSE;
        self.begun = Instant::now();
    }

    /// Nobody else is asked from now on.
    pub(crate) fn only(&mut self, index: usize) {
        self.queue.retain(|other| *other == index);
        self.again.retain(|(other, _)| *other == index);
    }

    /// The pauses until now.
    pub(crate) fn paused(&self) -> Duration {
        self.paused
    }

    /// The next host; waits before those that are asked again. `None`: give up.
    pub(crate) async fn next(&mut self) -> Option<usize> {
        if let Some(index) = self.queue.pop_front() {
            return Some(index);
        }
        let wait = self.wait()?;
        tracing::debug!(?wait, round = self.round, "no host answered, asking again");
        tokio::time::sleep(wait).await;
        self.paused += wait;
        self.round += 1;
        self.pause *= 3;
        self.queue = self.again.drain(..).map(|(index, _)| index).collect();
        self.queue.pop_front()
    }

    /// How long to wait for the next round; `None` when there is none. A host that asked for more time than
    /// the next round gives it is left out of that round.
    fn wait(&mut self) -> Option<Duration> {
        if self.round >= TRIES {
            return None;
        }
        let soonest = self.again.iter().map(|(_, asked)| *asked).min()?;
        let wait = soonest.max(self.pause);
        let spent = self.begun.elapsed().max(self.paused);
        if spent.saturating_add(wait) > PATIENCE {
            return None;
        }
        self.again.retain(|(_, asked)| *asked <= wait);
        Some(wait)
    }

    /// Notes why a host did not do.
    pub(crate) fn failed(&mut self, index: usize, error: Error) {
        if let Some(asked) = error.passing() {
            self.again.push((index, asked));
        }
        self.gave_up(index, error);
    }

    /// Notes a failure after which the host is not asked again.
    pub(crate) fn gave_up(&mut self, index: usize, error: Error) {
        self.failures.retain(|(other, _)| *other != index);
        self.failures.push((index, error));
    }

    /// The registry's own server has spoken: nobody is asked again.
    pub(crate) fn settle(&mut self) {
        self.round = TRIES;
    }

    /// What is done after a failure, in words.
    pub(crate) fn plan(&self) -> &'static str {
        if !self.queue.is_empty() {
            "the next host is asked"
        } else if !self.again.is_empty() && self.round < TRIES {
            "what may pass is tried again after a pause"
        } else {
            "no host is left"
        }
    }

    /// What every host said, in the order in which they are configured. The kind is that of the one that tells most: the
    /// last host's, which is the registry's own server, unless that one gave no answer and another one said more than
    /// that it has no such thing.
    pub(crate) fn verdict(self, nobody: impl FnOnce() -> Error) -> Error {
        let mut failures = self.failures;
        failures.sort_by_key(|(index, _)| *index);
        let mut errors: Vec<Error> = failures.into_iter().map(|(_, error)| error).collect();
        let said =
            |error: &Error| !matches!(error, Error::Unavailable { .. } | Error::NotFound { .. });
        let last = errors.len().saturating_sub(1);
        let silent = matches!(errors.last(), Some(Error::Unavailable { .. }));
        let counts = match silent {
            true => errors.iter().rposition(said).unwrap_or(last),
            false => last,
        };
        match errors.len() {
            0 => nobody(),
            1 => errors.remove(0),
            _ => Error::Everywhere { counts, errors },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unavailable(host: &str) -> Error {
        Error::Unavailable {
            host: host.to_owned(),
            reason: "refused".to_owned(),
            lasting: false,
        }
    }

    fn missing(host: &str) -> Error {
        Error::NotFound {
            host: host.to_owned(),
            what: "x".to_owned(),
        }
    }

    fn busy(after: Option<u64>) -> Error {
        Error::Status {
            host: "h".to_owned(),
            what: "x".to_owned(),
            status: 429,
            detail: None,
            retry_after: after.map(Duration::from_secs),
        }
    }

    fn nobody() -> Error {
        Error::Credentials("nobody")
    }

    #[tokio::test(start_paused = true)]
    async fn all_hosts_come_before_any_is_asked_again() {
        let mut rounds = Rounds::new([0, 1, 2]);
        let mut order = Vec::new();
        while let Some(index) = rounds.next().await {
            order.push(index);
            rounds.failed(
                index,
                if index == 1 {
                    missing("m")
                } else {
                    unavailable("u")
                },
            );
        }
        assert_eq!(order, [0, 1, 2, 0, 2, 0, 2, 0, 2]);
        let text = rounds.verdict(nobody).to_string();
        assert_eq!(
            text,
            "RegistryUnavailable: u: refused; m has no x; u: refused"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_is_left_alone_for_as_long_as_it_asks() {
        let mut rounds = Rounds::new([0, 1]);
        let start = tokio::time::Instant::now();
        for index in [0, 1] {
            assert_eq!(rounds.next().await, Some(index));
            rounds.failed(index, busy(Some([7, 9][index])));
        }
        assert_eq!(rounds.next().await, Some(0));
        assert!(start.elapsed() >= Duration::from_secs(7));
        // The other one wanted more time than it would get.
        rounds.failed(0, missing("h"));
        assert_eq!(rounds.next().await, None);
        let mut rounds = Rounds::new([0]);
        rounds.next().await;
        rounds.failed(0, busy(Some(61)));
        assert_eq!(rounds.next().await, None);
        let text = rounds.verdict(nobody).to_string();
        assert_eq!(
            text,
            "h answered 429 for x; it asks to be left alone for 61 s"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn no_time_is_too_long_to_be_added_up() {
        let mut rounds = Rounds::new([0]);
        rounds.next().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        rounds.failed(0, busy(Some(u64::MAX)));
        assert_eq!(rounds.next().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_did_a_part_is_waited_for_again_but_not_forever() {
        let start = tokio::time::Instant::now();
        let mut rounds = Rounds::new([0]);
        assert_eq!(rounds.next().await, Some(0));
        // A long blob on the way.
        tokio::time::sleep(Duration::from_secs(3600)).await;
        rounds.anew();
        rounds.failed(0, unavailable("u"));
        let mut asked = 1;
        while rounds.next().await.is_some() {
            rounds.failed(0, unavailable("u"));
            asked += 1;
        }
        assert_eq!(asked, 5);
        let paused = start.elapsed() - Duration::from_secs(3600);
        assert!(paused >= Duration::from_secs(8), "{paused:?}");
        // One that always has a byte and then a pause.
        let mut rounds = Rounds::new([0]);
        let mut parts = 0;
        while rounds.next().await.is_some() {
            parts += 1;
            rounds.anew();
            rounds.failed(0, busy(Some(25)));
        }
        assert_eq!(parts, 3);
        assert_eq!(rounds.paused(), Duration::from_secs(50));
    }

    #[test]
    fn every_host_is_told_in_order_and_the_one_that_tells_most_decides() {
        let verdict = |errors: Vec<Error>| {
            let mut rounds = Rounds::new([]);
            for (index, error) in errors.into_iter().enumerate() {
                rounds.gave_up(index, error);
            }
            rounds.verdict(nobody).to_string()
        };
        let first = verdict(vec![unavailable("m"), missing("r")]);
        assert_eq!(first, "m: refused; r has no x");
        // A mirror without it says nothing about the registry.
        let silent = verdict(vec![missing("m"), unavailable("r")]);
        assert_eq!(silent, "RegistryUnavailable: m has no x; r: refused");
        let busy = verdict(vec![busy(None), unavailable("r")]);
        assert_eq!(busy, "h answered 429 for x; r: refused");
        assert!(verdict(Vec::new()).contains("nobody"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_registrys_own_no_ends_it() {
        let mut rounds = Rounds::new([0, 1]);
        assert_eq!(rounds.next().await, Some(0));
        rounds.failed(0, unavailable("m"));
        assert_eq!(rounds.next().await, Some(1));
        rounds.failed(1, missing("r"));
        rounds.settle();
        assert_eq!(rounds.plan(), "no host is left");
        assert_eq!(rounds.next().await, None);
    }
}
