//! Who is believed to be a registry.
//!
//! What a certificate is worth is decided by webpki, which knows servers and authorities and nothing in between. What Go's
//! programs make of those that are both, and of authorities themselves, is added here (docs/adr/0019).

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{
    AlgorithmIdentifier, CertificateDer, InvalidSignature, ServerName,
    SignatureVerificationAlgorithm, TrustAnchor, UnixTime,
};
use rustls::{CertificateError, DigitallySignedStruct, OtherError, SignatureScheme};
use sha2::{Digest as _, Sha256};
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter, KeyUsage,
    RequiredEkuNotFoundContext, VerifiedPath, anchor_from_trusted_cert,
};

use super::certificate::{ANY_USAGE, Facts, SERVER_AUTHENTICATION, Unfit, bundle, signed};
use super::refusal::{Refusal, Step, Who};
use super::tls::Authorities;

/// Certificates that are looked at to say which one it is that does not do.
const LONGEST_WAY: usize = 8;

/// The authorities of this node and of a host.
#[derive(Debug)]
pub(super) struct Trust {
    anchors: Vec<TrustAnchor<'static>>,
    /// What an anchor does not tell, in the same order.
    about: Vec<Authority>,
    /// Hashes of all certificates that the operator has named, authorities or not.
    named: BTreeSet<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
struct Authority {
    facts: Facts,
    /// None: this node's own list.
    file: Option<PathBuf>,
}

impl Trust {
    /// # Errors
    /// In words, when a file holds no certificate, or there is none at all.
    pub(super) fn new(own: &[Authorities], provider: &Arc<CryptoProvider>) -> Result<Self, String> {
        let mut trust = Self {
            anchors: Vec::new(),
            about: Vec::new(),
            named: BTreeSet::new(),
            provider: Arc::clone(provider),
        };
        for Authorities { path, pem } in own {
            let (usable, others) =
                bundle(pem).map_err(|why| format!("{}: {why}", path.display()))?;
            for why in others {
                tracing::warn!(path = %path.display(), "{why}, and is passed over");
            }
            for der in usable {
                trust.add(&der.into(), Some(path));
            }
        }
        let system = rustls_native_certs::load_native_certs();
        for error in system.errors {
            tracing::warn!(%error, "a certificate of this node is passed over");
        }
        for certificate in &system.certs {
            trust.add(certificate, None);
        }
        match trust.named.is_empty() {
            true => Err(
                "this node has no certificates of authorities: install ca-certificates, or name \"ca\" in hosts.toml"
                    .to_owned(),
            ),
            false => Ok(trust),
        }
    }

    /// Takes a certificate for what it is: an authority vouches for others, any other for itself alone.
    fn add(&mut self, certificate: &CertificateDer<'_>, file: Option<&Path>) {
        let Some(mut facts) = Facts::of(certificate) else {
            return;
        };
        self.named.insert(hash(certificate));
        if !facts.authority {
            return;
        }
        match anchor_from_trusted_cert(certificate) {
            Ok(anchor) => {
                // The anchor has its name, and nobody asks who has issued it.
                facts.forget_names();
                self.anchors.push(anchor.to_owned());
                self.about.push(Authority {
                    facts,
                    file: file.map(Path::to_owned),
                });
            }
            Err(error) => {
                tracing::warn!(%error, ?file, "an authority's certificate is passed over")
            }
        }
    }

    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        let leaf = EndEntityCert::try_from(certificate)?;
        let facts = Facts::of(certificate).ok_or(webpki::Error::BadDer)?;
        match self.named.contains(&hash(certificate)) {
            // It needs no issuer, for nobody vouches better for it; all the rest of it holds as for every other.
            true => fit(&facts, now)?,
            false => self.is_issued(certificate, &facts, intermediates, now)?,
        }
        leaf.verify_is_valid_for_subject_name(name)
    }

