//! The table as it is, against what it is to be.

use std::collections::BTreeSet;

use super::{
    ADDRESS_PORTS, Batch, Element, FROM, Lease, PORTS, Rules, Subnet, chain_of, chains, claimed,
    published,
};
use crate::network::Error;
use crate::network::netlink::NetlinkError;
use crate::network::nftables::{
    chain_exists, dropping_forward, elements, generation, rules, table_is_dormant,
};

/// What tells one element from another: its map, its key and whose it is.
pub(super) type Claim = (&'static str, Vec<u8>, String);

/// A host port that no lease has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::network::builtin) struct Stranger {
    map: &'static str,
    element: Element,
}

impl Stranger {
    /// Whose it says it is.
    pub(in crate::network::builtin) fn pod(&self) -> &str {
        &self.element.comment
    }
}

/// How the table differs from what the leases say.
#[derive(Debug)]
pub(in crate::network::builtin) struct Difference {
    /// What is missing, in words: the first of it.
    pub(in crate::network::builtin) missing: Option<String>,
    /// What nobody has a lease for.
    pub(in crate::network::builtin) strangers: Vec<Stranger>,
}

impl Rules {
    /// Whether the table is there and made for this subnet: a `nft flush ruleset` by somebody else takes it away.
    pub(in crate::network::builtin) fn exist(&self, subnet: Subnet) -> Result<bool, NetlinkError> {
        self.sockets
            .with(|netlink| chain_exists(netlink, &self.table, &chain_of(subnet)))
    }

    /// The subnets that the table was made for; `None` when there are no rules. One that an earlier version made
    /// names none.
    pub(in crate::network::builtin) fn subnets(&self) -> Result<Option<Vec<Subnet>>, NetlinkError> {
        let there = self.sockets.with(|netlink| rules(netlink, &self.table))?;
        let named = there.keys().filter_map(|chain| chain.strip_prefix(FROM));
        let subnets = named.filter_map(|text| text.parse().ok()).collect();
        Ok(there.contains_key("postrouting").then_some(subnets))
    }

    /// Whether nobody's ports are in the table.
    pub(in crate::network::builtin) fn is_empty(&self) -> Result<bool, NetlinkError> {
        Ok(self.held()?.is_empty())
    }

    /// What has changed when anybody changed any rule.
    pub(in crate::network::builtin) fn generation(&self) -> Result<u32, NetlinkError> {
        self.sockets.with(generation)
    }

    /// Other tables that may drop what pods send to the world.
    pub(in crate::network::builtin) fn obstacles(&self) -> Result<Vec<String>, NetlinkError> {
        self.sockets
            .with(|netlink| dropping_forward(netlink, &self.table))
    }

    fn held(&self) -> Result<Vec<Stranger>, NetlinkError> {
        self.sockets.with(|netlink| {
            let mut held = Vec::new();
            for map in [PORTS, ADDRESS_PORTS] {
                let found = elements(netlink, &self.table, map)?;
                held.extend(found.into_iter().map(|element| Stranger { map, element }));
            }
            Ok(held)
        })
    }

    /// Host ports that none of these leases has.
    pub(in crate::network::builtin) fn strangers(
        &self,
        leases: &[Lease],
    ) -> Result<Vec<Stranger>, NetlinkError> {
        Ok(self.sorted(&claimed(leases))?.1)
    }

    /// What is in the maps: what is claimed, and what is not.
    fn sorted(
        &self,
        claims: &BTreeSet<Claim>,
    ) -> Result<(Vec<Stranger>, Vec<Stranger>), NetlinkError> {
        Ok(self.held()?.into_iter().partition(|one| {
            let (key, pod) = (one.element.key.clone(), one.element.comment.clone());
            claims.contains(&(one.map, key, pod))
        }))
    }

    /// Compares the table with the rules for these subnets and the ports of these leases.
    pub(in crate::network::builtin) fn compare(
        &self,
        subnets: &[Subnet],
        leases: &[Lease],
    ) -> Result<Difference, NetlinkError> {
        let claims = claimed(leases);
        let (ours, strangers) = self.sorted(&claims)?;
        let held = ours.into_iter().map(|one| (one.map, one.element.key));
        let missing = match self.missing_rules(subnets)? {
            Some(missing) => Some(missing),
            None => self.missing_ports(leases, &claims, &held.collect())?,
        };
        Ok(Difference { missing, strangers })
    }

    fn missing_rules(&self, subnets: &[Subnet]) -> Result<Option<String>, NetlinkError> {
        let table = &self.table;
        if self
            .sockets
            .with(|netlink| table_is_dormant(netlink, table))?
        {
            return Ok(Some(format!(
                "the work of nftables table {table:?}, which is dormant"
            )));
        }
        let there = self.sockets.with(|netlink| rules(netlink, table))?;
        let gone = chains(subnets).into_iter().find_map(|(chain, wanted)| {
            let count = there.get(&chain).copied().unwrap_or_default();
            let gone = wanted.checked_sub(count).filter(|gone| *gone > 0)?;
            Some(format!(
                "{gone} of {wanted} rules of chain {chain:?} in nftables table {table:?}"
            ))
        });
        Ok(gone)
    }

    /// By map and key: which of two leases that claim a port has it, the kernel has decided.
    fn missing_ports(
        &self,
        leases: &[Lease],
        claims: &BTreeSet<Claim>,
        held: &BTreeSet<(&'static str, Vec<u8>)>,
    ) -> Result<Option<String>, NetlinkError> {
        for (map, mut wanted) in published(leases) {
            wanted.retain(|element| !held.contains(&(map, element.key.clone())));
            let there = self
                .sockets
                .with(|netlink| self.there(netlink, map, &wanted))?;
            let there: BTreeSet<_> = there
                .into_iter()
                .filter(|one| claims.contains(&(map, one.key.clone(), one.comment.clone())))
                .map(|one| one.key)
                .collect();
            if let Some(gone) = wanted.iter().find(|element| !there.contains(&element.key)) {
                let (pod, table) = (&gone.comment, &self.table);
                return Ok(Some(format!(
                    "a host port of pod {pod} in map {map:?} of nftables table {table:?}"
                )));
            }
        }
        Ok(None)
    }

    /// Removes host ports that nobody has a lease for. One that is gone meanwhile is fine.
    pub(in crate::network::builtin) fn evict(
        &self,
        strangers: &[Stranger],
    ) -> Result<(), NetlinkError> {
        self.sockets.with(|netlink| {
            for map in [PORTS, ADDRESS_PORTS] {
                let of_map: Vec<_> = strangers
                    .iter()
                    .filter(|one| one.map == map)
                    .map(|one| one.element.clone())
                    .collect();
                self.take_out(netlink, map, &of_map, |there| of_map.contains(there))?;
            }
            Ok(())
        })
    }

    /// Removes the table, if there is one.
    pub(in crate::network::builtin) fn remove(&self) -> Result<(), Error> {
        let mut batch = Batch::new(&self.table);
        batch.add_table().delete_table();
        Ok(self.sockets.with(|netlink| batch.commit(netlink))?)
    }
}
