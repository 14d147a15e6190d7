//! Who makes the cgroups above Berth's own: Berth, or systemd.

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::{CgroupDriver, Config};
use crate::host::{CgroupFacts, HostFacts};
use crate::model::chain;
use crate::pod::PodCgroups;
use crate::runtime::Shims;
use crate::systemd::Systemd;
use crate::{cgroup, spec};

/// The slice of all that belongs to Berth.
const SLICE: &str = "berth.slice";

/// The driver of this daemon.
pub(super) enum Driver {
    /// Directories below the roots of the hierarchies.
    Cgroupfs {
        /// The monitors' ones.
        shims: Vec<PathBuf>,
        /// Parent of pods that name none.
        default_parent: String,
    },
    /// Scopes in slices.
    Systemd {
        systemd: Arc<Systemd>,
        /// The scope of the monitors.
        unit: String,
        /// Its directory.
        dir: PathBuf,
        /// Slice of pods that name none.
        default_slice: String,
    },
}

impl Driver {
    /// The driver that is configured, or that fits the machine. Makes the monitors' cgroup where it is ours.
    pub(super) fn choose(config: &Config, facts: &HostFacts) -> Result<Self, String> {
        let possible = facts.systemd && facts.cgroup.is_v2();
        match config.cgroup_driver {
            CgroupDriver::Auto if possible => Self::systemd(config, facts),
            CgroupDriver::Auto | CgroupDriver::Cgroupfs => Self::cgroupfs(config, facts),
            CgroupDriver::Systemd if possible => Self::systemd(config, facts),
            CgroupDriver::Systemd => Err(
                "cgroup.driver = \"systemd\" needs systemd as PID 1 and cgroup v2 alone, and this machine has not \
                 both: say \"cgroupfs\" or \"auto\", and the same to the kubelet"
                    .to_owned(),
            ),
        }
    }

    fn cgroupfs(config: &Config, facts: &HostFacts) -> Result<Self, String> {
        let shims =
            cgroup::ensure_shims(&facts.cgroup, &config.shims_cgroup).map_err(|e| chain(&e))?;
        Ok(Self::Cgroupfs {
            shims,
            default_parent: config.default_cgroup_parent.clone(),
        })
    }

    fn systemd(config: &Config, facts: &HostFacts) -> Result<Self, String> {
        let CgroupFacts::V2 { root, .. } = &facts.cgroup else {
            return Err("cgroup v2 is not mounted".to_owned());
        };
        let default_slice = slice_name(&config.default_cgroup_parent);
        spec::slice_path(&default_slice)
            .map_err(|e| format!("cgroup.default_parent: {}", chain(&e)))?;
        let unit = format!("{}.scope", config.shims_cgroup);
        Ok(Self::Systemd {
            systemd: Arc::new(Systemd::default()),
            dir: root.join(SLICE).join(&unit),
            unit,
            default_slice,
        })
    }

    /// What the CRI calls it.
    pub(super) fn name(&self) -> crate::cri::CgroupDriver {
        match self {
            Self::Cgroupfs { .. } => crate::cri::CgroupDriver::Cgroupfs,
            Self::Systemd { .. } => crate::cri::CgroupDriver::Systemd,
        }
    }

    pub(super) fn shims(&self) -> Shims {
        match self {
            Self::Cgroupfs { shims, .. } => Shims::Directories(shims.clone()),
            Self::Systemd {
                systemd, unit, dir, ..
            } => Shims::Scope {
                systemd: systemd.clone(),
                unit: unit.clone(),
                slice: SLICE.to_owned(),
                dir: dir.clone(),
            },
        }
    }

    pub(super) fn pods(&self) -> PodCgroups {
        match self {
            Self::Cgroupfs { default_parent, .. } => PodCgroups::Directories {
                default_parent: default_parent.clone(),
            },
            Self::Systemd {
                systemd,
                default_slice,
                ..
            } => PodCgroups::Scopes {
                systemd: systemd.clone(),
                default_slice: default_slice.clone(),
            },
        }
    }

    /// Removes what nobody is in any more; a scope goes by itself. Blocks for a moment.
    pub(super) fn close(&self) {
        if let Self::Cgroupfs { shims, .. } = self {
            cgroup::remove_shims(shims);
        }
    }
}

/// A configured parent as a slice: `/a/b` is `a-b.slice`.
fn slice_name(parent: &str) -> String {
    if parent.ends_with(".slice") {
        return parent.to_owned();
    }
    format!("{}.slice", parent.trim_matches('/').replace('/', "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_parent_becomes_a_slice() {
        for (parent, slice) in [
            ("/berth", "berth.slice"),
            ("/a/b/", "a-b.slice"),
            ("kubepods.slice", "kubepods.slice"),
            ("/x.slice/x-y.slice", "/x.slice/x-y.slice"),
        ] {
            assert_eq!(slice_name(parent), slice);
        }
    }
}
