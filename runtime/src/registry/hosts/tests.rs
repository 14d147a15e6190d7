use proptest::prelude::*;

use super::*;

fn parsed(text: &str, registry: &str) -> Vec<Endpoint> {
    parse(text, Path::new("/nonexistent"), registry).unwrap().0
}

fn refusal(text: &str) -> String {
    let refused = parse(text, Path::new("/nonexistent"), "r.io").map(|_| ());
    let (path, reason) = refused.unwrap_err();
    format!(
        "{}{reason}",
        path.map(|p| format!("{}: ", p.display()))
            .unwrap_or_default()
    )
}

#[test]
fn hosts_come_in_the_order_of_the_file_and_the_server_last() {
    let all = parsed(
        r#"
server = "https://up.io"
[host."https://z.io"]
capabilities = ["pull"]
[host."http://a.io:5000"]
capabilities = ["pull", "resolve", "push"]
[host."https://z.io".header]
x-one = "1"
x-two = ["a", "b"]
[host."https://m.io/path"]
override_path = true
[host."bare.io/p"]
"#,
        "r.io",
    );
    let bases: Vec<_> = all.iter().map(|e| e.base.as_str()).collect();
    assert_eq!(
        bases,
        [
            "https://z.io/v2",
            "http://a.io:5000/v2",
            "https://m.io/path",
            "https://bare.io/p/v2",
            "https://up.io/v2"
        ]
    );
    assert!(!all[0].resolve && all[0].pull && all[1].resolve);
    assert_eq!(all[0].headers.get_all("x-two").iter().count(), 2);
    assert!(all[4].upstream && !all[0].upstream);
    assert_eq!(all[0].namespace.as_deref(), Some("r.io"));
    assert_eq!(all[0].tls.dial_timeout, Some(DIAL_TIMEOUT));
}

#[test]
fn a_host_that_is_the_server_is_no_mirror() {
    let text = "server = \"https://up.io\"\n[host.\"https://up.io\"]\n[host.\"https://m.io\"]\n";
    let upstream: Vec<bool> = parsed(text, "r.io").iter().map(|e| e.upstream).collect();
    assert_eq!(upstream, [true, false, true]);
}

#[test]
fn without_a_server_the_registry_itself_is_asked() {
    let base = |registry: &str| parsed("", registry)[0].base.to_string();
    assert_eq!(base("docker.io"), "https://registry-1.docker.io/v2");
    assert_eq!(base("r.io:5000"), "https://r.io:5000/v2");
    assert_eq!(base("localhost:5000"), "http://localhost:5000/v2");
    assert_eq!(parsed("", "docker.io")[0].namespace, None);
    assert_eq!(
        parsed("server = \"https://docker.io\"", "docker.io")[0].namespace,
        None
    );
}

#[test]
fn only_loopback_names_are_plain_without_a_file() {
    let none = Path::new("/nonexistent");
    let base = |registry: &str| load(none, registry).unwrap().remove(0).base.to_string();
    assert_eq!(base("localhost:5000"), "http://localhost:5000/v2");
    assert_eq!(base("127.1.2.3:5000"), "http://127.1.2.3:5000/v2");
    assert_eq!(base("[::1]:5000"), "http://[::1]:5000/v2");
    assert_eq!(base("127.example.com"), "https://127.example.com/v2");
    assert_eq!(base("localhost.evil.com"), "https://localhost.evil.com/v2");
    assert_eq!(base("10.0.0.1:80"), "https://10.0.0.1:80/v2");
}

