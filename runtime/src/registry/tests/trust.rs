//! Whose certificate is believed.

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, SignatureAlgorithm,
};

use super::super::certificate::entries;
use super::*;

/// A certificate that issued itself.
pub(super) struct Own {
    pub(super) certificate: Certificate,
    pub(super) key: KeyPair,
    wanted: CertificateParams,
}

pub(super) fn own(
    names: &[&str],
    algorithm: &'static SignatureAlgorithm,
    change: impl FnOnce(&mut CertificateParams),
) -> Own {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut wanted = CertificateParams::new(names).unwrap();
    change(&mut wanted);
    let key = KeyPair::generate_for(algorithm).unwrap();
    let certificate = wanted.self_signed(&key).unwrap();
    Own {
        certificate,
        key,
        wanted,
    }
}

pub(super) fn authority(wanted: &mut CertificateParams) {
    wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
}

impl Own {
    async fn serve(&self) -> Fake {
        let chain = vec![self.certificate.der().clone()];
        let fake = Fake::showing(chain, self.key.serialize_der(), self.pem(), None).await;
        fake.put_image("x", "1", &simple());
        fake
    }

    pub(super) fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// One with a key of its own that this one issues.
    pub(super) fn issue_as(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let mut next = own(names, &rcgen::PKCS_ECDSA_P256_SHA256, change);
        let issuer = Issuer::from_params(&self.wanted, &self.key);
        next.certificate = next.wanted.signed_by(&next.key, &issuer).unwrap();
        next
    }

    /// The same once more, as it should have been.
    pub(super) fn again(&self, change: impl FnOnce(&mut CertificateParams)) -> Certificate {
        let mut wanted = self.wanted.clone();
        change(&mut wanted);
        wanted.self_signed(&self.key).unwrap()
    }

    /// One that this one issues.
    fn issue(&self, names: &[&str]) -> (Certificate, KeyPair) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let wanted = CertificateParams::new(names).unwrap();
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.wanted, &self.key);
        (wanted.signed_by(&key, &issuer).unwrap(), key)
    }
}

/// A pull from the fake by its address, with this `ca`.
pub(super) async fn pull(fake: &Fake, ca: &[u8]) -> Result<(), String> {
    pull_with(fake, "ca = \"ca.pem\"", ca).await
}

async fn pull_with(fake: &Fake, text: &str, ca: &[u8]) -> Result<(), String> {
    let name = fake.addr.to_string();
    let (dir, registry) = hosts(&name, &format!("server = \"https://{name}\"\n{text}"));
    std::fs::write(dir.path().join(&name).join("ca.pem"), ca).unwrap();
    let got = manifest(&registry, &fake.name("x:1"), None).await;
    got.map(drop).map_err(|error| error.to_string())
}

pub(super) const HERE: &[&str] = &["127.0.0.1", "localhost", "registry.test"];

/// `openssl req -x509 -newkey rsa:4096 -nodes -addext subjectAltName=…`, as the manuals have it.
#[tokio::test]
async fn a_certificate_as_every_manual_makes_it_is_trusted_when_it_is_named() {
    let pem = include_bytes!("certificates/openssl.pem");
    let mut both = entries(pem).into_iter();
    let certificate = both.next().unwrap().der.unwrap();
    let key = both.next().unwrap().der.unwrap();
    let chain = vec![certificate.into()];
    let fake = Fake::showing(chain, key, String::new(), None).await;
    fake.put_image("x", "1", &simple());
    // The key that stands beside it is passed over.
    pull(&fake, pem).await.unwrap();
    let other = own(HERE, &rcgen::PKCS_ECDSA_P256_SHA256, authority);
    let why = pull(&fake, other.pem().as_bytes()).await.unwrap_err();
    assert!(why.starts_with("RegistryUnavailable: 127.0.0.1:"), "{why}");
    assert!(why.contains("name it as \"ca\" in hosts.toml"), "{why}");
    pull_with(&fake, "skip_verify = true", b"").await.unwrap();
}

#[tokio::test]
async fn any_kind_of_certificate_that_is_named_is_trusted() {
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
    ] {
        for is_ca in [
            IsCa::NoCa,
            IsCa::ExplicitNoCa,
            IsCa::Ca(BasicConstraints::Unconstrained),
        ] {
            let own = own(HERE, algorithm, |wanted| wanted.is_ca = is_ca);
            let fake = own.serve().await;
            pull(&fake, own.pem().as_bytes()).await.unwrap();
        }
    }
    // One that another one has issued is good as itself, too.
    let issuer = own(&["ca"], &rcgen::PKCS_ECDSA_P256_SHA256, authority);
    let (leaf, key) = issuer.issue(HERE);
    let chain = vec![leaf.der().clone()];
    let fake = Fake::showing(chain, key.serialize_der(), String::new(), None).await;
    fake.put_image("x", "1", &simple());
    pull(&fake, leaf.pem().as_bytes()).await.unwrap();
}

