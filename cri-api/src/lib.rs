//! The Container Runtime Interface, `runtime.v1` of CRI v0.37.2, as Rust types.
//!
//! Written by hand: `proto/api.proto`. Made from it and committed: `src/gen/runtime.v1.rs`, so that
//! a build needs no `protoc`. `CRI_API_REGENERATE=1 cargo test -p berth-cri-api` makes it anew.
//!
//! The server side is always there; the clients come with the feature `client`.

use std::fmt;

/// Messages, enumerations and services of the package `runtime.v1`.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    deprecated
)]
pub mod v1 {
    include!("gen/runtime.v1.rs");
}

/// The largest message that either side takes or sends, in bytes: what the kubelet's client is set to.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// Credentials are never printed, only for which host they are.
impl fmt::Debug for v1::AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

/// The value may be a secret, so only its length is printed.
impl fmt::Debug for v1::KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}=<{} bytes>", self.key, self.value.len())
    }
}

#[cfg(test)]
mod tests {
    use super::v1::{AuthConfig, KeyValue, PullImageRequest};

    #[test]
    fn secrets_never_print() {
        let request = PullImageRequest {
            auth: Some(AuthConfig {
                username: "secret".into(),
                password: "secret".into(),
                auth: "secret".into(),
                server_address: "registry.example".into(),
                identity_token: "secret".into(),
                registry_token: "secret".into(),
            }),
            ..PullImageRequest::default()
        };
        let text = format!("{request:?} {request:#?}");
        assert!(!text.contains("secret"), "{text}");
        assert!(text.contains("registry.example"), "{text}");
        let variable = KeyValue {
            key: "TOKEN".into(),
            value: b"secret".to_vec(),
        };
        assert_eq!(format!("{variable:?}"), "TOKEN=<6 bytes>");
    }
}
