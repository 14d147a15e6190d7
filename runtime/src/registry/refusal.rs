//! Why a server's certificate is not accepted, in words: which certificate it is, what is wrong with it, what to do.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use rustls::pki_types::{ServerName, UnixTime};
use webpki::Error as E;

use super::certificate::{Facts, Key, Unfit, algorithm, name};

/// What a server's key may be.
pub(super) const KEYS: &str =
    "keys are RSA with 2048 to 8192 bits, P-256, P-384 or Ed25519 here, and not P-521";
const MAX_NAMES: usize = 8;

/// A sentence.
#[derive(Debug)]
pub(super) struct Refusal(String);

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A certificate on the way from a server to an authority; the server's own is the first.
pub(super) struct Step<'a> {
    /// Whose.
    pub(super) who: Who<'a>,
    /// Its subject.
    pub(super) name: Cow<'a, [u8]>,
    /// What it says.
    pub(super) facts: Cow<'a, Facts>,
}

/// Whose certificate it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Who<'a> {
    /// The server's.
    Server,
    /// An authority's that the server sends along.
    Sent,
    /// An authority's that this node trusts, by the file that names it.
    Known(Option<&'a Path>),
}

impl fmt::Display for Step<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let called = name(&self.name);
        match self.who {
            Who::Server => f.write_str("its certificate"),
            Who::Sent => write!(f, "the certificate of the authority {called} that it sends"),
            Who::Known(None) => write!(f, "the authority {called} of this node"),
            Who::Known(Some(file)) => write!(f, "the authority {called} of {}", file.display()),
        }
    }
}

