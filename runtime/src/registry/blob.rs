//! A blob as it comes: cut connections are continued where they ended, at another host if need be.

use std::time::Duration;

use bytes::{Buf as _, Bytes};
use reqwest::header::{CONTENT_RANGE, ETAG, HeaderValue};
use reqwest::{Response, StatusCode};
use tokio::time::Instant;

use super::Error;
use super::client::Answer;
use super::pace::Pace;
use super::rounds::Rounds;
use super::session::Session;
use crate::model::Digest;

/// Cuts in a row without a byte between them that a host is forgiven.
const MAX_CUTS: u32 = 3;

/// Where a download that ended early goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// Bytes that are there.
    pub offset: u64,
    /// What [`Blob::version`] said when they came. With it a server that has another version by now starts
    /// over; without it the digest alone tells.
    pub version: Option<String>,
}

/// The bytes of a blob, exactly as many as its descriptor says.
#[derive(Debug)]
pub struct Blob {
    session: Session,
    /// The hosts that were not asked yet.
    rounds: Rounds,
    index: usize,
    digest: Digest,
    size: u64,
    /// First byte that was handed out.
    start: u64,
    /// First byte that was not handed out yet.
    offset: u64,
    /// Bytes to drop: a server without ranges starts over.
    skip: u64,
    response: Response,
    host: String,
    pace: Pace,
    /// Cuts since the last byte.
    cuts: u32,
    /// A byte came since the last cut.
    progress: bool,
    /// Several hosts together sent something else: one of them must send all of it.
    alone: bool,
}

impl Blob {
    /// From the first host that has it.
    pub(crate) async fn open(
        session: Session,
        digest: Digest,
        size: u64,
        from: Option<Resume>,
    ) -> Result<Self, Error> {
        let (hosts, alone) = session.blob_hosts(&digest);
        let mut rounds = Rounds::new(hosts);
        let from = from.filter(|from| from.offset < size && !alone);
        let from = from.unwrap_or_default();
        let version = from.version.and_then(|text| text.parse().ok());
        let asked = Asked {
            session: &session,
            digest,
            size,
            offset: from.offset,
        };
        let Some((index, answer, start)) = asked.anywhere(&mut rounds, version.as_ref()).await
        else {
            return Err(rounds.verdict(|| Error::NoHost(session.name(), "pull")));
        };
        session.sends(&digest, index);
        Ok(Self {
            pace: session.registry.clients.pace(),
            session,
            rounds,
            index,
            digest,
            size,
            start,
            offset: start,
            skip: 0,
            response: answer.response,
            host: answer.host,
            cuts: 0,
            progress: false,
            alone,
        })
    }

    /// What was asked for.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The host that sends it, after redirects.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The first byte that comes: the one that was asked for, or 0 from a server that starts over.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// What tells this version from another, for [`Resume`]; a server need not say it.
    pub fn version(&self) -> Option<&str> {
        let tag = self.response.headers().get(ETAG)?.to_str().ok()?;
        // A weak one promises nothing about bytes.
        (!tag.starts_with("W/")).then_some(tag)
    }

