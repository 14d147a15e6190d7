//! Device nodes and the rules of the device controller.

use serde_json::{Value, json};
use shim_protocol::worker::DeviceRule;

use super::mounts::Mounts;
use super::{DeviceNode, Error};

/// Nodes that libcontainer makes in every container, and the ones that stand for the container's own terminal: the
/// host's do not take their place.
const OWN_NODES: [&str; 8] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/console",
];

/// Character devices that every container may open, as in runc's list: the six above, its terminals and their
/// multiplexer, and tun, which acts in the container's own network namespace. Not the host's console (5:1).
const DEFAULT_CHARACTER: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(2)),
    (136, None),
    (10, Some(200)),
];

/// Checks the nodes and gives the ones to be made, each path once. What was asked for goes before what comes with the
/// privilege, and before what the container has of its own.
pub(super) fn nodes(devices: &[DeviceNode], mounts: &Mounts) -> Result<Vec<Value>, Error> {
    let taken = &mounts.requested;
    let mut seen = std::collections::BTreeSet::new();
    let mut nodes = Vec::new();
    let (asked, hosts): (Vec<_>, Vec<_>) = devices.iter().partition(|device| device.asked);
    for device in asked.into_iter().chain(hosts) {
        check(device)?;
        let path = super::mounts::normalise(&device.path);
        // A mount of the request lies where the node would be: the mount wins, as on every runtime. One that
        // would lie inside it is looked for there only if somebody named it.
        let covered =
            taken.contains(&path) || !device.asked && taken.iter().any(|mount| below(&path, mount));
        let own = !device.asked && OWN_NODES.contains(&path.as_str());
        if covered || own || !seen.insert(path.clone()) {
            continue;
        }
        if device.asked
            && mounts
                .oci
                .iter()
                .any(|mount| mount["destination"] == path.as_str())
        {
            return Err(Error::Device {
                path: device.path.clone(),
                why: "a mount lies there that every container has: ask for another path".to_owned(),
            });
        }
        nodes.push(json!({
            "path": path,
            "type": device.kind.to_string(),
            "major": device.major,
            "minor": device.minor,
            "fileMode": device.mode & 0o7777,
            "uid": device.uid,
            "gid": device.gid,
        }));
    }
    Ok(nodes)
}

fn below(path: &str, top: &str) -> bool {
    path.strip_prefix(top)
        .is_some_and(|rest| rest.starts_with('/'))
}

fn check(device: &DeviceNode) -> Result<(), Error> {
    let wrong = |why: &str| {
        Err(Error::Device {
            path: device.path.clone(),
            why: why.to_owned(),
        })
    };
    if !matches!(device.kind, 'b' | 'c') {
        return wrong("only block and character devices can be given");
    }
    if device.path.is_empty() || device.path.contains('\0') {
        return wrong("its path in the container is empty or contains a NUL byte");
    }
    let mut letters: Vec<char> = device.access.chars().collect();
    letters.sort_unstable();
    let before = letters.len();
    letters.dedup();
    if letters.is_empty()
        || letters.len() != before
        || letters.iter().any(|letter| !"rwm".contains(*letter))
    {
        return wrong("its permissions are not a subset of \"rwm\"");
    }
    Ok(())
}

/// The rules, in order: everything denied, making of nodes and the usual ones allowed, then what was
/// asked for. Without the first nothing would be denied on v1.
pub(super) fn rules(devices: &[DeviceNode], privileged: bool) -> Vec<DeviceRule> {
    if privileged {
        return vec![rule(true, "a", None, None, "rwm")];
    }
    let mut rules = vec![
        rule(false, "a", None, None, "rwm"),
        rule(true, "c", None, None, "m"),
        rule(true, "b", None, None, "m"),
    ];
    rules
        .extend(DEFAULT_CHARACTER.map(|(major, minor)| rule(true, "c", Some(major), minor, "rwm")));
    rules.extend(devices.iter().map(|device| {
        let (major, minor) = (i64::from(device.major), i64::from(device.minor));
        rule(
            true,
            &device.kind.to_string(),
            Some(major),
            Some(minor),
            &device.access,
        )
    }));
    rules
}

