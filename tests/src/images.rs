//! The images that critest, our own tests and the benchmark run: made on the spot from busybox, nginx and two small
//! programs of ours, and pushed to a local registry under the names that the public ones have.

pub mod files;
pub mod large;
pub mod odd;
pub mod trees;

use anyhow::{Context as _, Result};

use crate::oci::{Flavor, Image, Layer, Pack, Recipe, Tree, go_arch};
use crate::registry::Client;

/// What most tests run.
pub const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";
/// A web server on port 80.
pub const NGINX: &str = "registry.k8s.io/e2e-test-images/nginx:1.14-2";
/// busybox with the log producer `/bin/loglines`.
pub const LOGLINES: &str = "berth.test/loglines:1";
/// busybox as a zstd layer.
pub const ZSTD: &str = "berth.test/busybox:zstd";
/// busybox as a layer that is not packed.
pub const PLAIN: &str = "berth.test/busybox:plain";
/// busybox in the Docker formats: a manifest list of two platforms.
pub const DOCKER_LIST: &str = "berth.test/busybox:docker-list";
/// busybox in an OCI index of two platforms; the other one is not runnable here.
pub const OCI_INDEX: &str = "berth.test/busybox:oci-index";
/// An image whose config sets everything: user, environment, entrypoint, command, folder, stop signal.
pub const CONFIGURED: &str = "berth.test/configured:1";
/// Users and groups for the supplemental groups policies.
pub const GROUPS: &str = "gcr.io/k8s-staging-cri-tools/test-image-predefined-group";
/// A set-user-id root program that prints the effective uid.
pub const NONEWPRIVS: &str = "registry.k8s.io/e2e-test-images/nonewprivs:1.3";

const E2E: &str = "e2e-test-images";
const STAGING: &str = "k8s-staging-cri-tools";

/// The layers that several images share, packed once.
#[derive(Debug)]
pub struct Kit {
    busybox: Layer,
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

impl Kit {
    /// Packs the busybox layer.
    ///
    /// # Errors
    /// When busybox is not built.
    pub fn new() -> Result<Self> {
        Ok(Self {
            busybox: files::busybox_tree()?.layer(Pack::Gzip)?,
        })
    }

    fn recipe(&self, upper: Option<Tree>) -> Result<Recipe> {
        let mut layers = vec![self.busybox.clone()];
        if let Some(tree) = upper {
            layers.push(tree.layer(Pack::Gzip)?);
        }
        Ok(Recipe {
            layers,
            cmd: words(&["sh"]),
            ..Recipe::default()
        })
    }

    /// busybox alone.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn busybox(&self) -> Result<Image> {
        self.recipe(None)?.build(Flavor::Oci)
    }

    /// busybox with a file that makes it an image of its own.
    fn marked(&self, mark: &str) -> Result<Image> {
        let mut tree = Tree::default();
        tree.file(mark, 0o644, mark.as_bytes())?;
        self.recipe(Some(tree))?.build(Flavor::Oci)
    }

    fn with_user(&self, user: &str) -> Result<Image> {
        Recipe {
            user: user.to_owned(),
            ..self.recipe(None)?
        }
        .build(Flavor::Oci)
    }

    fn nonewprivs(&self) -> Result<Image> {
        let mut tree = Tree::default();
        tree.file("nnp", 0o4755, &files::compile("nonewprivs")?)?;
        Recipe {
            entrypoint: words(&["/nnp"]),
            cmd: Vec::new(),
            ..self.recipe(Some(tree))?
        }
        .build(Flavor::Oci)
    }

    /// busybox' web server, saying its name in the log.
    fn httpd(&self) -> Result<Image> {
        let mut tree = Tree::default();
        tree.dir("www", 0o755)?
            .file("www/index.html", 0o644, b"<h1>It works!</h1>\n")?;
        let serve = "echo httpd: serving /www on port 80; exec httpd -f -v -p 80 -h /www";
        Recipe {
            cmd: words(&["sh", "-c", serve]),
            ..self.recipe(Some(tree))?
        }
        .build(Flavor::Oci)
    }

