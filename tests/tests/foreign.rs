//! Images as other programs make them: what Go's tools write and read, and what stands beside an image.

use anyhow::{Context as _, Result, ensure};
use berth_tests::cri::image_spec;
use berth_tests::oci::{Blob, Flavor, Image, Pack, Tree};
use berth_tests::pods::{Pod, container, pod_config};
use berth_tests::runner::{Case, Test};
use berth_tests::{ensure_eq, images, test};
use serde_json::{Value, json};

use crate::image::run_echo;
use crate::storage::berth;

pub(crate) const TESTS: &[Test] = &[
    test!(documents_that_go_reads_make_images),
    test!(documents_of_two_meanings_are_refused).berth_only("containerd takes the last of two"),
    test!(one_odd_entry_spoils_no_index),
    test!(entries_for_others_are_passed_over).berth_only("the words are Berth's"),
    test!(a_stop_signal_that_is_none_is_sigterm).berth_only("containerd looks at it when it stops"),
    test!(machines_that_configurations_name),
    test!(blobs_beside_the_layers_are_passed_over),
    test!(archives_with_signatures_load).berth_only("a command of Berth"),
    test!(names_with_detours_are_cleaned),
];

async fn push(case: &Case, tag: &str, image: &Image) -> Result<String> {
    let client = case.shared().registry.client();
    client.push("foreign", &[tag], image).await?;
    Ok(format!("berth.test/foreign:{tag}"))
}

/// The same image with other text for its configuration.
fn with_config(image: &Image, change: impl FnOnce(String) -> Vec<u8>) -> Result<Image> {
    let mut image = image.clone();
    let config = image.blobs.last_mut().context("no configuration")?;
    let bytes = change(String::from_utf8(config.bytes.clone())?);
    *config = Blob::new(&config.media_type, bytes);
    let (digest, size) = (config.digest.clone(), config.bytes.len());
    let mut manifest: Value = serde_json::from_slice(&image.top.bytes)?;
    manifest["config"]["digest"] = json!(digest);
    manifest["config"]["size"] = json!(size);
    image.top = Blob::new(&image.top.media_type, serde_json::to_vec(&manifest)?);
    image.manifests = vec![image.top.clone()];
    Ok(image)
}

async fn documents_that_go_reads_make_images(case: &mut Case) -> Result<()> {
    let plain = images::Kit::new()?.busybox()?;
    let alias = match std::env::consts::ARCH {
        "aarch64" => "AArch64",
        _ => "x86_64",
    };
    let images = [
        (
            "null-label",
            plain.changed(|config, _| {
                config["config"]["Labels"] = json!({"a": null, "b": "x"});
                config["config"]["User"] = Value::Null;
                config["config"]["Volumes"] = Value::Null;
                config["history"] = Value::Null;
            })?,
        ),
        (
            "no-os",
            plain.changed(|config, _| {
                config.as_object_mut().map(|config| config.remove("os"));
                config["architecture"] = json!(alias);
            })?,
        ),
        (
            "upper-case",
            plain.changed(|config, _| {
                config["OS"] = json!("Linux");
                config.as_object_mut().map(|config| config.remove("os"));
                config["Config"] = config["config"].take();
                config.as_object_mut().map(|config| config.remove("config"));
            })?,
        ),
        (
            "surrogate",
            with_config(&plain, |text| {
                let text = text.replacen('{', "{\"author\":\"\\ud800x@\",", 1);
                let at = text.find('@').unwrap_or(0);
                [&text.as_bytes()[..at], b"\xff", &text.as_bytes()[at + 1..]].concat()
            })?,
        ),
        (
            "null-annotations",
            plain.changed(|_, manifest| {
                manifest["annotations"] = Value::Null;
                manifest["layers"][0]["annotations"] = json!({"a": null});
                manifest["layers"][0]["urls"] = Value::Null;
            })?,
        ),
    ];
    case.start().await?;
    for (tag, image) in images {
        let name = push(case, tag, &image).await?;
        let pulled = case.cri()?.pull(&name).await;
        pulled.with_context(|| format!("pulling {tag}"))?;
        run_echo(case, &name).await?;
    }
    Ok(())
}

