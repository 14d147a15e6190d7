//! The nftables table of the built-in network: masquerade, host ports, and a guard for the host's
//! loopback.
//!
//! Everything is in one table of our own. Host ports are elements of two maps, so that a pod's are
//! added and removed by a transaction for each thousand of them; whose each one is says the pod's
//! id in its comment. There is no accept rule for forwarded packets: an accept in one table does
//! not overrule a drop in another, and with nobody else dropping there is nothing to accept.

mod look;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use self::look::Claim;
use super::Subnet;
use super::lease::Lease;
use crate::id::PodId;
use crate::model::{PortMapping, Protocol};
use crate::network::Error;
use crate::network::netlink::{NetfilterPool, Netlink, NetlinkError};
use crate::network::nftables::{
    Batch, Element, Expression as E, Field, Hook, Meta, R0, R1, R2, Verdict, chunks, find_elements,
    interface_name,
};

pub(super) use self::look::Stranger;

/// Ports on every address of the host: protocol, port to address, port.
const PORTS: &str = "hostports";
/// Ports on one address: address, protocol, port to address, port.
const ADDRESS_PORTS: &str = "hostports_by_address";
const JUMP_TARGET: &str = "hostport";

/// How often it is begun anew when somebody else removes elements at the same time.
const WITHDRAW_ATTEMPTS: u32 = 8;

/// How the chain of a subnet begins: its name says which subnets a table was made for.
const FROM: &str = "from-";

/// The chain for what comes from the pods of a subnet.
fn chain_of(subnet: Subnet) -> String {
    format!("{FROM}{subnet}")
}

/// The rules that each chain has.
fn chains(subnets: &[Subnet]) -> Vec<(String, usize)> {
    let mut chains: Vec<_> = [
        ("guard", 2),
        (JUMP_TARGET, 2),
        ("prerouting", 1),
        ("output", 1),
        ("postrouting", 1 + subnets.len()),
    ]
    .map(|(chain, count)| (chain.to_owned(), count))
    .into();
    chains.extend(subnets.iter().map(|subnet| (chain_of(*subnet), 2)));
    chains
}

// Data types as nft numbers them for its listings; a concatenation is 6 bits for each.
const TYPE_ADDRESS: u32 = 7;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_SERVICE: u32 = 13;

/// A host port of a pod, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HostPort {
    /// `None`: all addresses.
    address: Option<Ipv4Addr>,
    protocol: u8,
    port: u16,
    target: u16,
}

impl HostPort {
    /// Checks a port mapping; `None` when it has no host port.
    pub(super) fn new(mapping: &PortMapping) -> Result<Option<Self>, Error> {
        if mapping.host_port == 0 {
            return Ok(None);
        }
        if mapping.container_port == 0 {
            let port = mapping.host_port;
            return Err(Error::Invalid(format!(
                "host port {port} has no container port"
            )));
        }
        let address = match mapping.host_ip.as_str() {
            // Kubernetes writes "every address" in both families.
            "" | "0.0.0.0" | "::" => None,
            text => Some(text.parse().map_err(|_| {
                Error::Invalid(format!(
                    "host address {text:?} of host port {} is not an IPv4 address: the built-in network has no other",
                    mapping.host_port
                ))
            })?),
        };
        Ok(Some(Self {
            address,
            protocol: match mapping.protocol {
                Protocol::Tcp => 6,
                Protocol::Udp => 17,
                Protocol::Sctp => 132,
            },
            port: mapping.host_port,
            target: mapping.container_port,
        }))
    }

    /// Whether this and another one cannot both be: they are one port of the host.
    pub(super) fn is_the_same_as(self, other: Self) -> bool {
        (self.address, self.protocol, self.port) == (other.address, other.protocol, other.port)
    }

    /// The port in the pod.
    pub(super) fn target(self) -> u16 {
        self.target
    }

    /// Whether this is a UDP port.
    pub(super) fn is_udp(self) -> bool {
        self.protocol == 17
    }

    /// The port on the host.
    pub(super) fn port(self) -> u16 {
        self.port
    }

    fn map(self) -> &'static str {
        self.address.map_or(PORTS, |_| ADDRESS_PORTS)
    }

    fn element(self, pod: &PodId, address: Ipv4Addr) -> Element {
        // Every part of a concatenation begins at a multiple of four bytes.
        let mut key = Vec::new();
        if let Some(address) = self.address {
            key.extend(address.octets());
        }
        key.extend([self.protocol, 0, 0, 0]);
        key.extend(padded(self.port));
        Element {
            key,
            data: [address.octets(), padded(self.target)].concat(),
            comment: pod.to_string(),
        }
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let protocol = match self.protocol {
            6 => "tcp",
            17 => "udp",
            _ => "sctp",
        };
        match self.address {
            Some(address) => write!(f, "{address}:{}/{protocol}", self.port),
            None => write!(f, "{}/{protocol}", self.port),
        }
    }
}

fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// The table.
#[derive(Debug)]
pub(super) struct Rules {
    /// Its name.
    pub(super) table: String,
    /// Name of the bridge.
    pub(super) bridge: String,
    /// The way to the kernel.
    pub(super) sockets: NetfilterPool,
}

impl Rules {
    /// Makes the table anew in one transaction, for these subnets and with the host ports of these leases.
    /// Connections that exist go on.
    pub(super) fn rebuild(&self, subnets: &[Subnet], leases: &[Lease]) -> Result<(), Error> {
        let mut batch = Batch::new(&self.table);
        // Adding it first makes deleting it possible whether it was there or not.
        batch.add_table().delete_table().add_table();
        let concatenated = |types: &[u32]| types.iter().fold(0, |all, one| all << 6 | one);
        let data = (concatenated(&[TYPE_ADDRESS, TYPE_SERVICE]), 8);
        let key = concatenated(&[TYPE_PROTOCOL, TYPE_SERVICE]);
        let address_key = concatenated(&[TYPE_ADDRESS, TYPE_PROTOCOL, TYPE_SERVICE]);
        batch
            .add_map(PORTS, (key, 8), data)
            .add_map(ADDRESS_PORTS, (address_key, 12), data);
        self.add_guard(&mut batch);
        add_host_ports(&mut batch);
        self.add_source_nat(&mut batch, subnets);
        self.sockets.with(|netlink| batch.commit(netlink))?;
        let filled = published(leases)
            .iter()
            .try_for_each(|(map, elements)| self.add(map, elements));
        if filled.is_err() {
            // Without the table the next attempt begins anew; with half of it, it would not.
            let _ = self.remove();
        }
        Ok(filled?)
    }

    /// Adds elements to a map, in as many transactions as it takes. After an error some may be there.
    fn add(&self, map: &str, elements: &[Element]) -> Result<(), NetlinkError> {
        chunks(elements).try_for_each(|some| {
            let mut batch = Batch::new(&self.table);
            batch.add_elements(map, some);
            self.sockets.with(|netlink| batch.commit(netlink))
        })
    }

    /// `route_localnet` lets the bridge carry 127.0.0.0/8, which host ports on 127.0.0.1 need. What
    /// a pod sends under such an address never belongs there (CVE-2020-8558): it goes before
    /// connection tracking could translate an answer back.
    fn add_guard(&self, batch: &mut Batch) {
        const PRIORITY_RAW: i32 = -300;
        batch.add_base_chain("guard", "filter", Hook::Prerouting, PRIORITY_RAW);
        for field in [Field::SourceAddress, Field::DestinationAddress] {
            batch.add_rule(
                "guard",
                &[
                    E::Meta(Meta::InputName, R0),
                    E::Equal(R0, &interface_name(&self.bridge)),
                    E::Payload(field, R0),
                    E::Mask(R0, [255, 0, 0, 0]),
                    E::Equal(R0, &[127, 0, 0, 0]),
                    E::Verdict(Verdict::Drop),
                ],
            );
        }
    }

    fn add_source_nat(&self, batch: &mut Batch, subnets: &[Subnet]) {
        const PRIORITY_SOURCE_NAT: i32 = 100;
        let chain = "postrouting";
        batch.add_base_chain(chain, "nat", Hook::Postrouting, PRIORITY_SOURCE_NAT);
        for subnet in subnets {
            let (mask, network) = (subnet.mask().to_be_bytes(), subnet.network().octets());
            let own = chain_of(*subnet);
            add_from_pods(batch, &own, *subnet, subnets);
            let from_pod = [
                E::Payload(Field::SourceAddress, R0),
                E::Mask(R0, mask),
                E::Equal(R0, &network),
                E::Verdict(Verdict::Jump(&own)),
            ];
            batch.add_rule(chain, &from_pod);
        }
        // The host through 127.0.0.1: a pod cannot answer that address.
        batch.add_rule(
            chain,
            &[
                E::Meta(Meta::OutputName, R0),
                E::Equal(R0, &interface_name(&self.bridge)),
                E::Payload(Field::SourceAddress, R0),
                E::Mask(R0, [255, 0, 0, 0]),
                E::Equal(R0, &[127, 0, 0, 0]),
                E::Masquerade,
            ],
        );
    }

