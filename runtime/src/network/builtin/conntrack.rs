//! Forgets UDP connections that were tracked before a host port came or went.
//!
//! A client that goes on sending from one port keeps its entry alive, and with it where its packets
//! go: to a pod that is gone, or to nobody. TCP needs no such help, it starts anew.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::rules::HostPort;
use crate::network::netlink::{NLM_F_ACK, NetfilterPool, Netlink, NetlinkError, attributes};
use crate::network::nftables::{FAMILY, attribute_bytes, body_of, message};

const SUBSYSTEM: u16 = 1 << 8;
const CT_GET: u16 = SUBSYSTEM | 1;
const CT_DELETE: u16 = SUBSYSTEM | 2;
const NLM_F_DUMP: u16 = 0x300;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const NESTED: u16 = 0x8000;
const UDP: u8 = 17;

/// One direction of a tracked connection.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tuple {
    source: Option<Ipv4Addr>,
    destination: Option<Ipv4Addr>,
    protocol: Option<u8>,
    port: Option<u16>,
}

/// Forgets what was sent to these ports of this machine, or went to `pod` through them.
pub(super) fn forget(
    sockets: &NetfilterPool,
    ports: &[HostPort],
    pod: Ipv4Addr,
) -> Result<(), NetlinkError> {
    let ports: BTreeSet<u16> = ports
        .iter()
        .filter(|p| p.is_udp())
        .map(|p| p.port())
        .collect();
    if ports.is_empty() {
        return Ok(());
    }
    let local = local_addresses()?;
    sockets.with(|netlink| {
        for original in stale(netlink, &ports, &local, pod)? {
            delete(netlink, &original)?;
        }
        Ok(())
    })
}

/// The original directions of what is to be forgotten, as attributes.
fn stale(
    netlink: &mut Netlink,
    ports: &BTreeSet<u16>,
    local: &BTreeSet<Ipv4Addr>,
    pod: Ipv4Addr,
) -> Result<Vec<Vec<u8>>, NetlinkError> {
    let request = |sequence| message(CT_GET, NLM_F_DUMP, sequence, FAMILY, 0, &[]);
    netlink.ask("list tracked connections", request, |answer| {
        let find = |wanted| attributes(body_of(answer)).find(|(kind, _)| *kind == wanted);
        let ((_, original), (_, reply)) = (find(TUPLE_ORIGINAL)?, find(TUPLE_REPLY)?);
        let (sent, answered) = (tuple(original), tuple(reply));
        let to_us = sent
            .destination
            .is_some_and(|address| address.is_loopback() || local.contains(&address));
        let stale = sent.protocol == Some(UDP)
            && sent.port.is_some_and(|port| ports.contains(&port))
            && (to_us || answered.source == Some(pod));
        stale.then(|| attribute_bytes(TUPLE_ORIGINAL | NESTED, original))
    })
}

fn delete(netlink: &mut Netlink, original: &[u8]) -> Result<(), NetlinkError> {
    let sequence = netlink.next_sequence();
    let request = message(CT_DELETE, NLM_F_ACK, sequence, FAMILY, 0, original);
    let names = [(sequence, "forget a tracked connection".to_owned())];
    match netlink.exchange(&request, &names) {
        // It ended meanwhile.
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn tuple(bytes: &[u8]) -> Tuple {
    const IP: u16 = 1;
    const PROTOCOL: u16 = 2;
    let mut found = Tuple::default();
    let address = |value: &[u8]| <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from);
    for (group, inner) in attributes(bytes) {
        for (kind, value) in attributes(inner) {
            match (group, kind) {
                (IP, 1) => found.source = address(value),
                (IP, 2) => found.destination = address(value),
                (PROTOCOL, 1) => found.protocol = value.first().copied(),
                (PROTOCOL, 3) => found.port = value.try_into().ok().map(u16::from_be_bytes),
                _ => {}
            }
        }
    }
    found
}

fn local_addresses() -> Result<BTreeSet<Ipv4Addr>, NetlinkError> {
    let mut request = AddressMessage::default();
    request.header.family = AddressFamily::Inet;
    let mut found = BTreeSet::new();
    for message in Netlink::route()?.dump("list addresses", Message::GetAddress(request))? {
        let Message::NewAddress(message) = message else {
            continue;
        };
        found.extend(message.attributes.iter().filter_map(|a| match a {
            AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
            _ => None,
        }));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tuples_are_read_and_broken_ones_are_empty() {
        let ip = [
            attribute_bytes(1, &[192, 0, 2, 1]),
            attribute_bytes(2, &[192, 0, 2, 2]),
        ]
        .concat();
        let protocol = [attribute_bytes(1, &[17]), attribute_bytes(3, &[0, 53])].concat();
        let bytes = [attribute_bytes(1, &ip), attribute_bytes(2, &protocol)].concat();
        let expected = Tuple {
            source: Some(Ipv4Addr::new(192, 0, 2, 1)),
            destination: Some(Ipv4Addr::new(192, 0, 2, 2)),
            protocol: Some(17),
            port: Some(53),
        };
        assert_eq!(tuple(&bytes), expected);
        assert_eq!(tuple(&bytes[..7]), Tuple::default());
    }
}
