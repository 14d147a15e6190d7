//! Networks made by CNI plugins.
//!
//! Before the first plugin runs, an attachment is written down: what network, with which plugins,
//! arguments and capabilities. ADD completes it with the result. So DEL, whenever it comes, uses
//! what ADD used, however the configuration has changed since, and a crash during ADD leaves an
//! attachment that says what to DEL.

mod args;
mod conf;
mod result;
mod version;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};

use self::conf::NetworkList;
use self::version::Version;
use self::watch::Watch;
use super::error::chain;
use super::exec::{self, Failure, PluginError, Verb};
use super::{Error, NetworkConfig, NetworkResult, NetworkStatus, POD_INTERFACE, PodNetwork};
use crate::blocking;
use crate::id::PodId;
use crate::network::record::{self, kept};
use crate::sys::netns;

/// STATUS and VERSION are questions: a plugin that takes longer has no good answer.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a plugin's file is looked for.
const FIND_LIMIT: Duration = Duration::from_secs(10);

/// A pod's attachment to a network, as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attachment {
    pod: PodId,
    netns: PathBuf,
    interface: String,
    network: NetworkList,
    arguments: String,
    capabilities: Map<String, Value>,
    /// `None` until ADD is through.
    result: Option<Value>,
}

/// Address ranges of this node's pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodCidrs {
    /// As the kubelet gives them.
    pub(in crate::network) cidrs: Vec<String>,
}

kept!(PodCidrs: "pod CIDRs" = PodCidrs { cidrs });
kept!(Attachment: "attachment" = Attachment { pod, netns, interface, network, arguments, capabilities, result });

/// How plugins are run.
#[derive(Clone, Debug)]
struct Plugins {
    dirs: Vec<PathBuf>,
    timeout: Duration,
}

/// What one run of a plugin is about.
#[derive(Clone, Copy, Debug)]
struct Call<'a> {
    verb: Verb,
    network: &'a NetworkList,
    timeout: Duration,
    attachment: Option<&'a Attachment>,
    previous: Option<&'a Value>,
    /// Attachments that GC must keep.
    valid: Option<&'a Value>,
}

/// The CNI side of a [`super::Network`].
#[derive(Debug)]
pub(super) struct Cni {
    plugins: Plugins,
    watch: Watch,
    attachments: PathBuf,
    dir: PathBuf,
    pod_cidrs: Mutex<PodCidrs>,
}

const POD_CIDRS: &str = "pod_cidrs";

impl Cni {
    /// Reads the configuration and begins to watch it.
    pub(super) fn open(config: &NetworkConfig) -> Result<Self, Error> {
        let dir = config.cache_dir.clone();
        let attachments = dir.join("attachments");
        std::fs::create_dir_all(&attachments)
            .map_err(Error::file("make directory", &attachments))?;
        let plugins = Plugins {
            dirs: config.cni_bin_dirs.clone(),
            timeout: config.plugin_timeout,
        };
        for name in record::names(&attachments).map_err(Error::file("list", &attachments))? {
            record::renew::<Attachment>(&attachments, &name);
        }
        record::renew::<PodCidrs>(&dir, POD_CIDRS);
        // One that cannot be read is as good as none: the kubelet says it again.
        let pod_cidrs: Option<PodCidrs> = record::read(&dir, POD_CIDRS).ok().flatten();
        let watch = Watch::start(config.cni_conf_dir.clone(), plugins.clone())?;
        Ok(Self {
            plugins,
            watch,
            attachments,
            dir,
            pod_cidrs: Mutex::new(pod_cidrs.unwrap_or_default()),
        })
    }

    /// Whether pods can be connected, from memory.
    pub(super) fn status(&self) -> NetworkStatus {
        self.watch.status()
    }

    /// The configuration in use, from memory.
    pub(super) fn describe(&self) -> Value {
        let network = self.watch.current().map(|network| {
            json!({
                "IFName": POD_INTERFACE,
                "Config": {
                    "Name": network.name,
                    "CNIVersion": network.version.to_string(),
                    "Plugins": network.plugins,
                },
            })
        });
        json!({
            "PluginDirs": self.plugins.dirs,
            "PluginConfDir": self.watch.dir(),
            "PluginMaxConfNum": 1,
            "Networks": network.into_iter().collect::<Vec<_>>(),
        })
    }

    /// Keeps the address ranges of this node's pods.
    pub(super) fn set_pod_cidrs(&self, cidrs: Vec<String>) -> Result<(), Error> {
        let path = self.dir.join(POD_CIDRS);
        let cidrs = PodCidrs { cidrs };
        record::write(&self.dir, POD_CIDRS, &cidrs).map_err(Error::file("write", path))?;
        *self
            .pod_cidrs
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = cidrs;
        Ok(())
    }

