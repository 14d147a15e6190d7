//! The calls that need both pods and containers, on a runtime that starts nothing.

use std::sync::Arc;
use std::time::Duration;

use berth_cri_api::v1;
use tonic::Code;

use super::super::{remove_pod_sandbox, stop_pod_sandbox};
use crate::container::fake::{Call, Fake};
use crate::container::{self, ContainerManager};
use crate::cri::{Deps, NetworkReport, Ready};
use crate::events::{Event, Events, Listener};
use crate::id::{ContainerId, PodId};
use crate::image::{self, ImageManager};
use crate::model::{ContainerState, PodMetadata, PodSpec, PodState};
use crate::pod::fake::{Flat, Step};
use crate::pod::{self, PodManager};
use crate::stats::Stats;

struct Bench {
    _dir: tempfile::TempDir,
    runtime: Fake,
    ground: Arc<Flat>,
    heard: Listener,
    deps: Arc<Deps>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (runtime, ground, events) = (Fake::default(), Arc::default(), Events::default());
        let storage = container::fake::storage(dir.path());
        let pods = PodManager::open(pod::fake::deps(dir.path(), &runtime, &ground, &events));
        let beneath = container::fake::deps(dir.path(), &runtime, &storage, &events);
        let facts = beneath.facts.clone();
        let containers = ContainerManager::open(beneath, runtime.listen());
        let images = ImageManager::open(image::Config {
            storage: storage.clone(),
            registry: dir.path().to_owned().into(),
            pinned: Vec::new(),
            parallel_layers: 1,
            unpacked_limit: 0,
            metrics: Arc::default(),
        });
        let deps = Deps {
            pods: Arc::new(pods.unwrap()),
            containers: Arc::new(containers.unwrap()),
            images: Arc::new(images.unwrap()),
            stats: Stats::new(facts, storage),
            node: Arc::new(super::node(NetworkReport::default(), Arc::default())),
            metrics: Arc::default(),
            ready: Arc::new(Ready::default()),
        };
        Self {
            _dir: dir,
            heard: events.subscribe(),
            deps: Arc::new(deps),
            runtime,
            ground,
        }
    }

    async fn pod(&self, name: &str) -> PodId {
        let spec = PodSpec {
            metadata: PodMetadata {
                name: name.to_owned(),
                ..PodMetadata::default()
            },
            ..PodSpec::default()
        };
        self.deps.pods.run(spec).await.unwrap()
    }

    /// What CreateContainer does once it has an image.
    async fn create(&self, pod: &PodId, name: &str) -> Result<ContainerId, String> {
        let entered = self.deps.pods.enter(pod.as_str());
        let (mut ready, entry) = entered.map_err(|e| e.to_string())?;
        // On a mount of their own, which needs root.
        (ready.files, ready.ipcns) = ("/proc".into(), None);
        let (image, spec) = (container::fake::image(), container::fake::spec(name));
        let create = self.deps.containers.create(ready, None, image, entry, spec);
        create.await.map_err(|e| e.to_string())
    }

    async fn run(&self, pod: &PodId, name: &str) -> ContainerId {
        let id = self.create(pod, name).await.unwrap();
        self.deps.containers.start(id.as_str()).await.unwrap();
        id
    }

    async fn stop(&self, pod: &PodId) -> Result<(), tonic::Status> {
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: pod.to_string(),
        };
        let answer = stop_pod_sandbox::handle(&self.deps, request).await;
        answer.map(drop)
    }

    async fn remove(&self, pod: &PodId) -> Result<(), tonic::Status> {
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: pod.to_string(),
        };
        let answer = remove_pod_sandbox::handle(&self.deps, request).await;
        answer.map(drop)
    }

    fn states(&self) -> (Vec<PodState>, Vec<ContainerState>) {
        let pods = self.deps.pods.list(&Default::default());
        let containers = self.deps.containers.list(&Default::default());
        (
            pods.iter().map(|p| p.state).collect(),
            containers.iter().map(|c| c.state).collect(),
        )
    }

    /// What was heard, of the pod and of one container.
    async fn events(&mut self, container: &ContainerId) -> String {
        let mut words = Vec::new();
        let brief = Duration::from_millis(20);
        while let Ok(Some(told)) = tokio::time::timeout(brief, self.heard.next()).await {
            let (word, of) = match told.event {
                Event::PodReady(_) => ("ready", None),
                Event::PodNotReady(_) => ("not-ready", None),
                Event::PodRemoved(_) => ("gone", None),
                Event::ContainerCreated(_, of) => ("created", Some(of)),
                Event::ContainerStarted(_, of) => ("started", Some(of)),
                Event::ContainerStopped(_, of) => ("stopped", Some(of)),
                Event::ContainerRemoved(_, of) => ("removed", Some(of)),
            };
            if of.is_none_or(|of| of == *container) {
                words.push(word);
            }
        }
        words.join(" ")
    }
}

