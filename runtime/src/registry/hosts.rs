//! `hosts.toml`, in containerd's format (containerd `docs/hosts.md`): where to ask for a registry's images.
//!
//! The directory is read at every pull, so that a change needs no restart. A file that cannot be
//! understood is an error and never skipped: a skipped mirror or CA would send the pull, and its
//! credentials, somewhere else. (A key that nobody knows is passed over.) `http://` is used where a file says so and for a registry *named*
//! `localhost` or by a loopback address that has no file (as containerd does); what a name
//! resolves to never matters (CVE-2026-92543).

mod file;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Error;
use super::certificate::bundle;
use super::client::{Tls, host_port, is_loopback};
use super::proxy::usable;
use super::tls::{Authorities, check_identity};
use file::{Capability, Client, ClientFiles, File, OneOrMany, Table};
use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

/// Connection attempts end after this, where the file names no other limit (containerd's default). One of 0 is none.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest file that is read, bytes.
const MAX_FILE: u64 = 1 << 20;
/// Longest file of certificates, bytes: all of the public ones with a description of each are half of it.
const MAX_BUNDLE: u64 = 4 << 20;

/// One place to ask, in the order of the file; the registry's own server is the last.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// API root without a final slash: `https://host:port/v2`.
    pub(crate) base: Url,
    /// `host[:port]`, for messages and for the match with credentials.
    pub(crate) host: String,
    /// May turn tags into digests.
    pub(crate) resolve: bool,
    /// May serve what a digest names.
    pub(crate) pull: bool,
    /// How to connect.
    pub(crate) tls: Tls,
    /// Sent with every request to this origin, and to no other.
    pub(crate) headers: HeaderMap,
    /// The registry that it stands in for, when it is another (`ns` of the query).
    pub(crate) namespace: Option<String>,
    /// It is the registry's own server, not a mirror.
    pub(crate) upstream: bool,
    /// The registry of the reference.
    pub(crate) registry: String,
    /// Token services of other domains that may see its credentials.
    pub(crate) token_services: Vec<String>,
    /// The file that names it, or the directory of its certificates; none: nothing does.
    pub(crate) file: Option<PathBuf>,
}

/// What is wrong, and with which file when it is not the `hosts.toml` itself.
type Reason = (Option<PathBuf>, String);

/// The hosts to ask for the images of `registry`. Reads files: for blocking threads.
///
/// # Errors
/// [`Error::Hosts`] names the file.
pub(crate) fn load(dir: &Path, registry: &str) -> Result<Vec<Endpoint>, Error> {
    for name in directories(registry) {
        let dir = dir.join(name);
        let file = dir.join("hosts.toml");
        match read(&file) {
            // As if it were not there.
            Ok(text) if text.is_empty() => {
                let own = upstream(registry, docker_certs(&dir)?);
                return Ok(named_by(vec![own], &dir));
            }
            Ok(text) => {
                let parsed = parse(&text, &dir, registry);
                let (endpoints, unknown) = parsed.map_err(|(path, reason)| Error::Hosts {
                    path: path.unwrap_or_else(|| file.clone()),
                    reason,
                })?;
                for key in unknown {
                    tracing::warn!(file = %file.display(), "{key} is not known here and passed over");
                }
                return Ok(named_by(endpoints, &file));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(hosts_error(&file, &error));
            }
            // Docker's pattern: certificates alone.
            Err(_) if dir.is_dir() => {
                let own = upstream(registry, docker_certs(&dir)?);
                return Ok(named_by(vec![own], &dir));
            }
            Err(_) => {}
        }
    }
    Ok(vec![upstream(registry, Tls::default())])
}

fn named_by(mut endpoints: Vec<Endpoint>, file: &Path) -> Vec<Endpoint> {
    for endpoint in &mut endpoints {
        endpoint.file = Some(file.to_owned());
    }
    endpoints
}