    /// ADD with every plugin of the network. After a failure everything is undone by DEL; what
    /// cannot be undone keeps its attachment.
    pub(super) async fn setup(&self, pod: &PodNetwork) -> Result<NetworkResult, Error> {
        let network = self.watch.network().await?;
        let cidrs = self
            .pod_cidrs
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .cidrs
            .clone();
        let mut attachment = Attachment {
            pod: pod.id.clone(),
            netns: pod.netns.clone(),
            interface: POD_INTERFACE.into(),
            network: NetworkList::clone(&network),
            arguments: args::arguments(pod)?,
            capabilities: args::capabilities(pod, &cidrs),
            result: None,
        };
        // Left over from an attempt that was cut short.
        self.teardown(&pod.id).await?;
        self.keep(&attachment).await?;
        crash_point!("cni.attachment.after");
        let done = match self.plugins.add(&mut attachment).await {
            Ok(found) => {
                crash_point!("cni.add.after");
                self.keep(&attachment).await.map(|()| found)
            }
            Err(error) => Err(error),
        };
        match done {
            Ok(found) => Ok(found),
            Err(error) => {
                // The plugins that were run may have left something, and so may the one that failed.
                match self.remove(&attachment).await {
                    Ok(()) => Err(error),
                    Err(undo) => Err(Error::Several(vec![error, undo])),
                }
            }
        }
    }

    /// DEL with every plugin, by what was written down at ADD. Without an attachment there is
    /// nothing to be done.
    pub(super) async fn teardown(&self, pod: &PodId) -> Result<(), Error> {
        match self.attachment(pod).await {
            Ok(None) => Ok(()),
            Ok(Some(attachment)) => self.remove(&attachment).await,
            // The record cannot be read: what is configured now is the best guess there is.
            Err(unreadable) => {
                let Some(network) = self.watch.current() else {
                    return Err(unreadable);
                };
                let attachment = Attachment {
                    pod: pod.clone(),
                    netns: PathBuf::new(),
                    interface: POD_INTERFACE.into(),
                    network: NetworkList::clone(&network),
                    arguments: format!("IgnoreUnknown=1;K8S_POD_INFRA_CONTAINER_ID={pod}"),
                    capabilities: Map::new(),
                    result: None,
                };
                self.remove(&attachment).await
            }
        }
    }

    async fn remove(&self, attachment: &Attachment) -> Result<(), Error> {
        self.plugins.del(attachment).await?;
        crash_point!("cni.delete.after");
        let (dir, name) = (self.attachments.clone(), attachment.pod.to_string());
        blocking::run("remove an attachment", move || {
            record::remove(&dir, &name).map_err(Error::file("remove", dir.join(&name)))
        })
        .await
    }

    async fn keep(&self, attachment: &Attachment) -> Result<(), Error> {
        let (dir, attachment) = (self.attachments.clone(), attachment.clone());
        blocking::run("keep an attachment", move || {
            let name = attachment.pod.as_str();
            record::write(&dir, name, &attachment).map_err(Error::file("write", dir.join(name)))
        })
        .await
    }

    async fn attachment(&self, pod: &PodId) -> Result<Option<Attachment>, Error> {
        let (dir, name) = (self.attachments.clone(), pod.to_string());
        blocking::run("read an attachment", move || {
            record::read(&dir, &name).map_err(Error::file("read", dir.join(&name)))
        })
        .await
    }

    /// The result that a pod was given.
    pub(super) async fn result(&self, pod: &PodId) -> Result<Option<NetworkResult>, Error> {
        let attachment = self.attachment(pod).await?;
        let network = attachment.and_then(|a| Some((a.network.name, a.result?)));
        network
            .map(|(name, raw)| network_result(&name, raw))
            .transpose()
    }

    /// CHECK with every plugin: whether the pod is still connected as ADD left it.
    pub(super) async fn check(&self, pod: &PodId) -> Result<(), Error> {
        let Some(attachment) = self.attachment(pod).await? else {
            return Err(Error::NotReady(format!(
                "pod {pod} has no attachment to a network"
            )));
        };
        let network = &attachment.network;
        if network.disable_check || network.version < Version::V0_4 {
            return Ok(());
        }
        for plugin in &network.plugins {
            let call = self.plugins.about(Verb::Check, &attachment);
            self.plugins.run(plugin, call).await?;
        }
        Ok(())
    }

