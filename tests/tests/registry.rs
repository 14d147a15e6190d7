//! Registries that misbehave, mirrors, credentials, proxies, and `berth explain image`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_tests::registry::faulty::{Fault, Faulty};
use berth_tests::runner::{Case, Test};
use berth_tests::runtime::Options;
use berth_tests::{ensure_eq, oci, paths, test};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub(crate) const TESTS: &[Test] = &[
    test!(faults_that_pass_are_survived).berth_only("faults are what it is made for"),
    test!(faults_that_stay_are_told_and_leave_nothing).berth_only("the words are Berth's"),
    test!(mirrors_in_order_and_the_explanation).berth_only("a command of Berth"),
    test!(secrets_stay_with_their_host).berth_only("its log is searched"),
    test!(credentials_of_the_node).berth_only("a key of Berth"),
    test!(explained_without_a_daemon).berth_only("a command of Berth"),
];

/// The registry of these tests, by its name in references.
pub(crate) const NAME: &str = "faulty.test";

/// Some 300 KiB, so that there is a middle to fail in.
fn image(mark: &str) -> Result<oci::Image> {
    sized_image(mark, 300 << 10)
}

/// One layer of so many bytes that does not pack.
pub(crate) fn sized_image(mark: &str, size: usize) -> Result<oci::Image> {
    let mut noise = Vec::with_capacity(size);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    while noise.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    let mut tree = oci::Tree::default();
    tree.file("mark", 0o644, mark.as_bytes())?;
    tree.file("noise", 0o644, &noise)?;
    let recipe = oci::Recipe {
        layers: vec![tree.layer(oci::Pack::Gzip)?],
        ..oci::Recipe::default()
    };
    recipe.build(oci::Flavor::Oci)
}

/// Path of the largest blob, which is the layer.
pub(crate) fn layer_of(image: &oci::Image) -> Result<String> {
    let largest = image.blobs.iter().max_by_key(|blob| blob.bytes.len());
    let digest = &largest.context("no blobs")?.digest;
    Ok(format!("/blobs/{digest}"))
}

/// A folder for this test's `hosts.toml` files, with those of all tests in it.
pub(crate) fn hosts_folder(case: &Case) -> Result<(tempfile::TempDir, PathBuf)> {
    let work = tempfile::Builder::new().prefix("bt-faulty-").tempdir()?;
    let hosts = case
        .shared()
        .registry
        .write_hosts(&work.path().join("hosts"))?;
    Ok((work, hosts))
}

pub(crate) async fn start(
    case: &mut Case,
    hosts: PathBuf,
    extra: &str,
) -> Result<berth_tests::cri::Cri> {
    let options = Options {
        hosts,
        extra: extra.to_owned(),
        ..case.options()
    };
    Ok(case.start_with(options).await?.cri()?.clone())
}

/// Everything that a moment later is over: the pull waits, goes on, and succeeds.
async fn faults_that_pass_are_survived(case: &mut Case) -> Result<()> {
    let (faulty, store) = (Faulty::start().await?, Faulty::start().await?);
    let (_work, hosts) = hosts_folder(case)?;
    Faulty::write_hosts(&hosts, NAME, &faulty.url(), &[])?;
    let cri = start(case, hosts, "silence_limit = 2\n").await?;
    let after = |seconds: u64| Some(seconds.to_string());
    let faults = [
        ("cut", "layer", Fault::Cut(100_000), 2),
        ("cut, then 503", "layer", Fault::Cut(100_000), 1),
        ("stall", "layer", Fault::Stall(100_000), 1),
        ("429 of a layer", "layer", Fault::Status(429, after(1)), 2),
        ("503", "/manifests/", Fault::Status(503, None), 2),
        ("500", "layer", Fault::Status(500, None), 1),
        ("silence", "/manifests/", Fault::Silence, 1),
        ("cut manifest", "/manifests/", Fault::Cut(10), 1),
        (
            "drip",
            "layer",
            Fault::Drip(20_000, Duration::from_millis(300)),
            1,
        ),
        ("redirect", "layer", Fault::Redirect(store.url()), 99),
        (
            "token",
            "/v2/",
            Fault::Bearer(format!("{}/token", faulty.url())),
            99,
        ),
    ];
    for (number, (fault, place, how, times)) in faults.into_iter().enumerate() {
        let image = image(fault)?;
        let tag = format!("pass{number}");
        for registry in [&faulty, &store] {
            registry.add("x", &tag, &image);
        }
        let place = match place {
            "layer" => layer_of(&image)?,
            other => other.to_owned(),
        };
        faulty.heal();
        faulty.fault(&place, how, times);
        if fault == "cut, then 503" {
            // A registry that starts again: first its proxy answers.
            faulty.fault(&place, Fault::Status(503, after(1)), 2);
        }
        let name = format!("{NAME}/x:{tag}");
        let begun = Instant::now();
        let id = cri
            .pull(&name)
            .await
            .with_context(|| format!("after {fault}"))?;
        // As every list shows it, and with the bytes that it should have: a digest was compared.
        let shown = cri.image_status(&name).await?.context("it is not there")?;
        ensure_eq!(shown.id, id);
        if matches!(fault, "429 of a layer" | "cut, then 503") {
            ensure!(
                begun.elapsed() >= Duration::from_secs(2),
                "it did not wait as told"
            );
        }
        cri.remove_image(&name).await?;
    }
    Ok(())
}

