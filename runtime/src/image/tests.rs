//! The manager against registries that behave and registries that do not.

mod archives;
mod foreign;
mod full;
mod odd;
mod real;
mod resume;
mod store;
mod together;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::registry::fake::{self, Fake, Made, Pack, image, index_of, tar_of};

/// A manager on a directory of its own.
struct Rig {
    root: tempfile::TempDir,
    storage: Storage,
    manager: ImageManager,
}

impl Rig {
    fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    fn at(root: tempfile::TempDir) -> Self {
        Self::with_limit(root, 0)
    }

    fn with_limit(root: tempfile::TempDir, unpacked_limit: u64) -> Self {
        let storage = open(&root.path().join("store"));
        let manager = ImageManager::open(Config {
            storage: storage.clone(),
            registry: root.path().join("certs.d").into(),
            pinned: vec!["r.test/pinned:1".to_owned()],
            parallel_layers: 0,
            unpacked_limit,
            metrics: Arc::default(),
        })
        .unwrap();
        Self {
            root,
            storage,
            manager,
        }
    }

    /// Stops using the directory and opens it again, as a restarted daemon does.
    fn reopen(self) -> Self {
        let Self {
            root,
            storage,
            manager,
        } = self;
        drop((storage, manager));
        Self::at(root)
    }

    async fn pull(&self, reference: &str) -> Result<ImageId, Error> {
        self.manager.pull(reference, None).await
    }

    /// Waits until no file's name holds the text: what was given up is deleted by the thread that works on it.
    async fn wait_until_gone(&self, name: &str) {
        for _ in 0..200 {
            if self.files(name) == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("files called {name} stay");
    }

    /// Files of layers whose name holds the text.
    fn files(&self, name: &str) -> usize {
        fn walk(dir: &Path, name: &str) -> usize {
            let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
            entries
                .map(|entry| {
                    let hit = entry.file_name().to_string_lossy().contains(name);
                    let inside = match entry.file_type().unwrap().is_dir() {
                        true => walk(&entry.path(), name),
                        false => 0,
                    };
                    usize::from(hit) + inside
                })
                .sum()
        }
        walk(self.root.path(), name)
    }
}

/// A thread of the last life that unpacks or sweeps may have the store still.
fn open(path: &Path) -> Storage {
    let mut opened = Storage::open(path);
    for _ in 0..100 {
        if !matches!(opened, Err(storage::Error::InUse(_))) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
        opened = Storage::open(path);
    }
    opened.unwrap()
}

fn layer(name: &str, text: &str) -> Vec<u8> {
    tar_of(&[(name, text.as_bytes())])
}

fn three_layers() -> Made {
    let layers = [
        (layer("etc/canary-gzip", "1"), Pack::Gzip),
        (layer("etc/canary-zstd", "2"), Pack::Zstd),
        (layer("canary-plain", "3"), Pack::Plain),
    ];
    image(
        &layers,
        &json!({"User": "1002:5", "Cmd": ["sh"], "Env": ["A=b"]}),
    )
}

fn one_layer(text: &str) -> Made {
    image(&[(layer("canary", text), Pack::Gzip)], &json!({}))
}

#[tokio::test]
async fn an_image_is_pulled_with_everything_that_cri_asks_for() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let made = three_layers();
    let digest = fake.put_image("a/x", "1", &made);
    let name = fake.name("a/x");
    assert_eq!(rig.pull(&format!("{name}:1")).await.unwrap(), made.id);
    let image = rig.manager.find(&format!("{name}:1")).unwrap().unwrap();
    assert_eq!(image.id, made.id);
    assert_eq!(image.repo_tags, [format!("{name}:1")]);
    assert_eq!(image.repo_digests, [format!("{name}@{digest}")]);
    let sum: usize = made.blobs.iter().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(image.size, (sum + made.manifest.len()) as u64);
    assert_eq!(image.user, crate::model::ImageUser::Uid(1002));
    assert_eq!(image.chain, document::chain_ids(&made.diff_ids));
    assert!(!image.pinned);
    assert_eq!(rig.files("canary-"), 3);
    let resolved = rig.manager.resolve(&made.id.hex()[..9]).unwrap();
    assert_eq!(
        (resolved.name, resolved.reference),
        (format!("{name}:1"), format!("{name}@{digest}"))
    );
    assert_eq!(resolved.config.env, ["A=b"]);
    assert!(rig.manager.pulls().is_empty());
    assert!(rig.manager.fs_usage().await.unwrap().used_bytes > 0);
    assert!(rig.manager.container_fs_usage().await.is_ok());
    let rig = rig.reopen();
    assert_eq!(rig.manager.list(), [image]);
}