#[tokio::test]
async fn names_times_and_purposes_hold_for_a_named_certificate_as_well() {
    let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
    let cases: [(&str, Own); 5] = [
        (
            "its certificate is for other.test and not for 127.0.0.1: make one with `-addext subjectAltName=IP:127.0.0.1`",
            own(&["other.test"], p256, authority),
        ),
        (
            "a common name alone does not count",
            own(&[], p256, authority),
        ),
        (
            "has expired",
            own(HERE, p256, |wanted| {
                authority(wanted);
                wanted.not_after = rcgen::date_time_ymd(2020, 1, 1);
            }),
        ),
        (
            "not valid yet",
            own(HERE, p256, |wanted| {
                wanted.not_before = rcgen::date_time_ymd(2090, 1, 1);
            }),
        ),
        (
            "lacks serverAuth",
            own(HERE, p256, |wanted| {
                authority(wanted);
                wanted.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }),
        ),
    ];
    for (want, own) in cases {
        let fake = own.serve().await;
        let why = pull(&fake, own.pem().as_bytes()).await.unwrap_err();
        assert!(why.contains(want), "{why}");
        pull_with(&fake, "skip_verify = true", b"").await.unwrap();
    }
}

#[tokio::test]
async fn only_the_same_bytes_are_the_named_certificate() {
    let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
    let (named, shown) = (own(HERE, p256, authority), own(HERE, p256, authority));
    let fake = shown.serve().await;
    let why = pull(&fake, named.pem().as_bytes()).await.unwrap_err();
    assert!(why.contains("certificate"), "{why}");
    // Somebody who has the certificate and not its key.
    let chain = vec![named.certificate.der().clone()];
    let thief = Fake::showing(chain, shown.key.serialize_der(), String::new(), None).await;
    let why = pull(&thief, named.pem().as_bytes()).await.unwrap_err();
    assert!(why.contains("its signature of the handshake"), "{why}");
    assert!(thief.log().is_empty());
}

#[tokio::test]
async fn a_certificate_vouches_for_others_only_as_an_authority() {
    let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
    for (is_ca, trusted) in [
        (IsCa::Ca(BasicConstraints::Unconstrained), true),
        (IsCa::ExplicitNoCa, false),
        (IsCa::NoCa, false),
    ] {
        let issuer = own(&["issuer.test"], p256, |wanted| {
            wanted.is_ca = is_ca;
            let common = rcgen::DnType::CommonName;
            wanted.distinguished_name.push(common, "issuer");
        });
        let (leaf, key) = issuer.issue(HERE);
        let stranger = own(&["stranger"], p256, authority);
        // In no order, and with one that belongs to nobody.
        let chain = [&leaf, &stranger.certificate, &issuer.certificate];
        let chain = chain.map(|one| one.der().clone()).to_vec();
        let fake = Fake::showing(chain, key.serialize_der(), String::new(), None).await;
        fake.put_image("x", "1", &simple());
        let got = pull(&fake, issuer.pem().as_bytes()).await;
        assert_eq!(got.is_ok(), trusted, "{got:?}");
    }
}

#[tokio::test]
async fn a_bundle_is_good_for_what_is_good_in_it() {
    let p256 = &rcgen::PKCS_ECDSA_P256_SHA256;
    let (own, other) = (own(HERE, p256, authority), own(&["x"], p256, authority));
    let fake = own.serve().await;
    let broken = own.pem().replacen("MII", "M!!", 1);
    let windows = own.pem().replace('\n', "\r\n");
    let text = format!("\u{feff}{broken}{}{windows}", other.pem());
    pull(&fake, text.as_bytes()).await.unwrap();
    let name = fake.addr.to_string();
    let (dir, registry) = hosts(
        &name,
        &format!("server = \"https://{name}\"\nca = \"ca.pem\""),
    );
    std::fs::write(dir.path().join(&name).join("ca.pem"), &text).unwrap();
    let reference: Reference = fake.name("x:1").parse().unwrap();
    let told = explain(&registry, &reference, None).await;
    let tls = &told.hosts[0].tls;
    assert!(tls.contains("entry 1 is a broken certificate"), "{tls}");
    assert_eq!(told.error, None);
    let why = pull(&fake, broken.as_bytes()).await.unwrap_err();
    assert!(why.contains("ca.pem: "), "{why}");
    assert!(why.contains("it holds no PEM certificate"), "{why}");
}
