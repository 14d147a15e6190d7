//! How to speak TLS with a registry, and as whom we present ourselves.
//!
//! The HTTP library's own configuration of rustls takes one client certificate and cannot trust a certificate that is both
//! a server's and an authority's, which is what every manual of a registry makes with `openssl req -x509`.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, InconsistentKeys, SignatureScheme};

use super::certificate::{Entry, Facts, entries};
use super::client::Tls;
use super::trust::Trust;

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
    let kind = Facts::of(first).map(|facts| facts.key.to_string());
    let key = key.ok_or("no private key in PEM is in it, or beside it")?;
    let key = provider.key_provider.load_private_key(key).map_err(|_| {
        let kind = kind.unwrap_or_default();
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
