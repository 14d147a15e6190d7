//! Through a proxy that remembers what it was asked.

use std::net::SocketAddr;
use std::sync::Mutex;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Leads everybody to one address, whatever name they ask for.
struct Proxy {
    addr: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, target, Arc::clone(&seen)));
            }
        });
        Self { addr, heads }
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn serve(client: TcpStream, target: SocketAddr, seen: Arc<Mutex<Vec<String>>>) {
    let mut client = BufReader::new(client);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if client.read_line(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    seen.lock().unwrap().push(head.clone());
    let mut server = TcpStream::connect(target).await.unwrap();
    if head.starts_with("CONNECT ") {
        let yes = b"HTTP/1.1 200 OK\r\n\r\n";
        client.write_all(yes).await.unwrap();
    } else {
        // One request for each connection, so that none passes unseen.
        let (line, rest) = head.split_once("\r\n").unwrap();
        let path = line.split(' ').nth(1).unwrap();
        let path = &path[path.find("/v2").unwrap()..];
        let head = format!("GET {path} HTTP/1.1\r\nconnection: close\r\n{rest}");
        server.write_all(head.as_bytes()).await.unwrap();
    }
    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
}

/// A SOCKS proxy that wants a user and a password, leads everybody to one address, and tells what it was asked for.
async fn socks(target: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let _ = serve_socks(stream, target, &seen).await;
            });
        }
    });
    (addr, asked)
}