    fn nginx(&self, port: u16) -> Result<Image> {
        let tree = files::nginx_tree(port)?;
        Recipe {
            cmd: words(&["nginx", "-g", "daemon off;"]),
            stop_signal: "SIGQUIT".to_owned(),
            ..self.recipe(Some(tree))?
        }
        .build(Flavor::Oci)
    }

    fn predefined_group(&self) -> Result<Image> {
        let mut tree = Tree::default();
        tree.dir("etc", 0o755)?
            .file(
                "etc/passwd",
                0o644,
                files::passwd("default-user:x:1000:1000::/home:/bin/sh\n").as_bytes(),
            )?
            .file(
                "etc/group",
                0o644,
                files::group("default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")
                    .as_bytes(),
            )?;
        Recipe {
            user: "1000".to_owned(),
            ..self.recipe(Some(tree))?
        }
        .build(Flavor::Oci)
    }

    /// The version is a label too: critest counts the tags of 3.9, which must not share its id with another.
    fn pause(version: &str) -> Result<Image> {
        let mut tree = Tree::default();
        tree.file("pause", 0o755, &files::compile("pause")?)?;
        Recipe {
            layers: vec![tree.layer(Pack::Gzip)?],
            entrypoint: words(&["/pause"]),
            user: "65535:65535".to_owned(),
            labels: [("version".to_owned(), version.to_owned())].into(),
            ..Recipe::default()
        }
        .build(Flavor::Oci)
    }

    fn loglines(&self) -> Result<Image> {
        let mut tree = Tree::default();
        tree.dir("bin", 0o755)?
            .file("bin/loglines", 0o755, &files::compile("loglines")?)?;
        self.recipe(Some(tree))?.build(Flavor::Oci)
    }

    fn configured(&self) -> Result<Image> {
        let mut tree = Tree::default();
        tree.dir("etc", 0o755)?
            .file(
                "etc/passwd",
                0o644,
                files::passwd("app:x:1234:1235::/srv:/bin/sh\n").as_bytes(),
            )?
            .file(
                "etc/group",
                0o644,
                files::group("app:x:1235:\nextra:x:1236:app\n").as_bytes(),
            )?
            .dir("srv", 0o755)?;
        Recipe {
            user: "app".to_owned(),
            entrypoint: words(&["/bin/sh", "-c"]),
            cmd: words(&["echo from-image $GREETING; pwd; id; sleep 1000"]),
            env: words(&["GREETING=hello", "KEEP=image"]),
            working_dir: "/srv".to_owned(),
            stop_signal: "SIGUSR1".to_owned(),
            labels: [("maker".to_owned(), "berth".to_owned())].into(),
            ..self.recipe(Some(tree))?
        }
        .build(Flavor::Oci)
    }

    /// The label makes it an image with an id of its own: the config does not know how its layers are packed.
    fn repacked(pack: Pack) -> Result<Image> {
        Recipe {
            layers: vec![files::busybox_tree()?.layer(pack)?],
            cmd: words(&["sh"]),
            labels: [("pack".to_owned(), format!("{pack:?}"))].into(),
            ..Recipe::default()
        }
        .build(Flavor::Oci)
    }

    /// An index whose entry for another architecture comes first and holds no program.
    fn two_platforms(&self, flavor: Flavor) -> Result<Image> {
        let other = if go_arch() == "amd64" {
            "arm64"
        } else {
            "amd64"
        };
        let mut tree = Tree::default();
        tree.file("wrong-platform", 0o644, b"")?;
        let wrong = Recipe {
            layers: vec![tree.layer(Pack::Gzip)?],
            ..Recipe::default()
        }
        .build_for(flavor, other)?;
        let labels = [("flavor".to_owned(), format!("{flavor:?}"))].into();
        let right = Recipe {
            labels,
            ..self.recipe(None)?
        }
        .build(flavor)?;
        Image::index(flavor, &[(other, &wrong), (go_arch(), &right)])
    }
}

