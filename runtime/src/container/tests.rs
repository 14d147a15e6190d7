//! The lives of containers, on a runtime that starts nothing.

use std::sync::Arc;
use std::time::Duration;

use super::{Container, ContainerManager, Error, fake as ground};
use crate::events::{Event, Events, Listener};
use crate::id::{ContainerId, PodId};
use crate::model::{
    ContainerExit, ContainerSpec, ContainerState, ExecRequest, Kind, Kinded as _, PodSpec, Process,
    ReadyPod,
};
use crate::runtime::fake::{Call, Fake, Mishap, Nature};
use crate::storage::Storage;
use shim_protocol::monitor::FailureKind;

mod ends;
mod exec;
mod life;
mod restart;

/// Nothing takes longer, on a clock that passes over waits.
const LIMIT: Duration = Duration::from_secs(600);

/// A daemon, as far as it has containers, and what outlives it.
struct Bench {
    dir: tempfile::TempDir,
    runtime: Fake,
    storage: Storage,
    events: Events,
    heard: Listener,
    containers: ContainerManager,
    pod: PodId,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (runtime, events) = (Fake::default(), Events::default());
        let storage = ground::storage(dir.path());
        Self {
            containers: open(&dir, &runtime, &storage, &events),
            heard: events.subscribe(),
            pod: PodId::generate().unwrap(),
            dir,
            runtime,
            storage,
            events,
        }
    }

    /// The daemon is gone, something happens, and another one comes.
    async fn restart(&mut self, meanwhile: impl FnOnce(&Self)) {
        // Its tasks go on here, and must not write any more.
        for container in self.containers.0.containers.all() {
            *container.saving.lock().await = true;
        }
        self.events = Events::default();
        self.heard = self.events.subscribe();
        // It is not heard by anybody any more.
        drop(self.runtime.listen());
        meanwhile(self);
        self.containers = open(&self.dir, &self.runtime, &self.storage, &self.events);
        self.containers.restore().await.unwrap();
    }

    fn ready_pod(&self) -> ReadyPod {
        ReadyPod {
            id: self.pod.clone(),
            spec: Arc::new(PodSpec::default()),
            netns: None,
            ipcns: None,
            utsns: None,
            pidns: Some("/ns/pid".into()),
            hostname: "web-0".into(),
            // The files of a pod are on a mount of their own.
            files: "/proc".into(),
            shm: "/dev/shm".into(),
            cgroup_parent: "/berth".into(),
            closing: Arc::default(),
        }
    }

    async fn create(&self, name: &str) -> Result<ContainerId, Error> {
        self.create_of(ground::spec(name)).await
    }

    async fn create_of(&self, spec: ContainerSpec) -> Result<ContainerId, Error> {
        let (pod, image) = (self.ready_pod(), ground::image());
        self.containers.create(pod, None, image, (), spec).await
    }

    async fn run(&self, name: &str) -> ContainerId {
        let id = self.create(name).await.unwrap();
        self.containers.start(id.as_str()).await.unwrap();
        id
    }

    /// A call that goes on beside the test.
    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &self,
        call: impl FnOnce(ContainerManager) -> F,
    ) -> tokio::task::JoinHandle<T> {
        tokio::spawn(call(self.containers.clone()))
    }

    fn stop(&self, id: &ContainerId, grace: u64) -> tokio::task::JoinHandle<Result<(), Error>> {
        let id = id.clone();
        let grace = Duration::from_secs(grace);
        self.spawn(move |c| async move { c.stop(id.as_str(), grace).await })
    }

    async fn exec(&self, id: &ContainerId) -> Result<(Vec<u8>, i32), Error> {
        self.exec_within(id, None).await
    }

    async fn exec_within(
        &self,
        id: &ContainerId,
        timeout: Option<Duration>,
    ) -> Result<(Vec<u8>, i32), Error> {
        let request = ExecRequest {
            command: vec!["probe".to_owned()],
            tty: false,
            timeout,
        };
        let output = self.containers.exec_sync(id.as_str(), request).await?;
        let code = output.exit_code;
        Ok((output.fit(1000).0, code))
    }

    fn inner(&self, id: &ContainerId) -> Arc<Container> {
        self.containers.0.containers.get(id).unwrap()
    }

    fn init(&self, id: &ContainerId) -> Process {
        self.inner(id).status().init.clone().unwrap()
    }

    fn state(&self, id: &ContainerId) -> ContainerState {
        self.containers.status(id.as_str()).unwrap().state
    }

    /// Waits for its end.
    async fn end(&self, id: &ContainerId) -> ContainerExit {
        let container = self.inner(id);
        let mut changes = container.status.subscribe();
        let over = changes.wait_for(|s| s.is_over());
        let over = tokio::time::timeout(LIMIT, over).await;
        over.expect("it does not end")
            .unwrap()
            .exit
            .clone()
            .unwrap()
    }

    /// What the CRI has heard of a container by now.
    async fn events(&mut self, id: &ContainerId) -> String {
        let mut words = Vec::new();
        let brief = Duration::from_millis(20);
        while let Ok(Some(told)) = tokio::time::timeout(brief, self.heard.next()).await {
            let (word, of) = match told.event {
                Event::ContainerCreated(_, of) => ("created", of),
                Event::ContainerStarted(_, of) => ("started", of),
                Event::ContainerStopped(_, of) => ("stopped", of),
                Event::ContainerRemoved(_, of) => ("removed", of),
                other => panic!("{other:?}"),
            };
            if of == *id {
                words.push(word);
            }
        }
        words.join(" ")
    }

    /// Nobody has heard of anything.
    async fn heard_nothing(&mut self) -> bool {
        let brief = Duration::from_millis(20);
        tokio::time::timeout(brief, self.heard.next())
            .await
            .is_err()
    }

    /// Nothing is left of any container.
    fn is_clean(&self) {
        assert_eq!(self.runtime.living(), [] as [i32; 0]);
        assert_eq!(self.storage.snapshots(), []);
        assert!(self.containers.list(&Default::default()).is_empty());
        for place in [
            "root/records/containers",
            "state/containers",
            "state/seccomp",
        ] {
            let left = std::fs::read_dir(self.dir.path().join(place));
            let left: Vec<_> = left.into_iter().flatten().flatten().collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

fn open(
    dir: &tempfile::TempDir,
    runtime: &Fake,
    storage: &Storage,
    events: &Events,
) -> ContainerManager {
    let deps = ground::deps(dir.path(), runtime, storage, events);
    ContainerManager::open(deps, runtime.listen()).unwrap()
}
