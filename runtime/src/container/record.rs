//! What is kept of a container on disk.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use shim_protocol::worker;

use crate::id::PodId;
use crate::model::{
    ChainId, ContainerExit, ContainerSpec, ContainerState, ContainerUser, ImageId, Resources,
    SignalName,
};

/// A process of ours that outlives the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// Its start time, clock ticks since boot: a pid alone may be somebody else's by now.
    pub start_time: u64,
}

/// The record of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// What was asked for.
    pub spec: Arc<ContainerSpec>,
    /// Its pod.
    pub pod: PodId,
    /// Still being made: found at start, it is undone.
    pub creating: bool,
    /// What CRI calls its state.
    pub state: ContainerState,
    /// Nanoseconds since the Unix epoch.
    pub created_at: i64,
    /// Nanoseconds since the Unix epoch; 0: not started.
    pub started_at: i64,
    /// How it ended.
    pub exit: Option<ContainerExit>,
    /// The boot in which it was made.
    pub boot_id: String,
    /// Id of its image.
    pub image_id: ImageId,
    /// Human name of its image.
    pub image_name: String,
    /// Digest reference of its image.
    pub image_ref: String,
    /// Its image's layers, which must stay as long as it does.
    pub chain: Vec<ChainId>,
    /// Absolute path of its log; empty: none.
    pub log_path: String,
    /// Credentials.
    pub user: ContainerUser,
    /// Limits in force.
    pub resources: Resources,
    /// The signal that stops it.
    pub stop_signal: SignalName,
    /// Its first process.
    pub init: Option<Process>,
    /// Its monitor, to be found when it does not answer; absent in records of earlier versions.
    #[serde(default)]
    pub monitor: Option<Process>,
    /// What was executed; later execs are like it.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub process: worker::Process,
    /// Name of its system call filter among the kept programs; empty: none.
    pub seccomp: String,
    /// Path of its cgroup below each hierarchy's root.
    pub cgroup_path: String,
    /// Directories of its cgroup.
    pub leaves: Vec<String>,
}

fn to_hex<S: Serializer>(process: &worker::Process, serializer: S) -> Result<S::Ok, S::Error> {
    let bytes = prost::Message::encode_to_vec(process);
    serializer.collect_str(&Hex(&bytes))
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<worker::Process, D::Error> {
    use serde::de::Error;
    let text = String::deserialize(deserializer)?;
    let digits = text.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).map_err(D::Error::custom)?;
        u8::from_str_radix(pair, 16).map_err(D::Error::custom)
    });
    let bytes = digits.collect::<Result<Vec<u8>, _>>()?;
    prost::Message::decode(bytes.as_slice()).map_err(D::Error::custom)
}

/// Arguments and environment are bytes, which JSON text cannot hold as they are.
struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Wrapper(
        #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")] worker::Process,
    );

    #[test]
    fn a_process_with_bytes_that_are_no_text_comes_back() {
        let process = worker::Process {
            env: vec![b"A=\xff\x00".to_vec()],
            uid: 7,
            ..Default::default()
        };
        let text = serde_json::to_string(&Wrapper(process.clone())).unwrap();
        assert_eq!(serde_json::from_str::<Wrapper>(&text).unwrap().0, process);
    }
}
