//! What containers stand on in tests without root.

use std::path::Path;
use std::sync::Arc;

use super::Deps;
use crate::apparmor::{self, AppArmor};
use crate::config::Config;
use crate::events::Events;
use crate::host::HostFacts;
use crate::model::{ContainerMetadata, ContainerSpec, Digest, ImageConfig, ResolvedImage};
pub(crate) use crate::runtime::fake::{Call, Fake};
use crate::spec;
use crate::storage::Storage;
use crate::store::Programs;

/// All of it is below `dir`.
pub(crate) fn deps(dir: &Path, runtime: &Fake, storage: &Storage, events: &Events) -> Deps {
    let (config, facts) = (Config::for_tests(dir), HostFacts::for_tests(dir));
    let state = config.state.clone();
    Deps {
        seccomp: Arc::new(spec::seccomp::Compiler::new(facts.kernel).unwrap()),
        programs: Arc::new(Programs::open(state.join("seccomp")).unwrap()),
        apparmor: Arc::new(AppArmor::open(apparmor::Config::of_host(false, state))),
        config: Arc::new(config),
        facts: Arc::new(facts),
        runtime: Arc::new(runtime.clone()),
        storage: storage.clone(),
        events: events.clone(),
        metrics: Arc::default(),
    }
}

/// The store that they need.
pub(crate) fn storage(dir: &Path) -> Storage {
    Storage::open_flat(&dir.join("root")).unwrap()
}

/// An image without layers.
pub(crate) fn image() -> ResolvedImage {
    ResolvedImage {
        id: Digest::from_bytes([7; 32]),
        name: "web".to_owned(),
        reference: "web".to_owned(),
        config: ImageConfig {
            cmd: vec!["serve".to_owned()],
            ..ImageConfig::default()
        },
        chain: Vec::new(),
    }
}

/// A container that asks for nothing.
pub(crate) fn spec(name: &str) -> ContainerSpec {
    ContainerSpec {
        metadata: ContainerMetadata {
            name: name.to_owned(),
            attempt: 0,
        },
        ..ContainerSpec::default()
    }
}
