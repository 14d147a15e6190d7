//! Objects that come back, and those of which only a part does.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::*;
use crate::record::Form;

#[derive(Debug, PartialEq, Eq)]
struct Thing(String);

#[derive(Serialize, Deserialize)]
struct ThingForm {
    text: String,
}

impl Form for ThingForm {
    type Model = Thing;

    fn freeze(model: &Thing) -> Self {
        let text = model.0.clone();
        Self { text }
    }

    fn thaw(self) -> Result<Thing, Unfit> {
        Ok(Thing(self.text))
    }
}

impl Kept for Thing {
    const KIND: &'static str = "thing";
    type Form = ThingForm;

    fn read_other(_: &[u8]) -> Result<Self, Unreadable> {
        Ok(Self("old".to_owned()))
    }
}

impl Object for Thing {
    fn identity(&self, id: &str) -> Identity {
        Identity {
            kind: "thing".to_owned(),
            id: id.to_owned(),
            name: self.0.clone(),
            ..Identity::default()
        }
    }

    fn from_identity(identity: Identity) -> Result<Self, Unfit> {
        Ok(Self(format!("known as {}", identity.name)))
    }
}

fn records(dir: &Path) -> Records<Thing> {
    Records::open(dir, "things").unwrap()
}

fn found(records: &Records<Thing>, id: &str) -> Loaded<Thing> {
    let all = records.load_all().unwrap();
    all.into_iter().find(|found| found.id == id).unwrap().object
}

#[test]
fn objects_come_back_and_can_be_removed_twice() {
    let dir = tempfile::tempdir().unwrap();
    let records = records(dir.path());
    records.write("a", &Thing("x".to_owned())).unwrap();
    records.write("a", &Thing("y".to_owned())).unwrap();
    assert!(matches!(found(&records, "a"), Loaded::Whole(Thing(text)) if text == "y"));
    let files = std::fs::read_dir(records.path("a")).unwrap().count();
    assert_eq!(files, 2, "the record and the identity");
    records.remove("a").unwrap();
    records.remove("a").unwrap();
    assert!(records.read("a").is_err());
    assert!(records.load_all().unwrap().is_empty());
}

#[test]
fn an_identity_that_is_not_there_is_written_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let first = records(dir.path());
    first.write("a", &Thing("x".to_owned())).unwrap();
    let identity = first.path("a").join(IDENTITY);
    let whole = std::fs::read(&identity).unwrap();
    for torn in [None, Some(""), Some("{}")] {
        match torn {
            None => std::fs::remove_file(&identity).unwrap(),
            Some(text) => std::fs::write(&identity, text).unwrap(),
        }
        assert!(matches!(found(&records(dir.path()), "a"), Loaded::Whole(_)));
        assert_eq!(std::fs::read(&identity).unwrap(), whole);
    }
}

#[test]
fn what_cannot_be_read_is_known_by_its_identity() {
    let dir = tempfile::tempdir().unwrap();
    let records = records(dir.path());
    let (record, identity) = (
        records.path("a").join(RECORD),
        records.path("a").join(IDENTITY),
    );
    records.write("a", &Thing("x".to_owned())).unwrap();
    let whole = std::fs::read_to_string(&record).unwrap();
    for (text, word) in [
        (whole.replace("\"x\"", "\"y\""), "checksum"),
        (whole.replace("\"thing\"", "\"pod\""), "of \"pod\""),
        (whole.replace("\"version\":2", "\"version\":3"), "version 3"),
        (whole[..whole.len() / 2].to_owned(), "damaged"),
        (String::new(), "damaged"),
    ] {
        std::fs::write(&record, text).unwrap();
        let Loaded::Shown(Thing(text), error) = found(&records, "a") else {
            panic!("{word}: it is not shown");
        };
        assert_eq!(text, "known as x");
        let told = crate::model::chain(&error);
        assert!(told.contains(word), "{word}: {told}");
    }
    std::fs::write(&record, whole.replace("\"version\":2", "\"version\":1")).unwrap();
    assert!(matches!(found(&records, "a"), Loaded::Whole(Thing(text)) if text == "old"));
    let again = std::fs::read(&record).unwrap();
    assert_eq!(again, record::encode(&Thing("old".to_owned())).unwrap());

    std::fs::remove_file(&record).unwrap();
    let named = std::fs::read_to_string(&identity).unwrap();
    for torn in [named.replace("\"old\"", "\"new\""), String::new()] {
        std::fs::write(&identity, torn).unwrap();
        assert!(matches!(found(&records, "a"), Loaded::Lost { .. }));
    }
    // That of another object says nothing about this one.
    std::fs::create_dir(records.path("b")).unwrap();
    std::fs::write(records.path("b").join(IDENTITY), named).unwrap();
    assert!(matches!(found(&records, "b"), Loaded::Lost { .. }));
}
