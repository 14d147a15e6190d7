//! The same generated pods on Berth and on containerd, looked at from inside: what differs must be in a table.

pub mod generate;
pub mod known;
pub mod random;
pub mod view;

use std::collections::BTreeSet;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use berth_cri_api::v1::{ContainerConfig, ContainerState, KeyValue};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use crate::pods::{Ctr, Pod};
use crate::runtime::Instance;
use generate::{Case, SOURCES};
use view::{Names, View};

/// Something that is not the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// what was looked at
    pub key: String,
    /// what Berth shows; empty: nothing
    pub berth: String,
    /// what containerd shows; empty: nothing
    pub containerd: String,
}

/// What is not the same in two views. Where only one runs, there is nothing more to compare.
#[must_use]
pub fn compare(berth: &Seen, containerd: &Seen) -> Vec<Difference> {
    let outcome = |seen: &Seen| seen.view.get("outcome").cloned().unwrap_or_default();
    if outcome(berth) != outcome(containerd) {
        let told = |seen: &Seen| format!("{}: {}", outcome(seen), seen.words);
        return vec![Difference {
            key: "outcome".to_owned(),
            berth: told(berth),
            containerd: told(containerd),
        }];
    }
    let (berth, containerd) = (&berth.view, &containerd.view);
    let keys: BTreeSet<&String> = berth.keys().chain(containerd.keys()).collect();
    let of = |view: &View, key: &String| view.get(key).cloned().unwrap_or_default();
    let all = keys.into_iter().map(|key| Difference {
        key: key.clone(),
        berth: of(berth, key),
        containerd: of(containerd, key),
    });
    all.filter(|one| one.berth != one.containerd).collect()
}

/// Mounts a place with the sources of mounts in an instance's folder, shared, so that mounts may propagate. It goes
/// with [`Instance::sweep`].
///
/// # Errors
/// When it cannot be mounted.
pub fn mount_sources(instance: &Instance) -> Result<()> {
    let folder = sources(instance);
    std::fs::create_dir_all(&folder)?;
    // What the last case left, mounts that a container's have propagated to included.
    let _first = rustix::mount::unmount(&folder, UnmountFlags::DETACH);
    rustix::mount::mount(
        "sources",
        &folder,
        "tmpfs",
        MountFlags::empty(),
        c"mode=755",
    )?;
    rustix::mount::mount_change(&folder, MountPropagationFlags::SHARED)?;
    std::fs::create_dir_all(folder.join("data/sub"))?;
    std::fs::write(folder.join("data/file"), "of the host\n")?;
    std::fs::write(folder.join("data/sub/over"), "")?;
    std::fs::write(folder.join("file"), "127.0.0.1 localhost of the host\n")?;
    std::fs::set_permissions(
        folder.join("data/sub"),
        std::fs::Permissions::from_mode(0o1777),
    )?;
    std::os::unix::fs::chown(folder.join("data/file"), Some(1000), Some(1001))?;
    symlink("data", folder.join("link"))?;
    symlink("/nowhere", folder.join("data/dangling"))?;
    Ok(())
}

fn sources(instance: &Instance) -> std::path::PathBuf {
    instance.folder().join("sources")
}

/// What was seen of a case, and what the runtime said where it refused something.
#[derive(Debug, Default)]
pub struct Seen {
    /// by name
    pub view: View,
    /// an error in the runtime's words, which are its own
    pub words: String,
}

/// Runs a case and looks at it. A refusal is something seen.
///
/// # Errors
/// When the case cannot be removed again, or a container that started cannot be looked at.
pub async fn look(instance: &Instance, case: &Case) -> Result<Seen> {
    let mut seen = Seen::default();
    let mut config = case.pod.clone();
    let logs = instance.folder().join("logs/case");
    config.log_directory = logs.display().to_string();
    if let Some(linux) = &mut config.linux {
        linux.cgroup_parent = instance.cgroup_parent();
    }
    let pod = match Pod::run(instance.cri()?, config).await {
        Ok(pod) => pod,
        Err(e) => {
            seen.view.insert("outcome".into(), "pod refused".into());
            seen.words = format!("{e:#}");
            return Ok(seen);
        }
    };
    let looked = look_inside(instance, &pod, case, &mut seen).await;
    pod.remove().await.context("removing the pod")?;
    // The next case begins with the same sources and an empty log.
    mount_sources(instance)?;
    let _none = std::fs::remove_dir_all(logs);
    looked.map(|()| seen)
}

