//! Client and server on a real socket, with images of the test's making.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use futures_util::FutureExt;

use super::api::{CheckReport, DiskUse, ImageDetails, ImageSummary, Pruned, PullRequest};
use super::client::{Client, Error};
use super::shelf::{Failure, Work, Writer};
use super::*;
use crate::image::PullStatus;
use crate::model::{Digest, Explanation, Image, ImageUser, Kind, RegistryAuth};

/// Keeps the names of archives as images, and how many bytes they had.
#[derive(Default)]
struct Fake(Mutex<Vec<Image>>);

impl Fake {
    fn images(&self) -> MutexGuard<'_, Vec<Image>> {
        self.0.lock().unwrap()
    }

    fn add(&self, name: &str, size: u64) -> Vec<Image> {
        let image = Image {
            id: Digest::from_bytes([7; 32]),
            repo_tags: vec![name.to_owned()],
            repo_digests: Vec::new(),
            size,
            user: ImageUser::Unset,
            pinned: false,
            config: Default::default(),
            chain: Vec::new(),
            platform: String::new(),
        };
        self.images().push(image.clone());
        vec![image]
    }
}

impl Shelf for Fake {
    fn list(&self) -> Vec<ImageSummary> {
        let images = self.images();
        let summary = |image: &Image| ImageSummary {
            id: image.id.to_string(),
            tags: image.repo_tags.clone(),
            digests: Vec::new(),
            size: image.size,
            pinned: false,
            disk: 0,
            pulled_at: 0,
            in_use: false,
        };
        images.iter().map(summary).collect()
    }

    fn find(&self, reference: &str) -> Result<Option<Image>, Failure> {
        let images = self.images();
        let named = |i: &&Image| i.repo_tags[0] == reference || i.id.to_string() == reference;
        Ok(images.iter().find(named).cloned())
    }

    fn inspect(&self, _: &str) -> Result<Option<ImageDetails>, Failure> {
        Ok(None)
    }

    fn pulls(&self) -> Vec<PullStatus> {
        vec![PullStatus {
            reference: "x".to_owned(),
            elapsed: Duration::from_millis(5),
            source: "host".to_owned(),
            layers: (3, 1),
            bytes: (30, 10),
        }]
    }

    fn load(self: Arc<Self>, mut archive: Box<dyn Read + Send>) -> Work<Vec<Image>> {
        let read = move || {
            let mut start = [0; 3];
            let wrong = |e: io::Error| (Kind::InvalidArgument, e.to_string());
            archive.read_exact(&mut start).map_err(wrong)?;
            if &start == b"bad" {
                return Err((Kind::InvalidArgument, "not an archive".to_owned()));
            }
            let rest = io::copy(&mut archive, &mut io::sink()).map_err(wrong)?;
            Ok(self.add("stream", rest + 3))
        };
        async { tokio::task::spawn_blocking(read).await.unwrap() }.boxed()
    }

    fn load_file(self: Arc<Self>, path: PathBuf) -> Work<Vec<Image>> {
        async move { Ok(self.add(&path.display().to_string(), 1)) }.boxed()
    }

    fn explain(
        self: Arc<Self>,
        reference: String,
        auth: Option<RegistryAuth>,
    ) -> Work<Explanation> {
        async move {
            match reference.as_str() {
                "A" => Err((Kind::InvalidArgument, "not a reference".to_owned())),
                _ => Ok(Explanation {
                    reference,
                    error: auth.map(|auth| auth.username),
                    ..Explanation::default()
                }),
            }
        }
        .boxed()
    }

    fn remove(self: Arc<Self>, reference: String) -> Work<()> {
        async move {
            self.images().retain(|i| i.repo_tags[0] != reference);
            Ok(())
        }
        .boxed()
    }

    fn pull(self: Arc<Self>, reference: String, auth: Option<RegistryAuth>) -> Work<String> {
        async move {
            let user = auth.map(|auth| format!("{}:{}", auth.username, auth.password));
            let name = format!("{reference} as {}", user.unwrap_or_default());
            Ok(self.add(&name, 1)[0].id.to_string())
        }
        .boxed()
    }

    /// As many bytes as the first name says; "broken" breaks in the middle.
    fn export(self: Arc<Self>, references: Vec<String>) -> Work<Writer> {
        async move {
            let broken = references.iter().any(|name| name == "broken");
            let count = references[0].parse().map_err(|_| {
                let why = format!("there is no image {:?}", references[0]);
                (Kind::NotFound, why)
            })?;
            let write: Writer = Box::new(move |out| {
                io::copy(&mut io::repeat(b'x').take(count), out)?;
                match broken {
                    true => Err(io::Error::other("a bad disk")),
                    false => Ok(()),
                }
            });
            Ok(write)
        }
        .boxed()
    }

