//! Makes OCI and Docker images from nothing: layers, configs, manifests and indexes with the same bytes every time.

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::{Context as _, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The time stamp of every file and config (2024-01-01T00:00:00Z), so that the bytes never change.
const EPOCH: u64 = 1_704_067_200;
const CREATED: &str = "2024-01-01T00:00:00Z";

/// `sha256:` and the lower-case hex digest of the bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// How a layer is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pack {
    /// gzip
    Gzip,
    /// Zstandard
    Zstd,
    /// as it is
    Plain,
}

impl Pack {
    /// The archive, packed. What was packed in parts can be joined.
    ///
    /// # Errors
    /// When packing fails.
    pub fn packed(self, archive: &[u8]) -> Result<Vec<u8>> {
        Ok(match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
                encoder.write_all(archive)?;
                encoder.finish()?
            }
            Self::Zstd => zstd::encode_all(archive, 3)?,
            Self::Plain => archive.to_vec(),
        })
    }
}

/// Which of the two manifest formats is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// OCI image format 1
    Oci,
    /// Docker image manifest V2, schema 2
    Docker,
}

impl Flavor {
    fn manifest(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    fn index(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer(self, pack: Pack) -> &'static str {
        match (self, pack) {
            (Self::Oci, Pack::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Self::Oci, Pack::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Self::Oci, Pack::Plain) => "application/vnd.oci.image.layer.v1.tar",
            (Self::Docker, Pack::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Self::Docker, Pack::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
            (Self::Docker, Pack::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
        }
    }
}

/// Bytes with their name and type.
#[derive(Clone, Debug)]
pub struct Blob {
    /// media type
    pub media_type: String,
    /// digest of the bytes
    pub digest: String,
    /// the bytes
    pub bytes: Vec<u8>,
}

impl Blob {
    /// A blob of the bytes.
    #[must_use]
    pub fn new(media_type: &str, bytes: Vec<u8>) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: digest(&bytes),
            bytes,
        }
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

/// A tar archive in the making.
pub struct Tree {
    tar: tar::Builder<Vec<u8>>,
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tree({} bytes)", self.tar.get_ref().len())
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            tar: tar::Builder::new(Vec::new()),
        }
    }
}

impl Tree {
    fn header(kind: tar::EntryType, mode: u32, owner: (u64, u64), size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(EPOCH);
        header.set_size(size);
        header
    }

    /// A directory, owned by root.
    ///
    /// # Errors
    /// When the path cannot be put into a tar header.
    pub fn dir(&mut self, path: &str, mode: u32) -> Result<&mut Self> {
        let mut header = Self::header(tar::EntryType::Directory, mode, (0, 0), 0);
        self.tar
            .append_data(&mut header, format!("{path}/"), std::io::empty())?;
        Ok(self)
    }

    /// A file, owned by root.
    ///
    /// # Errors
    /// When the path cannot be put into a tar header.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<&mut Self> {
        self.file_of(path, mode, (0, 0), content)
    }

    /// A file with an owner.
    ///
    /// # Errors
    /// When the path cannot be put into a tar header.
    pub fn file_of(
        &mut self,
        path: &str,
        mode: u32,
        owner: (u64, u64),
        content: &[u8],
    ) -> Result<&mut Self> {
        let size = u64::try_from(content.len())?;
        let mut header = Self::header(tar::EntryType::Regular, mode, owner, size);
        self.tar.append_data(&mut header, path, content)?;
        Ok(self)
    }

    /// A second name of an earlier file.
    ///
    /// # Errors
    /// When a path cannot be put into a tar header.
    pub fn hard_link(&mut self, path: &str, target: &str) -> Result<&mut Self> {
        let mut header = Self::header(tar::EntryType::Link, 0o755, (0, 0), 0);
        self.tar.append_link(&mut header, path, target)?;
        Ok(self)
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// When a path cannot be put into a tar header.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<&mut Self> {
        let mut header = Self::header(tar::EntryType::Symlink, 0o777, (0, 0), 0);
        self.tar.append_link(&mut header, path, target)?;
        Ok(self)
    }

    /// The finished layer.
    ///
    /// # Errors
    /// When packing fails.
    pub fn layer(self, pack: Pack) -> Result<Layer> {
        Layer::of(self.archive()?, pack)
    }

    /// The finished archive.
    ///
    /// # Errors
    /// When finishing fails.
    pub fn archive(self) -> Result<Vec<u8>> {
        self.tar.into_inner().context("finishing a layer")
    }

