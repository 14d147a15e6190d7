//! What a pod stands on in the kernel beside its processes: its mounts and its network.
//!
//! One small seam, for the sake of tests without root: which of these steps may fail, and what is undone then, is decided in
//! `acquire` and `release`.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::files;
use crate::id::PodId;
use crate::model::PodSpec;
use crate::network::{self, Network, NetworkResult, PodNetwork, set_sysctls};

/// See [`Kernel`], which is the only one outside of tests.
pub trait Ground: fmt::Debug + Send + Sync {
    /// Makes the pod's directory, its files and its `/dev/shm`; what is there stays. Blocks.
    ///
    /// # Errors
    /// In words.
    fn make_files(&self, dir: &Path, hostname: &str, spec: &PodSpec) -> Result<(), String>;

    /// Takes their mounts away; what is not there is fine. Blocks.
    ///
    /// # Errors
    /// What the kernel says.
    fn unmount_files(&self, dir: &Path) -> io::Result<()>;

    /// Connects a pod. A failed attempt is undone, or goes on in [`Ground::disconnect`].
    ///
    /// # Errors
    /// See [`Network::setup`].
    fn connect<'a>(
        &'a self,
        pod: &'a PodNetwork,
    ) -> BoxFuture<'a, Result<NetworkResult, network::Error>>;

    /// Sets parameters of a pod's network, once that is there. Blocks.
    ///
    /// # Errors
    /// See [`set_sysctls`].
    fn set_sysctls(
        &self,
        netns: &Path,
        sysctls: &BTreeMap<String, String>,
    ) -> Result<(), network::Error>;

    /// Disconnects a pod. One that never was connected is fine.
    ///
    /// # Errors
    /// When something could not be released; a repeated call goes on.
    fn disconnect<'a>(&'a self, pod: &'a PodId) -> BoxFuture<'a, Result<(), network::Error>>;

    /// Every pod that is, or may be, connected. Blocks while a directory is read.
    ///
    /// # Errors
    /// When it cannot be read.
    fn connected(&self) -> Result<Vec<PodId>, network::Error>;
}

/// The kernel's own.
#[derive(Debug)]
pub struct Kernel {
    network: Arc<Network>,
}

impl Kernel {
    /// With CNI or the built-in network.
    pub fn new(network: Arc<Network>) -> Self {
        Self { network }
    }
}

impl Ground for Kernel {
    fn make_files(&self, dir: &Path, hostname: &str, spec: &PodSpec) -> Result<(), String> {
        files::make(dir, hostname, spec)
    }

    fn unmount_files(&self, dir: &Path) -> io::Result<()> {
        files::unmount(dir)
    }

    fn connect<'a>(
        &'a self,
        pod: &'a PodNetwork,
    ) -> BoxFuture<'a, Result<NetworkResult, network::Error>> {
        Box::pin(self.network.setup(pod))
    }

    fn set_sysctls(
        &self,
        netns: &Path,
        sysctls: &BTreeMap<String, String>,
    ) -> Result<(), network::Error> {
        set_sysctls(netns, sysctls)
    }

    fn disconnect<'a>(&'a self, pod: &'a PodId) -> BoxFuture<'a, Result<(), network::Error>> {
        Box::pin(self.network.forget(pod))
    }

    fn connected(&self) -> Result<Vec<PodId>, network::Error> {
        self.network.known()
    }
}
