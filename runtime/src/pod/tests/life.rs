//! The lives of pods, on a runtime that starts nothing and ground that needs no root.

use std::sync::Arc;
use std::time::Duration;

use shim_protocol::monitor::FailureKind;

use super::spec;
use crate::events::{Event, Events, Listener};
use crate::id::PodId;
use crate::model::{Kind, Kinded as _, NamespaceMode, PodSpec, PodState, Process};
use crate::pod::fake::{Flat, Step, deps};
use crate::pod::record::PodRecord;
use crate::pod::state::Stage;
use crate::pod::{Error, Ground as _, Pod, PodManager};
use crate::runtime::fake::{Call, Fake, Mishap, Nature};
use crate::store::Records;

/// Nothing takes longer, on a clock that passes over waits.
const LIMIT: Duration = Duration::from_secs(600);

/// A daemon, as far as it has pods, and what outlives it.
struct Bench {
    dir: tempfile::TempDir,
    runtime: Fake,
    ground: Arc<Flat>,
    heard: Listener,
    pods: PodManager,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (runtime, ground, events) = (Fake::default(), Arc::default(), Events::default());
        Self {
            pods: PodManager::open(deps(dir.path(), &runtime, &ground, &events)).unwrap(),
            heard: events.subscribe(),
            dir,
            runtime,
            ground,
        }
    }

    /// The daemon is gone, something happens, and another one comes.
    async fn restart(&mut self, meanwhile: impl FnOnce(&Self)) {
        // Its tasks go on here, and must not write any more.
        for pod in self.pods.0.pods.all() {
            *pod.saving.lock().await = true;
        }
        meanwhile(self);
        let events = Events::default();
        self.heard = events.subscribe();
        let deps = deps(self.dir.path(), &self.runtime, &self.ground, &events);
        self.pods = PodManager::open(deps).unwrap();
        self.pods.restore().await.unwrap();
    }

    async fn run(&self) -> PodId {
        self.pods.run(spec()).await.unwrap()
    }

    fn pod(&self, id: &PodId) -> Arc<Pod> {
        self.pods.0.pods.get(id).unwrap()
    }

    fn pause(&self, id: &PodId) -> Process {
        self.pod(id).parts().pause.clone().unwrap()
    }

    fn state(&self, id: &PodId) -> PodState {
        self.pods.status(id.as_str()).unwrap().state
    }

    fn records(&self) -> Records<PodRecord> {
        Records::open(&self.dir.path().join("root"), "pods").unwrap()
    }

    /// Waits until it has come that far.
    async fn comes_to(&self, id: &PodId, stage: Stage) {
        let mut changes = self.pod(id).stage.subscribe();
        let come = changes.wait_for(|s| *s == stage);
        let come = tokio::time::timeout(LIMIT, come).await;
        come.unwrap_or_else(|_| panic!("it does not come to {stage:?}"))
            .unwrap();
    }

    /// What the CRI has heard by now.
    async fn events(&mut self) -> String {
        let mut words = Vec::new();
        let brief = Duration::from_millis(20);
        while let Ok(Some(told)) = tokio::time::timeout(brief, self.heard.next()).await {
            words.push(match told.event {
                Event::PodReady(_) => "ready",
                Event::PodNotReady(_) => "not-ready",
                Event::PodRemoved(_) => "removed",
                other => panic!("{other:?}"),
            });
        }
        words.join(" ")
    }

    /// Nothing is left of any pod but its record and its files.
    fn is_released(&self) {
        assert_eq!(self.runtime.living(), [] as [i32; 0]);
        assert_eq!(self.ground.connected().unwrap(), []);
        assert_eq!(self.names("netns"), [] as [String; 0]);
        for pod in self.names("state/pods") {
            assert_eq!(
                self.names(&format!("state/pods/{pod}/ns")),
                [] as [String; 0]
            );
        }
    }

    /// Nothing is left at all.
    fn is_clean(&self) {
        self.is_released();
        assert!(self.pods.list(&Default::default()).is_empty());
        for place in ["root/records/pods", "state/pods", "state/seccomp", "cgroup"] {
            assert_eq!(self.names(place), [] as [String; 0], "{place}");
        }
    }

    fn names(&self, place: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join(place));
        let entries = entries.into_iter().flatten().flatten();
        entries
            .map(|e| e.file_name().into_string().unwrap())
            .collect()
    }
}

