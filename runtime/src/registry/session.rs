//! One pull's way to its repository.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::image::Descriptor;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::auth::{Secret, TokenKey, Tokens, fingerprint, secret_for};
use super::blob::Blob;
use super::client::{Answer, Ask, Clients, body};
use super::hosts::{self, Endpoint};
use super::manifest::{self, Content, MAX_MANIFEST};
use super::{Error, Reference, Target};
use crate::model::{Digest, RegistryAuth};

/// Tries of one request that a registry puts off (429 and 5xx).
const TRIES: u32 = 4;
/// Longest wait that a registry may ask for between two of them.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// Most of an error body that is read, bytes.
const MAX_ERROR: usize = 64 << 10;

/// What outlives a pull: connections and tokens.
#[derive(Debug)]
pub struct Registry {
    hosts_dir: PathBuf,
    pub(crate) clients: Clients,
    pub(crate) tokens: Tokens,
}

/// One repository, the hosts that have it, and the secrets for each of them.
#[derive(Clone, Debug)]
pub struct Session {
    registry: Arc<Registry>,
    repository: Arc<Repository>,
}

#[derive(Debug)]
struct Repository {
    reference: Reference,
    hosts: Vec<Host>,
}

/// An endpoint with what we may show it.
pub(crate) struct Host {
    pub(crate) endpoint: Endpoint,
    secret: Option<Secret>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.endpoint.fmt(f)
    }
}

/// A manifest or an index as it came.
#[derive(Clone, Debug)]
pub struct Document {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// What they mean.
    pub content: Content,
    /// The host that sent them.
    pub host: String,
}

impl Registry {
    /// With the directory of `hosts.toml` files, which may be absent.
    pub fn new(hosts_dir: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            hosts_dir,
            clients: Clients::default(),
            tokens: Tokens::default(),
        })
    }

    /// The way to a reference's repository. Asks nobody yet.
    ///
    /// # Errors
    /// A bad `hosts.toml`, or credentials that contradict themselves.
    pub async fn open(
        self: &Arc<Self>,
        reference: &Reference,
        auth: Option<&RegistryAuth>,
    ) -> Result<Session, Error> {
        let (dir, name) = (self.hosts_dir.clone(), reference.registry().to_owned());
        let endpoints = tokio::task::spawn_blocking(move || hosts::load(&dir, &name))
            .await
            .map_err(|error| Error::Hosts {
                path: self.hosts_dir.clone(),
                reason: error.to_string(),
            })??;
        let mut hosts = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let secret = secret_for(auth, &endpoint, reference.registry())?;
            hosts.push(Host { endpoint, secret });
        }
        let repository = Repository {
            reference: reference.clone(),
            hosts,
        };
        Ok(Session {
            registry: Arc::clone(self),
            repository: Arc::new(repository),
        })
    }
}

impl Session {
    /// The digest that a target has now, if a registry says so without sending the manifest. Unverified:
    /// good only to find out that nothing changed.
    pub async fn peek(&self, target: &Target<'_>) -> Option<Digest> {
        let what = format!("manifest {target}");
        for index in self.candidates(matches!(target, Target::Tag(_))) {
            let request = Wanted {
                method: Method::HEAD,
                path: format!("manifests/{target}"),
                accept: Some(manifest::ACCEPT),
                offset: 0,
                what: &what,
            };
            if let Ok(answer) = self.ask(index, &request).await {
                let digest = answer.response.headers().get("docker-content-digest")?;
                return digest.to_str().ok()?.parse().ok();
            }
        }
        None
    }

    /// A manifest or an index; one that was asked for by digest has it.
    ///
    /// # Errors
    /// What the hosts said, see [`Error`].
    pub async fn manifest(&self, target: &Target<'_>) -> Result<Document, Error> {
        let by_tag = matches!(target, Target::Tag(_));
        let mut failures = Vec::new();
        for index in self.candidates(by_tag) {
            match self.manifest_at(index, target).await {
                Ok(document) => return Ok(document),
                Err(error) => failures.push(error),
            }
        }
        Err(self.verdict(failures, if by_tag { "resolve" } else { "pull" }))
    }

