//! Where cgroups go: parents as the kubelet names them, leaves, directories.

use std::path::Path;

use super::Error;
use crate::host::CgroupFacts;

/// Parent of pods for which the kubelet names none (critest does not).
pub const DEFAULT_PARENT: &str = "/berth";

/// The kernel's limit for a path (limits.h), and more than any real parent has.
const MAX_PATH: usize = 4000;

/// A cgroup parent for the cgroupfs driver, in canonical form: absolute, no trailing slash.
/// Empty becomes `default`.
///
/// # Errors
/// A relative path, `..`, or a slice name, which belongs to the systemd driver (row F011).
pub fn cgroupfs_parent(parent: &str, default: &str) -> Result<String, Error> {
    let asked = if parent.is_empty() { default } else { parent };
    let wrong = |why| Error::CgroupParent {
        parent: parent.chars().take(200).collect(),
        driver: "cgroupfs",
        why,
    };
    if !asked.starts_with('/') {
        let slice = asked.ends_with(".slice");
        return Err(wrong(if slice {
            "it is a slice name: set the driver to systemd on both sides, or to cgroupfs in the kubelet"
        } else {
            "an absolute path is wanted"
        }));
    }
    if asked.len() > MAX_PATH || asked.chars().any(char::is_control) {
        return Err(wrong("it is too long or contains control characters"));
    }
    let parts: Vec<&str> = asked
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    if parts.contains(&"..") {
        return Err(wrong("it contains \"..\""));
    }
    if parts.is_empty() {
        return Err(wrong("pods cannot be put into the root cgroup"));
    }
    Ok(format!("/{}", parts.join("/")))
}

/// The path of a slice below the root: `a-b.slice` lies in `a.slice` (systemd.slice(5)). A path that ends
/// in a slice name counts as that name.
///
/// # Errors
/// A name that is no slice.
pub fn slice_path(parent: &str) -> Result<String, Error> {
    let wrong = |why| Error::CgroupParent {
        parent: parent.chars().take(200).collect(),
        driver: "systemd",
        why,
    };
    let name = parent
        .trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default();
    let Some(stem) = name.strip_suffix(".slice") else {
        return Err(wrong("a name that ends in .slice is wanted"));
    };
    if stem == "-" {
        return Ok("/".to_owned());
    }
    if stem.is_empty() || stem.starts_with('-') || stem.ends_with('-') || stem.contains("--") {
        return Err(wrong("its dashes do not separate names"));
    }
    if name.len() > 255 || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(wrong("it is too long or contains white space"));
    }
    let mut path = String::new();
    let ends = stem
        .match_indices('-')
        .map(|(at, _)| at)
        .chain([stem.len()]);
    for end in ends {
        path.push('/');
        path.push_str(&stem[..end]);
        path.push_str(".slice");
    }
    Ok(path)
}

/// The directory of a cgroup path in a hierarchy.
pub(super) fn below(mount: &Path, path: &str) -> String {
    format!("{}{path}", mount.to_string_lossy().trim_end_matches('/'))
}

/// The directories of a cgroup, one for each hierarchy with controllers.
pub fn leaves(facts: &CgroupFacts, path: &str) -> Vec<String> {
    facts
        .controller_mounts()
        .iter()
        .map(|mount| below(mount, path))
        .collect()
}

/// The directories of a cgroup and of all above it, outermost first in each hierarchy.
pub(super) fn chain(facts: &CgroupFacts, path: &str) -> Vec<String> {
    let mounts = facts.controller_mounts();
    mounts
        .iter()
        .flat_map(|mount| chain_below(mount, path))
        .collect()
}

fn chain_below(mount: &Path, path: &str) -> Vec<String> {
    let ends = path
        .match_indices('/')
        .skip(1)
        .map(|(at, _)| at)
        .chain([path.len()]);
    ends.map(|end| below(mount, &path[..end])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_of_the_cgroupfs_driver() {
        let parse = |parent| cgroupfs_parent(parent, DEFAULT_PARENT);
        assert_eq!(
            parse("/kubepods/burstable/pod1/").unwrap(),
            "/kubepods/burstable/pod1"
        );
        assert_eq!(parse("").unwrap(), "/berth");
        assert_eq!(parse("//a/./b").unwrap(), "/a/b");
        // critest sends this one to both drivers; as a path it is an ordinary directory name.
        assert_eq!(parse("/test.slice").unwrap(), "/test.slice");
        for bad in [
            "kubepods",
            "kubepods-pod1.slice",
            "/a/../b",
            "/",
            "/..",
            "/a\nb",
            "system.slice:x:y",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn slices_unfold() {
        let path = |name| slice_path(name).unwrap();
        assert_eq!(path("kubepods.slice"), "/kubepods.slice");
        assert_eq!(
            path("kubepods-burstable-pod1_2.slice"),
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice"
        );
        assert_eq!(
            path("/kubepods.slice/kubepods-besteffort.slice"),
            "/kubepods.slice/kubepods-besteffort.slice"
        );
        assert_eq!(path("-.slice"), "/");
        for bad in [
            "",
            ".slice",
            "a--b.slice",
            "-a.slice",
            "a-.slice",
            "a.scope",
            "a b.slice",
            "/kubepods/pod1",
        ] {
            assert!(slice_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_chain_begins_below_the_mount() {
        let facts = CgroupFacts::V2 {
            root: "/sys/fs/cgroup".into(),
            controllers: vec![],
            swap: true,
        };
        assert_eq!(
            chain(&facts, "/a/b"),
            ["/sys/fs/cgroup/a", "/sys/fs/cgroup/a/b"]
        );
        assert_eq!(leaves(&facts, "/a/b"), ["/sys/fs/cgroup/a/b"]);
    }
}
