//! What is there, as the kernel lists it.

use std::collections::BTreeMap;

use super::{
    Element, FAMILY, SUBSYSTEM, attribute_bytes, body_of, comment_of, data_of, message, nested,
    text,
};
use crate::network::netlink::{Answer, NLM_F_ACK, Netlink, NetlinkError, attributes};

const GET_TABLE: u16 = 1;
const GET_CHAIN: u16 = 4;
const GET_RULE: u16 = 7;
const GET_ELEMENTS: u16 = 13;
const GET_GENERATION: u16 = 16;
const NLM_F_DUMP: u16 = 0x300;

/// Whether the table has this chain.
pub(in crate::network) fn chain_exists(
    netlink: &mut Netlink,
    table: &str,
    chain: &str,
) -> Result<bool, NetlinkError> {
    let what = format!("look for chain {chain:?} of nftables table {table:?}");
    let body = [text(1, table), text(3, chain)].concat();
    let asked = get(netlink, &what, GET_CHAIN, NLM_F_ACK, &body, |_| Some(()));
    absent_is_fine(asked).map(|found| !found.is_empty())
}

/// Whether the table is there and its rules see no packet: somebody gave it the flag `dormant`.
pub(in crate::network) fn table_is_dormant(
    netlink: &mut Netlink,
    table: &str,
) -> Result<bool, NetlinkError> {
    // NFTA_TABLE_FLAGS, NFT_TABLE_F_DORMANT (include/uapi/linux/netfilter/nf_tables.h).
    const FLAGS: u16 = 2;
    const DORMANT: u32 = 1;
    let what = format!("read the flags of nftables table {table:?}");
    let body = text(1, table);
    let asked = get(netlink, &what, GET_TABLE, NLM_F_ACK, &body, |answer| {
        let (_, flags) = attributes(body_of(answer)).find(|(kind, _)| *kind == FLAGS)?;
        flags.try_into().ok().map(u32::from_be_bytes)
    });
    absent_is_fine(asked).map(|found| found.iter().any(|flags| flags & DORMANT != 0))
}

/// The elements of a map, as far as nobody changes it meanwhile; none when there is no such map.
pub(in crate::network) fn elements(
    netlink: &mut Netlink,
    table: &str,
    map: &str,
) -> Result<Vec<Element>, NetlinkError> {
    let what = format!("list nftables map {map:?}");
    let body = [text(1, table), text(2, map)].concat();
    let asked = get(netlink, &what, GET_ELEMENTS, NLM_F_DUMP, &body, |answer| {
        let list = attributes(body_of(answer)).filter(|(kind, _)| *kind == 3);
        let elements = list.flat_map(|(_, list)| attributes(list));
        Some(
            elements
                .map(|(_, one)| read_element(one))
                .collect::<Vec<_>>(),
        )
    });
    absent_is_fine(asked).map(|parts| parts.into_iter().flatten().collect())
}

/// The elements of a map that have these keys. A list of all is not to be relied on while others add and remove:
/// the kernel counts how far it came, and what was counted moves when the map grows.
pub(in crate::network) fn find_elements(
    netlink: &mut Netlink,
    table: &str,
    map: &str,
    keys: &[Vec<u8>],
) -> Result<Vec<Element>, NetlinkError> {
    let what = format!("look for elements of nftables map {map:?}");
    let questions: Vec<Vec<u8>> = keys
        .iter()
        .map(|key| {
            let element = nested(1, &nested(1, &attribute_bytes(1, key)));
            [text(1, table), text(2, map), nested(3, &element)].concat()
        })
        .collect();
    let kind = SUBSYSTEM << 8 | GET_ELEMENTS;
    let request = |sequence, body: &[u8]| message(kind, NLM_F_ACK, sequence, FAMILY, 0, body);
    netlink.ask_each(&what, &questions, request, |answer| {
        let (_, list) = attributes(body_of(answer)).find(|(kind, _)| *kind == 3)?;
        attributes(list)
            .next()
            .map(|(_, element)| read_element(element))
    })
}

fn read_element(element: &[u8]) -> Element {
    Element {
        key: data_of(element, 1),
        data: data_of(element, 2),
        comment: comment_of(element),
    }
}

/// The number of rules in each chain of a table; none when there is no such table.
pub(in crate::network) fn rules(
    netlink: &mut Netlink,
    table: &str,
) -> Result<BTreeMap<String, usize>, NetlinkError> {
    let what = format!("list the rules of nftables table {table:?}");
    let asked = get(
        netlink,
        &what,
        GET_RULE,
        NLM_F_DUMP,
        &text(1, table),
        |answer| {
            let find = |wanted| attributes(body_of(answer)).find(|(kind, _)| *kind == wanted);
            let ((_, of), (_, chain)) = (find(1)?, find(2)?);
            // Kernels before 4.17 list every table's.
            (plain(of) == table).then(|| plain(chain))
        },
    );
    let mut counts = BTreeMap::new();
    for chain in absent_is_fine(asked)? {
        *counts.entry(chain).or_default() += 1;
    }
    Ok(counts)
}

/// A number that changes with every transaction of anybody in this network namespace.
pub(in crate::network) fn generation(netlink: &mut Netlink) -> Result<u32, NetlinkError> {
    let what = "read the generation of the nftables rules";
    let found = get(netlink, what, GET_GENERATION, NLM_F_ACK, &[], |answer| {
        let (_, id) = attributes(body_of(answer)).find(|(kind, _)| *kind == 1)?;
        id.try_into().ok().map(u32::from_be_bytes)
    })?;
    found
        .first()
        .copied()
        .ok_or_else(|| NetlinkError::new(what, std::io::Error::from_raw_os_error(libc::ENODATA)))
}

/// Tables other than `ours` that drop forwarded packets unless a rule of theirs lets them pass.
pub(in crate::network) fn dropping_forward(
    netlink: &mut Netlink,
    ours: &str,
) -> Result<Vec<String>, NetlinkError> {
    const NF_INET_FORWARD: [u8; 4] = [0, 0, 0, 2];
    const NF_DROP: [u8; 4] = [0; 4];
    let what = "list nftables chains";
    get(netlink, what, GET_CHAIN, NLM_F_DUMP, &[], |answer| {
        let find = |wanted| attributes(body_of(answer)).find(|(kind, _)| *kind == wanted);
        let forward = find(4).is_some_and(|(_, hook)| {
            attributes(hook).any(|(kind, value)| kind == 1 && value == NF_INET_FORWARD)
        });
        let drops = find(5).is_some_and(|(_, policy)| policy == NF_DROP);
        let table = find(1).map(|(_, name)| plain(name));
        table.filter(|table| forward && drops && table != ours)
    })
}

fn get<T>(
    netlink: &mut Netlink,
    what: &str,
    kind: u16,
    flags: u16,
    body: &[u8],
    each: impl FnMut(&Answer<'_>) -> Option<T>,
) -> Result<Vec<T>, NetlinkError> {
    let kind = SUBSYSTEM << 8 | kind;
    let request = |sequence| message(kind, flags, sequence, FAMILY, 0, body);
    netlink.ask(what, request, each)
}

fn absent_is_fine<T>(result: Result<Vec<T>, NetlinkError>) -> Result<Vec<T>, NetlinkError> {
    match result {
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(Vec::new()),
        other => other,
    }
}

/// A name as the kernel writes it, without its final zero.
fn plain(name: &[u8]) -> String {
    String::from_utf8_lossy(name).replace('\0', "")
}