    /// What is there of it, without an end: another archive may follow.
    #[must_use]
    pub fn beginning(&self) -> &[u8] {
        self.tar.get_ref()
    }
}

/// A packed layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// digest of the plain archive
    pub diff_id: String,
    /// how it is packed
    pub pack: Pack,
    /// digest of the packed archive
    pub digest: String,
    /// the packed archive
    pub bytes: Vec<u8>,
}

impl Layer {
    /// A layer of the plain archive.
    ///
    /// # Errors
    /// When packing fails.
    pub fn of(tar: Vec<u8>, pack: Pack) -> Result<Self> {
        let diff_id = digest(&tar);
        let bytes = match pack {
            Pack::Plain => tar,
            pack => pack.packed(&tar)?,
        };
        Ok(Layer {
            diff_id,
            pack,
            digest: digest(&bytes),
            bytes,
        })
    }
}

/// What goes into an image.
#[derive(Clone, Debug, Default)]
pub struct Recipe {
    /// layers, lowest first
    pub layers: Vec<Layer>,
    /// `USER`
    pub user: String,
    /// `ENTRYPOINT`
    pub entrypoint: Vec<String>,
    /// `CMD`
    pub cmd: Vec<String>,
    /// `ENV`, as NAME=VALUE
    pub env: Vec<String>,
    /// `WORKDIR`
    pub working_dir: String,
    /// `STOPSIGNAL`
    pub stop_signal: String,
    /// `LABEL`
    pub labels: BTreeMap<String, String>,
}

impl Recipe {
    /// The image for this machine's architecture.
    ///
    /// # Errors
    /// When its documents cannot be written.
    pub fn build(&self, flavor: Flavor) -> Result<Image> {
        self.build_for(flavor, go_arch())
    }

