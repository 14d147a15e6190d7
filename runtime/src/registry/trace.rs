//! What was asked and answered, for `berth explain image`. Off in a pull, where it costs nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use reqwest::Url;

use crate::model::{ExplainExchange, ExplainStep};

/// Records the steps of one explanation, which come one after the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trace(Option<Arc<Mutex<Vec<ExplainStep>>>>);

impl Trace {
    /// One that records.
    pub(crate) fn recording() -> Self {
        Self(Some(Arc::default()))
    }

    fn with(&self, act: impl FnOnce(&mut Vec<ExplainStep>)) {
        if let Some(steps) = &self.0 {
            act(&mut steps.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// A host is asked for something.
    pub(crate) fn begin(&self, host: &str, what: &str) {
        self.with(|steps| {
            steps.push(ExplainStep {
                host: host.to_owned(),
                what: what.to_owned(),
                ..ExplainStep::default()
            });
        });
    }

    /// A request was answered, or was not.
    pub(crate) fn exchange(
        &self,
        method: &str,
        url: &Url,
        since: Instant,
        answer: Result<u16, &str>,
    ) {
        self.with(|steps| {
            let Some(step) = steps.last_mut() else { return };
            let millis = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
            step.exchanges.push(ExplainExchange {
                method: method.to_owned(),
                url: shown(url),
                status: answer.ok(),
                error: answer.err().map(str::to_owned),
                millis,
            });
        });
    }

    /// The host did not do.
    pub(crate) fn failed(&self, why: &str, next: &str) {
        self.with(|steps| {
            if let Some(step) = steps.last_mut() {
                step.error = Some(why.to_owned());
                step.next = Some(next.to_owned());
            }
        });
    }

    /// The steps until now.
    pub(crate) fn take(&self) -> Vec<ExplainStep> {
        let mut taken = Vec::new();
        self.with(|steps| taken = std::mem::take(steps));
        taken
    }
}

/// A URL without what may be secret: a query may hold a signature, user information a password.
pub(crate) fn shown(url: &Url) -> String {
    let host = super::client::host_port(url);
    format!("{}://{host}{}", url.scheme(), url.path())
}
