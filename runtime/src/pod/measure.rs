//! Which pods there are to measure. The measuring is done in `stats`.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Error, Pod, PodManager};
use crate::model::{PodCgroup, PodFilter, PodSubject, has_labels};

impl PodManager {
    /// A ready pod to measure, by id or unique prefix.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`], [`Error::NotReady`].
    pub fn measurable(&self, id: &str) -> Result<PodSubject, Error> {
        let pod = self.0.find(id)?;
        let parents = self.parents();
        subject(&pod, &parents).ok_or_else(|| Error::NotReady(pod.id.clone()))
    }

    /// Ready pods to measure; the state of the filter does not count.
    pub fn all_measurable(&self, filter: &PodFilter) -> Vec<PodSubject> {
        let parents = self.parents();
        let pods = self.0.pods.named(&filter.id);
        pods.iter()
            .filter(|p| has_labels(&p.spec.labels, &filter.labels))
            .filter_map(|p| subject(p, &parents))
            .collect()
    }

    /// How many ready pods stand in each parent cgroup.
    fn parents(&self) -> HashMap<String, usize> {
        let mut parents = HashMap::new();
        for pod in self.0.pods.all() {
            if pod.is_ready() {
                let parent = pod.parts().cgroup_parent.clone();
                *parents.entry(parent).or_default() += 1;
            }
        }
        parents
    }
}

/// `None`: it is not ready.
fn subject(pod: &Arc<Pod>, parents: &HashMap<String, usize>) -> Option<PodSubject> {
    if !pod.is_ready() {
        return None;
    }
    let parts = pod.parts();
    let parent = &parts.cgroup_parent;
    // The kubelet gives each pod a parent of its own, and systemd a scope. Others, crictl among them, name
    // none or the same one for all; whatever else is in it is not this pod's.
    let named = parts.scope.is_some() || !pod.spec.cgroup_parent.is_empty();
    let alone = parents.get(parent).is_none_or(|count| *count <= 1);
    Some(PodSubject {
        id: pod.id.clone(),
        spec: pod.spec.clone(),
        cgroup: if named && alone {
            PodCgroup::Own(parent.clone())
        } else {
            PodCgroup::Shared(format!("{}/{}", parent.trim_end_matches('/'), pod.id))
        },
        pause: parts.pause.as_ref().map(|p| p.pid),
        netns: parts.netns.clone(),
    })
}
