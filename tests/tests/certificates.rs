//! Registries whose certificates OpenSSL has made, as their manuals say, behind OpenSSL's own server.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use berth_skip::Lack;
use berth_tests::cri::Cri;
use berth_tests::runner::{Case, Test};
use berth_tests::{oci, paths, test};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::registry::{hosts_folder, sized_image, start};

pub(crate) const TESTS: &[Test] = &[
    test!(certificates_that_are_their_own_authority)
        .unless(lacks_openssl)
        .berth_only("OpenSSL's server knows no HEAD, with which containerd begins"),
    test!(certificates_and_servers_that_are_refused)
        .unless(lacks_openssl)
        .berth_only("the words are Berth's"),
];

const NAME: &str = "certificates.test";
const SAN: &str = "subjectAltName=DNS:localhost,IP:127.0.0.1";

fn lacks_openssl() -> Option<Lack> {
    let found = paths::system_tool("openssl");
    found
        .err()
        .map(|error| Lack::new("openssl", error.to_string()))
}

/// A folder that OpenSSL's server shows as a registry with one image, with all that it needs to speak TLS.
struct Served {
    folder: tempfile::TempDir,
}

impl Served {
    fn new(image: &oci::Image) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("bt-openssl-").tempdir()?;
        let root = folder.path().join("v2/x/manifests");
        std::fs::create_dir_all(&root)?;
        // It takes the query for a part of the file's name.
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(root.join(format!("{name}?ns={NAME}")), bytes)
        };
        for manifest in &image.manifests {
            write(&manifest.digest, &manifest.bytes)?;
        }
        write("1", &image.top.bytes)?;
        Ok(Self { folder })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `openssl req -x509`, with a key of its own.
    async fn certificate(&self, kind: &[&str], more: &[&str]) -> Result<()> {
        let output = Command::new(paths::system_tool("openssl")?)
            .args([
                "req",
                "-x509",
                "-nodes",
                "-days",
                "30",
                "-subj",
                "/CN=localhost",
            ])
            .args(["-keyout", "key.pem", "-out", "certificate.pem"])
            .args(kind)
            .args(more)
            .current_dir(self.folder.path())
            .output()
            .await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "openssl req: {said}");
        Ok(())
    }

    /// A server on a port of its own, until it is dropped.
    async fn serve(&self, more: &[&str]) -> Result<(Child, u16)> {
        let mut server = Command::new(paths::system_tool("openssl")?)
            .args(["s_server", "-WWW", "-accept", "127.0.0.1:0"])
            .args(["-cert", "certificate.pem", "-key", "key.pem"])
            .args(more)
            .current_dir(self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let stdout = server.stdout.take().context("no output")?;
        let mut lines = BufReader::new(stdout).lines();
        while let Some(line) = lines.next_line().await? {
            if let Some(place) = line.strip_prefix("ACCEPT ") {
                let port = place.rsplit(':').next().context("no port")?.trim();
                let port = port.parse()?;
                // It writes a line for each file.
                tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
                return Ok((server, port));
            }
        }
        anyhow::bail!("openssl s_server did not start with {more:?}")
    }
}

fn write_hosts(hosts: &Path, port: u16, more: &str) -> Result<()> {
    let folder = hosts.join(NAME);
    std::fs::create_dir_all(&folder)?;
    let text = format!("server = \"https://127.0.0.1:{port}\"\n{more}\n");
    Ok(std::fs::write(folder.join("hosts.toml"), text)?)
}

/// Whether the server was believed: the manifest came. OpenSSL's server gives out no file whose name has a colon, as
/// those of blobs do; that is where these pulls end.
async fn believed(cri: &Cri) -> Result<(), String> {
    match cri.pull(&format!("{NAME}/x:1")).await {
        Ok(_) => Err("the blobs cannot have come".to_owned()),
        Err(error) if error.message().contains("sent blob sha256:") => Ok(()),
        Err(error) => Err(error.message().to_owned()),
    }
}

const P384: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp384r1"];
const P521: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:secp521r1"];

