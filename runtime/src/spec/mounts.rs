//! Mounts: the ones that every container has, those of the pod, and the request's, which win.

use std::path::Path;

use serde_json::{Value, json};

use super::{ContainerInput, Error, ResolvedMount};
use crate::host::{CgroupFacts, SourcePropagation};
use crate::model::MountPropagation;

/// What becomes of a container's mounts.
#[derive(Debug)]
pub(super) struct Mounts {
    /// For `config.json`. The worker makes them in the order of where they lead in the root, outer ones first; of
    /// two that lead to the same place the later one here wins.
    pub(super) oci: Vec<Value>,
    /// The paths of the request's own mounts.
    pub(super) requested: Vec<String>,
    /// Further paths to make read-only once everything is mounted.
    pub(super) read_only: Vec<String>,
}

/// An absolute path without `.`, `..` and doubled slashes. Only the text is looked at: symlinks are
/// resolved in the container's root, when it is mounted.
pub fn normalise(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

struct Entry {
    path: String,
    value: Value,
}

fn entry(path: &str, kind: &str, source: &str, options: &[&str]) -> Entry {
    let value = json!({ "destination": path, "type": kind, "source": source, "options": options });
    Entry {
        path: path.to_owned(),
        value,
    }
}

pub(super) fn build(input: &ContainerInput<'_>) -> Result<Mounts, Error> {
    let mut asked = Vec::new();
    for mount in input.mounts {
        asked.push(requested(mount)?);
    }
    let taken: Vec<String> = asked.iter().map(|entry| entry.path.clone()).collect();
    let (own, read_only) = defaults(input, &taken)?;
    let all = own
        .into_iter()
        .filter(|entry| !replaced(entry, &taken))
        .chain(asked);
    Ok(Mounts {
        oci: all.map(|entry| entry.value).collect(),
        requested: taken,
        read_only,
    })
}

/// Whether a mount of the request takes the place of one of our own. A `/dev` of the pod's comes with what is in
/// it; only the pod's shared memory is still put there, as everywhere.
fn replaced(own: &Entry, taken: &[String]) -> bool {
    let dev = own.path.starts_with("/dev/") && own.path != "/dev/shm";
    taken.contains(&own.path) || dev && taken.iter().any(|path| path == "/dev")
}

fn requested(mount: &ResolvedMount) -> Result<Entry, Error> {
    let request = &mount.request;
    let path = normalise(&request.container_path);
    let wrong = |why: String| Error::Mount {
        path: request.container_path.clone(),
        why,
    };
    if request.container_path.is_empty() || request.container_path.contains('\0') || path == "/" {
        return Err(wrong(
            "its path in the container is empty, the root itself, or contains a NUL byte".into(),
        ));
    }
    let Some(source) = mount.source.to_str().filter(|_| mount.source.is_absolute()) else {
        return Err(wrong(format!(
            "its source {:?} is not an absolute UTF-8 path",
            mount.source
        )));
    };
    check_propagation(mount).map_err(wrong)?;
    let mut options = vec!["rbind".to_owned()];
    options.push(match request.propagation {
        MountPropagation::Private => "rprivate".to_owned(),
        MountPropagation::HostToContainer => "rslave".to_owned(),
        MountPropagation::Bidirectional => "rshared".to_owned(),
    });
    options.push(if request.readonly { "ro" } else { "rw" }.to_owned());
    options.extend(extra_options(&request.options, request.readonly).map_err(wrong)?);
    let value =
        json!({ "destination": path, "type": "bind", "source": source, "options": options });
    let entry = Entry { path, value };
    Ok(if mount.own { owned(entry) } else { entry })
}

/// Tells the worker that a mount is no volume of others. The word is not OCI's, where unknown ones are passed over.
fn owned(mut entry: Entry) -> Entry {
    entry.value["own"] = true.into();
    entry
}

/// Row F077 and F078: without a peer group on the host nothing would ever travel.
fn check_propagation(mount: &ResolvedMount) -> Result<(), String> {
    let source = mount.source.display();
    match (mount.request.propagation, mount.propagation) {
        (MountPropagation::HostToContainer, SourcePropagation::Private) => Err(format!(
            "HostToContainer propagation needs a shared or slave mount, and {source} lies on a private one: \
             mount --make-rshared it on the host"
        )),
        (
            MountPropagation::Bidirectional,
            SourcePropagation::Private | SourcePropagation::Slave,
        ) => Err(format!(
            "Bidirectional propagation needs a shared mount, and {source} does not lie on one: \
             mount --make-rshared it on the host"
        )),
        _ => Ok(()),
    }
}

/// Row R101. A plain flag is for the mount itself, one with `r` for all that a recursive bind brings along.
fn extra_options(options: &[String], readonly: bool) -> Result<Vec<String>, String> {
    let mut out: Vec<String> = Vec::new();
    for option in options {
        match option.as_str() {
            "noexec" | "nodev" | "nosuid" | "rnoexec" | "rnodev" | "rnosuid" => {
                if !out.contains(option) {
                    out.push(option.clone());
                }
            }
            "ro" if readonly => {}
            "rw" if !readonly => {}
            "ro" | "rw" => {
                return Err(format!(
                    "option {option:?} contradicts readonly = {readonly}"
                ));
            }
            "exec" | "dev" | "suid" if options.contains(&format!("no{option}")) => {
                return Err(format!(
                    "options {option:?} and \"no{option}\" contradict each other"
                ));
            }
            _ => {
                return Err(format!(
                    "option {option:?} is not supported: noexec, nodev and nosuid are, and with r before them"
                ));
            }
        }
    }
    Ok(out)
}

/// What the container gets when the request says nothing, and the paths to make read-only afterwards.
fn defaults(
    input: &ContainerInput<'_>,
    taken: &[String],
) -> Result<(Vec<Entry>, Vec<String>), Error> {
    let privileged = input.spec.privileged;
    let access = if privileged { "rw" } else { "ro" };
    let mut own = vec![
        entry("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        entry(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        entry(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        entry(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        entry(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", access],
        ),
    ];
    let mut read_only = Vec::new();
    if !taken
        .iter()
        .any(|path| path == "/sys" || path == "/sys/fs/cgroup")
    {
        control_groups(input, access, &mut own, &mut read_only);
    }
    let shm = pod_file(input.pod.shm.as_path(), "/dev/shm", false)?;
    // With the host's IPC namespace it is the host's.
    own.push(match input.pod.ipcns {
        Some(_) => owned(shm),
        None => shm,
    });
    for name in ["hosts", "hostname", "resolv.conf"] {
        let source = input.pod.files.join(name);
        own.push(pod_file(
            &source,
            &format!("/etc/{name}"),
            input.spec.read_only_root,
        )?);
    }
    Ok((own, read_only))
}

