//! The client against a registry that misbehaves.

mod hostile;
mod issued;
mod mirrors;
mod node;
mod odd;
mod patience;
mod proxies;
mod redirects;
mod resume;
mod secrets;
mod told;
mod trust;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use oci_spec::image::Descriptor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::fake::{self, Fake, Pack};
use super::proxy::Proxies;
use super::*;
use crate::model::RegistryAuth;

fn auth(user: &str, password: &str) -> RegistryAuth {
    RegistryAuth {
        username: user.into(),
        password: password.into(),
        ..RegistryAuth::default()
    }
}

fn nowhere() -> Arc<Registry> {
    Registry::new(PathBuf::from("/nonexistent"))
}

fn hosts(registry: &str, text: &str) -> (tempfile::TempDir, Arc<Registry>) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join(registry)).unwrap();
    std::fs::write(dir.path().join(registry).join("hosts.toml"), text).unwrap();
    let registry = Registry::new(dir.path().to_owned());
    (dir, registry)
}

async fn manifest(
    registry: &Arc<Registry>,
    reference: &str,
    auth: Option<&RegistryAuth>,
) -> Result<Document, Error> {
    let reference: Reference = reference.parse().unwrap();
    let session = registry.open(&reference, auth).await?;
    session.manifest(&reference.target()).await
}

fn simple() -> fake::Made {
    let tar = fake::tar_of(&[("etc/hello", b"hello")]);
    fake::image(&[(tar, Pack::Gzip)], &serde_json::json!({}))
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    serde_json::from_value(fake::descriptor("application/octet-stream", bytes)).unwrap()
}

async fn fetch(registry: &Arc<Registry>, fake: &Fake, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let reference: Reference = fake.name("x").parse().unwrap();
    let session = registry.open(&reference, None).await?;
    session.document(&descriptor(bytes), 64 << 20).await
}

#[tokio::test]
async fn anonymous_bearer_tokens_are_fetched_once_and_cached() {
    let fake = Fake::http().await;
    let made = simple();
    let digest = fake.put_image("x", "1", &made);
    fake.plan(|p| p.bearer = Some(None));
    let registry = nowhere();
    let got = manifest(&registry, &fake.name("x:1"), None).await.unwrap();
    assert_eq!((got.digest, got.bytes), (digest, made.manifest.clone()));
    manifest(&registry, &fake.name("x:1"), None).await.unwrap();
    assert_eq!(fake.count("GET", "/token"), 1);
    assert_eq!(fake.count("GET", "/manifests/"), 3);
    let token = fake
        .log()
        .into_iter()
        .find(|s| s.path.contains("/token"))
        .unwrap();
    assert!(
        token.path.contains("scope=repository%3Ax%3Apull"),
        "{}",
        token.path
    );
    assert!(token.headers.get("authorization").is_none());
}

#[tokio::test]
async fn credentials_work_as_basic_as_bearer_and_as_refresh_token() {
    let fake = Fake::http().await;
    fake.put_image("x", "1", &simple());
    let (name, registry) = (fake.name("x:1"), nowhere());
    let user = ("u".to_owned(), "canary".to_owned());
    for bearer in [false, true] {
        fake.plan(|p| {
            p.basic = (!bearer).then(|| user.clone());
            p.bearer = bearer.then(|| Some(user.clone()));
        });
        manifest(&registry, &name, Some(&auth("u", "canary")))
            .await
            .unwrap();
        for wrong in [None, Some(auth("u", "canary2"))] {
            let error = manifest(&nowhere(), &name, wrong.as_ref())
                .await
                .unwrap_err();
            assert!(matches!(error, Error::Denied { .. }), "{error}");
            assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
        }
    }
    fake.plan(|p| p.refresh = Some("r3fresh".into()));
    let refresh = RegistryAuth {
        identity_token: "r3fresh".into(),
        ..RegistryAuth::default()
    };
    manifest(&nowhere(), &name, Some(&refresh)).await.unwrap();
    assert_eq!(fake.count("POST", "/token"), 1);
    assert!(
        fake.log()
            .iter()
            .any(|s| s.body.contains("grant_type=refresh_token"))
    );
}

