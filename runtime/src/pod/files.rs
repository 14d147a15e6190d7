//! What a pod's containers share as files: `hosts`, `hostname`, `resolv.conf`, and `/dev/shm`.
//!
//! Containers may write to them, and the state directory is a tmpfs that the whole node lives on. So they are on a small
//! tmpfs of the pod's own, with `/dev/shm`, which has its own bound, mounted inside it: one unmount takes both.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;

use crate::model::{DnsConfig, NamespaceMode, PodSpec};
use crate::sys::fs::{read_regular, write_atomic};
use crate::sys::mount::{
    TmpfsOptions, attach, detach_unmount, detached_bind, detached_tmpfs, is_mount_point,
    mount_tmpfs,
};

/// Size of a pod's `/dev/shm` in bytes (row X033).
const SHM_SIZE: u64 = 64 << 20;

/// What the files may grow by, all together, in bytes.
const ROOM: u64 = 1 << 20;

/// Names on the tmpfs, with room for extended attributes, which the kernel counts as inodes.
const INODES: u64 = 64;

/// Longest file of the host that is taken over.
const HOST_FILE: u64 = 16 << 20;

/// Where a pod's files are, given its directory.
pub(super) fn place(dir: &Path) -> PathBuf {
    dir.join("files")
}

/// Where its `/dev/shm` is.
pub(super) fn shm(dir: &Path) -> PathBuf {
    place(dir).join("shm")
}

/// Makes the pod's directory, its files and its `/dev/shm`. What is there already stays: a pod that was found again
/// loses nothing that its containers wrote, and gets back what somebody unmounted.
pub(super) fn make(dir: &Path, hostname: &str, spec: &PodSpec) -> Result<(), String> {
    for (part, mode) in [(dir.join("ns"), 0o711), (place(dir), 0o700)] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(&part)
            .map_err(|e| format!("cannot make {}: {e}", part.display()))?;
    }
    let told = |path: &Path, e: io::Error| format!("cannot mount {}: {e}", path.display());
    let files = place(dir);
    if !is_mount_point(&files).map_err(|e| told(&files, e))? {
        crash_point!("run_pod.directories.after");
        mount_files(&files, hostname, spec.dns.as_ref())?;
        crash_point!("run_pod.files_mount.after");
    }
    let shm = shm(dir);
    if spec.namespaces.ipc != NamespaceMode::Node
        && !is_mount_point(&shm).map_err(|e| told(&shm, e))?
    {
        mount_shm(dir, &shm).map_err(|e| told(&shm, e))?;
    }
    Ok(())
}

/// Takes both mounts away. What is not there is fine.
pub(super) fn unmount(dir: &Path) -> io::Result<()> {
    detach_unmount(&place(dir))?;
    detach_unmount(&earlier_shm(dir))
}

/// Where earlier versions mounted `/dev/shm`; their files were in the directory itself.
fn earlier_shm(dir: &Path) -> PathBuf {
    dir.join("shm")
}

/// The files appear whole: they are written before the tmpfs is attached.
fn mount_files(place: &Path, hostname: &str, dns: Option<&DnsConfig>) -> Result<(), String> {
    let resolver = match dns {
        Some(dns) => resolver(dns).map_err(|e| e.to_string())?.into_bytes(),
        None => host_file("/etc/resolv.conf")?,
    };
    let files = [
        ("hosts", host_file("/etc/hosts")?),
        ("hostname", format!("{hostname}\n").into_bytes()),
        ("resolv.conf", resolver),
    ];
    let length: u64 = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let told = |e: io::Error| format!("cannot mount {}: {e}", place.display());
    let options = TmpfsOptions::files(length + ROOM, INODES);
    let mount = detached_tmpfs(options).map_err(told)?;
    rustix::fs::mkdirat(&mount, "shm", Mode::RWXU).map_err(|e| told(e.into()))?;
    for (name, bytes) in &files {
        let mode = Mode::from_raw_mode(0o644);
        write_atomic(mount.as_fd(), name, bytes, mode, false)
            .map_err(|e| format!("cannot write {}: {e}", place.join(name).display()))?;
    }
    attach(mount.as_fd(), place).map_err(told)
}

fn mount_shm(dir: &Path, shm: &Path) -> io::Result<()> {
    let earlier = earlier_shm(dir);
    if earlier.is_dir() && is_mount_point(&earlier)? {
        // Containers of the pod have it already: those that come must see the same memory.
        attach(detached_bind(&earlier, false)?.as_fd(), shm)?;
        return detach_unmount(&earlier);
    }
    mount_tmpfs(shm, TmpfsOptions::shm(SHM_SIZE))
}