#[tokio::test]
async fn the_digest_of_an_index_is_the_one_recorded_and_both_resolve() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let made = three_layers();
    let manifest = fake.put_image("x", "inner", &made);
    let index = fake.put_manifest("x", "1", fake::INDEX, &index_of(&made.manifest));
    let name = fake.name("x");
    rig.pull(&format!("{name}@{index}")).await.unwrap();
    let image = rig.manager.list().remove(0);
    assert!(image.repo_tags.is_empty());
    assert_eq!(image.repo_digests, [format!("{name}@{index}")]);
    for digest in [index, manifest] {
        let found = rig.manager.find(&format!("{name}@{digest}")).unwrap();
        assert_eq!(found.map(|image| image.id), Some(made.id), "{digest}");
    }
    rig.pull(&format!("{name}:1")).await.unwrap();
    assert_eq!(rig.manager.list()[0].repo_tags, [format!("{name}:1")]);
}

#[tokio::test]
async fn indexes_within_indexes_end() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let made = one_layer("x");
    fake.put_image("x", "0", &made);
    let mut inner = made.manifest.clone();
    for depth in 1..=9 {
        inner = index_of(&inner);
        fake.put_manifest("x", &depth.to_string(), fake::INDEX, &inner);
    }
    for depth in [2, 3, 8] {
        let name = fake.name(&format!("x:{depth}"));
        rig.pull(&name).await.unwrap();
        // The documents on the way belong to the image.
        let details = rig.manager.inspect(&name).unwrap().unwrap();
        assert_eq!(details.documents.len(), depth + 2);
    }
    let error = rig.pull(&fake.name("x:9")).await.unwrap_err();
    assert!(error.to_string().contains("nested"), "{error}");
}

#[tokio::test]
async fn equal_pulls_are_one_and_shared_layers_are_fetched_once() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let base = layer("base", "base");
    let make = |text: &str| {
        image(
            &[(base.clone(), Pack::Gzip), (layer("top", text), Pack::Zstd)],
            &json!({}),
        )
    };
    let (one, two) = (make("1"), make("2"));
    fake.put_image("x", "1", &one);
    fake.put_image("x", "2", &two);
    fake.plan(|p| p.drip = Some((20, Duration::from_millis(10))));
    let names: Vec<_> = (0..20)
        .map(|n| fake.name(&format!("x:{}", n % 2 + 1)))
        .collect();
    let pulls = names.iter().map(|name| rig.pull(name));
    let ids = futures_util::future::join_all(pulls).await;
    for (n, id) in ids.into_iter().enumerate() {
        assert_eq!(id.unwrap(), if n % 2 == 0 { one.id } else { two.id });
    }
    assert_eq!(fake.count("GET", "/manifests/"), 2);
    let base = one.blobs[0].0.to_string();
    assert_eq!(fake.count("GET", &base), 1);
    assert_eq!(fake.count("GET", "/blobs/"), 5);
}