#[test]
fn errors_name_the_place() {
    for (text, want) in [
        (
            "[host.\"https://a\"]\ncapabilities = [\"fly\"]",
            "unknown variant `fly`",
        ),
        ("skip_verify = \"no\"", "line 1: skip_verify: "),
        (
            "ca = \"a\"\nCA = \"b\"",
            "line 1: the key \"ca\" is there twice",
        ),
        ("host = 1", "\"host\" is not a table"),
        (
            "[host]\n\"https://a\" = 1",
            "[host.\"https://a\"] is not a table",
        ),
        (
            "\n[host.\"https://a\"]\nca = [1]",
            "[host.\"https://a\"]: line 3: ca: ",
        ),
        ("dial_timeout = \"-1s\"", "is not a duration"),
        (
            "[host.\"https://a\"]\ndial_timeout = \"soon\"",
            "[host.\"https://a\"]: dial_timeout",
        ),
        ("[host.\"ftp://a\"]", "only http and https"),
        ("[host.\"https://u:p@a\"]", "credentials in the URL"),
        ("server = \"https://a?x=1\"", "no query"),
        ("ca = 1", "a text or a list"),
        ("ca = \"missing.pem\"", "/nonexistent/missing.pem: "),
        ("[header]\n\"a b\" = \"x\"", "not a header name"),
        ("proxy = \"socks4://x\"", "proxy is of another kind"),
        ("proxy = \"socks5://\"", "proxy names no host"),
        ("\nserver = [", "line 2: not valid TOML: "),
    ] {
        let said = refusal(text);
        assert!(said.contains(want), "{text}: {said}");
    }
    assert!(!refusal("proxy = \"ftp://u:canary@x\"").contains("canary"));
}

#[test]
fn the_most_specific_directory_wins() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, server: &str| {
        std::fs::create_dir_all(dir.path().join(name)).unwrap();
        let text = format!("server = \"https://{server}\"");
        std::fs::write(dir.path().join(name).join("hosts.toml"), text).unwrap();
    };
    let host = |registry: &str| load(dir.path(), registry).unwrap().remove(0).host;
    write("_default", "default.io");
    assert_eq!(host("r.io:5000"), "default.io");
    write("r.io:5000", "colon.io");
    assert_eq!(host("r.io:5000"), "colon.io");
    write("r.io_5000_", "under.io");
    assert_eq!(host("r.io:5000"), "under.io");
    assert_eq!(host("r.io"), "default.io");
    std::fs::write(dir.path().join("_default/hosts.toml"), "ca = 1").unwrap();
    let error = load(dir.path(), "r.io").unwrap_err().to_string();
    assert!(error.contains("_default/hosts.toml"), "{error}");
}

#[test]
fn client_certificates_come_in_every_notation_and_from_dockers_files() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    for (name, text) in [
        ("a.cert", cert.clone()),
        ("a.key", key.clone()),
        ("both.pem", format!("{cert}{key}")),
        ("ca.crt", cert.clone()),
    ] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    for notation in [
        "[[\"a.cert\", \"a.key\"]]",
        "[\"both.pem\"]",
        "\"both.pem\"",
        "[[\"both.pem\", \"\"]]",
    ] {
        let (endpoints, _) = parse(&format!("client = {notation}"), dir.path(), "r.io").unwrap();
        assert_eq!(endpoints[0].tls.identities.len(), 1, "{notation}");
    }
    let tls = docker_certs(dir.path()).unwrap();
    assert_eq!(
        (tls.ca.len(), tls.identities.as_slice()),
        (1, &[format!("{cert}\n{key}").into_bytes()][..])
    );
}

#[test]
fn a_certificate_that_is_none_is_named_before_anybody_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("bad.pem"), "-----BEGIN canary").unwrap();
    for text in [
        "ca = \"bad.pem\"",
        "client = \"bad.pem\"",
        "[host.\"https://m\"]\nca = [\"bad.pem\"]",
    ] {
        let (path, why) = parse(text, dir.path(), "r.io").map(|_| ()).unwrap_err();
        assert_eq!(path, Some(dir.path().join("bad.pem")), "{text}");
        assert!(why.contains("PEM") && !why.contains("canary"), "{why}");
    }
    std::fs::create_dir(dir.path().join("r.io")).unwrap();
    std::fs::write(dir.path().join("r.io/own.crt"), "nothing").unwrap();
    let error = load(dir.path(), "r.io").unwrap_err().to_string();
    assert!(
        error.contains("r.io/own.crt: it holds no PEM certificate"),
        "{error}"
    );
}

