//! Sources of the mounts that a container asks for.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::host::{SourcePropagation, source_propagation};
use crate::model::{MountPropagation, MountRequest};
use crate::spec::ResolvedMount;

/// Resolves every source. A missing directory is made, as containerd and CRI-O do (row F073).
pub(super) fn resolve(requests: &[MountRequest]) -> Result<Vec<ResolvedMount>, String> {
    requests
        .iter()
        .map(|request| {
            let source = source(&request.host_path)?;
            // The mount table is long on a busy node: only those that need it read it.
            let propagation = match request.propagation {
                MountPropagation::Private => SourcePropagation::Private,
                _ => source_propagation(&source)
                    .map_err(|e| format!("cannot read the mount table: {e}"))?,
            };
            Ok(ResolvedMount {
                request: request.clone(),
                source,
                propagation,
                own: false,
            })
        })
        .collect()
}

fn source(path: &str) -> Result<PathBuf, String> {
    let path = Path::new(path);
    if !path.is_absolute() {
        return Err(format!("mount source {path:?} is not an absolute path"));
    }
    match fs::canonicalize(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .and_then(|()| fs::canonicalize(path))
            .map_err(|e| format!("cannot make the mount source {}: {e}", path.display())),
        other => other.map_err(|e| format!("mount source {}: {e}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_resolved_and_missing_directories_made() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        let real = fs::canonicalize(dir.path()).unwrap().join("real");
        assert_eq!(
            source(dir.path().join("link").to_str().unwrap()).unwrap(),
            real
        );
        let fresh = dir.path().join("a/b");
        source(fresh.to_str().unwrap()).unwrap();
        assert!(fresh.is_dir());
        assert!(source("relative").is_err());
    }
}
