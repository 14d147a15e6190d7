//! Pod networks: CNI plugins by the specification, or the built-in network.
//!
//! A pod is connected by [`Network::setup`] and disconnected by [`Network::teardown`], each of which
//! may be repeated. Whatever connected a pod is written down under the cache directory before it
//! is done, and decides how the pod is disconnected: a daemon that was killed, or whose
//! configuration was changed, still finds everything ([`Network::known`]).

mod bandwidth;
mod builtin;
mod cni;
mod error;
mod exec;
mod keeper;
mod netlink;
mod nftables;
mod record;
mod sysctl;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use self::builtin::{Builtin, POD_INTERFACE};
use self::cni::Cni;
use self::keeper::Keeper;
use crate::blocking;
use crate::id::PodId;
use crate::model::{DnsConfig, PortMapping};
use crate::sys::netns;

pub use self::bandwidth::Bandwidth;
pub use self::builtin::{NotASubnet, Subnet};
pub use self::error::Error;
pub use self::exec::{Failure, PluginError, Verb};
pub use self::netlink::NetlinkError;
pub use self::sysctl::set_sysctls;

/// How long one run of a plugin may take for ADD, DEL, CHECK and GC.
pub const DEFAULT_PLUGIN_TIMEOUT: Duration = Duration::from_secs(120);

/// Where a [`Network`] finds and keeps things.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Directory with CNI network configurations; it need not exist yet.
    pub cni_conf_dir: PathBuf,
    /// Directories with CNI plugins, searched in this order.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Where attachments and leases are kept: `<root>/cni`.
    pub cache_dir: PathBuf,
    /// Subnet of the built-in network; `None` leaves it off. When it is on, CNI configuration is
    /// not looked at.
    pub builtin: Option<Subnet>,
    /// Name of this Berth: bridge and nftables table are named by it.
    pub instance: String,
    /// Directory for what matters until the next boot.
    pub state_dir: PathBuf,
    /// Where network namespaces are pinned.
    pub netns_dir: PathBuf,
    /// How long one run of a plugin may take; see [`DEFAULT_PLUGIN_TIMEOUT`].
    pub plugin_timeout: Duration,
}

/// A pod, as far as its network is concerned.
#[derive(Clone, Debug)]
pub struct PodNetwork {
    /// Its id, which is the container id of CNI.
    pub id: PodId,
    /// Pod name.
    pub name: String,
    /// Pod namespace (Kubernetes').
    pub namespace: String,
    /// Pod UID.
    pub uid: String,
    /// Where its network namespace is pinned.
    pub netns: PathBuf,
    /// Ports, also those without a host port.
    pub port_mappings: Vec<PortMapping>,
    /// Resolver settings.
    pub dns: Option<DnsConfig>,
    /// See [`Bandwidth::from_annotations`].
    pub bandwidth: Option<Bandwidth>,
    /// The pod's cgroup; empty: not told to plugins.
    pub cgroup_path: String,
    /// The pod's annotations, for plugins that ask for them.
    pub annotations: BTreeMap<String, String>,
}

/// What a pod was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkResult {
    /// Addresses of `eth0`, the primary one first: the first IPv4 address, else the first. Never
    /// empty.
    pub ips: Vec<IpAddr>,
    /// The CNI result (of the built-in network: in the same form).
    pub raw: serde_json::Value,
}

/// The runtime's `NetworkReady` condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkStatus {
    /// Pods can be connected.
    pub ready: bool,
    /// One word why not; empty when ready.
    pub reason: String,
    /// Words why not; empty when ready.
    pub message: String,
}

/// The network that pods are connected to.
#[derive(Clone, Debug)]
pub struct Network {
    builtin: Arc<Builtin>,
    keeper: Arc<Keeper>,
    cni: Arc<Cni>,
}

impl Network {
    /// Reads what was kept and starts watching the CNI configuration. Nothing is done in the kernel
    /// before the first pod comes. Must be called within a tokio runtime; blocks for a few files.
    ///
    /// # Errors
    /// When the directories cannot be made or read.
    pub fn open(config: NetworkConfig) -> Result<Self, Error> {
        let good = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
        let length = config.instance.len();
        if !(1..=64).contains(&length) || !config.instance.chars().all(good) {
            return Err(Error::Invalid(format!(
                "instance name {:?} must be 1 to 64 letters, digits, '-', '_' or '.'",
                config.instance
            )));
        }
        for dir in [&config.cache_dir, &config.state_dir, &config.netns_dir] {
            std::fs::create_dir_all(dir).map_err(Error::file("make directory", dir))?;
        }
        let builtin = Builtin::open(
            config.builtin,
            &config.instance,
            &config.cache_dir.join("builtin"),
            &config.state_dir,
        )?;
        let builtin = Arc::new(builtin);
        Ok(Self {
            keeper: Arc::new(Keeper::start(&builtin)?),
            builtin,
            cni: Arc::new(Cni::open(&config)?),
        })
    }

    /// Whether pods can be connected. Answers from memory.
    pub fn status(&self) -> NetworkStatus {
        if !self.builtin.is_on() {
            return self.cni.status();
        }
        let broken = self.keeper.broken();
        NetworkStatus {
            ready: broken.is_none(),
            reason: broken
                .as_ref()
                .map_or_else(String::new, |_| "BuiltinNetworkBroken".into()),
            message: broken.unwrap_or_default(),
        }
    }

    /// Puts back what the pods of an earlier daemon miss of the built-in network. What cannot be put back is told
    /// by [`Network::status`], and tried again.
    pub async fn restore(&self) {
        self.keeper.look().await;
    }

