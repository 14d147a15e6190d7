//! Encodes nf_tables transactions: the part of `linux/netfilter/nf_tables.h` that the built-in
//! network needs. Written by hand, because no crate has its nat, masquerade, fib and ct expressions:
//! netlink-packet-netfilter 0.4 stops at payload, cmp, bitwise, meta, immediate and lookup.
//!
//! A [`Batch`] is one transaction: the kernel does all of it or nothing. What may be any number goes in
//! [`chunks`], one transaction each: a request has to fit into the socket's buffer (`EMSGSIZE`), and so have
//! the answers to its parts (`ENOBUFS`, when the transaction is done and nobody learns of it).

mod read;

use super::netlink::{
    Answer, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, Netlink, NetlinkError, attributes,
};

pub(super) use read::{
    chain_exists, dropping_forward, elements, find_elements, generation, rules, table_is_dormant,
};

/// Address family of all our tables (`NFPROTO_IPV4`).
pub(super) const FAMILY: u8 = 2;
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NLM_F_REQUEST: u16 = 1;
const NESTED: u16 = 0x8000;

const NEW_TABLE: u16 = 0;
const DEL_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENTS: u16 = 12;
const DEL_ELEMENTS: u16 = 14;

/// Elements in one message: their list is one attribute, at most 64 KiB long.
const ELEMENTS_PER_MESSAGE: usize = 200;

/// Elements in one transaction: with their comments some 120 KiB, below the 208 KiB that a socket takes.
const ELEMENTS_PER_BATCH: usize = 1000;

/// The parts of a list that fit into one transaction each.
pub(super) fn chunks<T>(all: &[T]) -> std::slice::Chunks<'_, T> {
    all.chunks(ELEMENTS_PER_BATCH)
}

/// Registers of 4 bytes, `NFT_REG32_00` and up. Only the first few are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register(u32);

/// The first register.
pub(super) const R0: Register = Register(8);
/// The second.
pub(super) const R1: Register = Register(9);
/// The third.
pub(super) const R2: Register = Register(10);

/// What a packet is hooked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    Prerouting = 0,
    Output = 3,
    Postrouting = 4,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict<'a> {
    Drop,
    Jump(&'a str),
}

/// Fields of the IPv4 and transport headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    SourceAddress,
    DestinationAddress,
    DestinationPort,
}

/// What is known of a packet without looking into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meta {
    InputName = 6,
    OutputName = 7,
    Protocol = 16,
}