#[test]
fn capabilities_are_named_in_any_case() {
    for (text, resolve, pull) in [
        ("[\"Pull\"]", false, true),
        ("[\"PULL\", \"rEsolve\"]", true, true),
        ("[\"Push\", \"Resolve\"]", true, false),
        ("[\"Referrers\"]", false, false),
        ("[]", true, true),
    ] {
        let text = format!("[host.\"https://m\"]\ncapabilities = {text}");
        let host = parsed(&text, "r.io").remove(0);
        assert_eq!((host.resolve, host.pull), (resolve, pull), "{text}");
    }
}

/// What such a key could have allowed is not allowed then.
#[test]
fn keys_are_read_in_any_case_and_unknown_ones_passed_over() {
    let text = r#"
Server = "https://up.io"
skip_verfiy = true
[HOST."https://m.io"]
Capabilities = ["pull"]
DIAL_TIMEOUT = "0s"
Skip_Verify = true
proxy = ""
[host2."https://n.io"]
[HOST."https://m.io".Header]
X-One = "1"
[HOST."https://m.io".rewrite."^a$"]
b = [1, { c = 2 }]
"#
    .replace(
        "rewrite = {}
",
        "",
    );
    let (all, unknown) = parse(&text, Path::new("/nonexistent"), "r.io").unwrap();
    let bases: Vec<_> = all.iter().map(|e| e.base.as_str()).collect();
    assert_eq!(bases, ["https://m.io/v2", "https://up.io/v2"]);
    let tls = &all[0].tls;
    assert!(tls.skip_verify && tls.proxy.is_none() && !all[0].resolve);
    assert_eq!(tls.dial_timeout, Some(Duration::ZERO));
    assert_eq!(all[0].headers["x-one"], "1");
    assert!(!all[1].tls.skip_verify);
    assert_eq!(
        unknown,
        [
            "the key \"skip_verfiy\" of the file (line 3)",
            "the key \"host2\" of the file (line 9)",
            "the key \"rewrite\" of [host.\"https://m.io\"] (line 12)",
        ]
    );
    let plain = "[host.\"https://m.io\"]\nrewrite = {}\nproxy = \" socks5://u:p@s \"";
    let (all, unknown) = parse(plain, Path::new("/nonexistent"), "r.io").unwrap();
    assert_eq!(unknown.len(), 1);
    assert_eq!(all[0].tls.proxy.as_deref(), Some("socks5h://u:p@s:1080"));
}

#[test]
fn a_file_is_read_as_containerd_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("r.io");
    std::fs::create_dir(&folder).unwrap();
    let load = |text: &str| {
        std::fs::write(folder.join("hosts.toml"), text).unwrap();
        let endpoints = load(dir.path(), "r.io").unwrap();
        endpoints
            .iter()
            .map(|e| e.base.to_string())
            .collect::<Vec<_>>()
    };
    let m = "https://m.io:5000/v2";
    let own = "https://r.io/v2";
    for (text, want) in [
        (
            "\u{feff}server = \"\"\r\n[host.\"https://m.io:5000/\"]\r\n",
            vec![m, own],
        ),
        (
            "[host.\"https://m.io:5000\"]\ndial_timeout = \"\"",
            vec![m, own],
        ),
        ("host.\"m.io:5000\".capabilities = [\"Pull\"]", vec![m, own]),
        (
            "[host]\n\"HTTPS://M.io:5000/v2/\" = { skip_verify = true }",
            vec![m, own],
        ),
        ("server = \"r.io/\"\n", vec![own]),
        ("", vec![own]),
    ] {
        assert_eq!(load(text), want, "{text:?}");
    }
}

#[test]
fn an_empty_file_leaves_the_certificates_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("r.io");
    std::fs::create_dir_all(folder.join("folder.crt")).unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
    let both = format!("{}{}", made.cert.pem(), made.signing_key.serialize_pem());
    std::fs::write(folder.join("hosts.toml"), "").unwrap();
    std::fs::write(folder.join("ca.crt"), made.cert.pem()).unwrap();
    // The key in the same file, and comments in an old encoding.
    let text = [b"# caf\xe9\n", both.as_bytes()].concat();
    std::fs::write(folder.join("me.cert"), text).unwrap();
    let own = load(dir.path(), "r.io").unwrap().remove(0);
    assert_eq!((own.tls.ca.len(), own.tls.identities.len()), (1, 1));
}