    /// Publishes ports of a pod, all or none.
    pub(super) fn publish(
        &self,
        pod: &PodId,
        address: Ipv4Addr,
        ports: &[HostPort],
    ) -> Result<(), Error> {
        let done = by_map(pod, address, ports)
            .iter()
            .try_for_each(|(map, elements)| self.add(map, elements));
        done.map_err(|error| {
            let taken = matches!(error.errno(), Some(libc::EEXIST | libc::EBUSY));
            let told = taken.then(|| self.owner(pod, ports)).flatten();
            let told = told.unwrap_or_else(|| error.into());
            match self.withdraw(pod, ports) {
                Ok(()) => told,
                Err(undo) => Error::Several(vec![told, undo]),
            }
        })
    }

    /// Which of these ports another pod has.
    fn owner(&self, pod: &PodId, ports: &[HostPort]) -> Option<Error> {
        for (map, elements) in by_map(pod, Ipv4Addr::UNSPECIFIED, ports) {
            let find = |netlink: &mut Netlink| self.there(netlink, map, &elements);
            let held = self.sockets.with(find).ok()?;
            let Some(taken) = held.into_iter().find(|held| held.comment != pod.as_str()) else {
                continue;
            };
            let is_it =
                |port: &&HostPort| port.element(pod, Ipv4Addr::UNSPECIFIED).key == taken.key;
            return Some(Error::HostPortTaken {
                port: ports.iter().find(is_it)?.to_string(),
                owner: taken.comment,
            });
        }
        None
    }

    /// Those of these elements that are in the map, as they are there.
    fn there(
        &self,
        netlink: &mut Netlink,
        map: &str,
        elements: &[Element],
    ) -> Result<Vec<Element>, NetlinkError> {
        let keys: Vec<_> = elements.iter().map(|element| element.key.clone()).collect();
        find_elements(netlink, &self.table, map, &keys)
    }

    /// Withdraws those of these ports that a pod has; none, or no table, is fine.
    pub(super) fn withdraw(&self, pod: &PodId, ports: &[HostPort]) -> Result<(), Error> {
        Ok(self.sockets.with(|netlink| {
            for (map, elements) in by_map(pod, Ipv4Addr::UNSPECIFIED, ports) {
                self.take_out(netlink, map, &elements, |one| one.comment == pod.as_str())?;
            }
            Ok::<_, NetlinkError>(())
        })?)
    }

    /// Removes what is in a map under the keys of these elements and is `meant`.
    fn take_out(
        &self,
        netlink: &mut Netlink,
        map: &str,
        elements: &[Element],
        meant: impl Fn(&Element) -> bool,
    ) -> Result<(), NetlinkError> {
        let mut attempts = 0..WITHDRAW_ATTEMPTS;
        loop {
            let mut found = self.there(netlink, map, elements)?;
            found.retain(&meant);
            let done = chunks(&found).try_for_each(|some| {
                let mut batch = Batch::new(&self.table);
                batch.delete_elements(map, some);
                batch.commit(netlink)
            });
            match done {
                // Somebody else took one of them, or the table: the rest is still to go.
                Err(error) if error.errno() == Some(libc::ENOENT) && attempts.next().is_some() => {}
                other => return other,
            }
        }
    }
}

/// The elements of each map that these ports of a pod are.
fn by_map(
    pod: &PodId,
    address: Ipv4Addr,
    ports: &[HostPort],
) -> BTreeMap<&'static str, Vec<Element>> {
    let mut maps: BTreeMap<_, Vec<Element>> = BTreeMap::new();
    for port in ports {
        let elements = maps.entry(port.map()).or_default();
        elements.push(port.element(pod, address));
    }
    maps
}

/// The elements of each map that these leases make. A port counts once: a crash before a refused
/// port was undone leaves a lease that claims it too, and must not keep everybody else out.
fn published(leases: &[Lease]) -> BTreeMap<&'static str, Vec<Element>> {
    let mut all: BTreeMap<_, Vec<Element>> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for (map, element) in of_leases(leases) {
        if seen.insert(element.key.clone()) {
            all.entry(map).or_default().push(element);
        }
    }
    all
}

/// What these leases may have, also where two of them claim one port.
fn claimed(leases: &[Lease]) -> BTreeSet<Claim> {
    of_leases(leases)
        .map(|(map, element)| (map, element.key, element.comment))
        .collect()
}

fn of_leases(leases: &[Lease]) -> impl Iterator<Item = (&'static str, Element)> {
    leases.iter().flat_map(|lease| {
        let ports = lease.ports.iter();
        let checked = ports.filter_map(|port| HostPort::new(port).ok().flatten());
        checked.map(|port| (port.map(), port.element(&lease.pod, lease.address)))
    })
}

