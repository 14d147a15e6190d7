//! Hosts that want time, or need it.

use super::*;

const SIZE: u32 = 300_000;
/// What comes before the cut, bytes.
const FIRST: usize = 100_000;

/// A registry with a blob that is cut once; what it is told to do then happens to those that come back for the rest.
async fn cut_and_then(change: impl FnOnce(&mut fake::Plan)) -> (Fake, Result<(), Error>) {
    let fake = Fake::http().await;
    let bytes: Vec<u8> = (0..SIZE).map(|n| (n % 251).to_le_bytes()[0]).collect();
    fake.put_blob(&fake::digest(&bytes), &bytes);
    fake.plan(|p| p.cut = Some((FIRST, 1)));
    let reference: Reference = fake.name("x").parse().unwrap();
    let session = nowhere().open(&reference, None).await.unwrap();
    let mut blob = session.blob(&descriptor(&bytes)).await.unwrap();
    let mut got = Vec::new();
    while got.len() < FIRST {
        got.extend_from_slice(&blob.chunk().await.unwrap().unwrap());
    }
    fake.plan(change);
    loop {
        match blob.chunk().await {
            Ok(Some(bytes)) => got.extend_from_slice(&bytes),
            Ok(None) => break,
            Err(error) => return (fake, Err(error)),
        }
    }
    assert_eq!(got, bytes);
    (fake, Ok(()))
}

#[tokio::test]
async fn a_registry_that_starts_again_in_the_middle_of_a_blob_is_waited_for() {
    let (fake, done) = cut_and_then(|p| p.fail = Some(("/blobs/".into(), 503, 3))).await;
    done.unwrap();
    assert_eq!(fake.log().len(), 5);
}

#[tokio::test]
async fn a_cut_blob_is_asked_for_again_when_the_registry_wants_it() {
    let busy = |after: &'static str, times: u32| {
        cut_and_then(move |p| {
            p.fail = Some(("/blobs/".into(), 429, times));
            p.retry_after = Some(after.into());
        })
    };
    let start = std::time::Instant::now();
    let (fake, done) = busy("2", 1).await;
    done.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(2));
    assert_eq!(fake.log().len(), 3);
    let (fake, done) = busy("18446744073709551615", 99).await;
    let text = done.unwrap_err().to_string();
    assert!(
        text.contains("left alone for 18446744073709551615 s"),
        "{text}"
    );
    assert_eq!(fake.log().len(), 2);
}

#[tokio::test]
async fn a_registry_that_is_too_busy_for_a_head_request_gets_no_other_at_once() {
    let fake = Fake::http().await;
    let digest = fake.put_image("x", "1", &simple());
    let reference: Reference = fake.name("x:1").parse().unwrap();
    let session = nowhere().open(&reference, None).await.unwrap();
    fake.plan(|p| {
        p.fail = Some(("/manifests/".into(), 429, 1));
        p.retry_after = Some("2".into());
    });
    let start = std::time::Instant::now();
    assert_eq!(session.peek(&reference.target()).await, None);
    let got = session.manifest(&reference.target()).await.unwrap();
    assert_eq!(got.digest, digest);
    assert!(start.elapsed() >= Duration::from_secs(2));
    let methods: Vec<_> = fake.log().into_iter().map(|seen| seen.method).collect();
    assert_eq!(methods, ["HEAD", "GET"]);
    // For longer than a pull takes: it is not asked at all.
    fake.plan(|p| {
        p.fail = Some(("/manifests/".into(), 503, 1));
        p.retry_after = Some("3600".into());
    });
    assert_eq!(session.peek(&reference.target()).await, None);
    let error = session.manifest(&reference.target()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("answered 503 for manifest"), "{text}");
    assert_eq!(fake.count("GET", "/manifests/"), 1);
}

#[tokio::test]
async fn what_a_proxy_says_of_its_server_passes_and_what_is_not_spoken_stays() {
    for (status, passes) in [
        (507, true),
        (520, true),
        (522, true),
        (529, true),
        (501, false),
        (505, false),
        (511, false),
        (418, false),
    ] {
        let fake = Fake::http().await;
        fake.put_image("x", "1", &simple());
        fake.plan(|p| {
            p.bearer = Some(None);
            p.fail = Some(("/manifests/".into(), status, 1));
        });
        let got = manifest(&nowhere(), &fake.name("x:1"), None).await;
        assert_eq!(got.is_ok(), passes, "{status}: {got:?}");
        fake.plan(|p| p.fail = Some(("/token".into(), status, 1)));
        let got = manifest(&nowhere(), &fake.name("x:1"), None).await;
        assert_eq!(got.is_ok(), passes, "token, {status}: {got:?}");
    }
}
