//! What others take away from under the pods is put back: a `nft flush ruleset`, a firewall that is loaded anew,
//! an `ip link del`, a sysctl of a hardening script.
//!
//! A look is cheap while nobody changes anything: the generation of the rules, the bridge with its addresses, and
//! a few sysctls. Rules are read only when their generation is another one, the ports of the bridge every
//! [`WHOLE`] looks.

use std::path::Path;
use std::sync::PoisonError;

use super::lease::Lease;
use super::{Builtin, Subnet, host_interface, links};
use crate::network::Error;
use crate::network::netlink::Netlink;
use crate::sys::netns;

/// Every so many looks everything is looked at.
const WHOLE: u32 = 10;

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// What the last look saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    looks: u32,
    /// Generation of the rules when nothing was missing of them.
    generation: Option<u32>,
}

impl Builtin {
    /// Looks, and puts back what is missing; says what that was. Without a pod there is nothing to be there.
    pub(in crate::network) fn mend(&self) -> Result<Vec<String>, Error> {
        let Some(subnet) = self.subnet.filter(|_| self.leases.any()) else {
            return Ok(Vec::new());
        };
        let mut netlink = Netlink::route()?;
        let whole = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.looks = seen.looks.wrapping_add(1);
            seen.looks % WHOLE == 1 || seen.generation.is_none()
        };
        if self.missing(&mut netlink, subnet, whole)?.is_empty() {
            return Ok(Vec::new());
        }
        // What a pod is just being given, or has just given back, is not missing.
        let _quiet = self.moving.write().unwrap_or_else(PoisonError::into_inner);
        let _serial = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let leases = self.leases.all();
        if !leases.iter().any(lives) {
            return Ok(Vec::new());
        }
        let missing = self.missing(&mut netlink, subnet, true)?;
        if missing.is_empty() {
            return Ok(missing);
        }
        self.put_back(&mut netlink, subnet, &leases)?;
        let still = self.missing(&mut netlink, subnet, true)?;
        if still.is_empty() {
            return Ok(missing);
        }
        Err(Error::NotReady(format!(
            "the built-in network misses {}, also after it was put back: find out who takes it away",
            still.join(", ")
        )))
    }

    fn put_back(
        &self,
        netlink: &mut Netlink,
        subnet: Subnet,
        leases: &[Lease],
    ) -> Result<(), Error> {
        let bridge = links::ensure_bridge(netlink, &self.rules.bridge, subnet)?;
        if self.rules.missing(leases)?.is_some() {
            self.rules.rebuild(subnet, leases)?;
        }
        self.enable_forwarding()?;
        let own = forwarding_of(&self.rules.bridge);
        if switched_off(&own) {
            std::fs::write(&own, "1").map_err(Error::file("write", own))?;
        }
        let ports = links::ports(netlink)?;
        for port in leases
            .iter()
            .filter_map(|lease| ports.get(&host_interface(&lease.pod)))
        {
            if !port.serves(bridge) {
                links::attach(netlink, bridge, port)?;
            }
        }
        Ok(())
    }

    /// What is not as it should be, in words.
    fn missing(
        &self,
        netlink: &mut Netlink,
        subnet: Subnet,
        whole: bool,
    ) -> Result<Vec<String>, Error> {
        let name = &self.rules.bridge;
        let mut missing = Vec::new();
        let bridge = links::find_bridge(netlink, name)?;
        match bridge {
            None => missing.push(format!("bridge {name:?}")),
            Some(bridge) => {
                if !bridge.up {
                    missing.push(format!("bridge {name:?} being up"));
                }
                let gateway = subnet.gateway();
                if !links::addresses(netlink, bridge.index)?.contains(&gateway) {
                    missing.push(format!("address {gateway} of bridge {name:?}"));
                }
                let localnet = format!("/proc/sys/net/ipv4/conf/{name}/route_localnet");
                for sysctl in [FORWARDING, &forwarding_of(name), &localnet] {
                    if switched_off(sysctl) {
                        missing.push(format!("{sysctl} = 1"));
                    }
                }
            }
        }
        // Read before the rules: what changes meanwhile is another generation.
        let generation = self.rules.generation()?;
        if whole || self.seen_generation() != Some(generation) {
            let gone = self.rules.missing(&self.leases.all())?;
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.generation = gone.is_none().then_some(generation);
            missing.extend(gone);
        }
        if let Some(bridge) = bridge.filter(|_| whole) {
            let ports = links::ports(netlink)?;
            let loose = self.leases.all().into_iter().filter(|lease| {
                ports
                    .get(&host_interface(&lease.pod))
                    .is_some_and(|port| !port.serves(bridge))
            });
            missing
                .extend(loose.map(|lease| format!("the link of pod {} on the bridge", lease.pod)));
        }
        Ok(missing)
    }

    fn seen_generation(&self) -> Option<u32> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.generation
    }
}

/// Whether the pod of a lease has a network namespace: after a reboot it has none until it is removed.
fn lives(lease: &Lease) -> bool {
    let interfaces = lease.result["interfaces"].as_array();
    interfaces.is_some_and(|all| {
        all.iter()
            .filter_map(|one| one["sandbox"].as_str())
            .any(|path| netns::is_pinned(Path::new(path)))
    })
}

fn forwarding_of(bridge: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{bridge}/forwarding")
}

/// Not there is not switched off.
fn switched_off(sysctl: &str) -> bool {
    std::fs::read_to_string(sysctl).is_ok_and(|value| value.trim() == "0")
}

impl links::Port {
    fn serves(&self, bridge: links::Bridge) -> bool {
        self.up && self.bridge == Some(bridge.index)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_lease_lives_while_its_namespace_does() {
        let lease = |sandbox: &str| Lease {
            pod: crate::id::PodId::generate().unwrap(),
            address: Ipv4Addr::new(10, 0, 0, 2),
            ports: Vec::new(),
            result: serde_json::json!({"interfaces": [{"name": "berth0"}, {"sandbox": sandbox}]}),
        };
        assert!(lives(&lease("/proc/self/ns/net")));
        assert!(!lives(&lease("/etc/passwd")));
        assert!(!lives(&lease("/nonexistent")));
        assert!(!lives(&Lease {
            result: serde_json::Value::Null,
            ..lease("")
        }));
    }
}