/// The chain for what comes from the pods of one of the subnets.
fn add_from_pods(batch: &mut Batch, chain: &str, subnet: Subnet, subnets: &[Subnet]) {
    batch.add_chain(chain);
    let masks: Vec<_> = subnets
        .iter()
        .map(|one| (one.mask().to_be_bytes(), one.network().octets()))
        .collect();
    let multicast = [224, 0, 0, 0];
    // Out into the world. Multicast stays on its link, where the pod's own address is right.
    let mut leaving = vec![
        E::Payload(Field::DestinationAddress, R0),
        E::Mask(R0, [240, 0, 0, 0]),
        E::NotEqual(R0, &multicast),
    ];
    for (mask, network) in &masks {
        leaving.extend([
            E::Payload(Field::DestinationAddress, R0),
            E::Mask(R0, *mask),
            E::NotEqual(R0, network),
        ]);
    }
    leaving.push(E::Masquerade);
    batch.add_rule(chain, &leaving);
    // A pod that reaches a pod through a host port: the answer must come back this way too.
    let network = subnet.network().octets();
    let around = [
        E::Payload(Field::DestinationAddress, R0),
        E::Mask(R0, subnet.mask().to_be_bytes()),
        E::Equal(R0, &network),
        E::Rewritten(R0),
        E::Masquerade,
    ];
    batch.add_rule(chain, &around);
}

/// Host ports, for packets to an address of this machine only: traffic to other machines that
/// passes through is never touched (CVE-2019-9946).
fn add_host_ports(batch: &mut Batch) {
    const PRIORITY_DESTINATION_NAT: i32 = -100;
    batch.add_chain(JUMP_TARGET);
    let by_address = [
        E::Payload(Field::DestinationAddress, R0),
        E::Meta(Meta::Protocol, R1),
        E::Payload(Field::DestinationPort, R2),
        E::Lookup(ADDRESS_PORTS, R0, R0),
        E::Dnat(R0, R1),
    ];
    let by_port = [
        E::Meta(Meta::Protocol, R0),
        E::Payload(Field::DestinationPort, R1),
        E::Lookup(PORTS, R0, R0),
        E::Dnat(R0, R1),
    ];
    batch.add_rule(JUMP_TARGET, &by_address);
    batch.add_rule(JUMP_TARGET, &by_port);
    let local = [
        E::LocalDestination(R0),
        E::Verdict(Verdict::Jump(JUMP_TARGET)),
    ];
    for (chain, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        batch.add_base_chain(chain, "nat", hook, PRIORITY_DESTINATION_NAT);
        batch.add_rule(chain, &local);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host_ip: &str, host_port: u16, container_port: u16) -> PortMapping {
        PortMapping {
            protocol: Protocol::Udp,
            container_port,
            host_port,
            host_ip: host_ip.into(),
        }
    }

    #[test]
    fn port_mappings_are_checked() {
        assert_eq!(HostPort::new(&mapping("", 0, 80)).unwrap(), None);
        let any = HostPort::new(&mapping("::", 53, 5353)).unwrap().unwrap();
        assert_eq!(any.to_string(), "53/udp");
        assert_eq!(any.map(), PORTS);
        let one = HostPort::new(&mapping("192.0.2.1", 53, 5353))
            .unwrap()
            .unwrap();
        assert_eq!(one.to_string(), "192.0.2.1:53/udp");
        assert!(HostPort::new(&mapping("", 53, 0)).is_err());
        assert!(HostPort::new(&mapping("::1", 53, 53)).is_err());
        assert!(HostPort::new(&mapping("localhost", 53, 53)).is_err());
    }

    #[test]
    fn a_port_that_two_leases_claim_is_published_once() {
        let lease = |address| Lease {
            pod: PodId::generate().unwrap(),
            address,
            ports: vec![mapping("", 53, 53), mapping("192.0.2.1", 53, 53)],
            result: serde_json::Value::Null,
        };
        let leases = [lease([10, 0, 0, 2].into()), lease([10, 0, 0, 3].into())];
        let all = published(&leases);
        assert_eq!(all[PORTS].len(), 1);
        assert_eq!(all[ADDRESS_PORTS].len(), 1);
        assert_eq!(all[PORTS][0].comment, leases[0].pod.as_str());
    }

    #[test]
    fn elements_are_laid_out_in_words() {
        let port = HostPort::new(&mapping("192.0.2.1", 0x1234, 80))
            .unwrap()
            .unwrap();
        let pod = PodId::generate().unwrap();
        let element = port.element(&pod, Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(element.key, [192, 0, 2, 1, 17, 0, 0, 0, 0x12, 0x34, 0, 0]);
        assert_eq!(element.data, [10, 0, 0, 2, 0, 80, 0, 0]);
    }
}
