//! Downloads that were interrupted and go on.

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use super::*;

const SIZE: usize = 3 << 20;
/// What comes before the interruption, bytes.
const FIRST: usize = 1_400_000;

struct Cut {
    rig: Rig,
    server: tokio::runtime::Runtime,
    fake: Fake,
    made: Made,
    name: String,
}

impl Cut {
    /// A pull of one layer that was killed after its first piece.
    fn new() -> Self {
        Self::on(Rig::new())
    }

    fn on(rig: Rig) -> Self {
        let server = tokio::runtime::Runtime::new().unwrap();
        let fake = server.block_on(Fake::http());
        let text: String = (0..SIZE)
            .map(|n| char::from(b'a' + u8::try_from(n * n % 23).unwrap()))
            .collect();
        let made = image(&[(layer("canary", &text), Pack::Plain)], &json!({}));
        fake.put_image("x", "1", &made);
        fake.plan(|p| p.drip = Some((FIRST, Duration::from_secs(60))));
        let name = fake.name("x:1");
        let file = rig
            .root
            .path()
            .join("store/partial")
            .join(made.blobs[0].0.hex());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let came = async {
                while std::fs::metadata(&file).map_or(0, |file| file.len()) < FIRST as u64 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::select! {
                pulled = rig.pull(&name) => panic!("{pulled:?}"),
                () = came => {}
            }
        });
        drop(runtime);
        let rig = rig.reopen();
        fake.plan(|p| p.drip = None);
        Self {
            rig,
            server,
            fake,
            made,
            name,
        }
    }

    fn partials(&self) -> Vec<PathBuf> {
        let dir = std::fs::read_dir(self.rig.root.path().join("store/partial")).unwrap();
        dir.map(|entry| entry.unwrap().path()).collect()
    }

    fn pull(&self) {
        let id = self.server.block_on(self.rig.pull(&self.name)).unwrap();
        assert_eq!(id, self.made.id);
        assert_eq!(self.rig.files("canary"), 1);
        assert_eq!(
            self.partials(),
            [] as [PathBuf; 0],
            "nothing is kept of what is whole"
        );
    }

    /// The ranges that the layer was asked for.
    fn ranges(&self) -> Vec<Option<String>> {
        let path = self.made.blobs[0].0.to_string();
        let log = self.fake.log();
        let blobs = log.iter().filter(|seen| seen.path.contains(&path));
        let range =
            |seen: &fake::Seen| Some(seen.headers.get("range")?.to_str().unwrap().to_owned());
        blobs.map(range).collect()
    }
}

#[test]
fn a_download_goes_on_in_the_next_life() {
    let cut = Cut::new();
    assert_eq!(cut.partials().len(), 1);
    cut.pull();
    assert_eq!(cut.ranges(), [None, Some(format!("bytes={FIRST}-"))]);
}

/// What is there takes no more room; to begin to keep one on such a disk would.
#[test]
fn a_download_goes_on_with_little_room() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_owned();
    mount("tmpfs", &path, "tmpfs", MountFlags::empty(), c"size=64m").unwrap();
    let cut = Cut::on(Rig::at(root));
    mount_remount(&path, MountFlags::empty(), c"size=12m").unwrap();
    cut.pull();
    assert_eq!(cut.ranges(), [None, Some(format!("bytes={FIRST}-"))]);
    unmount(&path, UnmountFlags::DETACH).unwrap();
}

#[test]
fn a_server_without_ranges_starts_over() {
    let cut = Cut::new();
    cut.fake.plan(|p| p.no_ranges = true);
    cut.pull();
    assert_eq!(cut.ranges().len(), 2);
}

#[test]
fn damage_to_what_is_left_costs_a_download_and_nothing_else() {
    let cut = Cut::new();
    // As after a power cut: the length is there, the bytes are not.
    let file = std::fs::File::options()
        .write(true)
        .open(&cut.partials()[0]);
    let file = file.unwrap();
    file.set_len(1000).unwrap();
    file.set_len(FIRST as u64).unwrap();
    cut.pull();
    assert_eq!(cut.ranges(), [None, Some(format!("bytes={FIRST}-")), None]);
}

#[test]
fn what_is_whole_is_not_asked_for() {
    let cut = Cut::new();
    std::fs::write(&cut.partials()[0], &cut.made.blobs[0].1).unwrap();
    cut.pull();
    assert_eq!(cut.ranges(), [None]);
}

#[test]
fn more_than_there_can_be_is_dropped() {
    let cut = Cut::new();
    let mut longer = cut.made.blobs[0].1.clone();
    longer.push(0);
    std::fs::write(&cut.partials()[0], longer).unwrap();
    cut.pull();
    assert_eq!(cut.ranges(), [None, None]);
}

#[test]
fn a_pull_that_fails_keeps_what_came() {
    let cut = Cut::new();
    cut.fake
        .plan(|p| p.fail = Some(("/blobs/".to_owned(), 403, 99)));
    let failed = cut.server.block_on(cut.rig.pull(&cut.name));
    assert!(failed.is_err());
    assert_eq!(cut.partials().len(), 1);
    assert_eq!(cut.rig.manager.pulls(), []);
    cut.fake.plan(|p| p.fail = None);
    cut.pull();
    assert_eq!(cut.ranges().last(), Some(&Some(format!("bytes={FIRST}-"))));
}

#[test]
fn wrong_bytes_are_not_kept() {
    let cut = Cut::new();
    let (digest, bytes) = &cut.made.blobs[0];
    let mut wrong = bytes.clone();
    wrong[2 << 20] ^= 1;
    cut.fake.put_blob(digest, &wrong);
    let failed = cut.server.block_on(cut.rig.pull(&cut.name));
    assert!(matches!(failed, Err(Error::Content { .. })), "{failed:?}");
    assert_eq!(cut.partials(), [] as [PathBuf; 0]);
    cut.fake.put_blob(digest, bytes);
    cut.pull();
}

#[test]
fn a_fast_download_is_not_kept() {
    let rig = Rig::new();
    let server = tokio::runtime::Runtime::new().unwrap();
    let fake = server.block_on(Fake::http());
    let text = "x".repeat(40 << 20);
    let made = image(&[(layer("canary", &text), Pack::Plain)], &json!({}));
    fake.put_image("x", "1", &made);
    // Two thirds of it at once, then nothing more.
    fake.plan(|p| p.drip = Some((28 << 20, Duration::from_secs(60))));
    let board = async {
        while rig
            .manager
            .pulls()
            .first()
            .is_none_or(|pull| pull.bytes.1 < 28 << 20)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // What came is with the thread that unpacks.
        tokio::time::sleep(Duration::from_millis(300)).await;
    };
    let name = fake.name("x:1");
    server.block_on(async {
        tokio::select! {
            pulled = rig.pull(&name) => panic!("{pulled:?}"),
            () = board => {}
        }
    });
    let partials = std::fs::read_dir(rig.root.path().join("store/partial")).unwrap();
    assert_eq!(partials.count(), 0);
}
