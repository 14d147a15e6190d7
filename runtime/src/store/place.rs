//! Where the records lie: in `records`, since 0.2.0.
//!
//! Berths before that look for directories beside it, take every record of this version for damaged, and end its pods
//! and containers. In place of each such directory stands a file, so that none of them starts, however its programs
//! came to be there: what runs goes on, and the next start of a newer one takes it up.
//!
//! What lies in an old directory comes over in one step, in which that file takes its place. A daemon that dies before
//! or after it is followed by one that goes on from there, and no older one ever finds a part of the objects only.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::{Error, io_error, make_dir};
use crate::sys;

/// Below the root directory.
const RECORDS: &str = "records";

/// The directory for the records of one kind below the root directory; those that lie in the old one are moved there.
pub(super) fn claim(root: &Path, kind: &str) -> Result<PathBuf, Error> {
    let (dir, old) = (root.join(RECORDS).join(kind), root.join(kind));
    make_dir(&root.join(RECORDS))?;
    if old.is_dir() {
        // An older Berth ran here again, since the file that stood there was deleted.
        if dir.is_dir() {
            join(&dir, &old)?;
            crash_point!("move_records.joined.after");
        }
        bar(&dir, &dir, kind)?;
        crash_point!("move_records.file.after");
        exchange(&dir, &old)?;
        crash_point!("move_records.exchange.after");
    }
    make_dir(&dir)?;
    bar(&old, &dir, kind)?;
    Ok(dir)
}

/// Moves all objects from one directory to another, and removes the first.
fn join(from: &Path, to: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(from).map_err(io_error("list", from))? {
        let entry = entry.map_err(io_error("list", from))?;
        let path = entry.path();
        fs::rename(&path, to.join(entry.file_name())).map_err(|error| {
            let error = match error.kind() {
                io::ErrorKind::DirectoryNotEmpty => {
                    let both = format!(
                        "there is one of that name in {} too: look which is the newer one, and delete the other",
                        to.display()
                    );
                    io::Error::new(error.kind(), both)
                }
                _ => error,
            };
            io_error("move", &path)(error)
        })?;
    }
    fs::remove_dir(from).map_err(io_error("remove", from))
}

/// Puts each in the place of the other: a file here, a directory there.
fn exchange(file: &Path, dir: &Path) -> Result<(), Error> {
    match renameat_with(CWD, file, CWD, dir, RenameFlags::EXCHANGE) {
        // Not every file system can.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => put_in_place_of(file, dir),
        done => done.map_err(|error| io_error("move", dir)(error.into())),
    }
}

fn put_in_place_of(file: &Path, dir: &Path) -> Result<(), Error> {
    fs::remove_file(file).map_err(io_error("remove", file))?;
    fs::rename(dir, file).map_err(io_error("move", dir))
}

/// Writes the file that keeps older versions out.
fn bar(file: &Path, dir: &Path, kind: &str) -> Result<(), Error> {
    let text = format!(
        "Since version 0.2.0, Berth keeps its {kind} in {}.\n\
         This file keeps older versions from starting: they would take the records there for damaged, and end every pod.\n\
         Pods that run go on, and any version from 0.2.0 on takes them up again.\n\
         To go back to an older version, remove all pods and all images, stop Berth, and delete this file.\n",
        dir.display()
    );
    match fs::read_to_string(file) {
        Ok(found) if found == text => Ok(()),
        _ => write(file, &text).map_err(io_error("write", file)),
    }
}

fn write(file: &Path, text: &str) -> io::Result<()> {
    let mut opened = sys::fs::open_private(file)?;
    opened.set_len(0)?;
    opened.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An object in a directory below the root.
    fn object(root: &Path, dir: &str) {
        fs::create_dir_all(root.join(dir)).unwrap();
        fs::write(root.join(dir).join("record.json"), dir).unwrap();
    }

    /// All of them are where they belong, and an older Berth finds no directory.
    fn is_moved(root: &Path, objects: &[(&str, &str)]) {
        // Once more after it is done: nothing happens.
        for _ in 0..2 {
            let dir = claim(root, "pods").unwrap();
            assert_eq!(dir, root.join("records/pods"));
            assert_eq!(fs::read_dir(&dir).unwrap().count(), objects.len());
            for (id, text) in objects {
                let file = dir.join(id).join("record.json");
                assert_eq!(&fs::read_to_string(file).unwrap(), text);
            }
            // As those Berths open theirs.
            let refused = fs::create_dir_all(root.join("pods")).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
            let told = fs::read_to_string(root.join("pods")).unwrap();
            assert!(told.contains("records/pods"), "{told}");
        }
    }

    #[test]
    fn what_lay_beside_is_moved_and_an_older_berth_finds_no_directory() {
        let root = tempfile::tempdir().unwrap();
        object(root.path(), "pods/a");
        object(root.path(), "pods/b");
        is_moved(root.path(), &[("a", "pods/a"), ("b", "pods/b")]);
    }

    #[test]
    fn a_fresh_root_is_barred_too() {
        let root = tempfile::tempdir().unwrap();
        is_moved(root.path(), &[]);
    }

    #[test]
    fn a_move_that_was_cut_off_is_gone_on_with() {
        // The file was written, whole or in part.
        for text in ["", "Since version 0.2.0, Berth"] {
            let root = tempfile::tempdir().unwrap();
            object(root.path(), "pods/a");
            fs::create_dir(root.path().join(RECORDS)).unwrap();
            fs::write(root.path().join("records/pods"), text).unwrap();
            is_moved(root.path(), &[("a", "pods/a")]);
        }
        // A file system that cannot exchange left nothing in its place.
        let root = tempfile::tempdir().unwrap();
        object(root.path(), "records/pods/a");
        is_moved(root.path(), &[("a", "records/pods/a")]);
        // The machine stopped before all of the file was on the disk.
        fs::write(root.path().join("pods"), "").unwrap();
        is_moved(root.path(), &[("a", "records/pods/a")]);
    }

    #[test]
    fn objects_in_both_places_come_together() {
        let root = tempfile::tempdir().unwrap();
        object(root.path(), "records/pods/a");
        object(root.path(), "pods/b");
        is_moved(root.path(), &[("a", "records/pods/a"), ("b", "pods/b")]);
        let empty = tempfile::tempdir().unwrap();
        object(empty.path(), "pods/b");
        fs::create_dir_all(empty.path().join("records/pods")).unwrap();
        is_moved(empty.path(), &[("b", "pods/b")]);
    }

    #[test]
    fn one_object_in_both_places_is_left_for_somebody_to_look_at() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["pods/a", "records/pods/a"] {
            object(root.path(), dir);
        }
        let told = crate::model::chain(&claim(root.path(), "pods").unwrap_err());
        assert!(
            told.contains("cannot move")
                && told.contains("records/pods/a")
                && told.contains("newer"),
            "{told}"
        );
        for dir in ["pods/a", "records/pods/a"] {
            assert!(root.path().join(dir).join("record.json").exists(), "{dir}");
        }
    }

    #[test]
    fn a_file_system_that_cannot_exchange_is_no_hindrance() {
        let root = tempfile::tempdir().unwrap();
        object(root.path(), "pods/a");
        let (file, dir) = (root.path().join("file"), root.path().join("pods"));
        fs::write(&file, "").unwrap();
        put_in_place_of(&file, &dir).unwrap();
        assert!(file.join("a/record.json").exists() && !dir.exists());
    }
}
