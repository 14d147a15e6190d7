//! The first start after a version that kept its records elsewhere.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use berth_cri_api::v1::*;
use berth_tests::ensure_eq;
use berth_tests::pods::{Ctr, Pod};
use berth_tests::runner::Case;
use berth_tests::runtime::Net;

use super::{At, again, anew, each, full_container, full_pod, options};
use crate::records::{KINDS, move_back};

pub(super) async fn move_records(case: &mut Case) -> Result<()> {
    let options = options(case, Net::Builtin)?;
    case.start_with(options).await?;
    let mut inhabitants = Vec::new();
    for name in ["first", "second"] {
        let config = full_pod(case, name)?;
        let pod = Pod::run(case.cri()?, config).await?;
        let container = pod.start(&full_container("exec sleep 4321")).await?;
        let status = container.status().await?;
        inhabitants.push((pod, container, status));
    }
    each!("move_records", at => move_at(case, at, &inhabitants).await);
    for (pod, ..) in &inhabitants {
        again(case, pod)?.remove().await?;
    }
    Ok(())
}

/// One pod lies where the version before had it, the other one has been moved already.
async fn move_at(
    case: &mut Case,
    (point, before): At,
    inhabitants: &[(Pod, Ctr, ContainerStatus)],
) -> Result<()> {
    let instance = case.instance()?;
    instance.kill().await?;
    let root = instance.folder().join("root");
    let (pod, container, _) = &inhabitants[0];
    move_back(&root, Some([&pod.id, &container.id]))?;
    instance.crash_at = Some(match before {
        0 => format!("{point}=return"),
        before => format!("{point}={before}*off->return"),
    });
    let launched = instance.launch().await;
    instance.crash_at = None;
    let told = launched.err().map(|error| format!("{error:#}"));
    ensure!(
        told.as_ref()
            .is_some_and(|told| told.contains("as it was asked to")),
        "the point is not passed: {told:?}"
    );
    instance.launch().await?;
    for kind in KINDS {
        ensure!(root.join(kind).is_file(), "an older version could start");
        let moved = fs::read_dir(root.join("records").join(kind))?.count();
        ensure_eq!(moved, inhabitants.len());
    }
    for (pod, container, status) in inhabitants {
        let state = again(case, pod)?.cri.pod_status(&pod.id).await?.state();
        ensure_eq!(state, PodSandboxState::SandboxReady);
        let container = anew(case, container)?;
        ensure_eq!(&container.status().await?, status);
        ensure_eq!(container.sh("echo works").await?, "works\n");
    }
    Ok(())
}
