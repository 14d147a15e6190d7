//! CNI network configuration: which file counts, and what is in it (CNI 1.1.0, section 1).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::version::Version;
use crate::network::exec::is_plain_name;
use crate::record::{Form, Unfit, v1};
use crate::sys;

/// More than any configuration needs, bytes.
const FILE_LIMIT: u64 = 1 << 20;

/// A network: plugins to be run one after another.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NetworkList {
    /// Its name.
    pub(in crate::network) name: String,
    /// The version that is spoken with its plugins.
    pub(in crate::network) version: Version,
    /// CHECK must not be used.
    pub(in crate::network) disable_check: bool,
    /// GC must not be used.
    pub(in crate::network) disable_gc: bool,
    /// Configuration of each plugin, as it was written.
    pub(in crate::network) plugins: Vec<Map<String, Value>>,
}

impl NetworkList {
    /// The type of a plugin: the name of its executable.
    pub(in crate::network) fn kind(plugin: &Map<String, Value>) -> &str {
        plugin
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }
}

impl Form for v1::NetworkList {
    type Model = NetworkList;

    fn freeze(model: &NetworkList) -> Self {
        Self {
            name: model.name.clone(),
            version: model.version.to_string(),
            disable_check: model.disable_check,
            disable_gc: model.disable_gc,
            plugins: model.plugins.clone(),
        }
    }

    fn thaw(self) -> Result<NetworkList, Unfit> {
        let unknown = || Unfit(format!("{:?} is no version of CNI", self.version));
        Ok(NetworkList {
            version: Version::parse(&self.version).ok_or_else(unknown)?,
            name: self.name,
            disable_check: self.disable_check,
            disable_gc: self.disable_gc,
            plugins: self.plugins,
        })
    }
}

/// What was found in a configuration directory.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Found {
    /// The first usable network, and its file.
    pub(super) network: Option<(PathBuf, NetworkList)>,
    /// What is wrong with the files before it (or all of them).
    pub(super) problems: Vec<String>,
}

impl Found {
    /// Nothing but a reason why.
    pub(super) fn nothing(problem: String) -> Self {
        Self {
            network: None,
            problems: vec![problem],
        }
    }
}

/// Looks through a directory: the first file in the order of names that holds a usable network
/// counts, and a bad one is passed over.
pub(super) fn load(dir: &Path) -> Found {
    let mut found = Found::default();
    let names = match candidates(dir) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return found,
        Err(error) => {
            found.problems.push(format!("cannot list {dir:?}: {error}"));
            return found;
        }
    };
    for path in names {
        match read(&path) {
            Ok(network) => {
                found.network = Some((path, network));
                break;
            }
            Err(why) => found
                .problems
                .push(format!("{path:?} is not usable: {why}")),
        }
    }
    found
}

fn candidates(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let extension = path.extension().and_then(|e| e.to_str());
        if matches!(extension, Some("conf" | "conflist" | "json")) && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<NetworkList, String> {
    let text = sys::fs::read_regular(path, FILE_LIMIT).map_err(|e| e.to_string())?;
    let value: Value = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    let is_list = path.extension().is_some_and(|e| e == "conflist");
    parse(value, is_list)
}

/// A conflist, or a single plugin's configuration that becomes a list of one.
fn parse(value: Value, is_list: bool) -> Result<NetworkList, String> {
    let Value::Object(mut object) = value else {
        return Err("it is not a JSON object".into());
    };
    let name = match object.get("name") {
        Some(Value::String(name)) if is_network_name(name) => name.clone(),
        Some(Value::String(name)) => return Err(format!("{name:?} is not a network name")),
        _ => return Err("it has no name".into()),
    };
    let version = Version::choose(object.get("cniVersion"), object.get("cniVersions"))?;
    let plugins = if is_list {
        let list = object.remove("plugins");
        let Some(Value::Array(list)) = list else {
            return Err("it has no list of plugins".into());
        };
        list.into_iter()
            .map(plugin)
            .collect::<Result<Vec<_>, _>>()?
    } else if object.contains_key("plugins") && !object.contains_key("type") {
        return Err("it has a list of plugins, so its name must end in .conflist".into());
    } else {
        vec![plugin(Value::Object(object.clone()))?]
    };
    if plugins.is_empty() {
        return Err("its list of plugins is empty".into());
    }
    Ok(NetworkList {
        name,
        version,
        disable_check: is_list && truth(object.get("disableCheck"))?,
        disable_gc: is_list && truth(object.get("disableGC"))?,
        plugins,
    })
}

fn plugin(value: Value) -> Result<Map<String, Value>, String> {
    let Value::Object(plugin) = value else {
        return Err("a plugin is not a JSON object".into());
    };
    match plugin.get("type") {
        Some(Value::String(kind)) if is_plain_name(kind) => {}
        Some(Value::String(kind)) => return Err(format!("{kind:?} is not a plugin type")),
        _ => return Err("a plugin has no type".into()),
    }
    match plugin.get("capabilities") {
        None | Some(Value::Null | Value::Object(_)) => Ok(plugin),
        Some(_) => Err("capabilities of a plugin are not a JSON object".into()),
    }
}

/// The specification knows booleans; older files have them as texts.
fn truth(value: Option<&Value>) -> Result<bool, String> {
    match value {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(truth)) => Ok(*truth),
        Some(Value::String(text)) if text == "true" => Ok(true),
        Some(Value::String(text)) if text == "false" => Ok(false),
        Some(other) => Err(format!("{other} is neither true nor false")),
    }
}

