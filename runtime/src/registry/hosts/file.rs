//! The text of a `hosts.toml`, as containerd reads it (`core/remotes/docker/config/hosts.go`): keys in any case, and those
//! that nobody here knows passed over. What such a key could have allowed is not allowed then.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::Error as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// All of it.
pub(super) struct File {
    /// Where the registry itself is.
    pub(super) server: Option<String>,
    /// How to ask it.
    pub(super) own: Table,
    /// Who is asked before, in the order of the file.
    pub(super) hosts: Vec<(String, Table)>,
    /// Keys that nobody here knows, with their places.
    pub(super) unknown: Vec<String>,
}

/// What stands in the table of a host.
pub(super) struct Table {
    pub(super) capabilities: Option<Vec<Capability>>,
    pub(super) ca: Option<OneOrMany>,
    pub(super) client: Option<Client>,
    pub(super) skip_verify: Option<bool>,
    pub(super) header: Option<BTreeMap<String, OneOrMany>>,
    pub(super) override_path: Option<bool>,
    pub(super) dial_timeout: Option<String>,
    pub(super) proxy: Option<String>,
}

const OF_FILE: [&str; 2] = ["server", "host"];
const OF_HOST: [&str; 8] = [
    "capabilities",
    "ca",
    "client",
    "skip_verify",
    "header",
    "override_path",
    "dial_timeout",
    "proxy",
];

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Capability {
    Pull,
    Resolve,
    Push,
    /// Referrers API; nothing of a pull needs it.
    Referrers,
}

impl<'de> Deserialize<'de> for Capability {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        match name.to_lowercase().as_str() {
            "pull" => Ok(Self::Pull),
            "resolve" => Ok(Self::Resolve),
            "push" => Ok(Self::Push),
            "referrers" => Ok(Self::Referrers),
            _ => Err(D::Error::unknown_variant(
                &name,
                &["pull", "resolve", "push", "referrers"],
            )),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a text or a list of texts is wanted")]
pub(super) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a path, a list of paths or a list of [certificate, key] pairs is wanted"
)]
pub(super) enum Client {
    One(String),
    Many(Vec<ClientFiles>),
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a path, a list of paths or a list of [certificate, key] pairs is wanted"
)]
pub(super) enum ClientFiles {
    Both(String),
    Pair(String, String),
}

/// Reads a file.
///
/// # Errors
/// In words, with the line.
pub(super) fn read(text: &str) -> Result<File, String> {
    let table = DeTable::parse(text).map_err(|error| {
        let line = line(text, error.span().map_or(0, |span| span.start));
        format!("line {line}: not valid TOML: {}", error.message())
    })?;
    let mut unknown = Vec::new();
    let known: Vec<_> = OF_FILE.iter().chain(&OF_HOST).copied().collect();
    let mut top = Keys::of(text, table.into_inner(), &known, "", &mut unknown)?;
    let mut hosts = Vec::new();
    // The order of the file is the order of the hosts, and a TOML table has none: keys tell where they stood.
    let mut tables: Vec<_> = top.tables("host")?.into_iter().collect();
    tables.sort_by_key(|(url, _)| url.span().start);
    for (url, table) in tables {
        let url = url.into_inner().into_owned();
        let place = format!("[host.{url:?}]");
        let DeValue::Table(table) = table.into_inner() else {
            return Err(format!("{place} is not a table"));
        };
        let keys = Keys::of(text, table, &OF_HOST, &place, &mut unknown)?;
        let table = keys.table().map_err(|why| format!("{place}: {why}"))?;
        hosts.push((url, table));
    }
    unknown.sort();
    Ok(File {
        server: top.take("server")?,
        own: top.table()?,
        hosts,
        unknown: unknown.into_iter().map(|(_, key)| key).collect(),
    })
}

/// The keys of a table that have a meaning, by their names in lower case.
struct Keys<'a> {
    text: &'a str,
    found: BTreeMap<&'static str, Spanned<DeValue<'a>>>,
}

impl<'a> Keys<'a> {
    fn of(
        text: &'a str,
        table: DeTable<'a>,
        known: &[&'static str],
        place: &str,
        unknown: &mut Vec<(usize, String)>,
    ) -> Result<Self, String> {
        let mut found = BTreeMap::new();
        for (key, value) in table {
            let line = line(text, key.span().start);
            let key = key.into_inner();
            let lower = key.to_lowercase();
            let Some(name) = known.iter().find(|name| **name == lower) else {
                let place = if place.is_empty() { "the file" } else { place };
                unknown.push((line, format!("the key {key:?} of {place} (line {line})")));
                continue;
            };
            if found.insert(*name, value).is_some() {
                return Err(format!(
                    "line {line}: the key {name:?} is there twice, in capitals and small letters"
                ));
            }
        }
        Ok(Self { text, found })
    }

    fn take<T: Deserialize<'a>>(&mut self, name: &'static str) -> Result<Option<T>, String> {
        let Some(value) = self.found.remove(name) else {
            return Ok(None);
        };
        let line = line(self.text, value.span().start);
        T::deserialize(ValueDeserializer::from(value))
            .map(Some)
            .map_err(|error| format!("line {line}: {name}: {}", error.message()))
    }

    fn tables(&mut self, name: &'static str) -> Result<DeTable<'a>, String> {
        match self.found.remove(name).map(Spanned::into_inner) {
            None => Ok(DeTable::new()),
            Some(DeValue::Table(table)) => Ok(table),
            Some(_) => Err(format!("{name:?} is not a table")),
        }
    }

    fn table(mut self) -> Result<Table, String> {
        Ok(Table {
            capabilities: self.take("capabilities")?,
            ca: self.take("ca")?,
            client: self.take("client")?,
            skip_verify: self.take("skip_verify")?,
            header: self.take("header")?,
            override_path: self.take("override_path")?,
            dial_timeout: self.take("dial_timeout")?,
            proxy: self.take("proxy")?,
        })
    }
}

fn line(text: &str, at: usize) -> usize {
    let before = text.as_bytes().get(..at).unwrap_or_default();
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}