/// Everything that stays as it is: a sentence, no image, and the right one afterwards.
async fn faults_that_stay_are_told_and_leave_nothing(case: &mut Case) -> Result<()> {
    let faulty = Faulty::start().await?;
    let (_work, hosts) = hosts_folder(case)?;
    Faulty::write_hosts(&hosts, NAME, &faulty.url(), &[])?;
    let cri = start(case, hosts, "silence_limit = 1\n").await?;
    let image = image("stays")?;
    let layer = layer_of(&image)?;
    faulty.add("x", "1", &image);
    let looped = faulty.url();
    for (place, how, want) in [
        (layer.as_str(), Fault::WrongBytes, "sent other content"),
        (&layer, Fault::Short, "its descriptor says"),
        (&layer, Fault::Cut(0), "incompletely"),
        (
            &layer,
            Fault::Drip(100, Duration::from_millis(500)),
            "less than 1024 bytes a second",
        ),
        (&layer, Fault::Status(404, None), "has no blob"),
        (&layer, Fault::Redirect(looped), "too many redirects"),
        (
            &layer,
            Fault::Redirect("http://169.254.169.254".into()),
            "link-local",
        ),
        ("/manifests/", Fault::WrongBytes, "sent other content"),
        ("/v2/", Fault::Status(401, None), "denies access"),
        ("/v2/", Fault::Status(403, None), "denies access"),
        (
            "/manifests/",
            Fault::Status(429, Some("7200".into())),
            "left alone for 7200 s",
        ),
        ("/manifests/", Fault::Status(500, None), "answered 500"),
        (
            "/v2/",
            Fault::Basic("u", "p"),
            "wants a user and a password",
        ),
    ] {
        faulty.fault(place, how.clone(), 999);
        let error = cri.pull(&format!("{NAME}/x:1")).await.err();
        let error = error.with_context(|| format!("{how:?}: it was pulled"))?;
        ensure!(error.message().contains(want), "{how:?}: {error}");
        ensure!(!error.message().contains("canary"), "{how:?}: {error}");
        ensure_eq!(cri.image_status(&format!("{NAME}/x:1")).await?, None);
        faulty.heal();
    }
    bad_manifests(&cri, &faulty).await?;
    cri.pull(&format!("{NAME}/x:1")).await?;
    drop(faulty);
    let error = cri
        .pull(&format!("{NAME}/x:2"))
        .await
        .err()
        .context("from nobody")?;
    ensure!(
        error.message().starts_with("RegistryUnavailable"),
        "{error}"
    );
    Ok(())
}

async fn bad_manifests(cri: &berth_tests::cri::Cri, faulty: &Faulty) -> Result<()> {
    let old = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let index = "application/vnd.oci.image.index.v1+json";
    let mut nested = image("nested")?;
    for _ in 0..9 {
        nested = oci::Image::index(oci::Flavor::Oci, &[(oci::go_arch(), &nested)])?;
    }
    faulty.add("x", "nested", &nested);
    faulty.add_manifest("x", "old", old, b"{\"schemaVersion\":1,\"fsLayers\":[]}");
    let both = b"{\"schemaVersion\":2,\"manifests\":[],\"layers\":[]}";
    faulty.add_manifest("x", "both", index, both);
    faulty.add_manifest("x", "huge", index, &vec![b' '; (4 << 20) + 1]);
    faulty.add_manifest("x", "page", "text/html", b"<html>log in</html>");
    for (tag, want) in [
        ("nested", "nested more than"),
        ("old", "Docker schema 1"),
        ("both", "ambiguous"),
        ("huge", "longer than"),
        ("page", "not a manifest"),
    ] {
        let error = cri.pull(&format!("{NAME}/x:{tag}")).await.err();
        let error = error.with_context(|| format!("{tag} was pulled"))?;
        ensure!(error.message().contains(want), "{tag}: {error}");
    }
    Ok(())
}

