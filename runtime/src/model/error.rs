//! How an error is to be treated, whatever it says.

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

/// An error with everything that caused it, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The time, in nanoseconds since the Unix epoch.
pub fn now_nanos() -> i64 {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}
