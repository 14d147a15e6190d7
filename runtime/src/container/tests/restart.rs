//! What a later daemon makes of the containers that it finds.

use super::super::record::ContainerRecord;
use super::super::state::Status;
use super::*;
use crate::store::Records;

#[tokio::test]
async fn what_goes_on_is_taken_up_as_it_is() {
    let mut bench = Bench::new();
    let (created, running) = (bench.create("a").await.unwrap(), bench.run("b").await);
    let over = bench.run("c").await;
    bench.stop(&over, 30).await.unwrap().unwrap();
    let before = bench.containers.status(running.as_str()).unwrap();
    bench.restart(|_| {}).await;
    assert_eq!(bench.state(&created), ContainerState::Created);
    let after = bench.containers.status(running.as_str()).unwrap();
    assert_eq!(after.state, ContainerState::Running);
    assert_eq!(
        (after.started_at, after.pid),
        (before.started_at, before.pid)
    );
    assert_eq!(bench.end(&over).await.code, 143);
    assert_eq!(bench.events(&running).await, "");
    // And all goes on with it.
    let taken = bench.create("b").await.unwrap_err();
    assert_eq!(taken.kind(), Kind::AlreadyExists);
    assert_eq!(bench.create("a").await.unwrap(), created, "nobody was told");
    assert_eq!(bench.exec(&running).await.unwrap().1, 0);
    bench.containers.start(created.as_str()).await.unwrap();
    bench.runtime.exit(&created, 4);
    assert_eq!(bench.end(&created).await.code, 4);
    bench.stop(&running, 30).await.unwrap().unwrap();
    assert_eq!(bench.events(&running).await, "stopped");
    for id in [created, running, over] {
        bench.containers.remove(id.as_str()).await.unwrap();
    }
    bench.is_clean();
}

#[tokio::test]
async fn ends_while_the_daemon_was_away_are_told() {
    let mut bench = Bench::new();
    let (exited, lost) = (bench.run("a").await, bench.run("b").await);
    let (never, unheard) = (
        bench.create("c").await.unwrap(),
        bench.create("d").await.unwrap(),
    );
    bench
        .restart(|bench| {
            bench.runtime.exit(&exited, 3);
            bench.runtime.lose(&lost);
            bench.runtime.exit(&never, 137);
            let _ = std::fs::remove_dir_all(bench.dir.path().join("state/containers"));
            bench.runtime.lose(&unheard);
        })
        .await;
    // Its exit record went with the directory: nobody knows.
    for id in [&exited, &lost, &never, &unheard] {
        assert_eq!(bench.state(id), ContainerState::Exited);
        assert_eq!(bench.end(id).await.code, 255);
    }

    let exited = bench.run("e").await;
    let started = bench.containers.status(exited.as_str()).unwrap().started_at;
    bench.restart(|bench| bench.runtime.exit(&exited, 3)).await;
    let status = bench.containers.status(exited.as_str()).unwrap();
    assert_eq!(
        (status.state, status.started_at),
        (ContainerState::Exited, started)
    );
    assert_eq!(status.exit.unwrap().code, 3);
    assert_eq!(bench.events(&exited).await, "stopped");
    for status in bench.containers.list(&Default::default()) {
        bench.containers.remove(status.id.as_str()).await.unwrap();
    }
    bench.is_clean();
}

