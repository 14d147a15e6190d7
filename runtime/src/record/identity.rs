//! Who an object is and where its things are, in a form that every Berth can read: the older ones, too.
//!
//! It lies beside the record. Where that cannot be read, the object is shown by this, and ended by it.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Unfit, Unreadable, sum};
use crate::model::{self, ChainId};

/// Which of an object's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProcessRole {
    /// A pod's pause.
    Pause,
    /// A container's first process.
    Init,
    /// A container's monitor.
    Monitor,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// What it is to the object.
    pub(crate) role: ProcessRole,
    /// Its pid.
    pub(crate) pid: i32,
    /// Its start time, clock ticks since boot: a pid alone may be somebody else's by now.
    pub(crate) start_time: u64,
}

/// What must never be lost of an object. No field is ever added, removed or given another meaning: an older Berth
/// reads it as well as a newer one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// `pod` or `container`.
    pub(crate) kind: String,
    /// Its id.
    pub(crate) id: String,
    /// Its pod's id; of a pod its own.
    pub(crate) pod: String,
    /// Name of the pod or container.
    pub(crate) name: String,
    /// Namespace of the pod; empty for a container.
    pub(crate) namespace: String,
    /// UID of the pod; empty for a container.
    pub(crate) uid: String,
    /// How often it was made anew.
    pub(crate) attempt: u32,
    /// Its labels, by which the kubelet knows whose it is.
    pub(crate) labels: BTreeMap<String, String>,
    /// Nanoseconds since the Unix epoch.
    pub(crate) created_at: i64,
    /// The boot in which it was made: of another one there are no processes.
    pub(crate) boot_id: String,
    /// Its processes, as far as they exist.
    pub(crate) processes: Vec<Process>,
    /// Directories of its cgroup.
    pub(crate) cgroup: Vec<PathBuf>,
    /// Where its cgroup stands, below each hierarchy's root.
    pub(crate) cgroup_parent: String,
    /// The pod's scope, where systemd makes the cgroups; empty: none.
    pub(crate) scope: String,
    /// Directories on the way to its cgroup that Berth made, and that go with the last pod.
    pub(crate) made_parents: Vec<PathBuf>,
    /// Where its network namespace is pinned; empty: none of its own.
    pub(crate) netns: PathBuf,
    /// A container's log, a pod's log directory; empty: none.
    pub(crate) log: PathBuf,
    /// A container's image: id, name, digest reference.
    pub(crate) image: [String; 3],
    /// Its image's layers, which must stay as long as it does.
    pub(crate) layers: Vec<ChainId>,
    /// Name of its system call filter among the kept programs; empty: none.
    pub(crate) seccomp: String,
}

#[derive(Serialize, Deserialize)]
struct Sealed<'a> {
    /// SHA-256 of `identity` as it stands here, in hexadecimal digits.
    sha256: String,
    #[serde(borrow)]
    identity: &'a RawValue,
}

impl Process {
    /// What a process is to the object.
    pub(crate) fn of(role: ProcessRole, process: &model::Process) -> Self {
        Self {
            role,
            pid: process.pid,
            start_time: process.start_time,
        }
    }
}

impl Identity {
    /// As it goes to the disk.
    ///
    /// # Errors
    /// A path that is no text.
    pub(crate) fn encode(&self) -> io::Result<Vec<u8>> {
        let identity = serde_json::value::to_raw_value(self)?;
        let sha256 = sum(identity.get());
        let identity = &*identity;
        Ok(serde_json::to_vec(&Sealed { sha256, identity })?)
    }

    /// From what was on the disk.
    ///
    /// # Errors
    /// [`Unreadable::Damaged`].
    pub(crate) fn decode(file: &[u8]) -> Result<Self, Unreadable> {
        let sealed: Sealed<'_> = serde_json::from_slice(file).map_err(Unreadable::damaged)?;
        if sealed.sha256 != sum(sealed.identity.get()) {
            return Err(Unreadable::damaged("its checksum does not fit"));
        }
        serde_json::from_str(sealed.identity.get()).map_err(Unreadable::damaged)
    }

    /// One of its processes.
    pub(crate) fn process(&self, role: ProcessRole) -> Option<model::Process> {
        let found = self.processes.iter().find(|process| process.role == role);
        found.map(|process| model::Process {
            pid: process.pid,
            start_time: process.start_time,
        })
    }

    /// That it is of this kind.
    ///
    /// # Errors
    /// It is of another one.
    pub(crate) fn expect_kind(&self, kind: &str) -> Result<(), Unfit> {
        if self.kind == kind {
            return Ok(());
        }
        Err(Unfit(format!(
            "it is that of a {:?}, not of a {kind}",
            self.kind
        )))
    }
}