/// Where the file may be, the most specific place first.
fn directories(registry: &str) -> Vec<String> {
    let mut names = Vec::with_capacity(3);
    if let Some((host, port)) = registry
        .rsplit_once(':')
        .filter(|(host, _)| !host.is_empty())
    {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push("_default".to_owned());
    names
}

fn hosts_error(path: &Path, error: &io::Error) -> Error {
    Error::Hosts {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}

pub(crate) fn read(path: &Path) -> io::Result<String> {
    let bytes = read_bytes(path, MAX_FILE)?;
    let text = String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8"))?;
    // Editors of other systems leave it.
    Ok(match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

/// A file of certificates may have comments in any encoding.
fn read_bytes(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    crate::sys::fs::read_regular(path, limit)
}

/// The registry itself, as its name says.
fn upstream(registry: &str, tls: Tls) -> Endpoint {
    let scheme = if is_loopback(registry) && tls == Tls::default() {
        "http"
    } else {
        "https"
    };
    let host = real_host(registry);
    // A reference's host was checked when it was parsed; the fallback is there for the type alone.
    let base = Url::parse(&format!("{scheme}://{host}/v2")).unwrap_or_else(|_| nowhere());
    Endpoint {
        host: host_port(&base),
        base,
        resolve: true,
        pull: true,
        tls: with_defaults(tls),
        headers: HeaderMap::new(),
        namespace: None,
        upstream: true,
        registry: registry.to_owned(),
        token_services: Vec::new(),
        file: None,
    }
}

#[allow(clippy::expect_used)]
fn nowhere() -> Url {
    Url::parse("https://registry.invalid/v2").expect("a constant URL parses")
}

/// Docker Hub's API has another name than Docker Hub.
fn real_host(host: &str) -> &str {
    match host {
        "docker.io" | "index.docker.io" => "registry-1.docker.io",
        other => other,
    }
}

fn with_defaults(mut tls: Tls) -> Tls {
    tls.dial_timeout.get_or_insert(DIAL_TIMEOUT);
    tls
}

/// How many hosts the text of a `hosts.toml` names for a registry, itself included. Files that it names by a relative
/// path are not found, for the text has no place.
///
/// # Errors
/// A sentence on what is wrong with it.
pub fn check_hosts(text: &str, registry: &str) -> Result<usize, String> {
    parse(text, Path::new("/nonexistent"), registry)
        .map(|(endpoints, _)| endpoints.len())
        .map_err(|(_, reason)| reason)
}

/// What is wrong with the hosts of any registry, or with the node's credentials, each in a sentence. Reads files.
pub fn broken_hosts(dir: &Path, credentials: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    let mut names: Vec<String> = match std::fs::read_dir(dir) {
        Ok(entries) => entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            problems.push(hosts_error(dir, &error).to_string());
            Vec::new()
        }
    };
    names.sort();
    for name in names {
        // As the directory of a port is named; it is `_default`'s own name otherwise.
        let host = match name
            .strip_suffix('_')
            .and_then(|name| name.rsplit_once('_'))
        {
            Some((host, port)) if !host.is_empty() => format!("{host}:{port}"),
            _ => name,
        };
        problems.extend(load(dir, &host).err().map(|error| error.to_string()));
    }
    problems.extend(
        super::login::Node::load(credentials)
            .err()
            .map(|error| error.to_string()),
    );
    problems
}

/// The hosts, and the keys that are not known.
fn parse(text: &str, dir: &Path, registry: &str) -> Result<(Vec<Endpoint>, Vec<String>), Reason> {
    let File {
        server,
        own,
        hosts,
        unknown,
    } = file::read(text).map_err(|why| (None, why))?;
    let mut endpoints = Vec::with_capacity(hosts.len() + 1);
    for (url, table) in hosts {
        let endpoint = endpoint(&url, table, dir, registry, false);
        endpoints.push(endpoint.map_err(|(path, why)| (path, format!("[host.{url:?}]: {why}")))?);
    }
    let server = server.filter(|server| !server.is_empty());
    let server = server.unwrap_or_else(|| {
        let plain = is_loopback(registry) && own.ca.is_none() && own.client.is_none();
        let scheme = if plain { "http" } else { "https" };
        format!("{scheme}://{registry}")
    });
    let server_endpoint = endpoint(&server, own, dir, registry, true)
        .map_err(|(path, why)| (path, format!("server {server:?}: {why}")))?;
    for named_twice in endpoints
        .iter_mut()
        .filter(|e| e.base == server_endpoint.base)
    {
        named_twice.upstream = true;
    }
    endpoints.push(server_endpoint);
    Ok((endpoints, unknown))
}

fn endpoint(
    url: &str,
    table: Table,
    dir: &Path,
    registry: &str,
    upstream: bool,
) -> Result<Endpoint, Reason> {
    let base = base_url(url, table.override_path.unwrap_or(false)).map_err(|why| (None, why))?;
    let can = |wanted| match &table.capabilities {
        None => true,
        Some(list) => list.is_empty() || list.contains(&wanted),
    };
    let (resolve, pull) = (can(Capability::Resolve), can(Capability::Pull));
    let tls = Tls {
        ca: authorities(table.ca, dir)?,
        identities: identities(table.client, dir)?,
        skip_verify: table.skip_verify.unwrap_or(false),
        dial_timeout: match table.dial_timeout.as_deref() {
            None | Some("") => None,
            Some(text) => Some(duration(text).ok_or_else(|| {
                let why = format!("dial_timeout {text:?} is not a duration such as \"5s\"");
                (None, why)
            })?),
        },
        proxy: proxy(table.proxy)?,
    };
    let headers = headers(table.header.unwrap_or_default()).map_err(|why| (None, why))?;
    let host = host_port(&base);
    let stands_in = host != registry && host != real_host(registry);
    Ok(Endpoint {
        base,
        resolve,
        pull,
        tls: with_defaults(tls),
        headers,
        namespace: stands_in.then(|| registry.to_owned()),
        upstream,
        host,
        registry: registry.to_owned(),
        token_services: Vec::new(),
        file: None,
    })
}

fn base_url(text: &str, override_path: bool) -> Result<Url, String> {
    let whole = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let mut url = Url::parse(&whole).map_err(|error| format!("not a URL: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("only http and https are spoken".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials in the URL are not used: pull secrets are the place".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("a host has no query and no fragment".to_owned());
    }
    if let Some(host) = url.host_str().map(|host| real_host(host).to_owned()) {
        url.set_host(Some(&host))
            .map_err(|error| error.to_string())?;
    }
    let path = url.path().trim_end_matches('/').to_owned();
    let path = if override_path || path.ends_with("/v2") {
        path
    } else {
        format!("{path}/v2")
    };
    url.set_path(&path);
    Ok(url)
}

/// An empty one is none, so the environment's.
fn proxy(text: Option<String>) -> Result<Option<String>, Reason> {
    let Some(text) = text.filter(|text| !text.trim().is_empty()) else {
        return Ok(None);
    };
    // The text is not repeated: it may hold a password.
    usable(&text)
        .map(Some)
        .map_err(|why| (None, format!("proxy {why}")))
}

fn headers(table: BTreeMap<String, OneOrMany>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, values) in table {
        let key: HeaderName = name
            .parse()
            .map_err(|_| format!("header {name:?} is not a header name"))?;
        for value in values.into_vec() {
            let mut value = HeaderValue::from_bytes(value.as_bytes())
                .map_err(|_| format!("the value of header {name:?} is not a header value"))?;
            value.set_sensitive(true);
            headers.append(key.clone(), value);
        }
    }
    Ok(headers)
}

fn named_file(path: &Path) -> Result<Vec<u8>, Reason> {
    let bytes = read_bytes(path, MAX_BUNDLE);
    bytes.map_err(|error| (Some(path.to_owned()), error.to_string()))
}

fn authorities(ca: Option<OneOrMany>, dir: &Path) -> Result<Vec<Authorities>, Reason> {
    let names = ca.map(OneOrMany::into_vec).unwrap_or_default();
    let paths = names.iter().map(|name| dir.join(name));
    paths.map(checked_authorities).collect()
}

/// A file that could not be used is told with its name, and before anybody is asked.
fn checked_authorities(path: PathBuf) -> Result<Authorities, Reason> {
    let pem = named_file(&path)?;
    match bundle(&pem) {
        Ok(_) => Ok(Authorities { path, pem }),
        Err(why) => Err((Some(path), why)),
    }
}

/// Client certificates with their keys, which stand in the same file or in one of their own.
fn identities(client: Option<Client>, dir: &Path) -> Result<Vec<Vec<u8>>, Reason> {
    let files = match client {
        None => Vec::new(),
        Some(Client::One(path)) => vec![ClientFiles::Both(path)],
        Some(Client::Many(files)) => files,
    };
    let pairs = files.into_iter().map(|files| match files {
        ClientFiles::Both(path) => (dir.join(path), None),
        ClientFiles::Pair(path, key) => {
            let key = (!key.is_empty()).then(|| dir.join(key));
            (dir.join(path), key)
        }
    });
    pairs.map(|(path, key)| identity(&path, key)).collect()
}

/// Certificate and key in one PEM text.
fn identity(path: &Path, key: Option<PathBuf>) -> Result<Vec<u8>, Reason> {
    let mut pem = named_file(path)?;
    if let Some(key) = key {
        pem.push(b'\n');
        pem.extend(named_file(&key)?);
    }
    match check_identity(&pem) {
        Ok(()) => Ok(pem),
        Err(why) => {
            let why = format!("it is not a client certificate with its key in PEM: {why}");
            Err((Some(path.to_owned()), why))
        }
    }
}

/// `*.crt` are authorities, `x.cert` with `x.key` is a client certificate, as is one with its key inside.
fn docker_certs(dir: &Path) -> Result<Tls, Error> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|error| hosts_error(dir, &error))? {
        let path = entry.map_err(|error| hosts_error(dir, &error))?.path();
        if !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    let named = |(path, reason): Reason| Error::Hosts {
        path: path.unwrap_or_else(|| dir.to_owned()),
        reason,
    };
    let mut tls = Tls::default();
    for path in paths {
        match path.extension().and_then(|e| e.to_str()) {
            Some("crt") => tls.ca.push(checked_authorities(path).map_err(named)?),
            Some("cert") => {
                let key = path.with_extension("key");
                let key = key.exists().then_some(key);
                tls.identities.push(identity(&path, key).map_err(named)?);
            }
            _ => {}
        }
    }
    Ok(tls)
}

/// Go's notation: numbers with `ns`, `us`, `ms`, `s`, `m` or `h`, or 0. One below 0 is none.
fn duration(text: &str) -> Option<Duration> {
    let text = text.strip_prefix('+').unwrap_or(text);
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = None;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest
            .bytes()
            .take_while(|b| b.is_ascii_digit() || *b == b'.')
            .count();
        let (number, tail) = rest.split_at(digits);
        let number_again = |c: char| c.is_ascii_digit() || c == '.';
        let (unit, tail) = tail.split_at(tail.find(number_again).unwrap_or(tail.len()));
        let seconds = match unit {
            "ns" => 1e-9,
            // Both of Unicode's signs, as in Go.
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = Some(total.unwrap_or(Duration::ZERO).checked_add(part)?);
        rest = tail;
    }
    total
}

#[cfg(test)]
mod tests;
