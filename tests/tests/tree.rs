//! What is unpacked, file by file: against containerd, and against what an image wants to do to the machine.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use berth_skip::Lack;
use berth_tests::images::trees::{self, IMPLIED, SPARSE};
use berth_tests::machine::{Mounted, run};
use berth_tests::oci::{self, Flavor, Layer, Pack, Recipe};
use berth_tests::runner::{Case, Test};
use berth_tests::runtime::{Kind, Net};
use berth_tests::tree::{self, Tree};
use berth_tests::{ensure_eq, paths, process, test};
use rustix::mount::MountFlags;
use serde_json::{Value, json};

pub(crate) const TESTS: &[Test] = &[
    test!(the_same_tree_as_containerd)
        .berth_only("it starts containerd beside it")
        .unless(lacks_containerd),
    test!(this_machine_as_an_image)
        .berth_only("it starts containerd beside it")
        .unless(lacks_containerd),
    test!(hostile_layers_leave_nothing).berth_only("containerd takes some of them"),
    test!(memory_of_a_pull_is_bounded)
        .alone()
        .berth_only("the limit is Berth's"),
];

fn lacks_containerd() -> Option<Lack> {
    ["containerd", "ctr", "runc"]
        .iter()
        .find_map(|name| paths::tool(name).err())
        .map(|error| Lack::new("containerd", error.to_string()))
}

async fn push(case: &Case, tag: &str, layers: &[Layer]) -> Result<String> {
    let image = Recipe {
        layers: layers.to_vec(),
        cmd: vec!["x".to_owned()],
        ..Recipe::default()
    }
    .build(Flavor::Oci)?;
    let client = case.shared().registry.client();
    client.push("trees", &[tag], &image).await?;
    Ok(format!("berth.test/trees:{tag}"))
}

/// The directories of an image's layers in Berth's store, the lowest first (OCI image-spec, config.md, "ChainID").
fn berth_layers(root: &Path, layers: &[Layer]) -> Vec<PathBuf> {
    let mut chain = String::new();
    layers
        .iter()
        .map(|layer| {
            chain = if chain.is_empty() {
                layer.diff_id.clone()
            } else {
                oci::digest(format!("{chain} {}", layer.diff_id).as_bytes())
            };
            let name = chain.trim_start_matches("sha256:");
            root.join("layers").join(name).join("fs")
        })
        .collect()
}

/// Both runtimes with the image, and its tree as each has it.
async fn both(case: &mut Case, image: &str, layers: &[Layer]) -> Result<(Tree, Tree)> {
    let theirs = case.options();
    case.start().await?.cri()?.pull(image).await?;
    let folder = case.instance()?.folder().to_owned();
    let dirs = berth_layers(&folder.join("root"), layers);
    let place = folder.join("merged");
    std::fs::create_dir(&place)?;
    // An overlay wants two of them.
    let empty = folder.join("empty");
    std::fs::create_dir(&empty)?;
    let mut lower: Vec<String> = dirs.iter().rev().map(|d| d.display().to_string()).collect();
    lower.push(empty.display().to_string());
    // mount(8) hands options over one by one where it can, and the kernel takes only 256 bytes of one then.
    let options = CString::new(format!("lowerdir={}", lower.join(":")))?;
    let flags = MountFlags::RDONLY | MountFlags::NOATIME;
    rustix::mount::mount("overlay", &place, "overlay", flags, options.as_c_str())
        .context("mounting the layers")?;
    let mounted = Mounted(place);
    let ours = tree::read(&mounted.0).context("reading Berth's tree")?;
    drop(mounted);

    let options = berth_tests::runtime::Options {
        kind: Kind::Containerd,
        net: Net::None,
        ..theirs
    };
    let containerd = case.start_bare(options).await?;
    containerd.cri()?.pull(image).await?;
    let place = containerd.folder().join("merged");
    std::fs::create_dir(&place)?;
    run(Command::new(paths::tool("ctr")?)
        .arg("-a")
        .arg(containerd.socket())
        .args(["-n", "k8s.io", "images", "mount", image])
        .arg(&place))?;
    let mounted = Mounted(place);
    let theirs = tree::read(&mounted.0).context("reading containerd's tree")?;
    run(Command::new(paths::tool("ctr")?)
        .arg("-a")
        .arg(containerd.socket())
        .args(["-n", "k8s.io", "images", "unmount", "--rm"])
        .arg(&mounted.0))?;
    Ok((ours, theirs))
}