#[tokio::test]
async fn what_was_half_made_is_undone() {
    let mut bench = Bench::new();
    let id = bench.create("web").await.unwrap();
    bench
        .restart(|bench| {
            let records: Records<ContainerRecord> =
                Records::open(&bench.dir.path().join("root"), "containers").unwrap();
            let (mut record, _) = records.read(id.as_str()).unwrap();
            record.status = Status::new();
            records.write(id.as_str(), &record).unwrap();
        })
        .await;
    assert!(bench.containers.status(id.as_str()).is_err());
    assert_eq!(bench.events(&id).await, "");
    bench.is_clean();
    bench.create("web").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_start_under_way_is_waited_for() {
    let mut bench = Bench::new();
    for fine in [true, false] {
        let id = bench.create("web").await.unwrap();
        let _go = bench.runtime.hold(Call::Start);
        let asked = bench.runtime.asked(Call::Start);
        let start = {
            let id = id.clone();
            bench.spawn(|c| async move { c.start(id.as_str()).await })
        };
        // The monitor has read it, and the daemon dies before the answer.
        bench.runtime.is_asked(Call::Start, asked + 1).await;
        start.abort();
        if !fine {
            let refused = Mishap::Refused(FailureKind::Start);
            bench.runtime.next(Call::Start, refused);
        }
        bench.restart(|_| {}).await;
        let container = bench.inner(&id);
        let mut changes = container.status.subscribe();
        let known = changes.wait_for(|s| s.state() != ContainerState::Created);
        let state = known.await.unwrap().state();
        if fine {
            assert_eq!(state, ContainerState::Running);
            assert_eq!(bench.events(&id).await, "started");
        } else {
            assert_eq!(bench.end(&id).await.code, 128);
            assert_eq!(bench.events(&id).await, "stopped");
        }
        bench.containers.remove(id.as_str()).await.unwrap();
    }
    bench.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_monitor_that_does_not_answer_is_asked_until_it_does() {
    let mut bench = Bench::new();
    let (wakes, dies, stopped) = (
        bench.run("a").await,
        bench.run("b").await,
        bench.run("c").await,
    );
    let all = [wakes.clone(), dies.clone(), stopped.clone()];
    bench
        .restart(|bench| all.iter().for_each(|id| bench.runtime.hang(id)))
        .await;
    for id in &all {
        assert_eq!(bench.state(id), ContainerState::Unknown);
        assert_eq!(
            bench.exec(id).await.unwrap_err().kind(),
            Kind::FailedPrecondition
        );
    }
    bench.runtime.wake(&wakes);
    bench.runtime.lose(&dies);
    bench.stop(&stopped, 2).await.unwrap().unwrap();
    assert_eq!(bench.end(&stopped).await.code, 255);
    assert_eq!(bench.end(&dies).await.code, 255);
    while bench.state(&wakes) != ContainerState::Running {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bench.runtime.exit(&wakes, 6);
    assert_eq!(bench.end(&wakes).await.code, 6);
    assert_eq!(bench.events(&wakes).await, "stopped");
    for id in all {
        bench.containers.remove(id.as_str()).await.unwrap();
    }
    bench.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_monitor_that_refuses_is_asked_again_and_one_that_dies_is_gone() {
    let mut bench = Bench::new();
    let id = bench.run("web").await;
    let refused = Mishap::Refused(FailureKind::Version);
    bench
        .restart(|bench| bench.runtime.next(Call::Connect, refused))
        .await;
    assert_eq!(bench.state(&id), ContainerState::Unknown);
    while bench.state(&id) != ContainerState::Running {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bench
        .restart(|bench| bench.runtime.next(Call::Connect, Mishap::Dies))
        .await;
    assert_eq!(bench.end(&id).await.code, 255);
    bench.containers.remove(id.as_str()).await.unwrap();
    bench.is_clean();
}

#[tokio::test]
async fn one_whose_record_cannot_be_read_is_shown_stopped_and_removed() {
    let mut bench = Bench::new();
    let id = bench.run("web").await;
    bench
        .restart(|bench| {
            let dir = bench
                .dir
                .path()
                .join("root/records/containers")
                .join(id.as_str());
            std::fs::write(dir.join("record.json"), "{").unwrap();
        })
        .await;
    let status = bench.containers.status(id.as_str()).unwrap();
    assert_eq!(status.state, ContainerState::Unknown);
    assert!(status.problem.unwrap().contains("damaged"));
    assert_eq!(status.spec.metadata.name, "web");
    bench.stop(&id, 30).await.unwrap().unwrap();
    assert_eq!(bench.end(&id).await.code, 143);
    bench.containers.remove(id.as_str()).await.unwrap();
    bench.is_clean();
}

#[tokio::test]
async fn of_another_boot_nothing_is_looked_for() {
    let mut bench = Bench::new();
    let id = bench.run("web").await;
    bench
        .restart(|bench| {
            bench.runtime.lose(&id);
            let records: Records<ContainerRecord> =
                Records::open(&bench.dir.path().join("root"), "containers").unwrap();
            let (mut record, _) = records.read(id.as_str()).unwrap();
            record.parts.boot_id = "another boot".to_owned();
            records.write(id.as_str(), &record).unwrap();
        })
        .await;
    let exit = bench.end(&id).await;
    assert_eq!(exit.code, 255);
    assert!(exit.message.contains("restarted"), "{}", exit.message);
    assert_eq!(bench.runtime.asked(Call::Connect), 0);
    bench.containers.remove(id.as_str()).await.unwrap();
    bench.is_clean();
}
