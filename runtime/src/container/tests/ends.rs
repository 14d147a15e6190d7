//! Stops, and containers and monitors that end or hang by themselves.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_stop_kills_after_the_grace_time_and_not_before() {
    let mut bench = Bench::new();
    let id = bench.run("web").await;
    bench.runtime.make(&bench.init(&id), Nature::Stubborn);
    let began = tokio::time::Instant::now();
    bench.stop(&id, 25).await.unwrap().unwrap();
    let took = began.elapsed().as_secs();
    assert!((25..27).contains(&took), "{took} s");
    assert_eq!(bench.end(&id).await.code, 137);
    assert_eq!(bench.events(&id).await, "created started stopped");
}

#[tokio::test(start_paused = true)]
async fn a_later_stop_may_be_shorter_and_a_caller_that_leaves_ends_nothing() {
    let bench = Bench::new();
    let id = bench.run("web").await;
    bench.runtime.make(&bench.init(&id), Nature::Stubborn);
    let left = bench.containers.stop(id.as_str(), Duration::from_secs(100));
    let left = tokio::time::timeout(Duration::from_secs(1), left);
    left.await.unwrap_err();
    assert_eq!(bench.state(&id), ContainerState::Running);
    let began = tokio::time::Instant::now();
    let (long, short) = (bench.stop(&id, 100), bench.stop(&id, 2));
    short.await.unwrap().unwrap();
    long.await.unwrap().unwrap();
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(bench.end(&id).await.code, 137);
    let (term, kill) = (libc::SIGTERM, libc::SIGKILL);
    assert_eq!(bench.runtime.signals(), [term, kill]);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_does_not_die_is_named_until_it_does() {
    let bench = Bench::new();
    let id = bench.run("web").await;
    let init = bench.init(&id);
    bench.runtime.make(&init, Nature::Stuck);
    for _ in 0..2 {
        let error = bench.stop(&id, 1).await.unwrap().unwrap_err();
        assert!(error.to_string().contains("after SIGKILL"), "{error}");
        bench.containers.remove(id.as_str()).await.unwrap_err();
        assert_eq!(bench.state(&id), ContainerState::Running);
    }
    bench.runtime.make(&init, Nature::Mortal);
    bench.stop(&id, 1).await.unwrap().unwrap();
    bench.containers.remove(id.as_str()).await.unwrap();
    bench.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_a_start_be_answered_first() {
    let mut bench = Bench::new();
    let id = bench.create("web").await.unwrap();
    let go = bench.runtime.hold(Call::Start);
    let start = {
        let id = id.clone();
        bench.spawn(|c| async move { c.start(id.as_str()).await })
    };
    bench.runtime.is_asked(Call::Start, 1).await;
    let stop = bench.stop(&id, 30);
    tokio::time::sleep(Duration::from_millis(100)).await;
    go.send(()).unwrap();
    start.await.unwrap().unwrap();
    stop.await.unwrap().unwrap();
    assert_eq!(bench.end(&id).await.code, 143);
    assert_eq!(bench.events(&id).await, "created started stopped");
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_not_answered_is_ended_by_stop_and_by_remove() {
    let mut bench = Bench::new();
    for removed in [false, true] {
        let id = bench.create("web").await.unwrap();
        let _go = bench.runtime.hold(Call::Start);
        let asked = bench.runtime.asked(Call::Start);
        let start = {
            let id = id.clone();
            bench.spawn(|c| async move { c.start(id.as_str()).await })
        };
        bench.runtime.is_asked(Call::Start, asked + 1).await;
        if !removed {
            bench.stop(&id, 30).await.unwrap().unwrap();
            let exit = bench.end(&id).await;
            assert_eq!(exit.code, 137);
            assert!(exit.message.contains("while it was being started"));
            start.await.unwrap().unwrap_err();
            assert_eq!(bench.end(&id).await, exit, "the first end is the end");
            assert_eq!(bench.events(&id).await, "created stopped");
            bench.containers.remove(id.as_str()).await.unwrap();
        } else {
            bench.containers.remove(id.as_str()).await.unwrap();
            start.await.unwrap().unwrap_err();
            assert_eq!(bench.events(&id).await, "created stopped removed");
        }
    }
    bench.is_clean();
}

#[tokio::test]
async fn an_end_is_told_with_its_code() {
    let mut bench = Bench::new();
    let (fine, bad) = (bench.run("fine").await, bench.run("bad").await);
    bench.runtime.exit(&fine, 0);
    bench.runtime.exit(&bad, 9);
    let (fine, exit) = (bench.end(&fine).await, bench.end(&bad).await);
    assert_eq!((fine.code, fine.reason.as_str()), (0, "Completed"));
    assert_eq!((exit.code, exit.reason.as_str()), (9, "Error"));
    assert_eq!(bench.events(&bad).await, "created started stopped");
}

#[tokio::test]
async fn a_monitor_that_dies_is_an_end_that_nobody_knows() {
    let mut bench = Bench::new();
    let (created, running) = (bench.create("a").await.unwrap(), bench.run("b").await);
    for id in [&created, &running] {
        bench.runtime.lose(id);
        let exit = bench.end(id).await;
        assert_eq!(exit.code, 255);
        assert!(exit.message.contains("monitor died"), "{}", exit.message);
    }
    assert_eq!(bench.events(&running).await, "created started stopped");
    for id in [created, running] {
        bench.containers.remove(id.as_str()).await.unwrap();
    }
    bench.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_dead_container_whose_monitor_hangs_is_over_all_the_same() {
    let mut bench = Bench::new();
    let id = bench.run("web").await;
    bench.runtime.hang(&id);
    bench.runtime.exit(&id, 0);
    let exit = bench.end(&id).await;
    assert_eq!(exit.code, 255);
    assert_eq!(bench.runtime.asked(Call::Kill), 1);
    assert_eq!(bench.events(&id).await, "created started stopped");
    bench.containers.remove(id.as_str()).await.unwrap();
    bench.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_monitor_that_hangs_keeps_nothing_from_being_stopped_and_removed() {
    let mut bench = Bench::new();
    let (created, running) = (bench.create("a").await.unwrap(), bench.run("b").await);
    for id in [&created, &running] {
        bench.runtime.hang(id);
    }
    bench.stop(&running, 5).await.unwrap().unwrap();
    assert_eq!(bench.end(&running).await.code, 255);
    bench.containers.remove(created.as_str()).await.unwrap();
    bench.containers.remove(running.as_str()).await.unwrap();
    assert_eq!(
        bench.events(&running).await,
        "created started stopped removed"
    );
    bench.is_clean();
}

#[tokio::test(start_paused = true)]
async fn a_created_container_is_removed_whatever_its_monitor_does() {
    let mut bench = Bench::new();
    let refused = Mishap::Refused(FailureKind::Internal);
    for mishap in [Mishap::Hangs, Mishap::Dies, refused] {
        let id = bench.create("web").await.unwrap();
        let refused = matches!(mishap, Mishap::Refused(_));
        bench.runtime.next(Call::Destroy, mishap);
        bench.containers.remove(id.as_str()).await.unwrap();
        assert!(bench.containers.status(id.as_str()).is_err());
        assert_eq!(bench.events(&id).await, "created stopped removed");
        if refused {
            // Its processes die with its cgroup, which a table does not have.
            bench.runtime.lose(&id);
        }
        bench.is_clean();
    }
}
