//! What the errors of a pull say: every host's own answer, in order, and no library's words.

use tokio::net::TcpListener;

use super::*;

/// Words of libraries that nobody needs.
const JARGON: [&str; 8] = [
    "error sending request",
    "client error",
    "Connect",
    "dns error",
    "os error",
    "failed to lookup",
    "invalid peer certificate",
    "tunnel error",
];

fn plain(text: &str) {
    for word in JARGON {
        assert!(!text.contains(word), "{word:?} in {text}");
    }
}

/// Answers everybody with these bytes at once.
async fn blurting(bytes: &'static [u8]) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = connection.read(&mut [0; 4096]).await;
            let _ = connection.write_all(bytes).await;
            let _ = connection.shutdown().await;
        }
    });
    addr
}

/// What a pull from a single server says.
async fn said(server: &str) -> String {
    let (_dir, registry) = hosts("r.test", &format!("server = \"{server}\""));
    let error = manifest(&registry, "r.test/x:1", None).await.unwrap_err();
    let text = error.to_string();
    plain(&text);
    let told = {
        let reference: Reference = "r.test/x:1".parse().unwrap();
        explain(&registry, &reference, None).await
    };
    assert_eq!(told.error.as_deref(), Some(text.as_str()));
    text
}

#[tokio::test]
async fn each_failure_is_one_sentence_with_what_to_do() {
    let refused = said("http://127.0.0.1:1").await;
    assert_eq!(
        refused,
        "RegistryUnavailable: 127.0.0.1:1: connection refused: check the address, and whether it runs"
    );
    let unknown = said("https://registry.invalid").await;
    assert!(
        unknown.starts_with("RegistryUnavailable: registry.invalid: its name is not found ("),
        "{unknown}"
    );
    assert!(
        unknown.ends_with("check the name and this node's DNS"),
        "{unknown}"
    );
    let plain_http = Fake::http().await;
    let text = said(&format!("https://{}", plain_http.addr)).await;
    assert!(
        text.contains("not TLS: if it is meant to be plain HTTP"),
        "{text}"
    );
    // What servers with TLS say to those who speak none.
    let tls = blurting(b"\x15\x03\x01\x00\x02\x02\x0a").await;
    let text = said(&format!("http://{tls}")).await;
    assert!(text.contains("not HTTP: if it speaks TLS"), "{text}");
    for malformed in [
        &b"HTTP/1.1 200 OK\r\nX-A: a\x01b\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
    ] {
        let odd = blurting(malformed).await;
        let text = said(&format!("http://{odd}")).await;
        assert!(
            text.contains("is malformed") && !text.contains("TLS"),
            "{text}"
        );
    }
    let mute = blurting(b"").await;
    let text = said(&format!("http://{mute}")).await;
    assert!(text.contains("it closed the connection"), "{text}");
    // handshake_failure, protocol_version and insufficient_security: old suites, versions and curves.
    for alert in [
        &b"\x15\x03\x03\x00\x02\x02\x28"[..],
        b"\x15\x03\x02\x00\x02\x02\x46",
        b"\x15\x03\x03\x00\x02\x02\x47",
    ] {
        let old = blurting(alert).await;
        let text = said(&format!("https://{old}")).await;
        assert!(
            text.contains("shares no kind of TLS with this node"),
            "{text}"
        );
        assert!(
            text.contains("no CBC") && text.contains("not P-521"),
            "{text}"
        );
    }
    let (closed, _) = Fake::mutual().await;
    let (_dir, registry) = hosts(
        "r.test",
        &format!("server = \"https://{}\"\nskip_verify = true", closed.addr),
    );
    let error = manifest(&registry, "r.test/x:1", None).await.unwrap_err();
    let text = error.to_string();
    plain(&text);
    assert!(text.contains("it wants a client certificate"), "{text}");
}

#[tokio::test]
async fn silence_is_told_with_the_key_that_bounds_it() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let registry = Registry::new(Config {
        silence: Some(Duration::from_millis(100)),
        ..Config::from(PathBuf::from("/nonexistent"))
    });
    let name = format!("{}/x:1", silent.local_addr().unwrap());
    let error = manifest(&registry, &name, None).await.unwrap_err();
    let text = error.to_string();
    plain(&text);
    assert!(
        text.contains("silent for longer than images.silence_limit"),
        "{text}"
    );
}

#[tokio::test]
async fn the_mirrors_answer_comes_first_and_everybody_is_told() {
    let mirror = Fake::http().await;
    let text = format!(
        "server = \"https://registry.invalid\"\n[host.\"http://{}\"]\n[host.\"http://127.0.0.1:1\"]\n",
        mirror.addr
    );
    let (_dir, registry) = hosts("r.test", &text);
    for (status, want) in [
        (404, "has no manifest 1 of r.test/x"),
        (401, "denies access"),
        (403, "denies access"),
        (429, "answered 429"),
        (500, "answered 500"),
        (503, "answered 503"),
    ] {
        mirror.plan(|p| p.fail = Some(("/v2/".into(), status, 999)));
        let error = manifest(&registry, "r.test/x:1", None).await.unwrap_err();
        let text = error.to_string();
        plain(&text);
        let own = mirror.addr.to_string();
        let places = [
            own.as_str(),
            want,
            "; 127.0.0.1:1: connection refused",
            "; registry.invalid: its name",
        ];
        let places = places.map(|part| text.find(part).unwrap_or_else(|| panic!("{part}: {text}")));
        assert!(places.is_sorted(), "{text}");
        // The kubelet's word only where nobody said anything else.
        assert_eq!(
            text.starts_with("RegistryUnavailable: "),
            status == 404,
            "{text}"
        );
        assert_eq!(
            text.matches("RegistryUnavailable").count(),
            usize::from(status == 404)
        );
    }
}

#[tokio::test]
async fn a_proxy_that_is_away_is_named_without_its_password() {
    let text = "server = \"https://r.test\"\nproxy = \"http://u:canary@127.0.0.1:1\"";
    let (_dir, registry) = hosts("r.test", text);
    let error = manifest(&registry, "r.test/x:1", None).await.unwrap_err();
    let text = error.to_string();
    plain(&text);
    assert!(
        text.contains("r.test: at the proxy http://127.0.0.1:1: connection refused"),
        "{text}"
    );
    assert!(!text.contains("canary"), "{text}");
    for (answer, want) in [
        (
            &b"HTTP/1.1 407 Who\r\n\r\n"[..],
            "the proxy wants a user and a password",
        ),
        (b"HTTP/1.1 403 No\r\n\r\n", "the proxy refuses to connect"),
        (b"", "the proxy closed the connection"),
    ] {
        let proxy = blurting(answer).await;
        let text = format!("server = \"https://r.test\"\nproxy = \"http://{proxy}\"");
        let (_dir, registry) = hosts("r.test", &text);
        let error = manifest(&registry, "r.test/x:1", None).await.unwrap_err();
        plain(&error.to_string());
        assert!(error.to_string().contains(want), "{error}");
    }
}
