//! Pulls beside each other.

use super::*;
use crate::layer::tests::builder::Tar;

/// Configurations come at once, and of a layer this much and no more.
const STALLED: Option<(usize, Duration)> = Some((1000, Duration::from_secs(3600)));

fn long_layer(text: &str) -> Vec<u8> {
    layer("long", &text.repeat(2000))
}

/// A layer on its way has nothing of the threads by which containers are started.
#[test]
fn registries_that_stall_leave_the_threads_to_others() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(3)
        .enable_all()
        .build()
        .unwrap();
    let rig = Rig::new();
    runtime.block_on(async {
        let (slow, good) = (Fake::http().await, Fake::http().await);
        slow.plan(|p| p.drip = STALLED);
        let pulls = (0..8).map(|n| {
            let made = image(&[(long_layer(&n.to_string()), Pack::Plain)], &json!({}));
            slow.put_image("x", &n.to_string(), &made);
            slow.name(&format!("x:{n}"))
        });
        let names: Vec<_> = pulls.collect();
        let stalled = futures_util::future::join_all(names.iter().map(|name| rig.pull(name)));
        let others = async {
            // Each has sent the first bytes of its layer, which a thread waits for the rest of.
            while rig
                .manager
                .pulls()
                .iter()
                .filter(|pull| pull.bytes.1 > 0)
                .count()
                < 8
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            good.put_image("x", "1", &one_layer("good"));
            rig.pull(&good.name("x:1")).await.unwrap();
            rig.manager.fs_usage().await.unwrap();
        };
        let others = tokio::time::timeout(Duration::from_secs(20), others);
        tokio::select! {
            pulled = stalled => panic!("{pulled:?}"),
            done = others => done.unwrap(),
        }
    });
}

/// It names the layer of an image that everybody uses, and sends it for ever.
#[tokio::test]
async fn another_registry_holds_up_nobody_who_has_the_same_layer() {
    let (rig, evil, good) = (Rig::new(), Fake::http().await, Fake::http().await);
    let base = long_layer("b");
    let made = image(&[(base, Pack::Plain)], &json!({}));
    evil.put_image("x", "1", &made);
    evil.plan(|p| p.drip = STALLED);
    good.put_image("x", "1", &made);
    let name = evil.name("x:1");
    let others = async {
        while evil.count("GET", "/blobs/") < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        rig.pull(&good.name("x:1")).await.unwrap();
    };
    let others = tokio::time::timeout(Duration::from_secs(20), others);
    tokio::select! {
        pulled = rig.pull(&name) => panic!("{pulled:?}"),
        done = others => done.unwrap(),
    }
    assert_eq!(rig.manager.list().len(), 1);
}

/// Both show the bytes of the layer that one of them fetches for both.
#[tokio::test]
async fn everybody_sees_the_bytes_of_a_shared_layer() {
    let (rig, fake) = (Rig::new(), Fake::http().await);
    let base = long_layer("b");
    for tag in ["1", "2"] {
        let layers = [(base.clone(), Pack::Plain), (layer("top", tag), Pack::Gzip)];
        fake.put_image("x", tag, &image(&layers, &json!({})));
    }
    fake.plan(|p| p.drip = STALLED);
    let names = ["x:1", "x:2"].map(|name| fake.name(name));
    let pulls = futures_util::future::join_all(names.iter().map(|name| rig.pull(name)));
    let seen = async {
        loop {
            let pulls = rig.manager.pulls();
            if pulls.len() == 2 && pulls.iter().all(|pull| pull.bytes.1 > 1000) {
                return pulls;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let seen = tokio::time::timeout(Duration::from_secs(20), seen);
    let seen = tokio::select! {
        pulled = pulls => panic!("{pulled:?}"),
        seen = seen => seen.unwrap(),
    };
    for pull in seen {
        assert!(pull.bytes.1 <= pull.bytes.0, "{pull:?}");
    }
}

/// Row S17: each of its layers is small enough.
#[tokio::test]
async fn the_layers_of_an_image_have_one_limit() {
    let rig = Rig::with_limit(tempfile::tempdir().unwrap(), 6000);
    let fake = Fake::http().await;
    let layers = ["1", "2", "3"].map(|text| (long_layer(text), Pack::Gzip));
    fake.put_image("x", "good", &image(&layers[..1], &json!({})));
    fake.put_image("x", "sum", &image(&layers[1..], &json!({})));
    let bomb = layer("bomb", &"0".repeat(16 << 20));
    fake.put_image("x", "bomb", &image(&[(bomb, Pack::Zstd)], &json!({})));
    for tag in ["sum", "bomb"] {
        let error = rig.pull(&fake.name(&format!("x:{tag}"))).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge(6000)), "{tag}: {error:?}");
        assert!(rig.manager.list().is_empty());
    }
    rig.manager.collect().await.unwrap();
    rig.wait_until_gone("long").await;
    rig.wait_until_gone("bomb").await;
    rig.pull(&fake.name("x:good")).await.unwrap();
    // What is there already takes no more room.
    fake.put_image("x", "more", &image(&layers[..2], &json!({})));
    rig.pull(&fake.name("x:more")).await.unwrap();
}

/// A hard link to a file of a lower layer is a copy of it, of which its archive says nothing.
#[tokio::test]
async fn what_links_copy_counts_too() {
    let fake = Fake::http().await;
    let mut link = Tar::new();
    link.hard_link("h", "long");
    let lower = layer("long", &"s".repeat(40 << 10));
    let made = image(
        &[(lower, Pack::Gzip), (link.finish(), Pack::Gzip)],
        &json!({}),
    );
    fake.put_image("x", "1", &made);
    for (limit, fits) in [(70 << 10, false), (140 << 10, true)] {
        let rig = Rig::with_limit(tempfile::tempdir().unwrap(), limit);
        match rig.pull(&fake.name("x:1")).await {
            Ok(_) => assert!(fits),
            Err(Error::TooLarge(told)) => assert!(!fits && told == limit),
            Err(error) => panic!("{error:?}"),
        }
    }
}
