//! The worker's error: what goes over the wire as a [`Failure`].

use std::fmt;
use std::io;

use shim_protocol::monitor::{Failure, FailureKind};

/// A failure in words for the operator, and its kind.
#[derive(Debug)]
pub(crate) struct Error {
    kind: FailureKind,
    message: String,
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// What was asked for is malformed or cannot be had on this machine.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Invalid,
            message: message.into(),
        }
    }

    /// The request does not fit the container's state.
    pub(crate) fn state(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::State,
            message: message.into(),
        }
    }

    /// The kernel killed what was to be made.
    pub(crate) fn memory(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Memory,
            message: message.into(),
        }
    }

    /// Anything else.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Internal,
            message: message.into(),
        }
    }

    /// Whether the request is to blame.
    pub(crate) fn is_invalid(&self) -> bool {
        self.kind == FailureKind::Invalid
    }

    /// The same where what is to blame was asked for by an earlier request, not by this one.
    pub(crate) fn of_the_state(self) -> Self {
        if self.is_invalid() {
            Self::state(self.message)
        } else {
            self
        }
    }

    /// The same with something put before or behind the text.
    pub(crate) fn map(self, change: impl FnOnce(String) -> String) -> Self {
        Self {
            kind: self.kind,
            message: change(self.message),
        }
    }

    /// What came over the wire.
    pub(crate) fn from_failure(failure: Failure) -> Self {
        Self {
            kind: failure.kind(),
            message: failure.message,
        }
    }

    /// The form that goes over the wire.
    pub(crate) fn into_failure(self) -> Failure {
        Failure {
            kind: self.kind as i32,
            message: self.message,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Names what was being done when a system call failed.
pub(crate) trait Context<T> {
    /// Puts `what` before the cause.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::internal(format!("{}: {}", what(), reason(&e.into()))))
    }
}

/// An error's reason as it reads after a colon: lower case, without the number.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    match letters.next() {
        // "I/O error" and the like keep their capitals.
        Some(first) if !letters.clone().next().is_some_and(char::is_lowercase) => {
            format!("{first}{}", letters.as_str())
        }
        Some(first) => format!("{}{}", first.to_lowercase(), letters.as_str()),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_read_after_a_colon() {
        let missing = io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(reason(&missing), "no such file or directory");
        let failure = Err::<(), _>(missing)
            .context(|| "open x".to_owned())
            .unwrap_err();
        assert_eq!(failure.to_string(), "open x: no such file or directory");
    }
}