/// Runs a command of the operator; gives what it printed, and whether it was content.
async fn berth(args: &[&str], variables: &[(&str, &str)]) -> Result<(String, bool)> {
    let output = tokio::process::Command::new(paths::berth_dir().join("berth"))
        .args(args)
        .envs(variables.iter().copied())
        .output()
        .await?;
    let error = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!text.is_empty(), "`berth {}`: {error}", args.join(" "));
    Ok((text, output.status.success()))
}

/// The first mirror is down, the second busy, the third has a damaged layer; the image comes all the same, and the
/// explanation says so.
async fn mirrors_in_order_and_the_explanation(case: &mut Case) -> Result<()> {
    let (busy, liar, up) = (
        Faulty::start().await?,
        Faulty::start().await?,
        Faulty::start().await?,
    );
    let (_work, hosts) = hosts_folder(case)?;
    let (busy_url, liar_url) = (busy.url(), liar.url());
    let mirrors = ["http://127.0.0.1:1", busy_url.as_str(), &liar_url];
    Faulty::write_hosts(&hosts, NAME, &up.url(), &mirrors)?;
    let image = image("mirrors")?;
    for registry in [&liar, &up] {
        registry.add("x", "1", &image);
    }
    busy.fault("/v2/", Fault::Status(503, None), 999);
    liar.fault(&layer_of(&image)?, Fault::WrongBytes, 999);
    let cri = start(case, hosts, "").await?;
    let config = case.instance()?.config_file().display().to_string();
    let name = format!("{NAME}/x:1");
    let json = ["explain", "image", &name, "--json", "--config", &config];
    let (text, content) = berth(&json, &[]).await?;
    ensure!(content, "{text}");
    let told: Value = serde_json::from_str(&text)?;
    ensure_eq!(told["hosts"].as_array().map(Vec::len), Some(4));
    ensure_eq!(told["image"]["stored"], Value::Bool(false));
    ensure_eq!(
        told["image"]["digest"].as_str(),
        Some(image.top.digest.as_str())
    );
    let steps = told["steps"].as_array().context("no steps")?;
    ensure_eq!(steps[0]["host"].as_str(), Some("127.0.0.1:1"));
    ensure!(
        steps[0]["error"]
            .as_str()
            .is_some_and(|e| e.contains("refused")),
        "{text}"
    );
    ensure_eq!(steps[1]["exchanges"][0]["status"].as_u64(), Some(503));
    ensure_eq!(steps[1]["next"].as_str(), Some("the next host is asked"));
    ensure_eq!(
        steps[2]["host"].as_str(),
        Some(liar.address().to_string().as_str())
    );
    ensure_eq!(steps[2]["error"], Value::Null);

    cri.pull(&name).await?;
    ensure!(
        up.seen().iter().any(|seen| seen.path.contains("/blobs/")),
        "the layer did not come from the server"
    );
    let mirrored = busy.seen().into_iter().next().context("it was not asked")?;
    ensure!(
        mirrored.path.contains(&format!("ns={NAME}")),
        "{}",
        mirrored.path
    );
    let page = ["explain", "image", &name, "--config", &config];
    let (text, _) = berth(&page, &[]).await?;
    for part in [
        "(mirror)",
        "(server)",
        "-> 503",
        "so the next host is asked",
        "stored   yes",
    ] {
        ensure!(text.contains(part), "{part}: {text}");
    }
    let missing = [
        "explain",
        "image",
        "faulty.test/none:1",
        "--config",
        &config,
    ];
    let (text, content) = berth(&missing, &[]).await?;
    ensure!(!content && text.contains("error      "), "{text}");
    Ok(())
}

