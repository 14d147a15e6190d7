//! Answers that are unusual and mean what they say.

use std::io::Write as _;

use tokio::net::TcpListener;

use super::*;

/// Gives everybody who asks the same bytes, and closes the connection.
async fn saying(answer: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let name = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = connection.read(&mut [0; 4096]).await;
            let _ = connection.write_all(&answer).await;
            let _ = connection.shutdown().await;
        }
    });
    name
}

async fn got(head: &[u8], body: &[u8]) -> Result<Document, Error> {
    let name = saying([head, body].concat()).await;
    manifest(&nowhere(), &format!("{name}/x:1"), None).await
}

#[tokio::test]
async fn heads_of_answers_are_taken_as_servers_write_them() {
    let made = simple();
    let body = &made.manifest[..];
    let length = body.len();
    let digest = fake::digest(body);
    let many: String = (0..1500).map(|n| format!("X-{n}: {n}\r\n")).collect();
    let long = format!("X-Long: {}\r\n", "v".repeat(100_000));
    for head in [
        "HTTP/1.1 200\r\n\r\n".to_owned(),
        "HTTP/1.0 200 ok\r\nContent-type: text/plain\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\nContent-Type: application/json; charset=utf-8\n\n".to_owned(),
        format!(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n"
        ),
        format!("HTTP/1.1 200 OK\r\n{many}\r\n"),
        format!("HTTP/1.1 200 OK\r\n{long}\r\n"),
        "HTTP/1.1 200 OK\r\nX-Folded: a\r\n  b\r\n\tc\r\n\r\n".to_owned(),
        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\ncontent-length: {length}\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\nDOCKER-CONTENT-DIGEST: {digest}\r\n\r\n"),
        format!(
            "HTTP/1.1 200 OK\r\ndocker-content-digest: {}\r\n\r\n",
            digest.to_string().to_uppercase()
        ),
        "HTTP/1.1 200 OK\r\ndocker-content-digest:\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-encoding: identity\r\n\r\n".to_owned(),
    ] {
        let begin: String = head.chars().take(60).collect();
        let got = got(head.as_bytes(), body).await;
        assert_eq!(
            got.unwrap_or_else(|e| panic!("{begin:?}: {e}")).digest,
            digest
        );
    }
    let latin = b"HTTP/1.1 200 Tr\xe8s bien\r\nServer: caf\xe9\r\nDocker-Distribution-Api-Version: registry/2.0\xa0\r\n\r\n";
    assert_eq!(got(latin, body).await.unwrap().digest, digest);
    let chunked = format!("{length:x};ext=1\r\n");
    let chunked = [chunked.as_bytes(), body, b"\r\n0\r\nX-Trailer: 1\r\n\r\n"].concat();
    let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: X-Trailer\r\n\r\n";
    assert_eq!(got(head, &chunked).await.unwrap().digest, digest);
}

