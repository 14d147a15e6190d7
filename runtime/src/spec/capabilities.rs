//! Capability names and sets (capabilities(7)); a set is a mask in which bit N is capability N.

use shim_protocol::worker::Capabilities;

use super::Error;
use crate::model::CapabilityRequest;

/// Names without `CAP_`, by number (include/uapi/linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container gets when nothing is said: the 14 that Docker chose (row F038).
pub const DEFAULT: u64 = bit(0)   // CHOWN
    | bit(1)    // DAC_OVERRIDE
    | bit(3)    // FOWNER
    | bit(4)    // FSETID
    | bit(5)    // KILL
    | bit(6)    // SETGID
    | bit(7)    // SETUID
    | bit(8)    // SETPCAP
    | bit(10)   // NET_BIND_SERVICE
    | bit(13)   // NET_RAW
    | bit(18)   // SYS_CHROOT
    | bit(27)   // MKNOD
    | bit(29)   // AUDIT_WRITE
    | bit(31); // SETFCAP

const fn bit(number: u32) -> u64 {
    1 << number
}

/// The mask of one capability; any case, with or without `CAP_`.
pub fn parse(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    (0..)
        .zip(NAMES)
        .find(|(_, known)| *known == bare)
        .map(|(number, _)| bit(number))
}

/// `CAP_ALL` is no name for it: elsewhere it gives nothing, and policies that deny `ALL` do not know it.
fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL")
}

/// What a request comes to.
#[derive(Debug)]
pub(super) struct Sets {
    pub(super) sets: Capabilities,
    /// Names that are no capabilities, as they were given: the runtime specification passes over them
    /// (config.md, "capabilities"), with a warning.
    pub(super) unknown: Vec<String>,
}

/// The sets of a container's first process. `host` is what the runtime itself has.
///
/// Effective and permitted are given whole whatever the user: execve empties them for a user other
/// than root, so that a set-user-ID program in the container works as everywhere else. The
/// inheritable set holds the ambient capabilities, because the kernel demands it, and nothing else
/// (CVE-2022-24769).
///
/// # Errors
/// A capability that the runtime cannot give.
pub(super) fn sets(
    request: &CapabilityRequest,
    privileged: bool,
    host: u64,
) -> Result<Sets, Error> {
    let named = request.add.iter().chain(&request.drop);
    let unknown = named
        .chain(&request.add_ambient)
        .filter(|name| !is_all(name) && parse(name).is_none());
    let unknown = unknown.cloned().collect();
    let bounding = if privileged {
        host
    } else {
        requested(request, host)?
    };
    let mut ambient = 0;
    for name in &request.add_ambient {
        let wanted = if is_all(name) {
            bounding
        } else {
            parse(name).unwrap_or(0)
        };
        if wanted & bounding != wanted {
            return Err(Error::AmbientCapability(name.clone()));
        }
        ambient |= wanted;
    }
    let sets = Capabilities {
        bounding,
        effective: bounding,
        permitted: bounding,
        inheritable: ambient,
        ambient,
    };
    Ok(Sets { sets, unknown })
}

