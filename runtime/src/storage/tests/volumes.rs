use super::*;

#[test]
fn volumes_come_from_the_root_and_go_with_the_writable_layer() {
    let (dir, storage) = new();
    let chain = [layer(&storage, "a", |fs| {
        fs::create_dir(fs.join("data")).unwrap();
        fs::write(fs.join("data/file"), vec![1; 8192]).unwrap();
        fs::write(fs.join("data/gone"), "").unwrap();
    })];
    let id = ContainerId::generate().unwrap();
    storage.prepare(&id, &chain).unwrap();
    let root = storage.mount(&id, &chain).unwrap();
    let before = storage.snapshot_usage(&id).unwrap();
    let content = open_dir(root.as_fd(), OsStr::new("data")).unwrap();
    let on = &mut || Ok(());
    let first = storage
        .make_volume(&id, 0, Some(content.as_fd()), on)
        .unwrap();
    let second = storage.make_volume(&id, 1, None, on).unwrap();
    assert_eq!(fs::read(first.join("file")).unwrap(), [1; 8192]);
    let mode = std::os::unix::fs::MetadataExt::mode(&second.metadata().unwrap());
    assert_eq!(mode & 0o7777, 0o755);
    fs::write(first.join("new"), vec![2; 8192]).unwrap();
    let usage = storage.snapshot_usage(&id).unwrap();
    // Two volumes and the directory around them, three files.
    assert_eq!(usage.inodes, before.inodes + 6);
    assert!(usage.bytes >= before.bytes + 16384, "{usage:?}");
    // The container's layer and the image know nothing of it.
    assert!(rustix::fs::statat(&root, "data/new", rustix::fs::AtFlags::empty()).is_err());
    drop((root, content));
    let storage = reopen(&dir, storage);
    assert_eq!(storage.snapshots(), std::slice::from_ref(&id));
    assert_eq!(storage.snapshot_usage(&id).unwrap(), usage);
    storage.remove_snapshot(&id).unwrap();
    assert!(!first.exists() && !second.exists());
}

#[test]
fn what_was_begun_goes_too() {
    let (_dir, storage) = new();
    let id = ContainerId::generate().unwrap();
    storage.prepare(&id, &[]).unwrap();
    let from = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        fs::write(from.path().join(name), name).unwrap();
    }
    let content = open_dir_path(from.path()).unwrap();
    let mut left = 3;
    let error = storage
        .make_volume(&id, 0, Some(content.as_fd()), &mut || {
            left -= 1;
            match left {
                0 => Err(io::ErrorKind::StorageFull.into()),
                _ => Ok(()),
            }
        })
        .unwrap_err();
    assert_eq!(error.kind(), Kind::ResourceExhausted);
    storage.remove_snapshot(&id).unwrap();
    assert!(storage.snapshots().is_empty());
    assert!(
        names(storage.shared.dirs.snapshots.as_fd())
            .unwrap()
            .is_empty()
    );
}
