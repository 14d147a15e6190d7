use proptest::prelude::*;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};

use super::*;

/// The entries of a text as label, whether it has headers, and length.
fn read(text: &[u8]) -> Vec<(String, bool, Option<usize>)> {
    let entries = entries(text).into_iter();
    entries
        .map(|entry| (entry.label, entry.headers, entry.der.map(|der| der.len())))
        .collect()
}

fn made(change: impl FnOnce(&mut CertificateParams)) -> (Vec<u8>, String) {
    let mut wanted = CertificateParams::new(vec!["r.test".to_owned()]).unwrap();
    change(&mut wanted);
    let key = KeyPair::generate().unwrap();
    let certificate = wanted.self_signed(&key).unwrap();
    (certificate.der().to_vec(), certificate.pem())
}

#[test]
fn pem_is_read_as_others_write_it() {
    let one = |label: &str, headers, length| (label.to_owned(), headers, length);
    let good = one("X", false, Some(3));
    for text in [
        &b"-----BEGIN X-----\nAQID\n-----END X-----"[..],
        b"\xef\xbb\xbf-----BEGIN X-----\r\nAQ\r\nID\r\n-----END X-----\r\n",
        b"subject=\xe9\n-----BEGIN X-----\rAQID\r-----END X-----\r",
        b"  -----BEGIN X-----  \n  AQ ID\n\n-----END X-----\t\ntrailing",
    ] {
        assert_eq!(
            read(text),
            vec![good.clone()],
            "{}",
            String::from_utf8_lossy(text)
        );
    }
    // One that is broken spoils no other.
    for broken in [
        "-----BEGIN X-----\nAQ!D\n-----END X-----\n",
        "-----BEGIN X-----\nAQID\n",
        "-----BEGIN X-----\nAQID\n-----END Y-----\n",
    ] {
        let text = format!("{broken}-----BEGIN X-----\nAQID\n-----END X-----\n{broken}");
        let bad = one("X", false, None);
        let want = [bad.clone(), good.clone(), bad];
        assert_eq!(read(text.as_bytes()), want, "{broken}");
    }
    let locked = b"-----BEGIN K-----\nProc-Type: 4,ENCRYPTED\n\nAQID\n-----END K-----\n";
    assert!(read(locked)[0].1);
    assert_eq!(read(b"-----BEGIN X----\nAQID\n-----END X-----\n"), []);
}

#[test]
fn a_bundle_gives_what_can_be_used_and_names_the_rest() {
    let (der, pem) = made(|_| ());
    let junk = "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n";
    let headers = pem.replacen('\n', "\nx: y\n\n", 1);
    let trusted = pem.replace("CERTIFICATE", "TRUSTED CERTIFICATE");
    let text = format!(
        "# ours\n{junk}{pem}{headers}-----BEGIN X509 CRL-----\nAQID\n-----END X509 CRL-----\n{trusted}{pem}"
    );
    let (usable, others) = bundle(text.as_bytes()).unwrap();
    assert_eq!(usable, [der.clone(), der.clone()]);
    assert_eq!(others.len(), 4, "{others:?}");
    assert_eq!(others[0], "entry 1 is a broken certificate");
    assert_eq!(others[2], "entry 4 is no certificate but \"X509 CRL\"");
    for (text, want) in [
        (&b"nothing"[..], "it holds no PEM certificate"),
        (&der, "openssl x509 -inform der"),
        (trusted.as_bytes(), "OpenSSL's own form"),
        (junk.as_bytes(), "entry 1 is a broken certificate"),
        (b"", "it holds no PEM certificate"),
    ] {
        let why = bundle(text).unwrap_err();
        assert!(why.contains(want), "{why}");
    }
}

#[test]
fn only_an_authority_vouches_for_others() {
    let authority = |change: &dyn Fn(&mut CertificateParams)| {
        let facts = Facts::of(&made(|wanted| change(wanted)).0).unwrap();
        facts.authority
    };
    let ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert!(!authority(&|_| ()));
    assert!(!authority(&|wanted| wanted.is_ca = IsCa::ExplicitNoCa));
    assert!(authority(&|wanted| wanted.is_ca = ca));
    let usage = |usage: KeyUsagePurpose| {
        authority(&|wanted| {
            wanted.is_ca = ca;
            wanted.key_usages = vec![usage];
        })
    };
    assert!(usage(KeyUsagePurpose::KeyCertSign));
    assert!(!usage(KeyUsagePurpose::DigitalSignature));
}

