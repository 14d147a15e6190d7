//! Files as versions wrote them, in `runtime/tests/records/v1` (by the build of 4e0acb6) and `v2` (by this version):
//! read whole, and written again as they were. `hack/golden.sh` makes them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;

/// What the files of one kind hold, by their names.
pub(crate) type Found<K> = BTreeMap<String, K>;

/// A form that is one of several.
pub(crate) trait Choice {
    /// What they are called in a file.
    const NAMES: &[&str];
}

fn dir(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/records/v{version}"))
}

/// Name and content of all files of a kind.
pub(crate) fn files(version: u32, kind: &str) -> BTreeMap<String, Vec<u8>> {
    let dir = dir(version).join(kind);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, std::fs::read(&path).unwrap())
    };
    entries.map(read).collect()
}

/// Reads the files of a kind as each version that is read wrote them, with every value that is in them, and gives
/// what they hold. What this version wrote, it writes again, byte for byte.
///
/// The values are compared in the form that is written: that does not change with the model. They are reviewed in the
/// snapshots.
pub(crate) fn check<K: Kept>(kind: &str) -> [Found<K>; 2] {
    let read = |version: u32| {
        let mut found = Found::new();
        let mut values = BTreeMap::new();
        for (name, file) in files(version, kind) {
            let kept: K = decode(&file).unwrap_or_else(|e| panic!("{kind} {name}: {e}"));
            let again = encode(&kept).unwrap();
            if version == VERSIONS.written {
                assert_eq!(
                    String::from_utf8_lossy(&again),
                    String::from_utf8_lossy(&file),
                    "{kind} {name} has another form: it needs another version"
                );
            }
            let envelope: Value = serde_json::from_slice(&again).unwrap();
            values.insert(name.clone(), envelope["data"].clone());
            found.insert(name, kept);
        }
        assert!(!found.is_empty(), "no {kind} of version {version}");
        insta::assert_json_snapshot!(format!("{kind}_of_version_{version}"), values);
        found
    };
    [read(VERSIONS.other()), read(VERSIONS.written)]
}

/// Which choices none of the files of a kind makes at `place`: a state that no file is in would be read by nobody's test.
pub(crate) fn unmade<C: Choice>(version: u32, kind: &str, place: &str) -> Vec<&'static str> {
    let files = files(version, kind);
    let values = files.values().map(|file| {
        let file: Value = serde_json::from_slice(file).unwrap();
        file["data"].pointer(place).cloned().unwrap_or_default()
    });
    let made: Vec<Value> = values.collect();
    let names = C::NAMES.iter().copied();
    names
        .filter(|name| !made.iter().any(|value| value == name))
        .collect()
}