fn pod_file(source: &Path, path: &str, read_only: bool) -> Result<Entry, Error> {
    let text = source.to_str().ok_or_else(|| Error::Mount {
        path: path.to_owned(),
        why: format!("its source {source:?} is not UTF-8"),
    })?;
    let access = if read_only { "ro" } else { "rw" };
    Ok(entry(path, "bind", text, &["bind", "rprivate", access]))
}

/// `/sys/fs/cgroup`. On v2 a new mount in a cgroup namespace; without one a bind, because a new mount would
/// clear the mount options of the whole host. On v1 never `type: cgroup`, which libcontainer mounts
/// writable whatever is asked, but a bind of the container's own directory of each hierarchy.
fn control_groups(
    input: &ContainerInput<'_>,
    access: &str,
    own: &mut Vec<Entry>,
    read_only: &mut Vec<String>,
) {
    const FLAGS: [&str; 3] = ["nosuid", "noexec", "nodev"];
    const DIR: &str = "/sys/fs/cgroup";
    match &input.facts.cgroup {
        CgroupFacts::V2 { .. } if input.cgroup_namespace() => {
            own.push(entry(
                DIR,
                "cgroup",
                "cgroup",
                &["nosuid", "noexec", "nodev", "relatime", access],
            ));
        }
        CgroupFacts::V2 { root, .. } => {
            let source = root.to_string_lossy();
            own.push(entry(
                DIR,
                "bind",
                &source,
                &["bind", "rprivate", FLAGS[0], FLAGS[1], FLAGS[2], access],
            ));
        }
        CgroupFacts::V1 { .. } => {
            own.push(entry(
                DIR,
                "tmpfs",
                "tmpfs",
                &["nosuid", "noexec", "nodev", "mode=755", "size=64k"],
            ));
            for mount in input.facts.cgroup.controller_mounts() {
                let Some(name) = mount.file_name() else {
                    continue;
                };
                let source = super::cgroup_path::below(&mount, &input.cgroup_path());
                let target = format!("{DIR}/{}", name.to_string_lossy());
                own.push(entry(
                    &target,
                    "bind",
                    &source,
                    &["bind", "rprivate", FLAGS[0], FLAGS[1], FLAGS[2], access],
                ));
            }
            // The tmpfs has to take the mount points first, so it becomes read-only at the end.
            if access == "ro" {
                read_only.push(DIR.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_absolute_and_plain() {
        for (path, plain) in [
            ("/a//b/./c", "/a/b/c"),
            ("a/b/", "/a/b"),
            ("/a/../../b", "/b"),
            ("", "/"),
            ("/..", "/"),
        ] {
            assert_eq!(normalise(path), plain);
        }
    }

    #[test]
    fn extra_options_are_checked() {
        let check = |options: &[&str], readonly| {
            extra_options(
                &options
                    .iter()
                    .map(|option| (*option).to_owned())
                    .collect::<Vec<_>>(),
                readonly,
            )
        };
        assert_eq!(
            check(&["noexec", "rnodev", "noexec"], false).unwrap(),
            ["noexec", "rnodev"]
        );
        assert_eq!(check(&["ro"], true).unwrap(), Vec::<String>::new());
        assert!(check(&["rw"], true).unwrap_err().contains("contradicts"));
        assert!(
            check(&["exec", "noexec"], false)
                .unwrap_err()
                .contains("contradict")
        );
        for unknown in ["exec", "sync", "size=1", "", "rbind", "shared", "remount"] {
            assert!(check(&[unknown], false).is_err(), "{unknown}");
        }
    }
}