#[tokio::test]
async fn a_pull_of_what_is_there_costs_one_request() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let made = one_layer("x");
    let digest = fake.put_image("x", "1", &made);
    rig.pull(&fake.name("x:1")).await.unwrap();
    for form in [
        "x:1".to_owned(),
        format!("x@{digest}"),
        format!("x:9@{digest}"),
    ] {
        let before = fake.log().len();
        rig.pull(&fake.name(&form)).await.unwrap();
        let log = fake.log();
        assert_eq!(
            (log.len(), log[before].method.as_str()),
            (before + 1, "HEAD"),
            "{form}"
        );
    }
    fake.put_manifest("x", "2", fake::MANIFEST, &made.manifest);
    rig.pull(&fake.name("x:2")).await.unwrap();
    assert_eq!(rig.manager.list()[0].repo_tags.len(), 2);
    assert_eq!(fake.count("GET", "/manifests/"), 1);
}

#[tokio::test]
async fn a_registry_does_not_get_another_ones_image_by_its_digest() {
    let (rig, good, evil) = (Rig::new(), Fake::http().await, Fake::http().await);
    let made = one_layer("private");
    let digest = good.put_image("x", "1", &made);
    rig.pull(&good.name("x:1")).await.unwrap();
    evil.put_image("x", "1", &one_layer("evil"));
    rig.pull(&evil.name("x:1")).await.unwrap();
    let error = rig
        .pull(&evil.name(&format!("x@{digest}")))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "{error}");
}

#[tokio::test]
async fn a_retag_moves_the_tag() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let (old, new) = (one_layer("old"), one_layer("new"));
    let digest = fake.put_image("x", "1", &old);
    rig.pull(&fake.name("x:1")).await.unwrap();
    fake.put_image("x", "1", &new);
    assert_eq!(rig.pull(&fake.name("x:1")).await.unwrap(), new.id);
    let kept = rig.manager.find(&old.id.to_string()).unwrap().unwrap();
    assert!(kept.repo_tags.is_empty());
    assert_eq!(kept.repo_digests, [fake.name(&format!("x@{digest}"))]);
    assert_eq!(
        rig.manager.find(&fake.name("x:1")).unwrap().unwrap().id,
        new.id
    );
}

#[tokio::test]
async fn removal_takes_all_names_and_the_bytes_but_not_a_containers() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let made = three_layers();
    fake.put_image("x", "1", &made);
    fake.put_image("y", "2", &made);
    for name in ["x:1", "y:2"] {
        rig.pull(&fake.name(name)).await.unwrap();
    }
    let chain = document::chain_ids(&made.diff_ids);
    let container = crate::id::ContainerId::generate().unwrap();
    rig.storage.prepare(&container, &chain).unwrap();
    let removals = (0..8).map(|_| async { rig.manager.remove(&fake.name("y:2")).await });
    for outcome in futures_util::future::join_all(removals).await {
        outcome.unwrap();
    }
    assert!(rig.manager.list().is_empty());
    assert_eq!(rig.manager.find(&fake.name("x:1")).unwrap(), None);
    assert_eq!(rig.files("canary-"), 3);
    rig.storage.remove_snapshot(&container).unwrap();
    rig.manager.collect().await.unwrap();
    assert_eq!(rig.files("canary-"), 0);
    rig.manager.remove("no.test/such:image").await.unwrap();
    assert!(rig.manager.remove("Not A Name").await.is_err());
    assert_eq!(rig.pull(&fake.name("x:1")).await.unwrap(), made.id);
    assert_eq!(rig.files("canary-"), 3);
}

#[tokio::test]
async fn a_lease_keeps_layers() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    fake.put_image("x", "1", &three_layers());
    rig.pull(&fake.name("x:1")).await.unwrap();
    let (_image, lease) = rig.manager.acquire(&fake.name("x:1")).unwrap();
    rig.manager.remove(&fake.name("x:1")).await.unwrap();
    assert_eq!(rig.files("canary-"), 3);
    drop(lease);
    rig.manager.collect().await.unwrap();
    assert_eq!(rig.files("canary-"), 0);
    let absent = rig.manager.acquire(&fake.name("x:1")).unwrap_err();
    assert_eq!(absent.kind(), Kind::NotFound);
}