/// Each is refused until it is named, and believed from then on.
async fn certificates_that_are_their_own_authority(case: &mut Case) -> Result<()> {
    let (_work, hosts) = hosts_folder(case)?;
    let cri = start(case, hosts.clone(), "").await?;
    let served = Served::new(&sized_image("openssl", 100 << 10)?)?;
    let ca = format!("ca = \"{}\"", served.file("certificate.pem").display());
    for (kind, more) in [
        (
            &["-newkey", "rsa:4096", "-sha256"][..],
            &["-addext", SAN][..],
        ),
        (
            &["-newkey", "rsa:2048"],
            &["-addext", SAN, "-addext", "basicConstraints=CA:FALSE"],
        ),
        (P384, &["-addext", SAN, "-sha512"]),
        (
            &["-newkey", "ed25519"],
            &[
                "-addext",
                SAN,
                "-addext",
                "keyUsage=keyCertSign,digitalSignature",
            ],
        ),
    ] {
        served.certificate(kind, more).await?;
        let (_server, port) = served.serve(&[]).await?;
        write_hosts(&hosts, port, "")?;
        let why = believed(&cri)
            .await
            .err()
            .context("an unknown one was trusted")?;
        ensure!(why.contains("certificate is"), "{kind:?}: {why}");
        write_hosts(&hosts, port, &ca)?;
        let got = believed(&cri).await;
        ensure!(got.is_ok(), "{kind:?} {more:?}: {got:?}");
    }
    // One that an authority has issued, and that is an authority's itself: so OpenSSL makes them.
    served
        .certificate(P384, &["-subj", "/CN=the authority"])
        .await?;
    for (from, to) in [("certificate.pem", "ca.pem"), ("key.pem", "ca.key")] {
        std::fs::rename(served.file(from), served.file(to))?;
    }
    let issued = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", SAN];
    served
        .certificate(&["-newkey", "rsa:2048"], &issued)
        .await?;
    let (_server, port) = served.serve(&[]).await?;
    write_hosts(&hosts, port, "")?;
    let why = believed(&cri)
        .await
        .err()
        .context("an unknown authority was trusted")?;
    ensure!(why.contains("but \"the authority\""), "{why}");
    write_hosts(&hosts, port, &ca.replace("certificate.pem", "ca.pem"))?;
    let got = believed(&cri).await;
    ensure!(got.is_ok(), "{issued:?}: {got:?}");
    // TLS 1.2, and a bundle with broken entries around the right one.
    served
        .certificate(&["-newkey", "ed25519"], &["-addext", SAN])
        .await?;
    let (_server, port) = served.serve(&["-tls1_2"]).await?;
    let good = std::fs::read_to_string(served.file("certificate.pem"))?;
    let broken = good.replacen("MII", "M!!", 1);
    std::fs::write(served.file("bundle.pem"), format!("{broken}{good}{broken}"))?;
    write_hosts(&hosts, port, &ca.replace("certificate.pem", "bundle.pem"))?;
    let got = believed(&cri).await;
    ensure!(got.is_ok(), "{got:?}");
    Ok(())
}

/// What is refused says why and what to do; who accepts anything gets it where there is a common language.
async fn certificates_and_servers_that_are_refused(case: &mut Case) -> Result<()> {
    let (_work, hosts) = hosts_folder(case)?;
    let cri = start(case, hosts.clone(), "").await?;
    let served = Served::new(&sized_image("refused", 100 << 10)?)?;
    let ca = format!("ca = \"{}\"", served.file("certificate.pem").display());
    let rsa: &[&str] = &["-newkey", "rsa:2048"];
    let other = ["-addext", "subjectAltName=DNS:other.test"];
    let named = ["-addext", SAN];
    let nothing = "shares no kind of TLS with this node";
    for (kind, more, server, want, skips) in [
        (
            rsa,
            &[][..],
            &[][..],
            "a common name alone does not count",
            true,
        ),
        (
            rsa,
            &other,
            &[],
            "is for other.test and not for 127.0.0.1",
            true,
        ),
        (P521, &named, &[], nothing, true),
        (
            rsa,
            &named,
            &["-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA256"],
            nothing,
            false,
        ),
        (
            rsa,
            &named,
            &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
            nothing,
            false,
        ),
    ] {
        served.certificate(kind, more).await?;
        let (_server, port) = served.serve(server).await?;
        write_hosts(&hosts, port, &ca)?;
        let why = believed(&cri).await.err().context("it was believed")?;
        ensure!(why.contains(want), "{kind:?} {more:?} {server:?}: {why}");
        ensure!(why.starts_with("RegistryUnavailable: 127.0.0.1:"), "{why}");
        write_hosts(&hosts, port, "skip_verify = true")?;
        let got = believed(&cri).await;
        ensure!(
            got.is_ok() == skips,
            "{kind:?} {more:?} {server:?}: {got:?}"
        );
    }
    Ok(())
}