#[tokio::test]
async fn a_stale_token_is_replaced() {
    let fake = Fake::http().await;
    fake.put_image("x", "1", &simple());
    fake.plan(|p| p.bearer = Some(None));
    let registry = nowhere();
    manifest(&registry, &fake.name("x:1"), None).await.unwrap();
    fake.plan(|p| {
        p.bearer = None;
        p.basic = Some(("u".into(), "p".into()));
    });
    let error = manifest(&registry, &fake.name("x:1"), None)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    fake.plan(|p| {
        p.basic = None;
        p.bearer = Some(None);
    });
    manifest(&registry, &fake.name("x:1"), None).await.unwrap();
}

#[tokio::test]
async fn redirects_lose_credentials_and_headers() {
    let (fake, other) = (Fake::http().await, Fake::http().await);
    let made = simple();
    fake.put_image("x", "1", &made);
    other.put_image("x", "1", &made);
    fake.plan(|p| {
        p.basic = Some(("u".into(), "p".into()));
        p.redirect = Some(format!("http://{}", other.addr));
    });
    let (_dir, registry) = hosts(
        &fake.addr.to_string(),
        &format!(
            "server = \"http://{}\"\n[header]\nx-secret = \"canary\"",
            fake.addr
        ),
    );
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
    let first = fake.log().pop().unwrap();
    assert!(first.headers.contains_key("authorization") && first.headers.contains_key("x-secret"));
    for seen in other.log() {
        for name in ["authorization", "cookie", "x-secret", "referer"] {
            assert!(!seen.headers.contains_key(name), "{name}: {seen:?}");
        }
    }
    // A 401 from there is answered with nothing, and its URL's signature is not told.
    other.plan(|p| p.basic = Some(("u".into(), "p".into())));
    let before = other.log().len();
    let error = session
        .document(&descriptor(&made.config), MAX_CONFIG)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    assert!(!format!("{error} {error:?}").contains("canary"), "{error}");
    assert_eq!(other.log().len(), before + 1);
    fake.plan(|p| p.redirect = Some(format!("http://{}/loop", fake.addr)));
    fake.plan(|p| p.basic = None);
    let error = session
        .document(&descriptor(&made.config), MAX_CONFIG)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("too many redirects"), "{error}");
}

#[tokio::test]
async fn tls_is_verified_and_never_left() {
    let (fake, plain) = (Fake::https().await, Fake::http().await);
    let made = simple();
    fake.put_image("x", "1", &made);
    let name = fake.addr.to_string();
    let server = format!("server = \"https://{name}\"\n");
    let (_d, untrusting) = hosts(&name, &server);
    let error = manifest(&untrusting, &fake.name("x:1"), None)
        .await
        .unwrap_err();
    assert!(
        error.to_string().starts_with("RegistryUnavailable: "),
        "{error}"
    );
    assert!(error.to_string().contains("certificate"), "{error}");
    // Asking again would not make it trusted.
    assert!(
        matches!(error, Error::Unavailable { lasting: true, .. }),
        "{error:?}"
    );
    let (dir, trusting) = hosts(&name, &format!("{server}ca = \"own.pem\""));
    std::fs::write(
        dir.path().join(&name).join("own.pem"),
        fake.ca.as_ref().unwrap(),
    )
    .unwrap();
    manifest(&trusting, &fake.name("x:1"), None).await.unwrap();
    let (_d, skipping) = hosts(&name, &format!("{server}skip_verify = true"));
    manifest(&skipping, &fake.name("x:1"), None).await.unwrap();
    fake.plan(|p| p.redirect = Some(format!("http://{}", plain.addr)));
    let reference: Reference = fake.name("x:1").parse().unwrap();
    let session = skipping.open(&reference, None).await.unwrap();
    let error = session
        .document(&descriptor(&made.config), MAX_CONFIG)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("leave TLS"), "{error}");
    assert!(plain.log().is_empty());
}