#[tokio::test]
async fn bad_layers_leave_nothing_and_good_ones_follow() {
    for (pack, fault) in [
        (Pack::Gzip, "content"),
        (Pack::Zstd, "content"),
        (Pack::Plain, "content"),
        (Pack::Gzip, "short"),
        (Pack::Gzip, "diff"),
        (Pack::Gzip, "garbage"),
    ] {
        let (rig, fake) = (Rig::new(), Fake::http().await);
        let tar = layer("canary", "the right one");
        let good = image(&[(tar.clone(), pack)], &json!({}));
        let (digest, bytes) = good.blobs[0].clone();
        let mut made = good.clone();
        if fault == "diff" || fault == "garbage" {
            // The manifest is right about the bytes, and the bytes are wrong.
            let wrong = match fault {
                "diff" => fake::packed(&layer("canary", "another one"), pack),
                _ => vec![0x1f; 5000],
            };
            let text = String::from_utf8(good.manifest.clone()).unwrap();
            let text = text
                .replace(&digest.to_string(), &fake::digest(&wrong).to_string())
                .replace(
                    &format!("\"size\":{}", bytes.len()),
                    &format!("\"size\":{}", wrong.len()),
                );
            made.manifest = text.into_bytes();
            made.blobs[0] = (fake::digest(&wrong), wrong);
        }
        fake.put_image("x", "1", &made);
        match fault {
            "content" => {
                let mut other = fake::packed(&layer("canary", "the wrong one"), pack);
                other.resize(bytes.len(), 0);
                fake.put_blob(&digest, &other);
            }
            "short" => {
                // Without a length, so that the end is a surprise.
                fake.plan(|plan| plan.unsized_blobs = true);
                fake.put_blob(&digest, &bytes[..bytes.len() / 2]);
            }
            _ => {}
        }
        let error = rig.pull(&fake.name("x:1")).await.unwrap_err();
        let said = error.to_string();
        let want = match fault {
            "content" => "sent other content",
            "short" => "incompletely",
            "diff" => "diff id mismatch",
            _ => "cannot unpack layer",
        };
        assert!(said.contains(want), "{pack:?} {fault}: {said}");
        assert!(rig.manager.list().is_empty());
        rig.wait_until_gone("canary").await;
        fake.put_image("x", "1", &good);
        rig.pull(&fake.name("x:1")).await.unwrap();
        assert_eq!(rig.files("canary"), 1);
    }
}

#[tokio::test]
async fn a_manifest_and_a_configuration_that_disagree_make_no_image() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let made = three_layers();
    let text = String::from_utf8(made.manifest.clone()).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    value["layers"].as_array_mut().unwrap().pop();
    fake.put_image("x", "0", &made);
    fake.put_manifest("x", "1", fake::MANIFEST, value.to_string().as_bytes());
    let error = rig.pull(&fake.name("x:1")).await.unwrap_err();
    assert!(error.to_string().contains("names 3 layers"), "{error}");
}

#[tokio::test]
async fn a_cut_layer_goes_on() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let text: String = (0..200_000_u64)
        .map(|n| char::from(b'a' + u8::try_from(n * n % 23).unwrap()))
        .collect();
    let made = image(&[(layer("canary", &text), Pack::Plain)], &json!({}));
    fake.put_image("x", "1", &made);
    fake.plan(|p| p.cut = Some((70_000, 2)));
    // The first cut hits the configuration, which is shorter.
    rig.pull(&fake.name("x:1")).await.unwrap();
    assert_eq!(rig.files("canary"), 1);
}

