//! Failures of connections in words: what it is and what to do, in one sentence instead of a chain of library errors.

use std::error::Error as _;
use std::io::{self, ErrorKind};

use rustls::{AlertDescription, CertificateError};

use super::certificate::algorithm;
use super::client::{MAX_HEADERS, PERMITTED_HEADERS};
use super::refusal::KEYS;

type Cause<'a> = &'a (dyn std::error::Error + 'static);

/// A sentence. It holds no URL, which may hold a signature.
pub(crate) fn words(error: &reqwest::Error) -> String {
    let causes = causes(error);
    let last = || causes.last().map_or("unknown".to_owned(), |c| told(*c));
    if let Some(tls) = found::<rustls::Error>(&causes) {
        return of_tls(tls);
    }
    if let Some(text) = causes
        .iter()
        .map(ToString::to_string)
        .find_map(|text| of_tunnel(&text).or_else(|| of_socks(&text)))
    {
        return text;
    }
    if error.is_dns() || causes.iter().any(|cause| cause.to_string() == "dns error") {
        let why = last();
        let why = why
            .strip_prefix("failed to lookup address information: ")
            .unwrap_or(&why);
        return format!("its name is not found ({why}): check the name and this node's DNS");
    }
    if error.is_timeout() {
        return match error.is_connect() {
            true => {
                "no connection within dial_timeout: check the address and what lies between".into()
            }
            false => "it was silent for longer than images.silence_limit".to_owned(),
        };
    }
    if let Some(http) = found::<hyper::Error>(&causes)
        && let Some(text) = of_http(http)
    {
        return text;
    }
    match found::<io::Error>(&causes) {
        Some(io) => of_io(io),
        None => last(),
    }
}

/// Whether the same request would fail in the same way: what TLS refused stays refused.
pub(crate) fn is_lasting(error: &reqwest::Error) -> bool {
    error.is_builder() || found::<rustls::Error>(&causes(error)).is_some()
}

/// What the failure is of, when a proxy was on the way: its own connection is the only one that is made.
pub(crate) fn is_of_proxy(error: &reqwest::Error) -> bool {
    error.is_connect() && found::<rustls::Error>(&causes(error)).is_none()
}

fn causes(error: &reqwest::Error) -> Vec<Cause<'_>> {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause);
        let inner = cause.downcast_ref::<io::Error>();
        next = match inner.and_then(io::Error::get_ref) {
            // An I/O error leaves what it was made of out of the chain.
            Some(made_of) => Some(made_of),
            None => cause.source(),
        };
    }
    causes
}

fn found<'a, E: std::error::Error + 'static>(causes: &[Cause<'a>]) -> Option<&'a E> {
    causes
        .iter()
        .rev()
        .find_map(|cause| cause.downcast_ref::<E>())
}

/// A library's own text, fit for a log line.
fn told(cause: Cause<'_>) -> String {
    let text = cause.to_string();
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

fn of_tunnel(text: &str) -> Option<String> {
    let why = text.strip_prefix("tunnel error: ")?;
    let text = match why {
        "proxy authorization required" => {
            "the proxy wants a user and a password: they stand in its URL"
        }
        "unsuccessful" => "the proxy refuses to connect to it",
        "unexpected end of file" => "the proxy closed the connection",
        "proxy response headers too long" => "the proxy's answer is too long",
        // The connection to the proxy itself, whose own error says more.
        _ => return None,
    };
    Some(text.to_owned())
}

fn of_socks(text: &str) -> Option<String> {
    let why = text.strip_prefix("SOCKS error: ")?;
    Some(match why {
        "failed to create underlying connection" | "io error during SOCKS handshake" => {
            "there is no connection to it: check its address, and whether it runs".to_owned()
        }
        "credentials not accepted" | "server does not support user/pass authentication" => {
            "it wants a user and a password, and those in its URL are none or others".to_owned()
        }
        why => format!("it does not connect to the registry ({why})"),
    })
}

fn of_io(error: &io::Error) -> String {
    let text = match error.kind() {
        ErrorKind::ConnectionRefused => {
            "connection refused: check the address, and whether it runs"
        }
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
            "it reset the connection"
        }
        ErrorKind::UnexpectedEof => "it closed the connection",
        ErrorKind::TimedOut => "it does not answer: check the address and what lies between",
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => {
            "there is no route to it: check the address and this node's network"
        }
        ErrorKind::PermissionDenied => {
            "connecting to it is not permitted: check this node's firewall"
        }
        _ => return told(error),
    };
    text.to_owned()
}

fn of_http(error: &hyper::Error) -> Option<String> {
    let text = if error.is_parse_too_large() {
        return Some(format!(
            "the head of its answer is longer than is read ({MAX_HEADERS} headers, {} KiB)",
            PERMITTED_HEADERS >> 10
        ));
    } else if error.is_parse() && error.to_string().contains("version") {
        "what it answered is not HTTP: if it speaks TLS, its URL in hosts.toml begins with https://"
    } else if error.is_parse() {
        return Some(format!(
            "the head of its answer is malformed ({error}): mend it, or the proxy before it"
        ));
    } else if error.is_incomplete_message() || error.is_closed() {
        "it closed the connection before its answer was complete"
    } else {
        return None;
    };
    Some(text.to_owned())
}

fn of_tls(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(why) => of_certificate(why),
        rustls::Error::AlertReceived(alert) => of_alert(*alert),
        rustls::Error::PeerIncompatible(why) => format!("{} ({why:?})", nothing_common()),
        rustls::Error::InvalidMessage(_) => {
            "what it answered is not TLS: if it is meant to be plain HTTP, its URL in hosts.toml begins with http://".to_owned()
        }
        other => format!("TLS failed: {}", told(other)),
    }
}

fn nothing_common() -> String {
    format!(
        "it shares no kind of TLS with this node: TLS 1.2 and 1.3 are spoken here, with ECDHE and AES-GCM or \
         ChaCha20-Poly1305 (no CBC); {KEYS}"
    )
}

fn of_alert(alert: AlertDescription) -> String {
    use AlertDescription as A;
    match alert {
        A::HandshakeFailure | A::ProtocolVersion | A::InsufficientSecurity => nothing_common(),
        A::CertificateRequired | A::NoCertificate => {
            "it wants a client certificate: name one as \"client\" in hosts.toml".to_owned()
        }
        A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateRevoked
        | A::CertificateExpired
        | A::CertificateUnknown
        | A::UnknownCA
        | A::AccessDenied => {
            format!("it refuses the client certificate ({alert:?}): check \"client\" in hosts.toml")
        }
        A::UnrecognisedName => "it serves no registry of this name (UnrecognisedName)".to_owned(),
        other => format!("it ended the TLS handshake ({other:?})"),
    }
}

/// What our own look at a certificate did not say in words.
fn of_certificate(error: &CertificateError) -> String {
    use CertificateError as E;
    match error {
        E::UnsupportedSignatureAlgorithmForPublicKeyContext {
            public_key_algorithm_id,
            ..
        } => format!(
            "its key is of the kind {}, which is not verified here; {KEYS}",
            algorithm(public_key_algorithm_id)
        ),
        E::Other(other) => {
            let text = other.to_string();
            text.chars().filter(|c| !c.is_control()).take(800).collect()
        }
        other => format!("its certificate is not accepted: {other}"),
    }
}
