use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::registry::hosts;

fn node(text: &str) -> Result<Node, Error> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("auth.json");
    std::fs::write(&path, text).unwrap();
    Node::load(&path)
}

fn endpoint(registry: &str) -> Endpoint {
    let none = Path::new("/nonexistent");
    hosts::load(none, registry).unwrap().remove(0)
}

fn login(node: &Node, registry: &str, repository: &str) -> Login {
    node.login(&endpoint(registry), registry, repository)
        .unwrap()
}

fn user(login: &Login) -> &str {
    match login {
        Login::File(Secret::Basic(user, _)) => user,
        Login::File(Secret::Refresh(_)) => "refresh",
        Login::File(Secret::Bearer(_)) => "bearer",
        Login::Helper(helper) => helper.program.to_str().unwrap(),
        Login::Request(_) => "request",
        Login::None => "none",
    }
}

#[test]
fn nothing_may_be_written_as_null_and_with_the_mark_of_an_editor() {
    let bare = node("\u{feff}{\"auths\":null,\"credHelpers\":null,\"credsStore\":null}").unwrap();
    assert_eq!(user(&login(&bare, "r.io", "x")), "none");
    let node = node(
        r#"{"auths":{"n.io":null,
            "r.io":{"username":null,"password":null,"auth":"dTp1","identitytoken":null},
            "l.io":{"auth":"dT\r\np1\n"}}}"#,
    )
    .unwrap();
    assert_eq!(user(&login(&node, "n.io", "x")), "none");
    assert_eq!(user(&login(&node, "r.io", "x")), "u");
    assert_eq!(user(&login(&node, "l.io", "x")), "u");
}

#[test]
fn every_form_of_an_entry_is_found() {
    // "dTp1" is u:u.
    let node = node(
        r#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"dTp1"},
            "r.io":{"username":"plain","password":"p"},
            "https://s.io:5000":{"identitytoken":"t","auth":"MDAwOgA="},
            "t.io":{"registrytoken":"t"},
            "q.io/team/app":{"username":"app","password":"p"},
            "q.io/team":{"username":"team","password":"p"},
            "empty.io":{}},
          "credHelpers":{"h.io":"ecr"},
          "HttpHeaders":{"User-Agent":"Docker"},"psFormat":"x"}"#,
    )
    .unwrap();
    for (registry, repository, want) in [
        ("docker.io", "library/x", "u"),
        ("r.io", "x", "plain"),
        ("r.io:5000", "x", "none"),
        ("s.io:5000", "x", "refresh"),
        ("t.io", "x", "bearer"),
        ("q.io", "team/app", "app"),
        ("q.io", "team/app/deep", "app"),
        ("q.io", "team/apple", "team"),
        ("q.io", "other/app", "none"),
        ("empty.io", "x", "none"),
        ("h.io", "x", "docker-credential-ecr"),
        ("x.r.io", "x", "none"),
    ] {
        let found = login(&node, registry, repository);
        assert_eq!(user(&found), want, "{registry}/{repository}");
    }
}

