//! The built-in network: a bridge, addresses from one subnet, masquerade and host ports.
//!
//! Everything here blocks, briefly, and works in the network namespace of the calling thread. What
//! was taken apart once is not missed a second time, so that every call may be repeated, also after
//! a crash half-way.

mod conntrack;
mod lease;
mod links;
mod mend;
mod rules;
mod subnet;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use self::lease::{Lease, Leases};
use self::links::{Bridge, Pair};
use self::mend::Seen;
use self::rules::{HostPort, Rules};
use super::netlink::{NetfilterPool, Netlink};
use super::{Error, NetworkResult, PodNetwork};
use crate::id::PodId;
use crate::model::PortMapping;

pub(super) use self::links::POD_INTERFACE;
pub use self::subnet::{NotASubnet, Subnet};

/// How often what pods share is made for one pod before that is called a fault.
const SETTLE: usize = 3;

/// The built-in network of one Berth.
#[derive(Debug)]
pub(super) struct Builtin {
    /// `None`: switched off; pods that still have a lease can be torn down nevertheless.
    subnet: Option<Subnet>,
    leases: Leases,
    rules: Rules,
    /// Where it is written down that forwarding was switched on by us.
    forwarding_note: PathBuf,
    /// Serialises making, repairing and removing what all pods share. Held across a few netlink
    /// requests, which the kernel answers at once and serialises itself.
    shared: Mutex<()>,
    /// Held for reading while a pod is being connected or disconnected, for a few netlink requests, so that
    /// whoever repairs can wait for a moment in which leases and kernel agree.
    moving: RwLock<()>,
    seen: Mutex<Seen>,
}

/// Names that several Berths on one machine must not share.
fn names(instance: &str) -> (String, String) {
    if instance == "berth" {
        return ("berth0".into(), "berth".into());
    }
    // An interface's name has at most 15 bytes.
    let hash = Sha256::digest(instance.as_bytes());
    let digits: String = hash.iter().take(6).map(|b| format!("{b:02x}")).collect();
    (format!("bt-{digits}"), format!("berth-{instance}"))
}

impl Builtin {
    /// The subnet of its pods; `None`: switched off.
    pub(super) fn subnet(&self) -> Option<Subnet> {
        self.subnet
    }

    /// Reads the leases; touches nothing in the kernel.
    pub(super) fn open(
        subnet: Option<Subnet>,
        instance: &str,
        dir: &Path,
        state_dir: &Path,
    ) -> Result<Self, Error> {
        let (bridge, table) = names(instance);
        Ok(Self {
            subnet,
            leases: Leases::open(dir.join("leases"))?,
            rules: Rules {
                table,
                bridge,
                sockets: NetfilterPool::default(),
            },
            forwarding_note: state_dir.join("ip_forward"),
            shared: Mutex::new(()),
            moving: RwLock::new(()),
            seen: Mutex::default(),
        })
    }

    /// Whether pods are to be put into it.
    pub(super) fn is_on(&self) -> bool {
        self.subnet.is_some()
    }

    /// Pods that have something of it.
    pub(super) fn pods(&self) -> Vec<PodId> {
        self.leases
            .all()
            .into_iter()
            .map(|lease| lease.pod)
            .collect()
    }

    /// Whether a pod has something of it.
    pub(super) fn holds(&self, pod: &PodId) -> bool {
        self.leases.get(pod).is_some()
    }

    /// The result that a pod was given.
    pub(super) fn result(&self, pod: &PodId) -> Option<NetworkResult> {
        self.leases.get(pod).map(result)
    }

    /// Connects a pod. What a failed attempt could not undo keeps its lease. What somebody takes away meanwhile is
    /// put back, and the pod is connected anew.
    pub(super) fn setup(&self, pod: &PodNetwork) -> Result<NetworkResult, Error> {
        let subnet = self
            .subnet
            .ok_or_else(|| Error::NotReady("the built-in network is switched off".into()))?;
        let ports = host_ports(&pod.port_mappings)?;
        let mut netlink = Netlink::route()?;
        let mut done = self.attempt(&mut netlink, subnet, pod, &ports);
        for _ in 1..SETTLE {
            match &done {
                Err(error) if error.is_disturbance() || self.is_of_a_stranger(error) => {}
                _ => break,
            }
            done = self
                .put_right(&mut netlink, subnet)
                .and_then(|_| self.attempt(&mut netlink, subnet, pod, &ports));
        }
        done
    }

