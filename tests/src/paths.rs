//! Where the tests find programs and keep what they build.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// The root of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).to_path_buf()
}

/// Where built tools and images are kept: `$BERTH_BUILD_DIR`, else `.build` in the workspace.
#[must_use]
pub fn build_dir() -> PathBuf {
    std::env::var_os("BERTH_BUILD_DIR").map_or_else(|| workspace().join(".build"), PathBuf::from)
}

/// A program that `hack/tools.sh` builds.
///
/// # Errors
/// When it is not there, with the command that builds it.
pub fn tool(name: &str) -> Result<PathBuf> {
    let path = build_dir().join("bin").join(name);
    ensure!(
        path.exists(),
        "{} is missing: run `hack/tools.sh {}`",
        path.display(),
        name.split('/').next().unwrap_or(name)
    );
    Ok(path)
}

/// A program of the distribution, looked up in `PATH` and the usual folders of root.
///
/// # Errors
/// When it is nowhere, with the command that installs it.
pub fn system_tool(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("{name} is not installed: run `hack/install-deps.sh`"))
}

/// The folder with berth, berth-shim and berth-worker: `$BERTH_BIN_DIR`, else `target/release`.
#[must_use]
pub fn berth_dir() -> PathBuf {
    std::env::var_os("BERTH_BIN_DIR")
        .map_or_else(|| workspace().join("target/release"), PathBuf::from)
}

/// The folder with the CNI plugins.
///
/// # Errors
/// When they are not built, with the command that builds them.
pub fn cni_bin_dir() -> Result<PathBuf> {
    let bridge = tool("cni/bridge")?;
    Ok(bridge.parent().unwrap_or(&bridge).to_path_buf())
}
