//! The contents of the images: busybox with its applets, nginx with its libraries, small C programs of ours.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::oci::Tree;
use crate::paths;

/// `/etc/passwd` of busybox with more lines.
#[must_use]
pub fn passwd(more: &str) -> String {
    format!(
        "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
         www-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n{more}"
    )
}

/// `/etc/group` of busybox with more lines.
#[must_use]
pub fn group(more: &str) -> String {
    format!("root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nnogroup:x:65534:\n{more}")
}

/// A root file system of busybox. The applets are hard links: critest masks `/bin/ls` and expects the rest to work.
///
/// # Errors
/// When busybox is not built.
pub fn busybox_tree() -> Result<Tree> {
    let busybox = paths::tool("busybox")?;
    let list = output(Command::new(&busybox).arg("--list"))?;
    let mut tree = Tree::default();
    for folder in [
        "bin", "etc", "home", "root", "usr", "usr/bin", "usr/sbin", "var", "var/run",
    ] {
        tree.dir(folder, 0o755)?;
    }
    tree.dir("tmp", 0o1777)?;
    tree.file("bin/busybox", 0o755, &std::fs::read(&busybox)?)?;
    for applet in list.lines().filter(|applet| *applet != "busybox") {
        tree.hard_link(&format!("bin/{applet}"), "bin/busybox")?;
    }
    tree.symlink("usr/bin/env", "../../bin/env")?;
    tree.file("etc/passwd", 0o644, passwd("").as_bytes())?;
    tree.file("etc/group", 0o644, group("").as_bytes())?;
    Ok(tree)
}

/// nginx on a port, with the libraries that it links.
///
/// # Errors
/// When nginx is not fetched or one of its libraries is not installed.
pub fn nginx_tree(port: u16) -> Result<Tree> {
    let nginx = paths::tool("nginx")?;
    let mut tree = Tree::default();
    let mut made = BTreeSet::new();
    for folder in [
        "usr/sbin",
        "var/lib/nginx",
        "var/log/nginx",
        "var/www",
        "etc/nginx",
    ] {
        dirs(&mut tree, &mut made, Path::new(folder))?;
    }
    for library in libraries(&nginx)? {
        let inside = library.strip_prefix("/")?;
        dirs(&mut tree, &mut made, inside.parent().unwrap_or(inside))?;
        tree.file(
            &inside.display().to_string(),
            0o755,
            &std::fs::read(&library)?,
        )?;
    }
    tree.file("usr/sbin/nginx", 0o755, &std::fs::read(&nginx)?)?;
    tree.file("var/www/index.html", 0o644, b"<h1>Welcome to nginx!</h1>\n")?;
    tree.file("etc/nginx/nginx.conf", 0o644, nginx_conf(port).as_bytes())?;
    Ok(tree)
}

fn nginx_conf(port: u16) -> String {
    format!(
        "user root;\nworker_processes 1;\npid /var/run/nginx.pid;\nerror_log /dev/stderr;\n\
         events {{ worker_connections 64; }}\n\
         http {{\n  access_log /dev/stdout;\n  server {{\n    listen {port};\n    root /var/www;\n  }}\n}}\n"
    )
}

/// Every folder on the way, each once.
fn dirs(tree: &mut Tree, made: &mut BTreeSet<PathBuf>, folder: &Path) -> Result<()> {
    let mut path = PathBuf::new();
    for part in folder.components() {
        path.push(part);
        if made.insert(path.clone()) {
            tree.dir(&path.display().to_string(), 0o755)?;
        }
    }
    Ok(())
}

fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let text = output(Command::new("ldd").arg(program))?;
    ensure!(
        !text.contains("not found"),
        "{} needs a library that is not installed: run `hack/install-deps.sh`:\n{text}",
        program.display()
    );
    Ok(text
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}

/// Compiles one of `tests/images/*.c` into a static program.
///
/// # Errors
/// When the compiler is missing or complains.
pub fn compile(name: &str) -> Result<Vec<u8>> {
    let source = paths::workspace().join(format!("tests/images/{name}.c"));
    let folder = tempfile::tempdir()?;
    let target = folder.path().join(name);
    // No build id: it would carry the path of the temporary folder.
    output(
        Command::new("cc")
            .args(["-O2", "-static", "-s", "-Wall", "-Wl,--build-id=none", "-o"])
            .arg(&target)
            .arg(&source),
    )?;
    Ok(std::fs::read(target)?)
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("running {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}
