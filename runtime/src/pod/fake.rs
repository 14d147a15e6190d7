//! Ground without root: files are plain, and whoever is connected is an entry of a list.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::BoxFuture;

use super::{Deps, Ground, PodCgroups};
use crate::apparmor::{self, AppArmor};
use crate::config::Config;
use crate::events::Events;
use crate::host::HostFacts;
use crate::id::PodId;
use crate::model::PodSpec;
use crate::network::{Error, NetworkResult, PodNetwork};
use crate::runtime::fake::Fake;
use crate::spec;
use crate::store::Programs;

/// What pods stand on in a test, all of it below `dir`.
pub(crate) fn deps(dir: &Path, runtime: &Fake, ground: &Arc<Flat>, events: &Events) -> Deps {
    let (config, facts) = (Config::for_tests(dir), HostFacts::for_tests(dir));
    let state = config.state.clone();
    Deps {
        seccomp: Arc::new(spec::seccomp::Compiler::new(facts.kernel).unwrap()),
        programs: Arc::new(Programs::open(state.join("seccomp")).unwrap()),
        apparmor: Arc::new(AppArmor::open(apparmor::Config::of_host(false, state))),
        config: Arc::new(config),
        facts: Arc::new(facts),
        ground: ground.clone(),
        runtime: Arc::new(runtime.clone()),
        events: events.clone(),
        metrics: Arc::default(),
        cgroups: PodCgroups::Directories {
            default_parent: "/berth".to_owned(),
        },
    }
}

/// What can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Files,
    Unmount,
    Connect,
    Sysctls,
    Disconnect,
}

#[derive(Debug, Default)]
pub(crate) struct Flat {
    failing: Mutex<Vec<Step>>,
    /// With their network namespaces.
    connected: Mutex<BTreeMap<PodId, PathBuf>>,
}

impl Flat {
    /// The next time this step fails.
    pub(crate) fn fail(&self, step: Step) {
        lock(&self.failing).push(step);
    }

    fn fails(&self, step: Step) -> bool {
        let mut failing = lock(&self.failing);
        let at = failing.iter().position(|s| *s == step);
        at.map(|at| failing.remove(at)).is_some()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn told(step: Step) -> Error {
    Error::NotReady(format!("{step:?} fails"))
}

impl Ground for Flat {
    fn make_files(&self, dir: &Path, _hostname: &str, _spec: &PodSpec) -> Result<(), String> {
        for name in ["ns", "files"] {
            std::fs::create_dir_all(dir.join(name)).map_err(|e| e.to_string())?;
        }
        match self.fails(Step::Files) {
            true => Err("Files fails".to_owned()),
            false => Ok(()),
        }
    }

    fn unmount_files(&self, _dir: &Path) -> io::Result<()> {
        match self.fails(Step::Unmount) {
            true => Err(io::Error::other("Unmount fails")),
            false => Ok(()),
        }
    }

    fn connect<'a>(&'a self, pod: &'a PodNetwork) -> BoxFuture<'a, Result<NetworkResult, Error>> {
        // One that fails has begun.
        lock(&self.connected).insert(pod.id.clone(), pod.netns.clone());
        let failed = self.fails(Step::Connect);
        Box::pin(async move {
            match failed {
                true => Err(told(Step::Connect)),
                false => Ok(NetworkResult {
                    ips: vec![[10, 88, 0, 7].into()],
                    raw: serde_json::json!({ "cniVersion": "1.0.0" }),
                }),
            }
        })
    }

    fn set_sysctls(&self, netns: &Path, _: &BTreeMap<String, String>) -> Result<(), Error> {
        match self.fails(Step::Sysctls) || !netns.exists() {
            true => Err(told(Step::Sysctls)),
            false => Ok(()),
        }
    }

    fn disconnect<'a>(&'a self, pod: &'a PodId) -> BoxFuture<'a, Result<(), Error>> {
        let failed = self.fails(Step::Disconnect);
        Box::pin(async move {
            if failed {
                return Err(told(Step::Disconnect));
            }
            let mut connected = lock(&self.connected);
            // As plugins that leave something when they are asked without one, and say nothing of it.
            if connected.get(pod).is_none_or(|netns| netns.exists()) {
                connected.remove(pod);
            }
            Ok(())
        })
    }

    fn connected(&self) -> Result<Vec<PodId>, Error> {
        Ok(lock(&self.connected).keys().cloned().collect())
    }
}
