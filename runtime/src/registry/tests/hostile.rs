//! Registries that say nothing, too much, or something else than they send.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpListener;

use super::*;

/// Takes connections and never says a word.
async fn silent() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.unwrap()
}

fn impatient(hosts: PathBuf) -> Arc<Registry> {
    Registry::new(Config {
        silence: Some(Duration::from_millis(200)),
        ..Config::from(hosts)
    })
}

#[tokio::test]
async fn silence_ends_wherever_it_is() {
    let silent = silent().await;
    let port = silent.local_addr().unwrap().port();
    let start = std::time::Instant::now();
    let unavailable = |error: Error| {
        let text = error.to_string();
        assert!(text.starts_with("RegistryUnavailable"), "{text}");
    };
    // At a HEAD request: nobody knows, which is no error.
    let registry = impatient(PathBuf::from("/nonexistent"));
    let reference: Reference = format!("127.0.0.1:{port}/x:1").parse().unwrap();
    let session = registry.open(&reference, None).await.unwrap();
    assert_eq!(session.peek(&reference.target()).await, None);
    assert!(start.elapsed() < Duration::from_secs(2));
    // At the token service.
    let fake = Fake::http().await;
    fake.put_image("x", "1", &simple());
    fake.plan(|p| {
        p.bearer = Some(None);
        p.realm = Some(format!("http://127.0.0.1:{port}/token"));
    });
    unavailable(
        manifest(&registry, &fake.name("x:1"), None)
            .await
            .unwrap_err(),
    );
    // In the TLS handshake.
    let name = format!("127.0.0.1:{port}");
    let (dir, _) = hosts(&name, &format!("server = \"https://{name}\""));
    let registry = impatient(dir.path().to_owned());
    unavailable(
        manifest(&registry, &format!("{name}/x:1"), None)
            .await
            .unwrap_err(),
    );
    // Two times four tries and the pauses between them.
    assert!(start.elapsed() < Duration::from_secs(20));
}

/// Answers every request with these bytes, then with the others again and again until nobody reads them.
/// The number is that of the bytes it got rid of.
async fn script(head: Vec<u8>, more: Option<Vec<u8>>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = format!("{}/x:1", listener.local_addr().unwrap());
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = connection.read(&mut [0; 4096]).await;
            let mut alive = connection.write_all(&head).await.is_ok();
            while let Some(more) = more.as_ref().filter(|_| alive) {
                alive = connection.write_all(more).await.is_ok();
                count.fetch_add(more.len(), Ordering::Relaxed);
            }
        }
    });
    (name, sent)
}

#[tokio::test]
async fn a_manifest_without_end_is_not_read_to_its_end() {
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
    let mut chunk = b"10000\r\n".to_vec();
    chunk.resize(chunk.len() + 0x10000, b' ');
    chunk.extend_from_slice(b"\r\n");
    let (name, sent) = script(head, Some(chunk)).await;
    let error = manifest(&nowhere(), &name, None).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("longer than 4194304 bytes"), "{text}");
    // What is beyond lies in the buffers of the two sockets.
    let sent = sent.load(Ordering::Relaxed);
    assert!(sent < 32 << 20, "{sent}");
}

#[tokio::test]
async fn a_length_that_is_a_lie_is_told() {
    let text = String::from_utf8(simple().manifest).unwrap();
    let length = text.len();
    for (said, want) in [
        (length + 50, "incompletely"),
        // Nothing is set aside for what was only promised.
        (1 << 50, "incompletely"),
        (length - 50, "not a manifest"),
        (0, "not a manifest"),
    ] {
        let head =
            format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {said}\r\n\r\n{text}");
        let (name, _) = script(head.into_bytes(), None).await;
        let error = manifest(&nowhere(), &name, None).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(want), "{said}: {text}");
    }
}

#[tokio::test]
async fn an_index_of_equal_children_asks_for_one_of_them_once() {
    let fake = Fake::http().await;
    let made = simple();
    let child = fake.put_image("x", "child", &made);
    let entry = fake::descriptor(fake::MANIFEST, &made.manifest);
    let index = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": fake::INDEX, "manifests": vec![entry; 20_000],
    }))
    .unwrap();
    assert!(index.len() < MAX_MANIFEST);
    fake.put_manifest("x", "many", fake::INDEX, &index);
    let resolve = async |name: &str| {
        let reference: Reference = fake.name(name).parse().unwrap();
        let session = nowhere().open(&reference, None).await.unwrap();
        session.resolve(&reference.target()).await
    };
    let resolved = resolve("x:many").await.unwrap();
    assert_eq!(resolved.documents[1].0, child);
    assert_eq!(fake.count("GET", &child.to_string()), 1);
    // One that is not there is not there twenty thousand times either.
    fake.put_manifest("y", "many", fake::INDEX, &index);
    let error = resolve("y:many").await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
    assert_eq!(fake.count("GET", &format!("/v2/y/manifests/{child}")), 1);
}
