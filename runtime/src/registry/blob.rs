//! A blob as it comes: cut connections are continued where they ended.

use std::time::Duration;

use bytes::{Buf as _, Bytes};
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};

use super::Error;
use super::client::{Answer, words};
use super::session::Session;
use crate::model::Digest;

/// Cuts in a row without a byte between them that are endured.
const MAX_CUTS: u32 = 3;

/// The bytes of a blob, exactly as many as its descriptor says.
#[derive(Debug)]
pub struct Blob {
    session: Session,
    index: usize,
    digest: Digest,
    size: u64,
    /// Bytes handed out.
    offset: u64,
    /// Bytes to drop: a server without ranges starts over.
    skip: u64,
    response: Response,
    host: String,
    cuts: u32,
}

impl Blob {
    pub(crate) fn new(
        session: Session,
        index: usize,
        digest: Digest,
        size: u64,
        answer: Answer,
    ) -> Self {
        Self {
            session,
            index,
            digest,
            size,
            offset: 0,
            skip: 0,
            response: answer.response,
            host: answer.host,
            cuts: 0,
        }
    }

    /// What was asked for.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The host that sends it, after redirects.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The next bytes; `None` after the last.
    ///
    /// # Errors
    /// It stays cut, or is longer or shorter than its descriptor says.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let reason = match self.response.chunk().await {
                Ok(Some(bytes)) => match self.accept(bytes)? {
                    Some(bytes) => return Ok(Some(bytes)),
                    None => continue,
                },
                Ok(None) if self.offset == self.size => return Ok(None),
                Ok(None) => format!("it ended after {} of {} bytes", self.offset, self.size),
                Err(error) => words(error),
            };
            self.resume(reason).await?;
        }
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
        self.cuts = 0;
        Ok(Some(bytes))
    }

    async fn resume(&mut self, mut reason: String) -> Result<(), Error> {
        loop {
            self.cuts += 1;
            if self.cuts > MAX_CUTS {
                return Err(self.broken(reason));
            }
            tracing::debug!(blob.digest = %self.digest, offset = self.offset, reason, "continuing a cut blob");
            tokio::time::sleep(Duration::from_millis(100) * self.cuts * self.cuts).await;
            let answer = match self
                .session
                .blob_at(self.index, &self.digest, self.offset)
                .await
            {
                Ok(answer) => answer,
                Err(error @ (Error::Unavailable { .. } | Error::Broken { .. })) => {
                    reason = error.to_string();
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.skip = self.gap(&answer.response)?;
            self.response = answer.response;
            self.host = answer.host;
            return Ok(());
        }
    }

    /// How much of an answer to a range request came before.
    fn gap(&self, response: &Response) -> Result<u64, Error> {
        if self.offset == 0 || response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok(self.offset);
        }
        let range = response.headers().get(CONTENT_RANGE);
        let start = range
            .and_then(|value| value.to_str().ok()?.strip_prefix("bytes "))
            .and_then(|text| text.split('-').next()?.parse::<u64>().ok());
        match start {
            Some(start) if start <= self.offset => Ok(self.offset - start),
            _ => Err(self.broken("it continued at another place than asked for".to_owned())),
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
