//! Against Debian's docker-registry.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use reqwest::header::{CONTENT_TYPE, LOCATION};
use reqwest::{Client, Url};

use super::*;

/// The registry's process; it ends with the test.
struct Server {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start() -> Result<Server, String> {
    let dir = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let config = dir.path().join("config.yml");
    let text = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
        dir.path().join("data").display()
    );
    std::fs::write(&config, text).unwrap();
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match child {
        Ok(child) => Ok(Server {
            child,
            port,
            _dir: dir,
        }),
        Err(error) => Err(format!("it does not start: {error}")),
    }
}

async fn push(client: &Client, base: &str, repo: &str, tag: &str, made: &Made) {
    for (digest, bytes) in &made.blobs {
        let started = client
            .post(format!("{base}/v2/{repo}/blobs/uploads/"))
            .send()
            .await
            .unwrap();
        let location = started.headers()[LOCATION].to_str().unwrap();
        let mut url = Url::parse(base).unwrap().join(location).unwrap();
        url.query_pairs_mut()
            .append_pair("digest", &digest.to_string());
        let done = client.put(url).body(bytes.clone()).send().await.unwrap();
        assert_eq!(done.status(), 201);
    }
    let manifest = client
        .put(format!("{base}/v2/{repo}/manifests/{tag}"))
        .header(CONTENT_TYPE, fake::MANIFEST)
        .body(made.manifest.clone());
    assert_eq!(manifest.send().await.unwrap().status(), 201);
}

#[tokio::test]
async fn images_come_from_a_real_registry() {
    let server = match start() {
        Ok(server) => server,
        Err(why) => berth_skip::skip!("docker-registry", "{why}"),
    };
    let base = format!("http://127.0.0.1:{}", server.port);
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().no_proxy().build().unwrap();
    for _ in 0..100 {
        if client.get(format!("{base}/v2/")).send().await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let made = three_layers();
    push(&client, &base, "a/b", "1", &made).await;
    let rig = Rig::new();
    for name in ["127.0.0.1", "localhost"] {
        let reference = format!("{name}:{}/a/b:1", server.port);
        assert_eq!(rig.pull(&reference).await.unwrap(), made.id);
    }
    let image = rig.manager.list().remove(0);
    assert_eq!(image.repo_tags.len(), 2);
    assert_eq!(rig.files("canary-"), 3);
    rig.pull(&format!("127.0.0.1:{}/a/b:1", server.port))
        .await
        .unwrap();
    let absent = rig
        .pull(&format!("127.0.0.1:{}/a/b:2", server.port))
        .await
        .unwrap_err();
    assert_eq!(absent.kind(), Kind::NotFound, "{absent}");
}