    /// The image for an architecture named as Go names it.
    ///
    /// # Errors
    /// When its documents cannot be written.
    pub fn build_for(&self, flavor: Flavor, arch: &str) -> Result<Image> {
        let config = json!({
            "created": CREATED,
            "architecture": arch,
            "os": "linux",
            "config": {
                "User": self.user,
                "Env": self.env_with_path(),
                "Entrypoint": self.entrypoint,
                "Cmd": self.cmd,
                "WorkingDir": self.working_dir,
                "StopSignal": self.stop_signal,
                "Labels": self.labels,
            },
            "rootfs": {
                "type": "layers",
                "diff_ids": self.layers.iter().map(|layer| layer.diff_id.as_str()).collect::<Vec<_>>(),
            },
            "history": self.layers.iter().map(|_| json!({ "created": CREATED })).collect::<Vec<_>>(),
        });
        let config = Blob::new(flavor.config(), serde_json::to_vec(&config)?);
        let layers: Vec<Blob> = self
            .layers
            .iter()
            .map(|layer| Blob {
                media_type: flavor.layer(layer.pack).to_owned(),
                digest: layer.digest.clone(),
                bytes: layer.bytes.clone(),
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": flavor.manifest(),
            "config": config.descriptor(),
            "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        let manifest = Blob::new(flavor.manifest(), serde_json::to_vec(&manifest)?);
        let mut blobs = layers;
        blobs.push(config);
        Ok(Image {
            blobs,
            manifests: vec![manifest.clone()],
            top: manifest,
        })
    }

    fn env_with_path(&self) -> Vec<String> {
        let mut env =
            vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
        env.extend(self.env.iter().cloned());
        env
    }
}

/// An image, or an index of several, ready for a registry or an archive.
#[derive(Clone, Debug)]
pub struct Image {
    /// layers and configs
    pub blobs: Vec<Blob>,
    /// every manifest, the top one last
    pub manifests: Vec<Blob>,
    /// what a tag points at
    pub top: Blob,
}

impl Image {
    /// An index of images, each for an architecture named as Go names it.
    ///
    /// # Errors
    /// When the index cannot be written.
    pub fn index(flavor: Flavor, parts: &[(&str, &Self)]) -> Result<Self> {
        let entries: Vec<Value> = parts
            .iter()
            .map(|(arch, image)| {
                let mut entry = image.top.descriptor();
                entry["platform"] = json!({ "architecture": arch, "os": "linux" });
                entry
            })
            .collect();
        let index =
            json!({ "schemaVersion": 2, "mediaType": flavor.index(), "manifests": entries });
        let top = Blob::new(flavor.index(), serde_json::to_vec(&index)?);
        let mut blobs = Vec::new();
        let mut manifests = Vec::new();
        for (_, image) in parts {
            blobs.extend(image.blobs.iter().cloned());
            manifests.extend(image.manifests.iter().cloned());
        }
        manifests.push(top.clone());
        Ok(Self {
            blobs,
            manifests,
            top,
        })
    }

    /// The same image with another configuration and manifest: `change` gets both as JSON, and the manifest then names
    /// the changed configuration.
    ///
    /// # Errors
    /// When a document cannot be read or written, or the image is an index.
    pub fn changed(&self, change: impl FnOnce(&mut Value, &mut Value)) -> Result<Self> {
        let mut blobs = self.blobs.clone();
        let config = blobs.last_mut().context("no configuration")?;
        let mut text: Value = serde_json::from_slice(&config.bytes)?;
        let mut manifest: Value = serde_json::from_slice(&self.top.bytes)?;
        change(&mut text, &mut manifest);
        *config = Blob::new(&config.media_type, serde_json::to_vec(&text)?);
        manifest["config"] = config.descriptor();
        let top = Blob::new(&self.top.media_type, serde_json::to_vec(&manifest)?);
        Ok(Self {
            blobs,
            manifests: vec![top.clone()],
            top,
        })
    }

    /// An OCI image layout in a tar archive; the reference becomes its name.
    ///
    /// # Errors
    /// When the archive cannot be written.
    pub fn oci_archive(&self, reference: &str) -> Result<Vec<u8>> {
        let mut entry = self.top.descriptor();
        entry["annotations"] = json!({
            "io.containerd.image.name": reference,
            "org.opencontainers.image.ref.name": reference.rsplit(':').next().unwrap_or(reference),
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": Flavor::Oci.index(),
            "manifests": [entry],
        });
        let mut tree = Tree::default();
        tree.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        tree.file("index.json", 0o644, &serde_json::to_vec(&index)?)?;
        tree.dir("blobs", 0o755)?.dir("blobs/sha256", 0o755)?;
        let mut seen = std::collections::BTreeSet::new();
        for blob in self.blobs.iter().chain(&self.manifests) {
            if seen.insert(&blob.digest) {
                let hex = blob.digest.trim_start_matches("sha256:");
                tree.file(&format!("blobs/sha256/{hex}"), 0o644, &blob.bytes)?;
            }
        }
        tree.tar.into_inner().context("finishing an OCI archive")
    }

    /// What `docker save` writes (for an image of one platform).
    ///
    /// # Errors
    /// When the archive cannot be written.
    pub fn docker_archive(&self, references: &[&str]) -> Result<Vec<u8>> {
        let (config, layers) = self
            .blobs
            .split_last()
            .context("an image without a config")?;
        let name = |blob: &Blob| blob.digest.trim_start_matches("sha256:").to_owned();
        let manifest = json!([{
            "Config": format!("{}.json", name(config)),
            "RepoTags": references,
            "Layers": layers.iter().map(|layer| format!("{}/layer.tar", name(layer))).collect::<Vec<_>>(),
        }]);
        let mut tree = Tree::default();
        tree.file(&format!("{}.json", name(config)), 0o644, &config.bytes)?;
        for layer in layers {
            tree.dir(&name(layer), 0o755)?;
            tree.file(&format!("{}/layer.tar", name(layer)), 0o644, &layer.bytes)?;
        }
        tree.file("manifest.json", 0o644, &serde_json::to_vec(&manifest)?)?;
        tree.tar.into_inner().context("finishing a Docker archive")
    }
}

/// This machine's architecture as Go names it.
#[must_use]
pub fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Result<Recipe> {
        let mut tree = Tree::default();
        tree.dir("etc", 0o755)?
            .file("etc/passwd", 0o644, b"root:x:0:0::/:/bin/sh\n")?;
        Ok(Recipe {
            layers: vec![tree.layer(Pack::Gzip)?],
            ..Recipe::default()
        })
    }

    #[test]
    fn the_bytes_are_the_same_every_time() {
        let first = recipe().unwrap().build(Flavor::Oci).unwrap();
        let second = recipe().unwrap().build(Flavor::Oci).unwrap();
        assert_eq!(first.top.digest, second.top.digest);
    }

    #[test]
    fn an_index_names_each_platform() {
        let image = recipe().unwrap().build(Flavor::Oci).unwrap();
        let index = Image::index(Flavor::Oci, &[("amd64", &image), ("arm64", &image)]).unwrap();
        let text: Value = serde_json::from_slice(&index.top.bytes).unwrap();
        assert_eq!(text["manifests"][1]["platform"]["architecture"], "arm64");
        assert_eq!(text["manifests"][0]["digest"], image.top.digest);
    }
}