async fn the_same_tree_as_containerd(case: &mut Case) -> Result<()> {
    let layers = trees::everything(Pack::Zstd)?;
    let image = push(case, "everything", &layers).await?;
    let (ours, theirs) = both(case, &image, &layers).await?;
    ensure!(ours.len() > 70, "only {} names", ours.len());
    tree::ensure_same(("Berth", &ours), ("containerd", &theirs), &IMPLIED)?;
    let list = ours.get(Path::new("list")).context("no file with a list")?;
    ensure!(list.xattrs.contains_key("system.posix_acl_access"));
    // containerd writes the holes of a sparse file; here they are holes.
    let (name, size, at) = SPARSE;
    let folder = case.first()?.folder().join("root");
    let base = &berth_layers(&folder, &layers)[0];
    let wanted: Vec<(u64, u64)> = at.iter().map(|from| (*from, from + 4096)).collect();
    ensure_eq!(tree::data_of(&base.join(name))?, wanted);
    ensure_eq!(ours[Path::new(name)].size, Some(size));
    Ok(())
}

async fn this_machine_as_an_image(case: &mut Case) -> Result<()> {
    let layers = [
        trees::of_this_machine(&["etc", "usr/sbin", "var/lib/dpkg"], Pack::Gzip)?,
        trees::of_this_machine(&["usr/bin"], Pack::Gzip)?,
    ];
    let image = push(case, "machine", &layers).await?;
    let (ours, theirs) = both(case, &image, &layers).await?;
    ensure!(ours.len() > 1000, "only {} names", ours.len());
    println!("{} names of this machine compared", ours.len());
    let implied = ["", "usr", "var", "var/lib"];
    tree::ensure_same(("Berth", &ours), ("containerd", &theirs), &implied)
}

/// What must not come out of any layer: a name in the folder above the store's, or a changed mode there.
fn canary(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("canary");
    std::fs::write(&path, "canary")?;
    Ok(path)
}

/// Layers that no image has a right to, each of them as an image of its own.
fn hostile(canary: &Path) -> Vec<(&'static str, trees::Archive)> {
    use trees::{Archive, Node, dir, file};
    let with = |fill: &dyn Fn(&mut Archive)| {
        let mut tar = Archive::default();
        fill(&mut tar);
        tar
    };
    let out = canary.display().to_string();
    vec![
        (
            "dotdot",
            with(&|tar| {
                tar.add("a/../../../../../../../../../../canary", &file(0o777, "x"));
            }),
        ),
        (
            "whiteout-of-parent",
            with(&|tar| {
                tar.add("a/.wh...", &file(0o644, ""));
            }),
        ),
        (
            "root-is-a-link",
            with(&|tar| {
                tar.add("./", &Node::new(b'2', 0o777).link("/"));
            }),
        ),
        (
            "hard-link-out",
            with(&|tar| {
                tar.add("h", &Node::new(b'1', 0o777).link(&out));
            }),
        ),
        (
            "hard-link-up",
            with(&|tar| {
                tar.add("h", &Node::new(b'1', 0o777).link("../../../../canary"));
            }),
        ),
        (
            "device-out-of-range",
            with(&|tar| {
                tar.add("d", &Node::new(b'3', 0o666).device(4096, 1));
            }),
        ),
        (
            "two-names",
            with(&|tar| {
                tar.add("x", &file(0o644, "").record("path", "y"));
            }),
        ),
        (
            "file-as-directory",
            with(&|tar| {
                tar.add("f", &file(0o644, ""));
                tar.add("f/g", &file(0o644, ""));
            }),
        ),
        (
            "too-long",
            with(&|tar| {
                tar.add("n".repeat(300), &file(0o644, ""));
            }),
        ),
        (
            "huge-hole",
            with(&|tar| {
                tar.sparse("s", 1 << 60, &[0]);
            }),
        ),
        (
            "xattr-too-large",
            with(&|tar| {
                tar.add("x", &dir(0o755).xattr("user.x", vec![b'x'; 70_000]));
            }),
        ),
    ]
}

