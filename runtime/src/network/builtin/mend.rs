//! What others take away from under the pods is put back: a `nft flush ruleset`, a firewall that is loaded anew,
//! an `ip link del`, a sysctl of a hardening script.
//!
//! A look is cheap while nobody changes anything: the generation of the rules, the bridge with its addresses, and
//! a few sysctls. Rules are read only when their generation is another one, the ports of the bridge every
//! [`WHOLE`] looks. So are the routes of the machine, until there is a bridge: a subnet that is in use is told before
//! the first pod comes, and each look then asks whether it still is.
//!
//! What others put there is taken away again: a firewall that loads what it saved brings back host ports of pods that
//! are gone, and they would keep new pods out.

use std::path::Path;
use std::sync::PoisonError;

use super::lease::Lease;
use super::rules::Stranger;
use super::{Builtin, SETTLE, Subnet, host_interface, links};
use crate::id::PodId;
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
    /// The subnets that the rules were compared with.
    subnets: Vec<Subnet>,
}

impl Builtin {
    /// Looks, and puts back what is missing; says what that was. Without a pod there is nothing to be there, but
    /// the first one must find the subnet free.
    pub(in crate::network) fn mend(&self) -> Result<Vec<String>, Error> {
        let Some(subnet) = self.subnet else {
            return Ok(Vec::new());
        };
        let mut netlink = Netlink::route()?;
        let whole = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.looks = seen.looks.wrapping_add(1);
            seen.looks % WHOLE == 1 || seen.generation.is_none()
        };
        if whole && let Err(error) = self.check_free(&mut netlink, subnet) {
            // The next look asks again: pods wait for it.
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.looks = 0;
            return Err(error);
        }
        if self.missing(&mut netlink, subnet, whole)?.is_empty() {
            return Ok(Vec::new());
        }
        self.put_right(&mut netlink, subnet)
    }

    /// Whether bridge and rules could be made, where they are not there.
    fn check_free(&self, netlink: &mut Netlink, subnet: Subnet) -> Result<(), Error> {
        if self.find_shared(netlink, subnet)?.is_none() {
            links::survey(netlink, &self.rules.bridge, subnet)?;
        }
        Ok(())
    }

    /// Puts back what is missing and takes away what is left over, and says so in the log. In a moment in which no pod
    /// is on the move: what one is just being given, or has just given back, is neither.
    pub(super) fn put_right(
        &self,
        netlink: &mut Netlink,
        subnet: Subnet,
    ) -> Result<Vec<String>, Error> {
        let mended = self.put_right_quietly(netlink, subnet)?;
        if !mended.is_empty() {
            tracing::warn!(
                missing = mended.join(", "),
                "somebody took away what the built-in network needs: it was put back"
            );
        }
        Ok(mended)
    }

    fn put_right_quietly(
        &self,
        netlink: &mut Netlink,
        subnet: Subnet,
    ) -> Result<Vec<String>, Error> {
        let _quiet = self.moving.write().unwrap_or_else(PoisonError::into_inner);
        let _serial = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let leases = self.leases.all();
        let mut done = self.sweep(netlink, &leases)?;
        self.renew(netlink, subnet, &leases)?;
        if !leases.iter().any(lives) {
            return Ok(done);
        }
        let mut missing = self.missing(netlink, subnet, true)?;
        done.extend(missing.iter().cloned());
        for _ in 0..SETTLE {
            if missing.is_empty() {
                return Ok(done);
            }
            match self.put_back(netlink, subnet, &leases) {
                Err(error) if !error.is_disturbance() => return Err(error),
                // Taken away meanwhile is seen by the next look.
                _ => missing = self.missing(netlink, subnet, true)?,
            }
        }
        if missing.is_empty() {
            return Ok(done);
        }
        Err(Error::NotReady(format!(
            "the built-in network misses {}, also after it was put back: find out who takes it away",
            missing.join(", ")
        )))
    }

    /// Takes away host ports of pods that are gone.
    pub(super) fn sweep(
        &self,
        netlink: &mut Netlink,
        leases: &[Lease],
    ) -> Result<Vec<String>, Error> {
        let stale = self.stale(netlink, self.rules.strangers(leases)?)?;
        self.rules.evict(&stale)?;
        Ok(told(&stale).into_iter().collect())
    }

    /// Those of these host ports whose pod has no link any more: one that has is not gone, whoever lost its lease.
    fn stale(
        &self,
        netlink: &mut Netlink,
        mut strangers: Vec<Stranger>,
    ) -> Result<Vec<Stranger>, Error> {
        if strangers.is_empty() {
            return Ok(strangers);
        }
        let links = links::ports(netlink)?;
        let lives = |pod: PodId| links.contains_key(&host_interface(&pod));
        strangers.retain(|one| !one.pod().parse().is_ok_and(lives));
        Ok(strangers)
    }

    /// Makes the rules anew when they were made for other subnets than pods have now, and takes the addresses of those
    /// from the bridge that no pod has any more. The rules are what says which those are, so they go last.
    pub(super) fn renew(
        &self,
        netlink: &mut Netlink,
        subnet: Subnet,
        leases: &[Lease],
    ) -> Result<(), Error> {
        let Some(before) = self.rules.subnets()? else {
            return Ok(());
        };
        let earlier = earlier(subnet, leases);
        let now = with(subnet, &earlier);
        if same(&before, &now) || links::find_bridge(netlink, &self.rules.bridge)?.is_none() {
            return Ok(());
        }
        let bridge = links::ensure_bridge(netlink, &self.rules.bridge, subnet, &earlier)?;
        for gone in before.iter().filter(|one| !now.contains(one)) {
            links::forsake(netlink, bridge, *gone)?;
        }
        self.rules.rebuild(&now, leases)?;
        let list = |some: &[Subnet]| {
            some.iter()
                .map(Subnet::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        };
        if earlier.is_empty() {
            tracing::info!(%subnet, before = list(&before), "made the rules of the built-in network anew for its subnet");
        } else {
            tracing::info!(
                %subnet,
                earlier = list(&earlier),
                "pods of an earlier subnet of the built-in network go on: it keeps their addresses and rules until they are gone"
            );
        }
        Ok(())
    }

    fn put_back(
        &self,
        netlink: &mut Netlink,
        subnet: Subnet,
        leases: &[Lease],
    ) -> Result<(), Error> {
        let earlier = earlier(subnet, leases);
        let subnets = with(subnet, &earlier);
        let bridge = links::ensure_bridge(netlink, &self.rules.bridge, subnet, &earlier)?;
        if self.rules.compare(&subnets, leases)?.missing.is_some() {
            self.rules.rebuild(&subnets, leases)?;
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
            if port.lacks(bridge).is_some() {
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
        let leases = self.leases.all();
        let subnets = with(subnet, &earlier(subnet, &leases));
        let mut missing = Vec::new();
        let mut bridge = None;
        if !leases.is_empty() {
            bridge = links::find_bridge(netlink, &self.rules.bridge)?;
            missing.extend(self.missing_of_bridge(netlink, &subnets, bridge)?);
        }
        // Read before the rules: what changes meanwhile is another generation.
        let generation = self.rules.generation()?;
        let whole = whole || self.seen_subnets() != subnets;
        if whole || self.seen_generation() != Some(generation) {
            let found = self.rules.compare(&subnets, &leases)?;
            let gone = found.missing.filter(|_| !leases.is_empty());
            let stale = self.stale(netlink, found.strangers)?;
            let before = self.rules.subnets()?;
            let other = before
                .filter(|before| !same(before, &subnets))
                .map(|_| "the rules for the subnets that pods have".to_owned());
            let right = gone.is_none() && stale.is_empty() && other.is_none();
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.generation = right.then_some(generation);
            seen.subnets.clone_from(&subnets);
            missing.extend(gone.into_iter().chain(told(&stale)).chain(other));
        }
        if let Some(bridge) = bridge.filter(|_| whole) {
            let ports = links::ports(netlink)?;
            missing.extend(leases.into_iter().filter_map(|lease| {
                let port = ports.get(&host_interface(&lease.pod))?;
                let lacks = port.lacks(bridge)?;
                Some(format!("{lacks} of pod {} on the bridge", lease.pod))
            }));
        }
        Ok(missing)
    }

    fn missing_of_bridge(
        &self,
        netlink: &mut Netlink,
        subnets: &[Subnet],
        bridge: Option<links::Bridge>,
    ) -> Result<Vec<String>, Error> {
        let name = &self.rules.bridge;
        let Some(bridge) = bridge else {
            return Ok(vec![format!("bridge {name:?}")]);
        };
        let mut missing = Vec::new();
        if !bridge.up {
            missing.push(format!("bridge {name:?} being up"));
        }
        let there = links::addresses(netlink, bridge.index)?;
        for subnet in subnets {
            let gateway = subnet.gateway();
            if !there.contains(&(gateway, subnet.prefix())) {
                missing.push(format!("address {gateway} of bridge {name:?}"));
            }
        }
        let localnet = format!("/proc/sys/net/ipv4/conf/{name}/route_localnet");
        for sysctl in [FORWARDING, &forwarding_of(name), &localnet] {
            if switched_off(sysctl) {
                missing.push(format!("{sysctl} = 1"));
            }
        }
        Ok(missing)
    }

    fn seen_subnets(&self) -> Vec<Subnet> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.subnets.clone()
    }

    fn seen_generation(&self) -> Option<u32> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.generation
    }
}