async fn look_inside(instance: &Instance, pod: &Pod, case: &Case, seen: &mut Seen) -> Result<()> {
    let container = match pod.start(&placed(instance, &case.container)?).await {
        Ok(container) => container,
        Err(e) => {
            seen.view
                .insert("outcome".into(), "container refused".into());
            seen.words = format!("{e:#}");
            return Ok(());
        }
    };
    let mut names = Names::default();
    names.add(&container.id, "CONTAINER");
    names.add(&pod.id, "POD");
    if let Ok(ip) = pod.ip().await {
        names.add(&ip, "ADDRESS");
    }
    names.add_all(Names::of(instance));
    let running = wait(&container).await?;
    seen.view.insert("outcome".into(), "started".into());
    view::add_probe(
        &mut seen.view,
        &names,
        "",
        &container.stdout().unwrap_or_default(),
    );
    if running {
        view::add_status(&mut seen.view, &names, &container).await?;
        let output = container.exec(&["/bin/sh", "/probe", "exec"]).await?;
        seen.view
            .insert("exec/code".into(), output.code.to_string());
        view::add_probe(&mut seen.view, &names, "exec/", &output.stdout);
        container.cri.stop(&container.id, 10).await?;
    }
    let end = container.wait().await?;
    seen.view
        .insert("end/code".into(), end.exit_code.to_string());
    seen.view.insert("end/reason".into(), end.reason);
    let said = container.stdout().unwrap_or_default();
    let last = said.lines().last().unwrap_or_default().trim_end();
    seen.view.insert("end/last line".into(), names.plain(last));
    if !running {
        seen.words = container.stream("stderr").unwrap_or_default();
    }
    Ok(())
}

/// Until the probe has said everything; false when it ended before that.
async fn wait(container: &Ctr) -> Result<bool> {
    for _ in 0..1500 {
        let log = std::fs::read_to_string(&container.log).unwrap_or_default();
        if log.contains("probe done") {
            return Ok(true);
        }
        if container.status().await?.state() == ContainerState::ContainerExited {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!(
        "the probe did not end within 30 s; see {}",
        container.log.display()
    )
}

/// The configuration with the instance's folder in it.
fn placed(instance: &Instance, config: &ContainerConfig) -> Result<ContainerConfig> {
    let mut config = config.clone();
    for mount in &mut config.mounts {
        let folder = sources(instance).display().to_string();
        mount.host_path = mount.host_path.replace(SOURCES, &folder);
    }
    for (key, kind) in [("HOST_PID_NAMESPACE", "pid"), ("HOST_NET_NAMESPACE", "net")] {
        let host = std::fs::read_link(format!("/proc/self/ns/{kind}"))?;
        config.envs.push(KeyValue {
            key: key.to_owned(),
            value: host.display().to_string().into_bytes(),
        });
    }
    Ok(config)
}

/// Where the table of meant differences is.
#[must_use]
pub fn table() -> std::path::PathBuf {
    crate::paths::workspace().join(Path::new("tests/difftest/known.txt"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_told() {
        let view = |pairs: &[(&str, &str)]| {
            let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            Seen {
                view: pairs.iter().map(own).collect(),
                words: String::new(),
            }
        };
        let told = compare(
            &view(&[("a", "1"), ("b", "2"), ("c", "3")]),
            &view(&[("a", "1"), ("b", "x"), ("d", "4")]),
        );
        let told: Vec<(&str, &str, &str)> = told
            .iter()
            .map(|one| {
                (
                    one.key.as_str(),
                    one.berth.as_str(),
                    one.containerd.as_str(),
                )
            })
            .collect();
        assert_eq!(told, [("b", "2", "x"), ("c", "3", ""), ("d", "", "4")]);
        let told = compare(
            &view(&[("outcome", "refused")]),
            &view(&[("a", "1"), ("outcome", "started")]),
        );
        assert_eq!(told.len(), 1);
    }
}
