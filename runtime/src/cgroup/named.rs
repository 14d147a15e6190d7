//! Cgroups of which no more is known than their names.

use std::path::Path;

use super::{Error, gone, kill, remove};
use crate::host::CgroupFacts;

/// Deeper than a kubelet or systemd nest pods.
const MAX_DEPTH: usize = 16;

/// Kills everything in cgroups of these names, wherever they stand, and removes them.
///
/// # Errors
/// As [`kill`] and [`remove`], or what the kernel says of the tree.
pub fn end_named(facts: &CgroupFacts, names: &[String]) -> Result<(), Error> {
    let mut found = Vec::new();
    for mount in facts.controller_mounts() {
        find(&mount, names, MAX_DEPTH, &mut found)?;
    }
    kill(&found)?;
    remove(&found)
}

fn find(dir: &Path, names: &[String], depth: usize, found: &mut Vec<String>) -> Result<(), Error> {
    let failed = |source| Error::Read {
        path: dir.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(dir) {
        Err(error) if gone(&error) => return Ok(()),
        entries => entries.map_err(failed)?,
    };
    for entry in entries {
        let entry = match entry {
            Err(error) if gone(&error) => return Ok(()),
            entry => entry.map_err(failed)?,
        };
        let path = entry.path();
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        match entry.file_name().to_str() {
            Some(name) if names.iter().any(|wanted| wanted == name) => {
                found.push(path.to_string_lossy().into_owned());
            }
            _ if depth > 0 => find(&path, names, depth - 1, found)?,
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_are_found_by_their_names_at_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a/b/wanted/below", "wanted", "c/other"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        std::fs::write(dir.path().join("c/wanted"), "").unwrap();
        std::os::unix::fs::symlink("../a", dir.path().join("c/link")).unwrap();
        let mut found = Vec::new();
        find(dir.path(), &["wanted".to_owned()], MAX_DEPTH, &mut found).unwrap();
        found.sort();
        let at = |path| dir.path().join(path).to_string_lossy().into_owned();
        assert_eq!(found, [at("a/b/wanted"), at("wanted")]);
        assert!(find(&dir.path().join("gone"), &[], MAX_DEPTH, &mut found).is_ok());
    }
}