#[tokio::test]
async fn a_life_in_order() {
    let mut bench = Bench::new();
    let id = bench.run().await;
    let status = bench.pods.status(id.as_str()).unwrap();
    assert_eq!(status.state, PodState::Ready);
    assert_eq!(status.ips, [std::net::IpAddr::from([10, 88, 0, 7])]);
    assert_eq!(status.pause_pid, Some(bench.pause(&id).pid));
    assert!(status.netns.unwrap().exists());
    let mut pins = bench.names(&format!("state/pods/{id}/ns"));
    pins.sort();
    assert_eq!(pins, ["ipc", "pid", "uts"]);
    drop(bench.pods.enter(id.as_str()).unwrap());
    for _ in 0..2 {
        bench.pods.stop(&id).await.unwrap();
        assert_eq!(bench.state(&id), PodState::NotReady);
        let refused = bench.pods.enter(id.as_str()).unwrap_err();
        assert_eq!(refused.kind(), Kind::FailedPrecondition);
        bench.is_released();
    }
    for _ in 0..2 {
        bench.pods.remove(&id).await.unwrap();
        let gone = bench.pods.status(id.as_str()).unwrap_err();
        assert_eq!(gone.kind(), Kind::NotFound);
    }
    bench.pods.stop(&id).await.unwrap();
    assert_eq!(bench.events().await, "ready not-ready removed");
    bench.is_clean();
}

#[tokio::test]
async fn a_pod_of_the_host_has_neither_network_nor_pins() {
    let bench = Bench::new();
    let mut host = spec();
    let modes = &mut host.namespaces;
    (modes.network, modes.ipc, modes.pid) = (
        NamespaceMode::Node,
        NamespaceMode::Node,
        NamespaceMode::Node,
    );
    // Neither is asked for.
    bench.ground.fail(Step::Connect);
    bench.ground.fail(Step::Sysctls);
    let id = bench.pods.run(host).await.unwrap();
    assert_eq!(bench.names("netns"), [] as [String; 0]);
    assert_eq!(
        bench.names(&format!("state/pods/{id}/ns")),
        [] as [String; 0]
    );
    let (ready, entry) = bench.pods.enter(id.as_str()).unwrap();
    assert_eq!((ready.netns, ready.ipcns, ready.pidns), (None, None, None));
    drop(entry);
    bench.pods.remove(&id).await.unwrap();
    bench.is_clean();
}

#[tokio::test]
async fn equal_runs_are_joined() {
    let bench = Bench::new();
    let go = bench.runtime.hold(Call::Pause);
    let run = |spec: PodSpec| {
        let pods = bench.pods.clone();
        tokio::spawn(async move { pods.run(spec).await })
    };
    let (one, two) = (run(spec()), run(spec()));
    bench.runtime.is_asked(Call::Pause, 1).await;
    let mut other = spec();
    other.hostname = "other".to_owned();
    let busy = bench.pods.run(other.clone()).await.unwrap_err();
    assert_eq!(busy.kind(), Kind::Unavailable);
    assert!(bench.pods.list(&Default::default()).is_empty(), "not yet");
    go.send(()).unwrap();
    let id = one.await.unwrap().unwrap();
    assert_eq!(two.await.unwrap().unwrap(), id);
    assert_eq!(bench.runtime.asked(Call::Pod), 1);
    for spec in [other, spec()] {
        let taken = bench.pods.run(spec).await.unwrap_err();
        assert_eq!(taken.kind(), Kind::AlreadyExists);
    }
    bench.pods.remove(&id).await.unwrap();
    assert_ne!(bench.run().await, id);
}

#[tokio::test]
async fn a_run_whose_caller_left_goes_on_and_is_given_to_the_next() {
    let bench = Bench::new();
    let go = bench.runtime.hold(Call::Pod);
    let left = tokio::time::timeout(Duration::from_millis(50), bench.pods.run(spec()));
    left.await.unwrap_err();
    bench.runtime.is_asked(Call::Pod, 1).await;
    go.send(()).unwrap();
    let id = bench.run().await;
    assert_eq!(bench.runtime.asked(Call::Pod), 1);
    bench.pods.remove(&id).await.unwrap();
    bench.is_clean();
}