#[tokio::test]
async fn a_stopped_sandbox_has_no_running_container_however_often_it_is_stopped() {
    let mut bench = Bench::new();
    let pod = bench.pod("web").await;
    let running = bench.run(&pod, "a").await;
    bench.create(&pod, "b").await.unwrap();
    for _ in 0..2 {
        bench.stop(&pod).await.unwrap();
        let (pods, containers) = bench.states();
        assert_eq!(pods, [PodState::NotReady]);
        assert_eq!(containers, [ContainerState::Exited; 2]);
        assert_eq!(bench.runtime.living(), [] as [i32; 0]);
    }
    assert!(bench.create(&pod, "c").await.is_err());
    bench.remove(&pod).await.unwrap();
    bench.remove(&pod).await.unwrap();
    bench.stop(&pod).await.unwrap();
    assert_eq!(bench.states(), (Vec::new(), Vec::new()));
    let all = "ready created started not-ready stopped removed gone";
    assert_eq!(bench.events(&running).await, all);
}

#[tokio::test]
async fn a_sandbox_is_removed_with_containers_that_run() {
    let mut bench = Bench::new();
    let (pod, other) = (bench.pod("web").await, bench.pod("other").await);
    let running = bench.run(&pod, "a").await;
    bench.run(&other, "a").await;
    bench.remove(&pod).await.unwrap();
    let left = (vec![PodState::Ready], vec![ContainerState::Running]);
    assert_eq!(bench.states(), left);
    let told = bench.events(&running).await;
    assert!(told.ends_with("not-ready stopped removed gone"), "{told}");
    bench.remove(&other).await.unwrap();
    assert_eq!(bench.runtime.living(), [] as [i32; 0]);
}

#[tokio::test]
async fn a_sandbox_that_is_not_released_is_stopped_again() {
    let bench = Bench::new();
    let pod = bench.pod("web").await;
    bench.run(&pod, "a").await;
    bench.ground.fail(Step::Disconnect);
    let failed = bench.remove(&pod).await.unwrap_err();
    assert_eq!(failed.code(), Code::Unknown);
    assert!(failed.message().contains("repeat the call"), "{failed}");
    let (pods, containers) = bench.states();
    assert_eq!((pods.len(), containers.len()), (1, 1), "both stay visible");
    bench.remove(&pod).await.unwrap();
    assert_eq!(bench.states(), (Vec::new(), Vec::new()));
}

#[tokio::test]
async fn a_container_on_its_way_in_is_waited_for_and_ended() {
    let bench = Bench::new();
    let pod = bench.pod("web").await;
    let go = bench.runtime.hold(Call::Create);
    let bench = Arc::new(bench);
    let create = {
        let (bench, pod) = (bench.clone(), pod.clone());
        tokio::spawn(async move { bench.create(&pod, "a").await })
    };
    bench.runtime.is_asked(Call::Create, 1).await;
    let stop = {
        let (bench, pod) = (bench.clone(), pod.clone());
        tokio::spawn(async move { bench.stop(&pod).await })
    };
    while bench.states().0 != [PodState::NotReady] {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(bench.create(&pod, "b").await.is_err());
    assert!(!stop.is_finished());
    go.send(()).unwrap();
    create.await.unwrap().unwrap();
    stop.await.unwrap().unwrap();
    assert_eq!(bench.states().1, [ContainerState::Exited]);
    assert_eq!(bench.runtime.living(), [] as [i32; 0]);
}
