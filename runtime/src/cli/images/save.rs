//! Archives and layouts on the operator's side.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use crate::admin::client::{Client, Error};
use crate::model::chain;
use crate::sys::fs::unique_name;

/// Writes images to a file, a directory or standard output.
pub(super) async fn save(
    client: &Client,
    references: &[String],
    output: Option<&Path>,
    dir: bool,
) -> Result<(), String> {
    match output {
        Some(path) if dir => to_layout(client, references, path).await,
        Some(path) if path != Path::new("-") => to_file(client, references, path).await,
        _ => {
            let mut out = io::stdout();
            if out.is_terminal() {
                let why =
                    "an archive is nothing for a terminal: redirect it, or name a file with -o";
                return Err(why.to_owned());
            }
            let saved = client.save(references, |piece| out.write_all(piece)).await;
            saved.map_err(|e| broken(&e))?;
            out.flush().map_err(|e| format!("cannot write: {e}"))
        }
    }
}

/// The daemon can only cut the connection when an archive cannot be finished.
fn broken(error: &Error) -> String {
    match error {
        Error::Broken(_) => format!(
            "{}: the archive is not whole; the daemon's log says why, and so may `berth images check`",
            chain(error)
        ),
        error => chain(error),
    }
}

/// The file appears when it is whole.
async fn to_file(client: &Client, references: &[String], path: &Path) -> Result<(), String> {
    let failed = |e: io::Error| format!("cannot write {}: {e}", path.display());
    let beside = path.with_file_name(unique_name(".berth-save-"));
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .open(&beside)
        .map_err(failed)?;
    let saved = client.save(references, |piece| file.write_all(piece)).await;
    let saved = saved.map_err(|e| broken(&e));
    let saved = saved.and_then(|()| file.sync_all().map_err(failed));
    let saved = saved.and_then(|()| std::fs::rename(&beside, path).map_err(failed));
    saved.inspect_err(|_| {
        // The first failure is the one to tell.
        let _ = std::fs::remove_file(&beside);
    })
}

/// The archive comes through a pipe to a thread that unpacks it.
async fn to_layout(client: &Client, references: &[String], path: &Path) -> Result<(), String> {
    let failed = |e: io::Error| format!("cannot write {}: {e}", path.display());
    std::fs::create_dir(path).map_err(failed)?;
    let (reader, mut writer) = io::pipe().map_err(failed)?;
    let target = path.to_owned();
    let unpacking = tokio::task::spawn_blocking(move || unpack(reader, &target));
    let saved = client
        .save(references, |piece| writer.write_all(piece))
        .await;
    drop(writer);
    let unpacked = unpacking.await.map_err(|e| format!("a bug: {e}"))?;
    // When unpacking fails, writing to it does as well, and less is known about why.
    let outcome = unpacked.map_err(failed);
    let outcome = outcome.and_then(|()| saved.map_err(|e| broken(&e)));
    outcome.inspect_err(|_| {
        let _ = std::fs::remove_dir_all(path);
    })
}

fn unpack(reader: impl Read, target: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(reader);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.into_owned();
        // Docker's list is of no use in a layout.
        if name == Path::new("manifest.json") {
            continue;
        }
        let path = target.join(&name);
        if let Some(above) = path.parent() {
            std::fs::create_dir_all(above)?;
        }
        io::copy(&mut entry, &mut File::create_new(&path)?)?;
    }
    Ok(())
}

/// The OCI layout in a directory as an archive.
pub(super) fn read_layout(path: &Path) -> Result<impl Read + Send + 'static, String> {
    let failed = |e: io::Error| format!("{}: {e}", path.display());
    if !path.join("index.json").is_file() {
        let path = path.display();
        return Err(format!("{path} has no index.json: it is no OCI layout"));
    }
    let (reader, writer) = io::pipe().map_err(failed)?;
    let root = path.to_owned();
    let thread = std::thread::Builder::new().name("layout".to_owned());
    let packing = thread.spawn(move || pack(&root, writer)).map_err(failed)?;
    Ok(Packed {
        reader,
        packing: Some(packing),
    })
}

/// A pipe that ends well only if what was written into it did.
struct Packed {
    reader: io::PipeReader,
    packing: Option<std::thread::JoinHandle<io::Result<()>>>,
}

impl Read for Packed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(buffer)?;
        if length == 0
            && !buffer.is_empty()
            && let Some(packing) = self.packing.take()
        {
            let bug = |_| io::Error::other("packing the layout stopped");
            packing.join().map_err(bug)??;
        }
        Ok(length)
    }
}

fn pack(root: &Path, out: impl Write) -> io::Result<()> {
    let mut archive = tar::Builder::new(out);
    // A blob may have holes on the disk; whoever loads the archive takes whole files only.
    archive.sparse(false);
    // An archive of `docker save` that somebody unpacked has names in a list of its own.
    for name in ["oci-layout", "index.json", "manifest.json"] {
        let file = root.join(name);
        if file.is_file() {
            archive.append_path_with_name(file, name)?;
        }
    }
    let blobs = Path::new("blobs/sha256");
    let mut names: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(root.join(blobs))? {
        names.push(blobs.join(entry?.file_name()));
    }
    names.sort();
    for name in names {
        archive.append_path_with_name(root.join(&name), &name)?;
    }
    archive.into_inner()?.flush()
}
