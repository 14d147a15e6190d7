//! Records of the networks: files in a directory, in place by one rename.
//!
//! Durable means surviving the daemon, so nothing is synced here: a power loss ends the pods too,
//! and a torn record is told by its checksum.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::RenameFlags;

use crate::record::{self, Kept};
use crate::sys;

/// More than any record has, bytes: a pod's annotations and the result of its plugins are in it.
const LIMIT: u64 = 64 << 20;
/// Prefix of files that are being written; left behind only by a crash.
const UNFINISHED: &str = ".new-";

/// A model, what it is called, and its form, which is the same in both versions.
macro_rules! kept {
    ($model:ident: $kind:literal = $form:ident { $($field:ident),* }) => {
        $crate::record::convert!($crate::record::v1::$form as $model { $($field),* });

        impl $crate::record::Kept for $model {
            const KIND: &'static str = $kind;
            type Form = $crate::record::v2::$form;

            fn read_other(file: &[u8]) -> Result<Self, $crate::record::Unreadable> {
                let form: $crate::record::v1::$form = $crate::record::v1::network(file)?;
                Ok($crate::record::Form::thaw(form)?)
            }
        }
    };
}

pub(in crate::network) use kept;

/// Writes a record, replacing an older one.
pub(super) fn write<T: Kept>(dir: &Path, name: &str, body: &T) -> io::Result<()> {
    place(dir, name, body, RenameFlags::empty())
}

/// Writes a record that must not exist yet: `AlreadyExists` otherwise. Two writers cannot both win.
pub(super) fn create<T: Kept>(dir: &Path, name: &str, body: &T) -> io::Result<()> {
    place(dir, name, body, RenameFlags::NOREPLACE)
}

fn place<T: Kept>(dir: &Path, name: &str, body: &T, flags: RenameFlags) -> io::Result<()> {
    let unfinished = dir.join(format!("{UNFINISHED}{name}"));
    fs::write(&unfinished, record::encode(body)?)?;
    crash_point!("run_pod.lease_file.after");
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
pub(super) fn read<T: Kept>(dir: &Path, name: &str) -> io::Result<Option<T>> {
    let bytes = match sys::fs::read_regular(&dir.join(name), LIMIT) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    Ok(Some(record::decode(&bytes)?))
}

/// Writes again what an earlier version wrote, before there is a Berth that reads it no longer. What cannot be read is
/// left to its reader.
pub(super) fn renew<T: Kept>(dir: &Path, name: &str) {
    let path = dir.join(name);
    let outdated = sys::fs::read_regular(&path, LIMIT).is_ok_and(|file| record::is_outdated(&file));
    if !outdated {
        return;
    }
    let Ok(Some(found)) = read::<T>(dir, name) else {
        return;
    };
    if let Err(error) = write(dir, name, &found) {
        tracing::warn!(record = %path.display(), %error, "a record stays as an earlier version left it until it changes");
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::cni::PodCidrs;

    #[test]
    fn a_record_is_read_back_and_a_torn_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let body = PodCidrs {
            cidrs: vec!["10.1.0.0/24".to_owned()],
        };
        create(dir.path(), "r", &body).unwrap();
        assert_eq!(read(dir.path(), "r").unwrap(), Some(body.clone()));
        let again = create(dir.path(), "r", &body).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        write(dir.path(), "r", &PodCidrs::default()).unwrap();
        assert_eq!(read(dir.path(), "r").unwrap(), Some(PodCidrs::default()));

        let whole = fs::read(dir.path().join("r")).unwrap();
        for torn in [&b""[..], &whole[..whole.len() / 2]] {
            fs::write(dir.path().join("r"), torn).unwrap();
            let error = read::<PodCidrs>(dir.path(), "r").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }

        fs::write(dir.path().join(".new-x"), "").unwrap();
        assert_eq!(names(dir.path()).unwrap(), ["r"]);
        assert!(!dir.path().join(".new-x").exists());
        remove(dir.path(), "r").unwrap();
        remove(dir.path(), "r").unwrap();
        assert_eq!(read::<PodCidrs>(dir.path(), "r").unwrap(), None);
    }
}
