//! Releasing what was acquired: named steps, each with its own deadline, none skipped because another failed.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

/// How long one step may take unless it says otherwise: the kubelet's own limit for a call is two minutes.
const STEP_LIMIT: Duration = Duration::from_secs(60);

type Work = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

struct Step {
    name: &'static str,
    limit: Duration,
    work: Work,
}

/// Steps to be run in the order in which they were added.
pub struct Steps {
    operation: &'static str,
    steps: Vec<Step>,
}

/// What could not be released. The object stays visible, so that the caller comes again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failures(pub Vec<(&'static str, String)>);

impl Steps {
    /// None yet, of what `operation` gives back.
    pub fn of(operation: &'static str) -> Self {
        Self {
            operation,
            steps: Vec::new(),
        }
    }

    /// Adds a step.
    pub fn push<E: fmt::Display>(
        &mut self,
        name: &'static str,
        work: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.push_within(name, STEP_LIMIT, work);
    }

    /// Adds a step that may take another time than the usual.
    pub fn push_within<E: fmt::Display>(
        &mut self,
        name: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let work = Box::pin(async move { work.await.map_err(|e| e.to_string()) });
        self.steps.push(Step { name, limit, work });
    }

    /// Adds a step that blocks its thread.
    pub fn push_blocking<E: fmt::Display + Send + 'static>(
        &mut self,
        name: &'static str,
        work: impl FnOnce() -> Result<(), E> + Send + 'static,
    ) {
        self.push(name, async move {
            match tokio::task::spawn_blocking(work).await {
                Ok(result) => result.map_err(|e| e.to_string()),
                Err(e) => Err(e.to_string()),
            }
        });
    }

    /// Runs every step.
    ///
    /// # Errors
    /// The names and errors of the steps that failed or ran out of time.
    pub async fn run(self) -> Result<(), Failures> {
        let mut failures = Vec::new();
        for step in self.steps {
            match tokio::time::timeout(step.limit, step.work).await {
                Ok(Ok(())) => {}
                Ok(Err(problem)) => failures.push((step.name, problem)),
                Err(_) => failures.push((
                    step.name,
                    format!("not done after {} s", step.limit.as_secs()),
                )),
            }
            crash_point!(&format!("{}.{}.after", self.operation, step.name));
        }
        if failures.is_empty() {
            Ok(())
        } else {
            Err(Failures(failures))
        }
    }
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.operation)?;
        f.debug_list()
            .entries(self.steps.iter().map(|s| s.name))
            .finish()
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, problem)) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{name}: {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failures {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failing_step_does_not_keep_the_others_from_running() {
        let mut steps = Steps::of("test");
        steps.push("first", async { Err::<(), _>("broken") });
        steps.push_blocking("second", || Ok::<(), String>(()));
        steps.push("third", async { Err::<(), _>("too") });
        assert_eq!(
            steps.run().await.unwrap_err().to_string(),
            "first: broken; third: too"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_hangs_is_named() {
        let mut steps = Steps::of("test");
        steps.push("hangs", std::future::pending::<Result<(), String>>());
        assert!(
            steps
                .run()
                .await
                .unwrap_err()
                .to_string()
                .starts_with("hangs: not done")
        );
    }
}