/// One expression of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expression<'a> {
    /// Loads header bytes.
    Payload(Field, Register),
    /// Loads a fact.
    Meta(Meta, Register),
    /// `register & mask`, 4 bytes.
    Mask(Register, [u8; 4]),
    /// Goes on only if equal.
    Equal(Register, &'a [u8]),
    /// Goes on only if different.
    NotEqual(Register, &'a [u8]),
    /// Goes on only if the destination is an address of this machine.
    LocalDestination(Register),
    /// Goes on only if the connection's destination was rewritten.
    Rewritten(Register),
    /// Looks `key` up in a map; goes on with the data, only if it is there.
    Lookup(&'a str, Register, Register),
    /// Rewrites the destination to the address and port in these registers.
    Dnat(Register, Register),
    /// Rewrites the source to the address of the interface that the packet leaves by.
    Masquerade,
    /// Ends the rule.
    Verdict(Verdict<'a>),
}

/// An element of a map, with a note for the reader of `nft list` that also finds it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element {
    pub(super) key: Vec<u8>,
    pub(super) data: Vec<u8>,
    pub(super) comment: String,
}

/// A transaction on one table.
#[derive(Debug)]
pub(super) struct Batch {
    table: String,
    commands: Vec<(u16, u16, Vec<u8>, String)>,
}

impl Batch {
    /// An empty transaction.
    pub(super) fn new(table: &str) -> Self {
        Self {
            table: table.to_owned(),
            commands: Vec::new(),
        }
    }

    fn push(&mut self, kind: u16, flags: u16, body: Vec<u8>, what: String) -> &mut Self {
        self.commands.push((kind, flags, body, what));
        self
    }

    /// Makes the table unless it is there.
    pub(super) fn add_table(&mut self) -> &mut Self {
        let body = text(1, &self.table);
        let what = format!("add nftables table {:?}", self.table);
        self.push(NEW_TABLE, NLM_F_CREATE, body, what)
    }

    /// Removes the table, which must exist, and all that is in it.
    pub(super) fn delete_table(&mut self) -> &mut Self {
        let body = text(1, &self.table);
        let what = format!("delete nftables table {:?}", self.table);
        self.push(DEL_TABLE, 0, body, what)
    }

    /// Adds a chain that other chains jump to.
    pub(super) fn add_chain(&mut self, name: &str) -> &mut Self {
        let body = [text(1, &self.table), text(3, name)].concat();
        self.push(
            NEW_CHAIN,
            NLM_F_CREATE,
            body,
            format!("add nftables chain {name:?}"),
        )
    }

    /// Adds a chain at a hook. `kind` is `filter` or `nat`; lower priorities come first.
    pub(super) fn add_base_chain(
        &mut self,
        name: &str,
        kind: &str,
        hook: Hook,
        priority: i32,
    ) -> &mut Self {
        let hook = [
            number(1, hook as u32),
            attribute_bytes(2, &priority.to_be_bytes()),
        ]
        .concat();
        let body = [
            text(1, &self.table),
            text(3, name),
            nested(4, &hook),
            text(7, kind),
        ]
        .concat();
        self.push(
            NEW_CHAIN,
            NLM_F_CREATE,
            body,
            format!("add nftables chain {name:?}"),
        )
    }

    /// Adds a rule at the end of a chain.
    pub(super) fn add_rule(&mut self, chain: &str, expressions: &[Expression<'_>]) -> &mut Self {
        let mut list = Vec::new();
        for expression in expressions {
            expression.encode(&mut list);
        }
        let body = [text(1, &self.table), text(2, chain), nested(4, &list)].concat();
        self.push(
            NEW_RULE,
            NLM_F_CREATE | 0x800, // NLM_F_APPEND
            body,
            format!("add a rule to nftables chain {chain:?}"),
        )
    }

    /// Adds a map. Types are given as nft numbers them, for its listings; lengths in bytes.
    pub(super) fn add_map(&mut self, name: &str, key: (u32, u32), data: (u32, u32)) -> &mut Self {
        const NFT_SET_MAP: u32 = 8;
        let body = [
            text(1, &self.table),
            text(2, name),
            number(3, NFT_SET_MAP),
            number(4, key.0),
            number(5, key.1),
            number(6, data.0),
            number(7, data.1),
            // An id within this transaction; only anonymous sets are referred to by it.
            number(10, 1),
        ]
        .concat();
        self.push(
            NEW_SET,
            NLM_F_CREATE,
            body,
            format!("add nftables map {name:?}"),
        )
    }

    /// Adds elements; fails when a key is there already.
    pub(super) fn add_elements(&mut self, map: &str, elements: &[Element]) -> &mut Self {
        for some in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let body = self.elements_body(map, some, true);
            let what = format!("add elements to nftables map {map:?}");
            self.push(NEW_ELEMENTS, NLM_F_CREATE | NLM_F_EXCL, body, what);
        }
        self
    }

    /// Removes elements, which must be there.
    pub(super) fn delete_elements(&mut self, map: &str, elements: &[Element]) -> &mut Self {
        for some in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let body = self.elements_body(map, some, false);
            let what = format!("remove elements from nftables map {map:?}");
            self.push(DEL_ELEMENTS, 0, body, what);
        }
        self
    }

    fn elements_body(&self, map: &str, elements: &[Element], whole: bool) -> Vec<u8> {
        let list: Vec<u8> = elements
            .iter()
            .flat_map(|element| {
                let mut one = nested(1, &attribute_bytes(1, &element.key));
                if whole {
                    one.extend(nested(2, &attribute_bytes(1, &element.data)));
                    one.extend(attribute_bytes(6, &comment(&element.comment)));
                }
                nested(1, &one)
            })
            .collect();
        [text(1, &self.table), text(2, map), nested(3, &list)].concat()
    }

    /// Does it: all or nothing.
    pub(super) fn commit(self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        if self.commands.is_empty() {
            return Ok(());
        }
        let mut bytes = message(BATCH_BEGIN, 0, netlink.next_sequence(), 0, SUBSYSTEM, &[]);
        let mut names = Vec::new();
        for (kind, flags, body, what) in self.commands {
            let sequence = netlink.next_sequence();
            let kind = SUBSYSTEM << 8 | kind;
            let flags = flags | NLM_F_ACK;
            bytes.extend(message(kind, flags, sequence, FAMILY, 0, &body));
            names.push((sequence, what));
        }
        bytes.extend(message(
            BATCH_END,
            0,
            netlink.next_sequence(),
            0,
            SUBSYSTEM,
            &[],
        ));
        netlink.exchange(&bytes, &names)
    }
}

impl Expression<'_> {
    fn encode(self, list: &mut Vec<u8>) {
        const FIB_RESULT_ADDRTYPE: u32 = 3;
        const FIB_DESTINATION: u32 = 2;
        const RTN_LOCAL: u32 = 2;
        const CT_STATUS: u32 = 2;
        const IPS_DST_NAT: u32 = 0x20;
        let (name, data) = match self {
            Self::Payload(field, to) => ("payload", payload(field, to)),
            Self::Meta(key, to) => ("meta", [number(1, to.0), number(2, key as u32)].concat()),
            Self::Mask(register, mask) => (
                "bitwise",
                [
                    number(1, register.0),
                    number(2, register.0),
                    number(3, 4),
                    nested(4, &attribute_bytes(1, &mask)),
                    nested(5, &attribute_bytes(1, &[0; 4])),
                ]
                .concat(),
            ),
            Self::Equal(register, value) => ("cmp", compare(0, register, value)),
            Self::NotEqual(register, value) => ("cmp", compare(1, register, value)),
            Self::LocalDestination(at) => {
                let result = [number(2, FIB_RESULT_ADDRTYPE), number(3, FIB_DESTINATION)];
                let load = [number(1, at.0), result.concat()].concat();
                list.extend(nested(1, &named("fib", &load)));
                return Expression::Equal(at, &RTN_LOCAL.to_ne_bytes()).encode(list);
            }
            Self::Rewritten(at) => {
                let load = [number(1, at.0), number(2, CT_STATUS)].concat();
                list.extend(nested(1, &named("ct", &load)));
                Self::Mask(at, IPS_DST_NAT.to_ne_bytes()).encode(list);
                return Expression::NotEqual(at, &[0; 4]).encode(list);
            }
            Self::Lookup(map, key, to) => (
                "lookup",
                [text(1, map), number(2, key.0), number(3, to.0)].concat(),
            ),
            Self::Dnat(address, port) => (
                "nat",
                [
                    number(1, 1), // NFT_NAT_DNAT
                    number(2, u32::from(FAMILY)),
                    number(3, address.0),
                    number(5, port.0),
                ]
                .concat(),
            ),
            Self::Masquerade => ("masq", Vec::new()),
            Self::Verdict(verdict) => ("immediate", immediate(verdict)),
        };
        list.extend(nested(1, &named(name, &data)));
    }
}

