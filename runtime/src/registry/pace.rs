//! How fast a host sends.
//!
//! One that sends a byte now and then is never silent, and a pull from it never ends; a kubelet that pulls one image after
//! the other gets no other image meanwhile.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use tokio::time::Instant;

use super::words::words;

/// A host that sends fewer bytes a second is given up.
const LEAST_RATE: u64 = 1024;
/// It is judged after this many times the silence that it may keep: a connection that pauses and goes on is not slow.
const SILENCES: u32 = 5;

/// What a host has sent since it was judged last. Only the time in which it is waited for counts: a disk that is slow to
/// take the bytes is not the host's fault.
#[derive(Debug)]
pub(crate) struct Pace {
    window: Option<Duration>,
    waited: Duration,
    came: u64,
}

impl Pace {
    /// Of a host that may be silent for this long; none: as slow as it likes.
    pub(crate) fn new(silence: Option<Duration>) -> Self {
        Self {
            window: silence.map(|silence| silence * SILENCES),
            waited: Duration::ZERO,
            came: 0,
        }
    }

    /// The next bytes of a body; an error in words.
    pub(crate) async fn chunk(&mut self, response: &mut Response) -> Result<Option<Bytes>, String> {
        let begun = Instant::now();
        let chunk = response.chunk().await.map_err(|error| words(&error));
        self.waited(begun.elapsed());
        if let Ok(Some(bytes)) = &chunk {
            self.came += bytes.len() as u64;
        }
        chunk
    }

    /// Time in which nothing could come.
    pub(crate) fn waited(&mut self, time: Duration) {
        self.waited += time;
    }

    /// Whether it is too slow, in words, and begins anew.
    pub(crate) fn too_slow(&mut self) -> Option<String> {
        let window = self.window.filter(|window| self.waited >= *window)?;
        let wanted = u128::from(LEAST_RATE) * self.waited.as_millis() / 1000;
        let came = std::mem::take(&mut self.came);
        self.waited = Duration::ZERO;
        (u128::from(came) < wanted).then(|| {
            let seconds = window.as_secs_f32();
            format!(
                "{came} bytes came in {seconds} s, which is less than {LEAST_RATE} bytes a second"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(silence: Option<u64>, waited: u64, came: u64) -> Option<String> {
        let mut pace = Pace::new(silence.map(Duration::from_secs));
        pace.waited(Duration::from_secs(waited));
        pace.came = came;
        pace.too_slow()
    }

    #[test]
    fn a_host_is_judged_after_a_while_by_what_it_sent() {
        assert_eq!(after(Some(60), 299, 0), None);
        assert_eq!(after(Some(60), 300, 300 << 10), None);
        let text = after(Some(60), 300, 1000).unwrap();
        assert!(text.starts_with("1000 bytes came in 300 s"), "{text}");
        assert_eq!(after(None, 1_000_000, 0), None);
    }

    #[test]
    fn each_while_counts_by_itself() {
        let mut pace = Pace::new(Some(Duration::from_secs(1)));
        pace.came = 1 << 30;
        pace.waited(Duration::from_secs(5));
        assert_eq!(pace.too_slow(), None);
        pace.waited(Duration::from_secs(5));
        assert!(pace.too_slow().is_some());
        assert_eq!(pace.too_slow(), None);
    }
}