    async fn manifest_at(&self, index: usize, target: &Target<'_>) -> Result<Document, Error> {
        let what = format!("manifest {target} of {}", self.name());
        let request = Wanted {
            method: Method::GET,
            path: format!("manifests/{target}"),
            accept: Some(manifest::ACCEPT),
            offset: 0,
            what: &what,
        };
        let Answer { response, host, .. } = self.ask(index, &request).await?;
        let kind = response.headers().get(CONTENT_TYPE);
        let kind = kind
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let broken = |reason| Error::Broken {
            host: host.clone(),
            what: what.clone(),
            reason,
        };
        let bytes = body(response, MAX_MANIFEST).await.map_err(broken)?;
        let digest = Digest::from_bytes(Sha256::digest(&bytes).into());
        check(&host, target, digest)?;
        let content = manifest::parse(&bytes, kind.as_deref())
            .map_err(|reason| Error::Document { what, reason })?;
        Ok(Document {
            bytes,
            digest,
            content,
            host,
        })
    }

    /// A small blob in memory, verified.
    ///
    /// # Errors
    /// See [`Error`]; also when it is longer than `limit` or than its descriptor says.
    pub async fn document(&self, descriptor: &Descriptor, limit: usize) -> Result<Vec<u8>, Error> {
        let mut blob = self.blob(descriptor).await?;
        let too_long = || Error::Document {
            what: format!("blob {}", descriptor.digest()),
            reason: format!("longer than {limit} bytes"),
        };
        if descriptor.size() > limit as u64 {
            return Err(too_long());
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = blob.chunk().await? {
            if bytes.len() + chunk.len() > limit {
                return Err(too_long());
            }
            bytes.extend_from_slice(&chunk);
        }
        let got = Digest::from_bytes(Sha256::digest(&bytes).into());
        check(blob.host(), &Target::Digest(blob.digest()), got)?;
        Ok(bytes)
    }

    /// The stream of a blob, from the first host that has it. Its length is checked; its digest is the reader's to check.
    ///
    /// # Errors
    /// What the hosts said, see [`Error`].
    pub async fn blob(&self, descriptor: &Descriptor) -> Result<Blob, Error> {
        let digest: Digest = descriptor.digest().to_string().parse().map_err(
            |error: crate::model::NotADigest| Error::Document {
                what: format!("a descriptor of {}", self.name()),
                reason: error.to_string(),
            },
        )?;
        let mut failures = Vec::new();
        for index in self.candidates(false) {
            match self.blob_at(index, &digest, 0).await {
                Ok(answer) => {
                    return Ok(Blob::new(
                        self.clone(),
                        index,
                        digest,
                        descriptor.size(),
                        answer,
                    ));
                }
                Err(error) => failures.push(error),
            }
        }
        Err(self.verdict(failures, "pull"))
    }

    /// A blob from a byte on.
    pub(crate) async fn blob_at(
        &self,
        index: usize,
        digest: &Digest,
        offset: u64,
    ) -> Result<Answer, Error> {
        let what = format!("blob {digest} of {}", self.name());
        let request = Wanted {
            method: Method::GET,
            path: format!("blobs/{digest}"),
            accept: None,
            offset,
            what: &what,
        };
        self.ask(index, &request).await
    }

    fn name(&self) -> String {
        self.repository.reference.name()
    }

    fn candidates(&self, resolve: bool) -> impl Iterator<Item = usize> {
        let hosts = &self.repository.hosts;
        (0..hosts.len()).filter(move |index| {
            let endpoint = &hosts[*index].endpoint;
            endpoint.pull && (endpoint.resolve || !resolve)
        })
    }

    /// The one error that tells most of several: the registry's own, unless only a mirror gave an answer.
    fn verdict(&self, mut failures: Vec<Error>, capability: &'static str) -> Error {
        let answered = failures
            .iter()
            .rposition(|error| !matches!(error, Error::Unavailable { .. }));
        match answered {
            Some(index) => failures.swap_remove(index),
            None => failures
                .pop()
                .unwrap_or_else(|| Error::NoHost(self.name(), capability)),
        }
    }

    /// One successful answer, after authentication and after what the registry puts off.
    async fn ask(&self, index: usize, wanted: &Wanted<'_>) -> Result<Answer, Error> {
        let mut wait = Duration::from_millis(200);
        for attempt in 1.. {
            let answer = self.authorized(index, wanted).await?;
            let status = answer.response.status();
            if status.is_success() {
                return Ok(answer);
            }
            let later = status == StatusCode::TOO_MANY_REQUESTS
                || matches!(status.as_u16(), 500 | 502 | 503 | 504);
            if !later || attempt >= TRIES {
                return Err(refusal(answer, wanted.what).await);
            }
            let asked = answer.response.headers().get(RETRY_AFTER);
            let asked = asked.and_then(|v| v.to_str().ok()?.parse().ok());
            tokio::time::sleep(asked.map_or(wait, Duration::from_secs).min(MAX_WAIT)).await;
            wait *= 3;
        }
        unreachable!("the loop above returns")
    }

    /// One answer that is not the registry's own 401.
    async fn authorized(&self, index: usize, wanted: &Wanted<'_>) -> Result<Answer, Error> {
        let Registry {
            clients, tokens, ..
        } = &*self.registry;
        let host = &self.repository.hosts[index];
        let key = TokenKey {
            origin: host.endpoint.base.origin().ascii_serialization(),
            scope: format!("repository:{}:pull", self.repository.reference.repository()),
            owner: fingerprint(host.secret.as_ref()),
        };
        let mut authorization = tokens.get(&key);
        let had = authorization.is_some();
        for last in [false, true] {
            let ask = self.request(host, wanted, authorization.clone());
            let answer = clients.send(&host.endpoint, ask).await?;
            if answer.response.status() != StatusCode::UNAUTHORIZED || answer.away {
                return Ok(answer);
            }
            tokens.forget(&key);
            if last {
                return Err(Error::Denied {
                    host: answer.host,
                    what: wanted.what.to_owned(),
                    reason: if host.secret.is_some() {
                        "the given credentials are not accepted".to_owned()
                    } else {
                        "it wants credentials, and none were given for this host".to_owned()
                    },
                });
            }
            tracing::debug!(registry.host = %answer.host, stale = had, "registry asks for authentication");
            let value = tokens
                .answer(
                    clients,
                    &host.endpoint,
                    host.secret.as_ref(),
                    key.clone(),
                    answer.response.headers(),
                    wanted.what,
                )
                .await?;
            authorization = Some(value);
        }
        unreachable!("the second turn of the loop returns")
    }

    fn request<'a>(
        &self,
        host: &Host,
        wanted: &Wanted<'a>,
        authorization: Option<HeaderValue>,
    ) -> Ask<'a> {
        let mut headers = HeaderMap::new();
        if let Some(accept) = wanted.accept {
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
        }
        if wanted.offset > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={}-", wanted.offset))
        {
            headers.insert(RANGE, range);
        }
        Ask {
            method: wanted.method.clone(),
            url: self.url(&host.endpoint, &wanted.path),
            headers,
            authorization,
            what: wanted.what,
        }
    }

    fn url(&self, endpoint: &Endpoint, path: &str) -> Url {
        let mut url = endpoint.base.clone();
        let repository = self.repository.reference.repository();
        url.set_path(&format!(
            "{}/{repository}/{path}",
            endpoint.base.path().trim_end_matches('/')
        ));
        if let Some(namespace) = &endpoint.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        url
    }
}

