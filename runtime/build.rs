//! Compiles the pause program, which the daemon carries inside itself.

use std::path::{Path, PathBuf};

include!("../shim/pause/compile.rs");

fn main() -> Result<(), String> {
    let variable =
        |name: &str| std::env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"));
    let pause = Path::new(&variable("CARGO_MANIFEST_DIR")?).join("../shim/pause");
    for file in ["pause.rs", "compile.rs"] {
        println!("cargo::rerun-if-changed={}", pause.join(file).display());
    }
    let output = PathBuf::from(variable("OUT_DIR")?).join("pause");
    let target = variable("TARGET")?;
    compile_pause(
        &variable("RUSTC")?,
        target.to_str(),
        &pause.join("pause.rs"),
        &output,
    )
}
