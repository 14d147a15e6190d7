//! Downloads that go on.

use super::*;

async fn rest(fake: &Fake, bytes: &[u8], from: Resume) -> (u64, Option<String>, Vec<u8>) {
    let reference: Reference = fake.name("x").parse().unwrap();
    let session = nowhere().open(&reference, None).await.unwrap();
    let mut blob = session
        .resume(&descriptor(bytes), Some(from))
        .await
        .unwrap();
    let (start, version) = (blob.start(), blob.version().map(str::to_owned));
    let mut got = Vec::new();
    while let Some(chunk) = blob.chunk().await.unwrap() {
        got.extend_from_slice(&chunk);
    }
    (start, version, got)
}

#[tokio::test]
async fn a_download_goes_on_where_it_ended_or_says_that_it_starts_over() {
    let fake = Fake::http().await;
    let bytes = b"0123456789".to_vec();
    fake.put_blob(&fake::digest(&bytes), &bytes);
    fake.plan(|p| p.etag = Some("\"one\"".into()));
    let at = |offset: u64, version: Option<&str>| Resume {
        offset,
        version: version.map(str::to_owned),
    };
    let (start, version, got) = rest(&fake, &bytes, at(4, None)).await;
    assert_eq!((start, got.as_slice()), (4, &b"456789"[..]));
    assert_eq!(version.as_deref(), Some("\"one\""));
    let (start, ..) = rest(&fake, &bytes, at(4, Some("\"one\""))).await;
    assert_eq!(start, 4);
    assert_eq!(fake.log()[1].headers.get("if-range").unwrap(), "\"one\"");
    // Another version, a server without ranges, one that refuses them, and more than there is.
    let (start, _, got) = rest(&fake, &bytes, at(4, Some("\"two\""))).await;
    assert_eq!((start, &got), (0, &bytes));
    fake.plan(|p| p.no_ranges = true);
    let (start, _, got) = rest(&fake, &bytes, at(4, None)).await;
    assert_eq!((start, &got), (0, &bytes));
    fake.plan(|p| p.refuse_ranges = true);
    let (start, _, got) = rest(&fake, &bytes, at(4, None)).await;
    assert_eq!((start, &got), (0, &bytes));
    for beyond in [10, 99] {
        let (start, _, got) = rest(&fake, &bytes, at(beyond, None)).await;
        assert_eq!((start, &got), (0, &bytes));
    }
    fake.plan(|p| p.etag = Some("W/\"weak\"".into()));
    let (_, version, _) = rest(&fake, &bytes, at(0, None)).await;
    assert_eq!(version, None);
}