fn payload(field: Field, to: Register) -> Vec<u8> {
    let (base, offset, length) = match field {
        Field::SourceAddress => (1, 12, 4),
        Field::DestinationAddress => (1, 16, 4),
        Field::DestinationPort => (2, 2, 2),
    };
    [
        number(1, to.0),
        number(2, base),
        number(3, offset),
        number(4, length),
    ]
    .concat()
}

fn compare(operator: u32, register: Register, value: &[u8]) -> Vec<u8> {
    [
        number(1, register.0),
        number(2, operator),
        nested(3, &attribute_bytes(1, value)),
    ]
    .concat()
}

fn immediate(verdict: Verdict<'_>) -> Vec<u8> {
    const VERDICT_REGISTER: u32 = 0;
    let verdict = match verdict {
        Verdict::Drop => number(1, 0),
        Verdict::Jump(chain) => [number(1, (-3_i32).cast_unsigned()), text(2, chain)].concat(),
    };
    [number(1, VERDICT_REGISTER), nested(2, &nested(2, &verdict))].concat()
}

fn named(name: &str, data: &[u8]) -> Vec<u8> {
    [text(1, name), nested(2, data)].concat()
}

/// An interface name as the kernel compares it: padded to `IFNAMSIZ`.
pub(super) fn interface_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bytes
}

