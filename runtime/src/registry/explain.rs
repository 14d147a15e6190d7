//! What a pull would do, without pulling.

use std::sync::Arc;

use oci_spec::image::Descriptor;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::certificate::bundle;
use super::session::{Host, Session};
use super::trace::{Trace, shown};
use super::{Error, MAX_CONFIG, Platform, Reference, Registry, Resolved};
use crate::json;
use crate::model::{ExplainHost, ExplainImage, Explanation, RegistryAuth, chain};

/// Goes the way of a pull up to the first byte of the first layer, and tells each step.
pub async fn explain(
    registry: &Arc<Registry>,
    reference: &Reference,
    auth: Option<&RegistryAuth>,
) -> Explanation {
    let mut told = Explanation {
        reference: reference.to_string(),
        ..Explanation::default()
    };
    let trace = Trace::recording();
    let session = match registry.open_traced(reference, auth, trace.clone()).await {
        Ok(session) => session,
        Err(error) => {
            told.error = Some(chain(&error));
            return told;
        }
    };
    let hosts = &session.repository.hosts;
    told.hosts_file = hosts.first().and_then(|host| host.endpoint.file.clone());
    told.hosts = hosts.iter().map(|host| place(registry, host)).collect();
    match image(&session, reference).await {
        Ok(image) => told.image = Some(image),
        Err(error) => told.error = Some(chain(&error)),
    }
    told.steps = trace.take();
    told
}

/// What a configuration says of the layers of its image.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Told {
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RootFs {
    diff_ids: Vec<IgnoredAny>,
}

fn place(registry: &Registry, host: &Host) -> ExplainHost {
    let endpoint = &host.endpoint;
    let role = match endpoint.upstream {
        true => "server",
        false => "mirror",
    };
    let mut capabilities = Vec::new();
    for (has, name) in [(endpoint.pull, "pull"), (endpoint.resolve, "resolve")] {
        capabilities.extend(has.then(|| name.to_owned()));
    }
    let proxy = registry.clients.proxy(&endpoint.tls, &endpoint.base);
    let proxy = match proxy {
        Ok(proxy) => proxy.map(|proxy| match proxy.parse() {
            Ok(url) => shown(&url).trim_end_matches('/').to_owned(),
            Err(_) => "not a URL".to_owned(),
        }),
        Err(why) => Some(why),
    };
    ExplainHost {
        url: shown(&endpoint.base),
        role: role.to_owned(),
        capabilities,
        tls: trust(host),
        proxy,
        credentials: host.login.source(),
        headers: endpoint.headers.keys().map(ToString::to_string).collect(),
    }
}

fn trust(host: &Host) -> String {
    let tls = &host.endpoint.tls;
    if host.endpoint.base.scheme() != "https" {
        return "none: plain HTTP".to_owned();
    }
    let mut text = match (tls.skip_verify, tls.ca.len()) {
        (true, _) => "not verified (skip_verify)".to_owned(),
        (false, 0) => "the system's authorities".to_owned(),
        (false, more) => format!("the system's authorities and {more} of the file"),
    };
    if !tls.identities.is_empty() {
        text.push_str(", with a client certificate");
    }
    for file in &tls.ca {
        let others = bundle(&file.pem).map(|(_, others)| others);
        for why in others.unwrap_or_default() {
            text.push_str(&format!(
                "; {}: {why}, and is passed over",
                file.path.display()
            ));
        }
    }
    text
}

async fn image(session: &Session, reference: &Reference) -> Result<ExplainImage, Error> {
    let resolved = session.resolve(&reference.target()).await?;
    let config = resolved.manifest.config();
    let id = config.digest().to_string();
    let config = session.document(config, MAX_CONFIG).await?;
    let refused = |reason| Error::Document {
        what: format!("image configuration {id}"),
        reason,
    };
    let platform = Platform::of_configuration(&config).map_err(refused)?;
    resolved.fits(&platform).map_err(refused)?;
    let told: Told = json::from_slice(&config).unwrap_or_default();
    let Resolved {
        documents,
        mut manifest,
        ..
    } = resolved;
    manifest.count_layers(told.rootfs.diff_ids.len());
    // A mirror with manifests and without layers is a common fault: one layer tells.
    if let Some(layer) = manifest.layers().iter().max_by_key(|layer| layer.size()) {
        session.blob(layer).await?;
    }
    let digest_at = |document: Option<&(crate::model::Digest, Vec<u8>)>| {
        document
            .map(|(digest, _)| digest.to_string())
            .unwrap_or_default()
    };
    let layers = manifest.layers().iter().map(Descriptor::size);
    let layers = layers.fold(0, u64::saturating_add);
    let own = documents.last().map_or(0, |(_, bytes)| bytes.len());
    Ok(ExplainImage {
        digest: digest_at(documents.first()),
        manifest: digest_at(documents.last()),
        id,
        platform: platform.plain(),
        layers: manifest.layers().len(),
        size: layers.saturating_add((own + config.len()) as u64),
        stored: None,
    })
}
