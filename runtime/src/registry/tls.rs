//! Who is believed to be a registry, and as whom we present ourselves.
//!
//! The HTTP library's own configuration of rustls takes one client certificate and cannot trust a certificate that is both
//! a server's and an authority's, which is what every manual of a registry makes with `openssl req -x509`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, InconsistentKeys, OtherError,
    RootCertStore, SignatureScheme,
};
use sha2::{Digest as _, Sha256};

use super::certificate::{Entry, Facts, Unfit, bundle, entries};
use super::client::Tls;

/// A file of certificates that a host's certificate may come from, or be.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Authorities {
    /// For messages.
    pub(crate) path: PathBuf,
    /// PEM.
    pub(crate) pem: Vec<u8>,
}

/// The configuration for a host.
///
/// # Errors
/// In words, when a certificate or a key cannot be used.
pub(crate) fn configuration(tls: &Tls) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match tls.skip_verify {
        true => Arc::new(Anybody),
        false => Arc::new(Trust::new(&tls.ca, &provider)?),
    };
    let keys = tls.identities.iter().map(|pem| certified(pem, &provider));
    let choice = Choice(keys.collect::<Result<_, _>>()?);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut configuration = builder.with_client_cert_resolver(Arc::new(choice));
    configuration.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(configuration)
}

/// Whether a text is a client certificate with its key, both in PEM.
///
/// # Errors
/// In words, which repeat nothing of the key.
pub(crate) fn check_identity(pem: &[u8]) -> Result<(), String> {
    certified(pem, &ring::default_provider()).map(drop)
}

fn certified(pem: &[u8], provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, String> {
    let (mut chain, mut key) = (Vec::new(), None);
    for entry in entries(pem) {
        if entry.label == "CERTIFICATE" {
            let der = entry.der.filter(|der| Facts::of(der).is_some());
            chain.push(CertificateDer::from(
                der.ok_or("a certificate in it is broken")?,
            ));
        } else if entry.label.ends_with("PRIVATE KEY") && key.is_none() {
            key = Some(private_key(entry)?);
        }
    }
    let Some(first) = chain.first() else {
        return Err("no certificate in PEM is in it".to_owned());
    };
    let kind = Facts::of(first).map(|facts| facts.key).unwrap_or_default();
    let key = key.ok_or("no private key in PEM is in it, or beside it")?;
    let key = provider.key_provider.load_private_key(key).map_err(|_| {
        format!(
            "its key ({kind}) is of no kind that is used here: RSA with 2048 to 8192 bits, P-256, P-384 and Ed25519 are"
        )
    })?;
    let made = CertifiedKey::new(chain, key);
    match made.keys_match() {
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err("its private key belongs to another certificate".to_owned())
        }
        // The library reads no certificates of the first version; they are shown all the same.
        _ => Ok(Arc::new(made)),
    }
}

fn private_key(entry: Entry) -> Result<PrivateKeyDer<'static>, String> {
    if entry.headers || entry.label == "ENCRYPTED PRIVATE KEY" {
        return Err(
            "its private key is protected by a password that nobody can give here: `openssl pkey` takes it off"
                .to_owned(),
        );
    }
    let der = entry.der.ok_or("the private key in it is broken")?;
    match entry.label.as_str() {
        "PRIVATE KEY" => Ok(PrivateKeyDer::Pkcs8(der.into())),
        "RSA PRIVATE KEY" => Ok(PrivateKeyDer::Pkcs1(der.into())),
        "EC PRIVATE KEY" => Ok(PrivateKeyDer::Sec1(der.into())),
        other => Err(format!(
            "a private key of the kind {other:.40?} is not read: `openssl pkey` converts it"
        )),
    }
}

/// The authorities of this node and of a host.
#[derive(Debug)]
struct Trust {
    chains: Option<Arc<WebPkiServerVerifier>>,
    /// Hashes of all certificates that the operator has named, authorities or not.
    named: BTreeSet<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

impl Trust {
    fn new(own: &[Authorities], provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        let mut named = BTreeSet::new();
        for Authorities { path, pem } in own {
            let (usable, others) =
                bundle(pem).map_err(|why| format!("{}: {why}", path.display()))?;
            for why in others {
                tracing::warn!(path = %path.display(), "{why}, and is passed over");
            }
            for der in usable {
                trust(der.into(), &mut roots, &mut named);
            }
        }
        let system = rustls_native_certs::load_native_certs();
        for error in system.errors {
            tracing::warn!(%error, "a certificate of this node is passed over");
        }
        for certificate in system.certs {
            trust(certificate, &mut roots, &mut named);
        }
        if named.is_empty() {
            return Err(
                "this node has no certificates of authorities: install ca-certificates, or name \"ca\" in hosts.toml"
                    .to_owned(),
            );
        }
        // Without any authority there may still be certificates that are named themselves.
        let chains = match roots.is_empty() {
            true => None,
            false => {
                let provider = Arc::clone(provider);
                let built = WebPkiServerVerifier::builder_with_provider(roots.into(), provider);
                Some(built.build().map_err(|error| error.to_string())?)
            }
        };
        Ok(Self {
            chains,
            named,
            provider: Arc::clone(provider),
        })
    }

