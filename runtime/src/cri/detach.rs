//! Work that does not end when its caller leaves.
//!
//! A deadline of the kubelet, a closed connection or a cancelled call drops the future of a handler at
//! any `.await` (row R005). Whatever changes something therefore runs as a task of its own, which the
//! handler only waits for; the caller's retry joins it. ExecSync alone is not: a command ends with its caller.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tonic::Status;
use tracing::Instrument;

use super::status;
use crate::telemetry::panic_text;

/// Runs `work` to its end, whether or not anybody waits for the answer.
pub(super) async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    let (answer, waiting) = oneshot::channel();
    let task = async move {
        let outcome = AssertUnwindSafe(work).catch_unwind().await;
        let outcome = outcome.unwrap_or_else(|p| Err(status::panicked(panic_text(&*p))));
        match answer.send(outcome) {
            Ok(()) => {}
            Err(Ok(_)) => tracing::info!("the work was done after its caller had left"),
            // Nobody else will log it: the layer has seen the caller leave.
            Err(Err(status)) => tracing::warn!(
                rpc.code = status::name(status.code()),
                "the work failed after its caller had left: {}",
                status.message()
            ),
        }
    };
    tokio::spawn(task.in_current_span());
    // The sender goes without an answer only when the tokio runtime is being shut down.
    waiting
        .await
        .unwrap_or_else(|_| Err(Status::unavailable("berth is being stopped")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;
    use tonic::Code;

    #[tokio::test]
    async fn work_goes_on_when_its_caller_leaves() {
        let done = Arc::new(AtomicBool::new(false));
        let (go, wait) = oneshot::channel::<()>();
        let flag = done.clone();
        let call = detached(async move {
            let _ = wait.await;
            flag.store(true, Ordering::SeqCst);
            Ok(())
        });
        assert!(
            tokio::time::timeout(Duration::from_millis(10), call)
                .await
                .is_err()
        );
        go.send(()).unwrap();
        for _ in 0..1000 {
            if done.load(Ordering::SeqCst) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("the work was dropped");
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error() {
        let status = detached::<()>(async { panic!("boom {}", 1) })
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::Internal);
        assert!(status.message().contains("boom 1"), "{status}");
    }
}