    /// GC with every plugin of the configured network: everything but these pods is forgotten.
    pub(super) async fn gc(&self, pods: &[PodId]) -> Result<(), Error> {
        let Some(network) = self.watch.current() else {
            return Ok(());
        };
        if network.disable_gc || network.version < Version::V1_1 {
            return Ok(());
        }
        let valid = pods
            .iter()
            .map(|pod| json!({"containerID": pod, "ifname": POD_INTERFACE}))
            .collect();
        let mut errors = Vec::new();
        for plugin in &network.plugins {
            let call = Call {
                verb: Verb::Gc,
                network: &network,
                timeout: self.plugins.timeout,
                attachment: None,
                previous: None,
                valid: Some(&valid),
            };
            errors.extend(self.plugins.run(plugin, call).await.err());
        }
        Error::collect(errors)
    }

    /// VERSION of every plugin of the configured network: its type and what it speaks.
    pub(super) async fn versions(&self) -> Result<Vec<(String, Vec<String>)>, Error> {
        let network = self.watch.network().await?;
        let mut all = Vec::new();
        for plugin in &network.plugins {
            let call = Call::question(Verb::Version, &network);
            let output = self.plugins.run(plugin, call).await?;
            let supported = supported_versions(&output).ok_or_else(|| {
                let failure = Failure::BadOutput("it lists no supportedVersions".into());
                plugin_error(plugin, &network, Verb::Version, failure)
            })?;
            all.push((NetworkList::kind(plugin).to_owned(), supported));
        }
        Ok(all)
    }

    /// Pods that have an attachment. Blocks while a directory is read.
    pub(super) fn pods(&self) -> Result<Vec<PodId>, Error> {
        let names =
            record::names(&self.attachments).map_err(Error::file("list", &self.attachments))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }
}

fn network_result(network: &str, raw: Value) -> Result<NetworkResult, Error> {
    let ips = result::addresses(&raw, POD_INTERFACE).map_err(|why| Error::Result {
        network: network.into(),
        why,
    })?;
    Ok(NetworkResult { ips, raw })
}

fn supported_versions(output: &[u8]) -> Option<Vec<String>> {
    let answer: Value = serde_json::from_slice(output).ok()?;
    let list = answer.get("supportedVersions")?.as_array()?;
    Some(
        list.iter()
            .filter_map(Value::as_str)
            .map(Into::into)
            .collect(),
    )
}

impl<'a> Call<'a> {
    fn question(verb: Verb, network: &'a NetworkList) -> Self {
        Self {
            verb,
            network,
            timeout: QUESTION_TIMEOUT,
            attachment: None,
            previous: None,
            valid: None,
        }
    }
}

