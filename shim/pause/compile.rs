// How `pause.rs` is compiled: shared by the daemon's build script and the worker's tests.

/// Compiles `source` into the static program `output` for `target` with the compiler `rustc`.
///
/// # Errors
/// What the compiler or the linker said.
fn compile_pause(
    rustc: &std::ffi::OsStr,
    target: Option<&str>,
    source: &std::path::Path,
    output: &std::path::Path,
) -> Result<(), String> {
    let mut command = std::process::Command::new(rustc);
    command.args(["--edition=2024", "--crate-type=bin", "--crate-name=pause"]);
    if let Some(target) = target {
        command.args(["--target", target]);
        // The start-up objects that come with the musl target hold a _start of their own.
        if target.ends_with("musl") {
            command.args(["-C", "link-self-contained=no"]);
        }
    }
    for option in [
        "panic=abort",
        "opt-level=s",
        "strip=symbols",
        "relocation-model=static",
        "target-feature=+crt-static",
        "link-arg=-nostartfiles",
        "link-arg=-nostdlib",
        "link-arg=-static",
        "link-arg=-no-pie",
        // One page instead of one for each kind of section.
        "link-arg=-Wl,-z,noseparate-code,-z,norelro,-z,max-page-size=4096",
        "link-arg=-Wl,--build-id=none,--gc-sections,--no-eh-frame-hdr",
    ] {
        command.args(["-C", option]);
    }
    let result = command
        .arg("-o")
        .arg(output)
        .arg(source)
        .output()
        .map_err(|e| format!("run {}: {e}", rustc.to_string_lossy()))?;
    if result.status.success() {
        return Ok(());
    }
    Err(format!("compile {}: {}", source.display(), String::from_utf8_lossy(&result.stderr)))
}