#[tokio::test]
async fn mirrors_are_asked_in_order_with_ns_and_without_credentials() {
    let (mirror, up) = (Fake::http().await, Fake::http().await);
    let made = simple();
    let digest = up.put_image("x", "1", &made);
    mirror.plan(|p| p.basic = Some(("u".into(), "p".into())));
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]",
        up.addr, mirror.addr
    );
    let (_dir, registry) = hosts("r.test", &text);
    let got = manifest(&registry, "r.test/x:1", Some(&auth("u", "p")))
        .await
        .unwrap();
    assert_eq!(got.digest, digest);
    let asked = mirror.log();
    assert_eq!(asked.len(), 1);
    assert!(asked[0].path.ends_with("?ns=r.test"), "{}", asked[0].path);
    assert!(!asked[0].headers.contains_key("authorization"));
    // A mirror that may not resolve is asked by digest only.
    let text = text.replace(", \"resolve\"", "");
    let (_dir, registry) = hosts("r.test", &text);
    manifest(&registry, "r.test/x:1", None).await.unwrap();
    assert_eq!(mirror.log().len(), 1);
    manifest(&registry, &format!("r.test/x@{digest}"), None)
        .await
        .unwrap();
    assert_eq!(mirror.log().len(), 2);
}

#[tokio::test]
async fn a_token_service_elsewhere_gets_no_credentials() {
    let (fake, thief) = (Fake::http().await, Fake::http().await);
    fake.put_image("x", "1", &simple());
    fake.plan(|p| {
        p.bearer = Some(Some(("u".into(), "p".into())));
        p.realm = Some(format!("http://localhost:{}/token", thief.addr.port()));
    });
    let error = manifest(&nowhere(), &fake.name("x:1"), Some(&auth("u", "p")))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("another domain"), "{error}");
    assert!(thief.log().is_empty());
    // Without credentials there is nothing to lose, and the token is good for this registry alone.
    fake.plan(|p| p.bearer = Some(None));
    manifest(&nowhere(), &fake.name("x:1"), None).await.unwrap();
    assert_eq!(thief.log().len(), 1);
    // The operator may know better.
    fake.plan(|p| p.bearer = Some(Some(("u".into(), "p".into()))));
    thief.plan(|p| p.bearer = Some(Some(("u".into(), "p".into()))));
    let knowing = Registry::new(Config {
        token_services: vec![format!("{}=localhost:{}", fake.addr, thief.addr.port())],
        ..Config::from(PathBuf::from("/nonexistent"))
    });
    manifest(&knowing, &fake.name("x:1"), Some(&auth("u", "p")))
        .await
        .unwrap();
    assert_eq!(thief.log().len(), 2);
}

#[tokio::test]
async fn a_busy_token_service_is_asked_again() {
    let fake = Fake::http().await;
    fake.put_image("x", "1", &simple());
    fake.plan(|p| {
        p.bearer = Some(None);
        p.fail = Some(("/token".into(), 503, 2));
    });
    manifest(&nowhere(), &fake.name("x:1"), None).await.unwrap();
    assert_eq!(fake.count("GET", "/token"), 3);
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_it_is_asked_for() {
    let (fake, pem) = Fake::mutual().await;
    fake.put_image("x", "1", &simple());
    let name = fake.addr.to_string();
    let server = format!("server = \"https://{name}\"\nskip_verify = true\n");
    let (_d, stranger) = hosts(&name, &server);
    let error = manifest(&stranger, &fake.name("x:1"), None).await;
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("RegistryUnavailable"), "{error}");
    let (dir, known) = hosts(&name, &format!("{server}client = \"own.pem\""));
    std::fs::write(dir.path().join(&name).join("own.pem"), &pem).unwrap();
    manifest(&known, &fake.name("x:1"), None).await.unwrap();
    // Of several, the one that the server trusts; the server is verified as ever.
    let ca = format!("server = \"https://{name}\"\nca = \"ca.pem\"\n");
    for (text, trusted) in [(&server, true), (&ca, true), (&ca, false)] {
        let several = "client = [\"other.pem\", \"own.pem\"]";
        let (dir, several) = hosts(&name, &format!("{text}{several}"));
        let write = |file: &str, text: &str| {
            std::fs::write(dir.path().join(&name).join(file), text).unwrap();
        };
        write("own.pem", &pem);
        write("other.pem", &fake::client_certificate("other").1);
        let stranger = fake::client_certificate("stranger").1;
        write(
            "ca.pem",
            fake.ca.as_ref().filter(|_| trusted).unwrap_or(&stranger),
        );
        let got = manifest(&several, &fake.name("x:1"), None).await;
        assert_eq!(got.is_ok(), trusted, "{got:?}");
    }
}

