//! UpdateContainerResources.

use std::sync::Arc;

use super::{Container, Error, Inner};
use crate::model::{ContainerState, Kind, Kinded as _, Resources, chain};
use crate::spec;

pub(super) async fn update(
    inner: &Arc<Inner>,
    container: &Arc<Container>,
    wanted: Resources,
) -> Result<(), Error> {
    let _turn = container.turn.lock().await;
    let state = container.state();
    if !matches!(state, ContainerState::Created | ContainerState::Running) {
        let wanted = "created or running";
        return Err(Error::State {
            id: container.id.clone(),
            state: super::state_name(state),
            wanted,
            why: String::new(),
        });
    }
    let (old, path) = {
        let parts = container.parts();
        (parts.resources.clone(), parts.cgroup_path.clone())
    };
    let facts = inner.deps.facts.clone();
    let applied = crate::blocking::run("update a container's limits", move || {
        let usage = crate::cgroup::memory_in_use(&facts.cgroup, &path)
            .map_err(|e| (e.kind(), chain(&e)))?;
        let update = spec::update(
            spec::Place {
                facts: &facts.cgroup,
                path: &path,
            },
            &old,
            &wanted,
            usage,
        )
        .map_err(|e| (e.kind(), chain(&e)))?;
        crate::cgroup::apply_writes(&update.writes).map_err(|e| (e.kind(), chain(&e)))?;
        Ok(update.resources)
    })
    .await;
    let resources = applied.map_err(|(kind, problem): (Kind, String)| {
        super::exit::ended_or(
            container,
            container.step("update the limits", kind, problem),
        )
    })?;
    container.parts().resources = resources;
    inner
        .save(container)
        .await
        .map_err(|e| container.step("record the new limits", Kind::Unknown, chain(&e)))
}
