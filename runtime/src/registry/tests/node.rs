//! Credentials of the node on the wire.

use super::*;

fn with_file(hosts: &str, text: &str) -> (tempfile::TempDir, Arc<Registry>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("auth.json");
    std::fs::write(&path, text).unwrap();
    std::fs::create_dir(dir.path().join("r.test")).unwrap();
    std::fs::write(dir.path().join("r.test/hosts.toml"), hosts).unwrap();
    let registry = Registry::new(Config {
        credentials_file: Some(path),
        ..Config::from(dir.path().to_owned())
    });
    (dir, registry)
}

fn given(fake: &Fake) -> Vec<String> {
    let log = fake.log();
    let values = log
        .iter()
        .filter_map(|seen| seen.headers.get("authorization"));
    values
        .map(|value| value.to_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn each_host_gets_its_own_and_the_request_comes_first() {
    let (mirror, up) = (Fake::http().await, Fake::http().await);
    up.put_image("x", "1", &simple());
    mirror.plan(|p| p.basic = Some(("m".into(), "m".into())));
    up.plan(|p| p.basic = Some(("u".into(), "u".into())));
    let toml = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        up.addr, mirror.addr
    );
    let file = format!(
        "{{\"auths\":{{\"r.test\":{{\"auth\":\"dTp1\"}},\"{}\":{{\"username\":\"m\",\"password\":\"m\"}}}}}}",
        mirror.addr
    );
    let (_dir, registry) = with_file(&toml, &file);
    manifest(&registry, "r.test/x:1", None).await.unwrap();
    assert_eq!(given(&mirror), ["Basic bTpt"]);
    assert_eq!(given(&up), ["Basic dTp1"]);
    // A pull that brings its own gets neither more nor less than that.
    let error = manifest(&registry, "r.test/x:1", Some(&auth("other", "p"))).await;
    assert!(matches!(error.unwrap_err(), Error::Everywhere { .. }));
    assert_eq!(given(&up).last().unwrap(), "Basic b3RoZXI6cA==");
}

#[tokio::test]
async fn a_refresh_token_of_the_file_is_spent_by_post() {
    let up = Fake::http().await;
    up.put_image("x", "1", &simple());
    up.plan(|p| {
        p.bearer = Some(None);
        p.refresh = Some("r3fresh".into());
    });
    let file = "{\"auths\":{\"r.test\":{\"identitytoken\":\"r3fresh\"}}}";
    let (_dir, registry) = with_file(&format!("server = \"http://{}\"", up.addr), file);
    manifest(&registry, "r.test/x:1", None).await.unwrap();
    assert_eq!(up.count("POST", "/token"), 1);
    manifest(&registry, "r.test/x:1", None).await.unwrap();
    assert_eq!(up.count("POST", "/token"), 1);
}

#[tokio::test]
async fn a_missing_helper_fails_only_where_credentials_are_asked_for() {
    let up = Fake::http().await;
    up.put_image("x", "1", &simple());
    let file = "{\"credHelpers\":{\"r.test\":\"berth-test-none\"}}";
    let (_dir, registry) = with_file(&format!("server = \"http://{}\"", up.addr), file);
    manifest(&registry, "r.test/x:1", None).await.unwrap();
    up.plan(|p| p.basic = Some(("u".into(), "u".into())));
    let error = manifest(&registry, "r.test/x:1", None).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("docker-credential-berth-test-none"), "{text}");
    assert_eq!(error.kind(), Kind::FailedPrecondition);
}

#[test]
fn the_daemons_configuration_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    let text = "[images]\nsilence_limit = 0\ntoken_services = [\"r.io=a.net\"]\ncredentials_file = \"/x/a.json\"\n";
    std::fs::write(&file, text).unwrap();
    let config = Config::from(&crate::config::Config::load(Some(&file), &[]).unwrap());
    // 0 is no limit, and not one that is over at once.
    assert_eq!(config.silence, None);
    assert_eq!(config.token_services, ["r.io=a.net"]);
    assert_eq!(config.credentials_file, Some(PathBuf::from("/x/a.json")));
    std::fs::write(&file, "").unwrap();
    let config = Config::from(&crate::config::Config::load(Some(&file), &[]).unwrap());
    assert_eq!(config.silence, Some(DEFAULT_SILENCE));
}