fn host_file(path: &str) -> Result<Vec<u8>, String> {
    match read_regular(Path::new(path), HOST_FILE) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(|e| format!("cannot read the host's {path}: {e}")),
    }
}

/// The resolver file exactly as CRI asks for it (row F005): nothing of the host is merged in.
fn resolver(dns: &DnsConfig) -> io::Result<String> {
    let words = dns.servers.iter().chain(&dns.searches).chain(&dns.options);
    if let Some(bad) = words.into_iter().find(|w| w.chars().any(char::is_control)) {
        let problem = format!("{bad:?} in the DNS configuration holds a control character");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(servers: &[&str], searches: &[&str], options: &[&str]) -> DnsConfig {
        let own = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect();
        DnsConfig {
            servers: own(servers),
            searches: own(searches),
            options: own(options),
        }
    }

    #[test]
    fn the_resolver_file_holds_exactly_what_was_asked_for() {
        let text = resolver(&dns(
            &["10.96.0.10", "8.8.8.8"],
            &["svc.local", "x"],
            &["ndots:5"],
        ))
        .unwrap();
        assert_eq!(
            text,
            "search svc.local x\nnameserver 10.96.0.10\nnameserver 8.8.8.8\noptions ndots:5\n"
        );
        assert_eq!(resolver(&DnsConfig::default()).unwrap(), "");
        assert!(resolver(&dns(&["1.1.1.1\nsearch evil"], &[], &[])).is_err());
    }

    fn read(path: PathBuf) -> String {
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn files_are_on_a_bounded_place_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("p");
        let mut spec = super::super::tests::spec();
        spec.dns = Some(dns(&["1.1.1.1"], &[], &[]));
        make(&pod, "web-0", &spec).unwrap();
        assert_eq!(read(place(&pod).join("hostname")), "web-0\n");
        assert!(pod.join("ns").is_dir());
        let free = rustix::fs::statvfs(place(&pod)).unwrap();
        let size = free.f_blocks * free.f_frsize;
        assert!((ROOM..2 * ROOM).contains(&size), "{size}");
        assert_eq!(free.f_files, INODES);
        let hosts = place(&pod).join("hosts");
        let filled = std::fs::write(&hosts, vec![b'x'; 3 << 20]).unwrap_err();
        assert_eq!(filled.kind(), io::ErrorKind::StorageFull);
        // The other bound is not touched by it.
        std::fs::write(shm(&pod).join("x"), vec![0; 3 << 20]).unwrap();
        // Found again by a later daemon: as it was.
        make(&pod, "other", &spec).unwrap();
        assert_eq!(read(place(&pod).join("hostname")), "web-0\n");
        assert!(shm(&pod).join("x").exists());
        unmount(&pod).unwrap();
        assert!(!is_mount_point(&place(&pod)).unwrap() && !shm(&pod).exists());
        unmount(&pod).unwrap();
        std::fs::remove_dir_all(&pod).unwrap();
    }

    #[test]
    fn a_long_resolver_file_fits_and_what_was_unmounted_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut spec = super::super::tests::spec();
        let long = "x".repeat(3 << 20);
        spec.dns = Some(dns(&[], &[&long], &[]));
        spec.namespaces.ipc = NamespaceMode::Node;
        make(dir.path(), "a", &spec).unwrap();
        assert!(read(place(dir.path()).join("resolv.conf")).contains(&long));
        assert!(!is_mount_point(&shm(dir.path())).unwrap());
        unmount(dir.path()).unwrap();
        make(dir.path(), "b", &spec).unwrap();
        assert_eq!(read(place(dir.path()).join("hostname")), "b\n");
        unmount(dir.path()).unwrap();
    }

    #[test]
    fn memory_that_an_earlier_version_mounted_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let earlier = dir.path().join("shm");
        std::fs::create_dir(&earlier).unwrap();
        mount_tmpfs(&earlier, TmpfsOptions::shm(1 << 20)).unwrap();
        std::fs::write(earlier.join("x"), "kept").unwrap();
        make(dir.path(), "a", &super::super::tests::spec()).unwrap();
        assert_eq!(read(shm(dir.path()).join("x")), "kept");
        assert!(!is_mount_point(&earlier).unwrap());
        unmount(dir.path()).unwrap();
    }
}