#[tokio::test]
async fn a_waiter_that_goes_away_does_not_stop_the_pull() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let made = one_layer("x");
    fake.put_image("x", "1", &made);
    fake.plan(|p| p.drip = Some((40, Duration::from_millis(30))));
    let name = fake.name("x:1");
    let early = tokio::time::timeout(Duration::from_millis(1), rig.pull(&name)).await;
    assert!(early.is_err());
    assert!(rig.manager.list().is_empty());
    tokio::time::sleep(Duration::from_millis(40)).await;
    assert_eq!(rig.manager.pulls().len(), 1);
    assert_eq!(rig.pull(&name).await.unwrap(), made.id);
    assert_eq!(fake.count("GET", "/manifests/"), 1);
}

#[test]
fn a_killed_pull_leaves_no_image() {
    let rig = Rig::new();
    let server = tokio::runtime::Runtime::new().unwrap();
    let fake = server.block_on(Fake::http());
    let made = three_layers();
    fake.put_image("x", "1", &made);
    // The configuration and two layers come, the third one hangs.
    fake.plan(|p| p.drip = Some((600, Duration::from_secs(60))));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let name = fake.name("x:1");
    let cut = runtime.block_on(async {
        tokio::time::timeout(Duration::from_millis(500), rig.pull(&name)).await
    });
    assert!(cut.is_err());
    drop(runtime);
    assert!(rig.manager.list().is_empty());
    let rig = rig.reopen();
    assert!(rig.manager.list().is_empty());
    fake.plan(|p| p.drip = None);
    let id = server.block_on(rig.pull(&name)).unwrap();
    assert_eq!(id, made.id);
    assert_eq!(rig.files("canary-"), 3);
}

#[tokio::test]
async fn an_image_that_lost_a_layer_or_a_document_is_pulled_again() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let made = three_layers();
    fake.put_image("x", "1", &made);
    let name = fake.name("x:1");
    rig.pull(&name).await.unwrap();
    let chain = document::chain_ids(&made.diff_ids);
    rig.storage.remove_layer(&chain[1]).unwrap();
    let config = rig
        .root
        .path()
        .join("store/blobs/sha256")
        .join(made.id.hex());
    std::fs::write(config, "damaged").unwrap();
    let error = rig.manager.acquire(&name).unwrap_err();
    assert!(
        error.to_string().contains("pull the image again"),
        "{error}"
    );
    let rig = rig.reopen();
    assert_eq!(rig.manager.find(&name).unwrap(), None);
    rig.pull(&name).await.unwrap();
    rig.manager.acquire(&name).unwrap();
    let layer = made.blobs[0].0.to_string();
    assert_eq!(
        fake.count("GET", &layer),
        1,
        "what is whole is not fetched again"
    );
    // Without a restart the next pull notices as well.
    rig.storage.remove_layer(&chain[2]).unwrap();
    rig.pull(&name).await.unwrap();
    rig.manager.acquire(&name).unwrap();
}

#[tokio::test]
async fn credentials_keep_pulls_apart() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    fake.put_image("x", "1", &one_layer("x"));
    fake.plan(|p| p.basic = Some(("u".into(), "p".into())));
    let name = fake.name("x:1");
    let auth = RegistryAuth {
        username: "u".into(),
        password: "p".into(),
        ..RegistryAuth::default()
    };
    let (with, without) = tokio::join!(rig.manager.pull(&name, Some(auth)), rig.pull(&name));
    with.unwrap();
    without.unwrap_err();
    // Nor does the image in the store open the door.
    rig.pull(&name).await.unwrap_err();
}

#[tokio::test]
async fn errors_have_the_kubelets_words() {
    let rig = Rig::new();
    let error = rig.pull("127.0.0.1:1/x:1").await.unwrap_err();
    assert!(
        error.to_string().starts_with("RegistryUnavailable"),
        "{error}"
    );
    let error = rig.pull("Not A Name").await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert_eq!(rig.manager.find("absent").unwrap(), None);
    let error = rig.manager.resolve("absent").unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}
