//! Sources of the mounts that a container asks for.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::model::{MountPropagation, MountRequest};
use crate::spec::ResolvedMount;
use crate::sys::mount::MountTable;

/// Resolves every source. A missing directory is made, as containerd and CRI-O do (row F073).
pub(super) fn resolve(requests: &[MountRequest]) -> Result<Vec<ResolvedMount>, String> {
    let needs_table = requests.iter().any(|r| r.propagation != MountPropagation::Private);
    let table = if needs_table { Some(MountTable::read().map_err(|e| format!("cannot read the mount table: {e}"))?) } else { None };
    requests
        .iter()
        .map(|request| {
            let source = source(&request.host_path)?;
            if let Some(table) = &table {
                check_propagation(table, &source, request.propagation)?;
            }
            let is_dir = fs::metadata(&source).map_err(|e| format!("mount source {}: {e}", source.display()))?.is_dir();
            Ok(ResolvedMount { request: request.clone(), source, is_dir })
        })
        .collect()
}

fn source(path: &str) -> Result<PathBuf, String> {
    let path = Path::new(path);
    if !path.is_absolute() {
        return Err(format!("mount source {path:?} is not an absolute path"));
    }
    match fs::canonicalize(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(path)
                .and_then(|()| fs::canonicalize(path))
                .map_err(|e| format!("cannot make the mount source {}: {e}", path.display()))
        }
        other => other.map_err(|e| format!("mount source {}: {e}", path.display())),
    }
}

/// A volume can only pass mounts on if the mount that it lies on does (rows F077, F078).
fn check_propagation(table: &MountTable, source: &Path, wanted: MountPropagation) -> Result<(), String> {
    let mount = table.of(source).ok_or_else(|| format!("no mount holds {}", source.display()))?;
    let (ok, needs) = match wanted {
        MountPropagation::Private => (true, ""),
        MountPropagation::HostToContainer => (mount.is_shared() || mount.is_slave(), "a shared or slave"),
        MountPropagation::Bidirectional => (mount.is_shared(), "a shared"),
    };
    if ok {
        Ok(())
    } else {
        Err(format!(
            "{} is on the mount {}, which is not {needs} mount: make it one (`mount --make-rshared {}`)",
            source.display(),
            mount.point().display(),
            mount.point().display()
        ))
    }
}