#[tokio::test]
async fn a_head_without_measure_is_refused_in_words() {
    let many: String = (0..5000).map(|n| format!("X-{n}: {n}\r\n")).collect();
    let long = format!("X-Long: {}\r\n", "v".repeat(1 << 20));
    for lines in [many, long] {
        let head = format!("HTTP/1.1 200 OK\r\n{lines}\r\n");
        let error = got(head.as_bytes(), b"").await.unwrap_err().to_string();
        assert!(
            error.contains("the head of its answer is longer than is read"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_document_that_comes_compressed_is_unpacked_within_bounds() {
    let made = simple();
    let packed = |bytes: &[u8]| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    };
    for name in ["gzip", "x-gzip", "GZIP"] {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-encoding: {name}\r\n\r\n");
        let got = got(head.as_bytes(), &packed(&made.manifest)).await.unwrap();
        assert_eq!(got.bytes, made.manifest);
    }
    let head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n";
    // Called so, and not.
    assert_eq!(
        got(head, &made.manifest).await.unwrap().bytes,
        made.manifest
    );
    let error = got(head, &packed(&vec![b' '; MAX_MANIFEST + 1]))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("longer than"), "{error}");
    let mut broken = packed(&made.manifest);
    broken.truncate(20);
    let error = got(head, &broken).await.unwrap_err();
    assert!(
        error.to_string().contains("compression is broken"),
        "{error}"
    );
}

#[tokio::test]
async fn answers_of_token_services_are_taken_as_they_write_them() {
    let fake = Fake::http().await;
    fake.put_image("x", "1", &simple());
    fake.plan(|p| p.bearer = Some(None));
    for answer in [
        r#"{"token":"t0ken","expires_in":-1}"#,
        r#"{"token":"t0ken","expires_in":0}"#,
        r#"{"token":"t0ken","expires_in":299.5}"#,
        r#"{"token":"t0ken","expires_in":1e400}"#,
        r#"{"token":"t0ken","expires_in":99999999999999999999999}"#,
        r#"{"token":"t0ken","expires_in":"300"}"#,
        r#"{"token":"t0ken","expires_in":null,"issued_at":"yesterday"}"#,
        r#"{"token":"t0ken","expires_in":{},"issued_at":17}"#,
        r#"{"access_token":"t0ken"}"#,
        r#"{"token":"","access_token":"t0ken","refresh_token":null,"scope":["x"]}"#,
        r#"{"token":null,"access_token":"t0ken"}"#,
        r#"{"Token":"t0ken","Expires_In":300}"#,
        "{\"token\":\"t0ken\"}\n{}",
        "{\"description\":\"\\ud800\",\"token\":\"t0ken\"}",
    ] {
        fake.plan(|p| p.token_answer = Some(answer.into()));
        let registry = nowhere();
        let got = manifest(&registry, &fake.name("x:1"), None).await;
        if answer.contains("1e400") {
            // No reader takes that for a number.
            assert!(got.is_err(), "{answer}");
            continue;
        }
        got.unwrap_or_else(|error| panic!("{answer}: {error}"));
        // Whatever it says, a token is good for a while.
        let before = fake.count("GET", "/token");
        manifest(&registry, &fake.name("x:1"), None).await.unwrap();
        assert_eq!(fake.count("GET", "/token"), before, "{answer}");
    }
    for answer in [
        &b"{}"[..],
        b"[]",
        b"",
        br#"{"token":"t0ken","token":"other"}"#,
        br#"{"token":"t0ken","TOKEN":"other"}"#,
        br#"{"token":17}"#,
        b"{\"token\":\"t\\nx\"}",
    ] {
        fake.plan(|p| p.token_answer = Some(answer.to_vec()));
        let error = manifest(&nowhere(), &fake.name("x:1"), None).await;
        let error = error.unwrap_err();
        assert!(matches!(error, Error::Denied { .. }), "{error}");
    }
}

#[tokio::test]
async fn challenges_lead_to_a_token_however_they_are_written() {
    let fake = Fake::http().await;
    fake.put_image("x", "1", &simple());
    fake.plan(|p| p.bearer = Some(None));
    for challenge in [
        &b"Negotiate, Basic realm=\"x\", BEARER\tRealm = {realm} ,service=\"s\","[..],
        b"Bearer realm=\"{realm}#part\",service=\"caf\xe9\",scope=\"repository:x:pull  repository:y:pull\"",
        b"Bearer realm=\"{realm}?n=\xc3\xa9\"",
        b"Bearer realm=\"{realm}?n=\xe9\"",
    ] {
        fake.plan(|p| p.challenge = Some(challenge.to_vec()));
        let got = manifest(&nowhere(), &fake.name("x:1"), None).await;
        let text = String::from_utf8_lossy(challenge);
        got.unwrap_or_else(|error| panic!("{text}: {error}"));
    }
    let asked: Vec<_> = fake.log().into_iter().map(|seen| seen.path).collect();
    let asked: Vec<_> = asked
        .iter()
        .filter(|path| path.contains("/token"))
        .collect();
    assert!(
        asked[1].ends_with("scope=repository%3Ax%3Apull&scope=repository%3Ay%3Apull"),
        "{asked:?}"
    );
    assert!(asked[2].starts_with("/token?n=%C3%A9&"), "{asked:?}");
    assert!(asked[3].starts_with("/token?n=%E9&"), "{asked:?}");
}
