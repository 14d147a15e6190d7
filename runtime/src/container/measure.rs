//! Which containers there are to measure. The measuring is done in `stats`.

use super::{Container, ContainerManager, Error};
use crate::model::{ContainerFilter, ContainerSubject};

impl ContainerManager {
    /// A container to measure, by id or unique prefix.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`].
    pub fn measurable(&self, id: &str) -> Result<ContainerSubject, Error> {
        self.0.find(id).map(|c| subject(&c))
    }

    /// Containers to measure, as [`ContainerManager::list`] lists them.
    pub fn all_measurable(&self, filter: &ContainerFilter) -> Vec<ContainerSubject> {
        let containers = self.selected(filter);
        let all = containers.iter().map(|c| subject(c));
        all.filter(|c| filter.state.is_none_or(|s| s == c.state))
            .collect()
    }
}

fn subject(container: &Container) -> ContainerSubject {
    ContainerSubject {
        id: container.id.clone(),
        pod: container.pod.clone(),
        spec: container.spec.clone(),
        state: container.state(),
        cgroup: container.parts().cgroup_path.clone(),
    }
}
