//! TLS with several client certificates: the server says which authorities it trusts, and gets the first
//! certificate that one of them has issued.
//!
//! The HTTP library takes one certificate, so its configuration of rustls is made here when there are more.

use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_platform_verifier::Verifier;

use super::client::Tls;

/// The configuration for a host.
///
/// # Errors
/// In words, when a certificate or a key cannot be used.
pub(crate) fn configuration(tls: &Tls) -> Result<ClientConfig, String> {
    let provider = Arc::new(ring::default_provider());
    let verifier: Arc<dyn ServerCertVerifier> = match tls.skip_verify {
        true => Arc::new(Anybody(Arc::clone(&provider))),
        false => {
            let roots = tls
                .ca
                .iter()
                .flat_map(|pem| CertificateDer::pem_slice_iter(pem));
            let roots: Result<Vec<_>, _> = roots.collect();
            let roots = roots.map_err(|error| format!("ca: {error}"))?;
            let verifier = Verifier::new_with_extra_roots(roots, Arc::clone(&provider));
            Arc::new(verifier.map_err(|error| error.to_string())?)
        }
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

fn certified(pem: &[u8], provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, String> {
    let words = |error: &dyn std::fmt::Display| format!("client certificate: {error}");
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|error| words(&error))?;
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|error| words(&error))?;
    let made = CertifiedKey::from_der(chain, key, provider);
    made.map(Arc::new).map_err(|error| words(&error))
}

/// The client certificates, in the order of the file.
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
        if root_hint_subjects.is_empty() {
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

/// `skip_verify`: the server may be anybody who has the key of the certificate that it shows.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

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
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
