//! The configuration files of an instance.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use super::{Instance, Kind, Net};
use crate::paths;

/// Names below root and state that hold images: they stay when pods go, and caches may grow.
pub(super) const IMAGE_NAMES: [&str; 11] = [
    // The pod CIDR that UpdateRuntimeConfig gave, kept over restarts.
    "cni/pod_cidrs",
    "blobs",
    "layers",
    "images",
    "index",
    "partial",
    "io.containerd.content",
    "io.containerd.metadata",
    "io.containerd.snapshotter",
    "io.containerd.grpc.v1.introspection",
    "tmpmounts",
];

impl Instance {
    pub(super) fn write_config(&self) -> Result<()> {
        for folder in ["root", "state", "cni", "cni-leases", "netns", "logs"] {
            fs::create_dir_all(self.folder().join(folder))?;
        }
        let text = match self.options.kind {
            Kind::Berth => self.berth_config()?,
            Kind::Containerd => self.containerd_config()?,
        };
        fs::write(self.config_file(), text)?;
        let builtin = self.options.net == Net::Builtin && self.options.kind == Kind::Berth;
        if self.options.net != Net::None && !builtin {
            fs::write(self.folder().join("cni/10-bt.conflist"), self.conflist()?)?;
            self.link_plugins()?;
        }
        Ok(())
    }

    /// The folder of the plugins, which are links, so that a test can take one away.
    #[must_use]
    pub fn plugins(&self) -> PathBuf {
        self.folder().join("plugins")
    }

    fn link_plugins(&self) -> Result<()> {
        fs::create_dir_all(self.plugins())?;
        for plugin in fs::read_dir(paths::cni_bin_dir()?)? {
            let plugin = plugin?;
            let link = self.plugins().join(plugin.file_name());
            if fs::symlink_metadata(&link).is_err() {
                symlink(plugin.path(), link)?;
            }
        }
        Ok(())
    }

    fn berth_config(&self) -> Result<String> {
        let folder = self.folder().display();
        let mut text = format!(
            "root = \"{folder}/root\"\nstate = \"{folder}/state\"\nlisten = \"{folder}/cri.sock\"\n\
             instance = \"{name}\"\n\n[network]\n\
             cni_conf_dir = \"{folder}/cni\"\nnetns_dir = \"{folder}/netns\"\n",
            name = self.name,
        );
        if self.options.net == Net::Builtin {
            let _ = writeln!(text, "builtin = \"{}\"", self.subnet);
        } else {
            let _ = writeln!(text, "cni_bin_dirs = [\"{}\"]", self.plugins().display());
        }
        let _ = writeln!(text, "\n[cgroup]\nshims = \"{}-shims\"", self.name);
        let hosts = self.options.hosts.display();
        let _ = writeln!(text, "\n[images]\nregistry_hosts_dir = \"{hosts}\"");
        text.push_str(&self.options.extra);
        Ok(text)
    }

    fn containerd_config(&self) -> Result<String> {
        let folder = self.folder().display();
        Ok(format!(
            r#"version = 4
root = "{folder}/root"
state = "{folder}/state"
imports = []
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp", "io.containerd.ttrpc.v1.otelttrpc"]

[plugins.'io.containerd.server.v1.grpc']
  address = "{folder}/cri.sock"

[plugins.'io.containerd.server.v1.ttrpc']
  address = "{folder}/ttrpc.sock"

[plugins.'io.containerd.cri.v1.images']
  pinned_images = {{ sandbox = "registry.k8s.io/pause:3.10" }}
  registry = {{ config_path = "{hosts}" }}

[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  cni = {{ bin_dirs = ["{cni}"], conf_dir = "{folder}/cni" }}

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  options = {{ BinaryName = "{runc}" }}
"#,
            hosts = self.options.hosts.display(),
            cni = self.plugins().display(),
            runc = paths::tool("runc")?.display(),
        ))
    }

    fn conflist(&self) -> Result<Vec<u8>> {
        let backend = if self.options.net == Net::CniIptables {
            "iptables"
        } else {
            "nftables"
        };
        let list = json!({
            "cniVersion": "1.0.0",
            "name": self.name,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": self.name,
                    "isGateway": true,
                    "ipMasq": true,
                    "ipMasqBackend": backend,
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": self.folder().join("cni-leases"),
                        "ranges": [[{ "subnet": self.subnet.to_string() }]],
                        "routes": [{ "dst": "0.0.0.0/0" }],
                    },
                },
                {
                    "type": "portmap",
                    "backend": backend,
                    "snat": true,
                    "capabilities": { "portMappings": true },
                },
            ],
        });
        Ok(serde_json::to_vec_pretty(&list)?)
    }
}