impl Refusal {
    /// `way` leads up from the server's certificate by the names of issuers.
    pub(super) fn of(error: &E, way: &[Step<'_>], now: UnixTime) -> Self {
        Self(sentence(error, way, now.as_secs()))
    }

    /// The signature of a handshake does not hold.
    pub(super) fn of_handshake(key: Key) -> Self {
        Self(format!(
            "its signature of the handshake, made with a key of the kind {key}, does not hold; {KEYS}"
        ))
    }
}

fn sentence(error: &E, way: &[Step<'_>], now: u64) -> String {
    let unfit = |wanted: &Unfit| which(way, |step| step.facts.fit(now).as_ref() == Err(wanted));
    match error {
        E::UnknownIssuer => of_unknown_issuer(way),
        E::CertNotValidForName(context) => of_names(&context.expected, &context.presented),
        E::CertExpired { .. } => format!(
            "{} has expired: renew it, or set this node's clock",
            unfit(&Unfit::Expired)
        ),
        E::CertNotValidYet { .. } => format!(
            "{} is not valid yet: set this node's clock, or the issuer's",
            unfit(&Unfit::Early)
        ),
        E::InvalidCertValidity => {
            let whose = which(way, |step| step.facts.not_before > step.facts.not_after);
            format!("{whose} ends before it begins to be valid: make it again")
        }
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => format!(
            "{} is not one for servers: its extendedKeyUsage lacks serverAuth",
            unfit(&Unfit::Purpose)
        ),
        E::InvalidSignatureForPublicKey
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => of_signature(error, way),
        E::UnsupportedSignatureAlgorithmContext(context) => {
            let id = &context.signature_algorithm_id;
            format!(
                "{} is signed with {}, which is not verified here; {KEYS}",
                which(way, |step| step.facts.algorithm == *id),
                algorithm(id)
            )
        }
        E::EndEntityUsedAsCa
        | E::PathLenConstraintViolated
        | E::NameConstraintViolation
        | E::MalformedNameConstraint
        | E::InvalidNetworkMaskConstraint => of_authority(error, way),
        E::UnsupportedCriticalExtension => of_extension(way),
        E::UnsupportedCertVersion => {
            "its certificate is not of version 3, and names no host: make one with subjectAltName"
                .to_owned()
        }
        E::MaximumSignatureChecksExceeded
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumNameConstraintComparisonsExceeded
        | E::MaximumPathDepthExceeded => {
            "it sends certificates with too many ways through them: let it send those between it and its authority alone"
                .to_owned()
        }
        malformed => format!(
            "its certificate, or one that it sends along, is malformed ({malformed:?}): make it again"
        ),
    }
}

fn some() -> String {
    "its certificate, or one of an authority on the way,".to_owned()
}

/// The first certificate that it is true of, as a message calls it.
fn which(way: &[Step<'_>], is: impl Fn(&Step<'_>) -> bool) -> String {
    let found = way.iter().find(|step| is(step));
    found.map_or_else(some, Step::to_string)
}

fn of_unknown_issuer(way: &[Step<'_>]) -> String {
    let Some(last) = way.last() else {
        return "its certificate is malformed".to_owned();
    };
    if way.len() == 1 && last.facts.is_its_own() {
        return "its certificate is not trusted: it is its own authority, and nobody has named it; name it as \"ca\" in hosts.toml"
            .to_owned();
    }
    format!(
        "its certificate is not trusted: no authority that this node knows has issued it, but {}; name that authority, or \
         the certificate itself, as \"ca\" in hosts.toml",
        name(&last.facts.issuer)
    )
}

fn of_extension(way: &[Step<'_>]) -> String {
    let mut odd = way.iter();
    let odd = odd.find_map(|step| Some((step, step.facts.unknown()?)));
    let (whose, id) = match &odd {
        Some((step, id)) => (step.to_string(), id.as_str()),
        None => (some(), "unknown"),
    };
    format!(
        "{whose} has a critical extension that is not known here ({id}): have it issued without it, or not as critical"
    )
}

/// A certificate whose signature cannot be verified, with the key that was to verify it.
fn of_signature(error: &E, way: &[Step<'_>]) -> String {
    let mut pairs = way.iter().zip(way.iter().skip(1));
    if let Some((step, issuer)) = pairs.find(|(_, issuer)| !issuer.facts.key.is_verified()) {
        return format!(
            "{step} is signed by {issuer} with a key of the kind {}, which is not verified here; {KEYS}",
            issuer.facts.key
        );
    }
    match error {
        E::UnsupportedSignatureAlgorithmForPublicKeyContext(context) => format!(
            "its certificate is signed with {} by a key of the kind {}, which is not verified here; {KEYS}",
            algorithm(&context.signature_algorithm_id),
            algorithm(&context.public_key_algorithm_id)
        ),
        _ => match way {
            [.., step, issuer] => format!(
                "the signature of {step} is not that of {issuer}: another authority of the same name was named as \"ca\"?"
            ),
            _ => "its certificate's signature is not its issuer's".to_owned(),
        },
    }
}

/// What an authority may not vouch for.
fn of_authority(error: &E, way: &[Step<'_>]) -> String {
    let above = way.get(1..).unwrap_or_default();
    match error {
        E::EndEntityUsedAsCa => format!(
            "{} may not vouch for others: it is no authority's (CA:TRUE, with keyCertSign where there is a keyUsage)",
            which(above, |step| !step.facts.authority)
        ),
        E::PathLenConstraintViolated => {
            let mut short = above.iter().enumerate();
            let short = short.find(|(n, step)| step.facts.longest.is_some_and(|most| most < *n));
            let whose = short.map_or_else(some, |(_, step)| step.to_string());
            format!("{whose} allows fewer authorities between itself and a server (pathlen)")
        }
        E::NameConstraintViolation => format!(
            "{} vouches for certain names only (nameConstraints), and its certificate has others: make one with names that it permits",
            which(above, |step| step.facts.constrained)
        ),
        _ => format!(
            "{} has nameConstraints that cannot be read",
            which(above, |step| step.facts.constrained)
        ),
    }
}

fn of_names(expected: &ServerName<'_>, presented: &[String]) -> String {
    let expected = expected.to_str();
    let address = expected.parse::<IpAddr>().is_ok();
    let kind = if address { "IP" } else { "DNS" };
    let how = format!("make one with `-addext subjectAltName={kind}:{expected}`");
    if presented.is_empty() {
        return format!(
            "its certificate names no host in subjectAltName, and a common name alone does not count: {how}"
        );
    }
    let shown = presented.iter().take(MAX_NAMES).map(|name| plain(name));
    let names: Vec<_> = shown.collect();
    if address && presented.iter().any(|name| plain(name) == *expected) {
        return format!(
            "its certificate has the address {expected} as a name (DNS:{expected}), and only as an address does it count: {how}"
        );
    }
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