    fn prune(self: Arc<Self>, all: bool) -> Work<Pruned> {
        let bytes = u64::from(all);
        let images = Vec::new();
        async move { Ok(Pruned { images, bytes }) }.boxed()
    }

    fn check(self: Arc<Self>, quick: bool, repair: bool) -> Work<CheckReport> {
        async move {
            Ok(CheckReport {
                images: u64::from(quick),
                repaired: repair,
                ..CheckReport::default()
            })
        }
        .boxed()
    }

    fn disk_use(self: Arc<Self>) -> Work<DiskUse> {
        async { Err((Kind::Unknown, "the disk is gone".to_owned())) }.boxed()
    }
}

struct Rig {
    client: Client,
    state: Arc<State>,
    stop: watch::Sender<bool>,
    server: tokio::task::JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Rig {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("admin.sock");
        let file = directory.path().join("config.toml");
        std::fs::write(&file, "log_level = \"warn\"\n").unwrap();
        let state = Arc::new(State {
            images: Arc::new(Fake::default()),
            metrics: Arc::new(Metrics::new()),
            log: crate::telemetry::tests::detached_filter("warn"),
            config: Arc::new(Live::new(Arc::new(
                crate::config::Config::load(Some(&file), &[]).unwrap(),
            ))),
            ready: Arc::default(),
        });
        let listener = UnixListener::bind(&socket).unwrap();
        let (stop, stopping) = watch::channel(false);
        Self {
            client: Client::new(socket),
            server: tokio::spawn(serve_state(listener, state.clone(), stopping)),
            state,
            stop,
            _directory: directory,
        }
    }