#[tokio::test]
async fn an_absent_registry_is_unavailable_and_an_absent_image_is_not_found() {
    let error = manifest(&nowhere(), "127.0.0.1:1/x:1", None)
        .await
        .unwrap_err();
    assert!(
        error.to_string().starts_with("RegistryUnavailable"),
        "{error}"
    );
    assert_eq!(error.kind(), Kind::Unknown);
    let fake = Fake::http().await;
    let error = manifest(&nowhere(), &fake.name("x:1"), None)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
}

#[tokio::test]
async fn manifests_that_lie_are_refused() {
    let fake = Fake::http().await;
    let refused = async |tag: &str, want: &str| {
        let error = manifest(&nowhere(), &fake.name(tag), None)
            .await
            .unwrap_err();
        assert!(error.to_string().contains(want), "{tag}: {error}");
    };
    fake.put_manifest("x", "huge", fake::MANIFEST, &vec![b' '; MAX_MANIFEST + 1]);
    refused("x:huge", "longer than").await;
    fake.put_manifest(
        "x",
        "old",
        "application/json",
        b"{\"schemaVersion\":1,\"fsLayers\":[]}",
    );
    refused("x:old", "schema 1").await;
    fake.put_manifest(
        "x",
        "both",
        fake::INDEX,
        b"{\"schemaVersion\":2,\"manifests\":[],\"layers\":[]}",
    );
    refused("x:both", "ambiguous").await;
    let other = fake::digest(b"other");
    fake.put_manifest("x", &other.to_string(), fake::MANIFEST, &simple().manifest);
    refused(&format!("x@{other}"), "sent other content").await;
}

#[tokio::test]
async fn cut_blobs_go_on_where_they_ended() {
    let bytes: Vec<u8> = (0..300_000_u32)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect();
    for no_ranges in [false, true] {
        let fake = Fake::http().await;
        fake.put_blob(&fake::digest(&bytes), &bytes);
        fake.plan(|p| {
            p.cut = Some((100_000, 2));
            p.no_ranges = no_ranges;
        });
        assert_eq!(fetch(&nowhere(), &fake, &bytes).await.unwrap(), bytes);
        let ranges: Vec<_> = fake
            .log()
            .iter()
            .map(|s| s.headers.contains_key("range"))
            .collect();
        assert_eq!(ranges, [false, true, true]);
    }
    let fake = Fake::http().await;
    fake.put_blob(&fake::digest(&bytes), &bytes);
    fake.plan(|p| p.cut = Some((0, 99)));
    let error = fetch(&nowhere(), &fake, &bytes).await.unwrap_err();
    assert!(matches!(error, Error::Broken { .. }), "{error}");
    assert_eq!(fake.log().len(), 4);
}

#[tokio::test]
async fn blobs_of_another_length_or_content_are_refused() {
    let fake = Fake::http().await;
    let want = b"what was promised".to_vec();
    for (sent, unsized_blobs, say) in [
        (
            &b"what was promised and more"[..],
            false,
            "it has 26 bytes, and its descriptor says 17",
        ),
        (b"what was", false, "it has 8 bytes"),
        (b"what was promised and more", true, "longer"),
        (b"what was", true, "it has 8 bytes"),
        (b"what Was promised", false, "other content"),
    ] {
        fake.plan(|p| p.unsized_blobs = unsized_blobs);
        fake.put_blob(&fake::digest(&want), sent);
        let error = fetch(&nowhere(), &fake, &want).await.unwrap_err();
        assert!(error.to_string().contains(say), "{error}");
    }
}

