//! How an error is to be treated, whatever it says.

use std::borrow::Cow;

use super::text::one_line;

/// What kind of failure an error is. `cri::status` turns it into a gRPC code, and nothing else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The named object does not exist.
    NotFound,
    /// The request is malformed or contradicts itself.
    InvalidArgument,
    /// The name is taken.
    AlreadyExists,
    /// The object is in a state that does not allow the request.
    FailedPrecondition,
    /// The time given for it is up.
    DeadlineExceeded,
    /// It cannot be done right now; the caller should try again.
    Unavailable,
    /// Berth does not do this.
    Unimplemented,
    /// A limit was reached.
    ResourceExhausted,
    /// A failure that the caller cannot do anything about but retry or read (gRPC `Unknown`, as containerd answers).
    Unknown,
}

/// Errors that know their kind.
pub trait Kinded: std::error::Error + Send + Sync + 'static {
    /// The kind of this error.
    fn kind(&self) -> Kind;
}

/// An error with everything that caused it, in one line. Much of it is what others have sent (a registry, an
/// image, a plugin): no error has to quote it for the sake of the log or of a terminal.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    match one_line(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(escaped) => escaped,
    }
}

/// The time, in nanoseconds since the Unix epoch.
pub fn now_nanos() -> i64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_sent_cannot_end_the_line() {
        #[derive(Debug, thiserror::Error)]
        #[error("image for linux\n2026 INFO all is well")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("\u{1b}[2Jgone\r"));
        let said = "image for linux\\n2026 INFO all is well: \\u{1b}[2Jgone\\r";
        assert_eq!(chain(&error), said);
    }
}