    fn ready() -> Self {
        let rig = Self::start();
        rig.state.ready.set();
        rig
    }
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, Error>) -> (u16, String) {
    match outcome.unwrap_err() {
        Error::Refused { status, message } => (status, message),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn health_and_readiness_and_measurements_are_told() {
    let rig = Rig::start();
    assert!(!rig.client.ready().await.unwrap());
    assert_eq!(refused(rig.client.images().await).0, 503);
    rig.state.ready.set();
    assert!(rig.client.ready().await.unwrap());
    let text = rig.client.metrics().await.unwrap();
    assert!(text.contains("berth_build_info"), "{text}");
}

#[tokio::test]
async fn the_log_filter_can_be_changed() {
    let rig = Rig::start();
    assert_eq!(rig.client.log_level().await.unwrap(), "warn");
    rig.client.set_log_level("info,berth=debug").await.unwrap();
    assert_eq!(rig.client.log_level().await.unwrap(), "info,berth=debug");
    let (status, message) = refused(rig.client.set_log_level("loud").await);
    assert_eq!(status, 400);
    assert!(message.contains("loud"), "{message}");
}

#[tokio::test]
async fn settings_come_with_their_origin() {
    let rig = Rig::start();
    let settings = rig.client.config().await.unwrap();
    assert_eq!(settings["log_level"].value, "warn");
    let origin = &settings["log_level"].origin;
    assert!(origin.ends_with("config.toml:1"), "{origin}");
    assert_eq!(settings["root"].origin, "default");
}

#[tokio::test]
async fn images_are_loaded_listed_and_removed() {
    let rig = Rig::ready();
    let loaded = rig.client.load_file(Path::new("/x.tar")).await.unwrap();
    assert_eq!(loaded[0].names, ["/x.tar"]);
    let relative = rig.client.load_file(Path::new("x.tar")).await;
    assert_eq!(refused(relative).0, 400);
    assert_eq!(
        rig.client.images().await.unwrap(),
        [loaded[0].summary.clone()]
    );
    rig.client.remove("/x.tar").await.unwrap();
    assert_eq!(refused(rig.client.remove("/x.tar").await).0, 404);
    assert_eq!(rig.client.images().await.unwrap(), []);
}

#[tokio::test]
async fn a_pull_is_explained() {
    let rig = Rig::ready();
    let told = rig.client.explain("r.io/x", None).await.unwrap();
    assert_eq!((told.reference.as_str(), told.error), ("r.io/x", None));
    let auth = RegistryAuth {
        username: "u".into(),
        ..RegistryAuth::default()
    };
    let told = rig.client.explain("r.io/x", Some(auth)).await.unwrap();
    assert_eq!(told.error.as_deref(), Some("u"));
    assert_eq!(refused(rig.client.explain("A", None).await).0, 400);
}

#[tokio::test]
async fn an_archive_is_streamed_whole() {
    let rig = Rig::ready();
    let size = 5 * 1024 * 1024 + 17;
    let archive = io::repeat(b'x').take(size);
    let loaded = rig.client.load_stream(archive).await.unwrap();
    assert_eq!(loaded[0].summary.size, size);
}

#[tokio::test]
async fn a_bad_archive_is_refused_although_the_client_still_writes() {
    let rig = Rig::ready();
    let archive = io::Cursor::new(b"bad").chain(io::repeat(b'x').take(20 << 20));
    let (status, message) = refused(rig.client.load_stream(archive).await);
    assert_eq!((status, message.as_str()), (400, "not an archive"));
}

#[tokio::test]
async fn images_are_pulled_pruned_checked_and_told_about() {
    let rig = Rig::ready();
    let request = PullRequest {
        reference: "r/x:1".to_owned(),
        username: "me".to_owned(),
        password: "s3cret".to_owned(),
    };
    let pulled = rig.client.pull(&request).await.unwrap();
    assert_eq!(pulled[0].tags, ["r/x:1 as me:s3cret"]);
    assert!(!format!("{request:?}").contains("s3cret"));
    let pulls = rig.client.pulls().await.unwrap();
    assert_eq!((pulls[0].layers, pulls[0].layers_done), (3, 1));
    assert_eq!(rig.client.prune(true).await.unwrap().bytes, 1);
    let report = rig.client.check(true, false).await.unwrap();
    assert_eq!((report.images, report.repaired), (1, false));
    assert!(rig.client.check(false, true).await.unwrap().repaired);
    assert_eq!(refused(rig.client.inspect("no").await).0, 404);
    let (status, message) = refused(rig.client.disk_use().await);
    assert_eq!((status, message.as_str()), (500, "the disk is gone"));
}

#[tokio::test]
async fn an_archive_is_saved_whole_or_not_at_all() {
    let rig = Rig::ready();
    let save = async |names: &[&str]| {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut length = 0;
        let saved = rig.client.save(&names, |piece| {
            length += piece.len();
            Ok(())
        });
        saved.await.map(|()| length)
    };
    assert_eq!(save(&["3000017"]).await.unwrap(), 3_000_017);
    assert_eq!(save(&["0"]).await.unwrap(), 0);
    let broken = save(&["3000017", "broken"]).await;
    assert!(matches!(broken, Err(Error::Broken(_))), "{broken:?}");
    assert_eq!(refused(save(&["no"]).await.map(|_| ())).0, 404);
    assert_eq!(refused(save(&[]).await.map(|_| ())).0, 400);
    let full = |_: &[u8]| Err(io::Error::from(io::ErrorKind::StorageFull));
    let full = rig.client.save(&["9000000".to_owned()], full).await;
    assert!(matches!(full, Err(Error::Write(_))), "{full:?}");
}

/// A reader that breaks half-way.
struct Broken(usize);

impl Read for Broken {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::Error::other("a bad disk"));
        }
        self.0 -= 1;
        buffer.fill(b'x');
        Ok(buffer.len())
    }
}

#[tokio::test]
async fn half_an_archive_is_never_taken_for_a_whole_one() {
    let rig = Rig::ready();
    let broken = rig.client.load_stream(Broken(3)).await;
    assert!(matches!(broken, Err(Error::Broken(_))), "{broken:?}");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(rig.client.images().await.unwrap(), []);
}

#[tokio::test]
async fn unknown_places_and_methods_are_refused() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let rig = Rig::ready();
    let socket = rig._directory.path().join("admin.sock");
    for (line, wanted) in [
        ("GET /nothing", "404"),
        ("DELETE /images", "405"),
        ("GET /images/load", "405"),
        ("POST /images/remove", "400"),
    ] {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {wanted}")),
            "{line}: {answer}"
        );
    }
}

#[tokio::test]
async fn a_stop_ends_it() {
    let rig = Rig::ready();
    rig.client.images().await.unwrap();
    rig.stop.send_replace(true);
    rig.server.await.unwrap();
    let gone = Client::new("/nonexistent/admin.sock").images().await;
    assert!(gone.unwrap_err().to_string().contains("berth serve"));
}
