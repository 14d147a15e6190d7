use proptest::prelude::*;
use reqwest::header::HeaderValue;

use super::*;

fn of(lines: &[&[u8]]) -> Option<Challenge> {
    let mut headers = HeaderMap::new();
    for line in lines {
        let value = HeaderValue::from_bytes(line).unwrap();
        headers.append(WWW_AUTHENTICATE, value);
    }
    challenge(&headers)
}

fn bearer(realm: &str, service: &str, scope: &str) -> Option<Challenge> {
    Some(Challenge::Bearer(Bearer {
        realm: realm.into(),
        service: service.into(),
        scope: scope.into(),
    }))
}

#[test]
fn challenges_parse() {
    let mut headers = HeaderMap::new();
    let put = |headers: &mut HeaderMap, text: &str| {
        headers.append(WWW_AUTHENTICATE, text.parse().unwrap());
    };
    assert_eq!(challenge(&headers), None);
    put(&mut headers, "Negotiate");
    assert_eq!(challenge(&headers), None);
    put(&mut headers, "Basic realm=\"x\"");
    assert_eq!(challenge(&headers), Some(Challenge::Basic));
    put(
        &mut headers,
        "Bearer realm=\"https://a/t\",service=\"s\",scope=\"repository:x:pull\"",
    );
    let bearer = Bearer {
        realm: "https://a/t".into(),
        service: "s".into(),
        scope: "repository:x:pull".into(),
    };
    assert_eq!(challenge(&headers), Some(Challenge::Bearer(bearer)));
}

#[test]
fn challenges_are_read_however_they_are_written() {
    let want = bearer("https://a/t?x=1", "s", "repository:x:pull,push");
    for line in [
        &b"Bearer realm=\"https://a/t?x=1\",service=\"s\",scope=\"repository:x:pull,push\""[..],
        b"bearer realm=\"https://a/t?x=1\" , service=s,scope = \"repository:x:pull,push\"",
        b"BEARER\tREALM=\"https://a/t?x=1\",\tService=\"s\",,SCOPE=\"repository:x:pull,push\",",
        b" Bearer  realm=https://a/t?x=1, service=\"s\" scope=\"repository:x:pull,push\"",
        b"Bearer realm=\"https://a\\/t?x=1\",service=\"\\s\",scope=\"repository:x:pull,push\"",
        b"Negotiate, Bearer realm=\"https://a/t?x=1\",service=\"s\",scope=\"repository:x:pull,push\"",
        b"Negotiate YII1/+==, Basic realm=\"x\", Bearer realm=\"https://a/t?x=1\",service=\"s\",scope=\"repository:x:pull,push\"",
        b"Basic realm=\"a, Bearer realm=b\", Bearer realm=\"https://a/t?x=1\",service=\"s\",scope=\"repository:x:pull,push\"",
        b"Bearer realm=\"https://a/t?x=1\",error=\"invalid_token\",service=\"s\",scope=\"repository:x:pull,push",
    ] {
        let got = of(&[line]);
        assert_eq!(got, want, "{}", String::from_utf8_lossy(line));
    }
    // Several headers, with what cannot be answered before.
    let lines = [
        &b"NTLM"[..],
        b"Basic realm=x",
        b"Bearer realm=\"https://a/\"",
    ];
    assert_eq!(of(&lines), bearer("https://a/", "", ""));
    assert_eq!(of(&[b"Bearer", b"basic"]), Some(Challenge::Basic));
    assert_eq!(of(&[b"Basic"]), Some(Challenge::Basic));
    for none in [
        &b""[..],
        b",,",
        b"=",
        b"\"",
        b"Digest realm=x",
        b"Bearer service=\"s\"",
    ] {
        assert_eq!(of(&[none]), None, "{}", String::from_utf8_lossy(none));
    }
}

#[test]
fn other_letters_than_ascii_are_taken() {
    assert_eq!(
        of(&[b"Bearer realm=\"https://a/t\xc3\xb6k\xe9n\",service=\"r\xc3\xa9gistre\",scope=\"\xe9\""]),
        bearer("https://a/t%C3%B6k%E9n", "r\u{e9}gistre", "\u{e9}")
    );
}

proptest! {
    #[test]
    fn any_header_is_read_to_its_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        parse(&bytes);
    }
}