/// One way in which a run can fail.
type Way = (&'static str, fn(&Bench, &mut PodSpec));

const WAYS: [Way; 14] = [
    ("at most 64", |_, spec| spec.hostname = "x".repeat(65)),
    ("kernel.pid_max", |_, spec| {
        spec.sysctls.insert("kernel.pid_max".into(), "1".into());
    }),
    ("an absolute path", |_, spec| {
        spec.cgroup_parent = "relative".into();
    }),
    ("make the parent cgroup", |bench, _| {
        // Where it would be is a file.
        let place = bench.dir.path().join("cgroup/taken");
        std::fs::write(place, "").unwrap();
    }),
    ("make the files", |bench, _| bench.ground.fail(Step::Files)),
    ("make the files", |bench, spec| {
        let file = bench.dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        spec.log_directory = file.join("logs").display().to_string();
    }),
    ("make the namespaces", |bench, _| {
        let refused = Mishap::Refused(FailureKind::Internal);
        bench.runtime.next(Call::Pod, refused);
    }),
    ("make the namespaces", |bench, _| {
        bench.runtime.next(Call::Pod, Mishap::Hangs);
    }),
    ("make the namespaces", |bench, _| {
        bench.runtime.next(Call::Pod, Mishap::Dies);
    }),
    ("set up the network", |bench, _| {
        bench.ground.fail(Step::Connect);
    }),
    ("start the pause process", |bench, _| {
        let refused = Mishap::Refused(FailureKind::Invalid);
        bench.runtime.next(Call::Pause, refused);
    }),
    ("start the pause process", |bench, _| {
        bench.runtime.next(Call::Pause, Mishap::Hangs);
    }),
    ("start the pause process", |bench, _| {
        bench.runtime.next(Call::Pause, Mishap::Dies);
    }),
    ("set the network sysctls", |bench, _| {
        bench.ground.fail(Step::Sysctls);
    }),
];

#[tokio::test(start_paused = true)]
async fn a_run_that_fails_at_any_step_is_undone() {
    for (step, arrange) in WAYS {
        let mut bench = Bench::new();
        let mut failing = spec();
        arrange(&bench, &mut failing);
        if step == "make the parent cgroup" {
            failing.cgroup_parent = "/taken/pod1".into();
        }
        let error = bench.pods.run(failing).await.unwrap_err();
        assert!(
            crate::model::chain(&error).contains(step),
            "{step}: {error}"
        );
        assert_eq!(bench.events().await, "", "{step}");
        let _ = std::fs::remove_file(bench.dir.path().join("cgroup/taken"));
        bench.is_clean();
        // And the name is free.
        let id = bench.run().await;
        bench.pods.remove(&id).await.unwrap();
        bench.is_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn both_are_undone_when_network_and_pause_fail_together() {
    let bench = Bench::new();
    bench.ground.fail(Step::Connect);
    let go = bench.runtime.hold(Call::Pause);
    let run = {
        let pods = bench.pods.clone();
        tokio::spawn(async move { pods.run(spec()).await })
    };
    // The network has failed by then, and pause is yet to come.
    tokio::time::sleep(Duration::from_secs(1)).await;
    go.send(()).unwrap();
    let error = run.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("set up the network"), "{error}");
    bench.is_clean();
}

#[tokio::test]
async fn a_record_that_cannot_be_written_fails_the_run() {
    for late in [false, true] {
        let mut bench = Bench::new();
        let records = bench.dir.path().join("root/records/pods");
        if late {
            let go = bench.runtime.hold(Call::Pause);
            let run = {
                let pods = bench.pods.clone();
                tokio::spawn(async move { pods.run(spec()).await })
            };
            bench.runtime.is_asked(Call::Pause, 1).await;
            let record = std::fs::read_dir(&records)
                .unwrap()
                .next()
                .unwrap()
                .unwrap();
            // In the place of the file that becomes the next one.
            std::fs::create_dir(record.path().join("record.json.tmp")).unwrap();
            go.send(()).unwrap();
            let error = run.await.unwrap().unwrap_err();
            assert!(error.to_string().contains("write the record"), "{error}");
        } else {
            std::fs::remove_dir(&records).unwrap();
            std::fs::write(&records, "").unwrap();
            let error = bench.pods.run(spec()).await.unwrap_err();
            assert!(error.to_string().contains("write the record"), "{error}");
            assert_eq!(bench.runtime.asked(Call::Pod), 0);
            std::fs::remove_file(&records).unwrap();
            std::fs::create_dir(&records).unwrap();
            // What could not be undone either stays until it is removed.
            for pod in bench.pods.list(&Default::default()) {
                bench.pods.remove(&pod.id).await.unwrap();
            }
        }
        assert!(!bench.events().await.contains("ready"));
        bench.is_clean();
    }
}

#[tokio::test]
async fn what_cannot_be_undone_stays_until_it_is_removed() {
    let mut bench = Bench::new();
    bench.ground.fail(Step::Connect);
    bench.ground.fail(Step::Disconnect);
    let error = bench.pods.run(spec()).await.unwrap_err();
    assert!(error.to_string().contains("set up the network"), "{error}");
    let left = bench.pods.list(&Default::default()).remove(0).id;
    assert_eq!(bench.state(&left), PodState::NotReady);
    let taken = bench.pods.run(spec()).await.unwrap_err();
    assert_eq!(taken.kind(), Kind::AlreadyExists);
    // A daemon that comes meanwhile finds it as it is.
    bench.restart(|_| {}).await;
    assert_eq!(bench.state(&left), PodState::NotReady);
    bench.pods.stop(&left).await.unwrap();
    bench.is_released();
    bench.pods.remove(&left).await.unwrap();
    assert_eq!(bench.events().await, "removed");
    bench.is_clean();
}

#[tokio::test]
async fn a_stop_that_fails_is_repeated() {
    let mut bench = Bench::new();
    for step in [Step::Disconnect, Step::Unmount] {
        let id = bench.run().await;
        bench.ground.fail(step);
        let error = bench.pods.stop(&id).await.unwrap_err();
        assert!(
            error.to_string().contains(&format!("{step:?} fails")),
            "{error}"
        );
        assert_eq!(bench.state(&id), PodState::NotReady);
        assert_eq!(bench.runtime.living(), [] as [i32; 0], "the rest was done");
        bench.ground.fail(step);
        bench.pods.remove(&id).await.unwrap_err();
        bench.pods.remove(&id).await.unwrap();
        assert_eq!(bench.events().await, "ready not-ready removed");
        bench.is_clean();
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_process_that_does_not_die_is_named() {
    let bench = Bench::new();
    let id = bench.run().await;
    let pause = bench.pause(&id);
    bench.runtime.make(&pause, Nature::Stuck);
    let error = bench.pods.stop(&id).await.unwrap_err().to_string();
    let told = format!("pause process: pid {}", pause.pid);
    assert!(
        error.contains(&told) && error.contains("10 s after SIGKILL"),
        "{error}"
    );
    bench.runtime.make(&pause, Nature::Mortal);
    bench.pods.stop(&id).await.unwrap();
    bench.is_released();
}

#[tokio::test]
async fn a_pod_is_not_ready_as_soon_as_its_pause_process_is_gone() {
    let mut bench = Bench::new();
    let id = bench.run().await;
    bench.runtime.kill(&bench.pause(&id));
    bench.comes_to(&id, Stage::NotReady).await;
    assert_eq!(bench.pods.status(id.as_str()).unwrap().pause_pid, None);
    assert!(bench.pods.enter(id.as_str()).is_err());
    bench.pods.remove(&id).await.unwrap();
    // One that dies before it is known is no exception.
    bench.runtime.next(Call::Pause, Mishap::EndsFirst(1));
    let id = bench.run().await;
    bench.comes_to(&id, Stage::NotReady).await;
    bench.pods.remove(&id).await.unwrap();
    let all = "ready not-ready removed ready not-ready removed";
    assert_eq!(bench.events().await, all);
    bench.is_clean();
}

#[tokio::test]
async fn a_pod_is_closed_once_all_who_were_on_their_way_in_are_there() {
    let bench = Bench::new();
    let id = bench.run().await;
    let (ready, entry) = bench.pods.enter(id.as_str()).unwrap();
    let close = {
        let (pods, id) = (bench.pods.clone(), id.clone());
        tokio::spawn(async move { pods.close(&id).await })
    };
    bench.comes_to(&id, Stage::NotReady).await;
    assert!(ready.closing.load(std::sync::atomic::Ordering::Relaxed));
    assert!(matches!(
        bench.pods.enter(id.as_str()),
        Err(Error::NotReady(_))
    ));
    assert!(!close.is_finished());
    drop(entry);
    close.await.unwrap();
    bench.pods.close(&PodId::generate().unwrap()).await;
}

#[tokio::test]
async fn what_goes_on_is_taken_up_as_it_is() {
    let mut bench = Bench::new();
    let id = bench.run().await;
    let before = bench.pods.status(id.as_str()).unwrap();
    bench.restart(|_| {}).await;
    let after = bench.pods.status(id.as_str()).unwrap();
    assert_eq!(after.state, PodState::Ready);
    assert_eq!(
        (after.pause_pid, &after.ips),
        (before.pause_pid, &before.ips)
    );
    assert_eq!(bench.run().await, id, "nobody was told");
    bench.runtime.kill(&bench.pause(&id));
    bench.comes_to(&id, Stage::NotReady).await;
    bench.restart(|_| {}).await;
    assert_eq!(bench.state(&id), PodState::NotReady);
    bench.pods.stop(&id).await.unwrap();
    bench.restart(|_| {}).await;
    bench.is_released();
    bench.pods.remove(&id).await.unwrap();
    bench.is_clean();
}

#[tokio::test]
async fn a_pause_process_that_died_while_the_daemon_was_away_is_missed() {
    let mut bench = Bench::new();
    let id = bench.run().await;
    let pause = bench.pause(&id);
    bench.restart(|bench| bench.runtime.kill(&pause)).await;
    assert_eq!(bench.state(&id), PodState::NotReady);
    assert_eq!(bench.events().await, "not-ready");
    bench.pods.remove(&id).await.unwrap();
    bench.is_clean();
}

#[tokio::test]
async fn what_was_half_made_is_undone_and_what_is_nobody_s_is_swept() {
    let mut bench = Bench::new();
    let (half, lost) = (bench.run().await, {
        let mut other = spec();
        other.metadata.attempt = 1;
        bench.pods.run(other).await.unwrap()
    });
    let pause = bench.pause(&lost);
    bench
        .restart(|bench| {
            let records = bench.records();
            let (mut record, _) = records.read(half.as_str()).unwrap();
            record.stage = Stage::Making;
            records.write(half.as_str(), &record).unwrap();
            records.remove(lost.as_str()).unwrap();
            // Whoever removed the record has ended it.
            bench.runtime.kill(&pause);
        })
        .await;
    assert_eq!(bench.events().await, "");
    let parents = bench.names("cgroup");
    assert!(parents.len() <= 1, "{parents:?}");
    let _ = std::fs::remove_dir(bench.dir.path().join("cgroup/berth"));
    bench.is_clean();
}

#[tokio::test]
async fn the_network_of_nobody_s_pod_keeps_its_namespace_until_it_is_released() {
    let mut bench = Bench::new();
    let lost = bench.run().await;
    let pause = bench.pause(&lost);
    bench
        .restart(|bench| {
            bench.records().remove(lost.as_str()).unwrap();
            bench.runtime.kill(&pause);
            bench.ground.fail(Step::Disconnect);
        })
        .await;
    assert_eq!(bench.ground.connected().unwrap(), [lost]);
    bench.restart(|_| {}).await;
    let _ = std::fs::remove_dir(bench.dir.path().join("cgroup/berth"));
    bench.is_clean();
}

#[tokio::test]
async fn one_whose_record_cannot_be_read_is_shown_stopped_and_removed() {
    let mut bench = Bench::new();
    let id = bench.run().await;
    bench
        .restart(|bench| {
            let dir = bench.dir.path().join("root/records/pods").join(id.as_str());
            std::fs::write(dir.join("record.json"), "{").unwrap();
        })
        .await;
    let status = bench.pods.status(id.as_str()).unwrap();
    assert_eq!(status.state, PodState::NotReady);
    assert!(status.problem.unwrap().contains("damaged"));
    assert_eq!(status.spec.metadata, spec().metadata);
    assert_eq!(bench.runtime.living().len(), 1, "it lives on");
    bench.pods.stop(&id).await.unwrap();
    bench.is_released();
    bench.pods.remove(&id).await.unwrap();
    bench.is_clean();
}