fn rule(
    allow: bool,
    kind: &str,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> DeviceRule {
    DeviceRule {
        allow,
        kind: kind.to_owned(),
        major,
        minor,
        access: access.to_owned(),
    }
}

/// A rule as the v1 files take it (Documentation/admin-guide/cgroup-v1/devices.rst): file name and line.
pub(super) fn v1_line(rule: &DeviceRule) -> (&'static str, String) {
    let file = if rule.allow {
        "devices.allow"
    } else {
        "devices.deny"
    };
    let number = |number: Option<i64>| number.map_or("*".to_owned(), |number| number.to_string());
    let line = match rule.kind.as_str() {
        // "a" ignores what follows; alone it is what the kernel documents.
        "a" => "a".to_owned(),
        kind => format!(
            "{kind} {}:{} {}",
            number(rule.major),
            number(rule.minor),
            rule.access
        ),
    };
    (file, line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(path: &str, access: &str) -> DeviceNode {
        DeviceNode {
            path: path.into(),
            kind: 'c',
            major: 10,
            minor: 229,
            mode: 0o660,
            uid: 0,
            gid: 44,
            access: access.into(),
            asked: true,
        }
    }

    #[test]
    fn deny_all_comes_first_and_the_rest_is_runcs_list() {
        let rules = rules(&[node("/dev/fuse", "rw")], false);
        let lines: Vec<_> = rules.iter().map(v1_line).collect();
        assert_eq!(lines[0], ("devices.deny", "a".to_owned()));
        assert_eq!(lines[1], ("devices.allow", "c *:* m".to_owned()));
        assert!(lines.contains(&("devices.allow", "c 136:* rwm".to_owned())));
        assert_eq!(lines.last().unwrap().1, "c 10:229 rw");
        let usual: Vec<&str> = lines[3..lines.len() - 1]
            .iter()
            .map(|(file, line)| {
                assert_eq!(*file, "devices.allow");
                line.as_str()
            })
            .collect();
        let runcs = [
            "c 1:3 rwm",
            "c 1:5 rwm",
            "c 1:7 rwm",
            "c 1:8 rwm",
            "c 1:9 rwm",
            "c 5:0 rwm",
            "c 5:2 rwm",
            "c 136:* rwm",
            "c 10:200 rwm",
        ];
        assert_eq!(usual, runcs);
        assert_eq!(super::rules(&[], true).len(), 1);
    }

    #[test]
    fn nodes_are_made_once_and_not_over_mounts_or_the_containers_own() {
        let devices = [
            node("/dev/fuse", "rw"),
            node("/dev//fuse", "r"),
            node("/dev/null", "r"),
            node("/dev/kvm", "m"),
        ];
        let made = nodes(&devices, &mounts(&["/dev/kvm"])).unwrap();
        assert_eq!(made.len(), 2);
        assert_eq!(made[0]["path"], "/dev/fuse");
        assert_eq!(made[1]["path"], "/dev/null");
        let hosts = |asked| DeviceNode {
            asked,
            ..node("/dev/dri/card0", "rw")
        };
        for (mount, asked, count) in [
            ("/dev", false, 0),
            ("/dev/dri", false, 0),
            ("/dev/d", false, 1),
            ("/dev", true, 1),
        ] {
            let made = nodes(&[hosts(asked)], &mounts(&[mount])).unwrap();
            assert_eq!(made.len(), count, "{mount} {asked}");
        }
        for access in ["", "x", "rr", "rwmx"] {
            assert!(
                nodes(&[node("/dev/fuse", access)], &mounts(&[])).is_err(),
                "{access}"
            );
        }
    }

    fn mounts(requested: &[&str]) -> Mounts {
        let own = ["/proc", "/dev", "/dev/pts", "/dev/shm", "/etc/hosts"];
        Mounts {
            oci: own.map(|path| json!({ "destination": path })).to_vec(),
            requested: requested.iter().map(|path| (*path).to_owned()).collect(),
            read_only: Vec::new(),
        }
    }

    #[test]
    fn what_is_asked_for_takes_the_place_of_every_other_node() {
        let host = |path: &str| DeviceNode {
            minor: 1,
            asked: false,
            ..node(path, "rwm")
        };
        let devices = [
            host("/dev/kvm"),
            host("/dev/random"),
            host("/dev/sda"),
            node("/dev/kvm", "rw"),
            node("/dev/./random", "rw"),
            node("/dev/console", "rw"),
            node("/dev/ptmx", "rw"),
            node("/dev/pts/z", "rw"),
        ];
        let made = nodes(&devices, &mounts(&[])).unwrap();
        let made: Vec<_> = made
            .iter()
            .map(|node| {
                (
                    node["path"].as_str().unwrap(),
                    node["minor"].as_u64().unwrap(),
                )
            })
            .collect();
        let asked = ["kvm", "random", "console", "ptmx", "pts/z"];
        let mut wanted: Vec<_> = asked.map(|name| (format!("/dev/{name}"), 229)).to_vec();
        wanted.push(("/dev/sda".to_owned(), 1));
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(path, minor)| (path.as_str(), *minor))
            .collect();
        assert_eq!(made, wanted);
        for path in ["/dev", "/dev/pts", "/dev/shm/", "/etc/hosts"] {
            let error = nodes(&[node(path, "rw")], &mounts(&[]))
                .unwrap_err()
                .to_string();
            assert!(error.contains("every container has"), "{error}");
        }
    }
}
