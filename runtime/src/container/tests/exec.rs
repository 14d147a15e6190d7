//! Commands beside a container's own process, and its log.

use super::*;

/// A command that runs until somebody ends it.
async fn running(bench: &Bench, id: &ContainerId) -> tokio::task::JoinHandle<Result<i32, Error>> {
    bench.runtime.next(Call::Exec, Mishap::Runs);
    let asked = bench.runtime.asked(Call::Exec);
    let id = id.clone();
    let exec = bench.spawn(move |c| async move {
        let request = ExecRequest {
            command: vec!["sleep".to_owned()],
            tty: false,
            timeout: None,
        };
        let output = c.exec_sync(id.as_str(), request).await?;
        Ok(output.exit_code)
    });
    bench.runtime.is_asked(Call::Exec, asked + 1).await;
    exec
}

#[tokio::test]
async fn a_command_ends_with_its_container() {
    let bench = Bench::new();
    let id = bench.run("web").await;
    let exec = running(&bench, &id).await;
    bench.stop(&id, 30).await.unwrap().unwrap();
    let error = exec.await.unwrap().unwrap_err();
    assert!(
        error.to_string().contains("is exited, not running"),
        "{error}"
    );
    assert_eq!(bench.end(&id).await.code, 143);
    bench.containers.remove(id.as_str()).await.unwrap();
    bench.is_clean();
}

#[tokio::test]
async fn commands_are_run_while_a_stop_waits() {
    let bench = Bench::new();
    let id = bench.run("web").await;
    bench.runtime.make(&bench.init(&id), Nature::Stubborn);
    let stop = bench.stop(&id, 1);
    assert_eq!(bench.exec(&id).await.unwrap().1, 0);
    stop.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_command_is_killed_when_its_caller_leaves() {
    let bench = Bench::new();
    let id = bench.run("web").await;
    let exec = running(&bench, &id).await;
    exec.abort();
    bench.runtime.is_asked(Call::KillExec, 1).await;
    assert_eq!(bench.state(&id), ContainerState::Running);
    // One that is over, or was never begun, is not.
    bench.exec(&id).await.unwrap();
    bench
        .runtime
        .next(Call::Exec, Mishap::Refused(FailureKind::Start));
    bench.exec(&id).await.unwrap_err();
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(bench.runtime.asked(Call::KillExec), 1);
}

#[tokio::test(start_paused = true)]
async fn a_monitor_s_mishap_is_the_command_s() {
    let bench = Bench::new();
    let id = bench.run("web").await;
    let refused = [
        (FailureKind::Start, Kind::Unknown),
        (FailureKind::Timeout, Kind::DeadlineExceeded),
        (FailureKind::Busy, Kind::ResourceExhausted),
    ];
    for (failure, kind) in refused {
        bench.runtime.next(Call::Exec, Mishap::Refused(failure));
        assert_eq!(bench.exec(&id).await.unwrap_err().kind(), kind);
    }
    // A probe must not count it as its own limit.
    bench.runtime.next(Call::Exec, Mishap::Hangs);
    assert_eq!(bench.exec(&id).await.unwrap_err().kind(), Kind::Unavailable);
    bench.runtime.wake(&id);
    assert_eq!(bench.exec(&id).await.unwrap().1, 0);
    bench.runtime.next(Call::Exec, Mishap::Dies);
    let error = bench.exec(&id).await.unwrap_err();
    assert!(
        error.to_string().contains("is exited, not running"),
        "{error}"
    );
    assert_eq!(bench.end(&id).await.code, 255);
}

#[tokio::test(start_paused = true)]
async fn the_log_stays_where_it_is_when_it_cannot_be_opened_anew() {
    let bench = Bench::new();
    let id = bench.run("web").await;
    bench
        .runtime
        .next(Call::ReopenLog, Mishap::Refused(FailureKind::Internal));
    let error = bench.containers.reopen_log(id.as_str()).await.unwrap_err();
    assert!(error.to_string().contains("reopen the log"), "{error}");
    bench.runtime.next(Call::ReopenLog, Mishap::Hangs);
    let error = bench.containers.reopen_log(id.as_str()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    bench.runtime.wake(&id);
    bench.containers.reopen_log(id.as_str()).await.unwrap();
    bench.runtime.next(Call::ReopenLog, Mishap::Dies);
    let error = bench.containers.reopen_log(id.as_str()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
}
