//! Addresses of the built-in network: one file for each lease, named by the address.
//!
//! A lease is taken by making its file, whole, under a name that must not exist, before anything is
//! done in the kernel, and given back by removing it after everything was undone. So whatever a
//! crash leaves behind has a lease that says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::Subnet;
use crate::id::PodId;
use crate::model::PortMapping;
use crate::network::Error;
use crate::network::record::{self, kept};

/// What a pod has of the built-in network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Whose it is.
    pub(super) pod: PodId,
    /// The pod's address.
    pub(super) address: Ipv4Addr,
    /// Ports with a host port.
    pub(super) ports: Vec<PortMapping>,
    /// The result as it was returned.
    pub(super) result: serde_json::Value,
}

/// The address that was given out last.
#[derive(Debug)]
pub(crate) struct LastAddress {
    address: Ipv4Addr,
}

impl Lease {
    /// The subnet that the pod was put into, which may be an earlier one than today's.
    pub(super) fn subnet(&self) -> Option<Subnet> {
        let text = self.result["ips"][0]["address"].as_str()?;
        Subnet::around(text)
    }
}

kept!(Lease: "lease" = Lease { pod, address, ports, result });
kept!(LastAddress: "last address" = LastAddress { address });

/// All leases.
#[derive(Debug)]
pub(super) struct Leases {
    dir: PathBuf,
    memory: Mutex<Memory>,
}

#[derive(Debug)]
struct Memory {
    leases: BTreeMap<PodId, Lease>,
    /// Addresses that have a file or are about to.
    taken: BTreeSet<Ipv4Addr>,
    last: Ipv4Addr,
}

/// Name of the file with the address given out last.
const LAST: &str = "last";

impl Leases {
    /// Reads all leases.
    pub(super) fn open(dir: PathBuf) -> Result<Self, Error> {
        fs::create_dir_all(&dir).map_err(Error::file("make directory", &dir))?;
        record::renew::<LastAddress>(&dir, LAST);
        let last: Option<LastAddress> = record::read(&dir, LAST).ok().flatten();
        let mut memory = Memory {
            leases: BTreeMap::new(),
            taken: BTreeSet::new(),
            last: last.map_or(Ipv4Addr::UNSPECIFIED, |last| last.address),
        };
        for name in record::names(&dir).map_err(Error::file("list", &dir))? {
            let Ok(address) = name.parse::<Ipv4Addr>() else {
                continue;
            };
            record::renew::<Lease>(&dir, &name);
            match record::read::<Lease>(&dir, &name) {
                Ok(Some(lease)) => {
                    memory.taken.insert(address);
                    memory.leases.insert(lease.pod.clone(), lease);
                }
                Ok(None) => {}
                Err(error) => {
                    let path = dir.join(&name);
                    if torn_by_power_loss(&path) {
                        tracing::warn!(?path, %error, "removed a torn lease of an earlier boot");
                        record::remove(&dir, &name).map_err(Error::file("remove", &path))?;
                    } else {
                        tracing::warn!(?path, %error, "a lease cannot be read: its address stays reserved");
                        memory.taken.insert(address);
                    }
                }
            }
        }
        Ok(Self {
            dir,
            memory: Mutex::new(memory),
        })
    }

    /// The lease of a pod.
    pub(super) fn get(&self, pod: &PodId) -> Option<Lease> {
        self.memory().leases.get(pod).cloned()
    }

    /// Whether there are any.
    pub(super) fn any(&self) -> bool {
        !self.memory().leases.is_empty()
    }

    /// All leases.
    pub(super) fn all(&self) -> Vec<Lease> {
        self.memory().leases.values().cloned().collect()
    }

    /// Takes the next free address; `lease` fills in the rest. An address that was given back comes
    /// round again only after all others.
    pub(super) fn take(
        &self,
        subnet: Subnet,
        lease: impl Fn(Ipv4Addr) -> Lease,
    ) -> Result<Lease, Error> {
        loop {
            let address = self
                .memory()
                .reserve(subnet)
                .ok_or_else(|| Error::Exhausted(subnet.to_string()))?;
            let lease = lease(address);
            match record::create(&self.dir, &address.to_string(), &lease) {
                Ok(()) => {
                    // Only the order suffers when this is lost.
                    let _ = record::write(&self.dir, LAST, &LastAddress { address });
                    let mut memory = self.memory();
                    memory.leases.insert(lease.pod.clone(), lease.clone());
                    return Ok(lease);
                }
                // Somebody else's file: the address stays marked as taken.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    self.memory().taken.remove(&address);
                    return Err(Error::file("write lease", self.path(address))(error));
                }
            }
        }
    }

    /// Gives an address back.
    pub(super) fn release(&self, lease: &Lease) -> Result<(), Error> {
        // Given back twice, the file might already be another pod's.
        if self
            .get(&lease.pod)
            .is_none_or(|held| held.address != lease.address)
        {
            return Ok(());
        }
        record::remove(&self.dir, &lease.address.to_string())
            .map_err(Error::file("remove lease", self.path(lease.address)))?;
        let mut memory = self.memory();
        memory.leases.remove(&lease.pod);
        memory.taken.remove(&lease.address);
        Ok(())
    }

    fn path(&self, address: Ipv4Addr) -> PathBuf {
        self.dir.join(address.to_string())
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Nothing panics while the lock is held, and the maps are whole at every step.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn reserve(&mut self, subnet: Subnet) -> Option<Ipv4Addr> {
        let mut address = subnet.after(self.last);
        for _ in 0..subnet.pods() {
            if self.taken.insert(address) {
                self.last = address;
                return Some(address);
            }
            address = subnet.after(address);
        }
        None
    }
}

