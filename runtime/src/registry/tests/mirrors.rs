//! Several hosts, some of which misbehave.

use super::*;

/// `server` as the registry's own, and the others as its mirrors.
fn chain_of(mirrors: &[String], server: &str) -> (tempfile::TempDir, Arc<Registry>) {
    let mut text = format!("server = \"{server}\"\n");
    for mirror in mirrors {
        text.push_str(&format!("[host.\"{mirror}\"]\n"));
    }
    hosts("r.test", &text)
}

fn url(fake: &Fake) -> String {
    format!("http://{}", fake.addr)
}

/// Nobody listens there.
const NOBODY: &str = "http://127.0.0.1:1";

#[tokio::test]
async fn a_mirror_that_fails_costs_one_request_and_the_next_is_asked() {
    let up = Fake::http().await;
    let digest = up.put_image("x", "1", &simple());
    let broken = Fake::http().await;
    for (plan, want) in [
        (429, "429"),
        (503, "503"),
        (404, "has no manifest"),
        (403, "denies access"),
        (401, "denies access"),
    ] {
        broken.plan(|p| p.fail = Some(("/v2/".into(), plan, 99)));
        let mirrors = [NOBODY.to_owned(), url(&broken)];
        let (_dir, registry) = chain_of(&mirrors, &url(&up));
        let before = broken.log().len();
        let start = std::time::Instant::now();
        let got = manifest(&registry, "r.test/x:1", None).await.unwrap();
        assert_eq!(got.digest, digest, "{want}");
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{want}: it waited"
        );
        assert_eq!(broken.log().len(), before + 1, "{want}");
        // And when nobody has it, everybody's word is in the error.
        let error = manifest(&registry, "r.test/none:1", None)
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("has no manifest") && text.contains(want),
            "{text}"
        );
        assert!(text.contains("127.0.0.1:1: "), "{text}");
        assert_eq!(error.kind(), Kind::NotFound, "{text}");
    }
}

#[tokio::test]
async fn a_manifest_of_another_digest_leads_to_the_next_host() {
    let (liar, up) = (Fake::http().await, Fake::http().await);
    let digest = up.put_image("x", "1", &simple());
    // By digest: other bytes under the name.
    let other = fake::image(&[], &serde_json::json!({"User": "other"}));
    liar.put_manifest("x", &digest.to_string(), fake::MANIFEST, &other.manifest);
    let (_dir, registry) = chain_of(&[url(&liar)], &url(&up));
    let got = manifest(&registry, &format!("r.test/x@{digest}"), None).await;
    assert_eq!(got.unwrap().digest, digest);
    // By tag: bytes that are not those that the registry speaks of.
    liar.put_manifest("x", "1", fake::MANIFEST, &other.manifest);
    liar.plan(|p| p.lie = true);
    let got = manifest(&registry, "r.test/x:1", None).await.unwrap();
    assert_eq!(got.digest, digest);
    assert_eq!(liar.log().len(), 2);
}

#[tokio::test]
async fn a_path_that_overrides_is_asked_as_it_is_written() {
    let fake = Fake::http().await;
    let digest = fake.put_image("cache/x", "1", &simple());
    let text = |more: &str| {
        let server = format!("server = \"{NOBODY}\"\n");
        format!(
            "{server}[host.\"{}/v2/cache\"]\ncapabilities = [\"pull\", \"resolve\"]\n{more}",
            url(&fake)
        )
    };
    let (_dir, registry) = hosts("r.test", &text("override_path = true"));
    let got = manifest(&registry, "r.test/x:1", None).await.unwrap();
    assert_eq!(got.digest, digest);
    // Without it the API is below the path.
    let (_dir, registry) = hosts("r.test", &text(""));
    assert!(manifest(&registry, "r.test/x:1", None).await.is_err());
    let paths: Vec<_> = fake.log().into_iter().map(|seen| seen.path).collect();
    assert_eq!(
        paths,
        [
            "/v2/cache/x/manifests/1?ns=r.test",
            "/v2/cache/v2/x/manifests/1?ns=r.test"
        ]
    );
}