    /// The network as verbose Status shows it, under the names that containerd uses there.
    pub fn describe(&self) -> serde_json::Value {
        match self.builtin.subnet() {
            Some(subnet) => serde_json::json!({ "BuiltIn": { "Subnet": subnet.to_string() } }),
            None => self.cni.describe(),
        }
    }

    /// Connects a pod and brings its loopback up. A failed attempt is undone; what cannot be undone
    /// stays known, and [`Network::teardown`] goes on with it.
    ///
    /// # Errors
    /// [`Error::NotReady`] without a network; else what went wrong. A result without an address for
    /// `eth0` is an error.
    pub async fn setup(&self, pod: &PodNetwork) -> Result<NetworkResult, Error> {
        let netns = pod.netns.clone();
        if self.builtin.is_on() {
            if pod.bandwidth.is_some() {
                tracing::warn!(pod.id = %pod.id, "the built-in network does not limit bandwidth: the annotations have no effect");
            }
            let (builtin, pod) = (Arc::clone(&self.builtin), pod.clone());
            return blocking::run("connect a pod to the built-in network", move || {
                loopback(&netns)?;
                crash_point!("run_pod.loopback.after");
                builtin.setup(&pod)
            })
            .await;
        }
        blocking::run("bring a pod's loopback up", move || loopback(&netns)).await?;
        self.cni.setup(pod).await
    }

    /// Disconnects a pod, by whatever connected it. One that was never connected, or is
    /// disconnected already, is fine; so is one whose namespace is gone.
    ///
    /// # Errors
    /// When something could not be released; a repeated call goes on.
    pub async fn teardown(&self, pod: &PodNetwork) -> Result<(), Error> {
        self.forget(&pod.id).await
    }

    /// As [`Network::teardown`], for a pod of which nothing but the id is left.
    ///
    /// # Errors
    /// When something could not be released; a repeated call goes on.
    pub async fn forget(&self, id: &PodId) -> Result<(), Error> {
        let (builtin, pod) = (Arc::clone(&self.builtin), id.clone());
        let mut errors = Vec::new();
        let what = "disconnect a pod from the built-in network";
        let gone = blocking::run(what, move || builtin.teardown(&pod)).await;
        errors.extend(gone.err());
        errors.extend(self.cni.teardown(id).await.err());
        Error::collect(errors)
    }

    /// Every pod that is, or may be, connected to something. Blocks while a directory is read.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn known(&self) -> Result<Vec<PodId>, Error> {
        let mut all: BTreeSet<_> = self.builtin.pods().into_iter().collect();
        all.extend(self.cni.pods()?);
        Ok(all.into_iter().collect())
    }

    /// What a pod was given by [`Network::setup`], perhaps of an earlier daemon.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub async fn result(&self, id: &PodId) -> Result<Option<NetworkResult>, Error> {
        match self.builtin.result(id) {
            Some(found) => Ok(Some(found)),
            None => self.cni.result(id).await,
        }
    }

    /// Asks the plugins whether a pod is still connected as it was (CHECK). For the built-in
    /// network: whether it has an address.
    ///
    /// # Errors
    /// When it is not, with the plugin's words.
    pub async fn check(&self, id: &PodId) -> Result<(), Error> {
        if self.builtin.holds(id) {
            return Ok(());
        }
        self.cni.check(id).await
    }

    /// Tells the plugins which pods there are, so that they release what belongs to others (GC,
    /// CNI 1.1). Only for a network that no other runtime uses.
    ///
    /// # Errors
    /// What the plugins say.
    pub async fn gc(&self, pods: &[PodId]) -> Result<(), Error> {
        self.cni.gc(pods).await
    }

    /// The CNI plugins of the configured network with the versions they speak.
    ///
    /// # Errors
    /// When there is no network, or a plugin cannot be asked.
    pub async fn plugin_versions(&self) -> Result<Vec<(String, Vec<String>)>, Error> {
        self.cni.versions().await
    }

    /// Keeps the address ranges of this node's pods, as UpdateRuntimeConfig gives them: one CIDR,
    /// or one for each family with a comma between. They are kept over restarts and given to
    /// plugins that declare the `ipRanges` capability; pods that are connected keep their
    /// addresses, and the built-in network keeps its subnet. An empty text is nothing new.
    ///
    /// # Errors
    /// When it is not a list of CIDRs, or cannot be kept.
    pub async fn pod_cidr(&self, cidr: &str) -> Result<(), Error> {
        if cidr.is_empty() {
            return Ok(());
        }
        let cidrs: Vec<String> = cidr.split(',').map(|one| one.trim().to_owned()).collect();
        if let Some(bad) = cidrs.iter().find(|one| !is_cidr(one)) {
            return Err(Error::Invalid(format!(
                "{bad:?} in pod CIDR {cidr:?} is not a CIDR"
            )));
        }
        let cni = Arc::clone(&self.cni);
        blocking::run("keep the pods' address ranges", move || {
            cni.set_pod_cidrs(cidrs)
        })
        .await
    }

    /// Removes bridge and nftables table of the built-in network if no pod is left; says whether it
    /// did.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn shutdown(&self) -> Result<bool, Error> {
        self.keeper.stop();
        let builtin = Arc::clone(&self.builtin);
        blocking::run("remove the built-in network", move || builtin.shutdown()).await
    }
}

fn loopback(path: &Path) -> Result<(), Error> {
    netns::run_in(path, netns::loopback_up)
        .and_then(|done| done)
        .map_err(Error::file("bring loopback up in network namespace", path))
}

fn is_cidr(text: &str) -> bool {
    let Some((address, prefix)) = text.split_once('/') else {
        return false;
    };
    let longest = match address.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    prefix.parse::<u8>().is_ok_and(|prefix| prefix <= longest)
}