async fn documents_of_two_meanings_are_refused(case: &mut Case) -> Result<()> {
    let plain = images::Kit::new()?.busybox()?;
    let twice = |member: &'static str| {
        with_config(&plain, move |text| {
            text.replacen('{', &format!("{{{member},"), 1).into_bytes()
        })
    };
    case.start().await?;
    for (tag, image) in [
        ("os-twice", twice(r#""OS":"linux""#)?),
        ("config-twice", twice(r#""Config":{"Env":[]}"#)?),
        ("rootfs-twice", twice("\"rootf\u{17f}\":{}")?),
    ] {
        let name = push(case, tag, &image).await?;
        let error = case.cri()?.pull(&name).await.err();
        let error = error.with_context(|| format!("{tag} was pulled"))?;
        ensure!(
            error.message().contains("duplicate member"),
            "{tag}: {error}"
        );
    }
    let name = push(
        case,
        "lines",
        &plain.changed(|config, _| config["architecture"] = json!("a\nlevel=error"))?,
    )
    .await?;
    let error = case
        .cri()?
        .pull(&name)
        .await
        .err()
        .context("it was pulled")?;
    ensure!(error.message().contains(r"a\nlevel"), "{error}");
    ensure!(!error.message().contains('\n'), "{error}");
    Ok(())
}

fn index_of(image: &Image, before: &[Value]) -> Result<Image> {
    let arch = match std::env::consts::ARCH {
        "aarch64" => "aarch64",
        _ => "x86_64",
    };
    let mut index = Image::index(Flavor::Oci, &[(arch, image)])?;
    let mut text: Value = serde_json::from_slice(&index.top.bytes)?;
    let entries = text["manifests"].as_array_mut().context("no entries")?;
    entries.splice(0..0, before.iter().cloned());
    index.manifests.pop();
    index.top = Blob::new(&index.top.media_type, serde_json::to_vec(&text)?);
    index.manifests.push(index.top.clone());
    Ok(index)
}

async fn one_odd_entry_spoils_no_index(case: &mut Case) -> Result<()> {
    let image = images::Kit::new()?.busybox()?;
    let mut odd = json!({
        "mediaType": image.top.media_type, "digest": image.top.digest, "size": image.top.bytes.len(),
    });
    case.start().await?;
    for (tag, platform) in [
        ("odd-empty", json!({})),
        ("odd-null", json!({"os": null, "architecture": null})),
        (
            "odd-unknown",
            json!({"os": "unknown", "architecture": "unknown"}),
        ),
        (
            "odd-os",
            json!({"os": "plan9", "architecture": "x86_64", "os.version": "", "os.features": null}),
        ),
    ] {
        odd["platform"] = platform;
        let name = push(case, tag, &index_of(&image, &[odd.clone()])?).await?;
        let pulled = case.cri()?.pull(&name).await;
        pulled.with_context(|| format!("pulling {tag}"))?;
        run_echo(case, &name).await?;
    }
    Ok(())
}

/// An entry that claims this machine, and wants more than this runtime has.
async fn entries_for_others_are_passed_over(case: &mut Case) -> Result<()> {
    let image = images::Kit::new()?.busybox()?;
    let arch = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    case.start().await?;
    let wants = json!({
        "mediaType": image.top.media_type, "digest": image.top.digest, "size": image.top.bytes.len(),
        "platform": {"os": "linux", "architecture": arch, "os.features": ["erofs"]},
    });
    let good = index_of(&image, &[wants])?;
    let name = push(case, "features", &good).await?;
    case.cri()?.pull(&name).await?;
    run_echo(case, &name).await?;
    let mut alone = good.clone();
    let mut text: Value = serde_json::from_slice(&alone.top.bytes)?;
    let entries = text["manifests"].as_array_mut().context("no entries")?;
    entries.truncate(1);
    alone.manifests.pop();
    alone.top = Blob::new(&alone.top.media_type, serde_json::to_vec(&text)?);
    alone.manifests.push(alone.top.clone());
    let name = push(case, "features-alone", &alone).await?;
    let error = case.cri()?.pull(&name).await.err();
    let error = error.context("it was pulled")?;
    let said = error.message();
    ensure!(
        said.contains("no image for linux/") && said.contains("erofs"),
        "{said}"
    );
    Ok(())
}

async fn a_stop_signal_that_is_none_is_sigterm(case: &mut Case) -> Result<()> {
    let plain = images::Kit::new()?.busybox()?;
    case.start().await?;
    for (tag, signal) in [("signal-foo", "SIGFOO"), ("signal-99", "99")] {
        let image = plain.changed(|config, _| config["config"]["StopSignal"] = json!(signal))?;
        let name = push(case, tag, &image).await?;
        case.cri()?.pull(&name).await?;
        run_echo(case, &name).await?;
        let log = std::fs::read_to_string(case.first()?.log_file())?;
        let told = |line: &str| line.contains(signal) && line.contains("SIGTERM is taken");
        ensure!(log.lines().any(told), "nothing is said of {signal}");
    }
    Ok(())
}

/// What an image says of its machine does not count where an index has said it, or where nobody was to choose.
async fn machines_that_configurations_name(case: &mut Case) -> Result<()> {
    let plain = images::Kit::new()?.busybox()?;
    let other = plain.changed(|config, _| config["architecture"] = json!("s390x"))?;
    case.start().await?;
    for (tag, image) in [
        ("machine-alone", other.clone()),
        ("machine-in-index", index_of(&other, &[])?),
    ] {
        let name = push(case, tag, &image).await?;
        let pulled = case.cri()?.pull(&name).await;
        pulled.with_context(|| format!("pulling {tag}"))?;
        run_echo(case, &name).await?;
        let info = case.cri()?.image_info(&name).await?;
        let info: Value = serde_json::from_str(info.get("info").context("no info")?)?;
        ensure_eq!(info["imageSpec"]["architecture"], json!("s390x"));
        ensure_eq!(info["imageSpec"]["os"], json!("linux"));
    }
    Ok(())
}

/// An image with a blob in front of its layers.
fn with_blob(image: &Image, kind: &str) -> Result<Image> {
    let blob = Blob::new(kind, br#"{"predicateType":"x"}"#.to_vec());
    let mut more = image.changed(|_, manifest| {
        let entry = json!({"mediaType": kind, "digest": blob.digest, "size": blob.bytes.len()});
        if let Some(layers) = manifest["layers"].as_array_mut() {
            layers.insert(0, entry);
        }
    })?;
    more.blobs.insert(0, blob);
    Ok(more)
}

async fn blobs_beside_the_layers_are_passed_over(case: &mut Case) -> Result<()> {
    let plain = images::Kit::new()?.busybox()?;
    case.start().await?;
    for (tag, kind) in [
        ("in-toto", "application/vnd.in-toto+json"),
        ("cosign", "application/vnd.dev.cosign.simplesigning.v1+json"),
        ("text", "text/plain"),
        ("untyped", ""),
    ] {
        let name = push(case, tag, &with_blob(&plain, kind)?).await?;
        let pulled = case.cri()?.pull(&name).await;
        pulled.with_context(|| format!("pulling {tag}"))?;
        run_echo(case, &name).await?;
    }
    for (tag, kind) in [
        (
            "encrypted",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        ),
        ("unknown", "application/vnd.oci.image.layer.v9.tar"),
    ] {
        let name = push(case, tag, &with_blob(&plain, kind)?).await?;
        ensure!(case.cri()?.pull(&name).await.is_err(), "{tag} was pulled");
    }
    Ok(())
}

async fn archives_with_signatures_load(case: &mut Case) -> Result<()> {
    let plain = images::Kit::new()?.busybox()?;
    let signature = Blob::new(
        "application/vnd.dev.cosign.simplesigning.v1+json",
        b"{}".to_vec(),
    );
    let config = Blob::new(
        "application/vnd.oci.image.config.v1+json",
        serde_json::to_vec(&json!({
            "architecture": "", "os": "", "rootfs": {"type": "layers", "diff_ids": [signature.digest]},
        }))?,
    );
    let about = |blob: &Blob| json!({"mediaType": blob.media_type, "digest": blob.digest, "size": blob.bytes.len()});
    let manifest = Blob::new(
        "application/vnd.oci.image.manifest.v1+json",
        serde_json::to_vec(&json!({
            "schemaVersion": 2, "config": about(&config), "layers": [about(&signature)],
        }))?,
    );
    let archive = |name: &str| {
        let mut image = about(&plain.top);
        image["annotations"] = json!({"io.containerd.image.name": name});
        let odd = [json!(5), Value::Null, json!("x"), json!({})];
        let entries: Vec<_> = odd.into_iter().chain([about(&manifest), image]).collect();
        let index = json!({"schemaVersion": 2, "manifests": entries});
        let mut tree = Tree::default();
        tree.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        tree.file("index.json", 0o644, &serde_json::to_vec(&index)?)?;
        let more = [&signature, &config, &manifest];
        for blob in plain.blobs.iter().chain(&plain.manifests).chain(more) {
            let hex = blob.digest.trim_start_matches("sha256:");
            tree.file(&format!("blobs/sha256/{hex}"), 0o644, &blob.bytes)?;
        }
        tree.archive()
    };
    let folder = case.start().await?.folder().to_path_buf();
    let file = folder.join("signed.tar").display().to_string();
    let name = "berth.test/signed:1";
    // The image that is there already is told by the name that it gets.
    for name in [name, "berth.test/again:1", "berth.test/zuletzt:1"] {
        std::fs::write(&file, archive(name)?)?;
        let output = berth(case, &["images", "load", &file]).await?;
        ensure_eq!(output.trim(), format!("loaded {name}"));
    }
    run_echo(case, name).await?;
    ensure_eq!(
        case.cri()?
            .list_images()
            .await?
            .iter()
            .filter(|image| image.repo_tags.iter().any(|tag| tag == name))
            .count(),
        1
    );
    Ok(())
}

async fn names_with_detours_are_cleaned(case: &mut Case) -> Result<()> {
    let plain = images::Kit::new()?.busybox()?;
    let mut tree = Tree::default();
    tree.dir("t", 0o755)?.file("t/f", 0o644, b"linked\n")?;
    for (name, target) in [
        ("t/h1", "./a/../t/f"),
        ("t/h2", "/t//./f"),
        ("t/h3", "../../t/f"),
        ("t/h4", "t/x/../../t/f"),
    ] {
        tree.hard_link(name, target)?;
    }
    let layer = tree.layer(Pack::Gzip)?;
    let mut image = plain.changed(|config, manifest| {
        let ids = config["rootfs"]["diff_ids"].as_array_mut();
        ids.into_iter()
            .for_each(|ids| ids.push(json!(layer.diff_id)));
        let mut entry = manifest["layers"][0].clone();
        entry["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip");
        entry["digest"] = json!(layer.digest);
        entry["size"] = json!(layer.bytes.len());
        let layers = manifest["layers"].as_array_mut();
        layers
            .into_iter()
            .for_each(|layers| layers.push(entry.clone()));
    })?;
    let blob = Blob::new("application/vnd.oci.image.layer.v1.tar+gzip", layer.bytes);
    image.blobs.insert(0, blob);
    case.start().await?;
    let name = push(case, "detours", &image).await?;
    case.cri()?.pull(&name).await?;
    let instance = case.instance()?;
    let pod = Pod::run(instance.cri()?, pod_config(instance, "detours")).await?;
    let mut config = container(&["/bin/cat", "/t/h1", "/t/h2", "/t/h3", "/t/h4"]);
    config.image = Some(image_spec(&name));
    ensure_eq!(pod.output_of(&config).await?, "linked\n".repeat(4));
    pod.remove().await
}