/// Host ports that are left over, in words.
fn told(stale: &[Stranger]) -> Option<String> {
    let first = stale.first()?.pod();
    let count = stale.len();
    Some(format!(
        "the end of {count} host ports of pods that are gone, {first:?} the first of them"
    ))
}

/// Subnets other than this one that pods still have: they came before the setting was changed.
pub(super) fn earlier(subnet: Subnet, leases: &[Lease]) -> Vec<Subnet> {
    let mut earlier = Vec::new();
    for lease in leases {
        let Some(of_pod) = lease.subnet() else {
            continue;
        };
        if of_pod != subnet && !earlier.contains(&of_pod) && lives(lease) {
            earlier.push(of_pod);
        }
    }
    earlier
}

/// All subnets that pods have or get.
pub(super) fn with(subnet: Subnet, earlier: &[Subnet]) -> Vec<Subnet> {
    [&[subnet], earlier].concat()
}

/// Whether these are the same subnets, in whatever order.
fn same(some: &[Subnet], others: &[Subnet]) -> bool {
    some.len() == others.len() && some.iter().all(|one| others.contains(one))
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
    /// What is not as it should be.
    fn lacks(&self, bridge: links::Bridge) -> Option<&'static str> {
        match self.up && self.bridge == Some(bridge.index) {
            false => Some("the link"),
            true if !self.hairpin => Some("hairpin mode of the link"),
            true => None,
        }
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
