use std::path::Path;

use super::*;
use crate::registry::hosts;

fn endpoint(registry: &str) -> Endpoint {
    hosts::load(Path::new("/nonexistent"), registry)
        .unwrap()
        .remove(0)
}

fn auth(change: impl FnOnce(&mut RegistryAuth)) -> RegistryAuth {
    let mut auth = RegistryAuth::default();
    change(&mut auth);
    auth
}

#[test]
fn a_token_that_lapsed_is_not_used() {
    let key = TokenKey {
        origin: "https://r.io".into(),
        scope: "repository:x:pull".into(),
        owner: [0; 32],
    };
    let tokens = Tokens::default();
    let value = HeaderValue::from_static("Bearer t");
    tokens.put(key.clone(), value.clone(), Duration::from_secs(9));
    assert_eq!(tokens.get(&key), Some(value.clone()));
    tokens.put(key.clone(), value, Duration::ZERO);
    assert_eq!(tokens.get(&key), None);
}

#[test]
fn precedence_is_containerds() {
    let all = auth(|a| {
        a.username = "u".into();
        a.password = "p".into();
        a.auth = STANDARD.encode("x:y");
        a.identity_token = "i".into();
        a.registry_token = "r".into();
    });
    let pick = |a: &RegistryAuth| secret(a).unwrap();
    assert!(pick(&all) == Some(Secret::Basic("u".into(), "p".into())));
    let mut less = all.clone();
    less.username.clear();
    assert!(pick(&less) == Some(Secret::Basic("x".into(), "y".into())));
    less.auth.clear();
    assert!(pick(&less) == Some(Secret::Refresh("i".into())));
    less.identity_token.clear();
    assert!(pick(&less) == Some(Secret::Bearer("r".into())));
    assert!(pick(&RegistryAuth::default()).is_none());
    assert!(secret(&auth(|a| a.auth = "%%".into())).is_err());
}

#[test]
fn a_secret_is_bound_to_its_host() {
    let given = |server: &str| {
        auth(|a| {
            a.username = "u".into();
            a.server_address = server.into();
        })
    };
    let used = |server: &str, endpoint: &Endpoint| {
        let login = login_for(Some(&given(server)), &Node::default(), endpoint, "x");
        login.unwrap() != Login::None
    };
    let hub = endpoint("docker.io");
    for server in [
        "",
        "docker.io",
        "https://index.docker.io/v1/",
        "registry-1.docker.io:443",
    ] {
        assert!(used(server, &hub), "{server}");
    }
    assert!(!used("other.io", &hub));
    let mut mirror = endpoint("mirror.io");
    mirror.upstream = false;
    mirror.registry = "r.io".into();
    assert!(!used("", &mirror));
    assert!(!used("r.io", &mirror));
    assert!(used("mirror.io", &mirror));
    assert!(!used("mirror.io:5000", &mirror));
    assert!(used("", &endpoint("r.io:5000")));
    // The operator says where the registry's own server is.
    mirror.upstream = true;
    assert!(used("r.io", &mirror) && used("", &mirror));
}

/// Where all are good still, the one goes that would go first: a host behind a redirect is shown what is kept, and nothing
/// else.
#[test]
fn there_is_always_room_for_another_token() {
    let tokens = Tokens::default();
    let key = |n: usize| TokenKey {
        origin: n.to_string(),
        scope: String::new(),
        owner: [0; 32],
    };
    for n in 0..=MAX_TOKENS {
        let life = Duration::from_secs(if n == 7 { 60 } else { 600 });
        tokens.put(key(n), HeaderValue::from_static("x"), life);
    }
    assert!(tokens.get(&key(MAX_TOKENS)).is_some() && tokens.get(&key(0)).is_some());
    assert!(tokens.get(&key(7)).is_none());
}

#[test]
fn fingerprints_tell_secrets_apart() {
    let basic = |u: &str, p: &str| Secret::Basic(u.into(), p.into()).fingerprint();
    assert_ne!(basic("ab", "c"), basic("a", "bc"));
    assert_ne!(Login::None.owner(), basic("", ""));
    assert_ne!(
        Secret::Refresh("t".into()).fingerprint(),
        Secret::Bearer("t".into()).fingerprint()
    );
}
