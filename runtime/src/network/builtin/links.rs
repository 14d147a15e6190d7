//! Bridge, veth pairs, addresses and routes of the built-in network.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::path::Path;

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::Subnet;
use crate::network::Error;
use crate::network::netlink::{NLM_F_CREATE, NLM_F_EXCL, Netlink, NetlinkError, Step};

/// Name of the interface in a pod.
pub(in crate::network) const POD_INTERFACE: &str = "eth0";

/// The bridge as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bridge {
    /// Its index.
    pub(super) index: u32,
    /// What it can carry in one piece, bytes.
    pub(super) mtu: u32,
    /// Whether it was brought up.
    pub(super) up: bool,
}

/// An interface that may be a port of the bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    name: String,
    /// Index of the bridge that it is a port of.
    pub(super) bridge: Option<u32>,
    /// Whether it was brought up.
    pub(super) up: bool,
    /// Whether a packet may leave by it that came in by it; see [`hairpin`].
    pub(super) hairpin: bool,
}

/// Both ends of a pod's link.
#[derive(Debug)]
pub(super) struct Pair<'a> {
    /// Name of the host's end.
    pub(super) host: &'a str,
    /// For people: `ip link` shows it.
    pub(super) alias: &'a str,
    /// The pod's namespace.
    pub(super) netns: &'a Path,
    /// The pod's address.
    pub(super) address: Ipv4Addr,
}

/// An interface by its name.
fn by_name(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.into()));
    link
}

/// Sets `IFF_UP`.
fn up(mut link: LinkMessage) -> LinkMessage {
    link.header.flags |= LinkFlags::Up;
    link.header.change_mask |= LinkFlags::Up;
    link
}

/// A hardware address that follows from the IP address, so that no neighbour table is ever stale:
/// locally administered, unicast.
pub(super) fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0xbe, 0x72, a, b, c, d]
}

fn find(netlink: &mut Netlink, name: &str) -> Result<Option<LinkMessage>, NetlinkError> {
    let what = format!("look for interface {name:?}");
    match netlink.get(&what, Message::GetLink(by_name(name))) {
        Ok(Some(Message::NewLink(link))) => Ok(Some(link)),
        Ok(_) => Ok(None),
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

fn mtu(link: &LinkMessage) -> Option<u32> {
    link.attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        })
}

/// The bridge, if it exists.
pub(super) fn find_bridge(netlink: &mut Netlink, name: &str) -> Result<Option<Bridge>, Error> {
    let Some(link) = find(netlink, name)? else {
        return Ok(None);
    };
    let is_bridge = link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(info) => info.contains(&LinkInfo::Kind(InfoKind::Bridge)),
        _ => false,
    });
    if !is_bridge {
        return Err(Error::NotReady(format!(
            "interface {name:?} exists and is not a bridge: remove it, or choose another instance name"
        )));
    }
    Ok(Some(Bridge {
        index: link.header.index,
        mtu: mtu(&link).unwrap_or(DEFAULT_MTU),
        up: link.header.flags.contains(LinkFlags::Up),
    }))
}

/// All interfaces by their names.
pub(super) fn ports(netlink: &mut Netlink) -> Result<BTreeMap<String, Port>, NetlinkError> {
    let links = netlink.dump("list interfaces", Message::GetLink(LinkMessage::default()))?;
    let port = |message| {
        let Message::NewLink(link) = message else {
            return None;
        };
        let mut port = Port {
            name: String::new(),
            bridge: None,
            up: link.header.flags.contains(LinkFlags::Up),
            hairpin: false,
        };
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => port.name = name,
                LinkAttribute::Controller(index) => port.bridge = Some(index),
                LinkAttribute::LinkInfo(info) => port.hairpin = is_hairpin(&info),
                _ => {}
            }
        }
        Some((port.name.clone(), port))
    };
    Ok(links.into_iter().filter_map(port).collect())
}

fn is_hairpin(info: &[LinkInfo]) -> bool {
    let on = |data: &InfoBridgePort| matches!(data, InfoBridgePort::HairpinMode(true));
    info.iter().any(|info| match info {
        LinkInfo::PortData(InfoPortData::BridgePort(port)) => port.iter().any(on),
        _ => false,
    })
}

/// Makes an interface a port of the bridge (again), and brings it up.
pub(super) fn attach(
    netlink: &mut Netlink,
    bridge: Bridge,
    port: &Port,
) -> Result<(), NetlinkError> {
    let mut enslaved = up(by_name(&port.name));
    enslaved
        .attributes
        .push(LinkAttribute::Controller(bridge.index));
    netlink.run(vec![
        Step::new(
            format!("put {:?} on the bridge", port.name),
            Message::SetLink(enslaved),
            0,
        ),
        Step::new(
            format!("set up bridge port {:?}", port.name),
            Message::NewLink(hairpin(&port.name)),
            0,
        ),
    ])
}

/// A pod that reaches itself through a host port goes back out of the port it came in by, when
/// br_netfilter translates on the bridge.
fn hairpin(name: &str) -> LinkMessage {
    let mut port = by_name(name);
    port.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(
            true,
        )])),
    ]));
    port
}