#[test]
fn client_certificates_of_every_kind_are_read_or_refused_in_words() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).unwrap();
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("a.pem", &format!("{key}{cert}"));
    write("c.pem", &format!("{cert}{}", other.cert.pem()));
    write(
        "k.pem",
        &format!(
            "-----BEGIN EC PARAMETERS-----\r\nBggq\r\n-----END EC PARAMETERS-----\r\n{}",
            key.replace('\n', "\r\n")
        ),
    );
    let openssl = include_bytes!("../tests/certificates/openssl.pem");
    std::fs::write(dir.path().join("rsa.pem"), openssl).unwrap();
    let mixed = "client = [\"a.pem\", [\"c.pem\", \"k.pem\"], [\"a.pem\", \"\"], \"rsa.pem\"]";
    let (endpoints, _) = parse(mixed, dir.path(), "r.io").unwrap();
    assert_eq!(endpoints[0].tls.identities.len(), 4);
    let locked = key.replace("PRIVATE", "ENCRYPTED PRIVATE");
    for (text, want) in [
        (format!("{cert}{locked}"), "protected by a password"),
        (
            format!(
                "{cert}{}",
                key.replacen('\n', "\nProc-Type: 4,ENCRYPTED\n\n", 1)
            ),
            "protected by a password",
        ),
        (
            format!("{cert}{}", other.signing_key.serialize_pem()),
            "belongs to another certificate",
        ),
        (cert.clone(), "no private key in PEM"),
        (key.clone(), "no certificate in PEM"),
        (
            format!("{cert}{}", key.replacen("MI", "M!", 1)),
            "the private key in it is broken",
        ),
        (
            format!("{}{key}", cert.replacen("MII", "M!!", 1)),
            "a certificate in it is broken",
        ),
    ] {
        write("bad.pem", &text);
        let refused = parse("client = \"bad.pem\"", dir.path(), "r.io").map(|_| ());
        let (path, why) = refused.unwrap_err();
        assert_eq!(path, Some(dir.path().join("bad.pem")));
        assert!(why.contains(want), "{want}: {why}");
    }
}

#[test]
fn durations_are_gos() {
    assert_eq!(duration("1m30s"), Some(Duration::from_secs(90)));
    assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
    assert_eq!(duration("1.5s"), Some(Duration::from_millis(1500)));
    assert_eq!(duration("1s5us"), Some(Duration::from_micros(1_000_005)));
    assert_eq!(duration("7\u{b5}s"), Some(Duration::from_micros(7)));
    assert_eq!(duration("5000000ns"), Some(Duration::from_millis(5)));
    for nothing in ["0", "0s", "+0", "0h0m0s"] {
        assert_eq!(duration(nothing), Some(Duration::ZERO), "{nothing}");
    }
    assert_eq!(duration("+.5s"), Some(Duration::from_millis(500)));
    for bad in ["", "+", "5", "s", "-1s", "-0s", "1e9h", "1..2s"] {
        assert_eq!(duration(bad), None, "{bad}");
    }
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused(text in "(\\PC|\n){0,120}") {
        let _ = parse(&text, Path::new("/nonexistent"), "r.io");
    }

    #[test]
    fn any_order_of_hosts_is_kept(names in proptest::collection::hash_set("[a-z]{1,8}", 1..12)) {
        let names: Vec<_> = names.into_iter().collect();
        let text: String = names.iter().map(|n| format!("[host.\"https://{n}.io\"]\n")).collect();
        let got: Vec<_> = parsed(&text, "r.io").iter().map(|e| e.host.clone()).collect();
        let mut want: Vec<_> = names.iter().map(|n| format!("{n}.io")).collect();
        want.push("r.io".into());
        prop_assert_eq!(got, want);
    }
}
