//! Images: pulled and removed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use berth_tests::oci::{Flavor, Pack, Recipe, Tree};
use berth_tests::runner::Case;
use berth_tests::runtime::Net;
use berth_tests::{ensure_eq, images};
use serde_json::json;

use super::{At, die_at, each, options};
use crate::storage::berth;

/// Pushes an image of two layers, the first of which is long enough for its download to be kept, with a volume; gives its
/// name.
pub(super) async fn layered(case: &mut Case) -> Result<String> {
    let mut tree = Tree::default();
    tree.dir("vol", 0o755)?.file("vol/file", 0o644, b"one\n")?;
    let recipe = Recipe {
        layers: vec![
            images::files::busybox_tree()?.layer(Pack::Plain)?,
            tree.layer(Pack::Zstd)?,
        ],
        cmd: vec!["sh".to_owned()],
        ..Recipe::default()
    };
    let image = recipe.build(Flavor::Oci)?.changed(|config, _| {
        config["config"]["Volumes"] = json!({ "/vol": {} });
    })?;
    let name = format!("crash{}", berth_tests::pods::unique());
    let client = case.shared().registry.client();
    client.push(&name, &["1"], &image).await?;
    Ok(format!("berth.test/{name}:1"))
}

/// All that the store has, but its index.
fn content(case: &mut Case) -> Result<BTreeSet<PathBuf>> {
    fn below(top: &Path, dir: &Path, found: &mut BTreeSet<PathBuf>) -> Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            let name = path.strip_prefix(top)?;
            if name.to_string_lossy().starts_with("index") {
                continue;
            }
            found.insert(name.to_owned());
            if path.is_dir() && !path.is_symlink() {
                below(top, &path, found)?;
            }
        }
        Ok(())
    }
    let root = case.instance()?.folder().join("root");
    let mut found = BTreeSet::new();
    below(&root, &root, &mut found)?;
    Ok(found)
}

/// A daemon without images, the name of one, and what the store has without and with it.
async fn start(case: &mut Case) -> Result<(String, [BTreeSet<PathBuf>; 2])> {
    let image = layered(case).await?;
    let options = options(case, Net::Builtin)?;
    case.start_bare(options).await?;
    case.cri()?.pull(&image).await?;
    let with = content(case)?;
    case.cri()?.remove_image(&image).await?;
    let without = content(case)?;
    Ok((image, [without, with]))
}

/// It is there as a whole, or not at all.
async fn whole_or_absent(case: &mut Case, image: &str) -> Result<()> {
    let listed = case.cri()?.list_images().await?;
    ensure!(listed.len() <= 1, "{listed:?}");
    for one in listed {
        ensure_eq!(one.repo_tags, [image]);
    }
    berth(case, &["images", "check"]).await.map(drop)
}

fn same(what: &str, is: &BTreeSet<PathBuf>, should: &BTreeSet<PathBuf>) -> Result<()> {
    let more: Vec<_> = is.difference(should).take(9).collect();
    let less: Vec<_> = should.difference(is).take(9).collect();
    ensure!(
        more.is_empty() && less.is_empty(),
        "the store {what}: it has {more:?}, and not {less:?}"
    );
    Ok(())
}

pub(super) async fn pull_image(case: &mut Case) -> Result<()> {
    let (image, contents) = start(case).await?;
    each!("pull_image", at => pull_at(case, at, &image, &contents).await);
    Ok(())
}

async fn pull_at(
    case: &mut Case,
    at: At,
    image: &str,
    [without, with]: &[BTreeSet<PathBuf>; 2],
) -> Result<()> {
    let name = image.to_owned();
    die_at(case, at, |cri| async move { cri.pull(&name).await }).await?;
    whole_or_absent(case, image).await?;
    case.cri()?.pull(image).await?;
    ensure_eq!(case.cri()?.list_images().await?.len(), 1);
    berth(case, &["images", "check"]).await?;
    same("after the second pull", &content(case)?, with)?;
    case.cri()?.remove_image(image).await?;
    same("after the removal", &content(case)?, without)
}

pub(super) async fn remove_image(case: &mut Case) -> Result<()> {
    let (image, contents) = start(case).await?;
    each!("remove_image", at => remove_at(case, at, &image, &contents).await);
    Ok(())
}

async fn remove_at(
    case: &mut Case,
    at: At,
    image: &str,
    [without, _]: &[BTreeSet<PathBuf>; 2],
) -> Result<()> {
    case.cri()?.pull(image).await?;
    let name = image.to_owned();
    die_at(case, at, |cri| async move { cri.remove_image(&name).await }).await?;
    whole_or_absent(case, image).await?;
    case.cri()?.remove_image(image).await?;
    ensure!(case.cri()?.list_images().await?.is_empty(), "it is listed");
    same("after the removal", &content(case)?, without)
}