/// RFC 1928 and RFC 1929.
async fn serve_socks(
    mut client: TcpStream,
    target: SocketAddr,
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    async fn text(client: &mut TcpStream) -> std::io::Result<String> {
        let length = client.read_u8().await?;
        let mut bytes = vec![0; length.into()];
        client.read_exact(&mut bytes).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
    client.read_u8().await?;
    text(&mut client).await?;
    client.write_all(&[5, 2]).await?;
    client.read_u8().await?;
    let (user, password) = (text(&mut client).await?, text(&mut client).await?);
    client.write_all(&[1, 0]).await?;
    let mut head = [0; 4];
    client.read_exact(&mut head).await?;
    assert_eq!(head, [5, 1, 0, 3], "a name is to be connected to");
    let name = text(&mut client).await?;
    let port = client.read_u16().await?;
    seen.lock()
        .unwrap()
        .push(format!("{user}:{password}@{name}:{port}"));
    let refused = u8::from(name == "refused.test") * 2;
    client
        .write_all(&[5, refused, 0, 1, 0, 0, 0, 0, 0, 0])
        .await?;
    let mut server = TcpStream::connect(target).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

/// The name is the proxy's to look up, as with Go's programs: here it could not be.
#[tokio::test]
async fn socks_proxies_are_used_by_variables_and_by_hosts() {
    let fake = Fake::https().await;
    fake.put_image("x", "1", &simple());
    let (addr, asked) = socks(fake.addr).await;
    let (dir, _) = hosts("registry.test", "ca = \"ca.pem\"");
    let file = dir.path().join("registry.test");
    std::fs::write(file.join("ca.pem"), fake.ca.as_ref().unwrap()).unwrap();
    let variables = [("HTTPS_PROXY", format!("socks5://u:p@{addr}"))];
    let registry = through(dir.path(), &variables);
    manifest(&registry, "registry.test/x:1", None)
        .await
        .unwrap();
    let text = format!("ca = \"ca.pem\"\nproxy = \"socks5h://v:q@{addr}\"");
    std::fs::write(file.join("hosts.toml"), text).unwrap();
    manifest(&through(dir.path(), &[]), "registry.test/x:1", None)
        .await
        .unwrap();
    let asked = asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert_eq!(asked[0], "u:p@registry.test:443");
    assert_eq!(asked[1], "v:q@registry.test:443");
    let text = error_of("refused.test/x:1", format!("socks5://u:canary@{addr}")).await;
    let want = "it does not connect to the registry (connection not allowed)";
    assert!(text.contains(want), "{text}");
    // Nobody is there.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = listener.local_addr().unwrap();
    drop(listener);
    let text = error_of("r.test/x:1", format!("socks5://u:canary@{gone}")).await;
    assert!(
        text.contains("check its address, and whether it runs"),
        "{text}"
    );
}

async fn error_of(reference: &str, proxy: String) -> String {
    let dir = tempfile::tempdir().unwrap();
    let registry = through(dir.path(), &[("HTTPS_PROXY", proxy)]);
    let error = manifest(&registry, reference, None).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("at the proxy socks5h://"), "{text}");
    assert!(!text.contains("canary"), "{text}");
    text
}

fn through(hosts: &Path, variables: &[(&str, String)]) -> Arc<Registry> {
    let proxies = Proxies::from_variables(|name| {
        let hit = variables.iter().find(|(key, _)| *key == name);
        hit.map(|(_, value)| value.clone())
    });
    let mut registry = Registry::new(hosts.to_owned());
    let inner = Arc::get_mut(&mut registry).unwrap();
    inner.clients = client::Clients::new(Some(DEFAULT_SILENCE), proxies);
    registry
}

#[tokio::test]
async fn https_goes_through_connect_with_the_proxys_password() {
    let fake = Fake::https().await;
    fake.put_image("x", "1", &simple());
    fake.plan(|p| p.basic = Some(("u".into(), "canary".into())));
    let proxy = Proxy::start(fake.addr).await;
    let (dir, _) = hosts("registry.test:8443", "ca = \"own.pem\"");
    let pem = dir.path().join("registry.test:8443/own.pem");
    std::fs::write(pem, fake.ca.as_ref().unwrap()).unwrap();
    let variables = [("HTTPS_PROXY", format!("http://who:pass@{}", proxy.addr))];
    let registry = through(dir.path(), &variables);
    let name = "registry.test:8443/x:1";
    manifest(&registry, name, Some(&auth("u", "canary")))
        .await
        .unwrap();
    let heads = proxy.heads();
    assert!(
        heads[0].starts_with("CONNECT registry.test:8443 "),
        "{heads:?}"
    );
    let lower = heads[0].to_ascii_lowercase();
    assert!(lower.contains("proxy-authorization: basic "), "{heads:?}");
    // The registry's credentials are the registry's, and the proxy's are the proxy's.
    assert!(
        heads
            .iter()
            .all(|head| !head.to_ascii_lowercase().contains("\r\nauthorization"))
    );
    for seen in fake.log() {
        assert!(
            !seen.headers.contains_key("proxy-authorization"),
            "{seen:?}"
        );
    }
    // An exempt name is looked up here, where it does not exist.
    let variables = [
        variables[0].clone(),
        ("NO_PROXY", "registry.test".to_owned()),
    ];
    let before = heads.len();
    let error = manifest(&through(dir.path(), &variables), name, None).await;
    assert!(
        error
            .unwrap_err()
            .to_string()
            .starts_with("RegistryUnavailable")
    );
    assert_eq!(proxy.heads().len(), before);
}

#[tokio::test]
async fn plain_http_goes_through_its_own_proxy_and_a_bad_proxy_is_named() {
    let fake = Fake::http().await;
    fake.put_image("x", "1", &simple());
    let proxy = Proxy::start(fake.addr).await;
    let (dir, _) = hosts("registry.test", "server = \"http://registry.test\"");
    let variables = [("http_proxy", proxy.addr.to_string())];
    let registry = through(dir.path(), &variables);
    manifest(&registry, "registry.test/x:1", None)
        .await
        .unwrap();
    let heads = proxy.heads();
    assert!(
        heads[0].starts_with("GET http://registry.test/v2/x/manifests/1"),
        "{heads:?}"
    );
    // This machine is not behind a proxy.
    manifest(&registry, &fake.name("x:1"), None).await.unwrap();
    assert_eq!(proxy.heads().len(), heads.len());
    let registry = through(dir.path(), &[("HTTP_PROXY", "socks4://h:1".to_owned())]);
    let error = manifest(&registry, "registry.test/x:1", None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("variable HTTP_PROXY"), "{error}");
}