#[test]
fn times_and_purposes_are_those_of_the_certificate() {
    let facts = |change: &dyn Fn(&mut CertificateParams)| {
        Facts::of(&made(|wanted| change(wanted)).0).unwrap()
    };
    let dated = facts(&|wanted| {
        wanted.not_before = rcgen::date_time_ymd(2000, 2, 29);
        wanted.not_after = rcgen::date_time_ymd(2100, 3, 1);
    });
    assert_eq!(
        (dated.not_before, dated.not_after),
        (951_782_400, 4_107_542_400)
    );
    assert_eq!(dated.fit(951_782_399), Err(Unfit::Early));
    assert_eq!(dated.fit(951_782_400), Ok(()));
    assert_eq!(dated.fit(4_107_542_401), Err(Unfit::Expired));
    let old = facts(&|wanted| wanted.not_before = rcgen::date_time_ymd(1950, 1, 1));
    assert_eq!(old.not_before, -631_152_000);
    let used = |usage: ExtendedKeyUsagePurpose| {
        let usages = vec![usage];
        facts(&|wanted| wanted.extended_key_usages = usages.clone()).fit(1_700_000_000)
    };
    assert_eq!(used(ExtendedKeyUsagePurpose::ServerAuth), Ok(()));
    assert_eq!(used(ExtendedKeyUsagePurpose::Any), Ok(()));
    assert_eq!(
        used(ExtendedKeyUsagePurpose::ClientAuth),
        Err(Unfit::Purpose)
    );
    assert_eq!(facts(&|_| ()).key, Key::Other("P-256"));
}

/// Made by OpenSSL: P-521, version 1 with a short key, RSASSA-PSS, Ed448 with a negative serial number, and an authority
/// of a long one that may sign no certificates and has no name.
#[test]
fn odd_certificates_are_read() {
    let (odd, others) = bundle(include_bytes!("../tests/certificates/odd.pem")).unwrap();
    assert_eq!(others, [""; 0]);
    let facts = odd.iter().map(|der| Facts::of(der).unwrap());
    let told: Vec<_> = facts
        .map(|facts| (facts.key.to_string(), facts.authority))
        .collect();
    let want = [
        ("P-521", true),
        ("RSA with 1024 bits", true),
        ("RSASSA-PSS", true),
        ("Ed448", true),
        ("P-256", false),
    ];
    assert_eq!(told, want.map(|(key, ca)| (key.to_owned(), ca)));
}

#[test]
fn what_an_authority_may_do_is_read() {
    let of = |change: &dyn Fn(&mut CertificateParams)| {
        let (der, _) = made(|wanted| change(wanted));
        (Facts::of(&der).unwrap(), der)
    };
    let (short, der) = of(&|wanted| wanted.is_ca = IsCa::Ca(BasicConstraints::Constrained(3)));
    assert_eq!((short.authority, short.longest), (true, Some(3)));
    assert!(short.is_its_own() && !short.is_beyond_go() && short.unknown().is_none());
    // One bit, in the part that is signed, and no other right is touched.
    let other = short.without_authority(&der).unwrap();
    let differing = der.iter().zip(&other).filter(|(a, b)| a != b);
    assert_eq!(differing.count(), 1);
    assert_ne!(signed(&der), signed(&other));
    let facts = Facts::of(&other).unwrap();
    assert_eq!((facts.authority, facts.longest), (false, Some(3)));
    assert_eq!(facts.without_authority(&other), None);
    let (plain, der) = of(&|_| ());
    assert_eq!((plain.longest, plain.without_authority(&der)), (None, None));
    let custom = |id: &[u64], critical| {
        let mut extension = rcgen::CustomExtension::from_oid_content(id, vec![5, 0]);
        extension.set_criticality(critical);
        let (facts, _) = of(&|wanted| wanted.custom_extensions = vec![extension.clone()]);
        (facts.is_beyond_go(), facts.unknown())
    };
    assert_eq!(custom(&[1, 2, 840, 5], false), (false, None));
    let odd = custom(&[1, 2, 840, 5], true);
    assert_eq!(odd, (true, Some("1.2.840.5".to_owned())));
    // Policies: Go knows them.
    let policies = custom(&[2, 5, 29, 32], true);
    assert_eq!(policies, (false, Some("2.5.29.32".to_owned())));
}

#[test]
fn subjects_are_called_by_a_name_in_quotes() {
    let called = |kind: rcgen::DnType, text: &str| {
        let (der, _) = made(|wanted| {
            wanted.distinguished_name = rcgen::DistinguishedName::new();
            wanted.distinguished_name.push(kind, text);
        });
        name(&Facts::of(&der).unwrap().subject)
    };
    let common = || rcgen::DnType::CommonName;
    assert_eq!(called(common(), "our CA"), "\"our CA\"");
    assert_eq!(called(common(), "a\n\u{1b}"), r#""a\n\u{1b}""#);
    assert_eq!(called(rcgen::DnType::OrganizationName, "o"), "\"o\"");
    assert_eq!(called(rcgen::DnType::CountryName, "DE"), "without a name");
    assert_eq!(name(&[0x31, 0x80]), "without a name");
}

#[test]
fn what_is_no_certificate_is_none() {
    let (der, _) = made(|_| ());
    assert!(Facts::of(&der).is_some());
    for length in 0..der.len() {
        assert_eq!(Facts::of(&der[..length]), None, "{length}");
    }
    let longer = [&der[..], b"x"].concat();
    assert_eq!(Facts::of(&longer), None);
    let huge = [&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff][..], &der].concat();
    assert_eq!(Facts::of(&huge), None);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Facts::of(&bytes);
        entries(&bytes);
    }

    #[test]
    fn a_changed_certificate_is_read_or_refused(at in 0usize..400, byte in any::<u8>()) {
        let (mut der, _) = made(|_| ());
        let at = at % der.len();
        der[at] = byte;
        let _ = Facts::of(&der);
    }
}