struct Wanted<'a> {
    method: Method,
    path: String,
    accept: Option<&'static str>,
    offset: u64,
    what: &'a str,
}

fn check(host: &str, target: &Target<'_>, got: Digest) -> Result<(), Error> {
    match target {
        Target::Digest(want) if *want != got => Err(Error::Mismatch {
            host: host.to_owned(),
            want: *want,
            got,
        }),
        _ => Ok(()),
    }
}

#[derive(Deserialize)]
struct ErrorBody {
    errors: Vec<ErrorDetail>,
}

#[derive(Deserialize)]
struct ErrorDetail {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// The error that an answer without success is.
async fn refusal(answer: Answer, what: &str) -> Error {
    let Answer {
        response,
        host,
        away,
    } = answer;
    let status = response.status();
    let what = what.to_owned();
    if status == StatusCode::NOT_FOUND {
        return Error::NotFound { host, what };
    }
    // Only the registry's own words are repeated: a storage service repeats the signed URL in its errors.
    let detail = match away {
        true => None,
        false => detail(&body(response, MAX_ERROR).await.unwrap_or_default()),
    };
    if matches!(status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED) {
        let reason = detail.unwrap_or_else(|| format!("it answered {}", status.as_u16()));
        return Error::Denied { host, what, reason };
    }
    Error::Status {
        host,
        what,
        status: status.as_u16(),
        detail,
    }
}

/// The first error of the distribution specification's error body, made fit for a log line.
fn detail(bytes: &[u8]) -> Option<String> {
    let first = serde_json::from_slice::<ErrorBody>(bytes)
        .ok()?
        .errors
        .into_iter()
        .next()?;
    let text = format!("{} {}", first.code, first.message);
    // Anything that looks like a URL with a query is cut off there.
    let text = text.split('?').next().unwrap_or_default().trim().to_owned();
    let clean: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    (!clean.is_empty()).then_some(clean)
}
