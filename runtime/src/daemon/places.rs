//! Directories and sockets that must not be the same.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use crate::config::Config;

/// What Berth keeps in the root directory.
const IN_ROOT: &[&str] = &[
    "blobs",
    "cni",
    "containers",
    "images",
    "index.redb",
    "init",
    "layers",
    "lock",
    "partial",
    "pods",
    "records",
    "snapshots",
    "staging",
    "volumes",
];

/// What Berth keeps in the state directory.
const IN_STATE: &[&str] = &[
    "admin.sock",
    "apparmor",
    "berth.sock",
    "bin",
    "containers",
    "lock",
    "network",
    "pods",
    "seccomp",
    "stage",
];

/// Refuses a configuration whose places get into each other's way, before anything is made.
pub(super) fn check(config: &Config) -> Result<(), String> {
    let resolved = |key: &str, path: &Path| {
        resolve(path).map_err(|e| format!("cannot look at `{key}` = {}: {e}", path.display()))
    };
    let root = resolved("root", &config.root)?;
    let state = resolved("state", &config.state)?;
    if same(&root, &state) {
        return Err(format!(
            "`root` and `state` are one directory, {}: give each its own, for one outlives the machine's start and the other does not",
            root.display()
        ));
    }
    within("state", &state, "root", &root, IN_ROOT)?;
    within("root", &root, "state", &state, IN_STATE)?;
    if resolved("listen", &config.listen)? == resolved("admin", &config.admin)? {
        return Err(format!(
            "`listen` and `admin` are one socket, {}: give each its own",
            config.listen.display()
        ));
    }
    Ok(())
}

/// Refuses a root that lies in that of another daemon, or has it inside: each takes what it does not know for left over.
pub(super) fn check_beside(config: &Config, others: &[(String, PathBuf)]) -> Result<(), String> {
    let told = |path: &Path| {
        resolve(path).map_err(|e| format!("cannot look at `root` = {}: {e}", path.display()))
    };
    let own = told(&config.root)?;
    for (owner, other) in others {
        let other = told(other)?;
        let lies = |inner: &Path, outer: &Path| inner.ancestors().any(|above| same(above, outer));
        let how = match (lies(&own, &other), lies(&other, &own)) {
            (true, _) => "lies in",
            (_, true) => "has inside it",
            _ => continue,
        };
        return Err(format!(
            "`root` = {} {how} the root of another berth ({owner}), {}: choose another place",
            own.display(),
            other.display()
        ));
    }
    Ok(())
}

fn within(
    inner_key: &str,
    inner: &Path,
    outer_key: &str,
    outer: &Path,
    own: &[&str],
) -> Result<(), String> {
    let mut below = None;
    for above in inner.ancestors() {
        if same(above, outer) {
            break;
        }
        below = above.file_name().and_then(|name| name.to_str());
        if above.parent().is_none() {
            return Ok(());
        }
    }
    match below.filter(|name| own.contains(name)) {
        None => Ok(()),
        Some(name) => Err(format!(
            "`{inner_key}` = {} lies in {name:?}, which is Berth's own in `{outer_key}` = {}: choose another place",
            inner.display(),
            outer.display()
        )),
    }
}

/// Whether two paths lead to one directory, also through bind mounts.
fn same(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
    one == other || identity(one).is_some_and(|one| Some(one) == identity(other))
}

/// A path without links, `.` and `..`, as far as it exists; the rest by its words.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut done = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => {
                let next = done.join(name);
                done = match next.canonicalize() {
                    Ok(real) => real,
                    Err(e) if e.kind() == io::ErrorKind::NotFound => next,
                    Err(e) => return Err(e),
                };
            }
            Component::ParentDir => {
                done.pop();
            }
            _ => {}
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_directory_under_two_names_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("real")).unwrap();
        std::os::unix::fs::symlink("real", at("link")).unwrap();
        let outcome = |root: &str, state: &str| {
            let mut config = Config::load(None, &[]).unwrap();
            (config.root, config.state) = (at(root), at(state));
            check(&config)
        };
        for (root, state) in [
            ("real", "real"),
            ("real", "real/"),
            ("real", "link"),
            ("link/", "real/."),
            ("real", "none/../real"),
            ("none", "none"),
            ("link/none", "real/./none"),
        ] {
            let error = outcome(root, state).unwrap_err();
            assert!(
                error.contains("are one directory"),
                "{root} {state}: {error}"
            );
        }
        for (root, state, name) in [
            ("real", "real/pods", "pods"),
            ("real", "link/layers/x", "layers"),
            ("real/stage", "real", "stage"),
            ("none/stage/root", "none", "stage"),
        ] {
            let error = outcome(root, state).unwrap_err();
            assert!(
                error.contains(&format!("{name:?}")),
                "{root} {state}: {error}"
            );
        }
        for (root, state) in [
            ("real", "state"),
            ("real", "real/state"),
            ("none/root", "none"),
            ("real", "realm"),
            ("pods", "layers"),
        ] {
            outcome(root, state).unwrap();
        }
    }

    #[test]
    fn a_root_within_anothers_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("real/below")).unwrap();
        std::os::unix::fs::symlink("real", at("link")).unwrap();
        let outcome = |root: &str, other: &str| {
            let mut config = Config::load(None, &[]).unwrap();
            config.root = at(root);
            check_beside(&config, &[("pid 1".to_owned(), at(other))])
        };
        for (root, other, how) in [
            ("real/below", "real", "lies in"),
            ("link/none", "real", "lies in"),
            ("real", "link/below", "has inside it"),
        ] {
            let error = outcome(root, other).unwrap_err();
            assert!(error.contains(how) && error.contains("pid 1"), "{error}");
        }
        for (root, other) in [
            ("real", "realm"),
            ("a/real", "real"),
            ("real/below", "real/b"),
        ] {
            outcome(root, other).unwrap();
        }
    }

    #[test]
    fn one_socket_for_two_servers_is_refused() {
        let mut config = Config::load(None, &[]).unwrap();
        config.admin = "/run/berth/x/../berth.sock".into();
        let error = check(&config).unwrap_err();
        assert!(error.contains("are one socket"), "{error}");
        config.admin = "/run/berth/admin.sock".into();
        check(&config).unwrap();
    }
}
