//! Credentials of the node itself, for pulls that bring none: docker's `config.json`, with helpers.
//!
//! The file is read at every pull and may be absent; one that cannot be understood is an error, for a
//! pull without the credentials that the operator meant would fail for another reason, or get another image.
//! A helper is run only when its host asks for credentials, and its time is bounded.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::auth::{Secret, canonical, fingerprint, secret};
use super::hosts::{Endpoint, read};
use super::{Error, Reference};
use crate::json;
use crate::model::RegistryAuth;
use crate::program::{self, Failure, Program};

/// A helper that takes longer is killed.
const HELPER_LIMIT: Duration = Duration::from_secs(30);
/// What a helper says of a host that it has nothing for.
const NOT_FOUND: &str = "credentials not found";
/// The user name with which a helper says that the secret is a refresh token.
const TOKEN_USER: &str = "<token>";

/// What a host may be shown, and where it comes from.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) enum Login {
    /// Nothing.
    #[default]
    None,
    /// From the request.
    Request(Secret),
    /// From the file.
    File(Secret),
    /// A helper knows.
    Helper(Helper),
}

/// `docker-credential-NAME`.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Helper {
    program: PathBuf,
    server: String,
    /// What the file has, should the helper have nothing.
    beside: Option<Secret>,
}

impl Login {
    /// There are none.
    pub(crate) fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Tells callers apart without keeping what they brought.
    pub(crate) fn owner(&self) -> [u8; 32] {
        match self {
            Self::None => fingerprint(&["none"]),
            Self::Request(secret) | Self::File(secret) => secret.fingerprint(),
            Self::Helper(helper) => {
                fingerprint(&["helper", &helper.program.to_string_lossy(), &helper.server])
            }
        }
    }

    /// In words, without anything secret.
    pub(crate) fn source(&self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Request(_) => "of the request".to_owned(),
            Self::File(_) => "of the node".to_owned(),
            Self::Helper(helper) => format!("by {}", helper.program.display()),
        }
    }

    /// The secret itself. Runs the helper.
    ///
    /// # Errors
    /// [`Error::Login`]
    pub(crate) async fn secret(&self, host: &str) -> Result<Option<Secret>, Error> {
        match self {
            Self::None => Ok(None),
            Self::Request(secret) | Self::File(secret) => Ok(Some(secret.clone())),
            Self::Helper(helper) => helper.secret(host).await,
        }
    }
}

impl Helper {
    async fn secret(&self, host: &str) -> Result<Option<Secret>, Error> {
        let failed = |reason: String| Error::Login {
            host: host.to_owned(),
            path: self.program.clone(),
            reason,
        };
        let program = Program {
            path: &self.program,
            arguments: &["get"],
            environment: &[],
            input: self.server.as_bytes(),
            limit: HELPER_LIMIT,
        };
        let output = match program::run(&program).await {
            Ok(output) => output,
            Err(Failure::Ended {
                output, messages, ..
            }) if says_not_found(&output) || says_not_found(&messages) => {
                return Ok(self.beside.clone());
            }
            // What it wrote to standard output may be secret.
            Err(Failure::Ended {
                status, messages, ..
            }) => {
                let said = program::printable(&messages);
                return Err(failed(format!("{status}: {said}")));
            }
            Err(other) => return Err(failed(other.to_string())),
        };
        let answer: Answer = json::from_slice(&output)
            .map_err(|_| failed("its answer is not the JSON of a credential helper".to_owned()))?;
        Ok(match (answer.username.as_str(), answer.secret) {
            ("", secret) if secret.is_empty() => self.beside.clone(),
            (TOKEN_USER, secret) => Some(Secret::Refresh(secret)),
            (user, secret) => Some(Secret::Basic(user.to_owned(), secret)),
        })
    }
}

