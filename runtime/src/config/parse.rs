//! From files to settings.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::limits::{self, ResourceLimit};
use super::table::{self, KEYS};
use super::{Origin, Value};
use crate::sys;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read the configuration file {}", file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not TOML.
    #[error("{place}: not valid TOML: {problem}")]
    Syntax {
        /// File and line.
        place: String,
        /// What the parser says.
        problem: String,
    },
    /// A key that Berth does not know.
    #[error(
        "{place}: unknown key {key:?}; the nearest one is {nearest:?} (`berth config show` lists them all)"
    )]
    Unknown {
        /// File and line.
        place: String,
        /// The key.
        key: String,
        /// The key it looks most like.
        nearest: &'static str,
    },
    /// A value of the wrong type or out of range.
    #[error("{place}: {key} {problem}")]
    Value {
        /// File and line, or the flag.
        place: String,
        /// The key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A flag for a key that is not in the table.
    #[error("there is no configuration key {0:?}")]
    NoSuchKey(String),
}

/// More than any configuration has, bytes.
const FILE_LIMIT: u64 = 1 << 20;

type Values = BTreeMap<&'static str, (Value, Origin)>;

/// Reads one file over what is there already. A missing file is fine unless `required`.
pub(super) fn read_file(file: &Path, required: bool, values: &mut Values) -> Result<(), Error> {
    let text = match sys::fs::read_regular_text(file, FILE_LIMIT) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound && !required => return Ok(()),
        Err(source) => {
            return Err(Error::Read {
                file: file.to_owned(),
                source,
            });
        }
    };
    let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
    let table = DeTable::parse(&text).map_err(|e| Error::Syntax {
        place: format!(
            "{}:{}",
            file.display(),
            line(e.span().map_or(0, |s| s.start))
        ),
        problem: e.message().to_owned(),
    })?;
    let mut flat = Vec::new();
    flatten("", table.get_ref(), &mut flat);
    for (name, at, value) in flat {
        let line = line(at);
        let place = || format!("{}:{line}", file.display());
        let Some(key) = table::find(&name) else {
            return Err(Error::Unknown {
                place: place(),
                nearest: nearest(&name),
                key: name,
            });
        };
        let value = value
            .and_then(|v| key.default_value("").same_type(&v).map(|()| v))
            .map_err(|problem| Error::Value {
                place: place(),
                key: name,
                problem,
            })?;
        values.insert(key.name, (value, Origin::File(file.to_owned(), line)));
    }
    Ok(())
}

