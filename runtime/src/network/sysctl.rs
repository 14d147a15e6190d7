//! Kernel parameters of a pod's network.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use super::Error;
use crate::sys::netns;

/// Sets `net.*` parameters in a network namespace, in the order of their names. Keys may have dots
/// or slashes, as sysctl(8) takes them. Values are written as they are given, tabs and line ends and
/// all: what they mean is the kernel's to say. Call it when the interfaces exist: some keys name them.
/// It blocks for as long as the kernel takes.
///
/// # Errors
/// [`Error::Sysctl`] names the key; [`Error::File`] when the namespace cannot be entered.
pub fn set_sysctls(netns: &Path, sysctls: &BTreeMap<String, String>) -> Result<(), Error> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let mut writes = Vec::new();
    for (key, value) in sysctls {
        let path = path(key, value)
            .map_err(|why| failed(key, value, io::Error::new(io::ErrorKind::InvalidInput, why)))?;
        writes.push((path, key, value));
    }
    // What /proc/sys/net shows is the namespace of the thread that opens it.
    netns::run_in(netns, || {
        for (path, key, value) in writes {
            write(&path, value).map_err(|error| failed(key, value, error))?;
        }
        Ok(())
    })
    .map_err(Error::file("enter network namespace", netns))?
}

fn failed(key: &str, value: &str, source: io::Error) -> Error {
    Error::Sysctl {
        key: key.into(),
        value: value.into(),
        source,
    }
}

/// What is wrong with the request, in words; what is wrong with the machine stays as it is.
fn explain(error: io::Error) -> io::Error {
    let why = match error.kind() {
        io::ErrorKind::NotFound => {
            "there is no such parameter: is the name right, and its kernel module loaded?"
        }
        io::ErrorKind::PermissionDenied => "the kernel lets nobody change it",
        io::ErrorKind::IsADirectory => "it is a group of parameters",
        _ => return error,
    };
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path).map_err(explain)?;
    // The kernel takes a value from one write at the beginning of the file.
    match file.write(value.as_bytes())? {
        count if count == value.len() => Ok(()),
        _ => {
            let why = "the kernel takes a part of the value only";
            Err(io::Error::new(io::ErrorKind::InvalidInput, why))
        }
    }
}

/// The file of a key. When the first separator is a dot, dots separate, and a slash stands for a
/// dot in a name (`net.ipv4.conf.eth0/100.forwarding`); when it is a slash, it is the other way
/// round and nothing needs changing.
fn path(key: &str, value: &str) -> Result<PathBuf, &'static str> {
    let dotted = key
        .find(['.', '/'])
        .is_some_and(|at| key[at..].starts_with('.'));
    let key: String = match dotted {
        true => key
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        false => key.into(),
    };
    if !key.starts_with("net/") {
        return Err("only net.* belongs to a network namespace");
    }
    if key.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("it has an empty part");
    }
    if key.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err("white space in the name");
    }
    if value.contains('\0') {
        return Err("a NUL byte in the value");
    }
    Ok(Path::new("/proc/sys").join(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Kind, Kinded as _};

    #[test]
    fn keys_become_paths_and_bad_ones_are_refused() {
        for (key, file) in [
            ("net.ipv4.ip_forward", "net/ipv4/ip_forward"),
            ("net/ipv4/ip_forward", "net/ipv4/ip_forward"),
            (
                "net.ipv4.conf.eth0/1.rp_filter",
                "net/ipv4/conf/eth0.1/rp_filter",
            ),
            (
                "net/ipv4/conf/eth0.1/rp_filter",
                "net/ipv4/conf/eth0.1/rp_filter",
            ),
            // The first separator decides, as everywhere.
            ("net.ipv4/conf/lo/rp_filter", "net/ipv4.conf.lo.rp_filter"),
            ("net/ipv4.conf.lo.rp_filter", "net/ipv4.conf.lo.rp_filter"),
        ] {
            assert_eq!(path(key, "1"), Ok(Path::new("/proc/sys").join(file)));
        }
        for key in [
            "kernel.shmmax",
            "net",
            "network.x",
            "net..x",
            "net.//.x",
            "net/../kernel/x",
            "net.ipv4.x ",
            " net.ipv4.x",
            "net.a\nb",
            "/net/ipv4/x",
        ] {
            assert!(path(key, "1").is_err(), "{key:?}");
        }
        for value in [
            "",
            " 1",
            "1\n",
            "\t",
            "0 2147483647",
            "4096\t131072\t6291456",
        ] {
            assert!(path("net.ipv4.x", value).is_ok(), "{value:?}");
        }
        assert!(path("net.ipv4.x", "1\0").is_err());
    }

    #[test]
    fn parameters_are_set_inside_and_an_error_names_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let ns = dir.path().join("ns");
        netns::new_pinned(&ns).unwrap();
        let file = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
        let before = std::fs::read_to_string(file).unwrap();
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let pairs = pairs.iter().map(|(k, v)| ((*k).into(), (*v).into()));
            pairs.collect()
        };
        let good = map(&[("net.ipv4.ip_unprivileged_port_start", "7")]);
        set_sysctls(&ns, &good).unwrap();
        let inside = netns::run_in(&ns, || std::fs::read_to_string(file).unwrap()).unwrap();
        assert_eq!(inside.trim(), "7");
        assert_eq!(std::fs::read_to_string(file).unwrap(), before);

        // As `sysctl -a` prints them, as `cat` does, and as people write them.
        let read = |file: &str| netns::run_in(&ns, || std::fs::read_to_string(file).unwrap());
        for value in [
            "4096\t131072\t6291456",
            "4096 131072 6291456\n",
            " 4096  131072\t6291456 ",
        ] {
            set_sysctls(&ns, &map(&[("net.ipv4.tcp_rmem", "1 2 3")])).unwrap();
            set_sysctls(&ns, &map(&[("net/ipv4/tcp_rmem", value)])).unwrap();
            let now = read("/proc/sys/net/ipv4/tcp_rmem").unwrap();
            assert_eq!(now, "4096\t131072\t6291456\n", "{value:?}");
        }
        set_sysctls(&ns, &map(&[("net.ipv4.ip_unprivileged_port_start", "")])).unwrap();
        assert_eq!(read(file).unwrap().trim(), "7");

        for bad in [
            ("net.ipv4.no_such", "1"),
            ("net.ipv4/conf/lo/rp_filter", "1"),
            ("net.ipv4", "1"),
            ("net.ipv4.tcp_available_congestion_control", "cubic"),
            ("net.ipv4.ip_forward", "many"),
            ("net.ipv4.ip_forward", "\t\n"),
            ("net.ipv4.ip_forward", "1\n0"),
        ] {
            let error = set_sysctls(&ns, &map(&[bad])).unwrap_err();
            assert!(error.to_string().contains(bad.0), "{error}");
            assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        }
        netns::unpin(&ns).unwrap();
        assert!(set_sysctls(&ns, &good).is_err());
        set_sysctls(&ns, &BTreeMap::new()).unwrap();
    }
}
