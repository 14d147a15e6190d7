//! Registries and token services that send their users elsewhere.

use super::*;

fn url(fake: &Fake) -> String {
    format!("http://{}", fake.addr)
}

async fn both(fake: &Fake, made: &fake::Made) -> Result<(), Error> {
    let reference: Reference = fake.name("x:1").parse().unwrap();
    let credentials = auth("u", "canary");
    let session = nowhere().open(&reference, Some(&credentials)).await?;
    session.manifest(&reference.target()).await?;
    session
        .document(&descriptor(&made.config), MAX_CONFIG)
        .await?;
    session.peek(&reference.target()).await.unwrap();
    Ok(())
}

/// Nothing of the first host's.
fn untold(fake: &Fake) {
    for seen in fake.log() {
        let told = seen.headers.get("authorization");
        let told = told.map(|value| value.to_str().unwrap());
        assert!(
            told.is_none_or(|value| value.starts_with("Bearer second")),
            "{seen:?}"
        );
        assert!(!format!("{seen:?}").contains("canary"), "{seen:?}");
    }
}

#[tokio::test]
async fn a_host_that_wants_a_token_behind_a_redirect_gets_one_of_its_own() {
    let made = simple();
    for status in [301, 302, 303, 307, 308] {
        let (fake, second) = (Fake::http().await, Fake::http().await);
        second.put_image("x", "1", &made);
        fake.plan(|p| {
            p.bearer = Some(Some(("u".into(), "canary".into())));
            p.token = Some("first".into());
            p.moved = Some(("/v2/".into(), status, format!("{}{{}}", url(&second))));
        });
        second.plan(|p| {
            p.bearer = Some(None);
            p.token = Some("second".into());
            p.challenge = Some(
                b"Bearer realm=\"{realm}\",service=\"s\",scope=\"repository:there/x:pull\""
                    .to_vec(),
            );
        });
        both(&fake, &made).await.unwrap();
        untold(&second);
        // One for all of it, and for what that host calls it.
        assert_eq!(second.count("GET", "/token"), 1, "{status}");
        assert_eq!(
            second.count("GET", "scope=repository%3Athere%2Fx%3Apull"),
            1
        );
        assert_eq!(second.count("HEAD", "/v2/x/manifests/1"), 1);
        assert_eq!(fake.count("GET", "/token"), 0);
    }
}

#[tokio::test]
async fn a_token_of_a_second_host_that_lapsed_is_replaced_and_one_that_is_refused_is_told() {
    let (fake, second) = (Fake::http().await, Fake::http().await);
    let made = simple();
    second.put_image("x", "1", &made);
    fake.plan(|p| p.moved = Some(("/v2/".into(), 307, format!("{}{{}}", url(&second)))));
    second.plan(|p| {
        p.bearer = Some(None);
        p.token = Some("second".into());
    });
    let registry = nowhere();
    let name = fake.name("x:1");
    manifest(&registry, &name, None).await.unwrap();
    second.plan(|p| p.token = Some("second-again".into()));
    manifest(&registry, &name, None).await.unwrap();
    assert_eq!(second.count("GET", "/token"), 2);
    // Its tokens are never good.
    second.plan(|p| p.token_answer = Some(b"{\"token\":\"second-never\"}".to_vec()));
    let registry = nowhere();
    let before = second.log().len();
    let error = manifest(&registry, &name, None).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("not shown to where it redirects"),
        "{error}"
    );
    assert_eq!(second.log().len(), before + 3);
    // It wants a password, which is nobody's there.
    second.plan(|p| {
        p.bearer = None;
        p.basic = Some(("u".into(), "canary".into()));
    });
    let error = manifest(&nowhere(), &name, Some(&auth("u", "canary"))).await;
    assert!(matches!(error, Err(Error::Denied { .. })), "{error:?}");
    untold(&second);
}

#[tokio::test]
async fn ten_redirects_are_followed_and_a_circle_ends() {
    let made = simple();
    for (hops, good) in [(10, true), (11, false)] {
        let mut chain = vec![Fake::http().await];
        chain[0].put_image("x", "1", &made);
        for _ in 0..hops {
            let fake = Fake::http().await;
            let to = format!("{}{{}}", url(chain.last().unwrap()));
            fake.plan(|p| p.moved = Some(("/v2/".into(), 302, to)));
            chain.push(fake);
        }
        let name = chain.last().unwrap().name("x:1");
        let got = manifest(&nowhere(), &name, None).await;
        assert_eq!(got.is_ok(), good, "{got:?}");
    }
    let fake = Fake::http().await;
    fake.plan(|p| p.moved = Some(("/v2/".into(), 302, "{}".into())));
    let error = manifest(&nowhere(), &fake.name("x:1"), None)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("too many redirects, or they lead in a circle"),
        "{error}"
    );
    assert_eq!(fake.log().len(), 11);
}