fn says_not_found(text: &[u8]) -> bool {
    String::from_utf8_lossy(text).contains(NOT_FOUND)
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// The parts of docker's `config.json` that say who one is. Docker keeps more in it.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct File {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

/// The credentials of the node.
#[derive(Default)]
pub(crate) struct Node {
    path: PathBuf,
    file: File,
}

impl Node {
    /// Reads the file, which need not exist. For blocking threads.
    ///
    /// # Errors
    /// [`Error::Login`] names the file, and no word of it.
    pub(crate) fn load(path: &Path) -> Result<Self, Error> {
        let failed = |reason| Error::Login {
            host: "every registry".to_owned(),
            path: path.to_owned(),
            reason,
        };
        let text = match read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(failed(error.to_string())),
        };
        let file = json::from_slice(text.as_bytes()).map_err(|error| {
            // Its own words may repeat a password.
            let (line, column) = (error.line(), error.column());
            failed(format!(
                "it is not docker's config.json: line {line}, column {column}"
            ))
        })?;
        let path = path.to_owned();
        Ok(Self { path, file })
    }

    /// What an endpoint may be shown: what the file has for its host and, at the registry's own server, for the
    /// registry's name and the longest beginning of the repository.
    ///
    /// # Errors
    /// An entry that is not usable.
    pub(crate) fn login(
        &self,
        endpoint: &Endpoint,
        registry: &str,
        repository: &str,
    ) -> Result<Login, Error> {
        let mut names = vec![canonical(&endpoint.host)];
        if endpoint.upstream {
            names.insert(0, canonical(registry));
        }
        let stored = self.stored(&names, repository)?;
        let helper = names.iter().find_map(|name| {
            let mut helpers = self.file.cred_helpers.iter();
            helpers.find(|(key, _)| canonical(key) == *name)
        });
        let helper = match helper {
            Some((key, helper)) => Some((key.clone(), helper)),
            None if self.file.creds_store.is_empty() => None,
            // The name under which docker has stored it.
            None => names
                .first()
                .map(|name| (stored_name(name), &self.file.creds_store)),
        };
        let Some((server, name)) = helper else {
            return Ok(stored.map_or(Login::None, Login::File));
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || !name.chars().all(plain) {
            return Err(Error::Login {
                host: endpoint.host.clone(),
                path: self.path.clone(),
                reason: format!("{name:?} is not the name of a credential helper"),
            });
        }
        Ok(Login::Helper(Helper {
            program: PathBuf::from(format!("docker-credential-{name}")),
            server,
            beside: stored,
        }))
    }

    /// The entry that a pull secret of this text has for a registry.
    fn of_secret(&self, registry: &str, repository: &str) -> Result<Option<RegistryAuth>, Error> {
        let stored = self.stored(&[canonical(registry)], repository)?;
        let mut auth = RegistryAuth::default();
        match stored {
            None => return Ok(None),
            Some(Secret::Basic(user, password)) => {
                (auth.username, auth.password) = (user, password)
            }
            Some(Secret::Refresh(token)) => auth.identity_token = token,
            Some(Secret::Bearer(token)) => auth.registry_token = token,
        }
        Ok(Some(auth))
    }

    fn stored(&self, names: &[String], repository: &str) -> Result<Option<Secret>, Error> {
        for name in names {
            let fits = self.file.auths.iter().filter_map(|(key, entry)| {
                let path = scope_of(key);
                let within = path.is_empty()
                    || repository == path
                    || repository
                        .strip_prefix(path)
                        .is_some_and(|rest| rest.starts_with('/'));
                (canonical(key) == *name && within).then_some((path.len(), entry))
            });
            let Some((_, entry)) = fits.max_by_key(|(length, _)| *length) else {
                continue;
            };
            let auth = RegistryAuth {
                username: entry.username.clone(),
                password: entry.password.clone(),
                auth: entry.auth.clone(),
                server_address: String::new(),
                // Docker keeps a placeholder in "auth" beside a token.
                identity_token: entry.identitytoken.clone(),
                registry_token: entry.registrytoken.clone(),
            };
            let auth = match auth.identity_token.is_empty() {
                true => auth,
                false => RegistryAuth {
                    identity_token: auth.identity_token,
                    ..RegistryAuth::default()
                },
            };
            if let Some(found) = secret(&auth).map_err(|error| self.unusable(name, &error))? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn unusable(&self, host: &str, error: &Error) -> Error {
        Error::Login {
            host: host.to_owned(),
            path: self.path.clone(),
            reason: error.to_string(),
        }
    }
}

/// The credentials that a file in the form of a pull secret (`.dockerconfigjson`) has for a reference. For
/// blocking threads.
///
/// # Errors
/// The file is not there, is not one, or has nothing for the registry.
pub fn of_pull_secret(path: &Path, reference: &Reference) -> Result<RegistryAuth, Error> {
    let registry = reference.registry();
    let failed = |reason: String| Error::Login {
        host: registry.to_owned(),
        path: path.to_owned(),
        reason,
    };
    std::fs::metadata(path).map_err(|error| failed(error.to_string()))?;
    let found = Node::load(path)?.of_secret(registry, reference.repository())?;
    found.ok_or_else(|| failed("it has no entry for this registry".to_owned()))
}

/// The path of a key such as `quay.io/team`; the old form of Docker, `https://r.io/v1/`, has none.
fn scope_of(key: &str) -> &str {
    if key.contains("://") {
        return "";
    }
    let path = key.split_once('/').map_or("", |(_, path)| path);
    match path.trim_end_matches('/') {
        "v1" | "v2" => "",
        path => path,
    }
}

fn stored_name(name: &str) -> String {
    match name {
        "docker.io" => "https://index.docker.io/v1/".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests;