/// "Must start with an alphanumeric character, optionally followed by any combination of one or
/// more alphanumeric characters, underscore, dot or hyphen."
fn is_network_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_usable_file_in_lexical_order_counts() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(load(&dir.path().join("absent")), Found::default());
        assert_eq!(load(dir.path()), Found::default());
        write("00-readme.txt", "{");
        write("10-broken.conflist", "{");
        write(
            "20-old.conf",
            r#"{"name":"old","cniVersion":"0.4.0","type":"bridge"}"#,
        );
        write(
            "10-zz.conflist",
            r#"{"name":"list","cniVersion":"1.0.0","plugins":[{"type":"a"},{"type":"b"}]}"#,
        );
        let found = load(dir.path());
        let (path, network) = found.network.unwrap();
        assert!(path.ends_with("10-zz.conflist"));
        assert_eq!(network.name, "list");
        let kinds: Vec<_> = network.plugins.iter().map(NetworkList::kind).collect();
        assert_eq!(kinds, ["a", "b"]);
        assert_eq!(found.problems.len(), 1);
        assert!(found.problems[0].contains("10-broken.conflist"));

        fs::remove_file(dir.path().join("10-zz.conflist")).unwrap();
        let (_, network) = load(dir.path()).network.unwrap();
        assert_eq!((network.name.as_str(), network.plugins.len()), ("old", 1));
        assert_eq!(network.version.to_string(), "0.4.0");
    }

    #[test]
    fn what_is_no_regular_file_is_passed_over_with_a_reason() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, at("01-fifo.conflist"), fifo, mode, 0).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("02-endless.conf")).unwrap();
        std::os::unix::fs::symlink("/nonexistent", at("03-dangling.json")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("04-socket.conf")).unwrap();
        fs::write(at("05-huge.conf"), vec![b' '; (1 << 20) + 1]).unwrap();
        fs::write(at("06-real"), r#"{"name":"real","type":"a"}"#).unwrap();
        std::os::unix::fs::symlink("06-real", at("06-link.conf")).unwrap();
        let found = load(dir.path());
        assert_eq!(found.network.unwrap().1.name, "real");
        let problems = found.problems.join("\n");
        assert_eq!(found.problems.len(), 5, "{problems}");
        for what in [
            "is a FIFO",
            "is a device",
            "No such file",
            "is a socket",
            "more than 1048576",
        ] {
            assert!(problems.contains(what), "{problems}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let list = |plugins: Value| json!({"name": "n", "cniVersion": "1.0.0", "plugins": plugins});
        for (value, is_list, why) in [
            (json!([]), true, "not a JSON object"),
            (json!({"cniVersion": "1.0.0"}), true, "no name"),
            (json!({"name": "../x"}), true, "not a network name"),
            (
                json!({"name": "n", "cniVersion": "9.0.0", "plugins": []}),
                true,
                "9.0.0",
            ),
            (list(json!(null)), true, "no list of plugins"),
            (list(json!([])), true, "is empty"),
            (list(json!([{}])), true, "has no type"),
            (
                list(json!([{"type": "../../bin/sh"}])),
                true,
                "not a plugin type",
            ),
            (list(json!([{"type": "a"}])), false, "must end in .conflist"),
            (json!({"name": "n"}), false, "has no type"),
            (
                list(json!([{"type": "a", "capabilities": []}])),
                true,
                "capabilities",
            ),
        ] {
            let error = parse(value.clone(), is_list).unwrap_err();
            assert!(error.contains(why), "{value}: {error}");
        }
        let deep = "[".repeat(100_000);
        assert!(serde_json::from_str::<Value>(&deep).is_err());
    }

    #[test]
    fn switches_may_be_texts() {
        let value = |text: Value| json!({"name": "n", "cniVersion": "1.1.0", "disableCheck": text, "disableGC": true, "plugins": [{"type": "a"}]});
        let network = parse(value(json!("true")), true).unwrap();
        assert!(network.disable_check && network.disable_gc);
        assert!(!parse(value(json!(false)), true).unwrap().disable_check);
        assert!(parse(value(json!(1)), true).is_err());
    }
}