#[test]
fn an_absent_file_is_no_file_and_a_bad_one_is_named_without_a_word_of_it() {
    let none = Node::load(Path::new("/nonexistent/auth.json")).unwrap();
    assert_eq!(user(&login(&none, "r.io", "x")), "none");
    for bad in [
        r#"{"auths":{"r.io":"canary"}}"#,
        r#"{"auths": canary"#,
        "canary",
    ] {
        let error = node(bad).err().unwrap().to_string();
        assert!(
            error.contains("auth.json") && error.contains("line 1"),
            "{error}"
        );
        assert!(!error.contains("canary"), "{error}");
    }
    let odd = node(r#"{"credsStore":"../canary"}"#).unwrap();
    assert!(odd.login(&endpoint("r.io"), "r.io", "x").is_err());
    let odd = node(r#"{"auths":{"r.io":{"auth":"canary"}}}"#).unwrap();
    let error = odd.login(&endpoint("r.io"), "r.io", "x").err().unwrap();
    assert!(!error.to_string().contains("canary"), "{error}");
}

#[test]
fn a_pull_secret_has_something_for_its_registry_or_says_that_it_has_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret.json");
    std::fs::write(
        &path,
        r#"{"auths":{"r.io":{"auth":"dTp1"},"s.io":{"identitytoken":"t"}}}"#,
    )
    .unwrap();
    let of = |reference: &str| of_pull_secret(&path, &reference.parse().unwrap());
    let auth = of("r.io/x").unwrap();
    assert_eq!((auth.username.as_str(), auth.password.as_str()), ("u", "u"));
    assert_eq!(of("s.io/x").unwrap().identity_token, "t");
    let error = of("t.io/x").unwrap_err().to_string();
    assert!(
        error.contains("t.io") && error.contains("no entry"),
        "{error}"
    );
    let gone = of_pull_secret(Path::new("/nonexistent/s"), &"r.io/x".parse().unwrap());
    assert!(gone.unwrap_err().to_string().contains("/nonexistent/s"));
}

#[test]
fn the_store_is_asked_by_the_name_that_docker_gave() {
    let node = node(r#"{"credsStore":"pass","credHelpers":{"https://r.io":"other"}}"#).unwrap();
    let of = |registry: &str| match login(&node, registry, "x") {
        Login::Helper(helper) => (helper.program, helper.server),
        _ => panic!("no helper"),
    };
    let named = |name: &str, server: &str| (PathBuf::from(name), server.to_owned());
    let hub = "https://index.docker.io/v1/";
    assert_eq!(of("docker.io"), named("docker-credential-pass", hub));
    assert_eq!(of("s.io"), named("docker-credential-pass", "s.io"));
    assert_eq!(of("r.io"), named("docker-credential-other", "https://r.io"));
}

/// A helper with this body that is asked for `r.io`.
fn helper(dir: &Path, body: &str, beside: Option<Secret>) -> Helper {
    let program = dir.join("docker-credential-test");
    std::fs::write(&program, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    Helper {
        program,
        server: "r.io".to_owned(),
        beside,
    }
}

#[tokio::test]
async fn helpers_are_asked_and_their_failures_told() {
    let dir = tempfile::tempdir().unwrap();
    let ask = async |body: &str| helper(dir.path(), body, None).secret("r.io").await;
    let body = "read -r s; echo \"{\\\"ServerURL\\\":\\\"$s\\\",\\\"Username\\\":\\\"$1\\\",\\\"Secret\\\":\\\"$s\\\"}\"";
    let want = Secret::Basic("get".into(), "r.io".into());
    assert!(ask(body).await.unwrap() == Some(want));
    let token = "echo '{\"Username\":\"<token>\",\"Secret\":\"t\"}'";
    assert!(ask(token).await.unwrap() == Some(Secret::Refresh("t".into())));
    let nothing = "echo 'credentials not found in native keychain'; exit 1";
    assert!(ask(nothing).await.unwrap().is_none());
    let beside = Some(Secret::Bearer("b".into()));
    let found = helper(dir.path(), nothing, beside.clone())
        .secret("r.io")
        .await;
    assert!(found.unwrap() == beside);
    for (body, want) in [
        ("echo canary; echo 'no keyring' >&2; exit 2", "no keyring"),
        ("echo canary", "not the JSON"),
    ] {
        let error = ask(body).await.err().unwrap().to_string();
        assert!(
            error.contains(want) && error.contains("docker-credential-test"),
            "{error}"
        );
        assert!(!error.contains("canary"), "{error}");
    }
    let gone = Helper {
        program: "/nonexistent/docker-credential-x".into(),
        server: "r.io".into(),
        beside: None,
    };
    let error = gone.secret("r.io").await.err().unwrap().to_string();
    assert!(error.contains("cannot be run"), "{error}");
}
