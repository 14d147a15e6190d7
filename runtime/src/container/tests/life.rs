//! Calls in order and out of order, and creates and starts that fail.

use super::*;

#[tokio::test]
async fn a_life_in_order() {
    let mut bench = Bench::new();
    let id = bench.create("web").await.unwrap();
    assert_eq!(bench.state(&id), ContainerState::Created);
    bench.containers.start(id.as_str()).await.unwrap();
    let status = bench.containers.status(id.as_str()).unwrap();
    assert_eq!(status.state, ContainerState::Running);
    assert!(status.started_at >= status.created_at);
    assert_eq!(status.pid, Some(bench.init(&id).pid));
    assert_eq!(bench.exec(&id).await.unwrap(), (b"done\n".to_vec(), 0));
    bench.containers.reopen_log(id.as_str()).await.unwrap();
    bench.stop(&id, 30).await.unwrap().unwrap();
    let exit = bench.end(&id).await;
    assert_eq!((exit.code, exit.reason.as_str()), (143, "Error"));
    assert_eq!(bench.containers.status(id.as_str()).unwrap().pid, None);
    bench.containers.remove(id.as_str()).await.unwrap();
    let gone = bench.containers.status(id.as_str()).unwrap_err();
    assert_eq!(gone.kind(), Kind::NotFound);
    assert_eq!(bench.events(&id).await, "created started stopped removed");
    bench.is_clean();
}

#[tokio::test]
async fn calls_out_of_order_are_refused_or_change_nothing() {
    let bench = Bench::new();
    let containers = &bench.containers;
    let none = "f".repeat(64);
    assert_eq!(
        containers.start(&none).await.unwrap_err().kind(),
        Kind::NotFound
    );
    containers.stop(&none, Duration::ZERO).await.unwrap();
    containers.remove(&none).await.unwrap();

    let id = bench.create("web").await.unwrap();
    let refused = |error: Error| assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    refused(bench.exec(&id).await.unwrap_err());
    refused(containers.reopen_log(id.as_str()).await.unwrap_err());
    // The kubelet stops what it never started; it can be started later.
    containers.stop(id.as_str(), Duration::ZERO).await.unwrap();
    containers.start(id.as_str()).await.unwrap();
    refused(containers.start(id.as_str()).await.unwrap_err());
    containers.stop(id.as_str(), Duration::ZERO).await.unwrap();
    assert_eq!(bench.end(&id).await.code, 137);
    containers.stop(id.as_str(), Duration::ZERO).await.unwrap();
    refused(containers.start(id.as_str()).await.unwrap_err());
    refused(bench.exec(&id).await.unwrap_err());
    refused(containers.reopen_log(id.as_str()).await.unwrap_err());
    let update = containers.update(id.as_str(), Default::default());
    refused(update.await.unwrap_err());
    containers.remove(id.as_str()).await.unwrap();
    containers.remove(id.as_str()).await.unwrap();
    bench.is_clean();
}

#[tokio::test]
async fn equal_creates_are_joined() {
    let bench = Bench::new();
    let go = bench.runtime.hold(Call::Create);
    let create = |spec: ContainerSpec| {
        let (pod, image) = (bench.ready_pod(), ground::image());
        bench.spawn(|c| async move { c.create(pod, None, image, (), spec).await })
    };
    let (one, two) = (create(ground::spec("web")), create(ground::spec("web")));
    bench.runtime.is_asked(Call::Create, 1).await;
    let mut other = ground::spec("web");
    other.working_dir = "/srv".into();
    let busy = bench.create_of(other.clone()).await.unwrap_err();
    assert_eq!(busy.kind(), Kind::Unavailable);
    go.send(()).unwrap();
    let id = one.await.unwrap().unwrap();
    assert_eq!(two.await.unwrap().unwrap(), id);
    assert_eq!(bench.runtime.asked(Call::Create), 1);
    for spec in [other, ground::spec("web")] {
        let taken = bench.create_of(spec).await.unwrap_err();
        assert_eq!(taken.kind(), Kind::AlreadyExists);
    }
    bench.containers.remove(id.as_str()).await.unwrap();
    assert_ne!(bench.create("web").await.unwrap(), id);
}

