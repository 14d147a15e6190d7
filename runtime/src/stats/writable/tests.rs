use std::fs;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

struct Rig {
    _dir: tempfile::TempDir,
    storage: Storage,
    writable: Writable,
    id: ContainerId,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::open(&dir.path().join("berth")).unwrap();
        let id = ContainerId::generate().unwrap();
        storage.prepare(&id, &[]).unwrap();
        Self {
            _dir: dir,
            writable: Writable::new(storage.clone()),
            storage,
            id,
        }
    }

    fn write(&self, name: &str) {
        let layer = self.storage.root().join("snapshots").join(self.id.as_str());
        fs::write(layer.join("fs").join(name), vec![7; 1 << 20]).unwrap();
    }

    async fn refresh(&self, lives: bool) {
        let wanted = vec![(self.id.clone(), lives)];
        self.writable.refresh(wanted, PATIENCE, PATIENCE).await;
    }

    fn bytes(&self) -> u64 {
        self.writable.of(&self.id).unwrap().used_bytes
    }

    fn expire(&self) {
        for size in lock(&self.writable.known).values_mut() {
            size.again = Instant::now();
        }
    }
}

#[tokio::test]
async fn a_layer_is_added_up_once_in_a_while() {
    let rig = Rig::new();
    rig.write("a");
    rig.refresh(true).await;
    let size = rig.writable.of(&rig.id).unwrap();
    assert!(size.used_bytes >= 1 << 20);
    assert_eq!(
        (size.inodes_used, size.mountpoint.as_path()),
        (2, rig.storage.root())
    );
    rig.write("b");
    rig.refresh(true).await;
    assert_eq!(rig.writable.of(&rig.id), Some(size), "not walked again");
    rig.expire();
    rig.refresh(true).await;
    assert!(rig.bytes() >= 2 << 20);
}

#[tokio::test]
async fn a_container_that_is_over_is_added_up_for_the_last_time() {
    let rig = Rig::new();
    rig.refresh(true).await;
    rig.write("last words");
    rig.expire();
    rig.refresh(false).await;
    let bytes = rig.bytes();
    assert!(bytes >= 1 << 20);
    rig.write("nobody can");
    rig.expire();
    rig.refresh(false).await;
    assert_eq!(rig.bytes(), bytes);
}

#[tokio::test]
async fn what_is_removed_is_forgotten() {
    let rig = Rig::new();
    rig.refresh(true).await;
    assert!(rig.writable.of(&rig.id).is_some());
    rig.storage.remove_snapshot(&rig.id).unwrap();
    rig.expire();
    rig.refresh(true).await;
    assert_eq!(rig.writable.of(&rig.id), None);
    assert!(lock(&rig.writable.known).is_empty());
}

/// A walk that hangs, on a disk that does not answer, is one walk: calls go on with what is known.
#[tokio::test]
async fn a_walk_that_hangs_holds_nobody_up() {
    let rig = Rig::new();
    let hanging = rig.writable.walk.clone().lock_owned().await;
    let start = Instant::now();
    for _ in 0..3 {
        let wanted = vec![(rig.id.clone(), true)];
        let short = Duration::from_millis(10);
        rig.writable.refresh(wanted, short, short).await;
    }
    assert!(start.elapsed() < PATIENCE / 2);
    assert_eq!(rig.writable.of(&rig.id), None);
    drop(hanging);
    rig.refresh(true).await;
    assert!(rig.writable.of(&rig.id).is_some());
}

#[test]
fn the_unknown_come_first() {
    let now = Instant::now();
    let ids: Vec<_> = (0..4).map(|_| ContainerId::generate().unwrap()).collect();
    let size = |again, last| Size {
        usage: Usage::default(),
        at: 0,
        again,
        last,
    };
    let known = HashMap::from([
        (ids[0].clone(), size(now, false)),
        (ids[1].clone(), size(now + AGE, false)),
        (ids[2].clone(), size(now, true)),
    ]);
    let wanted: Vec<_> = ids.iter().map(|id| (id.clone(), true)).collect();
    let found = due(&known, &wanted, now);
    let order: Vec<_> = found.ids.iter().map(|(id, _)| id).collect();
    assert_eq!(order, [&ids[3], &ids[0]]);
    assert!(found.first);
    assert!(!due(&known, &wanted[..3], now).first);
}