#[tokio::test]
async fn busy_registries_are_asked_again() {
    let fake = Fake::http().await;
    fake.put_image("x", "1", &simple());
    fake.plan(|p| p.fail = Some(("/manifests/".into(), 429, 2)));
    manifest(&nowhere(), &fake.name("x:1"), None).await.unwrap();
    assert_eq!(fake.log().len(), 3);
    fake.plan(|p| p.fail = Some(("/manifests/".into(), 503, 99)));
    let error = manifest(&nowhere(), &fake.name("x:1"), None)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("503") && error.to_string().contains("told to"),
        "{error}"
    );
}

#[tokio::test]
async fn a_slow_drip_is_waited_for() {
    let fake = Fake::http().await;
    let bytes = vec![7; 2000];
    fake.put_blob(&fake::digest(&bytes), &bytes);
    fake.plan(|p| p.drip = Some((200, Duration::from_millis(20))));
    assert_eq!(fetch(&nowhere(), &fake, &bytes).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_silent_registry_is_given_up() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let fake = Fake::http().await;
    let bytes = vec![7; 20_000];
    fake.put_blob(&fake::digest(&bytes), &bytes);
    fake.plan(|p| p.drip = Some((2000, Duration::from_secs(3600))));
    let mut registry = Registry::new(PathBuf::from("/nonexistent"));
    let inner = Arc::get_mut(&mut registry).unwrap();
    inner.clients = client::Clients::new(Some(Duration::from_millis(100)), Proxies::default());
    let name = format!("{}/x:1", silent.local_addr().unwrap());
    let error = manifest(&registry, &name, None).await.unwrap_err();
    assert!(
        error.to_string().starts_with("RegistryUnavailable"),
        "{error}"
    );
    // In the middle of a body: every try brings 2000 bytes, so it goes on and ends.
    assert_eq!(fetch(&registry, &fake, &bytes).await.unwrap(), bytes);
    assert_eq!(fake.log().len(), 10);
}

/// An image whose manifest comes byte by byte.
async fn trickling_documents() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = format!("{}/x:1", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = connection.read(&mut [0; 4096]).await;
                let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n";
                let mut sent = connection.write_all(head).await;
                while sent.is_ok() {
                    sent = connection.write_all(b" ").await;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        }
    });
    name
}

/// A registry that is never silent and never done.
#[tokio::test]
async fn a_trickle_is_given_up() {
    let fake = Fake::http().await;
    let bytes = vec![7; 20_000];
    fake.put_blob(&fake::digest(&bytes), &bytes);
    let mut registry = Registry::new(PathBuf::from("/nonexistent"));
    let inner = Arc::get_mut(&mut registry).unwrap();
    inner.clients = client::Clients::new(Some(Duration::from_millis(200)), Proxies::default());
    fake.plan(|p| p.drip = Some((5, Duration::from_millis(10))));
    let slow = |error: Error| {
        let text = error.to_string();
        assert!(text.contains("less than 1024 bytes a second"), "{text}");
    };
    slow(fetch(&registry, &fake, &bytes).await.unwrap_err());
    // One request, not one after the other.
    assert_eq!(fake.count("GET", "/blobs/"), 1);
    let trickle = trickling_documents().await;
    slow(manifest(&registry, &trickle, None).await.unwrap_err());
    // Cut after every few bytes, it is no faster; and a slow reader is no slow host.
    fake.plan(|p| p.drip = Some((5, Duration::from_secs(3600))));
    slow(fetch(&registry, &fake, &bytes).await.unwrap_err());
    fake.plan(|p| p.drip = Some((2000, Duration::from_millis(1))));
    let reference: Reference = fake.name("x").parse().unwrap();
    let session = registry.open(&reference, None).await.unwrap();
    let mut blob = session.blob(&descriptor(&bytes)).await.unwrap();
    let mut came = 0;
    while let Some(bytes) = blob.chunk().await.unwrap() {
        came += bytes.len();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(came, bytes.len());
}

#[tokio::test]
async fn a_bad_hosts_file_stops_the_pull_and_is_named() {
    let (dir, registry) = hosts("r.test", "host = 1");
    let error = manifest(&registry, "r.test/x", None).await.unwrap_err();
    let path = dir.path().join("r.test/hosts.toml");
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "{error}"
    );
    assert!(Path::new(&path).exists());
    assert_eq!(error.kind(), Kind::FailedPrecondition);
}
