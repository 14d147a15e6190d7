//! Where the records lie: in `records`, since 0.2.0.
//!
//! Berths before that look for directories beside it, take every record of this version for damaged, and end its pods
//! and containers. In place of each such directory stands a file, so that none of them starts, however its programs
//! came to be there: what runs goes on, and the next start of a newer one takes it up.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Error, io_error, make_dir};

/// Below the root directory.
const RECORDS: &str = "records";

/// The directory for the records of one kind below the root directory; those that lie in the old one are moved there.
pub(super) fn claim(root: &Path, kind: &str) -> Result<PathBuf, Error> {
    let (dir, old) = (root.join(RECORDS).join(kind), root.join(kind));
    make_dir(&root.join(RECORDS))?;
    make_dir(&dir)?;
    if old.is_dir() {
        for entry in fs::read_dir(&old).map_err(io_error("list", &old))? {
            let entry = entry.map_err(io_error("list", &old))?;
            let from = entry.path();
            fs::rename(&from, dir.join(entry.file_name())).map_err(io_error("move", &from))?;
        }
        fs::remove_dir(&old).map_err(io_error("remove", &old))?;
    }
    bar(&old, &dir, kind).map_err(io_error("write", &old))?;
    Ok(dir)
}

fn bar(old: &Path, dir: &Path, kind: &str) -> io::Result<()> {
    let text = format!(
        "Since version 0.2.0, Berth keeps its {kind} in {}.\n\
         This file keeps older versions from starting: they would take the records there for damaged, and end every pod.\n\
         Pods that run go on, and any version from 0.2.0 on takes them up again.\n\
         To go back to an older version, remove all pods and all images, stop Berth, and delete this file.\n",
        dir.display()
    );
    match fs::read_to_string(old) {
        Ok(found) if found == text => Ok(()),
        _ => fs::write(old, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lay_beside_is_moved_and_an_older_berth_finds_no_directory() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        fs::create_dir_all(root.join("pods/a")).unwrap();
        fs::write(root.join("pods/a/record.json"), "A").unwrap();
        // Cut off in the middle, and once more after it is done.
        fs::create_dir_all(root.join("records/pods/b")).unwrap();
        for _ in 0..2 {
            let dir = claim(root, "pods").unwrap();
            assert_eq!(dir, root.join("records/pods"));
            assert_eq!(fs::read_to_string(dir.join("a/record.json")).unwrap(), "A");
            assert!(dir.join("b").is_dir());
            // As those Berths open theirs.
            let refused = fs::create_dir_all(root.join("pods")).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
        }
        let told = fs::read_to_string(root.join("pods")).unwrap();
        assert!(told.contains("records/pods"), "{told}");
    }

    #[test]
    fn a_fresh_root_is_barred_too() {
        let root = tempfile::tempdir().unwrap();
        claim(root.path(), "containers").unwrap();
        assert!(root.path().join("containers").is_file());
    }

    #[test]
    fn one_object_in_both_places_is_left_for_somebody_to_look_at() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["pods/a", "records/pods/a"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
            fs::write(root.path().join(dir).join("record.json"), dir).unwrap();
        }
        let told = claim(root.path(), "pods").unwrap_err().to_string();
        assert!(
            told.contains("cannot move") && told.contains("pods/a"),
            "{told}"
        );
    }
}
