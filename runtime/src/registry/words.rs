//! Failures of connections in words: what it is and what to do, in one sentence instead of a chain of library errors.

use std::error::Error as _;
use std::io::{self, ErrorKind};

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError};

use super::certificate::algorithm;
use super::client::{MAX_HEADERS, PERMITTED_HEADERS};

type Cause<'a> = &'a (dyn std::error::Error + 'static);

/// What a server's key may be.
pub(crate) const KEYS: &str =
    "keys are RSA with 2048 to 8192 bits, P-256, P-384 or Ed25519 here, and not P-521";
const MAX_NAMES: usize = 8;

/// A sentence. It holds no URL, which may hold a signature.
pub(crate) fn words(error: &reqwest::Error) -> String {
    let causes = causes(error);
    let last = || causes.last().map_or("unknown".to_owned(), |c| told(*c));
    if let Some(tls) = found::<rustls::Error>(&causes) {
        return of_tls(tls);
    }
    if let Some(text) = causes
        .iter()
        .find_map(|cause| of_tunnel(&cause.to_string()))
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
    } else if error.is_parse() {
        "what it answered is not HTTP: if it speaks TLS, its URL in hosts.toml begins with https://"
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

fn of_certificate(error: &CertificateError) -> String {
    use CertificateError as E;
    match error {
        E::UnknownIssuer => {
            "its certificate is not trusted: no authority that this node knows has issued it; name its authority, or \
             the certificate itself, as \"ca\" in hosts.toml"
                .to_owned()
        }
        E::Expired | E::ExpiredContext { .. } => {
            "its certificate has expired: renew it, or set this node's clock".to_owned()
        }
        E::NotValidYet | E::NotValidYetContext { .. } => {
            "its certificate is not valid yet: set this node's clock, or the issuer's".to_owned()
        }
        E::NotValidForName => "its certificate is for another name".to_owned(),
        E::NotValidForNameContext {
            expected,
            presented,
        } => of_names(expected, presented),
        E::BadSignature => {
            "its certificate's signature is not its issuer's: an authority of the same name was named as \"ca\"?"
                .to_owned()
        }
        E::UnsupportedSignatureAlgorithmContext {
            signature_algorithm_id,
            ..
        } => format!(
            "its certificate is signed with {}, which is not verified here; {KEYS}",
            algorithm(signature_algorithm_id)
        ),
        E::UnsupportedSignatureAlgorithmForPublicKeyContext {
            signature_algorithm_id,
            public_key_algorithm_id,
        } => format!(
            "its certificate is signed with {} by a key of the kind {}, which is not verified here; {KEYS}",
            algorithm(signature_algorithm_id),
            algorithm(public_key_algorithm_id)
        ),
        E::UnhandledCriticalExtension => {
            "its certificate has a critical extension that is not known here".to_owned()
        }
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            "its certificate is not one for servers: its extendedKeyUsage lacks serverAuth".to_owned()
        }
        E::BadEncoding => "its certificate is malformed".to_owned(),
        E::Other(other) => match other.to_string().as_str() {
            "UnsupportedCertVersion" => {
                "its certificate is not of version 3, and names no host: make one with subjectAltName"
                    .to_owned()
            }
            "CaUsedAsEndEntity" => {
                "its certificate is an authority's, and nobody has named it: name it as \"ca\" in hosts.toml"
                    .to_owned()
            }
            // Our own, in words already.
            text => text.chars().filter(|c| !c.is_control()).take(300).collect(),
        },
        other => format!("its certificate is not accepted: {other}"),
    }
}

fn of_names(expected: &ServerName<'_>, presented: &[String]) -> String {
    let expected = expected.to_str();
    let kind = match expected.parse::<std::net::IpAddr>() {
        Ok(_) => "IP",
        Err(_) => "DNS",
    };
    let how = format!("make one with `-addext subjectAltName={kind}:{expected}`");
    if presented.is_empty() {
        return format!(
            "its certificate names no host in subjectAltName, and a common name alone does not count: {how}"
        );
    }
    let names: Vec<_> = presented
        .iter()
        .take(MAX_NAMES)
        .map(|name| plain(name))
        .collect();
    format!(
        "its certificate is for {} and not for {expected}: {how}",
        names.join(", ")
    )
}

/// A name without the library's wrapping (`DnsName("r.io")`), printable whatever it is.
fn plain(name: &str) -> String {
    let inner = name
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    let graphic = inner.unwrap_or(name).trim_matches('"').chars();
    graphic.filter(char::is_ascii_graphic).take(80).collect()
}