impl Plugins {
    fn about<'a>(&self, verb: Verb, attachment: &'a Attachment) -> Call<'a> {
        // DEL and CHECK are given the result of ADD since 0.4.0.
        let with_result = attachment.network.version >= Version::V0_4;
        Call {
            verb,
            network: &attachment.network,
            timeout: self.timeout,
            attachment: Some(attachment),
            previous: attachment.result.as_ref().filter(|_| with_result),
            valid: None,
        }
    }

    /// Every plugin in turn, each with the result of the one before it.
    async fn add(&self, attachment: &mut Attachment) -> Result<NetworkResult, Error> {
        let mut previous = None;
        for plugin in &attachment.network.plugins {
            let call = Call {
                previous: previous.as_ref(),
                ..self.about(Verb::Add, attachment)
            };
            let output = self.run(plugin, call).await?;
            crash_point!("cni.plugin.after");
            let parsed = result::parse(&output, attachment.network.version).map_err(|why| {
                let failure = Failure::BadOutput(why);
                plugin_error(plugin, &attachment.network, Verb::Add, failure)
            })?;
            previous = Some(parsed);
        }
        let raw = previous.unwrap_or_default();
        let found = network_result(&attachment.network.name, raw.clone());
        attachment.result = Some(raw);
        found
    }

    /// Every plugin in the opposite order; one that fails does not keep the others from it.
    async fn del(&self, attachment: &Attachment) -> Result<(), Error> {
        let mut errors = Vec::new();
        for plugin in attachment.network.plugins.iter().rev() {
            // ADD never came to its end, and this one cannot have run: there is nothing of it to release.
            if attachment.result.is_none()
                && let Err(Failure::Missing(_) | Failure::BadType) = self.find(plugin).await
            {
                continue;
            }
            let call = self.about(Verb::Del, attachment);
            errors.extend(self.run(plugin, call).await.err());
        }
        Error::collect(errors)
    }

    /// STATUS of every plugin; the words of the first one that is not ready.
    async fn status(&self, network: &NetworkList) -> Result<(), String> {
        for plugin in &network.plugins {
            let call = Call::question(Verb::Status, network);
            self.run(plugin, call)
                .await
                .map_err(|error| chain(&error))?;
        }
        Ok(())
    }

    async fn run(&self, plugin: &Map<String, Value>, call: Call<'_>) -> Result<Vec<u8>, Error> {
        let fail = |failure| plugin_error(plugin, call.network, call.verb, failure);
        let path = self.find(plugin).await.map_err(fail)?;
        let input = Value::Object(execution_config(plugin, &call)).to_string();
        exec::run(
            &path,
            &self.environment(&call),
            input.as_bytes(),
            call.timeout,
        )
        .await
        .map_err(fail)
    }

    /// Where a plugin is. Its directories may lie on a disk that hangs.
    async fn find(&self, plugin: &Map<String, Value>) -> Result<PathBuf, Failure> {
        let (kind, dirs) = (NetworkList::kind(plugin).to_owned(), self.dirs.clone());
        let find = blocking::run("look for a CNI plugin", move || exec::find(&kind, &dirs));
        let Ok(found) = tokio::time::timeout(FIND_LIMIT, find).await else {
            let why = format!(
                "no answer of {:?} in {FIND_LIMIT:?}: is its disk hanging?",
                self.dirs
            );
            return Err(Failure::Run(std::io::Error::other(why)));
        };
        found
    }

    fn environment(&self, call: &Call<'_>) -> Vec<(&'static str, String)> {
        let dirs: Vec<_> = self.dirs.iter().map(|dir| dir.to_string_lossy()).collect();
        let mut environment = vec![
            ("CNI_COMMAND", call.verb.to_string()),
            ("CNI_PATH", dirs.join(":")),
        ];
        if let Some(attachment) = call.attachment {
            // DEL of a namespace that is gone: "the runtime may leave it empty".
            let gone = call.verb == Verb::Del && !netns::is_pinned(&attachment.netns);
            let netns = if gone {
                Path::new("")
            } else {
                &attachment.netns
            };
            environment.extend([
                ("CNI_CONTAINERID", attachment.pod.to_string()),
                ("CNI_NETNS", netns.to_string_lossy().into_owned()),
                ("CNI_IFNAME", attachment.interface.clone()),
                ("CNI_ARGS", attachment.arguments.clone()),
            ]);
        }
        environment
    }
}

fn plugin_error(
    plugin: &Map<String, Value>,
    network: &NetworkList,
    verb: Verb,
    failure: Failure,
) -> Error {
    Error::Plugin(Box::new(PluginError {
        plugin: NetworkList::kind(plugin).into(),
        network: network.name.clone(),
        verb,
        failure,
    }))
}

/// The configuration as a plugin is given it (CNI 1.1.0, section 3, "Deriving execution
/// configuration"): "capabilities: Must not be set", but what was asked for by them is.
fn execution_config(plugin: &Map<String, Value>, call: &Call<'_>) -> Map<String, Value> {
    let mut config = plugin.clone();
    let declared = config.remove("capabilities");
    config.remove("runtimeConfig");
    config.remove("cniVersions");
    config.insert("name".into(), call.network.name.clone().into());
    config.insert("cniVersion".into(), call.network.version.to_string().into());
    if let (Some(Value::Object(declared)), Some(attachment)) = (declared, call.attachment) {
        let given: Map<_, _> = attachment
            .capabilities
            .iter()
            .filter(|(name, _)| declared.get(*name) == Some(&Value::Bool(true)))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !given.is_empty() {
            config.insert("runtimeConfig".into(), given.into());
        }
    }
    config.extend(
        call.previous
            .map(|result| ("prevResult".into(), result.clone())),
    );
    config.extend(
        call.valid
            .map(|list| ("cni.dev/valid-attachments".into(), list.clone())),
    );
    config
}

/// A network that is shared with whoever uses it.
type SharedNetwork = Arc<NetworkList>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::golden;

    #[test]
    fn attachments_are_read_as_each_version_wrote_them() {
        for found in golden::check::<Attachment>("attachments") {
            let [attachment] = &found.into_values().collect::<Vec<_>>()[..] else {
                panic!("another number of attachments");
            };
            assert_eq!(attachment.network.plugins.len(), 2);
            assert!(attachment.result.is_some() && attachment.arguments.contains("K8S_POD_NAME"));
        }
        for found in golden::check::<PodCidrs>("pod_cidrs") {
            assert_eq!(found["pod_cidrs"].cidrs, ["10.1.0.0/24", "fd00:1::/64"]);
        }
    }
}
