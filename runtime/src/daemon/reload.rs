//! SIGHUP: the configuration, the registries' hosts and certificates, and the log's filter are read again.

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::blocking;
use crate::config::{Config, Live};
use crate::image::ImageManager;
use crate::model::chain;
use crate::registry;
use crate::telemetry::LogFilter;

/// Reads the configuration as it was read at start: the same file, the same flags.
pub type Load = Arc<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// What a reload changes.
pub(super) struct Reload {
    load: Load,
    live: Arc<Live>,
    log: LogFilter,
    images: Arc<ImageManager>,
    /// Held by the one that is under way.
    turn: Mutex<()>,
}

impl Reload {
    pub(super) fn new(
        load: Load,
        live: Arc<Live>,
        log: LogFilter,
        images: Arc<ImageManager>,
    ) -> Arc<Self> {
        Arc::new(Self {
            load,
            live,
            log,
            images,
            turn: Mutex::new(()),
        })
    }

    /// Reads everything again, on the side: a disk that hangs must not keep the daemon from being stopped.
    pub(super) fn begin(self: &Arc<Self>) {
        let reload = self.clone();
        tokio::spawn(async move {
            let _turn = reload.turn.lock().await;
            reload.now().await;
        });
    }

    /// Reads everything again. What is broken is told, and the old stays in force.
    async fn now(&self) {
        let load = self.load.clone();
        let read = blocking::run("read the configuration again", move || {
            let config = load()?;
            let broken =
                registry::broken_hosts(&config.registry_hosts_dir, &config.credentials_file);
            Ok::<_, String>((config, broken))
        });
        let (config, broken) = match read.await {
            Ok(read) => read,
            Err(problem) => {
                tracing::error!(
                    "the configuration is not reloaded, the old one stays in force: {problem}"
                );
                return;
            }
        };
        if let Err(error) = self.log.set(&config.log_level) {
            tracing::error!(
                "the configuration is not reloaded, the old one stays in force: log_level: {}",
                chain(&error)
            );
            return;
        }
        let waiting = self.live.take_up(&config);
        self.images.reload(self.live.get().as_ref().into());
        for problem in broken {
            tracing::error!("pulls fail until this is mended: {problem}");
        }
        if !waiting.is_empty() {
            tracing::warn!(
                keys = waiting.join(", "),
                "these keys have other values now, which are in force after a restart of the daemon"
            );
        }
        tracing::info!(
            "configuration, registry hosts, certificates and the log filter are reloaded"
        );
    }
}
