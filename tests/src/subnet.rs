//! Address ranges that nobody on this machine uses: other runtimes, VPNs and other runs of these tests have theirs.

use std::fmt;
use std::fs::{File, TryLockError};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};

use crate::paths;

/// Where a range that is in use by a test is locked, one file each; the locks go with their processes.
const LOCKS: &str = "/tmp/berth-test-subnets";

/// A range of 65,534 addresses (254 of 192.168.0.0/16) that is this test's until it is dropped.
#[derive(Debug)]
pub struct Subnet {
    network: Network,
    _lock: File,
}

impl Subnet {
    /// Takes a free one.
    ///
    /// # Errors
    /// When `ip` is missing, or every private range is in use.
    pub fn claim() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let routes = routes()?;
        let all = candidates();
        // Runs that begin at once begin in different places.
        let turn = std::process::id()
            .wrapping_mul(31)
            .wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let first = turn as usize % all.len();
        let ranges = all[first..].iter().chain(&all[..first]);
        // What lies in a wider route, as a VPN's, would be taken from it: only where nothing else is left.
        let (apart, inside): (Vec<_>, Vec<_>) = ranges
            .filter(|range| !routes.iter().any(|route| range.holds(route)))
            .partition(|range| !routes.iter().any(|route| route.holds(range)));
        std::fs::create_dir_all(LOCKS).with_context(|| format!("making {LOCKS}"))?;
        for &network in apart.into_iter().chain(inside) {
            let file = format!("{LOCKS}/{}", network.address);
            let lock = File::create(&file).with_context(|| format!("opening {file}"))?;
            match lock.try_lock() {
                Ok(()) => {
                    return Ok(Self {
                        network,
                        _lock: lock,
                    });
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(e)) => return Err(e).context(file),
            }
        }
        bail!(
            "every private range of addresses is in use on this machine: see `ip -4 route show table all`"
        )
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network.address, self.network.prefix)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    address: Ipv4Addr,
    prefix: u8,
}

impl Network {
    /// Whether all of `other` is in it.
    fn holds(&self, other: &Self) -> bool {
        let mask = u32::MAX
            .checked_shl(32 - u32::from(self.prefix))
            .unwrap_or(0);
        self.prefix <= other.prefix
            && u32::from(self.address) & mask == u32::from(other.address) & mask
    }
}

fn candidates() -> Vec<Network> {
    let net = |a, b, c, prefix| Network {
        address: Ipv4Addr::new(a, b, c, 0),
        prefix,
    };
    let ten = (50..=249).map(|b| net(10, b, 0, 16));
    let more = (16..=31).map(|b| net(172, b, 0, 16));
    let small = (100..=250).map(|c| net(192, 168, c, 24));
    ten.chain(more).chain(small).collect()
}

fn routes() -> Result<Vec<Network>> {
    let ip = paths::system_tool("ip")?;
    let output = std::process::Command::new(ip)
        .args(["-4", "-o", "route", "show", "table", "all"])
        .output()
        .context("running ip")?;
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// Every route but the default one, whatever its table and kind.
fn parse(text: &str) -> Vec<Network> {
    let route = |line: &str| line.split_whitespace().find_map(network);
    text.lines().filter_map(route).collect()
}

fn network(word: &str) -> Option<Network> {
    let (address, prefix) = word.split_once('/').unwrap_or((word, "32"));
    Some(Network {
        address: address.parse().ok()?,
        prefix: prefix.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_whatever_their_kind() {
        let found = parse(
            "default via 10.0.2.2 dev eth0 \n10.88.0.0/16 dev cni-podman0 proto kernel scope link src 10.88.0.1\n\
             unreachable 172.16.0.0/12 metric 5\nlocal 10.88.0.1 dev cni-podman0 table local proto kernel\n",
        );
        let networks = [
            "10.0.2.2/32",
            "10.88.0.0/16",
            "172.16.0.0/12",
            "10.88.0.1/32",
        ];
        assert_eq!(found, networks.map(|n| network(n).unwrap()));
    }

    #[test]
    fn a_network_holds_itself_and_what_is_narrower() {
        let holds = |a: &str, b: &str| network(a).unwrap().holds(&network(b).unwrap());
        assert!(holds("10.88.0.0/16", "10.88.0.0/16"));
        assert!(holds("10.88.0.0/16", "10.88.9.1"));
        assert!(holds("10.0.0.0/8", "10.88.0.0/16"));
        assert!(!holds("10.88.0.0/16", "10.0.0.0/8"));
        assert!(!holds("10.88.0.0/16", "10.89.0.0/16"));
    }

    #[test]
    fn nobody_gets_what_somebody_has() {
        let (one, two) = (Subnet::claim().unwrap(), Subnet::claim().unwrap());
        assert_ne!(one.to_string(), two.to_string());
    }
}