    /// Whether a server's certificate is one that the operator has named. It needs no issuer then, for nobody vouches
    /// better for it; all the rest of it holds as for every other.
    fn is_named(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<bool, rustls::Error> {
        if !self.named.contains(&hash(certificate)) {
            return Ok(false);
        }
        let facts = Facts::of(certificate).ok_or(CertificateError::BadEncoding)?;
        facts.fit(now.as_secs()).map_err(|unfit| match unfit {
            Unfit::Early => CertificateError::NotValidYet,
            Unfit::Expired => CertificateError::Expired,
            Unfit::Purpose => CertificateError::InvalidPurpose,
        })?;
        verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        Ok(true)
    }
}

/// Takes a certificate for what it is: an authority vouches for others, any other for itself alone.
fn trust(
    certificate: CertificateDer<'static>,
    roots: &mut RootCertStore,
    named: &mut BTreeSet<[u8; 32]>,
) {
    let Some(facts) = Facts::of(&certificate) else {
        return;
    };
    named.insert(hash(&certificate));
    if facts.authority
        && let Err(error) = roots.add(certificate)
    {
        tracing::warn!(%error, "an authority's certificate is passed over");
    }
}

fn hash(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.is_named(end_entity, server_name, now)? {
            return Ok(ServerCertVerified::assertion());
        }
        match &self.chains {
            None => Err(CertificateError::UnknownIssuer.into()),
            Some(chains) => chains.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            ),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
            .map_err(|error| with_key(error, certificate))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
            .map_err(|error| with_key(error, certificate))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

/// `skip_verify`: the server may be anybody. A signature would only prove that anybody has a key of his own; so keys that
/// cannot be verified are no obstacle either.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::ED25519,
            SignatureScheme::RSA_PSS_SHA256,
            SignatureScheme::RSA_PSS_SHA384,
            SignatureScheme::RSA_PSS_SHA512,
            SignatureScheme::RSA_PKCS1_SHA256,
            SignatureScheme::RSA_PKCS1_SHA384,
            SignatureScheme::RSA_PKCS1_SHA512,
            SignatureScheme::ECDSA_NISTP521_SHA512,
            SignatureScheme::ED448,
            SignatureScheme::RSA_PKCS1_SHA1,
            SignatureScheme::ECDSA_SHA1_Legacy,
        ]
    }
}

/// A signature that does not hold may be good, and of a key that is too short for the library.
fn with_key(error: rustls::Error, certificate: &CertificateDer<'_>) -> rustls::Error {
    let bad = rustls::Error::InvalidCertificate(CertificateError::BadSignature);
    match Facts::of(certificate) {
        Some(facts) if error == bad => {
            let other = OtherError(Arc::new(BadHandshake(facts.key)));
            CertificateError::Other(other).into()
        }
        _ => error,
    }
}

/// The signature of a handshake does not hold.
#[derive(Debug)]
struct BadHandshake(String);

impl std::error::Error for BadHandshake {}

impl std::fmt::Display for BadHandshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(key) = self;
        write!(
            f,
            "its signature of the handshake, made with a key of the kind {key}, does not hold; {}",
            super::words::KEYS
        )
    }
}

/// The client certificates, in the order of the file: the server says which authorities it trusts, and gets the first
/// certificate that one of them has issued.
#[derive(Debug)]
struct Choice(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for Choice {
    fn resolve(
        &self,
        root_hint_subjects: &[&[u8]],
        sigschemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let signs = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(sigschemes).is_some();
        let mut usable = self.0.iter().filter(signs);
        // A single one is the only thing to show, whatever the server hints at.
        if root_hint_subjects.is_empty() || self.0.len() == 1 {
            return usable.next().cloned();
        }
        // A name stands in a certificate as it stands in the hint, in DER.
        let names = |certificate: &CertificateDer<'_>| {
            let within = |hint: &&[u8]| {
                !hint.is_empty() && certificate.windows(hint.len()).any(|part| part == *hint)
            };
            root_hint_subjects.iter().any(within)
        };
        let issued = |key: &&Arc<CertifiedKey>| key.cert.iter().any(names);
        usable.find(issued).cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}
