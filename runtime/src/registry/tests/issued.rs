//! What authorities may vouch for, and what is said of a certificate for which none does.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, KeyUsagePurpose, NameConstraints, SanType,
};

use super::super::certificate::{Facts, entries};
use super::trust::{HERE, Own, authority, own, pull};
use super::*;

type Change = fn(&mut CertificateParams);

fn same(_: &mut CertificateParams) {}

/// An authority that issues itself.
fn root(change: Change) -> Own {
    own(&[], &rcgen::PKCS_ECDSA_P256_SHA256, |wanted| {
        called(wanted, "our root");
        authority(wanted);
        change(wanted);
    })
}

fn called(wanted: &mut CertificateParams, name: &str) {
    wanted.distinguished_name.push(DnType::CommonName, name);
}

fn below(issuer: &Own, change: Change) -> Own {
    issuer.issue_as(&[], |wanted| {
        called(wanted, "our intermediate");
        authority(wanted);
        change(wanted);
    })
}

/// As `openssl req -x509 -CA ca.crt -CAkey ca.key` makes it: a server's, and an authority's as well.
fn leaf(issuer: &Own, change: Change) -> Own {
    issuer.issue_as(HERE, |wanted| {
        called(wanted, "our registry");
        authority(wanted);
        change(wanted);
    })
}

fn plain(issuer: &Own, change: Change) -> Own {
    issuer.issue_as(HERE, |wanted| {
        called(wanted, "our registry");
        change(wanted);
    })
}

/// What a pull says from a server that shows these, the first its own, while the last is named.
async fn shown(chain: &[&Own], named: &Own) -> Result<(), String> {
    let certificates = chain.iter().map(|one| one.certificate.der().clone());
    let key = chain[0].key.serialize_der();
    let fake = Fake::showing(certificates.collect(), key, String::new(), None).await;
    fake.put_image("x", "1", &simple());
    pull(&fake, named.pem().as_bytes()).await
}

async fn refused(chain: &[&Own], named: &Own, want: &str) {
    let why = shown(chain, named).await.unwrap_err();
    assert!(why.contains(want), "{want}: {why}");
    for raw in [
        "Error",
        "Context",
        "UnknownIssuer",
        "Violation",
        "invalid peer",
    ] {
        assert!(!why.contains(raw), "{why}");
    }
}

const CONSTRAINED: Change = |wanted| {
    wanted.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("example.test".to_owned())],
        excluded_subtrees: Vec::new(),
    });
};
const SHORT: Change = |wanted| wanted.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
const EXPIRED: Change = |wanted| wanted.not_after = rcgen::date_time_ymd(2020, 1, 1);
const EARLY: Change = |wanted| wanted.not_before = rcgen::date_time_ymd(2090, 1, 1);
const CLIENTS: Change =
    |wanted| wanted.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
const ANY: Change = |wanted| wanted.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
const SIGNS_NOT: Change = |wanted| wanted.key_usages = vec![KeyUsagePurpose::DigitalSignature];
const CRITICAL: Change = |wanted| {
    let mut odd = CustomExtension::from_oid_content(&[1, 2, 840, 5], vec![5, 0]);
    odd.set_criticality(true);
    wanted.custom_extensions = vec![odd];
};
const OTHER: Change = |wanted| {
    let name = "other.test".try_into().unwrap();
    wanted.subject_alt_names = vec![SanType::DnsName(name)];
};

/// Such a certificate vouches for nobody here; everything else of it is verified, and of those above it.
#[tokio::test]
async fn a_server_whose_certificate_is_an_authoritys_too_is_verified_as_any_other() {
    let root = root(same);
    shown(&[&leaf(&root, same)], &root).await.unwrap();
    shown(&[&leaf(&root, SHORT)], &root).await.unwrap();
    let between = below(&root, same);
    let last = leaf(&between, same);
    shown(&[&last, &between], &root).await.unwrap();
    shown(&[&last], &between).await.unwrap();
    // What it is itself is none of those between it and its authority.
    let short = below(&root, SHORT);
    shown(&[&leaf(&short, same), &short], &root).await.unwrap();
    for (change, want) in [
        (OTHER, "is for other.test and not for 127.0.0.1"),
        (EXPIRED, "its certificate has expired"),
        (EARLY, "its certificate is not valid yet"),
        (CLIENTS, "its certificate is not one for servers"),
        (
            CRITICAL,
            "its certificate has a critical extension that is not known here (1.2.840.5)",
        ),
    ] {
        refused(&[&leaf(&root, change)], &root, want).await;
        refused(&[&plain(&root, change)], &root, want).await;
    }
    let chain = [&last];
    refused(&chain, &root, "has issued it, but \"our intermediate\"").await;
    let constrained = self::root(CONSTRAINED);
    refused(
        &[&leaf(&constrained, same)],
        &constrained,
        "(nameConstraints)",
    )
    .await;
}

