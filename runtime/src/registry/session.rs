//! One pull's way to its repository.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use oci_spec::image::Descriptor;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::auth::{Tokens, canonical, login_for};
use super::blob::{Blob, Resume};
use super::client::{Answer, BadBody, Clients, body};
use super::exchange::Wanted;
use super::hosts::{self, Endpoint};
use super::login::{Login, Node};
use super::manifest::{self, Content, MAX_MANIFEST};
use super::proxy::Proxies;
use super::rounds::Rounds;
use super::trace::Trace;
use super::{Config, Error, Reference, Target};
use crate::model::{Digest, RegistryAuth};

/// The header in which a registry says what a manifest's digest is.
const DIGEST: &str = "docker-content-digest";

/// No pull lasts longer, whatever a host says when it wants to be asked again.
const LONGEST_REST: Duration = Duration::from_secs(86_400);

/// What outlives a pull: connections and tokens.
#[derive(Debug)]
pub struct Registry {
    config: RwLock<Arc<Config>>,
    pub(crate) clients: Clients,
    pub(crate) tokens: Tokens,
}

/// One repository, the hosts that have it, and the secrets for each of them.
#[derive(Clone, Debug)]
pub struct Session {
    pub(crate) registry: Arc<Registry>,
    pub(crate) repository: Arc<Repository>,
    pub(crate) trace: Trace,
}

#[derive(Debug)]
pub(crate) struct Repository {
    pub(crate) reference: Reference,
    pub(crate) hosts: Vec<Host>,
    senders: Mutex<Senders>,
    busy: Mutex<BTreeMap<usize, Busy>>,
}

/// A host that wants to be left alone.
#[derive(Debug)]
struct Busy {
    until: Instant,
    /// How it said so.
    status: u16,
}

/// Who sent which blob, so that a host that lied is not asked for it again.
#[derive(Debug, Default)]
struct Senders {
    /// In the order in which they sent.
    sent: BTreeMap<Digest, Vec<usize>>,
    lied: BTreeSet<(Digest, usize)>,
    /// Blobs that came from several hosts and were wrong, which tells nothing about any of them: from now on they are
    /// taken from one host as a whole. The one that had their end is asked first.
    alone: BTreeMap<Digest, usize>,
}

/// An endpoint with what we may show it.
pub(crate) struct Host {
    pub(crate) endpoint: Endpoint,
    pub(crate) login: Login,
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
    /// With the proxies of this process's environment.
    pub fn new(config: impl Into<Config>) -> Arc<Self> {
        let config = config.into();
        let proxies = Proxies::from_variables(|name| std::env::var(name).ok());
        Arc::new(Self {
            clients: Clients::new(config.silence, proxies),
            tokens: Tokens::default(),
            config: RwLock::new(Arc::new(config)),
        })
    }

    fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes up another configuration, for pulls that begin from now on, and forgets connections: those that
    /// come trust what the machine trusts by now. How long a silence is borne stays.
    pub fn reload(&self, config: Config) {
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        self.clients.forget();
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
        self.open_traced(reference, auth, Trace::default()).await
    }

    pub(crate) async fn open_traced(
        self: &Arc<Self>,
        reference: &Reference,
        auth: Option<&RegistryAuth>,
        trace: Trace,
    ) -> Result<Session, Error> {
        let (config, name) = (self.config(), reference.registry().to_owned());
        let hosts_dir = config.hosts_dir.clone();
        let services = token_services(&config, reference.registry());
        let read = move || {
            let node = match &config.credentials_file {
                Some(path) => Node::load(path)?,
                None => Node::default(),
            };
            Ok::<_, Error>((hosts::load(&config.hosts_dir, &name)?, node))
        };
        let (endpoints, node) =
            tokio::task::spawn_blocking(read)
                .await
                .map_err(|error| Error::Hosts {
                    path: hosts_dir,
                    reason: error.to_string(),
                })??;
        let mut hosts = Vec::with_capacity(endpoints.len());
        for mut endpoint in endpoints {
            endpoint.token_services.clone_from(&services);
            let login = login_for(auth, &node, &endpoint, reference.repository())?;
            hosts.push(Host { endpoint, login });
        }
        let repository = Repository {
            reference: reference.clone(),
            hosts,
            senders: Mutex::default(),
            busy: Mutex::default(),
        };
        Ok(Session {
            registry: Arc::clone(self),
            repository: Arc::new(repository),
            trace,
        })
    }
}

fn token_services(config: &Config, registry: &str) -> Vec<String> {
    let pairs = config.token_services.iter();
    let pairs = pairs.filter_map(|entry| entry.split_once('='));
    pairs
        .filter(|(name, _)| canonical(name.trim()) == canonical(registry))
        .map(|(_, host)| host.trim().to_owned())
        .collect()
}