#[tokio::test]
async fn the_default_serves_all_registries_and_is_told_which() {
    let (fake, own) = (Fake::http().await, Fake::http().await);
    let made = simple();
    for repository in ["x", "library/x"] {
        fake.put_image(repository, "1", &made);
    }
    let (dir, registry) = hosts("_default", &format!("[host.\"{}\"]", url(&fake)));
    for name in ["a.test/x:1", "b.test:5000/x:1", "docker.io/x:1"] {
        manifest(&registry, name, None).await.unwrap();
    }
    let spaces: Vec<_> = fake
        .log()
        .iter()
        .map(|seen| seen.path.split_once('?').unwrap().1.to_owned())
        .collect();
    assert_eq!(spaces, ["ns=a.test", "ns=b.test%3A5000", "ns=docker.io"]);
    // Blobs as well, and a registry with a file of its own does not go there.
    let reference: Reference = "a.test/x".parse().unwrap();
    let session = registry.open(&reference, None).await.unwrap();
    let config = descriptor(&made.config);
    session.document(&config, MAX_CONFIG).await.unwrap();
    assert_eq!(fake.count("GET", "?ns=a.test"), 2);
    own.put_image("x", "1", &made);
    std::fs::create_dir(dir.path().join("a.test")).unwrap();
    let text = format!("server = \"{}\"", url(&own));
    std::fs::write(dir.path().join("a.test/hosts.toml"), text).unwrap();
    manifest(&registry, "a.test/x:1", None).await.unwrap();
    assert_eq!((fake.log().len(), own.log().len()), (4, 1));
}

async fn blob_of(registry: &Arc<Registry>, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let reference: Reference = "r.test/x".parse().unwrap();
    let session = registry.open(&reference, None).await?;
    session.document(&descriptor(bytes), 64 << 20).await
}

#[tokio::test]
async fn a_blob_goes_on_at_another_host_where_it_was_cut() {
    let (cutter, up) = (Fake::http().await, Fake::http().await);
    let bytes: Vec<u8> = (0..300_000_u32)
        .map(|n| (n % 251).to_le_bytes()[0])
        .collect();
    for fake in [&cutter, &up] {
        fake.put_blob(&fake::digest(&bytes), &bytes);
    }
    // It sends a third, and then nothing at all.
    cutter.plan(|p| p.cut = Some((100_000, 1)));
    let (_dir, registry) = chain_of(&[url(&cutter)], &url(&up));
    let reference: Reference = "r.test/x".parse().unwrap();
    let session = registry.open(&reference, None).await.unwrap();
    let mut blob = session.blob(&descriptor(&bytes)).await.unwrap();
    let mut got = Vec::new();
    while let Some(chunk) = blob.chunk().await.unwrap() {
        got.extend_from_slice(&chunk);
        if got.len() == 100_000 {
            cutter.plan(|p| p.fail = Some(("/blobs/".into(), 404, 99)));
        }
    }
    assert_eq!(got, bytes);
    assert_eq!(blob.host(), up.addr.to_string());
    let asked = up.log().remove(0);
    assert_eq!(asked.headers.get("range").unwrap(), "bytes=100000-");
}

#[tokio::test]
async fn a_blob_that_is_damaged_or_of_another_length_is_taken_from_the_next_host() {
    let (liar, up) = (Fake::http().await, Fake::http().await);
    let bytes = b"what was promised".to_vec();
    up.put_blob(&fake::digest(&bytes), &bytes);
    liar.put_blob(&fake::digest(&bytes), &bytes);
    liar.plan(|p| p.damage = true);
    let (_dir, registry) = chain_of(&[url(&liar)], &url(&up));
    assert_eq!(blob_of(&registry, &bytes).await.unwrap(), bytes);
    assert_eq!((liar.log().len(), up.log().len()), (1, 1));
    liar.put_blob(&fake::digest(&bytes), b"too short");
    assert_eq!(blob_of(&registry, &bytes).await.unwrap(), bytes);
    assert_eq!((liar.log().len(), up.log().len()), (2, 2));
    // Both lie: it ends.
    up.plan(|p| p.damage = true);
    liar.put_blob(&fake::digest(&bytes), &bytes);
    let error = blob_of(&registry, &bytes).await.unwrap_err();
    assert!(error.to_string().contains("sent other content"), "{error}");
}

/// A mirror whose bytes are wrong, and which never sends all of them.
#[tokio::test]
async fn a_good_host_is_not_condemned_for_what_another_began() {
    let (liar, up) = (Fake::http().await, Fake::http().await);
    let bytes = vec![7; 400_000];
    for fake in [&liar, &up] {
        fake.put_blob(&fake::digest(&bytes), &bytes);
    }
    liar.plan(|p| {
        p.damage = true;
        p.no_ranges = true;
        p.cut = Some((250_000, 99));
    });
    let (_dir, registry) = chain_of(&[url(&liar)], &url(&up));
    assert_eq!(blob_of(&registry, &bytes).await.unwrap(), bytes);
    let ranges: Vec<_> = up
        .log()
        .iter()
        .map(|seen| seen.headers.contains_key("range"))
        .collect();
    assert_eq!(ranges, [true, false]);
}

