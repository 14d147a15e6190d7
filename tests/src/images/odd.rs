//! Images as others make them, which run the probe of `make difftest`: odd accounts, links where mounts go, volumes,
//! an entry point that is none.

use anyhow::Result;
use serde_json::json;

use crate::images::files;
use crate::oci::{Flavor, Image, Layer, Pack, Recipe, Tree};
use crate::paths;
use crate::registry::Client;

/// What they are called.
pub const NAMES: [&str; 5] = [
    "berth.test/odd:plain",
    "berth.test/odd:users",
    "berth.test/odd:links",
    "berth.test/odd:volumes",
    "berth.test/odd:no-entrypoint",
];

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

/// What every one has: a folder for mounts, and the probe.
fn tree() -> Result<Tree> {
    let probe = std::fs::read(paths::workspace().join("tests/images/probe.sh"))?;
    let mut tree = Tree::default();
    for folder in ["data", "srv", "mnt", "masked", "run", "root"] {
        tree.dir(folder, 0o755)?;
    }
    tree.file("probe", 0o755, &probe)?
        .file("masked/file", 0o600, b"secret\n")?
        .file("srv/file", 0o640, b"served\n")?;
    Ok(tree)
}

fn build(base: &Layer, tag: &str) -> Result<Image> {
    let mut tree = tree()?;
    let mut recipe = Recipe {
        entrypoint: words(&["/bin/sh", "/probe"]),
        cmd: words(&["of the image"]),
        env: words(&["GREETING=from the image", "A=image"]),
        labels: [("odd".to_owned(), tag.to_owned())].into(),
        ..Recipe::default()
    };
    match tag {
        "users" => {
            let passwd = "app:x:1234:1235::/srv:/bin/sh\nnogroup:x:1300:\nshort:x:1301:1302\n";
            let group = "app:x:1235:\nextra:x:1236:app,other\nmore:x:1237:other,app\nonly:x:1238\n";
            tree.dir("etc", 0o755)?
                .file("etc/passwd", 0o644, files::passwd(passwd).as_bytes())?
                .file("etc/group", 0o644, files::group(group).as_bytes())?;
            recipe.user = "app".to_owned();
            recipe.working_dir = "/srv".to_owned();
        }
        "links" => {
            tree.symlink("alias", "/srv")?
                .symlink("etc/localtime", "/usr/share/zoneinfo/absent")?
                .symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")?
                .symlink("var/lock", "../run/lock")?;
            recipe.stop_signal = "SIGUSR1".to_owned();
        }
        "volumes" => {
            tree.dir("vol", 0o750)?
                .dir("vol/inner", 0o701)?
                .file_of("vol/inner/file", 0o604, (7, 8), b"content\n")?
                .symlink("vol/link", "inner/file")?;
            recipe.user = "12:34".to_owned();
        }
        "no-entrypoint" => {
            recipe.entrypoint = words(&[""]);
            recipe.cmd = words(&["/bin/sh", "/probe", "by the command"]);
        }
        _ => {}
    }
    recipe.layers = vec![base.clone(), tree.layer(Pack::Gzip)?];
    let image = recipe.build(Flavor::Oci)?;
    if tag == "volumes" {
        return image.changed(|config, _| {
            config["config"]["Volumes"] =
                json!({ "/vol": {}, "relative": {}, "/vol/inner/": null });
        });
    }
    Ok(image)
}

/// Builds them on this base and pushes them.
///
/// # Errors
/// When the registry refuses something.
pub async fn push(client: Client, base: Layer) -> Result<()> {
    for name in NAMES {
        let tag = name.rsplit(':').next().unwrap_or(name);
        client.push("odd", &[tag], &build(&base, tag)?).await?;
    }
    Ok(())
}
