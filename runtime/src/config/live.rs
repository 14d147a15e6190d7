//! The configuration in force, of which a part changes while the daemon runs.

use std::sync::{Arc, PoisonError, RwLock};

use super::Config;

/// Keys that a reload takes up. The others are in what was made from them at start.
pub const RELOADED: &[&str] = &[
    "log_level",
    "images.registry_hosts_dir",
    "images.credentials_file",
    "images.token_services",
];

/// What everybody looks at who shows the configuration, or makes something by it.
#[derive(Debug)]
pub struct Live(RwLock<Arc<Config>>);

impl Live {
    /// With what was read at start.
    pub fn new(config: Arc<Config>) -> Self {
        Self(RwLock::new(config))
    }

    /// As it is now.
    pub fn get(&self) -> Arc<Config> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes up what a reload may change, and names the keys that wait for a restart.
    pub fn take_up(&self, fresh: &Config) -> Vec<&'static str> {
        let mut config = Config::clone(&self.get());
        config.log_level.clone_from(&fresh.log_level);
        config
            .registry_hosts_dir
            .clone_from(&fresh.registry_hosts_dir);
        config.credentials_file.clone_from(&fresh.credentials_file);
        config.token_services.clone_from(&fresh.token_services);
        let mut waiting = Vec::new();
        // Both have every key, in the table's order.
        for (ours, theirs) in config.origins.iter_mut().zip(&fresh.origins) {
            if RELOADED.contains(&ours.0) {
                ours.clone_from(theirs);
            } else if ours.1 != theirs.1 {
                waiting.push(ours.0);
            }
        }
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        waiting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Config {
        crate::config::tests::load(text).unwrap()
    }

    #[test]
    fn a_reload_takes_up_what_it_can_and_names_the_rest() {
        let live = Live::new(Arc::new(load("root = \"/a\"\nlog_level = \"warn\"")));
        let fresh = load(
            "root = \"/b\"\nlog_level = \"debug\"\n[images]\nregistry_hosts_dir = \"/h\"\ncredentials_file = \"/c\"\ntoken_services = [\"a=b\"]\npinned = [\"x\"]",
        );
        assert_eq!(live.take_up(&fresh), ["root", "images.pinned"]);
        let now = live.get();
        assert_eq!(now.root, std::path::Path::new("/a"));
        assert_eq!(now.log_level, "debug");
        assert_eq!(now.registry_hosts_dir, std::path::Path::new("/h"));
        assert_eq!(now.credentials_file, std::path::Path::new("/c"));
        assert_eq!(now.token_services, ["a=b"]);
        let shown = now.show();
        assert!(shown.contains("log_level = \"debug\""), "{shown}");
        assert!(shown.contains("root = \"/a\""), "{shown}");
        assert!(live.take_up(&load("root = \"/a\"")).is_empty());
        assert!(
            RELOADED
                .iter()
                .all(|key| super::super::table::find(key).is_some())
        );
    }
}