/// Defaults, then ALL, then what is added by name, then what is dropped by name: a name survives the
/// other list's ALL.
fn requested(request: &CapabilityRequest, host: u64) -> Result<u64, Error> {
    let mut mask = DEFAULT & host;
    if request.add.iter().any(|name| is_all(name)) {
        mask = host;
    }
    if request.drop.iter().any(|name| is_all(name)) {
        mask = 0;
    }
    for name in &request.add {
        let wanted = parse(name).unwrap_or(0);
        if wanted & host != wanted {
            return Err(Error::MissingCapability(name.clone()));
        }
        mask |= wanted;
    }
    for name in &request.drop {
        mask &= !parse(name).unwrap_or(0);
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: u64 = (1 << 41) - 1;

    fn request(add: &[&str], drop: &[&str]) -> CapabilityRequest {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        CapabilityRequest {
            add: owned(add),
            drop: owned(drop),
            add_ambient: Vec::new(),
        }
    }

    fn bounding(add: &[&str], drop: &[&str]) -> u64 {
        given(&request(add, drop), false, HOST).bounding
    }

    fn given(request: &CapabilityRequest, privileged: bool, host: u64) -> Capabilities {
        sets(request, privileged, host).unwrap().sets
    }

    #[test]
    fn fourteen_by_default() {
        // The value that `/proc/PID/status` of an ordinary container shows everywhere.
        assert_eq!(DEFAULT, 0xa804_25fb);
        assert_eq!(DEFAULT.count_ones(), 14);
        assert_eq!(bounding(&[], &[]), DEFAULT);
    }

    #[test]
    fn names_in_any_spelling() {
        let sys_admin = 1 << 21;
        for name in ["SYS_ADMIN", "CAP_SYS_ADMIN", "cap_sys_admin", "Sys_Admin"] {
            assert_eq!(bounding(&[name], &[]), DEFAULT | sys_admin, "{name}");
        }
        assert_eq!(parse("CHECKPOINT_RESTORE"), Some(1 << 40));
    }

    #[test]
    fn what_is_no_capability_is_passed_over_and_told() {
        for name in [
            "",
            "CAP_",
            "CAP_CAP_KILL",
            "CAP_ALL",
            "KILLS",
            "ALLE",
            "SYS_ADMIN\n",
        ] {
            let mut ambient = request(&[], &[]);
            ambient.add_ambient = vec![name.to_owned()];
            for request in [request(&[name], &[]), request(&[], &[name]), ambient] {
                for privileged in [false, true] {
                    let found = sets(&request, privileged, HOST).unwrap();
                    assert_eq!(found.unknown, [name], "{name}");
                    let plain = if privileged { HOST } else { DEFAULT };
                    assert_eq!(
                        (found.sets.bounding, found.sets.ambient),
                        (plain, 0),
                        "{name}"
                    );
                }
            }
        }
        // What is known beside it counts.
        let mixed = request(&["NO_SUCH", "net_admin"], &["ALL", "NEITHER"]);
        let found = sets(&mixed, false, HOST).unwrap();
        assert_eq!((found.sets.bounding, found.unknown.len()), (1 << 12, 2));
        assert!(
            sets(&request(&["ALL"], &["all"]), false, HOST)
                .unwrap()
                .unknown
                .is_empty()
        );
    }

    #[test]
    fn a_name_survives_the_other_lists_all() {
        assert_eq!(bounding(&["NET_ADMIN"], &["ALL"]), 1 << 12);
        assert_eq!(bounding(&["all"], &["chown"]), HOST & !1);
        assert_eq!(bounding(&["ALL"], &["ALL"]), 0);
        assert_eq!(bounding(&["KILL"], &["KILL"]), DEFAULT & !(1 << 5));
    }

    #[test]
    fn nothing_that_the_runtime_does_not_have() {
        let host = HOST & !(1 << 24) & !1;
        let error = sets(&request(&["SYS_RESOURCE"], &[]), false, host).unwrap_err();
        assert!(matches!(error, Error::MissingCapability(_)), "{error}");
        assert_eq!(
            given(&request(&[], &[]), false, host).bounding,
            DEFAULT & !1
        );
        assert_eq!(given(&request(&["ALL"], &[]), false, host).bounding, host);
        assert_eq!(given(&request(&[], &["ALL"]), true, host).bounding, host);
    }

    #[test]
    fn inheritable_and_ambient_are_empty_unless_asked_for() {
        let plain = given(&request(&["ALL"], &[]), false, HOST);
        assert_eq!((plain.inheritable, plain.ambient), (0, 0));
        let mut asked = request(&[], &[]);
        asked.add_ambient = vec!["NET_BIND_SERVICE".into()];
        assert_eq!(given(&asked, false, HOST).ambient, 1 << 10);
        asked.add_ambient = vec!["NET_ADMIN".into()];
        assert!(matches!(
            sets(&asked, false, HOST),
            Err(Error::AmbientCapability(_))
        ));
    }
}
