//! The files that a pod's containers share: `hosts`, `hostname`, `resolv.conf`, and `/dev/shm`.

use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use crate::model::DnsConfig;

/// Makes the pod's directory with its files. What exists is written anew.
pub(super) fn write(dir: &Path, hostname: &str, dns: Option<&DnsConfig>) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(dir.join("ns"))?;
    write_file(&dir.join("hosts"), &host_file("/etc/hosts")?)?;
    write_file(&dir.join("hostname"), format!("{hostname}\n").as_bytes())?;
    let resolver = match dns {
        Some(dns) => resolver(dns)?.into_bytes(),
        None => host_file("/etc/resolv.conf")?,
    };
    write_file(&dir.join("resolv.conf"), &resolver)
}

fn host_file(path: &str) -> io::Result<Vec<u8>> {
    match std::fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(path)?;
    file.write_all(bytes)
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

    #[test]
    fn files_are_made_in_a_fresh_directory() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("p"), "web-0", None).unwrap();
        assert_eq!(
            std::fs::read_to_string(dir.path().join("p/hostname")).unwrap(),
            "web-0\n"
        );
        assert!(dir.path().join("p/ns").is_dir());
    }
}
