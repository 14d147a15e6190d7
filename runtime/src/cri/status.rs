//! The one place where an error becomes a gRPC status.
//!
//! The kubelet looks at codes, not at texts, so each follows the table of the requirements (R053 to
//! R066): what no other code fits is `Unknown`, as a Go runtime would answer, and `Internal` is a bug
//! of ours.

use tonic::{Code, Status};

use crate::model::{Kind, Kinded, chain, one_line};

/// Longest text of a status, bytes. It travels in a header, and the kubelet writes it into an event.
const MAX_TEXT: usize = 8 * 1024;

/// The status that an error is answered with: its kind as code, itself and its causes as text.
pub(super) fn of(error: impl Kinded) -> Status {
    Status::new(code(error.kind()), shortened(chain(&error)))
}

fn code(kind: Kind) -> Code {
    match kind {
        Kind::NotFound => Code::NotFound,
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::Unavailable => Code::Unavailable,
        Kind::Unimplemented => Code::Unimplemented,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::Unknown => Code::Unknown,
    }
}

/// The status of a handler that panicked.
pub(super) fn panicked(text: &str) -> Status {
    Status::internal(shortened(format!(
        "berth has a bug: the handler of this call panicked: {text}"
    )))
}

/// A name for a code, for labels and records.
pub(super) fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Cancelled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

fn shortened(text: String) -> String {
    let mut text = one_line(&text).into_owned();
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push_str(" …");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("pod {name} cannot be made")]
    struct Outer {
        name: String,
        #[source]
        cause: std::io::Error,
        kind: Kind,
    }

    impl Kinded for Outer {
        fn kind(&self) -> Kind {
            self.kind
        }
    }

    fn outer(kind: Kind, name: &str) -> Outer {
        Outer {
            name: name.into(),
            cause: std::io::Error::other("no space left"),
            kind,
        }
    }

    #[test]
    fn the_causes_are_in_the_text_and_the_kind_is_the_code() {
        let status = of(outer(Kind::FailedPrecondition, "web"));
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.message(), "pod web cannot be made: no space left");
        for (kind, code) in [
            (Kind::NotFound, Code::NotFound),
            (Kind::InvalidArgument, Code::InvalidArgument),
            (Kind::DeadlineExceeded, Code::DeadlineExceeded),
            (Kind::Unknown, Code::Unknown),
            (Kind::Unavailable, Code::Unavailable),
            (Kind::ResourceExhausted, Code::ResourceExhausted),
        ] {
            assert_eq!(of(outer(kind, "web")).code(), code);
        }
    }

    #[test]
    fn a_text_is_never_longer_than_a_header_should_be() {
        let status = of(outer(Kind::Unknown, &"ä".repeat(MAX_TEXT)));
        assert!(status.message().len() <= MAX_TEXT + 8);
        assert!(status.message().ends_with('…'));
    }
}