/// Leases are put in place whole, so an unreadable one was torn by a power loss, if it is older than
/// this boot: then its pod is gone, and the address is free.
fn torn_by_power_loss(path: &Path) -> bool {
    let uptime = fs::read_to_string("/proc/uptime").ok().and_then(|text| {
        let seconds: f64 = text.split(' ').next()?.parse().ok()?;
        Duration::try_from_secs_f64(seconds).ok()
    });
    let changed = fs::metadata(path).and_then(|found| found.modified());
    match (uptime, changed) {
        (Some(uptime), Ok(changed)) => SystemTime::now()
            .checked_sub(uptime)
            .is_some_and(|boot| changed < boot),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::golden;

    fn subnet() -> Subnet {
        "10.1.2.0/29".parse().unwrap()
    }

    fn take(leases: &Leases) -> Result<Lease, Error> {
        let pod = PodId::generate().unwrap();
        leases.take(subnet(), |address| Lease {
            pod: pod.clone(),
            address,
            ports: Vec::new(),
            result: serde_json::Value::Null,
        })
    }

    #[test]
    fn addresses_go_round_and_network_gateway_and_broadcast_are_never_given() {
        let dir = tempfile::tempdir().unwrap();
        let leases = Leases::open(dir.path().into()).unwrap();
        let all: Vec<_> = (0..5).map(|_| take(&leases).unwrap()).collect();
        let last_bytes: Vec<_> = all.iter().map(|l| l.address.octets()[3]).collect();
        assert_eq!(last_bytes, [2, 3, 4, 5, 6]);
        assert!(matches!(take(&leases), Err(Error::Exhausted(_))));

        leases.release(&all[3]).unwrap();
        leases.release(&all[1]).unwrap();
        leases.release(&all[1]).unwrap();
        assert_eq!(take(&leases).unwrap().address.octets()[3], 3);
        assert_eq!(take(&leases).unwrap().address.octets()[3], 5);
    }

    #[test]
    fn leases_survive_a_restart_and_an_address_is_not_reused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let leases = Leases::open(dir.path().into()).unwrap();
        let (first, second) = (take(&leases).unwrap(), take(&leases).unwrap());
        leases.release(&second).unwrap();
        drop(leases);
        let leases = Leases::open(dir.path().into()).unwrap();
        assert_eq!(leases.get(&first.pod), Some(first));
        assert_eq!(leases.get(&second.pod), None);
        assert_eq!(take(&leases).unwrap().address.octets()[3], 4);
    }

    #[test]
    fn an_unreadable_lease_keeps_its_address_in_this_boot_only() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("10.1.2.2"), "").unwrap();
        fs::write(dir.path().join("10.1.2.3"), "{").unwrap();
        let old = fs::File::options()
            .write(true)
            .open(dir.path().join("10.1.2.3"))
            .unwrap();
        old.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        let leases = Leases::open(dir.path().into()).unwrap();
        assert_eq!(take(&leases).unwrap().address.octets()[3], 3);
        assert_eq!(take(&leases).unwrap().address.octets()[3], 4);
    }

    #[test]
    fn threads_never_share_an_address() {
        let dir = tempfile::tempdir().unwrap();
        let leases = Leases::open(dir.path().into()).unwrap();
        let wide: Subnet = "10.2.0.0/24".parse().unwrap();
        let got: Vec<Ipv4Addr> = std::thread::scope(|scope| {
            let one = || {
                let pod = PodId::generate().unwrap();
                let lease = |address| Lease {
                    pod: pod.clone(),
                    address,
                    ports: Vec::new(),
                    result: serde_json::Value::Null,
                };
                leases.take(wide, lease).unwrap().address
            };
            let threads: Vec<_> = (0..32).map(|_| scope.spawn(one)).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(got.iter().collect::<BTreeSet<_>>().len(), 32);
    }

    #[test]
    fn leases_are_read_as_each_version_wrote_them() {
        for found in golden::check::<Lease>("leases") {
            let ports = found
                .values()
                .find(|lease| !lease.ports.is_empty())
                .map(|lease| lease.ports.iter().map(|port| port.host_port).collect());
            assert_eq!(ports, Some(vec![28_080, 28_053]));
            for (name, lease) in &found {
                assert_eq!(lease.address.to_string(), *name);
            }
        }
        for found in golden::check::<LastAddress>("last") {
            assert!(!found["last"].address.is_unspecified());
        }
    }

    #[test]
    fn leases_of_the_version_before_are_written_again() {
        let dir = tempfile::tempdir().unwrap();
        for kind in ["leases", "last"] {
            for (name, file) in golden::files(1, kind) {
                fs::write(dir.path().join(name), file).unwrap();
            }
        }
        let first = Leases::open(dir.path().into()).unwrap();
        for name in record::names(dir.path()).unwrap() {
            let file = fs::read_to_string(dir.path().join(&name)).unwrap();
            assert!(file.starts_with("{\"version\":2,"), "{name}: {file}");
        }
        let again = Leases::open(dir.path().into()).unwrap();
        assert_eq!(again.all(), first.all());
        assert!(!again.all().is_empty());
    }
}