#[tokio::test]
async fn the_signature_is_that_of_the_whole_certificate() {
    let (root, other) = (root(same), root(same));
    let last = leaf(&root, same);
    refused(
        &[&last],
        &other,
        "the signature of its certificate is not that of the authority",
    )
    .await;
    // Somebody has taken from it what makes it an authority's.
    let der = last.certificate.der();
    let facts = Facts::of(der).unwrap();
    let changed = facts.without_authority(der).unwrap();
    let key = last.key.serialize_der();
    let fake = Fake::showing(vec![changed.into()], key, String::new(), None).await;
    let why = pull(&fake, root.pem().as_bytes()).await.unwrap_err();
    assert!(why.contains("the signature of its certificate"), "{why}");
    // Or has added a name.
    let mut changed = der.to_vec();
    let at = changed
        .windows(9)
        .position(|part| part == b"localhost")
        .unwrap();
    changed[at] = b'm';
    let key = last.key.serialize_der();
    let fake = Fake::showing(vec![changed.into()], key, String::new(), None).await;
    let why = pull(&fake, root.pem().as_bytes()).await.unwrap_err();
    assert!(why.contains("the signature of its certificate"), "{why}");
}

/// As in Go, an authority is no better than it says, named or not.
#[tokio::test]
async fn an_authority_vouches_for_what_it_says_and_while_it_is_valid() {
    for (change, want) in [
        (EXPIRED, "has expired: renew it"),
        (EARLY, "is not valid yet"),
        (CLIENTS, "its extendedKeyUsage lacks serverAuth"),
        (
            CRITICAL,
            "has a critical extension that is not known here (1.2.840.5)",
        ),
    ] {
        let root = root(change);
        for last in [leaf(&root, same), plain(&root, same)] {
            let why = shown(&[&last], &root).await.unwrap_err();
            let whose = "the authority \"our root\" of /";
            assert!(why.contains(want) && why.contains(whose), "{why}");
        }
    }
    let short = root(SHORT);
    shown(&[&plain(&short, same)], &short).await.unwrap();
    let between = below(&short, same);
    let want = "the authority \"our root\" of ";
    refused(&[&plain(&between, same), &between], &short, want).await;
    refused(&[&leaf(&between, same), &between], &short, "(pathlen)").await;
    // One that was renewed, with the old one still there.
    let old = root(EXPIRED);
    let last = plain(&old, same);
    let both = format!(
        "{}{}",
        old.pem(),
        old.again(|wanted| {
            wanted.not_after = rcgen::date_time_ymd(2090, 1, 1);
        })
        .pem()
    );
    let chain = vec![last.certificate.der().clone()];
    let fake = Fake::showing(chain, last.key.serialize_der(), String::new(), None).await;
    fake.put_image("x", "1", &simple());
    pull(&fake, both.as_bytes()).await.unwrap();
    pull(&fake, old.pem().as_bytes()).await.unwrap_err();
}

#[tokio::test]
async fn it_is_said_which_certificate_does_not_do() {
    let root = root(same);
    let whose = "the certificate of the authority \"our intermediate\" that it sends";
    for (change, want) in [
        (EXPIRED, "has expired"),
        (EARLY, "is not valid yet"),
        (
            CLIENTS,
            "is not one for servers: its extendedKeyUsage lacks serverAuth",
        ),
        (
            CRITICAL,
            "has a critical extension that is not known here (1.2.840.5)",
        ),
        (
            CONSTRAINED,
            "vouches for certain names only (nameConstraints)",
        ),
        (SIGNS_NOT, "may not vouch for others"),
        (
            |wanted| wanted.is_ca = IsCa::ExplicitNoCa,
            "may not vouch for others",
        ),
    ] {
        let between = below(&root, change);
        for last in [leaf(&between, same), plain(&between, same)] {
            refused(&[&last, &between], &root, &format!("{whose} {want}")).await;
        }
    }
    let between = below(&root, ANY);
    shown(&[&plain(&between, ANY), &between], &root)
        .await
        .unwrap();
    refused(
        &[&plain(&root, |wanted| {
            let name = "127.0.0.1".try_into().unwrap();
            wanted.subject_alt_names = vec![SanType::DnsName(name)];
        })],
        &root,
        "its certificate has the address 127.0.0.1 as a name (DNS:127.0.0.1), and only as an address does it count: make \
         one with `-addext subjectAltName=IP:127.0.0.1`",
    )
    .await;
    let alone = own(HERE, &rcgen::PKCS_ECDSA_P256_SHA256, authority);
    refused(
        &[&alone],
        &root,
        "it is its own authority, and nobody has named it",
    )
    .await;
}

/// Made by OpenSSL: an authority whose key has 1024 bits, a server's certificate that it has issued, and its key.
#[tokio::test]
async fn a_short_key_of_an_authority_is_told_as_such() {
    let pem = include_bytes!("certificates/short.pem");
    let mut all = entries(pem).into_iter().map(|entry| entry.der.unwrap());
    let (_, last, key) = (all.next(), all.next().unwrap(), all.next().unwrap());
    let fake = Fake::showing(vec![last.into()], key, String::new(), None).await;
    let end = "-----END CERTIFICATE-----\n";
    let authority = std::str::from_utf8(pem).unwrap().split_inclusive(end);
    let authority = authority.take(1).collect::<String>();
    let why = pull(&fake, authority.as_bytes()).await.unwrap_err();
    assert!(
        why.contains("its certificate is signed by the authority \"short\" of /")
            && why
                .contains("with a key of the kind RSA with 1024 bits, which is not verified here"),
        "{why}"
    );
}
