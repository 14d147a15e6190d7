//! Containers: create, start, stop, remove, exec, update, status.

use std::sync::Arc;
use std::time::Duration;

use crate::id::{ContainerId, PodId};
use crate::model::{
    ContainerFilter, ContainerSpec, ContainerStatus, ExecOutput, ExecRequest, Kind, Kinded,
    PodSpec, ReadyPod, ResolvedImage, Resources,
};

/// Why a container operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such container.
    #[error("container {0:?} does not exist")]
    NotFound(String),
    /// More than one container has this prefix.
    #[error("container id {0:?} is ambiguous: give more digits")]
    Ambiguous(String),
    /// Anything else.
    #[error("{message}")]
    Other {
        /// Kind.
        kind: Kind,
        /// Words.
        message: String,
    },
}

impl Kinded for Error {
    fn kind(&self) -> Kind {
        match self {
            Self::NotFound(_) => Kind::NotFound,
            Self::Ambiguous(_) => Kind::InvalidArgument,
            Self::Other { kind, .. } => *kind,
        }
    }
}

/// All containers of this daemon.
#[derive(Debug)]
pub struct ContainerManager {}

impl ContainerManager {
    /// Makes a container in a ready pod; a repeated request is given the result of the first.
    /// `request_pod` is the sandbox configuration that came with the request.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn create(
        &self,
        _pod: ReadyPod,
        _request_pod: Option<PodSpec>,
        _image: ResolvedImage,
        _spec: ContainerSpec,
    ) -> Result<ContainerId, Error> {
        todo!()
    }

    /// Starts a created container.
    ///
    /// # Errors
    /// Not found, not created, or what `execve` said.
    pub async fn start(&self, _id: &str) -> Result<(), Error> {
        todo!()
    }

    /// Stops a container: its stop signal, the grace time, SIGKILL. Unknown and dead ones are fine.
    ///
    /// # Errors
    /// When it will not die.
    pub async fn stop(&self, _id: &str, _grace: Duration) -> Result<(), Error> {
        todo!()
    }

    /// Removes a container, killing it first if it runs. Unknown ones are fine.
    ///
    /// # Errors
    /// When something could not be released; a repeated call goes on.
    pub async fn remove(&self, _id: &str) -> Result<(), Error> {
        todo!()
    }

    /// Kills all containers of a pod without grace and waits until they are dead.
    ///
    /// # Errors
    /// When one will not die.
    pub async fn kill_pod(&self, _pod: &PodId) -> Result<(), Error> {
        todo!()
    }

    /// Removes all containers of a pod.
    ///
    /// # Errors
    /// When something could not be released; a repeated call goes on.
    pub async fn remove_pod(&self, _pod: &PodId) -> Result<(), Error> {
        todo!()
    }

    /// A container as it is now, by id or unique prefix.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`].
    pub fn status(&self, _id: &str) -> Result<ContainerStatus, Error> {
        todo!()
    }

    /// The OCI configuration that a container was made from, for verbose status.
    pub async fn oci_spec(&self, _id: &ContainerId) -> Option<serde_json::Value> {
        todo!()
    }

    /// All containers that the filter lets through, from memory.
    pub fn list(&self, _filter: &ContainerFilter) -> Vec<ContainerStatus> {
        todo!()
    }

    /// Applies new limits; fields that are not given stay.
    ///
    /// # Errors
    /// Not found, over, or what the kernel said; the old limits are then in force again.
    pub async fn update(&self, _id: &str, _resources: Resources) -> Result<(), Error> {
        todo!()
    }

    /// Opens the log anew after its file was renamed.
    ///
    /// # Errors
    /// Not found, not running, or what the file system said.
    pub async fn reopen_log(&self, _id: &str) -> Result<(), Error> {
        todo!()
    }

    /// Runs a command and collects its output.
    ///
    /// # Errors
    /// Not found, not running, could not be executed, or [`Kind::DeadlineExceeded`].
    pub async fn exec_sync(&self, _id: &str, _request: ExecRequest) -> Result<ExecOutput, Error> {
        todo!()
    }
}

#[allow(dead_code)]
type Shared = Arc<ContainerManager>;
