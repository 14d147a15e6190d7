//! The configuration: a strict file, drop-ins, flags, and where each value came from.
//!
//! One table ([`table::KEYS`]) names every key with its type, default and description; parsing, the
//! nearest-key hint, `berth config show`, `berth config default` and the manual page all come from it.

mod limits;
mod live;
mod parse;
mod table;
mod template;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use limits::ResourceLimit;
pub use live::{Live, RELOADED};
pub use parse::Error;
pub use table::{KEYS, Key, Value};
pub use template::template;

/// The file that is read when none is named; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/berth/config.toml";

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// A line of a file.
    File(PathBuf, usize),
    /// A command line flag.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(file, line) => write!(f, "{}:{line}", file.display()),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// How container cgroups are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// systemd where it is PID 1 and cgroup v2 is mounted, else cgroupfs.
    Auto,
    /// Directories made by Berth.
    Cgroupfs,
    /// Scopes made by systemd at Berth's request.
    Systemd,
}

/// What is done where SELinux enforces, as long as Berth does not label containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelinuxSetting {
    /// No containers are run.
    Auto,
    /// Containers are run without labels.
    Off,
}

/// How log records are written to standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text for each record.
    Text,
    /// One JSON object for each record.
    Json,
}

/// Every setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Persistent state.
    pub root: PathBuf,
    /// Volatile state.
    pub state: PathBuf,
    /// The CRI socket.
    pub listen: PathBuf,
    /// The admin socket.
    pub admin: PathBuf,
    /// Names bridge, nftables table and namespaces.
    pub instance: String,
    /// Filter of the daemon's log (`info`, `berth=debug`, …).
    pub log_level: String,
    /// Its form.
    pub log_format: LogFormat,
    /// Directory of `HOST/hosts.toml` files.
    pub registry_hosts_dir: PathBuf,
    /// Credentials of the node, in the format of docker's `config.json`; may be absent.
    pub credentials_file: PathBuf,
    /// `REGISTRY=HOST`: token services of other domains.
    pub token_services: Vec<String>,
    /// A registry that sends nothing for so many seconds is given up; 0: never.
    pub silence_limit: u32,
    /// Layers fetched at the same time for one image.
    pub max_concurrent_layers: usize,
    /// Uncompressed layers of one image, GiB.
    pub max_unpacked_gib: u64,
    /// Names of images that are never collected.
    pub pinned_images: Vec<String>,
    /// Directory of CNI network configurations.
    pub cni_conf_dir: PathBuf,
    /// Directories of CNI plugins, in order.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// Where network namespaces are pinned.
    pub netns_dir: PathBuf,
    /// Subnet of the built-in network; `None`: CNI.
    pub builtin_network: Option<String>,
    /// How container cgroups are made.
    pub cgroup_driver: CgroupDriver,
    /// Name of the monitors' cgroup.
    pub shims_cgroup: String,
    /// Cgroup parent of pods that name none.
    pub default_cgroup_parent: String,
    /// Where streaming requests will be answered.
    pub streaming_address: SocketAddr,
    /// Longest payload of one log record, bytes.
    pub log_line_max: u32,
    /// What is done where SELinux enforces.
    pub selinux: SelinuxSetting,
    /// Resource limits of every container's processes; those that are not named are the daemon's own.
    pub default_ulimits: Vec<ResourceLimit>,
    /// Each key with its value and where it came from, in the table's order.
    pub origins: Vec<(&'static str, Value, Origin)>,
}

impl Config {
    /// Reads `file` (or the default one), then `conf.d/*.toml` beside it in lexical order, then the flags.
    ///
    /// # Errors
    /// A named file that is missing, anything malformed or unknown, with file and line.
    pub fn load(
        file: Option<&Path>,
        flags: &[(&'static str, &'static str, String)],
    ) -> Result<Self, Error> {
        let mut values = BTreeMap::new();
        let main = file.unwrap_or(Path::new(DEFAULT_FILE));
        parse::read_file(main, file.is_some(), &mut values)?;
        for drop_in in parse::drop_ins(main)? {
            parse::read_file(&drop_in, true, &mut values)?;
        }
        for (key, flag, text) in flags {
            let key = table::find(key).ok_or_else(|| Error::NoSuchKey((*key).to_owned()))?;
            values.insert(key.name, (key.parse_flag(flag, text)?, Origin::Flag(flag)));
        }
        Self::build(values)
    }

    /// All defaults, with every place below `dir`: for tests without root.
    #[cfg(test)]
    pub(crate) fn for_tests(dir: &Path) -> Self {
        let place = |name: &str| dir.join(name).display().to_string();
        let file = dir.join("config.toml");
        std::fs::write(&file, "").unwrap();
        let flags = [
            ("root", "--root", place("root")),
            ("state", "--state", place("state")),
            ("network.netns_dir", "--netns-dir", place("netns")),
        ];
        Self::load(Some(&file), &flags).unwrap()
    }

