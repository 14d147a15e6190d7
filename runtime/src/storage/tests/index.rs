//! The index is damaged or lost, and what is made of that.

use super::*;

fn reopen_at(dir: &tempfile::TempDir) -> Storage {
    for _ in 0..100 {
        match Storage::open(&dir.path().join("berth")) {
            Err(Error::InUse(_)) => std::thread::sleep(std::time::Duration::from_millis(20)),
            opened => return opened.unwrap(),
        }
    }
    panic!("the store stays in use");
}

/// What happens to the file of the index.
const DAMAGES: [&str; 4] = ["gone", "empty", "garbage", "pages"];

fn damage(path: &Path, how: &str) {
    match how {
        "gone" => fs::remove_file(path).unwrap(),
        "empty" => fs::write(path, b"").unwrap(),
        "garbage" => fs::write(path, b"not a database").unwrap(),
        _ => {
            // The head is good, the pages are not.
            let mut bytes = fs::read(path).unwrap();
            bytes[4096..].fill(0xff);
            fs::write(path, bytes).unwrap();
        }
    }
}

#[test]
fn a_lost_index_is_made_again_from_the_records_beside_it() {
    for how in DAMAGES {
        let (dir, storage) = new();
        let chain = layer(&storage, "old", |_| {});
        let stray = layer(&storage, "stray", |_| {});
        let index = storage.index();
        index
            .put(record("one", &["r:1", "r:2"], &[chain], &[]))
            .unwrap();
        index.put(record("two", &["r:2"], &[chain], &[])).unwrap();
        index.put(record("gone", &["r:3"], &[], &[])).unwrap();
        index.remove(&digest("gone")).unwrap();
        let before = index.all();
        let path = storage.root().join("index.redb");
        drop(storage);
        damage(&path, how);
        let storage = reopen_at(&dir);
        assert_eq!(storage.index().all(), before, "{how}");
        // Everything was found, so what nobody names goes as always.
        assert_eq!(storage.index().lost_at(), None, "{how}");
        assert_eq!(storage.collect().unwrap().layers, 1, "{how}");
        assert!(storage.has_layer(&chain) && !storage.has_layer(&stray));
        storage
            .index()
            .put(record("three", &["r:1"], &[], &[]))
            .unwrap();
        let storage = reopen(&dir, storage);
        assert_eq!(storage.index().all().len(), 3, "{how}");
        assert_eq!(storage.index().get(&digest("one")).unwrap().tags, [""; 0]);
        assert_eq!(storage.index().lost_at(), None, "{how}");
    }
}

#[test]
fn a_tag_that_two_records_claim_belongs_to_the_later_one() {
    let (dir, storage) = new();
    let index = storage.index();
    index.put(record("old", &["r:1"], &[], &[])).unwrap();
    let copy = |id: &str| {
        dir.path()
            .join("berth/images")
            .join(digest(id).hex() + ".json")
    };
    let claim = fs::read(copy("old")).unwrap();
    index.put(record("new", &["r:1"], &[], &[])).unwrap();
    let path = storage.root().join("index.redb");
    drop(storage);
    // As if the machine had gone down between the two files.
    fs::write(copy("old"), claim).unwrap();
    damage(&path, "gone");
    let storage = reopen_at(&dir);
    assert_eq!(storage.index().get(&digest("new")).unwrap().tags, ["r:1"]);
    assert!(storage.index().get(&digest("old")).unwrap().tags.is_empty());
}

#[test]
fn what_a_lost_index_alone_had_named_is_kept_until_somebody_gives_it_up() {
    for (how, torn) in [("garbage", true), ("pages", false)] {
        let (dir, storage) = new();
        let old = layer(&storage, "old", |_| {});
        storage
            .index()
            .put(record("one", &["r:1"], &[old], &[]))
            .unwrap();
        let path = storage.root().join("index.redb");
        let copy = dir
            .path()
            .join("berth/images")
            .join(digest("one").hex() + ".json");
        drop(storage);
        damage(&path, how);
        match torn {
            true => fs::write(copy, "{").unwrap(),
            false => fs::remove_file(copy).unwrap(),
        }
        let storage = reopen_at(&dir);
        assert!(storage.index().all().is_empty());
        assert!(storage.index().lost_at().is_some());
        assert_eq!(storage.collect().unwrap().kept_for_rebuild, 1);
        storage
            .index()
            .put(record("two", &["r:2"], &[], &[]))
            .unwrap();
        let storage = reopen(&dir, storage);
        assert_eq!(storage.collect().unwrap().kept_for_rebuild, 1);
        storage.index().forget_loss().unwrap();
        assert_eq!(storage.collect().unwrap().layers, 1);
        let storage = reopen(&dir, storage);
        assert_eq!(storage.index().all().len(), 1);
        assert_eq!(storage.index().lost_at(), None);
        // The file stays for whoever wants to look into it, until another one is lost.
        let replaced = || {
            let names = fs::read_dir(storage.root()).unwrap();
            let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let replaced = names.filter(|name| name.starts_with("index.redb.replaced-"));
            replaced.collect::<Vec<_>>()
        };
        assert_eq!(replaced().len(), 1);
        storage.index().forget_loss().unwrap();
        assert_eq!(replaced().len(), 1);
        fs::write(storage.root().join("index.redb.damaged-7"), "x").unwrap();
        storage.index().forget_loss().unwrap();
        assert_eq!(replaced(), ["index.redb.replaced-7"]);
    }
}

