//! The address range of the built-in network.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 network such as `10.85.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    network: u32,
    prefix: u8,
}

/// A text that is not a subnet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a subnet for pods: {why}")]
pub struct NotASubnet {
    text: String,
    why: String,
}

impl Subnet {
    /// Number of leading bits.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// The network's own address.
    pub fn network(self) -> Ipv4Addr {
        self.network.into()
    }

    /// The first host, which the bridge gets.
    pub fn gateway(self) -> Ipv4Addr {
        (self.network + 1).into()
    }

    /// The last address, which no host has.
    pub fn broadcast(self) -> Ipv4Addr {
        (self.network | !self.mask()).into()
    }

    /// Whether an address is in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask() == self.network
    }

    /// Whether it shares an address with the network `other/prefix`.
    pub fn overlaps(self, other: Ipv4Addr, prefix: u8) -> bool {
        let mask = self.mask() & mask(prefix);
        u32::from(other) & mask == self.network & mask
    }

    /// The bits of the network.
    pub fn mask(self) -> u32 {
        mask(self.prefix)
    }

    /// The subnet of an address that is written with its prefix, such as `10.85.0.2/16`.
    pub(super) fn around(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let (address, prefix): (Ipv4Addr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        let network = Ipv4Addr::from(u32::from(address) & mask(prefix));
        format!("{network}/{prefix}").parse().ok()
    }

    /// The address after `last` that a pod may have, going round at the end.
    pub(super) fn after(self, last: Ipv4Addr) -> Ipv4Addr {
        let (first, end) = (u32::from(self.gateway()) + 1, u32::from(self.broadcast()));
        let next = u32::from(last).wrapping_add(1);
        let inside = (first..end).contains(&next);
        if inside { next } else { first }.into()
    }

    /// How many pods it has room for.
    pub(super) fn pods(self) -> u32 {
        u32::from(self.broadcast()) - u32::from(self.gateway()) - 1
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0)
}

impl FromStr for Subnet {
    type Err = NotASubnet;

    fn from_str(text: &str) -> Result<Self, NotASubnet> {
        let wrong = |why: &str| NotASubnet {
            text: text.into(),
            why: why.into(),
        };
        let form = || wrong("the form is 10.85.0.0/16");
        let (address, prefix) = text.split_once('/').ok_or_else(form)?;
        let address: Ipv4Addr = address.parse().map_err(|_| form())?;
        let prefix: u8 = prefix.parse().map_err(|_| form())?;
        if !(8..=29).contains(&prefix) {
            return Err(wrong("the prefix must be from 8 to 29 bits long"));
        }
        let network = u32::from(address) & mask(prefix);
        if network != u32::from(address) {
            let network = Ipv4Addr::from(network);
            return Err(wrong(&format!("its first address is {network}/{prefix}")));
        }
        if address.is_loopback() || address.is_multicast() || address.is_unspecified() {
            return Err(wrong("pods cannot have such addresses"));
        }
        Ok(Self { network, prefix })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_knows_its_ends() {
        let subnet: Subnet = "10.85.0.0/16".parse().unwrap();
        assert_eq!(subnet.gateway(), Ipv4Addr::new(10, 85, 0, 1));
        assert_eq!(subnet.broadcast(), Ipv4Addr::new(10, 85, 255, 255));
        assert_eq!(subnet.pods(), 65533);
        assert!(subnet.contains(Ipv4Addr::new(10, 85, 3, 4)));
        assert!(!subnet.contains(Ipv4Addr::new(10, 86, 0, 0)));
        assert!(subnet.overlaps(Ipv4Addr::new(10, 0, 0, 0), 8));
        assert!(subnet.overlaps(Ipv4Addr::new(10, 85, 9, 0), 24));
        assert!(!subnet.overlaps(Ipv4Addr::new(10, 84, 0, 0), 16));
        assert_eq!(subnet.after(subnet.network()), Ipv4Addr::new(10, 85, 0, 2));
        let last = Ipv4Addr::new(10, 85, 255, 254);
        assert_eq!(subnet.after(last), Ipv4Addr::new(10, 85, 0, 2));
        assert_eq!(subnet.to_string(), "10.85.0.0/16");
        assert_eq!(Subnet::around("10.85.3.4/16"), Some(subnet));
        assert_eq!(Subnet::around("10.85.3.4"), None);
        assert_eq!(Subnet::around("10.85.3.4/30"), None);
    }

    #[test]
    fn what_is_no_subnet_says_why() {
        for (text, why) in [
            ("10.85.0.0", "the form is"),
            ("10.85.0.0/x", "the form is"),
            ("fd00::/64", "the form is"),
            ("10.85.0.0/30", "from 8 to 29"),
            ("10.85.0.0/33", "from 8 to 29"),
            ("10.85.1.0/16", "first address is 10.85.0.0/16"),
            ("127.0.0.0/8", "cannot have"),
            ("224.0.0.0/8", "cannot have"),
        ] {
            let error = text.parse::<Subnet>().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