/// Sends the admin socket a request, and reads until the end.
async fn admin(case: &mut Case, request: &str) -> Result<String> {
    let socket = case.instance()?.folder().join("state/admin.sock");
    let mut stream = tokio::net::UnixStream::connect(socket).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// A mirror, a store that is redirected to, and a token service of another host see no password; nor does the log,
/// whatever it tells.
async fn secrets_stay_with_their_host(case: &mut Case) -> Result<()> {
    let (mirror, store, up) = (
        Faulty::start().await?,
        Faulty::start().await?,
        Faulty::start().await?,
    );
    let (_work, hosts) = hosts_folder(case)?;
    let mirror_url = mirror.url();
    Faulty::write_hosts(&hosts, NAME, &up.url(), &[&mirror_url])?;
    let path = hosts.join(NAME).join("hosts.toml");
    let mut text = std::fs::read_to_string(&path)?;
    text = text.replacen('\n', "\n[header]\nx-own = \"canary-header\"\n", 1);
    std::fs::write(&path, text)?;
    let cri = start(case, hosts, "").await?;
    let put =
        "PUT /log-level HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 5\r\n\r\ndebug";
    let answer = admin(case, put).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let image = image("secrets")?;
    for registry in [&store, &up] {
        registry.add("x", "1", &image);
    }
    mirror.fault("/v2/", Fault::Basic("mirror", "other"), 999);
    up.fault("/blobs/", Fault::Redirect(store.url()), 999);
    up.fault("/v2/", Fault::Basic("u", "canary-password"), 999);
    let name = format!("{NAME}/x:1");
    cri.pull_as(&name, Some(("u", "canary-password"))).await?;
    ensure!(
        up.seen()
            .iter()
            .any(|seen| seen.headers.contains_key("authorization")),
        "the registry itself got no credentials"
    );
    ensure!(
        up.seen()
            .iter()
            .all(|seen| seen.headers.contains_key("x-own")),
        "the registry itself did not get the header of its hosts.toml"
    );
    ensure!(
        !mirror.seen().is_empty() && !store.seen().is_empty(),
        "they were not asked"
    );
    // The registry itself has set it, and so have the others.
    ensure!(
        up.seen()
            .iter()
            .all(|seen| !seen.headers.contains_key("cookie")),
        "a cookie came back"
    );
    for seen in [mirror.seen(), store.seen()].concat() {
        for header in ["authorization", "cookie", "x-own", "referer"] {
            ensure!(!seen.headers.contains_key(header), "{header} in {seen:?}");
        }
    }
    cri.remove_image(&name).await?;

    // The store turns thief: it asks for the password itself, and names itself as the token service.
    up.heal();
    let realm = format!("http://localhost:{}/token", store.address().port());
    up.fault("/v2/", Fault::Bearer(realm), 999);
    let before = store.seen().len();
    let error = cri
        .pull_as(&name, Some(("u", "canary-password")))
        .await
        .err();
    let error = error.context("a stranger's token was taken")?;
    ensure!(error.message().contains("another domain"), "{error}");
    ensure_eq!(store.seen().len(), before);

    up.heal();
    up.fault("/blobs/", Fault::Redirect(store.url()), 999);
    store.fault("/blobs/", Fault::Status(403, None), 999);
    let error = cri
        .pull_as(&name, Some(("u", "canary-password")))
        .await
        .err();
    let error = error.context("a forbidden blob was pulled")?;
    ensure!(!error.message().contains("canary"), "{error}");
    let log = std::fs::read_to_string(case.instance()?.log_file())?;
    ensure!(
        log.contains("a host did not do"),
        "the log tells no details"
    );
    let leak = log.lines().find(|line| line.contains("canary"));
    ensure!(leak.is_none(), "in the log: {leak:?}");
    Ok(())
}

/// What the node itself knows is used for pulls that bring nothing, and for no others.
async fn credentials_of_the_node(case: &mut Case) -> Result<()> {
    let up = Faulty::start().await?;
    let (work, hosts) = hosts_folder(case)?;
    Faulty::write_hosts(&hosts, NAME, &up.url(), &[])?;
    up.add("x", "1", &image("node")?);
    up.fault("/v2/x/", Fault::Basic("node", "own"), 999);
    let file = work.path().join("auth.json");
    let name = format!("{NAME}/x:1");
    let extra = format!("credentials_file = \"{}\"\n", file.display());
    let cri = start(case, hosts, &extra).await?;
    let error = cri.pull(&name).await.err().context("without credentials")?;
    ensure!(error.message().contains("denies access"), "{error}");
    // It is read at every pull: no restart.
    std::fs::write(
        &file,
        "{\"auths\":{\"faulty.test\":{\"username\":\"node\",\"password\":\"own\"}}}",
    )?;
    let error = cri.pull_as(&name, Some(("other", "wrong"))).await.err();
    ensure!(
        error.is_some(),
        "the node's credentials stood in for wrong ones"
    );
    cri.pull(&name).await?;
    cri.remove_image(&name).await?;
    // An operator can try a pull secret without a pod.
    let config = case.instance()?.config_file().display().to_string();
    let secret = work.path().join("secret.json").display().to_string();
    for (password, right) in [("own", true), ("canary", false)] {
        let text = format!(
            "{{\"auths\":{{\"{NAME}\":{{\"username\":\"node\",\"password\":\"{password}\"}}}}}}"
        );
        std::fs::write(&secret, text)?;
        let tried = [
            "explain",
            "image",
            &name,
            "--config",
            &config,
            "--credentials",
            &secret,
        ];
        let (text, content) = berth(&tried, &[]).await?;
        ensure!(
            content == right && text.contains("credentials: of the request"),
            "{text}"
        );
        ensure!(!text.contains("canary"), "{text}");
    }
    std::fs::write(&file, "{\"auths\": canary")?;
    let error = cri.pull(&name).await.err().context("a broken file")?;
    ensure!(error.message().contains("auth.json"), "{error}");
    ensure!(!error.message().contains("canary"), "{error}");
    Ok(())
}

/// The same answers by the command alone, with the proxy and the credential helper of its environment.
async fn explained_without_a_daemon(_: &mut Case) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let (up, work) = (
        Faulty::start().await?,
        tempfile::Builder::new().prefix("bt-faulty-").tempdir()?,
    );
    let folder = work.path();
    Faulty::write_hosts(
        &folder.join("hosts"),
        "proxied.test",
        "http://proxied.test",
        &[],
    )?;
    up.add("x", "1", &image("proxied")?);
    up.fault("/v2/", Fault::Basic("helped", "canary"), 999);
    let helper = folder.join("docker-credential-bttest");
    std::fs::write(
        &helper,
        "#!/bin/sh\nread -r server\n[ \"$server\" = proxied.test ] && echo '{\"Username\":\"helped\",\"Secret\":\"canary\"}'\n",
    )?;
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755))?;
    let auth = folder.join("auth.json");
    std::fs::write(&auth, "{\"credHelpers\":{\"proxied.test\":\"bttest\"}}")?;
    let config = folder.join("config.toml");
    std::fs::write(
        &config,
        format!(
            "state = \"{0}/state\"\n[images]\nregistry_hosts_dir = \"{0}/hosts\"\ncredentials_file = \"{0}/auth.json\"\n",
            folder.display()
        ),
    )?;
    let config = config.display().to_string();
    let search = format!(
        "{}:{}",
        folder.display(),
        std::env::var("PATH").unwrap_or_default()
    );
    // `up` stands in for the proxy: a request that comes to it names the registry as a whole.
    let proxy = format!("http://someone:canary@{}", up.address());
    let variables = [
        ("http_proxy", proxy.as_str()),
        ("PATH", &search),
        ("no_proxy", ""),
    ];
    let page = ["explain", "image", "proxied.test/x:1", "--config", &config];
    let (text, content) = berth(&page, &variables).await?;
    ensure!(content, "{text}");
    for part in [
        "proxy: http://127.0.0.1:",
        "docker-credential-bttest",
        "-> 401",
        "unknown: the daemon",
    ] {
        ensure!(text.contains(part), "{part}: {text}");
    }
    ensure!(!text.contains("canary"), "{text}");
    let seen = up.seen();
    ensure!(
        seen.iter()
            .all(|seen| seen.path.starts_with("http://proxied.test/v2/")),
        "{seen:?}"
    );
    ensure!(
        seen.iter()
            .all(|seen| seen.headers.contains_key("proxy-authorization")),
        "{seen:?}"
    );
    let exempt = [variables[0], variables[1], ("no_proxy", ".test")];
    let (text, content) = berth(&page, &exempt).await?;
    ensure!(!content && text.contains("RegistryUnavailable"), "{text}");
    ensure_eq!(up.seen().len(), seen.len());
    Ok(())
}
