//! Records on disk: a versioned JSON envelope with a checksum, in place by one rename.
//!
//! Durable means surviving the daemon, so nothing is synced here: a power loss ends the pods too,
//! and a torn record is told by its checksum.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::RenameFlags;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::sys;

const VERSION: u32 = 1;
/// More than any record has, bytes: a pod's annotations and the result of its plugins are in it.
const LIMIT: u64 = 64 << 20;
/// Prefix of files that are being written; left behind only by a crash.
const UNFINISHED: &str = ".new-";

#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u32,
    checksum: String,
    body: Value,
}

/// Writes a record, replacing an older one.
pub(super) fn write<T: Serialize>(dir: &Path, name: &str, body: &T) -> io::Result<()> {
    place(dir, name, body, RenameFlags::empty())
}

/// Writes a record that must not exist yet: `AlreadyExists` otherwise. Two writers cannot both win.
pub(super) fn create<T: Serialize>(dir: &Path, name: &str, body: &T) -> io::Result<()> {
    place(dir, name, body, RenameFlags::NOREPLACE)
}

fn place<T: Serialize>(dir: &Path, name: &str, body: &T, flags: RenameFlags) -> io::Result<()> {
    let body = serde_json::to_value(body)?;
    let envelope = Envelope {
        version: VERSION,
        checksum: checksum(&body),
        body,
    };
    let unfinished = dir.join(format!("{UNFINISHED}{name}"));
    fs::write(&unfinished, serde_json::to_vec(&envelope)?)?;
    rustix::fs::renameat_with(
        rustix::fs::CWD,
        &unfinished,
        rustix::fs::CWD,
        dir.join(name),
        flags,
    )
    .map_err(|error| {
        let _ = fs::remove_file(&unfinished);
        error.into()
    })
}

/// Reads a record; `None` when there is none.
///
/// # Errors
/// `InvalidData` when it is torn, altered, or of a version that this Berth does not know.
pub(super) fn read<T: DeserializeOwned>(dir: &Path, name: &str) -> io::Result<Option<T>> {
    let bytes = match sys::fs::read_regular(&dir.join(name), LIMIT) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let envelope: Envelope =
        serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
    if envelope.version != VERSION {
        return Err(invalid(format!(
            "unknown record version {}",
            envelope.version
        )));
    }
    if checksum(&envelope.body) != envelope.checksum {
        return Err(invalid("checksum does not match".into()));
    }
    serde_json::from_value(envelope.body)
        .map(Some)
        .map_err(|error| invalid(error.to_string()))
}

/// Removes a record; one that does not exist is fine.
pub(super) fn remove(dir: &Path, name: &str) -> io::Result<()> {
    match fs::remove_file(dir.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Names of all records; what a crash left unfinished is removed.
pub(super) fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let Ok(name) = entry?.file_name().into_string() else {
            continue;
        };
        if name.starts_with(UNFINISHED) {
            remove(dir, &name)?;
        } else {
            found.push(name);
        }
    }
    Ok(found)
}

/// SHA-256 over the value with its keys in order, whatever order the map type keeps.
fn checksum(body: &Value) -> String {
    let mut hash = Sha256::new();
    feed(body, &mut hash);
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn feed(value: &Value, hash: &mut Sha256) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            hash.update(b"{");
            for (key, value) in entries {
                hash.update(Value::from(key.as_str()).to_string());
                feed(value, hash);
            }
            hash.update(b"}");
        }
        Value::Array(list) => {
            hash.update(b"[");
            list.iter().for_each(|value| feed(value, hash));
            hash.update(b"]");
        }
        other => {
            hash.update(other.to_string());
            hash.update(b",");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_a_torn_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let body = serde_json::json!({"b": [1, {"z": null}], "a": "x"});
        create(dir.path(), "r", &body).unwrap();
        assert_eq!(read::<Value>(dir.path(), "r").unwrap(), Some(body.clone()));
        let again = create(dir.path(), "r", &body).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        write(dir.path(), "r", &serde_json::json!(2)).unwrap();
        assert_eq!(read::<u8>(dir.path(), "r").unwrap(), Some(2));

        let whole = fs::read(dir.path().join("r")).unwrap();
        for torn in [&b""[..], &whole[..whole.len() / 2]] {
            fs::write(dir.path().join("r"), torn).unwrap();
            let error = read::<u8>(dir.path(), "r").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let altered = String::from_utf8(whole)
            .unwrap()
            .replace("\"body\":2", "\"body\":3");
        fs::write(dir.path().join("r"), altered).unwrap();
        assert!(read::<u8>(dir.path(), "r").is_err());

        fs::write(dir.path().join(".new-x"), "").unwrap();
        assert_eq!(names(dir.path()).unwrap(), ["r"]);
        assert!(!dir.path().join(".new-x").exists());
        remove(dir.path(), "r").unwrap();
        remove(dir.path(), "r").unwrap();
        assert_eq!(read::<u8>(dir.path(), "r").unwrap(), None);
    }
}