#[test]
fn the_copies_follow_the_index() {
    let (dir, storage) = new();
    storage
        .index()
        .put(record("one", &["r:1"], &[], &[]))
        .unwrap();
    storage
        .index()
        .put(record("two", &["r:2"], &[], &[]))
        .unwrap();
    let copies = dir.path().join("berth/images");
    let one = copies.join(digest("one").hex() + ".json");
    let good = fs::read(&one).unwrap();
    drop(storage);
    // A crash left a record too many, one too few, half a file and half a write.
    fs::copy(&one, copies.join(digest("zero").hex() + ".json")).unwrap();
    fs::remove_file(copies.join(digest("two").hex() + ".json")).unwrap();
    fs::write(&one, &good[..10]).unwrap();
    fs::write(copies.join(".tmp-1"), "x").unwrap();
    let storage = reopen_at(&dir);
    assert_eq!(storage.index().all().len(), 2);
    assert_eq!(fs::read_dir(&copies).unwrap().count(), 2);
    damage(&storage.root().join("index.redb"), "gone");
    drop(storage);
    assert_eq!(reopen_at(&dir).index().all().len(), 2);
}

#[test]
fn an_image_of_a_later_berth_is_not_misread() {
    let (dir, storage) = new();
    let path = storage.root().join("index.redb");
    storage
        .index()
        .put(record("one", &["r:1"], &[], &[]))
        .unwrap();
    drop(storage);
    let write = |value: &str| {
        let table: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("images");
        let database = redb::Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        let key = digest("one").hex();
        transaction
            .open_table(table)
            .unwrap()
            .insert(key.as_str(), value.as_bytes())
            .unwrap();
        transaction.commit().unwrap();
    };
    write("{\"version\":99,\"record\":{}}");
    let error = Storage::open(&dir.path().join("berth")).unwrap_err();
    assert!(matches!(error, Error::Newer { version: 99, .. }), "{error}");
    // A record that is no record is taken from its copy.
    let copy = dir
        .path()
        .join("berth/images")
        .join(digest("one").hex() + ".json");
    let good = fs::read(&copy).unwrap();
    write("{\"version\":1,\"rec");
    let storage = reopen_at(&dir);
    assert_eq!(storage.index().get(&digest("one")).unwrap().tags, ["r:1"]);
    assert_eq!(storage.index().lost_at(), None);
    drop(storage);
    // Without a good one it costs that image, and nothing is deleted that might belong to it, until somebody says so.
    write("{\"version\":1,\"rec");
    fs::write(&copy, &good[..good.len() / 2]).unwrap();
    let storage = reopen_at(&dir);
    assert!(storage.index().all().is_empty());
    assert_eq!(storage.index().lost_at(), Some(i64::MAX));
    storage.index().forget_loss().unwrap();
    assert_eq!(storage.index().lost_at(), None);
    drop(storage);
    assert_eq!(reopen_at(&dir).index().lost_at(), None);
}

#[test]
fn a_disk_or_quota_without_room_is_told_apart() {
    let index = |source: Box<dyn std::error::Error + Send + Sync>| Error::Index {
        action: "write",
        path: "index.redb".into(),
        source,
    };
    for errno in [rustix::io::Errno::NOSPC, rustix::io::Errno::DQUOT] {
        let error = || std::io::Error::from(errno);
        for full in [
            Error::Io {
                action: "write",
                path: "x".into(),
                source: error(),
            },
            index(error().into()),
            index(redb::StorageError::Io(error()).into()),
            index(redb::CommitError::Storage(redb::StorageError::Io(error())).into()),
        ] {
            assert_eq!(
                full.kind(),
                crate::model::Kind::ResourceExhausted,
                "{full:?}"
            );
        }
    }
    let broken = std::io::Error::from(rustix::io::Errno::IO);
    assert_eq!(index(broken.into()).kind(), crate::model::Kind::Unknown);
}

#[test]
fn rows_of_the_version_before_are_written_again() {
    let (dir, storage) = new();
    let path = storage.root().join("index.redb");
    drop(storage);
    fs::remove_file(&path).unwrap();
    let table: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("images");
    let rows = crate::record::golden::files(1, "index");
    {
        let database = redb::Database::create(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        for (key, row) in &rows {
            let mut table = transaction.open_table(table).unwrap();
            table.insert(key.as_str(), row.as_slice()).unwrap();
        }
        transaction.commit().unwrap();
    }
    let storage = reopen_at(&dir);
    let images = storage.index().all();
    assert_eq!(images.len(), rows.len());
    let copies = fs::read_dir(storage.root().join("images")).unwrap();
    for copy in copies {
        let text = fs::read_to_string(copy.unwrap().path()).unwrap();
        assert!(text.starts_with("{\"version\":2,"), "{text}");
    }
    drop(storage);
    {
        use redb::{ReadableDatabase as _, ReadableTable as _};
        let database = redb::Database::open(&path).unwrap();
        let read = database.begin_read().unwrap();
        for row in read.open_table(table).unwrap().iter().unwrap() {
            let (key, value) = row.unwrap();
            let text = String::from_utf8_lossy(value.value()).into_owned();
            assert!(
                text.starts_with("{\"version\":2,"),
                "{}: {text}",
                key.value()
            );
        }
    }
    let storage = reopen_at(&dir);
    assert_eq!(storage.index().all(), images);
}
