//! Parent cgroups that Berth itself had to make. The kubelet makes its own; crictl and critest do not.
//!
//! They go when the last pod below them goes, and never while one is being made: otherwise they would stay for
//! ever, or vanish under a pod that is just moving in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::cgroup;
use crate::host::{CgroupFacts, Cpuset};
use crate::spec;

#[derive(Debug, Default)]
pub(super) struct Parents(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Parent to the number of pods below it.
    pods: BTreeMap<String, usize>,
    made: BTreeSet<PathBuf>,
}

impl Parents {
    /// One pod more, before its parent is made. Gives the directories on the way that are not there yet, and
    /// those that Berth made before: for the record, so that a daemon killed while it makes them leaves nothing.
    pub(super) fn enter(&self, facts: &CgroupFacts, parent: &str) -> Vec<PathBuf> {
        let ends = parent.match_indices('/').skip(1).map(|(at, _)| at);
        let paths = ends.chain([parent.len()]).map(|end| &parent[..end]);
        let missing = paths
            .flat_map(|path| leaves(facts, path))
            .filter(|dir| !dir.exists());
        let mut state = self.lock();
        state.made.extend(missing);
        *state.pods.entry(parent.to_owned()).or_default() += 1;
        let leaves = leaves(facts, parent);
        let made = state
            .made
            .iter()
            .filter(|dir| leaves.iter().any(|leaf| leaf.starts_with(dir)));
        made.cloned().collect()
    }

    /// Makes the parent where it is missing and gives its cpuset. Blocks for a few directories.
    pub(super) fn make(
        &self,
        facts: &CgroupFacts,
        parent: &str,
    ) -> Result<Option<Cpuset>, cgroup::Error> {
        // Held, so that no pod that leaves takes away what this one is being given.
        let _state = self.lock();
        cgroup::make_parents(facts, parent)?;
        cgroup::cpuset(facts, parent)
    }

    /// Takes up a pod of an earlier daemon.
    pub(super) fn restore(&self, parent: &str, made: &[PathBuf]) {
        let mut state = self.lock();
        state.made.extend(made.iter().cloned());
        *state.pods.entry(parent.to_owned()).or_default() += 1;
    }

    /// One pod less. Blocks for a few directories.
    pub(super) fn release(&self, facts: &CgroupFacts, parent: &str) {
        let mut state = self.lock();
        let Some(count) = state.pods.get_mut(parent) else {
            return;
        };
        *count -= 1;
        if *count > 0 {
            return;
        }
        state.pods.remove(parent);
        let held: Vec<PathBuf> = state
            .pods
            .keys()
            .flat_map(|parent| leaves(facts, parent))
            .collect();
        let free = state
            .made
            .iter()
            .filter(|dir| !held.iter().any(|leaf| leaf.starts_with(dir)));
        let free: Vec<PathBuf> = free.cloned().collect();
        cgroup::remove_parents(&free);
        state.made.retain(|dir| !free.contains(dir) || dir.exists());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn leaves(facts: &CgroupFacts, parent: &str) -> Vec<PathBuf> {
    spec::leaves(facts, parent)
        .into_iter()
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::HostFacts;

    #[test]
    fn parents_go_with_their_last_pod() {
        let facts = HostFacts::probe().unwrap().cgroup;
        let top = format!("/berth-parents-{}", std::process::id());
        let (a, b) = (format!("{top}/a"), format!("{top}/b"));
        let there = |path: &str| leaves(&facts, path).iter().all(|dir| dir.exists());
        let parents = Parents::default();
        let made = parents.enter(&facts, &a);
        assert_eq!(made.len(), 2 * leaves(&facts, &a).len());
        parents.enter(&facts, &a);
        parents.enter(&facts, &b);
        parents.make(&facts, &a).unwrap();
        parents.make(&facts, &b).unwrap();
        parents.release(&facts, &a);
        assert!(there(&a), "one pod is left");
        parents.release(&facts, &a);
        assert!(!there(&a) && there(&b));
        parents.release(&facts, &b);
        assert!(!there(&top));
    }
}