/// Builds what `make difftest` runs and pushes it.
///
/// # Errors
/// When a tool is missing or the registry refuses something.
pub async fn push_odd(client: Client) -> Result<()> {
    odd::push(client, Kit::new()?.busybox).await?;
    // The sandbox of containerd.
    client.push("pause", &["3.10"], &Kit::pause("3.10")?).await
}

/// Builds everything but the large image and pushes it.
///
/// # Errors
/// When a tool is missing or the registry refuses something.
pub async fn push_all(client: Client) -> Result<()> {
    let kit = tokio::task::spawn_blocking(Kit::new)
        .await?
        .context("building the images")?;
    push_e2e(client, &kit).await?;
    push_staging(client, &kit).await?;
    push_own(client, &kit).await
}

async fn push_e2e(client: Client, kit: &Kit) -> Result<()> {
    client
        .push(&format!("{E2E}/busybox"), &["1.29-2"], &kit.busybox()?)
        .await?;
    client
        .push(&format!("{E2E}/nginx"), &["1.14-2"], &kit.nginx(80)?)
        .await?;
    client
        .push(&format!("{E2E}/nonewprivs"), &["1.3"], &kit.nonewprivs()?)
        .await?;
    client
        .push(&format!("{E2E}/httpd"), &["2.4.39-4"], &kit.httpd()?)
        .await?;
    client.push("pause", &["3.9"], &Kit::pause("3.9")?).await?;
    client.push("pause", &["3.10"], &Kit::pause("3.10")?).await
}

async fn push_staging(client: Client, kit: &Kit) -> Result<()> {
    let hostnet = format!("{STAGING}/hostnet-nginx-{}", go_arch());
    client
        .push(&hostnet, &["latest"], &kit.nginx(12003)?)
        .await?;
    let marked = [
        ("test-image-latest", vec!["latest"]),
        ("test-image-1", vec!["latest"]),
        ("test-image-2", vec!["latest"]),
        ("test-image-3", vec!["latest"]),
        ("test-image-tags", vec!["1", "2", "3"]),
    ];
    for (name, tags) in marked {
        client
            .push(&format!("{STAGING}/{name}"), &tags, &kit.marked(name)?)
            .await?;
    }
    for tag in ["test", "all"] {
        let image = kit.marked(&format!("test-image-tag-{tag}"))?;
        client
            .push(&format!("{STAGING}/test-image-tag"), &[tag], &image)
            .await?;
    }
    let users = [
        ("uid", "1002"),
        ("username", "www-data"),
        ("uid-group", "1003:1004"),
        ("username-group", "www-data:1004"),
    ];
    for (name, user) in users {
        let repository = format!("{STAGING}/test-image-user-{name}");
        client
            .push(&repository, &["latest"], &kit.with_user(user)?)
            .await?;
    }
    let group = format!("{STAGING}/test-image-predefined-group");
    client
        .push(&group, &["latest"], &kit.predefined_group()?)
        .await
}

async fn push_own(client: Client, kit: &Kit) -> Result<()> {
    client.push("loglines", &["1"], &kit.loglines()?).await?;
    client
        .push("configured", &["1"], &kit.configured()?)
        .await?;
    client
        .push("busybox", &["zstd"], &Kit::repacked(Pack::Zstd)?)
        .await?;
    client
        .push("busybox", &["plain"], &Kit::repacked(Pack::Plain)?)
        .await?;
    client
        .push(
            "busybox",
            &["docker-list"],
            &kit.two_platforms(Flavor::Docker)?,
        )
        .await?;
    client
        .push("busybox", &["oci-index"], &kit.two_platforms(Flavor::Oci)?)
        .await
}