#[tokio::test]
async fn a_create_whose_caller_left_goes_on_and_is_given_to_the_next() {
    let bench = Bench::new();
    for started in [false, true] {
        let go = bench.runtime.hold(Call::Create);
        let made = bench.runtime.asked(Call::Create);
        let left = tokio::time::timeout(Duration::from_millis(50), bench.create("web"));
        left.await.unwrap_err();
        bench.runtime.is_asked(Call::Create, made + 1).await;
        go.send(()).unwrap();
        let id = loop {
            match bench.containers.list(&Default::default()).first() {
                Some(made) => break made.id.clone(),
                None => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        };
        if started {
            // Somebody has found it: it is nobody's to be given any more.
            bench.containers.start(id.as_str()).await.unwrap();
            let taken = bench.create("web").await.unwrap_err();
            assert_eq!(taken.kind(), Kind::AlreadyExists);
        } else {
            assert_eq!(bench.create("web").await.unwrap(), id);
        }
        assert_eq!(bench.runtime.asked(Call::Create), made + 1);
        bench.containers.remove(id.as_str()).await.unwrap();
    }
    bench.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_create_that_fails_is_undone() {
    let mut bench = Bench::new();
    let mishaps = [
        (Mishap::Refused(FailureKind::Invalid), Kind::InvalidArgument),
        (Mishap::Refused(FailureKind::Internal), Kind::Unknown),
        (
            Mishap::Refused(FailureKind::Memory),
            Kind::ResourceExhausted,
        ),
        (Mishap::Hangs, Kind::Unavailable),
        (Mishap::Dies, Kind::Unknown),
    ];
    for (mishap, kind) in mishaps {
        let what = format!("{mishap:?}");
        bench.runtime.next(Call::Create, mishap);
        let error = bench.create("web").await.unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error}");
        let text = crate::model::chain(&error);
        assert!(
            text.contains("web") && text.contains("make the process"),
            "{text}"
        );
        bench.is_clean();
    }
    // Before the monitor: neither is there more left of it, nor was it heard of.
    let mut privileged = ground::spec("web");
    privileged.privileged = true;
    bench.create_of(privileged).await.unwrap_err();
    let mut wrong = ground::spec("web");
    wrong.log_path = "../../etc/passwd".into();
    let request = PodSpec {
        log_directory: bench.dir.path().join("logs").display().to_string(),
        ..PodSpec::default()
    };
    let (pod, image) = (bench.ready_pod(), ground::image());
    let create = bench
        .containers
        .create(pod, Some(request), image, (), wrong);
    let error = create.await.unwrap_err().to_string();
    assert!(error.contains("open the log"), "{error}");
    bench.is_clean();
    assert!(bench.heard_nothing().await);
    bench.create("web").await.unwrap();
}

#[tokio::test]
async fn a_record_that_cannot_be_written_fails_the_create() {
    let mut bench = Bench::new();
    let go = bench.runtime.hold(Call::Create);
    let (pod, image, spec) = (bench.ready_pod(), ground::image(), ground::spec("web"));
    let create = bench.spawn(|c| async move { c.create(pod, None, image, (), spec).await });
    bench.runtime.is_asked(Call::Create, 1).await;
    let records = bench.dir.path().join("root/records/containers");
    let record = std::fs::read_dir(&records)
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    // In the place of the file that becomes the next one.
    std::fs::create_dir(record.path().join("record.json.tmp")).unwrap();
    go.send(()).unwrap();
    let error = create.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("write the record"), "{error}");
    bench.is_clean();
    assert!(bench.heard_nothing().await);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_ends_before_it_is_known_is_over() {
    let mut bench = Bench::new();
    bench.runtime.next(Call::Create, Mishap::EndsFirst(3));
    let id = bench.create("web").await.unwrap();
    assert_eq!(bench.end(&id).await.code, 3);
    let refused = bench.containers.start(id.as_str()).await.unwrap_err();
    assert!(refused.to_string().contains("exit code 3"), "{refused}");
    assert_eq!(bench.events(&id).await, "created stopped");
    bench.containers.remove(id.as_str()).await.unwrap();
    bench.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_refused_ends_the_container() {
    let mut bench = Bench::new();
    bench
        .runtime
        .next(Call::Start, Mishap::Refused(FailureKind::Start));
    let id = bench.create("web").await.unwrap();
    let error = bench.containers.start(id.as_str()).await.unwrap_err();
    assert!(error.to_string().contains("start the process"), "{error}");
    let exit = bench.end(&id).await;
    assert_eq!((exit.code, exit.reason.as_str()), (128, "StartError"));
    let again = bench.containers.start(id.as_str()).await.unwrap_err();
    assert!(again.to_string().contains(&exit.message), "{again}");
    assert_eq!(bench.events(&id).await, "created stopped");
    bench.containers.remove(id.as_str()).await.unwrap();
    bench.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_monitor_that_dies_at_the_start_ends_the_container() {
    let mut bench = Bench::new();
    bench.runtime.next(Call::Start, Mishap::Dies);
    let id = bench.create("web").await.unwrap();
    let error = bench.containers.start(id.as_str()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    assert_eq!(bench.end(&id).await.code, 255);
    assert_eq!(bench.events(&id).await, "created stopped");
    bench.containers.remove(id.as_str()).await.unwrap();
    bench.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_monitor_that_hangs_at_the_start_is_ended() {
    let mut bench = Bench::new();
    bench.runtime.next(Call::Start, Mishap::Hangs);
    let id = bench.create("web").await.unwrap();
    let error = bench.containers.start(id.as_str()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");
    let exit = bench.end(&id).await;
    assert_eq!((exit.code, exit.reason.as_str()), (128, "StartError"));
    assert_eq!(bench.events(&id).await, "created stopped");
    bench.containers.remove(id.as_str()).await.unwrap();
    bench.is_clean();
}

#[tokio::test]
async fn what_ends_before_its_start_is_answered_has_run() {
    let mut bench = Bench::new();
    for code in [0, 3] {
        bench.runtime.next(Call::Start, Mishap::EndsFirst(code));
        let id = bench.create("web").await.unwrap();
        bench.containers.start(id.as_str()).await.unwrap();
        assert_eq!(bench.end(&id).await.code, code);
        assert!(bench.containers.status(id.as_str()).unwrap().started_at > 0);
        assert_eq!(bench.events(&id).await, "created started stopped");
        bench.containers.remove(id.as_str()).await.unwrap();
    }
    bench.is_clean();
}

#[tokio::test]
async fn a_running_container_is_killed_when_it_is_removed() {
    let mut bench = Bench::new();
    let id = bench.run("web").await;
    bench.runtime.make(&bench.init(&id), Nature::Stubborn);
    bench.containers.remove(id.as_str()).await.unwrap();
    assert_eq!(bench.events(&id).await, "created started stopped removed");
    bench.is_clean();
    assert_ne!(bench.run("web").await, id);
}

#[tokio::test]
async fn two_removals_at_once_are_one() {
    let mut bench = Bench::new();
    let id = bench.run("web").await;
    let remove = || {
        let id = id.clone();
        bench.spawn(|c| async move { c.remove(id.as_str()).await })
    };
    let (one, two) = (remove(), remove());
    one.await.unwrap().unwrap();
    two.await.unwrap().unwrap();
    assert_eq!(bench.events(&id).await, "created started stopped removed");
    bench.is_clean();
}

#[tokio::test]
async fn the_containers_of_a_pod_go_together_and_no_others() {
    let mut bench = Bench::new();
    let (created, running) = (bench.create("a").await.unwrap(), bench.run("b").await);
    let pod = std::mem::replace(&mut bench.pod, PodId::generate().unwrap());
    let other = bench.run("b").await;
    bench.containers.kill_pod(&pod).await.unwrap();
    for id in [&created, &running] {
        assert_eq!(bench.end(id).await.code, 137);
    }
    bench.containers.kill_pod(&pod).await.unwrap();
    bench.containers.remove_pod(&pod).await.unwrap();
    bench.containers.remove_pod(&pod).await.unwrap();
    assert_eq!(bench.state(&other), ContainerState::Running);
    bench.containers.remove(other.as_str()).await.unwrap();
    bench.is_clean();
}
