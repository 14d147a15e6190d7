//! Downloads that were interrupted.

use super::*;

#[test]
fn partial_downloads_survive_and_belong_to_one() {
    let (dir, storage) = new();
    let id = digest("blob");
    let mut partial = storage.partial(&id).unwrap();
    partial.file.write_all(b"half").unwrap();
    assert!(matches!(storage.partial(&id), Err(Error::PartialInUse(_))));
    drop(partial);
    let storage = reopen(&dir, storage);
    let partial = storage.partial(&id).unwrap();
    assert_eq!(partial.length, 4);
    partial.discard().unwrap();
    assert_eq!(storage.partial(&id).unwrap().length, 0);
}

#[test]
fn interrupted_downloads_are_removed_unless_somebody_has_them() {
    let (_dir, storage) = new();
    let (old, open) = (digest("old"), digest("open"));
    for id in [&old, &open] {
        let mut partial = storage.partial(id).unwrap();
        partial.file.write_all(&[1; 9000]).unwrap();
    }
    let before = storage.partial_usage().unwrap();
    let partial = storage.partial(&open).unwrap();
    storage.remove_partials().unwrap();
    let after = storage.partial_usage().unwrap();
    assert_eq!(before.inodes - after.inodes, 1);
    assert!(before.bytes >= after.bytes + 9000);
    assert_eq!(storage.partial(&old).unwrap().length, 0);
    drop(partial);
    assert_eq!(storage.partial(&open).unwrap().length, 9000);
}

#[test]
fn a_collection_takes_downloads_that_nobody_came_back_for() {
    let (_dir, storage) = new();
    let (old, young, open) = (digest("old"), digest("young"), digest("open"));
    let week = std::time::Duration::from_secs(8 * 24 * 3600);
    for id in [&old, &young, &open] {
        let mut partial = storage.partial(id).unwrap();
        partial.file.write_all(&[1; 9000]).unwrap();
        if id != &young {
            let then = std::time::SystemTime::now() - week;
            partial.file.set_modified(then).unwrap();
        }
    }
    let partial = storage.partial(&open).unwrap();
    storage.collect().unwrap();
    drop(partial);
    let length = |id| storage.partial(id).unwrap().length;
    assert_eq!(
        [length(&old), length(&young), length(&open)],
        [0, 9000, 9000]
    );
}

#[test]
fn a_download_that_cannot_be_removed_fails_no_collection() {
    let (_dir, storage) = new();
    let name = storage.root().join("partial").join(digest("stuck").hex());
    fs::write(&name, "x").unwrap();
    let week = std::time::Duration::from_secs(8 * 24 * 3600);
    let then = std::time::SystemTime::now() - week;
    let file = fs::File::options().write(true).open(&name).unwrap();
    file.set_modified(then).unwrap();
    let lock = |flag: &str| {
        let chattr = std::process::Command::new("chattr")
            .arg(flag)
            .arg(&name)
            .output();
        chattr.is_ok_and(|output| output.status.success())
    };
    if !lock("+i") {
        berth_skip::skip!(
            "chattr",
            "the file system of the temporary directory has no immutable files"
        );
    }
    let collected = storage.collect();
    let refused = storage.remove_partials();
    lock("-i");
    collected.unwrap();
    assert!(refused.is_err());
}
