//! Networks, images and layers, version 1.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::PortMapping;
use crate::id::PodId;
use crate::model::{self, Digest};
use crate::record::form::form;

/// What a pod has of the built-in network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Lease {
    pub(crate) pod: PodId,
    pub(crate) address: Ipv4Addr,
    pub(crate) ports: Vec<PortMapping>,
    pub(crate) result: Value,
}

/// A pod's attachment to a network of CNI's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Attachment {
    pub(crate) pod: PodId,
    pub(crate) netns: PathBuf,
    pub(crate) interface: String,
    pub(crate) network: NetworkList,
    pub(crate) arguments: String,
    pub(crate) capabilities: Map<String, Value>,
    pub(crate) result: Option<Value>,
}

/// A network of CNI's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NetworkList {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) disable_check: bool,
    pub(crate) disable_gc: bool,
    pub(crate) plugins: Vec<Map<String, Value>>,
}

/// Address ranges of the node's pods.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct PodCidrs {
    pub(crate) cidrs: Vec<String>,
}

/// The address that was given out last.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct LastAddress {
    pub(crate) address: Ipv4Addr,
}

/// An image.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Image {
    pub(crate) id: Digest,
    pub(crate) tags: Vec<String>,
    pub(crate) digests: Vec<String>,
    pub(crate) manifest: Digest,
    pub(crate) size: u64,
    pub(crate) config: ImageConfig,
    pub(crate) chain: Vec<Digest>,
    pub(crate) blobs: Vec<Digest>,
    pub(crate) pinned: bool,
    pub(crate) created_at: i64,
    #[serde(default)]
    pub(crate) platform: String,
}

form! {
    /// What an image says of its containers.
    #[derive(Default)]
    #[serde(default)]
    ImageConfig as model::ImageConfig {
        user: String,
        env: Vec<String>,
        entrypoint: Vec<String>,
        cmd: Vec<String>,
        working_dir: String,
        volumes: Vec<String>,
        stop_signal: String,
        labels: BTreeMap<String, String>,
    }
}