    /// The next bytes; `None` after the last.
    ///
    /// # Errors
    /// It stays cut, or is longer or shorter than its descriptor says.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let reason = match self.too_slow() {
                Some(reason) => End::Slow(reason),
                None => match self.pace.chunk(&mut self.response).await {
                    Ok(Some(bytes)) => match self.accept(bytes)? {
                        Some(bytes) => return Ok(Some(bytes)),
                        None => continue,
                    },
                    Ok(None) if self.offset == self.size => return Ok(None),
                    Ok(None) => End::Cut(format!(
                        "it ended after {} of {} bytes",
                        self.offset, self.size
                    )),
                    Err(reason) => End::Cut(reason),
                },
            };
            let (begun, paused) = (Instant::now(), self.rounds.paused());
            self.go_on(reason).await?;
            // A host is not slow for being left alone.
            let paused = self.rounds.paused().saturating_sub(paused);
            self.pace.waited(begun.elapsed().saturating_sub(paused));
        }
    }

    /// What has come as a whole was fast enough.
    fn too_slow(&mut self) -> Option<String> {
        self.pace.too_slow().filter(|_| self.offset < self.size)
    }

    fn accept(&mut self, mut bytes: Bytes) -> Result<Option<Bytes>, Error> {
        if self.skip > 0 {
            let skipped = self.skip.min(bytes.len() as u64);
            bytes.advance(usize::try_from(skipped).unwrap_or(bytes.len()));
            self.skip -= skipped;
        }
        if bytes.is_empty() {
            return Ok(None);
        }
        self.offset += bytes.len() as u64;
        if self.offset > self.size {
            return Err(self.broken(format!(
                "it is longer than the {} bytes of its descriptor",
                self.size
            )));
        }
        self.progress = true;
        Ok(Some(bytes))
    }

    /// Continues after a cut: at the same host, then at the others, then where a failure may have passed.
    async fn go_on(&mut self, end: End) -> Result<(), Error> {
        if std::mem::take(&mut self.progress) {
            self.cuts = 0;
            self.rounds.anew();
        }
        match end {
            End::Cut(reason) if self.cuts < MAX_CUTS => {
                self.cuts += 1;
                tracing::debug!(blob.digest = %self.digest, offset = self.offset, reason, "continuing a cut blob");
                tokio::time::sleep(Duration::from_millis(100) * self.cuts * self.cuts).await;
                match self.asked().at(self.index, None).await {
                    Ok((answer, start)) => {
                        self.switch(self.index, answer, start);
                        return Ok(());
                    }
                    Err(error) if error.passing().is_some() => {
                        self.session.note(&mut self.rounds, self.index, error);
                    }
                    Err(error) => self.give_up(error.to_string()),
                }
            }
            End::Cut(reason) | End::Slow(reason) => self.give_up(reason),
        }
        if self.alone && self.offset > 0 {
            self.rounds.only(self.index);
        }
        // Not `asked()`, which would borrow the rounds too.
        let asked = Asked {
            session: &self.session,
            digest: self.digest,
            size: self.size,
            offset: self.offset,
        };
        match asked.anywhere(&mut self.rounds, None).await {
            Some((index, answer, start)) => {
                self.switch(index, answer, start);
                Ok(())
            }
            None => {
                let rounds = std::mem::replace(&mut self.rounds, Rounds::new([]));
                Err(rounds.verdict(|| Error::NoHost(self.session.name(), "pull")))
            }
        }
    }

    /// This host is not asked again.
    fn give_up(&mut self, reason: String) {
        let broken = self.broken(reason);
        tracing::debug!(blob.digest = %self.digest, error = %broken, "this host is given up");
        self.rounds.gave_up(self.index, broken);
    }

    fn switch(&mut self, index: usize, answer: Answer, start: u64) {
        if index != self.index {
            self.session.sends(&self.digest, index);
            self.index = index;
            self.cuts = 0;
        }
        self.skip = self.offset - start;
        self.response = answer.response;
        self.host = answer.host;
    }

    fn asked(&self) -> Asked<'_> {
        Asked {
            session: &self.session,
            digest: self.digest,
            size: self.size,
            offset: self.offset,
        }
    }

    fn broken(&self, reason: String) -> Error {
        Error::Broken {
            host: self.host.clone(),
            what: format!("blob {}", self.digest),
            reason,
        }
    }
}

/// Why no more bytes come.
enum End {
    /// The host may go on.
    Cut(String),
    /// Nor are more wanted from this host.
    Slow(String),
}

/// A request for the rest of a blob.
struct Asked<'a> {
    session: &'a Session,
    digest: Digest,
    size: u64,
    offset: u64,
}

impl Asked<'_> {
    /// At the next host that answers; with the first byte of its answer.
    async fn anywhere(
        &self,
        rounds: &mut Rounds,
        version: Option<&HeaderValue>,
    ) -> Option<(usize, Answer, u64)> {
        while let Some(index) = rounds.next().await {
            let host = self.session.host(index);
            self.session
                .trace
                .begin(host, &format!("blob {}", self.digest));
            match self.at(index, version).await {
                Ok((answer, start)) => return Some((index, answer, start)),
                Err(error) => self.session.note(rounds, index, error),
            }
        }
        None
    }

    async fn at(
        &self,
        index: usize,
        version: Option<&HeaderValue>,
    ) -> Result<(Answer, u64), Error> {
        let ask = |offset| self.session.blob_at(index, &self.digest, offset, version);
        let answer = match ask(self.offset).await {
            // It takes no such range, whatever it has.
            Err(Error::Status { status: 416, .. }) if self.offset > 0 => ask(0).await?,
            other => other?,
        };
        let start = self.start(&answer)?;
        Ok((answer, start))
    }

    /// The first byte of an answer, not behind the one that was asked for. An answer of another length than the
    /// descriptor's is refused before its first byte, so that the next host can be asked.
    fn start(&self, answer: &Answer) -> Result<u64, Error> {
        let response = &answer.response;
        let bad = |reason: String| Error::Document {
            what: format!("blob {} at {}", self.digest, answer.host),
            reason,
        };
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let start = if partial && self.offset > 0 {
            let range = response.headers().get(CONTENT_RANGE);
            let (start, total) = range
                .and_then(|value| content_range(value.to_str().ok()?))
                .ok_or_else(|| bad("a part without saying which".to_owned()))?;
            if start > self.offset {
                return Err(bad(
                    "it continued at another place than asked for".to_owned()
                ));
            }
            if let Some(total) = total.filter(|total| *total != self.size) {
                return Err(bad(self.wrong_size(total)));
            }
            start
        } else {
            0
        };
        let rest = self.size - start;
        match response.content_length() {
            Some(length) if length > rest || (!partial && length != rest) => {
                Err(bad(self.wrong_size(start + length)))
            }
            _ => Ok(start),
        }
    }

    fn wrong_size(&self, there: u64) -> String {
        format!(
            "it has {there} bytes, and its descriptor says {}",
            self.size
        )
    }
}

/// First byte and whole length of `bytes first-last/length`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let start = range.split('-').next()?.trim().parse().ok()?;
    Some((start, total.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for bad in ["", "5-9/10", "bytes */10", "bytes x-9/10", "bytes 5-9"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