    /// Whether an authority vouches for a server's certificate. One that is an authority's as well (`openssl req -x509 -CA`
    /// makes such) is looked at as if it were none, for here it vouches for nobody; its signature is that of the certificate
    /// as it is.
    fn is_issued(
        &self,
        certificate: &CertificateDer<'_>,
        facts: &Facts,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        let all = self.provider.signature_verification_algorithms.all;
        let Some(other) = facts.without_authority(certificate) else {
            return self.has_chain(certificate, all, intermediates, now);
        };
        let other = CertificateDer::from(other);
        let looked_at = signed(&other).ok_or(webpki::Error::BadDer)?;
        let signed = signed(certificate).ok_or(webpki::Error::BadDer)?;
        let original = |algorithm: &&'static dyn SignatureVerificationAlgorithm| Original {
            algorithm: *algorithm,
            looked_at,
            signed,
        };
        let originals: Vec<_> = all.iter().map(original).collect();
        let originals: Vec<_> = originals
            .iter()
            .map(|original| original as &dyn SignatureVerificationAlgorithm)
            .collect();
        self.has_chain(&other, &originals, intermediates, now)
    }

    fn has_chain(
        &self,
        certificate: &CertificateDer<'_>,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        let leaf = EndEntityCert::try_from(certificate)?;
        let holds = |path: &VerifiedPath<'_>| self.holds(path, now);
        leaf.verify_for_usage(
            algorithms,
            &self.anchors,
            intermediates,
            now,
            ForServers,
            None,
            Some(&holds),
        )
        .map(drop)
    }

    /// What webpki takes an authority's word for, and Go does not: that authorities on the way may sign certificates, and
    /// what the one at its end says of itself.
    fn holds(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), webpki::Error> {
        let mut below = 0;
        for issuer in path.intermediate_certificates() {
            let facts = Facts::of(&issuer.der());
            if !facts.is_some_and(|facts| facts.authority) {
                return Err(webpki::Error::EndEntityUsedAsCa);
            }
            below += 1;
        }
        let mut known = self.anchors.iter().zip(&self.about);
        let end = known.find(|(anchor, _)| std::ptr::eq(*anchor, path.anchor()));
        let Some((_, Authority { facts, .. })) = end else {
            return Err(webpki::Error::UnknownIssuer);
        };
        if facts.is_beyond_go() {
            return Err(webpki::Error::UnsupportedCriticalExtension);
        }
        if facts.longest.is_some_and(|longest| below > longest) {
            return Err(webpki::Error::PathLenConstraintViolated);
        }
        fit(facts, now)
    }

    /// The way from a server's certificate up, as far as names lead: for messages, and nothing else.
    fn way<'a>(
        &'a self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Vec<Step<'a>> {
        let sent: Vec<_> = intermediates
            .iter()
            .filter_map(|der| Facts::of(der))
            .collect();
        let mut way = Vec::new();
        let mut next = Facts::of(certificate).map(|facts| (Who::Server, facts));
        while let Some((who, facts)) = next.take() {
            let issuer = facts.issuer.clone();
            way.push(Step {
                who,
                name: Cow::Owned(facts.subject.clone()),
                facts: Cow::Owned(facts),
            });
            let mut known = self.anchors.iter().zip(&self.about);
            if let Some((anchor, about)) =
                known.find(|(anchor, _)| anchor.subject.as_ref() == issuer)
            {
                way.push(Step {
                    who: Who::Known(about.file.as_deref()),
                    name: Cow::Borrowed(&anchor.subject),
                    facts: Cow::Borrowed(&about.facts),
                });
            } else if way.len() < LONGEST_WAY {
                let above = sent.iter().find(|facts| facts.subject == issuer);
                let above = above.filter(|facts| !way.iter().any(|step| *step.facts == **facts));
                next = above.map(|facts| (Who::Sent, facts.clone()));
            }
        }
        way
    }
}

fn hash(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

fn fit(facts: &Facts, now: UnixTime) -> Result<(), webpki::Error> {
    let at = |seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    facts.fit(now.as_secs()).map_err(|unfit| match unfit {
        Unfit::Early => webpki::Error::CertNotValidYet {
            time: now,
            not_before: UnixTime::since_unix_epoch(at(facts.not_before)),
        },
        Unfit::Expired => webpki::Error::CertExpired {
            time: now,
            not_after: UnixTime::since_unix_epoch(at(facts.not_after)),
        },
        Unfit::Purpose => purpose(Vec::new()),
    })
}

fn purpose(present: Vec<Vec<usize>>) -> webpki::Error {
    webpki::Error::RequiredEkuNotFoundContext(RequiredEkuNotFoundContext {
        required: KeyUsage::server_auth(),
        present,
    })
}

/// A certificate is good for servers if it says so, is for anything, or says nothing.
struct ForServers;

impl ExtendedKeyUsageValidator for ForServers {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let mut present = Vec::new();
        for id in purposes {
            let id = id?;
            if [ANY_USAGE, SERVER_AUTHENTICATION]
                .map(KeyPurposeId::new)
                .contains(&id)
            {
                return Ok(());
            }
            present.push(id.to_decoded_oid());
        }
        match present.is_empty() {
            true => Ok(()),
            false => Err(purpose(present)),
        }
    }
}

/// An algorithm that verifies the signature of one certificate over what was signed instead of what is looked at, and all
/// others as they are.
#[derive(Debug)]
struct Original<'a> {
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    looked_at: &'a [u8],
    signed: &'a [u8],
}

impl SignatureVerificationAlgorithm for Original<'_> {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let message = match message == self.looked_at {
            true => self.signed,
            false => message,
        };
        self.algorithm
            .verify_signature(public_key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.verify(end_entity, intermediates, server_name, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            Err(error) => {
                let way = self.way(end_entity, intermediates);
                Err(refused(Refusal::of(&error, &way, now)))
            }
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

fn refused(why: Refusal) -> rustls::Error {
    CertificateError::Other(OtherError(Arc::new(why))).into()
}

/// A signature that does not hold may be good, and of a key that is too short for the library.
fn with_key(error: rustls::Error, certificate: &CertificateDer<'_>) -> rustls::Error {
    let bad = rustls::Error::InvalidCertificate(CertificateError::BadSignature);
    match Facts::of(certificate) {
        Some(facts) if error == bad => refused(Refusal::of_handshake(facts.key)),
        _ => error,
    }
}
