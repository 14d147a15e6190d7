//! What Status and RuntimeConfig tell of the parts that the border does not see.

use std::sync::Arc;

use super::Parts;
use super::disks::Disks;
use super::selinux::Labels;
use crate::config::Config;
use crate::cri::{Abilities, Condition, NetworkReport, Node};
use crate::host::HostFacts;
use crate::model::chain;
use crate::network::Network;

pub(super) fn describe(config: &Arc<Config>, parts: &Parts, disks: Disks) -> Node {
    let facts = &parts.facts;
    let (notices, apparmor) = (notices(facts), parts.apparmor.clone());
    let profiles = apparmor.clone();
    let labels = Labels {
        host: facts.selinux.clone(),
        setting: config.selinux,
    };
    if let Some(notice) = labels.notice() {
        tracing::warn!("{notice}");
    }
    let (asked, told_labels, shown_labels) = (labels.clone(), labels.clone(), labels);
    let left_behind = parts.metrics.monitors_left_behind.clone();
    let (reported, told) = (parts.network.clone(), parts.network.clone());
    Node {
        config: config.clone(),
        cgroup_driver: parts.driver.name(),
        abilities: Box::new(move || Abilities {
            apparmor: profiles.works(),
            selinux: asked.options(),
            mount_options: true,
        }),
        handlers: Vec::new(),
        runtime: Box::new(move || {
            let disks = disks.condition();
            if disks.ready {
                told_labels.condition()
            } else {
                disks
            }
        }),
        network: Box::new(move || report(&reported)),
        notices: Box::new(move || {
            let labels = shown_labels.notice().into_iter().collect();
            let hung = hung_monitors(left_behind.get());
            [notices.clone(), labels, apparmor.notices(), hung].concat()
        }),
        pod_cidr: Box::new(move |cidr| {
            let (network, cidr) = (told.clone(), cidr.to_owned());
            tokio::spawn(async move {
                if let Err(error) = network.pod_cidr(&cidr).await {
                    tracing::error!(cidr, error = %chain(&error), "the pod CIDR cannot be used");
                }
            });
        }),
    }
}

/// What somebody who looks for the cause of a surprise should know of this machine.
fn notices(facts: &HostFacts) -> Vec<String> {
    let mut notices = Vec::new();
    if facts.min_oom_score_adj > -1000 {
        notices.push(format!(
            "oom_score_adj below {} cannot be given on this machine (no CAP_SYS_RESOURCE): lower values are raised to it",
            facts.min_oom_score_adj
        ));
    }
    notices
}

fn hung_monitors(count: i64) -> Vec<String> {
    let text = |count| {
        format!(
            "{count} monitors of containers were killed and do not end: they wait in the kernel, look for a disk of logs that hangs"
        )
    };
    (count > 0).then(|| text(count)).into_iter().collect()
}

fn report(network: &Network) -> NetworkReport {
    let status = network.status();
    let last_load = if status.ready {
        "OK".to_owned()
    } else {
        status.message.clone()
    };
    NetworkReport {
        condition: Condition {
            ready: status.ready,
            reason: status.reason,
            message: status.message,
        },
        config: network.describe(),
        last_load,
    }
}