/// The drop-ins that belong to a main file: `conf.d/*.toml` beside it.
pub(super) fn drop_ins(main: &Path) -> Result<Vec<PathBuf>, Error> {
    let dir = main.with_file_name("conf.d");
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::Read { file: dir, source }),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry
            .map_err(|source| Error::Read {
                file: dir.clone(),
                source,
            })?
            .path();
        if path.extension().is_some_and(|e| e == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn flatten(
    prefix: &str,
    table: &DeTable<'_>,
    out: &mut Vec<(String, usize, Result<Value, String>)>,
) {
    for (key, value) in table {
        let name = if prefix.is_empty() {
            key.get_ref().to_string()
        } else {
            format!("{prefix}.{}", key.get_ref())
        };
        let is_leaf = table::find(&name).is_some();
        let is_section = KEYS.iter().any(|k| k.name.starts_with(&format!("{name}.")));
        match value.get_ref() {
            DeValue::Table(inner) if is_section && !is_leaf => flatten(&name, inner, out),
            other => out.push((name, key.span().start, plain(other))),
        }
    }
}

fn plain(value: &DeValue<'_>) -> Result<Value, String> {
    match value {
        DeValue::String(text) => Ok(Value::Text(text.to_string())),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map(Value::Number)
            .map_err(|_| format!("is out of range: {number}")),
        DeValue::Array(items) => items
            .iter()
            .map(|item| match item.get_ref() {
                DeValue::String(text) => Ok(text.to_string()),
                _ => Err("must be a list of strings".to_owned()),
            })
            .collect::<Result<_, _>>()
            .map(Value::List),
        _ => Err("must be a string, a whole number or a list of strings".to_owned()),
    }
}

fn nearest(name: &str) -> &'static str {
    KEYS.iter()
        .map(|k| (strsim::jaro_winkler(k.name, name), k.name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or("", |(_, key)| key)
}

/// Typed access to the merged values; errors name where the value came from.
pub(super) struct Settings<'a>(pub(super) &'a [(&'static str, Value, Origin)]);

impl Settings<'_> {
    fn get(&self, key: &str) -> Option<&(&'static str, Value, Origin)> {
        self.0.iter().find(|(k, _, _)| *k == key)
    }

    fn bad<T>(&self, key: &str, problem: impl Into<String>) -> Result<T, Error> {
        let place = self
            .get(key)
            .map_or_else(String::new, |(_, _, origin)| origin.to_string());
        Err(Error::Value {
            place,
            key: key.to_owned(),
            problem: problem.into(),
        })
    }

    pub(super) fn text(&self, key: &str) -> String {
        self.get(key)
            .map_or_else(String::new, |(_, value, _)| value.text())
    }

    pub(super) fn list(&self, key: &str) -> Result<Vec<String>, Error> {
        match self.get(key) {
            Some((_, Value::List(list), _)) => Ok(list.clone()),
            _ => self.bad(key, "must be a list of strings"),
        }
    }

    pub(super) fn absolute(&self, key: &str) -> Result<PathBuf, Error> {
        let path = PathBuf::from(self.text(key));
        if path.is_absolute() {
            Ok(path)
        } else {
            self.bad(key, format!("must be an absolute path, not {path:?}"))
        }
    }

    pub(super) fn paths(&self, key: &str) -> Result<Vec<PathBuf>, Error> {
        let Some((_, Value::List(list), _)) = self.get(key) else {
            return self.bad(key, "must be a list of strings");
        };
        let paths: Vec<PathBuf> = list.iter().map(PathBuf::from).collect();
        match paths.iter().find(|p| !p.is_absolute()) {
            Some(path) => self.bad(key, format!("must hold absolute paths only, not {path:?}")),
            None => Ok(paths),
        }
    }

    pub(super) fn limits(&self, key: &str) -> Result<Vec<ResourceLimit>, Error> {
        let Some((_, Value::List(list), _)) = self.get(key) else {
            return self.bad(key, "must be a list of strings");
        };
        let limits: Result<_, String> = list.iter().map(|text| limits::parse(text)).collect();
        limits.or_else(|why| self.bad(key, why))
    }

    /// A list of `KEY=VALUE`, neither of them empty.
    pub(super) fn pairs(&self, key: &str) -> Result<Vec<String>, Error> {
        let Some((_, Value::List(list), _)) = self.get(key) else {
            return self.bad(key, "must be a list of strings");
        };
        let pair = |text: &String| {
            let (left, right) = text.split_once('=').unwrap_or_default();
            !left.trim().is_empty() && !right.trim().is_empty()
        };
        match list.iter().find(|text| !pair(text)) {
            Some(text) => self.bad(key, format!("must hold NAME=VALUE only, not {text:?}")),
            None => Ok(list.clone()),
        }
    }

    pub(super) fn instance(&self, key: &str) -> Result<String, Error> {
        let name = self.text(key);
        let fits = (1..=32).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if fits {
            Ok(name)
        } else {
            self.bad(
                key,
                format!("must be 1 to 32 lower-case letters, digits and dashes, not {name:?}"),
            )
        }
    }

    pub(super) fn choice<T: Copy>(&self, key: &str, choices: &[(&str, T)]) -> Result<T, Error> {
        let text = self.text(key);
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, value)) => Ok(*value),
            None => {
                let names: Vec<&str> = choices.iter().map(|(n, _)| *n).collect();
                self.bad(
                    key,
                    format!("must be one of {}, not {text:?}", names.join(", ")),
                )
            }
        }
    }

    pub(super) fn number<T>(&self, key: &str, range: RangeInclusive<T>) -> Result<T, Error>
    where
        T: TryFrom<i64> + PartialOrd + std::fmt::Display,
    {
        if let Some((_, Value::Number(number), _)) = self.get(key)
            && let Ok(number) = T::try_from(*number)
            && range.contains(&number)
        {
            return Ok(number);
        }
        self.bad(
            key,
            format!("must be from {} to {}", range.start(), range.end()),
        )
    }

    pub(super) fn address(&self, key: &str) -> Result<SocketAddr, Error> {
        let text = self.text(key);
        text.parse()
            .or_else(|_| self.bad(key, format!("must be an address and a port, not {text:?}")))
    }
}
