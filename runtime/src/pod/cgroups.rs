//! Where the cgroups of pods stand.

use std::sync::Arc;

use super::record::Scope;
use crate::id::PodId;
use crate::spec;
use crate::systemd::{self, Systemd};

/// Who makes what is above a pod's own cgroups.
#[derive(Debug)]
pub enum PodCgroups {
    /// The kubelet, or Berth itself.
    Directories {
        /// Of pods that name none.
        default_parent: String,
    },
    /// systemd: a delegated scope for each pod.
    Scopes {
        /// Makes them.
        systemd: Arc<Systemd>,
        /// Of pods that name none.
        default_slice: String,
    },
}

impl PodCgroups {
    /// The parent of a pod's cgroups, and the scope that it is.
    pub(super) fn of(
        &self,
        id: &PodId,
        asked: &str,
    ) -> Result<(String, Option<Scope>), spec::Error> {
        match self {
            Self::Directories { default_parent } => {
                Ok((spec::cgroupfs_parent(asked, default_parent)?, None))
            }
            Self::Scopes { default_slice, .. } => {
                let parent = if asked.is_empty() {
                    default_slice
                } else {
                    asked
                };
                let path = spec::slice_path(parent)?;
                let slice = match path.rsplit('/').next() {
                    Some(name) if !name.is_empty() => name,
                    _ => "-.slice",
                };
                let unit = scope_name(id);
                let scope = Scope {
                    slice: slice.to_owned(),
                    unit: unit.clone(),
                };
                Ok((
                    format!("{}/{unit}", path.trim_end_matches('/')),
                    Some(scope),
                ))
            }
        }
    }

    pub(super) async fn start(&self, scope: &systemd::Scope<'_>) -> Result<(), systemd::Error> {
        match self {
            Self::Scopes { systemd, .. } => systemd.start_scope(scope).await,
            Self::Directories { .. } => Ok(()),
        }
    }

    /// Ends a scope that an earlier daemon may have made under another driver: systemd is asked all the same.
    pub(super) async fn stop(&self, unit: &str) -> Result<(), systemd::Error> {
        match self {
            Self::Scopes { systemd, .. } => systemd.stop(unit).await,
            Self::Directories { .. } => Systemd::default().stop(unit).await,
        }
    }
}

/// The name of a pod's scope.
pub(super) fn scope_name(id: &PodId) -> String {
    format!("berth-{id}.scope")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_stands_in_the_slice_that_is_named() {
        let scopes = PodCgroups::Scopes {
            systemd: Arc::new(Systemd::default()),
            default_slice: "berth.slice".to_owned(),
        };
        let id = PodId::generate().unwrap();
        for (asked, path, slice) in [
            ("", "/berth.slice", "berth.slice"),
            (
                "kubepods-burstable.slice",
                "/kubepods.slice/kubepods-burstable.slice",
                "kubepods-burstable.slice",
            ),
            ("/a.slice/a-b.slice", "/a.slice/a-b.slice", "a-b.slice"),
            ("-.slice", "", "-.slice"),
        ] {
            let (parent, scope) = scopes.of(&id, asked).unwrap();
            let unit = format!("berth-{id}.scope");
            assert_eq!(parent, format!("{path}/{unit}"));
            let slice = slice.to_owned();
            assert_eq!(scope, Some(Scope { unit, slice }));
        }
        assert!(scopes.of(&id, "/kubepods/pod1").is_err());
    }
}
