//! Calls that block their thread run on tokio's blocking pool, and one that is stuck is named.

use std::time::Duration;

/// After this time a call is reported as stuck; it is still waited for.
const STUCK: Duration = Duration::from_secs(10);

/// Runs `work` on the blocking pool. `what` says what it does, for the log.
///
/// # Panics
/// When the work panics: the panic goes on in the caller.
pub async fn run<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let mut task = tokio::task::spawn_blocking(work);
    let mut waited = Duration::ZERO;
    loop {
        match tokio::time::timeout(STUCK, &mut task).await {
            Ok(Ok(value)) => return value,
            Ok(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            Err(_) => {
                waited += STUCK;
                tracing::warn!(
                    what,
                    seconds = waited.as_secs(),
                    "a blocking call is stuck: is a disk or a mount hanging?"
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn the_value_comes_back() {
        assert_eq!(super::run("add", || 1 + 1).await, 2);
    }
}
