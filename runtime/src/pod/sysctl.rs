//! Kernel parameters of a pod, sorted by the namespace that holds them.

use std::collections::BTreeMap;

use shim_protocol::worker::Sysctl;

use crate::model::{NamespaceMode, PodSpec};

/// What every pod with a network namespace of its own gets unless it says otherwise: ports below 1024
/// and ICMP echo without privileges, as containerd 2 gives them (row F013).
const NET_DEFAULTS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

/// Of the UTS namespace. The host name is there, too, and has a field of its own.
const DOMAIN_NAME: &str = "kernel.domainname";

/// The two sets.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Sysctls {
    /// Of the network namespace; set after the network is there.
    pub(super) net: BTreeMap<String, String>,
    /// Of the IPC and the UTS namespace; set as soon as these are there.
    pub(super) early: Vec<Sysctl>,
}

/// Sorts and checks. A parameter that is not namespaced, or whose namespace is the host's, is refused.
pub(super) fn split(spec: &PodSpec) -> Result<Sysctls, String> {
    let mut sorted = Sysctls::default();
    let own_net = spec.namespaces.network != NamespaceMode::Node;
    let own_ipc = spec.namespaces.ipc != NamespaceMode::Node;
    if own_net {
        sorted
            .net
            .extend(NET_DEFAULTS.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
    for (key, value) in &spec.sysctls {
        let name = dotted(key);
        let odd = |c: char| c.is_whitespace() || c.is_control();
        if name.is_empty() || name.contains(odd) || name.split('.').any(str::is_empty) {
            return Err(format!(
                "{key:?} is not the name of a sysctl: no spaces in it, no empty parts"
            ));
        }
        if value.contains('\0') {
            return Err(format!("the value of sysctl {key:?} contains a NUL byte"));
        }
        let (own, whose) = if is_net(&name) {
            (own_net, "network")
        } else if is_ipc(&name) {
            (own_ipc, "IPC namespace")
        } else if name == DOMAIN_NAME {
            // It has a UTS namespace where it has a network.
            (own_net, "UTS namespace")
        } else {
            return Err(format!(
                "sysctl {key:?} belongs to no namespace of a pod: set it on the host"
            ));
        };
        if !own {
            return Err(format!(
                "sysctl {key:?} is the host's: the pod uses the host's {whose}"
            ));
        }
        let value = value.clone();
        if is_net(&name) {
            sorted.net.insert(name, value);
        } else {
            sorted.early.push(Sysctl { name, value });
        }
    }
    Ok(sorted)
}

/// `a/b.c/d` is the form in which a name may hold a dot (an interface `eth0.1`): there it stays.
fn dotted(key: &str) -> String {
    match (key.find('/'), key.find('.')) {
        (Some(slash), dot) if dot.is_none_or(|dot| slash < dot) => key
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            })
            .collect(),
        _ => key.to_owned(),
    }
}

fn is_net(name: &str) -> bool {
    name.starts_with("net.")
}

fn is_ipc(name: &str) -> bool {
    ["kernel.shm", "kernel.msg", "fs.mqueue."]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || name == "kernel.sem"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(pairs: &[(&str, &str)], host: bool) -> Result<Sysctls, String> {
        let mut spec = super::super::tests::spec();
        spec.sysctls = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        if host {
            spec.namespaces.network = NamespaceMode::Node;
            spec.namespaces.ipc = NamespaceMode::Node;
        }
        split(&spec)
    }

    #[test]
    fn parameters_go_to_their_namespace_and_defaults_do_not_override() {
        let sorted = asked(
            &[
                ("net.ipv4.ip_unprivileged_port_start", "80"),
                ("kernel/shm_rmid_forced", "1"),
            ],
            false,
        )
        .unwrap();
        assert_eq!(sorted.net["net.ipv4.ip_unprivileged_port_start"], "80");
        assert_eq!(sorted.net["net.ipv4.ping_group_range"], "0 2147483647");
        assert_eq!(sorted.early[0].name, "kernel.shm_rmid_forced");
        let sorted = asked(&[("kernel/domainname", "example.org")], false).unwrap();
        assert_eq!(sorted.early[0].name, "kernel.domainname");
    }

    #[test]
    fn values_are_those_that_were_given() {
        let (net, ipc) = ("4096\t131072\t6291456", " 32000\t1024000000\t500\t32000\n");
        let sorted = asked(&[("net.ipv4.tcp_rmem", net), ("kernel.sem", ipc)], false).unwrap();
        assert_eq!(sorted.net["net.ipv4.tcp_rmem"], net);
        assert_eq!(sorted.early[0].value, ipc);
    }

    #[test]
    fn what_is_not_the_pods_is_refused() {
        assert!(asked(&[("kernel.pid_max", "1")], false).is_err());
        assert!(asked(&[("net.core.somaxconn", "1")], true).is_err());
        assert!(asked(&[("kernel.sem", "1")], true).is_err());
        assert!(asked(&[("kernel.domainname", "x")], true).is_err());
        assert!(asked(&[("kernel.hostname", "x")], false).is_err());
        assert!(asked(&[(" net.core.somaxconn", "1")], false).is_err());
        assert!(asked(&[("net..x", "1")], false).is_err());
        assert!(asked(&[("net.ipv4.x\n", "1")], false).is_err());
        assert!(asked(&[("net.ipv4.x", "1\0")], false).is_err());
        assert_eq!(asked(&[], true).unwrap(), Sysctls::default());
    }

    #[test]
    fn slashes_may_hold_dots() {
        assert_eq!(dotted("net/ipv4/conf/eth0.1/x"), "net.ipv4.conf.eth0/1.x");
        assert_eq!(dotted("net.ipv4.x"), "net.ipv4.x");
    }
}