/// The IPv4 addresses of an interface, each with its prefix.
pub(super) fn addresses(
    netlink: &mut Netlink,
    index: u32,
) -> Result<Vec<(Ipv4Addr, u8)>, NetlinkError> {
    let mut request = AddressMessage::default();
    request.header.family = AddressFamily::Inet;
    let all = netlink.dump("list addresses", Message::GetAddress(request))?;
    let address = |message| match message {
        Message::NewAddress(found) if found.header.index == index => {
            let prefix = found.header.prefix_len;
            found.attributes.into_iter().find_map(|a| match a {
                AddressAttribute::Local(IpAddr::V4(address)) => Some((address, prefix)),
                _ => None,
            })
        }
        _ => None,
    };
    Ok(all.into_iter().filter_map(address).collect())
}

const DEFAULT_MTU: u32 = 1500;

/// Makes the bridge, with the gateway's address, unless it exists, and sets it up either way. `earlier`: subnets that
/// pods still have beside the one that is to be free.
pub(super) fn ensure_bridge(
    netlink: &mut Netlink,
    name: &str,
    subnet: Subnet,
    earlier: &[Subnet],
) -> Result<Bridge, Error> {
    let uplink = survey(netlink, name, subnet)?;
    let mut link = by_name(name);
    // As it was before somebody removed it: pods that live know the gateway by it.
    let first = earlier.first().unwrap_or(&subnet);
    let hardware = hardware_address(first.gateway());
    link.attributes.extend([
        // Set explicitly, or it would change with the ports.
        LinkAttribute::Address(hardware.into()),
        LinkAttribute::Mtu(uplink),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ]);
    if find_bridge(netlink, name)?.is_none() {
        let what = format!("make bridge {name:?}");
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        netlink.run(vec![Step::new(what, Message::NewLink(link), flags)])?;
    }
    let bridge = find_bridge(netlink, name)?
        .ok_or_else(|| Error::NotReady(format!("bridge {name:?} vanished")))?;
    set_bridge_parameters(name)?;
    let mut state = LinkMessage::default();
    state.header.index = bridge.index;
    let address = |subnet: &Subnet| {
        Step::new(
            format!("give bridge {name:?} address {}", subnet.gateway()),
            Message::NewAddress(address_message(bridge.index, subnet.gateway(), *subnet)),
            // Without NLM_F_EXCL an address that is there is no error.
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    };
    let mut steps: Vec<_> = std::iter::once(&subnet)
        .chain(earlier)
        .map(address)
        .collect();
    steps.push(Step::new(
        format!("bring bridge {name:?} up"),
        Message::SetLink(up(state)),
        0,
    ));
    netlink.run(steps)?;
    Ok(bridge)
}

/// Takes the gateway's address of a subnet from the bridge. One that is gone is fine.
pub(super) fn forsake(
    netlink: &mut Netlink,
    bridge: Bridge,
    subnet: Subnet,
) -> Result<(), NetlinkError> {
    let gateway = subnet.gateway();
    let message = Message::DelAddress(address_message(bridge.index, gateway, subnet));
    let what = format!("take address {gateway} from the bridge");
    match netlink.run(vec![Step::new(what, message, 0)]) {
        Err(error) if error.errno() == Some(libc::EADDRNOTAVAIL) => Ok(()),
        other => other,
    }
}

const NLM_F_REPLACE: u16 = 0x100;

/// The name of an interface; its index, when it has none any more.
fn name_of(netlink: &mut Netlink, index: u32) -> String {
    let mut link = LinkMessage::default();
    link.header.index = index;
    let name = match netlink.get("read an interface's name", Message::GetLink(link)) {
        Ok(Some(Message::NewLink(link))) => link.attributes.into_iter().find_map(|a| match a {
            LinkAttribute::IfName(name) => Some(format!("{name:?}")),
            _ => None,
        }),
        _ => None,
    };
    name.unwrap_or_else(|| index.to_string())
}

/// Reads the routing table: the MTU of the interface with the default route, and whether the
/// subnet is free.
pub(super) fn survey(netlink: &mut Netlink, bridge: &str, subnet: Subnet) -> Result<u32, Error> {
    let ours = find(netlink, bridge)?.map(|link| link.header.index);
    let mut request = RouteMessage::default();
    request.header.address_family = AddressFamily::Inet;
    let mut uplink: Option<(u32, u32)> = None;
    for message in netlink.dump("list routes", Message::GetRoute(request))? {
        let Message::NewRoute(route) = message else {
            continue;
        };
        if route.header.table != RouteHeader::RT_TABLE_MAIN {
            continue;
        }
        let Some(interface) = attribute(&route, |a| match a {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        }) else {
            continue;
        };
        let prefix = route.header.destination_prefix_length;
        if prefix == 0 {
            let metric = attribute(&route, |a| match a {
                RouteAttribute::Priority(metric) => Some(*metric),
                _ => None,
            });
            let candidate = (metric.unwrap_or(0), interface);
            uplink = Some(uplink.map_or(candidate, |best| best.min(candidate)));
        }
        let destination = attribute(&route, |a| match a {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
            _ => None,
        });
        // Wider routes (a VPN's 10.0.0.0/8) are overruled by the bridge's; the same or narrower
        // ones are somebody else's hosts.
        if let Some(address) = destination
            && prefix >= subnet.prefix()
            && subnet.overlaps(address, prefix)
            && Some(interface) != ours
        {
            let through = name_of(netlink, interface);
            return Err(Error::NotReady(format!(
                "subnet {subnet} of the built-in network is in use: there is a route to {address}/{prefix} through interface {through}; choose another [network] builtin"
            )));
        }
    }
    let Some((_, index)) = uplink else {
        return Ok(DEFAULT_MTU);
    };
    let mut link = LinkMessage::default();
    link.header.index = index;
    match netlink.get("read the uplink's MTU", Message::GetLink(link))? {
        Some(Message::NewLink(link)) => Ok(mtu(&link).unwrap_or(DEFAULT_MTU)),
        _ => Ok(DEFAULT_MTU),
    }
}

fn attribute<T>(route: &RouteMessage, find: impl FnMut(&RouteAttribute) -> Option<T>) -> Option<T> {
    route.attributes.iter().find_map(find)
}

/// IPv4 only: no IPv6 on the bridge, so no router advertisement from a pod is believed
/// (CVE-2020-10749). `route_localnet` is for host ports on 127.0.0.1; see the guard chain.
fn set_bridge_parameters(name: &str) -> Result<(), Error> {
    for (path, value, optional) in [
        (
            format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"),
            "1",
            true,
        ),
        (
            format!("/proc/sys/net/ipv4/conf/{name}/route_localnet"),
            "1",
            false,
        ),
    ] {
        match std::fs::write(&path, value) {
            // A kernel without IPv6.
            Err(error) if optional && error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(Error::file("write", path))?,
        }
    }
    Ok(())
}

/// Makes the pair with one end on the bridge and the other in the pod, up and with its address and
/// the default route.
pub(super) fn connect(
    netlink: &mut Netlink,
    bridge: Bridge,
    subnet: Subnet,
    pair: &Pair<'_>,
) -> Result<(), Error> {
    let netns = File::open(pair.netns).map_err(Error::file("open", pair.netns))?;
    let mut peer = by_name(POD_INTERFACE);
    peer.attributes.extend([
        LinkAttribute::Address(hardware_address(pair.address).into()),
        LinkAttribute::Mtu(bridge.mtu),
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
    ]);
    let mut host = up(by_name(pair.host));
    host.attributes.extend([
        LinkAttribute::Mtu(bridge.mtu),
        LinkAttribute::Controller(bridge.index),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ]);
    let mut port = hairpin(pair.host);
    port.attributes
        .push(LinkAttribute::IfAlias(pair.alias.into()));
    netlink.run(vec![
        Step::new(
            format!("make veth pair {:?}", pair.host),
            Message::NewLink(host),
            NLM_F_CREATE | NLM_F_EXCL,
        ),
        Step::new(
            format!("set up bridge port {:?}", pair.host),
            Message::NewLink(port),
            0,
        ),
    ])?;
    crash_point!("run_pod.veth.after");
    let mut inside = Netlink::route_in(pair.netns)?;
    let index = find(&mut inside, POD_INTERFACE)?
        .map(|link| link.header.index)
        .ok_or_else(|| Error::NotReady(format!("{POD_INTERFACE} vanished from the pod")))?;
    let mut state = LinkMessage::default();
    state.header.index = index;
    inside.run(vec![
        // Not at creation: veth has no peer then, and does not open without one.
        Step::new(
            "bring the pod's interface up",
            Message::SetLink(up(state)),
            0,
        ),
        Step::new(
            format!("give the pod address {}", pair.address),
            Message::NewAddress(address_message(index, pair.address, subnet)),
            NLM_F_CREATE | NLM_F_EXCL,
        ),
        Step::new(
            "give the pod its default route",
            default_route(index, subnet.gateway()),
            NLM_F_CREATE | NLM_F_EXCL,
        ),
    ])?;
    Ok(())
}

fn address_message(index: u32, address: Ipv4Addr, subnet: Subnet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = subnet.prefix();
    message.header.index = index;
    message.attributes.extend([
        AddressAttribute::Local(address.into()),
        AddressAttribute::Address(address.into()),
        AddressAttribute::Broadcast(subnet.broadcast()),
    ]);
    message
}

fn default_route(index: u32, gateway: Ipv4Addr) -> Message {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Boot;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes.extend([
        RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
        RouteAttribute::Oif(index),
    ]);
    Message::NewRoute(message)
}

/// Removes an interface; for a veth its peer goes with it. One that does not exist is fine.
pub(super) fn remove(netlink: &mut Netlink, name: &str) -> Result<(), NetlinkError> {
    let what = format!("remove interface {name:?}");
    let step = Step::new(what, Message::DelLink(by_name(name)), 0);
    match netlink.run(vec![step]) {
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}
