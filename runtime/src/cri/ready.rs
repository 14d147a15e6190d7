//! Whether recovery is over. Until then every call is answered `Unavailable`, which the kubelet tries again.

use tokio::sync::watch;

/// A switch that goes on once.
#[derive(Debug)]
pub struct Ready(watch::Sender<bool>);

impl Default for Ready {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Ready {
    /// Recovery is over: calls are served from now on.
    pub fn set(&self) {
        self.0.send_replace(true);
    }

    /// Whether calls are served.
    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until calls are served.
    pub async fn wait(&self) {
        // Fails only when the sender is gone, which is in `self`.
        let _ = self.0.subscribe().wait_for(|ready| *ready).await;
    }
}