    fn build(mut given: BTreeMap<&'static str, (Value, Origin)>) -> Result<Self, Error> {
        let state = given
            .get("state")
            .map_or_else(|| table::DEFAULT_STATE.to_owned(), |v| v.0.text());
        let mut origins = Vec::with_capacity(KEYS.len());
        for key in KEYS {
            let (value, origin) = given
                .remove(key.name)
                .unwrap_or_else(|| (key.default_value(&state), Origin::Default));
            origins.push((key.name, value, origin));
        }
        let settings = parse::Settings(&origins);
        Ok(Self {
            root: settings.absolute("root")?,
            state: settings.absolute("state")?,
            listen: settings.absolute("listen")?,
            admin: settings.absolute("admin")?,
            instance: settings.instance("instance")?,
            log_level: settings.text("log_level"),
            log_format: settings.choice(
                "log_format",
                &[("text", LogFormat::Text), ("json", LogFormat::Json)],
            )?,
            registry_hosts_dir: settings.absolute("images.registry_hosts_dir")?,
            credentials_file: settings.absolute("images.credentials_file")?,
            token_services: settings.pairs("images.token_services")?,
            silence_limit: settings.number("images.silence_limit", 0..=86_400)?,
            max_concurrent_layers: settings.number("images.max_concurrent_layers", 1..=64)?,
            max_unpacked_gib: settings.number("images.max_unpacked_gib", 1..=1 << 20)?,
            pinned_images: settings.list("images.pinned")?,
            cni_conf_dir: settings.absolute("network.cni_conf_dir")?,
            cni_bin_dirs: settings.paths("network.cni_bin_dirs")?,
            netns_dir: settings.absolute("network.netns_dir")?,
            builtin_network: Some(settings.text("network.builtin")).filter(|t| !t.is_empty()),
            cgroup_driver: settings.choice(
                "cgroup.driver",
                &[
                    ("auto", CgroupDriver::Auto),
                    ("cgroupfs", CgroupDriver::Cgroupfs),
                    ("systemd", CgroupDriver::Systemd),
                ],
            )?,
            shims_cgroup: settings.instance("cgroup.shims")?,
            default_cgroup_parent: settings.text("cgroup.default_parent"),
            streaming_address: settings.address("streaming.address")?,
            log_line_max: settings.number("containers.log_line_max", 256..=1 << 20)?,
            selinux: settings.choice(
                "containers.selinux",
                &[("auto", SelinuxSetting::Auto), ("off", SelinuxSetting::Off)],
            )?,
            default_ulimits: settings.limits("containers.default_ulimits")?,
            origins,
        })
    }

    /// All settings as TOML with the origin of each as a comment.
    pub fn show(&self) -> String {
        let width = self
            .origins
            .iter()
            .map(|(k, v, _)| k.len() + v.to_string().len())
            .max()
            .unwrap_or(0);
        let mut text = String::new();
        for (key, value, origin) in &self.origins {
            let line = format!("{key} = {value}");
            text.push_str(&format!("{line:<pad$}  # {origin}\n", pad = width + 3));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn load(text: &str) -> Result<Config, Error> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        Config::load(Some(&file), &[])
    }

    #[test]
    fn no_file_is_a_whole_configuration() {
        let config = Config::load(None, &[]).unwrap();
        assert_eq!(config.listen, Path::new("/run/berth/berth.sock"));
        assert_eq!(
            config.cni_bin_dirs,
            [Path::new("/opt/cni/bin"), Path::new("/usr/lib/cni")]
        );
        assert_eq!(config.builtin_network, None);
    }

    #[test]
    fn sockets_follow_the_state_directory() {
        let config = load("state = \"/run/other\"").unwrap();
        assert_eq!(config.listen, Path::new("/run/other/berth.sock"));
        assert_eq!(config.admin, Path::new("/run/other/admin.sock"));
    }

    #[test]
    fn an_unknown_key_names_file_line_and_the_nearest_key() {
        let error = load("root = \"/x\"\n\n[network]\ncni_bin_dir = []\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("config.toml:4"), "{error}");
        assert!(error.contains("network.cni_bin_dirs"), "{error}");
    }

    #[test]
    fn wrong_types_and_values_name_the_line() {
        for (text, want) in [
            ("root = 5", "config.toml:1"),
            ("\nroot = \"relative\"", "absolute"),
            ("[cgroup]\ndriver = \"maybe\"", "auto, cgroupfs, systemd"),
            ("instance = \"a/b\"", "instance"),
            ("[streaming]\naddress = \"nowhere\"", "streaming.address"),
            ("[images]\ntoken_services = [\"r.io\"]", "NAME=VALUE"),
            ("[images]\nsilence_limit = -1", "from 0 to 86400"),
            ("root = \"/x", "config.toml:1"),
            (
                "[containers]\ndefault_ulimits = [\"files=1\"]",
                "config.toml:2",
            ),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    #[test]
    fn flags_win_over_files_and_drop_ins_over_the_main_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(
            &file,
            "root = \"/a\"\nstate = \"/b\"\n[network]\nbuiltin = \"10.1.0.0/16\"\n",
        )
        .unwrap();
        std::fs::create_dir(dir.path().join("conf.d")).unwrap();
        std::fs::write(
            dir.path().join("conf.d/10.toml"),
            "network.builtin = \"\"\nstate = \"/c\"\n",
        )
        .unwrap();
        let config = Config::load(Some(&file), &[("root", "--root", "/f".to_owned())]).unwrap();
        assert_eq!(
            (config.root.to_str(), config.state.to_str()),
            (Some("/f"), Some("/c"))
        );
        assert_eq!(config.builtin_network, None);
        let shown = config.show();
        assert!(shown.contains("# flag --root"), "{shown}");
        assert!(shown.contains("conf.d/10.toml:2"), "{shown}");
    }

    #[test]
    fn a_named_file_must_exist() {
        assert!(Config::load(Some(Path::new("/nonexistent/berth.toml")), &[]).is_err());
    }
}
