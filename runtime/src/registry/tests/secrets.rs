//! What must not be shown to others, and tokens that come and go.

use super::*;

#[tokio::test]
async fn a_redirect_that_comes_back_brings_no_secrets_back() {
    let (fake, other) = (Fake::http().await, Fake::http().await);
    let made = simple();
    fake.put_image("x", "1", &made);
    fake.plan(|p| {
        p.basic = Some(("u".into(), "p".into()));
        p.redirect = Some(format!("http://{}", other.addr));
    });
    other.plan(|p| p.redirect = Some(format!("http://{}/back", fake.addr)));
    let text = format!(
        "server = \"http://{}\"\n[header]\nx-secret = \"canary\"",
        fake.addr
    );
    let (_dir, registry) = hosts(&fake.addr.to_string(), &text);
    let reference: Reference = fake.name("x:1").parse().unwrap();
    let session = registry
        .open(&reference, Some(&auth("u", "p")))
        .await
        .unwrap();
    let got = session
        .document(&descriptor(&made.config), MAX_CONFIG)
        .await
        .unwrap();
    assert_eq!(got, made.config);
    let log = fake.log();
    let shown = |seen: &fake::Seen| {
        ["authorization", "x-secret"].map(|name| seen.headers.contains_key(name))
    };
    let shown: Vec<_> = log.iter().map(shown).collect();
    assert_eq!(shown, [[false, true], [true, true], [false, false]]);
    assert!(log[2].path.starts_with("/back/"), "{log:?}");
    assert_eq!(other.log().len(), 1);
}

#[tokio::test]
async fn a_client_certificate_is_the_registrys_alone() {
    let (der, pem) = fake::client_certificate("client");
    let (fake, other) = (
        Fake::tls(Some(der.clone())).await,
        Fake::tls(Some(der)).await,
    );
    let made = simple();
    for fake in [&fake, &other] {
        fake.put_image("x", "1", &made);
    }
    let name = fake.addr.to_string();
    let text = format!("server = \"https://{name}\"\nskip_verify = true\nclient = \"own.pem\"\n");
    let (dir, registry) = hosts(&name, &text);
    std::fs::write(dir.path().join(&name).join("own.pem"), pem).unwrap();
    let reference: Reference = fake.name("x:1").parse().unwrap();
    let session = registry.open(&reference, None).await.unwrap();
    // Who is not shown one closes the connection.
    fake.plan(|p| p.redirect = Some(format!("https://{}", other.addr)));
    let error = session
        .document(&descriptor(&made.config), MAX_CONFIG)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(fake.count("GET", "/blobs/") > 0);
    let realm = |host: &str| format!("https://{host}:{}/token", other.addr.port());
    fake.plan(|p| {
        p.bearer = Some(None);
        p.realm = Some(realm("localhost"));
    });
    let error = manifest(&registry, &name_of(&fake), None)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(other.log().is_empty());
    // At the registry's own host it may be needed.
    fake.plan(|p| p.realm = Some(realm("127.0.0.1")));
    manifest(&registry, &name_of(&fake), None).await.unwrap();
    assert_eq!(other.log().len(), 1);
}

fn name_of(fake: &Fake) -> String {
    fake.name("x:1")
}

#[tokio::test]
async fn a_token_that_is_withdrawn_in_the_middle_of_a_blob_is_replaced() {
    let fake = Fake::http().await;
    let bytes = vec![7; 300_000];
    fake.put_blob(&fake::digest(&bytes), &bytes);
    fake.plan(|p| {
        p.bearer = Some(None);
        p.cut = Some((100_000, 1));
    });
    let reference: Reference = fake.name("x").parse().unwrap();
    let session = nowhere().open(&reference, None).await.unwrap();
    let mut blob = session.blob(&descriptor(&bytes)).await.unwrap();
    let mut got = Vec::new();
    while let Some(chunk) = blob.chunk().await.unwrap() {
        got.extend_from_slice(&chunk);
        if got.len() == 100_000 {
            fake.plan(|p| p.token = Some("an0ther".into()));
        }
    }
    assert_eq!(got, bytes);
    assert_eq!(fake.count("GET", "/token"), 2);
    let log = fake.log();
    let last = log.last().unwrap();
    assert_eq!(last.headers.get("range").unwrap(), "bytes=100000-");
    assert_eq!(last.headers.get("authorization").unwrap(), "Bearer an0ther");
    assert_eq!(log.len(), 6);
}

#[tokio::test]
async fn a_token_without_measure_is_refused() {
    let fake = Fake::http().await;
    fake.put_image("x", "1", &simple());
    fake.plan(|p| {
        p.bearer = Some(None);
        p.token = Some("t".repeat((64 << 10) + 1));
    });
    let error = manifest(&nowhere(), &fake.name("x:1"), None)
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains("a token of 65537 bytes"), "{text}");
}