#[tokio::test]
async fn a_token_service_may_move() {
    for status in [301, 302, 303, 307, 308] {
        let (fake, service, moved) = (Fake::http().await, Fake::http().await, Fake::http().await);
        fake.put_image("x", "1", &simple());
        fake.plan(|p| {
            p.bearer = Some(None);
            p.realm = Some(format!("{}/token", url(&service)));
        });
        service.plan(|p| p.moved = Some(("/token".into(), status, format!("{}{{}}", url(&moved)))));
        manifest(&nowhere(), &fake.name("x:1"), None).await.unwrap();
        assert_eq!(
            moved.count("GET", "/token?service=fake&scope="),
            1,
            "{status}"
        );
        // With a password it is the same, and it stays where it was meant to be seen.
        manifest(&nowhere(), &fake.name("x:1"), Some(&auth("u", "canary")))
            .await
            .unwrap();
        assert!(service.log()[1].headers.contains_key("authorization"));
        assert!(!moved.log()[1].headers.contains_key("authorization"));
        moved.plan(|p| p.bearer = Some(Some(("u".into(), "canary".into()))));
        let error = manifest(&nowhere(), &fake.name("x:1"), Some(&auth("u", "canary"))).await;
        let text = error.unwrap_err().to_string();
        assert!(text.contains("not shown to where it redirects"), "{text}");
        assert!(!text.contains("canary"), "{text}");
    }
}

#[tokio::test]
async fn a_refresh_token_stays_with_its_service() {
    let refresh = RegistryAuth {
        identity_token: "canary".into(),
        ..RegistryAuth::default()
    };
    for status in [301, 302, 303, 307, 308] {
        let (fake, thief) = (Fake::http().await, Fake::http().await);
        fake.put_image("x", "1", &simple());
        let name = fake.name("x:1");
        fake.plan(|p| {
            p.bearer = Some(None);
            p.refresh = Some("canary".into());
            p.moved = Some(("/token".into(), status, format!("{}/token", url(&thief))));
        });
        let got = manifest(&nowhere(), &name, Some(&refresh)).await;
        if matches!(status, 307 | 308) {
            let text = got.unwrap_err().to_string();
            assert!(
                text.contains("show the credentials to another host"),
                "{text}"
            );
            assert!(thief.log().is_empty());
        } else {
            got.unwrap();
            assert_eq!(thief.count("GET", "/token"), 1);
        }
        assert!(!format!("{:?}", thief.log()).contains("canary"));
        // At the same host it goes along.
        fake.plan(|p| p.realm = Some(format!("{}/old", url(&fake))));
        fake.plan(|p| p.moved = Some(("/old".into(), status, "/token".into())));
        let got = manifest(&nowhere(), &name, Some(&refresh)).await;
        assert_eq!(
            got.is_ok(),
            matches!(status, 307 | 308),
            "{status}: {got:?}"
        );
    }
}

#[tokio::test]
async fn nothing_leads_to_a_lower_scheme() {
    let (secure, plain) = (Fake::https().await, Fake::http().await);
    secure.put_image("x", "1", &simple());
    plain.put_image("x", "1", &simple());
    let name = secure.addr.to_string();
    let (_dir, registry) = hosts(
        &name,
        &format!(
            "server = \"https://{name}\"\nskip_verify = true\n[host.\"http://{}\"]\nskip_verify = true\n",
            plain.addr
        ),
    );
    let lower = async |want: usize| {
        let error = manifest(&registry, &secure.name("x:1"), None).await;
        let error = error.unwrap_err().to_string();
        assert!(error.contains("it would leave TLS"), "{error}");
        assert_eq!(plain.log().len(), want);
    };
    // From plain to TLS and back.
    plain.plan(|p| p.moved = Some(("/v2/".into(), 302, format!("https://{}{{}}", secure.addr))));
    secure.plan(|p| p.moved = Some(("/v2/".into(), 302, format!("http://{}{{}}", plain.addr))));
    lower(1).await;
    secure.plan(|p| {
        p.moved = None;
        p.bearer = Some(None);
        p.realm = Some(format!("http://{}/token", plain.addr));
    });
    let error = manifest(&registry, &secure.name("x:1"), None).await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("is not asked: it would leave TLS"),
        "{error}"
    );
    secure.plan(|p| {
        p.realm = Some(format!("https://{}/token", secure.addr));
        p.moved = Some(("/token".into(), 307, format!("http://{}{{}}", plain.addr)));
    });
    let error = manifest(&registry, &secure.name("x:1"), None).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("it would leave TLS"), "{error}");
    assert_eq!(plain.count("GET", "/token"), 0);
}

#[tokio::test]
async fn every_hop_is_explained() {
    let (fake, second) = (Fake::http().await, Fake::http().await);
    second.put_image("x", "1", &simple());
    fake.plan(|p| p.moved = Some(("/v2/".into(), 307, format!("{}{{}}", url(&second)))));
    second.plan(|p| p.bearer = Some(None));
    let reference: Reference = fake.name("x:1").parse().unwrap();
    let told = explain(&nowhere(), &reference, None).await;
    assert_eq!(told.error, None);
    let statuses: Vec<_> = told.steps[0].exchanges.iter().map(|e| e.status).collect();
    let want = [307, 401, 200, 307, 200].map(Some);
    assert_eq!(statuses, want, "{told:?}");
}