    fn attempt(
        &self,
        netlink: &mut Netlink,
        subnet: Subnet,
        pod: &PodNetwork,
        ports: &[HostPort],
    ) -> Result<NetworkResult, Error> {
        let (_moving, bridge) = self.on_the_move(netlink, subnet)?;
        if self.holds(&pod.id) {
            self.disconnect(&pod.id)?;
        }
        let lease = self.leases.take(subnet, |address| Lease {
            pod: pod.id.clone(),
            address,
            ports: published(&pod.port_mappings),
            result: self.describe(pod, subnet, address),
        })?;
        crash_point!("run_pod.lease.after");
        let Err(error) = self.connect(netlink, bridge, subnet, pod, &lease, ports) else {
            return Ok(result(lease));
        };
        // What cannot be undone keeps the lease, and `known` names the pod.
        let _ = self.disconnect(&pod.id);
        // Nobody of ours makes it anew while this pod is on the move.
        let there = self
            .find_shared(netlink, subnet)?
            .map(|bridge| bridge.index);
        if there == Some(bridge.index) {
            return Err(error);
        }
        Err(Error::TakenAway(Box::new(error)))
    }

    /// A host port is taken by a pod that has no lease: what somebody loaded brought it back.
    fn is_of_a_stranger(&self, error: &Error) -> bool {
        matches!(error, Error::HostPortTaken { owner, .. } if !owner.parse().is_ok_and(|pod| self.holds(&pod)))
    }

    fn connect(
        &self,
        netlink: &mut Netlink,
        bridge: Bridge,
        subnet: Subnet,
        pod: &PodNetwork,
        lease: &Lease,
        ports: &[HostPort],
    ) -> Result<(), Error> {
        let pair = Pair {
            host: &host_interface(&pod.id),
            alias: pod.id.as_str(),
            netns: &pod.netns,
            address: lease.address,
        };
        links::connect(netlink, bridge, subnet, &pair)?;
        crash_point!("run_pod.link.after");
        if !ports.is_empty() {
            self.rules.publish(&pod.id, lease.address, ports)?;
            conntrack::forget(&self.rules.sockets, ports, lease.address)?;
            crash_point!("run_pod.ports.after");
        }
        Ok(())
    }

    /// Disconnects a pod and gives its address back. The pod's namespace may be gone.
    pub(super) fn teardown(&self, pod: &PodId) -> Result<(), Error> {
        let _moving = self.moving.read().unwrap_or_else(PoisonError::into_inner);
        self.disconnect(pod)
    }

    fn disconnect(&self, pod: &PodId) -> Result<(), Error> {
        let Some(lease) = self.leases.get(pod) else {
            return Ok(());
        };
        let mut errors = Vec::new();
        let mut netlink = Netlink::route()?;
        // Those of a lease were checked when it was taken.
        let ports = host_ports(&lease.ports).unwrap_or_default();
        if !ports.is_empty() {
            errors.extend(self.rules.withdraw(pod, &ports).err());
            crash_point!("stop_pod.ports.after");
        }
        let removed = links::remove(&mut netlink, &host_interface(pod));
        errors.extend(removed.err().map(Error::from));
        crash_point!("stop_pod.link.after");
        if !ports.is_empty() {
            let forgotten = conntrack::forget(&self.rules.sockets, &ports, lease.address);
            errors.extend(forgotten.err().map(Error::from));
        }
        if errors.is_empty() {
            self.leases.release(&lease)?;
        }
        Error::collect(errors)
    }

    /// Begins a change of one pod, with what all pods share in place. That is made anew from the leases if it is gone,
    /// and meanwhile no lease may come or go: one that is half given back would be published again.
    fn on_the_move(
        &self,
        netlink: &mut Netlink,
        subnet: Subnet,
    ) -> Result<(RwLockReadGuard<'_, ()>, Bridge), Error> {
        for _ in 0..SETTLE {
            let moving = self.moving.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(bridge) = self.find_shared(netlink, subnet)? {
                return Ok((moving, bridge));
            }
            drop(moving);
            let _quiet = self.moving.write().unwrap_or_else(PoisonError::into_inner);
            self.ensure_shared(netlink, subnet)?;
        }
        Err(Error::NotReady(
            "the bridge or the rules of the built-in network are taken away as soon as they are made: find out by whom"
                .into(),
        ))
    }