/// A comment as nft stores it in user data: type 0, length with the final zero, text.
fn comment(text: &str) -> Vec<u8> {
    let text: Vec<u8> = text.bytes().take(200).collect();
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[0, length][..], &text, &[0]].concat()
}

fn comment_of(element: &[u8]) -> String {
    let user_data = attributes(element).find(|(kind, _)| *kind == 6);
    match user_data.map(|(_, value)| value) {
        Some([0, _, text @ ..]) => String::from_utf8_lossy(text)
            .trim_end_matches('\0')
            .to_owned(),
        _ => String::new(),
    }
}

fn data_of(element: &[u8], wanted: u16) -> Vec<u8> {
    attributes(element)
        .filter(|(kind, _)| *kind == wanted)
        .flat_map(|(_, data)| attributes(data))
        .filter(|(kind, _)| *kind == 1)
        .map(|(_, value)| value.to_vec())
        .next()
        .unwrap_or_default()
}

/// The attributes of an answer of nfnetlink.
pub(super) fn body_of<'a>(answer: &Answer<'a>) -> &'a [u8] {
    // An nlmsghdr (16 bytes) and an nfgenmsg (4).
    answer.bytes.get(20..).unwrap_or_default()
}

/// A message with its nfgenmsg header.
pub(super) fn message(
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    resource: u16,
    body: &[u8],
) -> Vec<u8> {
    let length = u32::try_from(20 + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(20 + body.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((flags | NLM_F_REQUEST).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// A netlink attribute, padded.
pub(super) fn attribute_bytes(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend(u16::try_from(length).unwrap_or(u16::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute_bytes(kind | NESTED, value)
}

fn text(kind: u16, value: &str) -> Vec<u8> {
    attribute_bytes(kind, &[value.as_bytes(), &[0]].concat())
}

fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute_bytes(kind, &value.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_and_read_back() {
        let bytes = [text(1, "abc"), number(2, 7), nested(3, &text(1, "x"))].concat();
        assert_eq!(bytes.len() % 4, 0);
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read[0], (1, &b"abc\0"[..]));
        assert_eq!(read[1], (2, &[0, 0, 0, 7][..]));
        assert_eq!(attributes(read[2].1).next(), Some((1, &b"x\0"[..])));
    }

    #[test]
    fn a_comment_is_read_back_from_an_element() {
        let element = attribute_bytes(6, &comment("pod abc"));
        assert_eq!(comment_of(&element), "pod abc");
        assert_eq!(comment_of(&[]), "");
    }

    #[test]
    fn interface_names_are_cut_and_terminated() {
        assert_eq!(interface_name("berth0")[..7], *b"berth0\0");
        assert_eq!(interface_name("a-name-that-is-too-long")[15], 0);
    }
}