#[tokio::test]
async fn who_sent_wrong_bytes_alone_is_condemned_and_the_others_get_their_turn() {
    let (cutter, liar) = (Fake::http().await, Fake::http().await);
    let bytes = vec![7; 400_000];
    for fake in [&cutter, &liar] {
        fake.put_blob(&fake::digest(&bytes), &bytes);
    }
    liar.plan(|p| p.damage = true);
    // As often as it takes to be given up, and never again.
    cutter.plan(|p| {
        p.no_ranges = true;
        p.cut = Some((100_000, 4));
    });
    let (_dir, registry) = chain_of(&[url(&cutter)], &url(&liar));
    assert_eq!(blob_of(&registry, &bytes).await.unwrap(), bytes);
    assert_eq!((cutter.log().len(), liar.log().len()), (5, 2));
    // One that must send it alone and cannot is not helped by another.
    cutter.plan(|p| p.cut = Some((100_000, 99)));
    let error = blob_of(&registry, &bytes).await.unwrap_err().to_string();
    assert!(error.contains("incompletely"), "{error}");
}

#[tokio::test]
async fn a_registry_is_left_alone_for_as_long_as_it_asks() {
    let fake = Fake::http().await;
    fake.put_image("x", "1", &simple());
    let soon = || httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(3));
    for after in [|| "2".to_owned(), soon] {
        let after = after();
        fake.plan(|p| {
            p.fail = Some(("/manifests/".into(), 429, 1));
            p.retry_after = Some(after.clone());
        });
        let start = std::time::Instant::now();
        manifest(&nowhere(), &fake.name("x:1"), None).await.unwrap();
        let waited = start.elapsed();
        // A date has no fractions of a second.
        assert!(waited >= Duration::from_millis(1900), "{after}: {waited:?}");
    }
    fake.plan(|p| {
        p.fail = Some(("/manifests/".into(), 429, 99));
        p.retry_after = Some("3600".into());
    });
    let before = fake.log().len();
    let error = manifest(&nowhere(), &fake.name("x:1"), None)
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("left alone for 3600 s"),
        "{error}"
    );
    assert_eq!(fake.log().len(), before + 1);
}

#[tokio::test]
async fn every_step_is_explained_and_no_secret_told() {
    let (down, up) = (Fake::http().await, Fake::http().await);
    let made = simple();
    let inner = up.put_image("x", "inner", &made);
    let digest = up.put_manifest("x", "1", fake::INDEX, &fake::index_of(&made.manifest));
    up.plan(|p| p.bearer = Some(Some(("u".into(), "canary".into()))));
    down.plan(|p| p.fail = Some(("/v2/".into(), 503, 99)));
    let text = format!(
        "server = \"{}\"\n[host.\"{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n[host.\"{}\".header]\nx-key = \"canary\"\n",
        url(&up),
        url(&down),
        url(&down)
    );
    let (dir, registry) = hosts("r.test", &text);
    let reference: Reference = "r.test/x:1".parse().unwrap();
    let told = explain(&registry, &reference, Some(&auth("u", "canary"))).await;
    assert_eq!(told.error, None);
    assert_eq!(told.hosts_file, Some(dir.path().join("r.test/hosts.toml")));
    assert_eq!(told.hosts[0].headers, ["x-key"]);
    assert_eq!(
        (told.hosts[0].role.as_str(), told.hosts[1].role.as_str()),
        ("mirror", "server")
    );
    assert_eq!(told.hosts[1].credentials, "of the request");
    let image = told.image.as_ref().unwrap();
    assert_eq!(image.digest, digest.to_string());
    assert_eq!(image.manifest, inner.to_string());
    assert_eq!((image.id.clone(), image.layers), (made.id.to_string(), 1));
    assert!(image.platform.starts_with("linux/"), "{image:?}");
    let first = &told.steps[0];
    assert_eq!(first.exchanges[0].status, Some(503));
    assert_eq!(first.next.as_deref(), Some("the next host is asked"));
    let statuses: Vec<_> = told.steps[1].exchanges.iter().map(|e| e.status).collect();
    assert_eq!(statuses, [Some(401), Some(200), Some(200)]);
    assert!(told.steps[1].exchanges[1].url.ends_with("/token"));
    assert!(!format!("{told:?}").contains("canary"), "{told:?}");
    // What cannot be had is explained as well.
    let reference: Reference = "r.test/none:1".parse().unwrap();
    let told = explain(&registry, &reference, None).await;
    assert!(told.error.is_some() && told.image.is_none());
    assert!(told.steps.len() >= 2, "{told:?}");
}