    /// Makes or repairs what all pods share: bridge, table, forwarding. Nothing may be on the move.
    fn ensure_shared(&self, netlink: &mut Netlink, subnet: Subnet) -> Result<Bridge, Error> {
        if let Some(bridge) = self.find_shared(netlink, subnet)? {
            return Ok(bridge);
        }
        let _serial = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bridge) = self.find_shared(netlink, subnet)? {
            return Ok(bridge);
        }
        let leases = self.leases.all();
        let earlier = mend::earlier(subnet, &leases);
        let bridge = links::ensure_bridge(netlink, &self.rules.bridge, subnet, &earlier)?;
        crash_point!("first_pod.bridge.after");
        self.renew(netlink, subnet, &leases)?;
        self.rules.rebuild(&mend::with(subnet, &earlier), &leases)?;
        crash_point!("first_pod.rules.after");
        self.enable_forwarding()?;
        for table in self.rules.obstacles()? {
            tracing::warn!(
                table,
                bridge = self.rules.bridge,
                "another nftables table drops forwarded packets by default: let the bridge through there, or pods will not reach the world"
            );
        }
        Ok(bridge)
    }

    /// The bridge, if it and the rules are there for this subnet. Its address came before the rules; whether somebody
    /// has taken that away is looked at now and then, not for each pod.
    fn find_shared(&self, netlink: &mut Netlink, subnet: Subnet) -> Result<Option<Bridge>, Error> {
        let bridge = links::find_bridge(netlink, &self.rules.bridge)?;
        Ok(bridge.filter(|_| self.rules.exist(subnet).unwrap_or(false)))
    }

    /// Routing between interfaces, for the whole machine. It is written down that we did it, and it
    /// is not switched off again: by then others may rely on it.
    fn enable_forwarding(&self) -> Result<(), Error> {
        let path = "/proc/sys/net/ipv4/ip_forward";
        let before = std::fs::read_to_string(path).map_err(Error::file("read", path))?;
        if before.trim() != "0" {
            return Ok(());
        }
        let note = &self.forwarding_note;
        std::fs::write(note, "was 0 before Berth\n").map_err(Error::file("write", note))?;
        std::fs::write(path, "1").map_err(Error::file("write", path))?;
        tracing::info!("switched net.ipv4.ip_forward on for the built-in network");
        Ok(())
    }

    /// Removes bridge and table if no pod is left; says whether it did. What has ports all the same is
    /// somebody else's by now, whatever its name, and stays.
    pub(super) fn shutdown(&self) -> Result<bool, Error> {
        let _serial = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if self.leases.any() {
            return Ok(false);
        }
        let mut netlink = Netlink::route()?;
        self.sweep(&mut netlink, &[])?;
        let bridge = links::find_bridge(&mut netlink, &self.rules.bridge)?;
        let used = match bridge {
            Some(bridge) => links::ports(&mut netlink)?
                .values()
                .any(|port| port.bridge == Some(bridge.index)),
            None => false,
        };
        if used || !self.rules.is_empty()? {
            tracing::warn!(
                bridge = self.rules.bridge,
                "bridge and rules of the built-in network stay: there are links or host ports of pods that this daemon does not know"
            );
            return Ok(false);
        }
        let mut errors = Vec::new();
        errors.extend(self.rules.remove().err());
        let removed = links::remove(&mut netlink, &self.rules.bridge);
        errors.extend(removed.err().map(Error::from));
        Error::collect(errors).map(|()| true)
    }

    /// The result in the form of CNI 1.0.0, for verbose status.
    fn describe(
        &self,
        pod: &PodNetwork,
        subnet: Subnet,
        address: std::net::Ipv4Addr,
    ) -> serde_json::Value {
        let mac = |address| {
            links::hardware_address(address)
                .map(|b| format!("{b:02x}"))
                .join(":")
        };
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": self.rules.bridge, "mac": mac(subnet.gateway())},
                {"name": host_interface(&pod.id)},
                {"name": POD_INTERFACE, "mac": mac(address), "sandbox": pod.netns},
            ],
            "ips": [{
                "address": format!("{address}/{}", subnet.prefix()),
                "gateway": subnet.gateway(),
                "interface": 2,
            }],
            "routes": [{"dst": "0.0.0.0/0", "gw": subnet.gateway()}],
        })
    }
}

fn result(lease: Lease) -> NetworkResult {
    NetworkResult {
        ips: vec![IpAddr::V4(lease.address)],
        raw: lease.result,
    }
}

/// Name of the host's end of a pod's link: 14 of the 15 bytes that a name may have.
fn host_interface(pod: &PodId) -> String {
    format!("bt{}", pod.short())
}

fn published(mappings: &[PortMapping]) -> Vec<PortMapping> {
    mappings
        .iter()
        .filter(|m| m.host_port > 0)
        .cloned()
        .collect()
}

/// The host ports, checked; a repeated one counts once.
fn host_ports(mappings: &[PortMapping]) -> Result<Vec<HostPort>, Error> {
    let mut ports = Vec::new();
    for mapping in mappings {
        ports.extend(HostPort::new(mapping)?);
    }
    ports.sort_unstable();
    ports.dedup();
    if let Some([one, other]) = ports.array_windows().find(|[a, b]| a.is_the_same_as(*b)) {
        let (target, second) = (one.target(), other.target());
        return Err(Error::Invalid(format!(
            "host port {one} is mapped twice, to {target} and to {second}: leave one of them out"
        )));
    }
    Ok(ports)
}
