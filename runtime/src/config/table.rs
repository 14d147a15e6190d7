//! The table of keys.

use std::fmt;

use super::Error;

/// Default of the key `state`; the sockets' defaults lie in it.
pub(super) const DEFAULT_STATE: &str = "/run/berth";

/// A value of one of the three types that keys have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A whole number.
    Number(i64),
    /// A list of texts.
    List(Vec<String>),
}

impl Value {
    /// Text as it is, a number in digits, a list joined by commas.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
            Self::List(list) => list.join(","),
        }
    }

    fn type_name(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Number(_) => "a whole number",
            Self::List(_) => "a list of strings",
        }
    }

    /// Whether the other value has the same type.
    pub(super) fn same_type(&self, other: &Self) -> Result<(), String> {
        if std::mem::discriminant(self) == std::mem::discriminant(other) {
            Ok(())
        } else {
            Err(format!(
                "must be {}, not {}",
                self.type_name(),
                other.type_name()
            ))
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::List(list) => write!(f, "{list:?}"),
        }
    }
}

/// One key of the configuration file.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Dotted name.
    pub name: &'static str,
    /// Default, as TOML; `{state}` is replaced by the state directory.
    default: Default,
    /// What it is for.
    pub doc: &'static str,
}

#[derive(Clone, Copy, Debug)]
enum Default {
    Text(&'static str),
    Number(i64),
    List(&'static [&'static str]),
}

impl Key {
    /// The default as TOML, with the default of `state` where it lies in there.
    pub fn default_toml(&self) -> String {
        self.default_value(DEFAULT_STATE).to_string()
    }

    /// The table it is in (empty: none), and its name there.
    pub fn table_and_name(&self) -> (&'static str, &'static str) {
        self.name.rsplit_once('.').unwrap_or(("", self.name))
    }

    pub(super) fn default_value(&self, state: &str) -> Value {
        match self.default {
            Default::Text(text) => Value::Text(text.replace("{state}", state)),
            Default::Number(number) => Value::Number(number),
            Default::List(list) => Value::List(list.iter().map(|s| (*s).to_owned()).collect()),
        }
    }

    pub(super) fn parse_flag(&self, flag: &str, text: &str) -> Result<Value, Error> {
        match self.default {
            Default::Text(_) => Ok(Value::Text(text.to_owned())),
            Default::List(_) => Ok(Value::List(text.split(',').map(str::to_owned).collect())),
            Default::Number(_) => text.parse().map(Value::Number).map_err(|_| Error::Value {
                place: format!("flag {flag}"),
                key: self.name.to_owned(),
                problem: "must be a whole number".to_owned(),
            }),
        }
    }
}

/// Finds a key by its dotted name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|k| k.name == name)
}

const fn text(name: &'static str, default: &'static str, doc: &'static str) -> Key {
    Key {
        name,
        default: Default::Text(default),
        doc,
    }
}

const fn number(name: &'static str, default: i64, doc: &'static str) -> Key {
    Key {
        name,
        default: Default::Number(default),
        doc,
    }
}

const fn list(name: &'static str, default: &'static [&'static str], doc: &'static str) -> Key {
    Key {
        name,
        default: Default::List(default),
        doc,
    }
}

/// Every key there is.
pub const KEYS: &[Key] = &[
    text(
        "root",
        "/var/lib/berth",
        "persistent state: images, writable layers, records",
    ),
    text(
        "state",
        DEFAULT_STATE,
        "volatile state: sockets, bundles, exit records",
    ),
    text(
        "listen",
        "{state}/berth.sock",
        "unix socket that serves the CRI; lies in `state` unless it is set",
    ),
    text(
        "admin",
        "{state}/admin.sock",
        "unix socket for the operator's commands and metrics; lies in `state` unless it is set",
    ),
    text(
        "instance",
        "berth",
        "names the nftables table and, by a hash, the bridge; a second Berth takes another, and its own paths and `cgroup.shims`",
    ),
    text(
        "log_level",
        "info",
        "filter of the daemon's log, e.g. \"info\" or \"berth=debug\"",
    ),
    text("log_format", "text", "\"text\" or \"json\""),
    text(
        "images.registry_hosts_dir",
        "/etc/berth/certs.d",
        "directory of HOST/hosts.toml files",
    ),
    text(
        "images.credentials_file",
        "/etc/berth/auth.json",
        "credentials for pulls that bring none, in the format of docker's config.json with its helpers; need not exist",
    ),
    list(
        "images.token_services",
        &[],
        "REGISTRY=HOST: a token service of another domain that may see the registry's credentials",
    ),
    number(
        "images.silence_limit",
        60,
        "seconds without a byte after which a registry is given up, as is one that sends less than 1 KiB/s for five times as long; 0: never",
    ),
    number(
        "images.max_concurrent_layers",
        4,
        "layers of one image fetched at the same time",
    ),
    number(
        "images.max_unpacked_gib",
        128,
        "GiB that the layers of one image may have uncompressed, or it is refused",
    ),
    list(
        "images.pinned",
        &[],
        "names of images that the kubelet and `berth images prune` never remove",
    ),
    text(
        "network.cni_conf_dir",
        "/etc/cni/net.d",
        "directory of CNI network configurations",
    ),
    list(
        "network.cni_bin_dirs",
        &["/opt/cni/bin", "/usr/lib/cni"],
        "directories of CNI plugins, in order",
    ),
    text(
        "network.netns_dir",
        "/run/netns",
        "where network namespaces are pinned",
    ),
    text(
        "network.builtin",
        "",
        "subnet of the built-in network, e.g. \"10.85.0.0/16\"; empty: CNI",
    ),
    text(
        "cgroup.driver",
        "auto",
        "\"auto\", \"cgroupfs\" or \"systemd\"",
    ),
    text(
        "cgroup.shims",
        "berth-shims",
        "name of the monitors' cgroup",
    ),
    text(
        "cgroup.default_parent",
        "/berth",
        "cgroup parent of pods that name none",
    ),
    text(
        "streaming.address",
        "127.0.0.1:0",
        "address for exec, attach and port-forward sessions",
    ),
    number(
        "containers.log_line_max",
        16384,
        "longest payload of one container log record, in bytes",
    ),
    text(
        "containers.selinux",
        "auto",
        "\"auto\": where SELinux enforces, no containers are run, for Berth does not label them yet; \"off\": they are run without labels",
    ),
    list(
        "containers.default_ulimits",
        &[],
        "resource limits of every container, e.g. [\"nofile=1024:524288\"]; else those of the daemon",
    ),
];