/// Each is refused with a sentence about the layer, and the store is what it was.
async fn hostile_layers_leave_nothing(case: &mut Case) -> Result<()> {
    let instance = case.start().await?;
    let cri = instance.cri()?.clone();
    let folder = instance.folder().to_owned();
    let canary = canary(&folder)?;
    let store = |name: &str| -> Result<Vec<PathBuf>> {
        let mut names: Vec<PathBuf> = std::fs::read_dir(folder.join("root").join(name))?
            .map(|entry| Ok(entry?.path()))
            .collect::<std::io::Result<_>>()?;
        names.sort();
        Ok(names)
    };
    let before = (store("layers")?, cri.list_images().await?.len());
    for (name, archive) in hostile(&canary) {
        let layer = archive.layer(Pack::Gzip)?;
        let image = push(case, name, &[layer]).await?;
        let error = cri.pull(&image).await.err();
        let error = error.with_context(|| format!("{name} was pulled"))?;
        println!("{name}: {}", error.message());
        ensure!(error.message().contains("layer"), "{name}: {error}");
    }
    // A gzip stream that is cut off, and one with something behind it.
    let good = trees::everything(Pack::Gzip)?.remove(0);
    for (name, bytes) in [
        ("cut", good.bytes[..good.bytes.len() / 2].to_vec()),
        ("more", [&good.bytes[..], b"and more"].concat()),
    ] {
        let layer = Layer {
            digest: oci::digest(&bytes),
            bytes,
            ..good.clone()
        };
        let image = push(case, name, &[layer]).await?;
        ensure!(cri.pull(&image).await.is_err(), "{name} was pulled");
    }
    ensure_eq!((store("layers")?, cri.list_images().await?.len()), before);
    ensure_eq!(std::fs::read_to_string(&canary)?, "canary");
    let start = std::time::Instant::now();
    while !store("staging")?.is_empty() {
        ensure!(
            start.elapsed() < Duration::from_secs(10),
            "left: {:?}",
            store("staging")?
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The good one is still good.
    let image = push(case, "good", &[good]).await?;
    cri.pull(&image).await?;
    Ok(())
}

/// Layers that would take memory if anything took it by the entry, header or name; with windows of up to 8 MiB.
async fn memory_of_a_pull_is_bounded(case: &mut Case) -> Result<()> {
    use trees::{Archive, Node, file};
    let mut implied = Archive::default();
    let mut headers = Archive::default();
    let mut names = Archive::default();
    for number in 0..60_000 {
        implied.add(
            format!("implied-{}/{number}-{}/f", number % 50, "d".repeat(100)),
            &file(0o644, ""),
        );
        names.add(
            format!("names/{number}-{}", "n".repeat(200)),
            &file(0o644, "x"),
        );
    }
    for number in 0..60 {
        headers.add(
            format!("h{number}"),
            &Node::new(b'0', 0o644).record("comment", vec![b'c'; 1_000_000]),
        );
    }
    let mut large = Archive::default();
    large.add("zeros", &file(0o644, vec![0; 200 << 20]));
    let layers = [
        implied.layer(Pack::Zstd)?,
        names.layer(Pack::Zstd)?,
        headers.layer(Pack::Zstd)?,
        large.layer(Pack::Zstd)?,
    ];
    let image = push(case, "memory", &layers).await?;
    let documents = padded_documents(case).await?;
    let instance = case.start().await?;
    let daemon = instance.pid().context("no daemon")?;
    let cri = instance.cri()?;
    // What is refused is so for its size, and after no more memory than what is taken.
    for (image, taken) in [(image, true)].into_iter().chain(documents) {
        std::fs::write(format!("/proc/{daemon}/clear_refs"), "5")?;
        let before = process::peak_rss_kib(daemon);
        let pulled = cri.pull(&image).await;
        let growth = process::peak_rss_kib(daemon).saturating_sub(before);
        println!("{image} took {growth} KiB over {before}");
        ensure!(growth <= 64 << 10, "{image} took {growth} KiB");
        ensure!(pulled.is_ok() == taken, "{image}: {pulled:?}");
    }
    Ok(())
}

/// Images whose documents have as many parts as fit, and whether such an image can be had.
async fn padded_documents(case: &Case) -> Result<Vec<(String, bool)>> {
    let plain = Recipe {
        layers: vec![tiny_layer()?],
        cmd: vec!["x".to_owned()],
        ..Recipe::default()
    }
    .build(Flavor::Oci)?;
    let many = |part: Value, bytes: usize| {
        let length = part.to_string().len() + 1;
        Value::Array(vec![part; bytes / length])
    };
    let members = |bytes: usize| -> Value {
        (0..bytes / 16)
            .map(|n| (format!("k{n:08}"), json!("")))
            .collect()
    };
    let images = [
        (
            "history",
            true,
            plain.changed(|config, _| config["history"] = many(json!({}), 7 << 20))?,
        ),
        (
            "env",
            false,
            plain.changed(|config, _| config["config"]["Env"] = many(json!(""), 7 << 20))?,
        ),
        (
            "labels",
            false,
            plain.changed(|config, _| config["config"]["Labels"] = members(7 << 20))?,
        ),
        (
            "annotations",
            true,
            plain.changed(|_, manifest| manifest["annotations"] = members(3 << 20))?,
        ),
    ];
    let client = case.shared().registry.client();
    let mut names = Vec::new();
    for (tag, taken, image) in images {
        client.push("trees", &[tag], &image).await?;
        names.push((format!("berth.test/trees:{tag}"), taken));
    }
    Ok(names)
}

fn tiny_layer() -> Result<Layer> {
    let mut archive = trees::Archive::default();
    archive.add("tiny", &trees::file(0o644, "x"));
    archive.layer(Pack::Gzip)
}
