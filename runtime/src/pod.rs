//! Pod sandboxes: run, stop, remove, status.

use crate::id::PodId;
use crate::model::{Kind, Kinded, PodFilter, PodSpec, PodStatus, ReadyPod};

/// Why a pod operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such pod.
    #[error("pod sandbox {0:?} does not exist")]
    NotFound(String),
    /// More than one pod has this prefix.
    #[error("pod sandbox id {0:?} is ambiguous: give more digits")]
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

/// All pods of this daemon.
#[derive(Debug)]
pub struct PodManager {}

impl PodManager {
    /// Makes and starts a sandbox; a repeated request is given the result of the first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn run(&self, _spec: PodSpec) -> Result<PodId, Error> {
        todo!()
    }

    /// Stops a sandbox whose containers are already dead. Unknown and stopped ones are fine.
    ///
    /// # Errors
    /// When something could not be released; a repeated call goes on.
    pub async fn stop(&self, _id: &PodId) -> Result<(), Error> {
        todo!()
    }

    /// Removes a stopped sandbox that has no containers left.
    ///
    /// # Errors
    /// When something could not be released; a repeated call goes on.
    pub async fn remove(&self, _id: &PodId) -> Result<(), Error> {
        todo!()
    }

    /// Finds a pod by id or unique prefix.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`].
    pub fn find(&self, _id: &str) -> Result<PodId, Error> {
        todo!()
    }

    /// A pod as it is now.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`].
    pub fn status(&self, _id: &str) -> Result<PodStatus, Error> {
        todo!()
    }

    /// All pods that the filter lets through, from memory.
    pub fn list(&self, _filter: &PodFilter) -> Vec<PodStatus> {
        todo!()
    }

    /// A pod that containers can be put into.
    ///
    /// # Errors
    /// Not found, or not ready.
    pub fn ready(&self, _id: &str) -> Result<ReadyPod, Error> {
        todo!()
    }
}