impl Session {
    /// The digest that a target has now, if a registry says so without sending the manifest. Unverified:
    /// good only to find out that nothing changed. Nobody is asked twice.
    pub async fn peek(&self, target: &Target<'_>) -> Option<Digest> {
        let what = format!("manifest {target}");
        for index in self.candidates(matches!(target, Target::Tag(_))) {
            let request = Wanted {
                method: Method::HEAD,
                path: format!("manifests/{target}"),
                manifest: true,
                offset: 0,
                version: None,
                what: &what,
            };
            if let Ok(answer) = self.ask(index, &request).await {
                return claimed(answer.response.headers());
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
        let mut rounds = Rounds::new(self.candidates(by_tag));
        while let Some(index) = rounds.next().await {
            self.trace
                .begin(self.host(index), &format!("manifest {target}"));
            match self.manifest_at(index, target).await {
                Ok(document) => return Ok(document),
                Err(error) => self.note(&mut rounds, index, error),
            }
        }
        let capability = if by_tag { "resolve" } else { "pull" };
        Err(rounds.verdict(|| Error::NoHost(self.name(), capability)))
    }

    async fn manifest_at(&self, index: usize, target: &Target<'_>) -> Result<Document, Error> {
        let what = format!("manifest {target} of {}", self.name());
        let request = Wanted {
            method: Method::GET,
            path: format!("manifests/{target}"),
            manifest: true,
            offset: 0,
            version: None,
            what: &what,
        };
        let Answer { response, host, .. } = self.ask(index, &request).await?;
        let kind = response.headers().get(CONTENT_TYPE);
        let kind = kind
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let said = claimed(response.headers());
        let bytes = body(response, self.registry.clients.pace(), MAX_MANIFEST)
            .await
            .map_err(|bad| match bad {
                BadBody::TooLong(_) => Error::Document {
                    what: what.clone(),
                    reason: bad.to_string(),
                },
                BadBody::Cut(reason) => Error::Broken {
                    host: host.clone(),
                    what: what.clone(),
                    reason,
                },
            })?;
        let digest = Digest::from_bytes(Sha256::digest(&bytes).into());
        if let Target::Digest(want) = target {
            check(&host, *want, digest)?;
        }
        let content = manifest::parse(&bytes, kind.as_deref())
            .map_err(|reason| Error::Document { what, reason })?;
        // Of a tag, the registry's own word is all that tells a damaged manifest.
        check(&host, said.unwrap_or(digest), digest)?;
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
        if descriptor.size() > limit as u64 {
            return Err(Error::Document {
                what: format!("blob {}", descriptor.digest()),
                reason: format!("longer than {limit} bytes"),
            });
        }
        loop {
            let mut blob = self.blob(descriptor).await?;
            let mut bytes = Vec::new();
            while let Some(chunk) = blob.chunk().await? {
                bytes.extend_from_slice(&chunk);
            }
            let got = Digest::from_bytes(Sha256::digest(&bytes).into());
            match check(blob.host(), blob.digest(), got) {
                Ok(()) => return Ok(bytes),
                Err(error) if self.distrust(&blob.digest()) => {
                    tracing::warn!(%error, "asking the next host");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The stream of a blob, from the first host that has it. Its length is checked; its digest is the
    /// reader's to check, see [`Self::distrust`].
    ///
    /// # Errors
    /// What the hosts said, see [`Error`].
    pub async fn blob(&self, descriptor: &Descriptor) -> Result<Blob, Error> {
        self.resume(descriptor, None).await
    }

    /// The same from a byte on. A server without ranges, or with another version of it, starts over:
    /// [`Blob::start`] tells.
    ///
    /// # Errors
    /// What the hosts said, see [`Error`].
    pub async fn resume(
        &self,
        descriptor: &Descriptor,
        from: Option<Resume>,
    ) -> Result<Blob, Error> {
        let digest: Digest = descriptor.digest().to_string().parse().map_err(
            |error: crate::model::NotADigest| Error::Document {
                what: format!("a descriptor of {}", self.name()),
                reason: error.to_string(),
            },
        )?;
        Blob::open(self.clone(), digest, descriptor.size(), from).await
    }

    /// Says that the bytes that came for a blob do not have its digest: a host that sent all of them is not asked for
    /// it again, and of several that sent a part each one gets the chance to send it alone. Tells whether it is worth
    /// another try.
    pub fn distrust(&self, digest: &Digest) -> bool {
        let mut senders = self.senders();
        let Senders { sent, lied, alone } = &mut *senders;
        let sent = sent.remove(digest).unwrap_or_default();
        match sent.last() {
            // Another layer of the image has the same blob, and was quicker to say so.
            None => {}
            // Once only: a blob that two layers of an image share may have several senders again.
            Some(last) if sent.len() > 1 && !alone.contains_key(digest) => {
                alone.insert(*digest, *last);
            }
            Some(_) => lied.extend(sent.into_iter().map(|index| (*digest, index))),
        }
        self.candidates(false)
            .any(|index| !lied.contains(&(*digest, index)))
    }

    /// The hosts to ask for a blob, and whether one of them must send all of it.
    pub(crate) fn blob_hosts(&self, digest: &Digest) -> (Vec<usize>, bool) {
        let senders = self.senders();
        let trusted = |index: &usize| !senders.lied.contains(&(*digest, *index));
        let mut hosts: Vec<usize> = self.candidates(false).filter(trusted).collect();
        let first = senders.alone.get(digest);
        hosts.sort_by_key(|index| first.is_some_and(|first| first != index));
        (hosts, first.is_some())
    }

    /// Notes that a host sends bytes of a blob.
    pub(crate) fn sends(&self, digest: &Digest, index: usize) {
        let mut senders = self.senders();
        let sent = senders.sent.entry(*digest).or_default();
        sent.retain(|other| *other != index);
        sent.push(index);
    }

    /// Notes that a host wants to be left alone, whatever else there is to ask it for.
    pub(crate) fn leave_alone(&self, index: usize, status: u16, time: Duration) {
        let until = Instant::now() + time.min(LONGEST_REST);
        let mut busy = self.busy();
        if busy.get(&index).is_none_or(|busy| busy.until < until) {
            busy.insert(index, Busy { until, status });
        }
    }

    /// What a host said that still wants to be left alone.
    pub(crate) fn rests(&self, index: usize, what: &str) -> Option<Error> {
        let busy = self.busy();
        let Busy { until, status } = busy.get(&index)?;
        let left = until.saturating_duration_since(Instant::now());
        // Whole seconds, as it said them.
        let seconds = left.as_millis().div_ceil(1000);
        (seconds > 0).then(|| Error::Status {
            host: self.host(index).to_owned(),
            what: what.to_owned(),
            status: *status,
            detail: None,
            retry_after: Some(Duration::from_secs(
                u64::try_from(seconds).unwrap_or(u64::MAX),
            )),
        })
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, Busy>> {
        let busy = self.repository.busy.lock();
        busy.unwrap_or_else(PoisonError::into_inner)
    }

    fn senders(&self) -> std::sync::MutexGuard<'_, Senders> {
        let senders = self.repository.senders.lock();
        senders.unwrap_or_else(PoisonError::into_inner)
    }

    /// A blob from a byte on, of the version that was begun.
    pub(crate) async fn blob_at(
        &self,
        index: usize,
        digest: &Digest,
        offset: u64,
        version: Option<&HeaderValue>,
    ) -> Result<Answer, Error> {
        let what = format!("blob {digest} of {}", self.name());
        let request = Wanted {
            method: Method::GET,
            path: format!("blobs/{digest}"),
            manifest: false,
            offset,
            version,
            what: &what,
        };
        self.ask(index, &request).await
    }

    /// Notes a failure, and what is done about it.
    pub(crate) fn note(&self, rounds: &mut Rounds, index: usize, error: Error) {
        let text = error.to_string();
        let own = self.repository.hosts[index].endpoint.upstream;
        let absent = matches!(error, Error::NotFound { .. });
        rounds.failed(index, error);
        if own && absent {
            rounds.settle();
        }
        let next = rounds.plan();
        tracing::debug!(registry.host = %self.host(index), error = %text, next, "a host did not do");
        self.trace.failed(&text, next);
    }

    pub(crate) fn name(&self) -> String {
        self.repository.reference.name()
    }

    pub(crate) fn host(&self, index: usize) -> &str {
        &self.repository.hosts[index].endpoint.host
    }

    fn candidates(&self, resolve: bool) -> impl Iterator<Item = usize> {
        let hosts = &self.repository.hosts;
        (0..hosts.len()).filter(move |index| {
            let endpoint = &hosts[*index].endpoint;
            endpoint.pull && (endpoint.resolve || !resolve)
        })
    }
}

fn claimed(headers: &HeaderMap) -> Option<Digest> {
    headers.get(DIGEST)?.to_str().ok()?.parse().ok()
}

fn check(host: &str, want: Digest, got: Digest) -> Result<(), Error> {
    if want == got {
        return Ok(());
    }
    Err(Error::Mismatch {
        host: host.to_owned(),
        want,
        got,
    })
}
